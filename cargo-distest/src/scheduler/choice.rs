//! Which workers a test may go to that something has happened to: not where it went wrong, and a
//! suspect to a worker that is not lost again and again whatever runs there.
//!
//! A worker that is lost and comes back is another worker, and the emptiest. So that it is known
//! again, losses are counted under the number with which it joined first.

use distest_worker::protocol::BinaryKey;

use super::needs::Needs;
use super::special::Wish;
use super::state::{Story, Worker, Workers};
use crate::model::WorkerId;

/// Losses more than those of the steadiest worker that say nothing: each may have an accident.
const ACCIDENTS: u32 = 1;

/// What a story says of where its test is not to go. Workers are named as they joined first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past<'a> {
    /// It may be why workers were lost.
    pub(super) suspect: bool,
    /// Workers that were lost while it may have run there,
    pub(super) lost_on: &'a [WorkerId],
    /// and those of them where nothing else did.
    pub(super) alone_on: &'a [WorkerId],
    /// Where it went wrong last.
    pub(super) avoid: Option<WorkerId>,
    /// Rather wait for another worker to be made ready than go there.
    pub(super) only_elsewhere: bool,
}

impl Story {
    pub(super) fn past(&self) -> Past<'_> {
        Past {
            suspect: self.suspect,
            lost_on: &self.lost_on,
            alone_on: &self.alone_on,
            avoid: self.avoid,
            only_elsewhere: self.only_elsewhere,
        }
    }
}

impl Past<'_> {
    /// It waits for a worker of its choice, also where another one is kept for it.
    pub(super) fn is_strict(&self) -> bool {
        self.only_elsewhere || self.suspect
    }
}

/// Where a test may go, as things are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    but: &'a [WorkerId],
    avoid: Option<WorkerId>,
    losses_max: u32,
}

impl Workers {
    /// Somebody may always take it who may take it at all.
    pub(super) fn choice<'a>(&self, wish: &Wish<'a>) -> Choice<'a> {
        let past = wish.past;
        let mut choice = Choice { but: &[], avoid: None, losses_max: u32::MAX };
        if past.suspect {
            choice = self.steady(wish);
        }
        // Another worker is better than that one, even if it is busy now.
        let elsewhere = |worker: &Worker| {
            let ready = worker.suits(wish.binary, wish.needs);
            let may = ready || past.only_elsewhere && worker.may_meet(wish.binary, wish.needs);
            may && Some(worker.first()) != past.avoid && self.allows(&choice, worker)
        };
        if past.avoid.is_some() && self.all().any(|(_, worker)| elsewhere(worker)) {
            choice.avoid = past.avoid;
        }
        choice
    }

    /// Where a suspect may go: where it was not lost and few others were, or else where few were. If
    /// its next loss may be held against it, what is lost by itself must not be there.
    fn steady<'a>(&self, wish: &Wish<'a>) -> Choice<'a> {
        let Past { lost_on, alone_on, .. } = wish.past;
        let within = |but, losses_max| Choice { but, avoid: None, losses_max };
        if let Some(fewest) = self.fewest_losses(wish, lost_on) {
            let accidents = if alone_on.is_empty() { ACCIDENTS } else { 0 };
            return within(lost_on, fewest.saturating_add(accidents));
        }
        let fewest = self.fewest_losses(wish, &[]).unwrap_or(u32::MAX);
        let losses_max = fewest.saturating_add(ACCIDENTS);
        let other = within(alone_on, losses_max);
        let may = |worker: &Worker| {
            worker.may_meet(wish.binary, wish.needs) && self.allows(&other, worker)
        };
        match self.all().any(|(_, worker)| may(worker)) {
            true => other,
            false => within(&[], losses_max),
        }
    }

    /// How often the steadiest worker was lost that may meet a wish and is none of these.
    fn fewest_losses(&self, wish: &Wish<'_>, but: &[WorkerId]) -> Option<u32> {
        let theirs = self.all().map(|(_, worker)| worker).filter(|worker| {
            !but.contains(&worker.first()) && worker.may_meet(wish.binary, wish.needs)
        });
        let mut fewest = None;
        for losses in theirs.map(|worker| self.losses(worker)) {
            fewest = Some(fewest.map_or(losses, |fewest: u32| fewest.min(losses)));
            if losses == 0 {
                break;
            }
        }
        fewest
    }

    pub(super) fn allows(&self, choice: &Choice<'_>, worker: &Worker) -> bool {
        let first = worker.first();
        Some(first) != choice.avoid
            && !choice.but.contains(&first)
            && (choice.losses_max == u32::MAX || self.losses(worker) <= choice.losses_max)
    }
}

impl Worker {
    /// It meets these needs and runs this binary, or may yet.
    pub(super) fn may_meet(&self, binary: BinaryKey, needs: Option<&Needs>) -> bool {
        self.may_take(binary) && needs.is_none_or(|needs| needs.met_by(self.traits()))
    }
}
