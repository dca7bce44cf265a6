//! What test cases will probably take, learnt from what they took. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{BinaryId, TestName, Verdict};

/// What history knows of one test case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Duration of an attempt: a moving average that forgets.
    pub mean: Duration,
    /// How far attempts lie from the mean: a moving average of the distances.
    pub spread: Duration,
    /// Runs that `mean` has seen.
    pub runs: u32,
    /// How it ended last time.
    pub last: Verdict,
}

/// What history knows of the test cases for one target triple and one cargo profile.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    binaries: BTreeMap<BinaryId, BinaryTimings>,
}

/// The durations of a binary's known test cases, and their sum.
#[derive(Clone, Debug, Default)]
struct BinaryTimings {
    cases: BTreeMap<TestName, Past>,
    sum: Duration,
    /// Cases that came to an end at least once: others add nothing to the sum.
    timed: u32,
}

/// Share of the newest duration in the mean is one in this many.
const MEAN_MEMORY: u32 = 4;
/// Share of the newest distance in the spread is one in this many.
const SPREAD_MEMORY: u32 = 4;

impl Past {
    /// What is known after one more run in which the test case took `duration`.
    ///
    /// Mean and spread as TCP estimates round trips (RFC 6298), with a shorter memory: tests run a
    /// few times a day, not a thousand times a second. A verdict without an end of the test's own
    /// ([`Verdict::Lost`], [`Verdict::Skipped`]) says nothing about its duration.
    #[must_use]
    pub fn after(prev: Option<&Self>, duration: Duration, verdict: Verdict) -> Self {
        let untimed = matches!(verdict, Verdict::Lost | Verdict::Skipped);
        match prev {
            None if untimed => {
                Self { mean: Duration::ZERO, spread: Duration::ZERO, runs: 0, last: verdict }
            }
            Some(prev) if untimed => *prev,
            Some(prev) if prev.runs > 0 => Self {
                mean: blend(prev.mean, duration, MEAN_MEMORY),
                spread: blend(prev.spread, prev.mean.abs_diff(duration), SPREAD_MEMORY),
                runs: prev.runs.saturating_add(1),
                last: verdict,
            },
            _ => Self { mean: duration, spread: duration / 2, runs: 1, last: verdict },
        }
    }

    /// Whether its last run went wrong.
    pub fn failed_last_time(&self) -> bool {
        match self.last {
            Verdict::Fail | Verdict::Flaky | Verdict::Timeout | Verdict::Crashed => true,
            Verdict::Pass | Verdict::Skipped | Verdict::Lost => false,
        }
    }
}

fn blend(old: Duration, new: Duration, memory: u32) -> Duration {
    (old / memory).saturating_mul(memory - 1).saturating_add(new / memory)
}

impl Timings {
    /// Takes in what is known of a test case; answers what was known before.
    pub fn insert(&mut self, (binary, name): (BinaryId, TestName), past: Past) -> Option<Past> {
        let binary = self.binaries.entry(binary).or_default();
        let old = binary.cases.insert(name, past);
        let less = old.map_or(Duration::ZERO, |old| old.mean);
        binary.sum = binary.sum.saturating_add(past.mean).saturating_sub(less);
        let was_timed = old.is_some_and(|old| old.runs > 0);
        binary.timed = binary.timed + u32::from(past.runs > 0) - u32::from(was_timed);
        old
    }

    /// Takes in what is known of all test cases of a binary, instead of what was known before.
    pub fn insert_all(
        &mut self,
        binary: BinaryId,
        cases: impl IntoIterator<Item = (TestName, Past)>,
    ) {
        let cases: BTreeMap<_, _> = cases.into_iter().collect();
        let add = |sum: Duration, past: &Past| sum.saturating_add(past.mean);
        let sum = cases.values().fold(Duration::ZERO, add);
        let timed = cases.values().filter(|past| past.runs > 0).count() as u32;
        self.binaries.insert(binary, BinaryTimings { cases, sum, timed });
    }

    /// What is known of a test case.
    pub fn get(&self, binary: &BinaryId, name: &TestName) -> Option<&Past> {
        self.binaries.get(binary)?.cases.get(name)
    }

    /// Mean duration of those of a binary's test cases whose time is known.
    pub fn binary_mean(&self, binary: &BinaryId) -> Option<Duration> {
        let binary = self.binaries.get(binary)?;
        binary.sum.checked_div(binary.timed)
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.binaries.is_empty()
    }

    /// All that is known, by binary id and name.
    pub fn iter(&self) -> impl Iterator<Item = (&BinaryId, &TestName, &Past)> {
        self.binaries.iter().flat_map(|(binary, timings)| {
            timings.cases.iter().map(move |(name, past)| (binary, name, past))
        })
    }
}

impl FromIterator<((BinaryId, TestName), Past)> for Timings {
    fn from_iter<I: IntoIterator<Item = ((BinaryId, TestName), Past)>>(pairs: I) -> Self {
        let mut timings = Self::default();
        for (key, past) in pairs {
            timings.insert(key, past);
        }
        timings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn run(durations: &[u64]) -> Past {
        let past = durations.iter().fold(None, |past: Option<Past>, duration| {
            Some(Past::after(past.as_ref(), millis(*duration), Verdict::Pass))
        });
        past.expect("some runs")
    }

    #[test]
    fn mean_follows_and_spread_shrinks() {
        assert_eq!(run(&[100]).mean, millis(100));
        assert_eq!(run(&[100, 200]).mean, millis(125));
        let settled = run(&[100; 20]);
        assert_eq!((settled.mean, settled.runs), (millis(100), 20));
        assert!(settled.spread < millis(1), "{:?}", settled.spread);
        let changed = run(&[100, 100, 300, 300, 300, 300, 300, 300, 300, 300, 300, 300]);
        assert!(changed.mean > millis(280), "{:?}", changed.mean);
        assert!(run(&[100, 300, 100, 300]).spread > millis(50));
    }

    #[test]
    fn a_lost_or_skipped_test_teaches_no_duration() {
        let past = run(&[100, 100]);
        for verdict in [Verdict::Lost, Verdict::Skipped] {
            assert_eq!(Past::after(Some(&past), millis(9), verdict), past);
            let never = Past::after(None, millis(9), verdict);
            assert_eq!(never.runs, 0);
            let first = Past::after(Some(&never), millis(50), Verdict::Pass);
            assert_eq!((first.mean, first.runs), (millis(50), 1));
        }
    }

    #[test]
    fn a_binarys_mean_follows_its_cases() {
        let key = |name: &str| (BinaryId::new("a"), TestName::new(name));
        let mut timings: Timings =
            [(key("x"), run(&[100])), (key("y"), run(&[300]))].into_iter().collect();
        assert_eq!(timings.binary_mean(&BinaryId::new("a")), Some(millis(200)));
        assert_eq!(timings.insert(key("y"), run(&[500])), Some(run(&[300])));
        assert_eq!(timings.binary_mean(&BinaryId::new("a")), Some(millis(300)));
        assert_eq!(timings.binary_mean(&BinaryId::new("b")), None);
        assert_eq!(timings.iter().count(), 2);
        // One that was lost whenever it ran says nothing.
        let lost = || Past::after(None, millis(9), Verdict::Lost);
        timings.insert(key("z"), lost());
        assert_eq!(timings.binary_mean(&BinaryId::new("a")), Some(millis(300)));
        timings.insert(key("z"), run(&[600]));
        assert_eq!(timings.binary_mean(&BinaryId::new("a")), Some(millis(400)));
        let alone: Timings = [(key("z"), lost())].into_iter().collect();
        assert_eq!(alone.binary_mean(&BinaryId::new("a")), None);
    }
}
