//! Which workers are looked at when something waits, and in which order.
//!
//! A worker is roomy if it may have room for an attempt. Of those the eager ones want more, and the
//! patient ones found nothing to take: nothing that they are ready for waits, or they leave it to
//! faster ones. What they hold is said by whoever files them, and must be the same when they are
//! taken out.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::model::WorkerId;
use crate::pace::Pace;

/// Workers by what they are looked at for.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    /// By what they hold: the emptiest first.
    roomy: BTreeSet<(u32, WorkerId)>,
    /// Those of them that want more.
    eager: BTreeSet<(u32, WorkerId)>,
    /// The others.
    patient: BTreeSet<WorkerId>,
    /// Where waking goes on.
    woken: Option<WorkerId>,
    /// All workers: the bits of positive numbers are in the order of the numbers.
    by_speed: BTreeSet<(u64, WorkerId)>,
}

impl Lookout {
    /// A worker is there, and holds nothing.
    pub(super) fn join(&mut self, id: WorkerId, pace: &Pace) {
        self.file(id, 0);
        self.by_speed.insert((pace.speed().to_bits(), id));
    }

    /// A worker is gone that held so much.
    pub(super) fn leave(&mut self, id: WorkerId, held: u32, pace: &Pace) {
        self.take_out(id, held);
        self.by_speed.remove(&(pace.speed().to_bits(), id));
    }

    /// A worker has room, and wants more.
    pub(super) fn file(&mut self, id: WorkerId, held: u32) {
        self.roomy.insert((held, id));
        self.eager.insert((held, id));
    }

    /// A worker has no room, or what it holds is about to change.
    pub(super) fn take_out(&mut self, id: WorkerId, held: u32) {
        self.roomy.remove(&(held, id));
        self.eager.remove(&(held, id));
        self.patient.remove(&id);
    }

    /// A worker found nothing to take.
    pub(super) fn be_patient(&mut self, id: WorkerId, held: u32) {
        if self.eager.remove(&(held, id)) {
            self.patient.insert(id);
        }
    }

    /// A worker is as fast as `now` says, and not as `before` any more.
    pub(super) fn speed(&mut self, id: WorkerId, before: f64, now: f64) {
        self.by_speed.remove(&(before.to_bits(), id));
        self.by_speed.insert((now.to_bits(), id));
    }

    /// Who may have room, the emptiest first.
    pub(super) fn roomy(&self) -> impl Iterator<Item = WorkerId> + Clone {
        self.roomy.iter().map(|(_, id)| *id)
    }

    /// Who may have room and wants more, the emptiest first.
    pub(super) fn eager(&self) -> impl Iterator<Item = WorkerId> {
        self.eager.iter().map(|(_, id)| *id)
    }

    /// How many found nothing to take.
    pub(super) fn patient(&self) -> usize {
        self.patient.len()
    }

    /// Whose turn it is among those that found nothing to take.
    pub(super) fn next_patient(&mut self) -> Option<WorkerId> {
        let after = self.woken.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.patient.range((after, Bound::Unbounded)).next();
        self.woken = Some(*next.or_else(|| self.patient.first())?);
        self.woken
    }

    /// All workers, the fastest first.
    pub(super) fn fastest_first(&self) -> impl Iterator<Item = WorkerId> {
        self.by_speed.iter().rev().map(|(_, id)| *id)
    }

    /// That a worker is filed as what it is.
    pub(super) fn check(
        &self,
        id: WorkerId,
        held: u32,
        pace: &Pace,
        has_room: bool,
    ) -> Result<(), String> {
        let roomy = self.roomy.contains(&(held, id));
        let (eager, patient) = (self.eager.contains(&(held, id)), self.patient.contains(&id));
        if roomy != has_room || roomy != (eager != patient) {
            return Err(format!("{id:?} is filed wrongly: roomy = {roomy}, eager = {eager}"));
        }
        match self.by_speed.contains(&(pace.speed().to_bits(), id)) {
            true => Ok(()),
            false => Err(format!("{id:?} is filed under another speed")),
        }
    }

    /// That nobody is filed but these many workers, each of which was checked.
    pub(super) fn check_all(&self, workers: usize) -> Result<(), String> {
        let roomy = self.roomy.len();
        if roomy > workers || roomy != self.eager.len() + self.patient.len() {
            return Err("a lost worker is filed as roomy".to_owned());
        }
        match self.by_speed.len() == workers {
            true => Ok(()),
            false => Err("lost workers are filed by their speed".to_owned()),
        }
    }
}
