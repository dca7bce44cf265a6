//! Tests that share a process.

use super::*;
use crate::scheduler::returned::WITNESSES_MAX;

/// An opened run of four tests, of which 1, 2 and 3 are a batch, and one worker with one slot. The
/// batch, which is longer, was handed out as attempt 0.
fn batch_of_three(rules: Rules) -> Script {
    let mut script = Script::new(rules);
    script.say(Input::Added((0..4).map(|n| task(n, B0, Urgency::Known, 1)).collect()));
    let tests = [1, 2, 3].map(TestIndex).into();
    let batches = vec![Batch { binary: B0, tests, expected: MS * 3 }];
    script.say(Input::Batched { batches, acquainted: Vec::new() });
    script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
    assert_eq!(script.granted(), [(0, 1)]);
    script
}

/// A run of the tests 0 and 1, which would be a batch if 0 didn't run alone: as attempt 0.
fn rotated(rules: Rules) -> Script {
    let mut script = Script::new(rules);
    script.say(Input::Added((0..2).map(|n| task(n, B0, Urgency::Known, 1)).collect()));
    let acquainted = vec![Acquainted { test: TestIndex(0), company: [0, 1].map(TestIndex).into() }];
    script.say(Input::Batched { batches: Vec::new(), acquainted });
    script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
    script
}

impl Script {
    fn batch_ended(&mut self, attempt: u64, outcomes: &[InBatch]) -> &mut Self {
        let returned = |outcome: &InBatch| Returned { outcome: *outcome, duration: MS };
        let tests = outcomes.iter().map(returned).collect();
        let attempt = AttemptId(attempt);
        self.say(Input::BatchEnded { worker: W0, attempt, tests, duration: MS * 3 })
    }

    fn ends(&self) -> Vec<(u32, u32, AttemptResult, bool)> {
        let ends = self.said.iter().filter_map(|effect| match effect {
            Effect::AttemptEnded { test, number, result, only_in_company, .. } => {
                Some((test.0, *number, *result, *only_in_company))
            }
            _ => None,
        });
        ends.collect()
    }
}

#[test]
fn a_batch_takes_one_slot_and_all_its_tests_pass_at_once() {
    let mut script = batch_of_three(RULES);
    script.batch_ended(0, &[InBatch::Passed; 3]);
    assert_eq!(script.verdicts(), [1, 2, 3].map(|n| (n, Verdict::Pass)));
    assert_eq!(script.granted(), [(0, 0)]);
}

#[test]
fn what_comes_back_runs_alone_and_only_a_failure_makes_it_flaky() {
    let mut script = batch_of_three(RULES);
    script.batch_ended(0, &[InBatch::Passed, InBatch::Failed, InBatch::Unsure]);
    assert_eq!(script.verdicts(), [(1, Verdict::Pass)]);
    let ends = [(1, 1, AttemptResult::Pass, false), (2, 1, AttemptResult::Fail, false)];
    assert_eq!(script.ends(), ends);
    assert_eq!(script.granted(), [(0, 2), (0, 3), (0, 0)]);
    script.ended(W0, 1, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(2, Verdict::Flaky)]);
    assert_eq!(script.ends(), [(2, 2, AttemptResult::Pass, false)]);
    script.ended(W0, 2, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(3, Verdict::Pass)]);
}

#[test]
fn an_attempt_in_a_batch_is_no_retry() {
    let mut script = batch_of_three(Rules { retries: 1, ..RULES });
    script.batch_ended(0, &[InBatch::Failed, InBatch::Passed, InBatch::Passed]);
    script.ended(W0, 1, AttemptResult::Fail);
    assert_eq!(script.verdicts(), []);
    script.ended(W0, 3, AttemptResult::Fail);
    assert_eq!(script.verdicts(), [(1, Verdict::Fail)]);
}

#[test]
fn the_test_that_ran_when_a_batch_crashed_passes_if_it_does_alone() {
    let mut script = batch_of_three(RULES);
    script.batch_ended(0, &[InBatch::Passed, InBatch::Interrupted, InBatch::NotReached]);
    let ends = [(1, 1, AttemptResult::Pass, false), (2, 1, AttemptResult::Lost, false)];
    assert_eq!(script.ends(), ends);
    script.ended(W0, 1, AttemptResult::Pass).ended(W0, 2, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(3, Verdict::Pass)]);
}

#[test]
fn a_lost_workers_batch_runs_again_without_the_test_that_ran() {
    let mut script = batch_of_three(RULES);
    script.started(W0, 0);
    script.say(Input::Progressed { worker: W0, attempt: AttemptId(0), finished: 1 });
    script.say(Input::Lost { worker: W0 }).join(W1, 2, B0);
    // Nothing runs beside the one that ran.
    assert_eq!(script.granted(), [(1, 2)]);
    script.say(Input::Ended {
        worker: W1,
        attempt: AttemptId(1),
        result: AttemptResult::Pass,
        duration: MS,
    });
    let leases = script.said.iter().filter_map(|effect| match effect {
        Effect::Lease { grants, .. } => Some(grants),
        _ => None,
    });
    let companies: Vec<_> = leases.flatten().map(|grant| grant.company.clone()).collect();
    assert!(companies.contains(&Company::Batch([1, 3].map(TestIndex).into())), "{companies:?}");
    assert_eq!(script.granted(), [(1, 1), (1, 0)]);
}

#[test]
fn a_cancelled_batch_keeps_what_passed() {
    let mut script = batch_of_three(RULES);
    script.started(W0, 0);
    script.say(Input::Cancel { reason: CancelReason::Interrupt, how: Stop::Terminate });
    script.batch_ended(0, &[InBatch::Passed, InBatch::Interrupted, InBatch::NotReached]);
    let verdicts = [(1, Verdict::Pass), (2, Verdict::Lost), (3, Verdict::Skipped)];
    assert_eq!(script.verdicts(), verdicts);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn a_test_that_fails_alone_is_tried_in_company_before_it_is_told() {
    for (outcome, only_in_company) in [(InBatch::Passed, true), (InBatch::Failed, false)] {
        let mut script = rotated(RULES);
        script.ended(W0, 0, AttemptResult::Fail);
        assert_eq!((script.ends(), script.verdicts()), (vec![], vec![]));
        assert_eq!(script.granted(), [(0, 0), (0, 1)][..1]);
        script.batch_ended(1, &[outcome]);
        assert_eq!(script.ends(), [(0, 1, AttemptResult::Fail, only_in_company)]);
        assert_eq!(script.verdicts(), [(0, Verdict::Fail)]);
    }
}

#[test]
fn a_witness_that_is_never_heard_changes_no_verdict() {
    let mut script = rotated(RULES);
    script.ended(W0, 0, AttemptResult::Crashed);
    script.say(Input::Cancel { reason: CancelReason::Interrupt, how: Stop::Kill });
    script.ended(W0, 1, AttemptResult::Lost);
    assert_eq!(script.verdicts(), [(0, Verdict::Crashed)]);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

/// Says with whom these tests passed.
fn acquaint(script: &mut Script, tests: &[u32], company: &[u32]) {
    let company: Arc<[TestIndex]> = company.iter().copied().map(TestIndex).collect();
    let known = |test: &u32| Acquainted { test: TestIndex(*test), company: Arc::clone(&company) };
    let acquainted = tests.iter().map(known).collect();
    script.say(Input::Batched { batches: Vec::new(), acquainted });
}

/// The tests of the witnesses that were handed out.
fn witnesses(script: &Script) -> Vec<Vec<u32>> {
    let leases = script.said.iter().filter_map(|effect| match effect {
        Effect::Lease { grants, .. } => Some(grants),
        _ => None,
    });
    let tests = leases.flatten().filter_map(|grant| match &grant.company {
        Company::Witness(tests) => Some(tests.iter().map(|test| test.0).collect()),
        Company::Alone | Company::Batch(_) => None,
    });
    tests.collect()
}

#[test]
fn what_fails_in_a_batch_and_alone_is_tried_in_the_company_in_which_it_passed() {
    for (outcome, only_in_company) in [(InBatch::Passed, true), (InBatch::Failed, false)] {
        let mut script = batch_of_three(RULES);
        acquaint(&mut script, &[1], &[0, 1]);
        script.batch_ended(0, &[InBatch::Failed, InBatch::Passed, InBatch::Passed]);
        script.ended(W0, 1, AttemptResult::Fail);
        assert_eq!(witnesses(&script), [[0, 1]]);
        assert_eq!(script.verdicts(), [], "not before it is known");
        script.batch_ended(3, &[outcome]);
        assert_eq!(script.ends(), [(1, 2, AttemptResult::Fail, only_in_company)]);
        assert_eq!(script.verdicts(), [(1, Verdict::Fail)]);
    }
}

#[test]
fn what_takes_too_long_alone_is_not_tried_in_company() {
    let mut script = rotated(RULES);
    script.ended(W0, 0, AttemptResult::Timeout);
    assert_eq!(script.verdicts(), [(0, Verdict::Timeout)]);
    assert_eq!(witnesses(&script), [[0; 0]; 0]);
}

#[test]
fn whoever_has_needs_of_its_own_is_no_witness() {
    let mut script = Script::new(RULES);
    let mut tasks: Vec<_> = (0..3).map(|n| task(n, B0, Urgency::Known, 1)).collect();
    tasks[1].needs = Some(Arc::new(Needs { exclusive: true, ..Needs::default() }));
    script.say(Input::Added(tasks));
    acquaint(&mut script, &[0], &[0, 1, 2]);
    script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
    let (mut granted, mut sought) = (script.granted(), Vec::new());
    for attempt in 0..4 {
        let result = match granted[attempt] {
            (_, 0) => AttemptResult::Fail,
            _ => AttemptResult::Pass,
        };
        script.ended(W0, attempt as u64, result);
        granted.extend(script.granted());
        sought.extend(witnesses(&script));
    }
    assert_eq!(sought, [[0, 2]]);
}

#[test]
fn where_all_fail_in_either_way_no_more_witnesses_are_sought() {
    const TESTS: u32 = WITNESSES_MAX + 5;
    let tried = |outcome| {
        let mut script = Script::new(RULES);
        script.say(Input::Added((0..TESTS).map(|n| task(n, B0, Urgency::Known, 1)).collect()));
        let all: Vec<_> = (0..TESTS).collect();
        acquaint(&mut script, &all, &all);
        script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
        let (mut attempt, mut tried, mut done) = (0, 0, 0);
        while done < TESTS {
            script.ended(W0, attempt, AttemptResult::Fail);
            attempt += 1;
            if script.verdicts().is_empty() {
                script.batch_ended(attempt, &[outcome]);
                attempt += 1;
                tried += 1;
            }
            done += script.verdicts().len() as u32;
        }
        tried
    };
    assert_eq!(tried(InBatch::Failed), WITNESSES_MAX);
    assert_eq!(tried(InBatch::Passed), TESTS);
}
