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

/// Whom of the workers something concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Whom {
    #[default]
    Nobody,
    One(WorkerId),
    All,
}

impl Whom {
    /// Those and these.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, whom) | (whom, Self::Nobody) => whom,
            (Self::One(one), Self::One(other)) if one == other => self,
            _ => Self::All,
        }
    }

    fn of(self, workers: &Workers) -> Vec<WorkerId> {
        match self {
            Self::Nobody => Vec::new(),
            Self::One(id) => vec![id],
            Self::All => workers.ids(),
        }
    }
}

/// How long workers have to do with what they have, were each binary's tests divided among those
/// who have it. Weighing costs a look at each binary of each worker, so one weighing serves until a
/// sixteenth of the workers has been asked for something more.
#[derive(Debug, Default)]
pub(super) struct Loads {
    /// Seconds, per worker.
    through: BTreeMap<WorkerId, f64>,
    /// The mean of those who have a binary.
    holders: BTreeMap<BinaryKey, f64>,
    /// Questions since then.
    asked: usize,
}

impl Workers {
    /// What of `wanted`, in that order, each of these workers is to be sent now, so that at most
    /// `at_once` questions to it are open. Notes them as asked.
    pub(super) fn ask(&mut self, whom: Whom, wanted: &[Wanted], at_once: usize) -> Vec<Asked> {
        if whom == Whom::All {
            self.loads = None;
        }
        let mut asked = Vec::new();
        for Wanted { binary, .. } in wanted.iter().filter(|it| it.work.is_some()) {
            // Somebody must have it: who has least to do when it has arrived.
            if !self.all().any(|(_, worker)| worker.holds(*binary))
                && let Some(worker) = self.best_for(*binary, wanted, at_once)
            {
                self.note_asked(worker, *binary);
                asked.push(Asked { worker, binary: *binary, bytes_max: u64::MAX });
            }
        }
        for worker in whom.of(self) {
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

    fn note_asked(&mut self, id: WorkerId, binary: BinaryKey) {
        self.asks(id, binary);
        let few = self.len() / 16;
        self.loads = self.loads.take().filter(|loads| loads.asked < few);
        if let Some(loads) = &mut self.loads {
            loads.asked += 1;
        }
    }

    /// The most bytes that are sent to a worker before those who have the binary are done.
    fn worth_sending(&mut self, id: WorkerId, binary: BinaryKey, wanted: &[Wanted]) -> u64 {
        let Some(rate) = self.worker(id).and_then(|worker| worker.pace().rate()) else {
            return u64::MAX;
        };
        let loads = self.loads(wanted);
        // Without any: whoever was to have it can't be asked now.
        let Some(holders) = loads.holders.get(&binary) else { return u64::MAX };
        let through = loads.through.get(&id).copied().unwrap_or(0.0);
        ((holders - through).max(0.0) * rate) as u64
    }

    /// Who has least to do with what it has, and has what is missing soonest.
    fn best_for(
        &mut self,
        binary: BinaryKey,
        wanted: &[Wanted],
        at_once: usize,
    ) -> Option<WorkerId> {
        let loads = std::mem::take(self.loads(wanted));
        let able = self.all().filter(|(id, _)| self.may_ask(**id, binary, at_once));
        let cost = able.map(|(id, worker)| {
            let lacks = self.lacks(*id, binary).unwrap_or(0) as f64;
            let sending = worker.pace().rate().map_or(0.0, |rate| lacks / rate);
            (loads.through.get(id).copied().unwrap_or(0.0) + sending, *id)
        });
        let best = cost.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, id)| id);
        self.loads = Some(loads);
        best
    }

    /// The last weighing, or one of now.
    fn loads(&mut self, wanted: &[Wanted]) -> &mut Loads {
        let loads = self.loads.take().unwrap_or_else(|| self.weigh(wanted));
        self.loads.insert(loads)
    }

    fn weigh(&self, wanted: &[Wanted]) -> Loads {
        let mut loads = Loads::default();
        for Wanted { binary, work } in wanted {
            let holders = self.all().filter(|(_, worker)| worker.holds(*binary));
            let power: f64 = holders.clone().map(|(_, worker)| worker.power()).sum();
            let share = work.unwrap_or_default().as_secs_f64() / power.max(f64::MIN_POSITIVE);
            for (id, _) in holders {
                *loads.through.entry(*id).or_default() += share;
            }
        }
        for Wanted { binary, .. } in wanted {
            let holders = self.all().filter(|(_, worker)| worker.holds(*binary));
            let through = holders.map(|(id, _)| loads.through[id]);
            let (sum, count) = through.fold((0.0, 0u32), |(sum, n), it| (sum + it, n + 1));
            if count > 0 {
                loads.holders.insert(*binary, sum / f64::from(count));
            }
        }
        loads
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
