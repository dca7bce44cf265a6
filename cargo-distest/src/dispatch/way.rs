//! Each worker's way from its session to its first result, step by step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{Step, WorkerId};

/// Workers that have had no result yet.
#[derive(Debug, Default)]
pub(super) struct Ways(BTreeMap<WorkerId, Way>);

#[derive(Debug)]
struct Way {
    next: Step,
    since: Instant,
}

impl Ways {
    /// A worker can be used; `open`: everything is built.
    pub(super) fn begin(&mut self, worker: WorkerId, open: bool, now: Instant) {
        let next = if open { Step::Files } else { Step::Build };
        self.0.insert(worker, Way { next, since: now });
    }

    /// Everything is built, and whoever was waited for is there: for whom that is news, and how
    /// long they have waited.
    pub(super) fn opened(&mut self, now: Instant) -> Vec<(WorkerId, Duration)> {
        let workers: Vec<_> = self.0.keys().copied().collect();
        let step = |worker| Some((worker, self.done(worker, Step::Build, now)?));
        workers.into_iter().filter_map(step).collect()
    }

    /// How long a step took that is done now, if it is the worker's next.
    pub(super) fn done(&mut self, worker: WorkerId, step: Step, now: Instant) -> Option<Duration> {
        let way = self.0.get_mut(&worker).filter(|way| way.next == step)?;
        let took = now - std::mem::replace(&mut way.since, now);
        match step {
            Step::Build => way.next = Step::Files,
            Step::Files => way.next = Step::Test,
            _ => _ = self.0.remove(&worker),
        }
        Some(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_taken_once_and_in_order() {
        let [early, late] = [WorkerId(1), WorkerId(2)];
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut ways = Ways::default();
        ways.begin(early, false, at(0));
        assert_eq!(ways.done(early, Step::Files, at(1)), None, "nothing is built");
        assert_eq!(ways.opened(at(10)), [(early, ms(10))]);
        ways.begin(late, true, at(15));
        assert_eq!(ways.opened(at(16)), []);
        assert_eq!(ways.done(early, Step::Files, at(30)), Some(ms(20)));
        assert_eq!(ways.done(early, Step::Files, at(31)), None, "another test");
        assert_eq!(ways.done(early, Step::Test, at(32)), Some(ms(2)));
        assert_eq!(ways.done(early, Step::Test, at(40)), None);
        assert_eq!(ways.done(late, Step::Files, at(40)), Some(ms(25)));
    }
}
