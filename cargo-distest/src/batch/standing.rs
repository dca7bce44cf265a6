//! What history remembers of a test for the choice between company and a process of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Members, Recalled};
use crate::model::{AttemptResult, BinaryId, TestName, Verdict};

/// Runs alone without any trouble after which a test that had trouble in company returns to it.
pub const CLEAN_RUNS_TO_RETURN: u32 = 20;
/// Passes in a row after which an earlier failure is forgotten.
const PASSES_TO_TRUST: u32 = 3;
/// A test gains from a batch if it takes less than one in this many of its time alone.
const GAIN: u32 = 2;
/// Share of the newest duration in a mean is one in this many.
const MEMORY: u32 = 4;

/// Where a test case stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Runs in a row in which it passed.
    pub streak: u32,
    /// It failed, or was not told of, in some run that is still remembered.
    pub failed_before: bool,
    /// It is kept out of company; so many clean runs alone since.
    pub kept_out: Option<u32>,
    /// It passes in company and fails alone: never in company again.
    pub only_in_company: bool,
    /// Runs in company since it last ran alone.
    pub in_company: u32,
    /// What a pass takes in a process of its own whose output is read: a moving average.
    pub alone: Option<Duration>,
    /// What a pass takes in a batch, where libtest keeps its output: a moving average of its own
    /// time there, or of its batch's mean where that is less. The first to need what a process
    /// does once pays for all of them.
    pub batched: Option<Duration>,
    /// Whether a batch with others was a quicker place for it, or for most of them; none until it
    /// was in one.
    pub gains: Option<bool>,
    /// Bytes that it wrote when it last passed in a process of its own.
    pub printed: u64,
}

/// What a run was to a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its verdict.
    pub verdict: Verdict,
    /// How its last attempt ended.
    pub last: AttemptResult,
    /// Its process said last what libtest says last.
    pub orderly: bool,
    /// What that attempt took.
    pub duration: Duration,
    /// That attempt was in a batch.
    pub batched: bool,
    /// And others were, too.
    pub in_company: bool,
    /// What the tests of that batch took on the average.
    pub batch_mean: Duration,
    /// Bytes that it wrote, libtest's included; none are known of one in a batch.
    pub printed: u64,
    /// It failed in a batch, or had no verdict there because the batch crashed.
    pub had_trouble_in_company: bool,
    /// It failed alone and then passed in the batch into which it belongs.
    pub only_in_company: bool,
}

/// Where all known test cases stand.
#[derive(Clone, Debug, Default)]
pub struct Standings {
    binaries: BTreeMap<BinaryId, BTreeMap<TestName, (Standing, Option<Members>)>>,
    /// Runs that history has seen.
    pub runs: u64,
}

impl Standings {
    /// Nothing is known yet, after so many runs.
    pub fn after(runs: u64) -> Self {
        Self { runs, ..Self::default() }
    }

    /// Takes in where all test cases of a binary stand, and with whom each passed in company last.
    pub fn insert_all(
        &mut self,
        binary: BinaryId,
        cases: impl IntoIterator<Item = (TestName, (Standing, Option<Members>))>,
    ) {
        self.binaries.insert(binary, cases.into_iter().collect());
    }

    /// Where a test case stands; one that is unknown stands at the beginning. And what to recall if
    /// it fails by itself.
    pub fn get(&self, binary: &BinaryId, name: &TestName) -> (Standing, Option<Recalled>) {
        let known = self.binaries.get(binary).and_then(|cases| cases.get(name));
        let Some((standing, company)) = known else { return Default::default() };
        let (passes, found) = (standing.passes_in_company(), standing.only_in_company);
        let recalled = Recalled { passes, found, members: company.clone() };
        (*standing, (passes > 0 || found).then_some(recalled))
    }
}

impl Standing {
    /// After one more run.
    #[must_use]
    pub fn after(self, ran: &Ran) -> Self {
        let passed = ran.verdict == Verdict::Pass;
        let clean = passed && ran.last == AttemptResult::Pass && !ran.had_trouble_in_company;
        let kept_out = match self.kept_out {
            // What fails alone too has no trouble with company.
            _ if ran.had_trouble_in_company
                && matches!(ran.verdict, Verdict::Pass | Verdict::Flaky) =>
            {
                Some(0)
            }
            // Whoever takes libtest's last word away, or leaves something behind, spoils a batch.
            _ if ran.last == AttemptResult::Leak || (passed && !ran.orderly) => Some(0),
            Some(runs) if clean && !ran.in_company => Some(runs + 1),
            // A failure is what it had trouble with before: the count begins anew.
            Some(_) if !clean => Some(0),
            same => same,
        };
        let pass = ran.last == AttemptResult::Pass;
        let timed = |here: bool, mean: Option<Duration>, took: Duration| match mean {
            _ if !(pass && here) => mean,
            Some(mean) => Some((mean * (MEMORY - 1) + took) / MEMORY),
            None => Some(took),
        };
        let least = ran.duration.min(ran.batch_mean);
        let gained = self.alone.map(|alone| least * GAIN < alone);
        Self {
            gains: if pass && ran.batched { gained.or(self.gains) } else { self.gains },
            alone: timed(!ran.batched, self.alone, ran.duration),
            batched: timed(ran.batched, self.batched, least),
            printed: if pass && !ran.batched { ran.printed } else { self.printed },
            streak: if passed { self.streak.saturating_add(1) } else { 0 },
            failed_before: self.failed_before || !passed,
            kept_out: kept_out.filter(|runs| *runs < CLEAN_RUNS_TO_RETURN),
            only_in_company: self.only_in_company || ran.only_in_company,
            in_company: if ran.in_company { self.in_company.saturating_add(1) } else { 0 },
        }
    }

    /// Passes in a row, up to the last run, that were in company.
    pub fn passes_in_company(&self) -> u32 {
        self.in_company.min(self.streak)
    }

    /// Whether it may run in company: its last runs passed, and nothing keeps it out.
    pub fn may_have_company(&self) -> bool {
        let enough = if self.failed_before { PASSES_TO_TRUST } else { 1 };
        self.streak >= enough && self.kept_out.is_none() && !self.only_in_company
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Ran = Ran {
        verdict: Verdict::Pass,
        last: AttemptResult::Pass,
        orderly: true,
        duration: Duration::from_millis(8),
        batched: false,
        in_company: false,
        batch_mean: Duration::ZERO,
        printed: 100,
        had_trouble_in_company: false,
        only_in_company: false,
    };
    const COMPANY: Ran = Ran { batched: true, in_company: true, ..ALONE };
    const FAILED: Ran = Ran { verdict: Verdict::Fail, last: AttemptResult::Fail, ..ALONE };

    fn after(runs: &[Ran]) -> Standing {
        runs.iter().fold(Standing::default(), |standing, ran| standing.after(ran))
    }

    fn may(runs: &[Ran]) -> bool {
        after(runs).may_have_company()
    }

    #[test]
    fn a_first_run_is_alone_and_a_failure_costs_some_trust() {
        assert!(!may(&[]));
        assert!(may(&[ALONE]) && may(&[ALONE, COMPANY]));
        assert!(!may(&[FAILED]) && !may(&[ALONE, FAILED]) && !may(&[FAILED, ALONE, ALONE]));
        assert!(may(&[FAILED, ALONE, ALONE, ALONE]));
        let flaky = Ran { verdict: Verdict::Flaky, ..ALONE };
        assert!(!may(&[ALONE, flaky]));
    }

    #[test]
    fn trouble_in_company_keeps_out_until_twenty_clean_runs_alone() {
        let trouble = Ran { had_trouble_in_company: true, ..ALONE };
        let mut runs = vec![ALONE, COMPANY, trouble];
        runs.extend([ALONE; 19]);
        assert!(!may(&runs));
        let with = |last: Ran| [&runs[..], &[last]].concat();
        assert!(may(&with(ALONE)));
        assert!(!may(&[&with(FAILED)[..], &[ALONE; 19]].concat()));
        assert!(may(&[&with(FAILED)[..], &[ALONE; 20]].concat()));
    }

    #[test]
    fn a_test_that_leaves_something_behind_has_no_company() {
        let leak = Ran { last: AttemptResult::Leak, ..ALONE };
        assert!(!may(&[leak]) && !may(&[ALONE, leak, ALONE]));
        let silent = Ran { orderly: false, ..ALONE };
        assert!(!may(&[silent]) && !may(&[ALONE, silent, ALONE]));
    }

    #[test]
    fn what_passes_only_in_company_never_has_any_again() {
        let found = Ran { only_in_company: true, ..FAILED };
        assert!(!may(&[&[ALONE, COMPANY, found][..], &[ALONE; 50]].concat()));
    }

    #[test]
    fn times_alone_and_in_a_batch_are_told_apart() {
        let millis = Duration::from_millis;
        let (duration, batch_mean) = (millis(9), millis(2));
        let batched = Ran { batched: true, duration, batch_mean, printed: 0, ..ALONE };
        let stands = after(&[ALONE, batched, Ran { duration: millis(16), printed: 7, ..ALONE }]);
        assert_eq!((stands.alone, stands.batched), (Some(millis(10)), Some(millis(2))));
        assert_eq!((stands.printed, stands.in_company), (7, 0));
        let failed = after(&[FAILED]);
        assert_eq!((failed.alone, failed.batched, failed.printed), (None, None, 0));
    }

    #[test]
    fn who_gains_from_a_batch_is_told_by_its_own_time_or_the_mean() {
        let millis = Duration::from_millis;
        let batched = |own, mean| {
            let (duration, batch_mean) = (millis(own), millis(mean));
            after(&[ALONE, Ran { duration, batch_mean, ..COMPANY }]).gains
        };
        assert_eq!(
            [batched(3, 8), batched(9, 2), batched(4, 4)],
            [Some(true), Some(true), Some(false)]
        );
        assert_eq!(after(&[ALONE, ALONE]).gains, None);
        assert_eq!(after(&[COMPANY]).gains, None, "nothing to compare it with");
    }

    #[test]
    fn runs_in_company_are_counted_from_the_last_one_alone() {
        assert_eq!(after(&[ALONE, COMPANY, COMPANY]).in_company, 2);
        assert_eq!(after(&[ALONE, COMPANY, COMPANY, ALONE]).in_company, 0);
    }
}
