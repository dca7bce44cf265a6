//! Bugs that can be switched in, to see whether the simulation finds them. Only in tests: what is
//! shipped has none of them.

use super::Scheduler;

/// One wrong line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(test), expect(dead_code, reason = "nobody switches a bug in outside of tests"))]
pub(crate) enum Mutation {
    /// A result counts although its attempt is not live any more.
    AcceptLateResult,
    /// What a lost worker had not started is not queued again.
    SkipRequeue,
    /// A worker that is lost keeps what it had not started.
    KeepDeadWork,
    /// A test that is handed out stays in the queue.
    DoubleGrant,
    /// A group's permits come back when the connection is gone, not when the worker is lost.
    ReleaseGroupEarly,
    /// A suspect is to blame although others ran beside it.
    BlamePresence,
    /// A worker that comes back is taken for one that was never there.
    ForgetWorker,
    /// What may have begun when its worker was lost, and had not been said to, counts as no loss.
    ForgetUnstarted,
    /// All that a lost worker had counts as lost, what waited behind others too.
    CountPrefetched,
    /// Others are handed out beside an exclusive test or a suspect.
    CrowdExclusive,
    /// What comes back after a cancel is queued again.
    RequeueCancelled,
    /// Tests of groups, exclusive ones and those of batches are hedged too.
    HedgeAnybody,
    /// Both attempts of a hedged test decide.
    HeedBoth,
    /// A test is queued again although another attempt of it is under way.
    ForgetTwin,
    /// A worker that is short of memory is given more.
    LeaseWhenShort,
    /// A slow worker leaves a test to a faster one, whether there is one or not.
    WaitForNobody,
    /// A worker to which it isn't worth sending a binary counts as ready for it.
    TakeLackForReady,
    /// What nobody takes ends the run at once, and with it what others run.
    GiveUpAtOnce,
    /// The client takes a worker for lost as soon as its connection is gone.
    LoseAtOnce,
    /// The worker never arms its fence.
    ForgetFence,
    /// Any word moves the worker's fence, heard answers or not.
    FenceByAnyWord,
    /// The worker gives back what runs.
    RevokeRunning,
    /// The worker keeps the place of what it ended because another client waits.
    KeepPlace,
}

#[cfg(test)]
impl Mutation {
    pub(crate) const ALL: [Self; 23] = [
        Self::AcceptLateResult,
        Self::SkipRequeue,
        Self::KeepDeadWork,
        Self::DoubleGrant,
        Self::ReleaseGroupEarly,
        Self::BlamePresence,
        Self::ForgetWorker,
        Self::ForgetUnstarted,
        Self::CountPrefetched,
        Self::CrowdExclusive,
        Self::RequeueCancelled,
        Self::HedgeAnybody,
        Self::HeedBoth,
        Self::ForgetTwin,
        Self::LeaseWhenShort,
        Self::WaitForNobody,
        Self::TakeLackForReady,
        Self::GiveUpAtOnce,
        Self::LoseAtOnce,
        Self::ForgetFence,
        Self::FenceByAnyWord,
        Self::RevokeRunning,
        Self::KeepPlace,
    ];

    /// The bug as one of a worker's session.
    pub(crate) fn of_session(self) -> Option<distest_worker::session::Mutation> {
        match self {
            Self::FenceByAnyWord => Some(distest_worker::session::Mutation::FenceByAnyWord),
            Self::RevokeRunning => Some(distest_worker::session::Mutation::RevokeRunning),
            Self::KeepPlace => Some(distest_worker::session::Mutation::KeepPlace),
            _ => None,
        }
    }
}

#[cfg(test)]
impl Scheduler {
    /// Switches a bug in.
    pub(crate) fn mutate(&mut self, mutation: Option<Mutation>) {
        self.mutation = mutation;
    }

    /// What is not done, in words, for whoever asks why.
    pub(crate) fn unfinished(&self) -> String {
        let stories = self.stories.iter().enumerate();
        let open = stories.filter(|(_, story)| story.verdict.is_none());
        let open: Vec<_> = open.take(3).collect();
        let (queued, special) = (self.queue.len(), self.special.len());
        format!(
            "{queued} queued, {special} special, {:?}, {:?}, {open:?}",
            self.phase, self.workers
        )
    }

    pub(super) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

#[cfg(not(test))]
impl Scheduler {
    #[expect(clippy::unused_self, reason = "as in tests")]
    pub(super) const fn has(&self, _: Mutation) -> bool {
        false
    }
}
