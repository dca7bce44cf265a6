//! How often an attempt is told to be slow. Pure.

use std::time::Duration;

/// How often that was told of one attempt.
#[derive(Debug, Default)]
pub(super) struct Slow {
    told: u32,
}

impl Slow {
    /// Whether it is told again of an attempt that has run for so long: once for each `slow_after`,
    /// however often its worker says so. The last one may be a little early, since it is the worker
    /// that measures.
    pub(super) fn is_due(&mut self, since: Duration, slow_after: Duration) -> bool {
        let periods = since.as_nanos() / slow_after.as_nanos().max(1);
        let due = u128::from(self.told) <= periods;
        self.told = self.told.saturating_add(u32::from(due));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_attempt_is_told_of_once_in_each_period() {
        let mut slow = Slow::default();
        let mut told = |ms: u64, times: usize| {
            let due = (0..5000)
                .filter(|_| slow.is_due(Duration::from_millis(ms), Duration::from_secs(60)));
            assert_eq!(due.count(), times, "after {ms} ms");
        };
        told(0, 1);
        told(59_999, 0);
        // The second, a little early by our clock, and what was left out before is not made up for.
        told(60_001, 1);
        told(119_999, 0);
        told(120_000, 1);
        told(300_000, 3);
        assert!(Slow::default().is_due(Duration::ZERO, Duration::ZERO));
    }
}
