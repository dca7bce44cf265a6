//! Workers that are lost before they say what they have started.

use super::*;

/// What was told of attempts that ended: (test, number, result).
fn ends(script: &Script) -> Vec<(u32, u32, AttemptResult)> {
    let ends = script.said.iter().filter_map(|effect| match effect {
        Effect::AttemptEnded { test, number, result, .. } => Some((test.0, *number, *result)),
        _ => None,
    });
    ends.collect()
}

fn lost(script: &mut Script, worker: u32) -> Vec<(u32, u32, AttemptResult)> {
    ends(script.say(Input::Lost { worker: WorkerId(worker) }))
}

#[test]
fn what_kills_each_worker_at_once_is_lost_at_last_and_takes_nobody_with_it() {
    let mut script = Script::running(RULES, 3, 2);
    let of = |test, number| (test, number, AttemptResult::Lost);
    assert_eq!(lost(&mut script, 0), [of(0, 1), of(1, 1)], "either may be why");
    assert_eq!(script.join(W1, 2, B0).granted(), [(1, 0), (1, 1)]);
    assert_eq!(lost(&mut script, 1), [of(0, 2), of(1, 2)]);
    for loss in 3..=LOSSES_MAX {
        let worker = WorkerId(loss);
        assert_eq!(script.join(worker, 2, B0).granted(), [(loss, 0)], "nothing beside it");
        assert_eq!(lost(&mut script, loss), [of(0, loss)]);
        let blamed = script.said.iter().any(|it| matches!(it, Effect::TookDown { .. }));
        assert!(!blamed, "that it began is not certain");
    }
    assert_eq!(script.verdicts(), [(0, Verdict::Lost)]);
    let last = WorkerId(9);
    assert_eq!(script.join(last, 2, B0).granted(), [(9, 1)]);
    script.ended(last, 7, AttemptResult::Pass);
    assert_eq!(
        (ends(&script), script.verdicts()),
        (vec![(1, 3, AttemptResult::Pass)], vec![(1, Verdict::Pass)])
    );
    script.ended(last, 8, AttemptResult::Pass);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn who_waits_behind_others_is_not_lost_with_them() {
    let prefetched = || {
        let mut script = Script::running(RULES, 20, 1);
        let granted = script.lasted(W0, 0, AttemptResult::Pass, 1).granted();
        assert!(granted.len() > 2, "{granted:?}");
        script
    };
    let mut script = prefetched();
    assert_eq!(lost(&mut script, 0), [(1, 1, AttemptResult::Lost)]);
    let mut script = prefetched();
    script.started(W0, 1);
    assert_eq!(lost(&mut script, 0), [(1, 1, AttemptResult::Lost)]);
    // Behind what holds all of its slots nothing begins.
    let mut script = prefetched();
    script.say(Input::Revoked { worker: W0, attempts: vec![AttemptId(1)] });
    assert_eq!(
        lost(&mut script, 0),
        [(2, 1, AttemptResult::Lost)],
        "what was taken back never began"
    );
}

#[test]
fn of_a_batch_the_first_is_lost_and_runs_alone() {
    let mut script = Script::new(RULES);
    script.say(Input::Added((0..3).map(|n| task(n, B0, Urgency::Known, 1)).collect()));
    let tests = [0, 1, 2].map(TestIndex).into();
    let batches = vec![Batch { binary: B0, tests, expected: MS * 3 }];
    script.say(Input::Batched { batches, acquainted: Vec::new() });
    script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
    assert_eq!(lost(&mut script, 0), [(0, 1, AttemptResult::Lost)]);
    script.join(W1, 2, B0);
    let leases = script.said.iter().filter_map(|effect| match effect {
        Effect::Lease { grants, .. } => Some(grants),
        _ => None,
    });
    let mut companies: Vec<_> =
        leases.flatten().map(|it| (it.test.0, it.company.clone())).collect();
    companies.sort_unstable_by_key(|(test, _)| *test);
    let rest = Company::Batch([1, 2].map(TestIndex).into());
    assert_eq!(companies, [(0, Company::Alone), (1, rest)]);
}

#[test]
fn a_witness_that_kills_its_worker_is_not_called_again() {
    let mut script = Script::new(RULES);
    script.say(Input::Added((0..2).map(|n| task(n, B0, Urgency::Known, 1)).collect()));
    let acquainted = vec![Acquainted { test: TestIndex(0), company: [0, 1].map(TestIndex).into() }];
    script.say(Input::Batched { batches: Vec::new(), acquainted });
    script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
    script.ended(W0, 0, AttemptResult::Fail);
    assert_eq!(script.verdicts(), [], "a witness is sought");
    assert_eq!(lost(&mut script, 0), [(0, 1, AttemptResult::Fail)]);
    assert_eq!(script.verdicts(), [(0, Verdict::Fail)]);
}

#[test]
fn a_loss_has_a_number_of_its_own_and_takes_no_try() {
    let mut script = Script::running(Rules { retries: 1, ..RULES }, 1, 1);
    assert_eq!(lost(&mut script, 0), [(0, 1, AttemptResult::Lost)]);
    let tries = |script: &Script| {
        script.said.iter().find_map(|effect| match effect {
            Effect::Lease { grants, .. } => Some((grants[0].number, grants[0].alone)),
            _ => None,
        })
    };
    assert_eq!(tries(script.join(W1, 1, B0)), Some((2, 1)), "the test knows of no loss");
    assert_eq!(tries(script.started(W1, 1).ended(W1, 1, AttemptResult::Fail)), Some((3, 2)));
    assert_eq!(ends(&script), [(0, 2, AttemptResult::Fail)]);
    script.ended(W1, 2, AttemptResult::Fail);
    assert_eq!(ends(&script), [(0, 3, AttemptResult::Fail)]);
    assert_eq!(script.verdicts(), [(0, Verdict::Fail)]);
}

#[test]
fn when_a_run_ends_what_was_not_said_to_have_started_is_skipped() {
    let mut script = Script::running(RULES, 1, 1);
    script.say(Input::Cancel { reason: CancelReason::Interrupt, how: Stop::Terminate });
    assert_eq!(lost(&mut script, 0), []);
    assert_eq!(script.verdicts(), [(0, Verdict::Skipped)]);
}
