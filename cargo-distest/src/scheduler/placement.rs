//! Which binaries go to which workers: to few while sending them takes longer than what is gained,
//! to all while work dominates.
//!
//! Somebody always has a binary that is wanted, or is being sent it. Anybody else is sent it if it
//! would arrive before those who have it are through with all that they have: then there is
//! something left for it to do. A worker on the way to which nothing was ever measured is sent
//! everything, which is how that is learnt.

use std::collections::BTreeMap;
use std::time::Duration;

use distest_worker::protocol::BinaryKey;

use super::state::{Readiness, Worker, Workers};
use crate::model::WorkerId;

/// A binary of which tests wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) binary: BinaryKey,
    /// What its tests that wait take on one ordinary slot; none if it is wanted everywhere, or
    /// nobody knows.
    pub(super) work: Option<Duration>,
}

/// A binary that a worker is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) worker: WorkerId,
    pub(super) binary: BinaryKey,
    /// If it lacks more bytes than this, it is to be left alone.
    pub(super) bytes_max: u64,
}

impl Workers {
    /// What of `wanted`, in that order, each worker is to be sent now, so that at most `at_once`
    /// questions to it are open. Notes them as asked.
    pub(super) fn ask(&mut self, wanted: &[Wanted], at_once: usize) -> Vec<Asked> {
        let mut asked = Vec::new();
        for Wanted { binary, .. } in wanted.iter().filter(|it| it.work.is_some()) {
            // Somebody must have it: who has least to do when it has arrived.
            if self.holders(*binary).next().is_none()
                && let Some(worker) = self.best_for(*binary, wanted, at_once)
            {
                self.note_asked(worker, *binary);
                asked.push(Asked { worker, binary: *binary, bytes_max: u64::MAX });
            }
        }
        for worker in self.ids() {
            for Wanted { binary, work } in wanted {
                if !self.may_ask(worker, *binary, at_once) {
                    continue;
                }
                let bytes_max = match work {
                    None => u64::MAX,
                    Some(_) => self.worth_sending(worker, *binary, wanted),
                };
                let lacks = self.lacks(worker, *binary);
                if lacks.is_none_or(|lacks| lacks <= bytes_max) {
                    self.note_asked(worker, *binary);
                    asked.push(Asked { worker, binary: *binary, bytes_max });
                }
            }
        }
        asked
    }

    /// The most bytes that are sent to a worker before those who have the binary are done.
    fn worth_sending(&self, id: WorkerId, binary: BinaryKey, wanted: &[Wanted]) -> u64 {
        let Some(rate) = self.worker(id).and_then(|worker| worker.pace().rate()) else {
            return u64::MAX;
        };
        let shares = self.shares(wanted);
        let through = |id| self.through(id, &shares);
        let (mut sum, mut count) = (0.0, 0.0);
        for holder in self.holders(binary) {
            sum += through(holder);
            count += 1.0;
        }
        if count == 0.0 {
            // Whoever was to have it can't be asked now.
            return u64::MAX;
        }
        ((sum / count - through(id)).max(0.0) * rate) as u64
    }

    /// Who has least to do with what it has, and has what is missing soonest.
    fn best_for(&self, binary: BinaryKey, wanted: &[Wanted], at_once: usize) -> Option<WorkerId> {
        let shares = self.shares(wanted);
        let able = self.all().filter(|(id, _)| self.may_ask(**id, binary, at_once));
        let cost = able.map(|(id, worker)| {
            let lacks = self.lacks(*id, binary).unwrap_or(0) as f64;
            let sending = worker.pace().rate().map_or(0.0, |rate| lacks / rate);
            (self.through(*id, &shares) + sending, *id)
        });
        cost.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, id)| id)
    }

    /// Workers in good standing that have a binary or are being sent it.
    fn holders(&self, binary: BinaryKey) -> impl Iterator<Item = WorkerId> {
        self.all().filter(move |(_, worker)| worker.holds(binary)).map(|(id, _)| *id)
    }

    /// For each binary, the seconds that those who have it need for its tests, if they do nothing
    /// else.
    fn shares(&self, wanted: &[Wanted]) -> BTreeMap<BinaryKey, f64> {
        let share = |wanted: &Wanted| {
            let holders = self.all().filter(|(_, worker)| worker.holds(wanted.binary));
            let power: f64 = holders.map(|(_, worker)| worker.power()).sum();
            let work = wanted.work.unwrap_or_default().as_secs_f64();
            (wanted.binary, if power > 0.0 { work / power } else { 0.0 })
        };
        wanted.iter().map(share).collect()
    }

    /// Seconds that a worker needs for its share of what waits.
    fn through(&self, id: WorkerId, shares: &BTreeMap<BinaryKey, f64>) -> f64 {
        let Some(worker) = self.worker(id) else { return 0.0 };
        shares.iter().filter(|(binary, _)| worker.holds(**binary)).map(|(_, share)| share).sum()
    }
}

impl Worker {
    /// It is in good standing, and has a binary or is being sent it.
    fn holds(&self, binary: BinaryKey) -> bool {
        let there = matches!(self.readiness(binary), Some(Readiness::Ready | Readiness::Asked));
        there && self.is_good()
    }

    fn power(&self) -> f64 {
        f64::from(self.slots()) * self.pace().speed()
    }
}
