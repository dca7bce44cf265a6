//! Instructions that a processor doesn't know: the test's fault only if another doesn't either.

use super::*;

/// A test on the first of two workers with one slot each. The second is made ready for it when it
/// is to come there.
fn first_of_two() -> Script {
    let mut script = Script::running(RULES, 1, 1);
    assert_eq!(script.granted(), [(0, 0)]);
    script.say(joined(W1, 1));
    script
}

/// How the attempts ended of which was told last.
fn ended(script: &Script) -> Vec<AttemptResult> {
    let ended = script.said.iter().filter_map(|effect| match effect {
        Effect::AttemptEnded { result, .. } => Some(*result),
        _ => None,
    });
    ended.collect()
}

#[test]
fn it_runs_once_elsewhere_and_what_it_does_there_counts() {
    for (result, verdict) in [
        (AttemptResult::Pass, Verdict::Pass),
        (AttemptResult::Fail, Verdict::Fail),
        (AttemptResult::Timeout, Verdict::Timeout),
    ] {
        let mut script = first_of_two();
        script.started(W0, 0).illegal(W0, 0);
        assert_eq!(ended(&script), [AttemptResult::Lost], "nothing is held against the test");
        assert_eq!(script.granted(), [], "not where it went wrong");
        assert_eq!(script.say(Input::Ready { worker: W1, binary: B0 }).granted(), [(1, 0)]);
        assert_eq!(script.ended(W1, 1, result).verdicts(), [(0, verdict)]);
    }
}

#[test]
fn it_runs_again_where_it_went_wrong_if_the_other_worker_is_none() {
    for gone in [Input::Refused { worker: W1, binary: B0 }, Input::Lost { worker: W1 }] {
        let mut script = first_of_two();
        script.illegal(W0, 0);
        assert_eq!(script.say(gone).granted(), [(0, 0)]);
        assert_eq!(script.illegal(W0, 1).verdicts(), [(0, Verdict::Crashed)]);
    }
}

#[test]
fn alone_or_twice_it_has_crashed() {
    let mut alone = Script::running(RULES, 1, 1);
    assert_eq!(alone.illegal(W0, 0).verdicts(), [(0, Verdict::Crashed)]);

    let mut script = first_of_two();
    script.illegal(W0, 0).say(Input::Ready { worker: W1, binary: B0 });
    assert_eq!(script.illegal(W1, 1).verdicts(), [(0, Verdict::Crashed)]);
    assert_eq!(ended(&script), [AttemptResult::Crashed]);
}

#[test]
fn a_cancelled_run_moves_nothing() {
    let mut script = first_of_two();
    script.started(W0, 0);
    script.say(Input::Cancel { reason: CancelReason::Interrupt, how: Stop::Drain });
    assert_eq!(script.illegal(W0, 0).verdicts(), [(0, Verdict::Crashed)]);
}

#[test]
fn retries_come_after_it() {
    let mut script = Script::running(Rules { retries: 1, ..RULES }, 1, 1);
    script.say(joined(W1, 1)).illegal(W0, 0).say(Input::Ready { worker: W1, binary: B0 });
    let again = |script: &Script| script.granted().len();
    assert_eq!(again(&script), 1);
    assert_eq!(again(script.illegal(W1, 1)), 1, "the first attempt that counts has crashed");
    assert_eq!(script.ended(W0, 2, AttemptResult::Pass).verdicts(), [(0, Verdict::Flaky)]);
}

#[test]
fn a_worker_that_knows_too_little_gets_nothing_more() {
    let mut script = Script::running(RULES, 10, 1);
    script.join(W1, 1, B0);
    let mut quarantined = Vec::new();
    // Test by test, whoever has it: fails on the one, passes on the other.
    let mut live: BTreeMap<u64, u32> = BTreeMap::from([(0, 0), (1, 1)]);
    while let Some((attempt, worker)) = live.pop_first() {
        match worker {
            0 => script.illegal(W0, attempt),
            _ => script.ended(W1, attempt, AttemptResult::Pass),
        };
        for effect in &script.said {
            match effect {
                Effect::Lease { worker, grants } => {
                    live.extend(grants.iter().map(|grant| (grant.attempt.0, worker.0)));
                }
                Effect::Quarantined { worker, fails } => quarantined.push((*worker, *fails)),
                _ => {}
            }
        }
    }
    assert_eq!(quarantined, [(W0, true)]);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}
