//! Overdue attempts that are started once more.

use super::*;

const HEDGING: Rules = Rules { hedge: true, ..RULES };

/// Two tests of 600 ms on a worker of one slot each; the second has passed, the first runs on.
fn overdue(rules: Rules, needs: Option<Needs>) -> Script {
    let mut script = Script::new(rules);
    let tasks = (0..2).map(|n| task(n, B0, Urgency::Known, 600));
    let mut tasks: Vec<_> = tasks.collect();
    tasks[0].needs = needs.map(Arc::new);
    script.scheduler = Scheduler::with_groups(rules, vec![Group::default()]);
    script.say(Input::Added(tasks)).say(Input::AllAdded);
    script.join(W0, 1, B0).join(W1, 1, B0);
    script.say(Input::Open).started(W0, 0);
    script.lasted(W1, 1, AttemptResult::Pass, 600);
    script
}

fn hedged(rules: Rules) -> Script {
    let mut script = overdue(rules, None);
    script.say(Input::Overdue { worker: W0, attempt: AttemptId(0) });
    assert_eq!(script.granted(), [(1, 0)]);
    script
}

fn abandoned(attempt: u64) -> Effect {
    Effect::Abandoned { attempt: AttemptId(attempt), test: TestIndex(0) }
}

fn goes_on(attempt: u64, number: u32) -> Effect {
    Effect::GoesOn { attempt: AttemptId(attempt), number }
}

fn kill(worker: WorkerId, attempt: u64) -> Effect {
    Effect::Kill { worker, attempt: AttemptId(attempt) }
}

#[test]
fn an_attempt_is_watched_for_twice_its_time_and_a_second_more() {
    let mut script = overdue(HEDGING, None);
    let watch = |ms| {
        let (worker, attempt) = (W0, AttemptId(0));
        [Effect::Watch { worker, attempt, after: MS * ms }]
    };
    assert_eq!(script.started(W0, 0).said, watch(1_600));
    let mut script = Script::new(HEDGING);
    script.say(Input::Added(vec![task(0, B0, Urgency::Failed, 5_000)])).say(Input::Open);
    script.join(W0, 1, B0);
    assert_eq!(script.started(W0, 0).said, watch(10_000));
}

#[test]
fn the_first_of_two_to_end_decides_and_the_other_is_killed() {
    let mut script = hedged(HEDGING);
    script.started(W1, 2);
    script.ended(W1, 2, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(0, Verdict::Pass)]);
    assert_eq!(script.said[1..3], [abandoned(0), kill(W0, 0)]);
    // Whatever it ends with.
    assert_eq!(script.ended(W0, 0, AttemptResult::Crashed).said, []);
}

#[test]
fn the_overdue_one_may_still_be_first() {
    let mut script = hedged(HEDGING);
    script.ended(W0, 0, AttemptResult::Fail);
    assert_eq!(script.verdicts(), [(0, Verdict::Fail)]);
    // It has not started: it is taken back, or killed when it starts all the same.
    let revoke = Effect::Revoke { worker: W1, attempts: vec![AttemptId(2)] };
    assert_eq!(script.said[1..3], [abandoned(2), revoke]);
    assert_eq!(script.started(W1, 2).said, [kill(W1, 2)]);
}

#[test]
fn if_one_fails_and_may_be_tried_again_the_other_is_that_try() {
    let mut script = hedged(Rules { retries: 1, ..HEDGING });
    script.started(W1, 2);
    script.ended(W1, 2, AttemptResult::Fail);
    assert!(script.said.contains(&goes_on(0, 2)), "{:?}", script.said);
    // It is overdue itself.
    assert_eq!((script.verdicts(), script.granted()), (vec![], vec![(1, 0)]));
    script.ended(W0, 0, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(0, Verdict::Flaky)]);
    let numbers = script.said.iter().filter_map(|effect| match effect {
        Effect::AttemptEnded { number, .. } => Some(*number),
        _ => None,
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [2]);
}

#[test]
fn if_one_is_lost_the_other_goes_on_alone() {
    for lost in [W0, W1] {
        let mut script = hedged(HEDGING);
        script.started(W1, 2).say(Input::Lost { worker: lost });
        assert_eq!((script.verdicts(), script.granted()), (vec![], vec![]));
        let (worker, attempt) = if lost == W0 { (W1, 2) } else { (W0, 0) };
        // What was lost has its number.
        assert!(script.said.contains(&goes_on(attempt, 2)), "{:?}", script.said);
        script.ended(worker, attempt, AttemptResult::Pass);
        assert_eq!(script.verdicts(), [(0, Verdict::Pass)]);
        assert_eq!(script.said.last(), Some(&Effect::Done));
    }
}

#[test]
fn nobody_is_hedged_while_others_wait() {
    let mut script = overdue(HEDGING, None);
    script.say(Input::Added((2..5).map(|n| task(n, B0, Urgency::Known, 600)).collect()));
    assert_eq!(script.granted(), [(1, 2)]);
    script.say(Input::Overdue { worker: W0, attempt: AttemptId(0) });
    script.lasted(W1, 2, AttemptResult::Pass, 600).lasted(W1, 3, AttemptResult::Pass, 600);
    assert_eq!(script.granted(), [(1, 4)]);
    assert_eq!(script.lasted(W1, 4, AttemptResult::Pass, 600).granted(), [(1, 0)]);
}

#[test]
fn who_must_not_run_twice_at_once_never_does() {
    let plain = || Needs::default();
    let may = |needs| {
        let mut script = overdue(HEDGING, Some(needs));
        let watched = !script.started(W0, 0).said.is_empty();
        script.say(Input::Overdue { worker: W0, attempt: AttemptId(0) });
        watched
    };
    assert!(may(Needs { priority: 1, ..plain() }));
    assert!(!may(Needs { exclusive: true, ..plain() }));
    assert!(!may(Needs { group: Some(GroupIndex(0)), ..plain() }));
    let mut script = overdue(RULES, None);
    assert_eq!(script.started(W0, 0).said, []);
    assert_eq!(script.say(Input::Overdue { worker: W0, attempt: AttemptId(0) }).granted(), []);
}

#[test]
fn a_run_that_is_cancelled_counts_a_hedged_test_once() {
    let running = |script: &Script| {
        let told = script.said.iter().find_map(|effect| match effect {
            Effect::Cancelling { running, .. } => Some(*running),
            _ => None,
        });
        told.expect("it is cancelled")
    };
    let (reason, how) = (CancelReason::Interrupt, Stop::Kill);
    let mut script = hedged(HEDGING);
    script.started(W1, 2).say(Input::Cancel { reason, how });
    assert_eq!(running(&script), 1);
    // Both are ended by us, which decides nothing until it is true of both.
    assert_eq!(script.ended(W1, 2, AttemptResult::Lost).verdicts(), []);
    assert_eq!(script.ended(W0, 0, AttemptResult::Lost).verdicts(), [(0, Verdict::Lost)]);
    let mut script = hedged(HEDGING);
    script.say(Input::Added(vec![task(2, B0, Urgency::Known, 600)]));
    script.started(W1, 2).ended(W1, 2, AttemptResult::Pass);
    script.say(Input::Cancel { reason, how });
    assert_eq!(running(&script), 0, "one is abandoned, the other has not started");
}

#[test]
fn an_abandoned_attempt_keeps_its_slot_until_it_is_gone() {
    let mut script = hedged(HEDGING);
    script.say(Input::Added(vec![task(2, B0, Urgency::Known, 600)]));
    script.started(W1, 2).ended(W1, 2, AttemptResult::Pass);
    assert_eq!(script.granted(), [(1, 2)]);
    script.say(Input::Added(vec![task(3, B0, Urgency::Known, 600)]));
    assert_eq!(script.granted(), []);
    assert_eq!(script.ended(W0, 0, AttemptResult::Lost).granted(), [(0, 3)]);
}
