//! What has happened at a worker since it started, in numbers.
//!
//! An attempt is counted as started when it gets a slot. From then on it has an end that is counted,
//! and only one: a [`Started`] counts when it is told the end, or else when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::{LossReason, Report};

/// Counters that a worker's connections share.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    started: AtomicU64,
    finished: AtomicU64,
    stopped: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    come_back: AtomicU64,
}

/// What has happened at a worker since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counted {
    /// Attempts that got a slot.
    pub(crate) started: u64,
    /// Those that came to an end of their own, or to their timeout.
    pub(crate) finished: u64,
    /// Those that were ended because nobody wanted them any more.
    pub(crate) stopped: u64,
    /// Those that came to no end by the worker's fault.
    pub(crate) lost: u64,
    /// Connections that were not let in.
    pub(crate) refused: u64,
    /// Clients that came back to their session after a connection broke.
    pub(crate) come_back: u64,
}

/// An attempt that has a slot.
#[derive(Debug)]
pub(super) struct Started {
    tally: Tally,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Finished,
    Stopped,
    Lost,
}

impl Tally {
    /// An attempt gets a slot.
    pub(super) fn start(&self) -> Started {
        add(&self.0.started);
        // Its session is over if nothing else is told of it, and has killed it.
        Started { tally: self.clone(), end: End::Stopped }
    }

    /// A connection was not let in.
    pub(super) fn refuse(&self) {
        add(&self.0.refused);
    }

    /// A client came back to its session.
    pub(super) fn come_back(&self) {
        add(&self.0.come_back);
    }

    /// All of them, now.
    pub(super) fn counted(&self) -> Counted {
        let Counters { started, finished, stopped, lost, refused, come_back } = &*self.0;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            started: count(started),
            finished: count(finished),
            stopped: count(stopped),
            lost: count(lost),
            refused: count(refused),
            come_back: count(come_back),
        }
    }
}

impl Started {
    /// It has ended as this report says.
    pub(super) fn ended(mut self, report: &Report) {
        self.end = match report {
            Report::Lost { reason: LossReason::Stopped | LossReason::Dropped, .. } => End::Stopped,
            Report::Lost { .. } => End::Lost,
            Report::Finished(_)
            | Report::Started { .. }
            | Report::Slow { .. }
            | Report::Progress { .. }
            | Report::Draining {} => End::Finished,
        };
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Counters { finished, stopped, lost, .. } = &*self.tally.0;
        add(match self.end {
            End::Finished => finished,
            End::Stopped => stopped,
            End::Lost => lost,
        });
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::AttemptId;

    #[test]
    fn who_was_started_has_one_end_whatever_is_told_of_it() {
        let tally = Tally::default();
        let lost = |reason| Report::Lost { attempt: AttemptId(1), reason, detail: String::new() };
        tally.start().ended(&lost(LossReason::HelperDied));
        tally.start().ended(&lost(LossReason::CouldNotStart));
        tally.start().ended(&lost(LossReason::Stopped));
        let untold = tally.start();
        let counted = Counted { started: 4, stopped: 1, lost: 2, ..Counted::default() };
        assert_eq!(tally.counted(), counted);
        drop(untold);
        assert_eq!(tally.counted(), Counted { stopped: 2, ..counted });
    }
}
