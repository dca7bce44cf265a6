//! How many bulk bytes may be under way: enough to fill the link, too few to delay a heartbeat. Pure.
//!
//! The receiver gives credit back as it takes bytes. The time from sending a byte to its credit,
//! less the smallest such time seen lately (the link's own delay), is how long bytes queue. As in
//! LEDBAT (RFC 6817) that queueing delay steers the window: small, it doubles each round trip;
//! large, it shrinks to what the link carried in [`AIM`].

use std::collections::VecDeque;
use std::time::Duration;

/// The window never shrinks below this: two frames.
pub(super) const BYTES_MIN: u64 = 64 * 1024;
/// The window never grows beyond this.
pub(super) const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What a receiver tolerates: a later version may use larger windows.
pub(super) const BYTES_TOLERATED: u64 = 4 * BYTES_MAX;
/// The window at first.
const BYTES_FIRST: u64 = 128 * 1024;
/// Grow while bytes queue for less than this.
const GROW_BELOW: Duration = Duration::from_millis(50);
/// Shrink when bytes queue for more than this.
const SHRINK_ABOVE: Duration = Duration::from_millis(100);
/// How long bytes should queue after shrinking.
const AIM: Duration = Duration::from_millis(60);
/// How long a smallest delay is believed, since routes change. Then one frame is sent by itself, so
/// that a standing queue isn't taken for the link's own delay.
const BASE_AGE: Duration = Duration::from_secs(30);

/// The sender's view of one direction.
pub(super) struct Window {
    size: u64,
    sent: u64,
    credited: u64,
    marks: VecDeque<Mark>,
    /// Smallest delay seen, and since when it is believed.
    base: Duration,
    base_since: Duration,
    /// The smallest delay is measured anew: the size to return to, and when.
    probe: Option<Probe>,
    /// Credit up to here says nothing about the size the window has now.
    settled_at: u64,
}

/// A frame under way.
struct Mark {
    end: u64,
    at: Duration,
    /// It nearly filled the window, so its delay tells something about the window's size.
    filling: bool,
}

struct Probe {
    size_before: u64,
    until: u64,
}

impl Window {
    /// A new connection's.
    pub(super) fn new() -> Self {
        Self {
            size: BYTES_FIRST,
            sent: 0,
            credited: 0,
            marks: VecDeque::new(),
            base: Duration::MAX,
            base_since: Duration::ZERO,
            probe: None,
            settled_at: 0,
        }
    }

    /// Whether `bytes` more may be sent now.
    pub(super) fn admits(&self, bytes: usize) -> bool {
        let under_way = self.sent - self.credited;
        under_way == 0 || under_way + bytes as u64 <= self.size
    }

    /// A frame of `bytes` was sent at `now`.
    pub(super) fn sent(&mut self, bytes: usize, now: Duration) {
        self.sent += bytes as u64;
        let filling = (self.sent - self.credited) * 4 >= self.size * 3;
        self.marks.push_back(Mark { end: self.sent, at: now, filling });
    }

    /// The receiver has taken `total` bytes since the connection began. None if it cannot have.
    pub(super) fn credit(&mut self, total: u64, now: Duration) -> Option<()> {
        if total > self.sent || total < self.credited {
            return None;
        }
        let fresh = total - self.credited;
        self.credited = total;
        let mut newest = None;
        while let Some(mark) = self.marks.pop_front_if(|mark| mark.end <= total) {
            newest = Some(mark);
        }
        if let Some(mark) = newest {
            let delay = now.saturating_sub(mark.at);
            self.base = self.base.min(delay);
            self.adapt(delay - self.base, fresh, mark.filling);
            self.probe(now);
        }
        Some(())
    }

    fn adapt(&mut self, queueing: Duration, fresh: u64, filling: bool) {
        if self.probe.is_some() {
            return;
        }
        if queueing < GROW_BELOW && filling {
            // A quarter of the frames are filling: fourfold doubles the window each round trip.
            let room = (GROW_BELOW - queueing).as_micros() * 3 / GROW_BELOW.as_micros();
            self.size = (self.size + fresh * (1 + room as u64)).min(BYTES_MAX);
        } else if queueing > SHRINK_ABOVE && self.credited > self.settled_at {
            let carried = self.size as u128 * AIM.as_micros() / queueing.as_micros();
            self.size = (carried as u64).max(BYTES_MIN);
            self.settled_at = self.sent;
        }
    }

    fn probe(&mut self, now: Duration) {
        match &self.probe {
            None if now.saturating_sub(self.base_since) > BASE_AGE => {
                // Nothing more until all is credited, then one frame by itself.
                self.probe = Some(Probe { size_before: self.size, until: self.sent + 1 });
                self.size = 0;
                self.base = Duration::MAX;
                self.base_since = now;
            }
            Some(probe) if self.credited >= probe.until => {
                self.size = probe.size_before;
                self.settled_at = self.sent;
                self.probe = None;
            }
            _ => {}
        }
    }

    #[cfg(test)]
    fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 32 * 1024;

    /// Sends as much as the window admits over a link of `rate` bytes/s whose bare delay is `delay`,
    /// for `span`. Answers the longest time that a byte queued in the last half, and bytes carried.
    fn run(window: &mut Window, rate: u64, delay: Duration, span: Duration) -> (Duration, u64) {
        let (mut now, mut link_free) = (Duration::from_secs(1), Duration::from_secs(1));
        let end = now + span;
        let mut arriving: VecDeque<(Duration, u64)> = VecDeque::new();
        let (mut sent, mut worst) = (window.sent, Duration::ZERO);
        let first = sent;
        while now < end {
            while window.admits(FRAME) {
                window.sent(FRAME, now);
                sent += FRAME as u64;
                link_free =
                    link_free.max(now) + Duration::from_micros(FRAME as u64 * 1_000_000 / rate);
                arriving.push_back((link_free + delay, sent));
                if now > end - span / 2 {
                    worst = worst.max(link_free - now);
                }
            }
            let (at, total) = arriving.pop_front().unwrap();
            now = at;
            window.credit(total, now).unwrap();
        }
        (worst, sent - first)
    }

    #[test]
    fn a_slow_link_is_kept_busy_and_short() {
        let mut window = Window::new();
        let span = Duration::from_secs(100);
        let (worst, carried) = run(&mut window, 1_000_000, Duration::from_millis(1), span);
        assert!(worst < Duration::from_millis(200), "bytes queued for {worst:?}");
        assert!(carried > 95_000_000, "only {carried} bytes were carried");
    }

    #[test]
    fn a_fast_or_long_link_is_not_throttled() {
        let mut window = Window::new();
        run(&mut window, 1_000_000_000, Duration::from_micros(50), Duration::from_millis(50));
        assert_eq!(window.size(), BYTES_MAX);
        // 150 ms away at 20 MB/s: 3 MB must be under way, although every delay is above 100 ms.
        let mut window = Window::new();
        run(&mut window, 20_000_000, Duration::from_millis(150), Duration::from_secs(5));
        let (_, carried) =
            run(&mut window, 20_000_000, Duration::from_millis(150), Duration::from_secs(1));
        assert!(carried > 17_000_000, "only {carried} bytes were carried");
    }

    #[test]
    fn a_link_that_slows_down_is_drained_at_once() {
        let mut window = Window::new();
        run(&mut window, 1_000_000_000, Duration::from_micros(50), Duration::from_millis(50));
        let span = Duration::from_secs(20);
        let (worst, _) = run(&mut window, 1_000_000, Duration::from_micros(50), span);
        assert!(worst < Duration::from_millis(200), "bytes queued for {worst:?}");
    }

    #[test]
    fn credit_for_what_was_never_sent_is_refused() {
        let mut window = Window::new();
        window.sent(FRAME, Duration::ZERO);
        assert_eq!(window.credit(FRAME as u64 + 1, Duration::ZERO), None);
        assert_eq!(window.credit(FRAME as u64, Duration::ZERO), Some(()));
        assert_eq!(window.credit(1, Duration::ZERO), None);
    }
}
