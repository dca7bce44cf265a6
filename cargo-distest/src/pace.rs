//! How fast a worker is and what handing out to it costs, learnt from what happens there. Pure.
//!
//! A speed is relative: what tests are expected to take, divided by what they take. Ratios are
//! averaged by their logarithms, so that twice as fast and half as fast weigh the same. One attempt
//! that is far off says little; several in a row that are far off on the same side say that the
//! worker has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::WorkerId;

/// No worker is believed to be slower or faster than this.
pub const SPEED_MIN: f64 = 0.1;
/// See [`SPEED_MIN`].
pub const SPEED_MAX: f64 = 10.0;
/// The most that one attempt counts for: it was this many times as fast or as slow as believed.
const STRANGE: f64 = 2.0;
/// Attempts in a row that are as strange after which the worker is another one.
const STRANGE_MAX: i32 = 3;
/// The newest attempt's share of what is believed is at least one in this many.
const MEMORY: u32 = 10;
/// What an earlier run found counts for as many attempts.
const REMEMBERED: u32 = 3;
/// The least share of the newest value in the cost of handing out when it rises, one in this many:
/// a worker that others use too is slow to begin, which says nothing about the way there.
const RISES: u32 = 8;
/// No start is believed to take longer.
const OVERHEAD_MAX: Duration = Duration::from_secs(2);
/// Share of the newest measurement in the rate is one in this many.
const RATE_MEMORY: f64 = 3.0;

/// What is known of a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    speed: f64,
    seen: u32,
    /// Attempts in a row that were strange: above 0, too fast; below, too slow.
    strange: i32,
    overhead: Option<Duration>,
    rate: Option<f64>,
}

/// No part is ever not a number.
impl Eq for Pace {}

impl Default for Pace {
    /// Nothing is known.
    fn default() -> Self {
        Self { speed: 1.0, seen: 0, strange: 0, overhead: None, rate: None }
    }
}

impl Pace {
    /// What an earlier run has found: a speed, what starting an attempt took, and bytes per second
    /// on the way there. What makes no sense is not known.
    pub fn remembered(speed: f64, overhead: Option<Duration>, rate: Option<f64>) -> Self {
        let known = speed.is_finite() && speed > 0.0;
        let speed = if known { speed.clamp(SPEED_MIN, SPEED_MAX) } else { 1.0 };
        let rate = rate.filter(|rate| rate.is_finite() && *rate >= 1.0);
        let overhead = overhead.map(|overhead| overhead.min(OVERHEAD_MAX));
        Self { speed, seen: if known { REMEMBERED } else { 0 }, strange: 0, overhead, rate }
    }

    /// What tests are expected to take, divided by what they take there.
    pub fn speed(&self) -> f64 {
        self.speed
    }

    /// Whether anything speaks for that speed.
    pub fn is_known(&self) -> bool {
        self.seen > 0
    }

    /// From handing an attempt to a free slot until its process runs, as far as that is known.
    pub fn overhead(&self) -> Option<Duration> {
        self.overhead
    }

    /// Bytes of files, before compression, that get there each second, as far as that is known.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// The same with all speeds measured by another standard.
    #[must_use]
    pub fn relative_to(self, standard: f64) -> Self {
        let speed = self.speed / standard.max(f64::MIN_POSITIVE);
        Self { speed: speed.clamp(SPEED_MIN, SPEED_MAX), ..self }
    }

    /// Learns from an attempt.
    pub fn learn(&mut self, expected: Duration, took: Duration) {
        let ratio = expected.as_secs_f64() / took.as_secs_f64().max(1e-3);
        let off = ratio.clamp(SPEED_MIN, SPEED_MAX) / self.speed;
        self.strange = match () {
            () if off > STRANGE => self.strange.max(0) + 1,
            () if off < 1.0 / STRANGE => self.strange.min(0) - 1,
            () => 0,
        };
        let changed = self.strange.abs() >= STRANGE_MAX;
        self.seen = if changed { 1 } else { self.seen.saturating_add(1).min(MEMORY) };
        let share = if changed { 0.5 } else { 1.0 / f64::from(self.seen) };
        let off = if changed { off } else { off.clamp(1.0 / STRANGE, STRANGE) };
        self.speed = (self.speed * off.powf(share)).clamp(SPEED_MIN, SPEED_MAX);
    }

    /// Learns from how long an attempt that was handed to a free slot waited until it ran.
    pub fn learn_overhead(&mut self, waited: Duration) {
        let waited = waited.min(OVERHEAD_MAX);
        self.overhead = Some(match self.overhead {
            None => waited,
            Some(before) if waited < before => (before + waited) / 2,
            Some(before) => before + (waited - before).min(before) / RISES,
        });
    }

    /// Learns from files that travelled.
    pub fn learn_rate(&mut self, bytes: u64, took: Duration) {
        let rate = (bytes as f64 / took.as_secs_f64().max(1e-3)).max(1.0);
        self.rate = Some(match self.rate {
            None => rate,
            Some(before) => before * (rate / before).powf(1.0 / RATE_MEMORY),
        });
    }
}

/// What is known of workers, by the names that they have for themselves.
pub type Paces = BTreeMap<String, Pace>;

/// A worker of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    /// Its number in the run.
    pub worker: WorkerId,
    /// What it calls itself.
    pub name: String,
    /// What was known of it before.
    pub before: Option<Pace>,
    /// What is known of it now.
    pub now: Pace,
}

/// By what the speeds of a run are measured so that those of workers that were known before stay
/// what they are on average: what all have in common is the tests' doing, not the workers'. Each
/// with what was known before, what is known now, and how much it counts for.
pub fn standard(workers: impl Iterator<Item = (Option<Pace>, Pace, u32)>) -> f64 {
    let (mut known, mut new) = ((0.0, 0.0), (0.0, 0.0));
    for (before, now, counts) in workers.filter(|(_, now, _)| now.is_known()) {
        let before = before.filter(Pace::is_known);
        let sums = if before.is_some() { &mut known } else { &mut new };
        let was = before.map_or(1.0, |before| before.speed);
        sums.0 += (now.speed / was).ln() * f64::from(counts);
        sums.1 += f64::from(counts);
    }
    let (sum, counts) = if known.1 > 0.0 { known } else { new };
    if counts > 0.0 { (sum / counts).exp() } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(mut pace: Pace, seconds: &[f64]) -> f64 {
        for took in seconds {
            pace.learn(SECOND, Duration::from_secs_f64(*took));
        }
        pace.speed()
    }

    #[test]
    fn a_speed_is_found_in_a_few_attempts_and_stays() {
        let near = |speed: f64, expected: f64| {
            assert!((speed / expected).ln().abs() < 0.15, "{speed}, not {expected}");
        };
        near(after(Pace::default(), &[2.0]), 0.5);
        near(after(Pace::default(), &[4.0; 6]), 0.25);
        near(after(Pace::default(), &[1.0; 20]), 1.0);
        let known = Pace::remembered(0.25, None, None);
        near(after(known, &[4.0; 3]), 0.25);
        // Twice as fast and half as fast weigh the same.
        near(after(Pace::remembered(1.0, None, None), &[0.6, 1.6, 0.6, 1.6]), 1.0);
    }

    #[test]
    fn one_strange_attempt_says_little_and_three_in_a_row_say_it_all() {
        let settled = Pace { seen: MEMORY, ..Pace::default() };
        let one = after(settled, &[100.0]);
        assert!(one > 0.9, "{one}");
        assert_eq!(one, after(settled, &[3.0]), "the most that one counts for");
        let gone = after(settled, &[4.0, 1.0, 4.0, 1.0]);
        assert!(gone > 0.8, "{gone}");
        let changed = after(settled, &[4.0; 5]);
        assert!(changed < 0.35, "{changed}");
        let back = after(Pace { speed: 0.25, ..settled }, &[1.0; 5]);
        assert!(back > 0.7, "{back}");
    }

    #[test]
    fn the_cost_of_a_start_falls_quickly_and_rises_slowly() {
        let mut pace = Pace::default();
        pace.learn_overhead(Duration::from_millis(80));
        pace.learn_overhead(Duration::from_millis(40));
        assert_eq!(pace.overhead(), Some(Duration::from_millis(60)));
        pace.learn_overhead(Duration::from_secs(60));
        assert_eq!(pace.overhead(), Some(Duration::from_micros(67_500)));
    }

    #[test]
    fn what_is_stored_and_makes_no_sense_is_not_known() {
        for speed in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let pace = Pace::remembered(speed, None, Some(f64::NAN));
            assert_eq!((pace.speed(), pace.is_known(), pace.rate()), (1.0, false, None));
        }
        assert_eq!(Pace::remembered(1e9, None, None).speed(), SPEED_MAX);
    }

    #[test]
    fn what_all_workers_have_in_common_is_not_theirs() {
        let pace = |speed| Pace::remembered(speed, None, None);
        let of = |workers: &[(Option<f64>, f64)]| {
            let workers = workers.iter().map(|(before, now)| (before.map(pace), pace(*now), 10));
            (standard(workers) * 1000.0).round() / 1000.0
        };
        assert_eq!(of(&[]), 1.0);
        assert_eq!(of(&[(Some(1.0), 0.5), (Some(0.25), 0.125)]), 0.5);
        assert_eq!(of(&[(Some(0.25), 0.25), (None, 1.0)]), 1.0, "only the slow one was known");
        assert_eq!(of(&[(None, 2.0), (None, 0.5)]), 1.0);
        let mut unseen = [(None, Pace::default(), 5)].into_iter();
        assert_eq!(standard(&mut unseen), 1.0);
    }
}
