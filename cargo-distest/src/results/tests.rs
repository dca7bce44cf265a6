use super::script::{Script, every_verdict, millis};
use super::*;

#[test]
fn counts_add_up_and_nothing_is_open() {
    let summary = every_verdict(SummarySettings::default()).summary;
    let expected =
        Counts { passed: 3, failed: 1, flaky: 1, timed_out: 1, crashed: 1, skipped: 1, lost: 1 };
    assert_eq!(summary.counts(), expected);
    assert_eq!((summary.counts().tests(), summary.ran(), summary.done()), (9, 7, 8));
    assert_eq!((summary.open().count(), summary.running()), (0, 0));
    assert_eq!(summary.remaining(), Some(Duration::ZERO));
}

#[test]
fn outputs_are_kept_only_where_they_are_needed() {
    let kept = |keep_passes| {
        let script = every_verdict(SummarySettings { keep_passes, ..Default::default() });
        let tests = script.summary.tests().iter();
        tests.flat_map(|test| &test.attempts).filter(|attempt| attempt.full.is_some()).count()
    };
    assert_eq!((kept(false), kept(true)), (7, 11));
}

#[test]
fn the_end_is_derived_from_what_was_told() {
    let script = every_verdict(SummarySettings::default());
    let end = script.summary.finished().unwrap();
    assert_eq!((end.first_result, end.build), (Some(millis(2004)), millis(2000)));
    assert_eq!((end.testing, end.longest.as_ref().unwrap().1), (millis(1365), millis(1004)));
    assert_eq!(end.bound, millis(1004));
    let worker = |index: usize| (end.workers[index].tests, end.workers[index].busy);
    assert_eq!((worker(0), worker(1)), ((8, millis(1359)), (1, millis(6))));
    assert_eq!(end.workers[1].shipped_bytes, 4000);
}

#[test]
fn a_run_that_was_ended_says_what_it_did_until_then() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let [a, b] = ["a", "b"].map(|name| s.plan("one", name, None));
    s.planned();
    s.push(RunEvent::Cancelling { reason: CancelReason::Interrupt, running: 1 });
    s.attempt(a, AttemptResult::Lost, 700, |_| {});
    s.attempt(b, AttemptResult::Lost, 0, |_| {});
    [b, a].into_iter().for_each(|test| s.verdict(test, Verdict::Lost));
    s.finish(ExitCode::Interrupted, false);
    let end = s.summary.finished().unwrap();
    assert_eq!((end.testing, end.first_result), (millis(700), None));
    assert_eq!([a, b].map(|test| s.summary.test(test).place), [1, 0], "one of them ran");

    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.now = millis(300);
    s.push(RunEvent::Cancelling { reason: CancelReason::Interrupt, running: 0 });
    s.finish(ExitCode::Interrupted, false);
    let end = s.summary.finished().unwrap();
    assert_eq!((end.testing, end.build), (Duration::ZERO, millis(300)));
}

#[test]
fn the_bound_knows_as_many_slots_as_there_were_at_once() {
    let mut s = Script::new(SummarySettings::default(), &["far"]);
    let far = s.summary.workers().next().unwrap().info.as_ref().clone();
    for id in 7..9 {
        let info = WorkerInfo { id: WorkerId(id), ..far.clone() };
        s.push(RunEvent::WorkerJoined(Arc::new(info)));
        assert_eq!(s.summary.slots(), 4);
        let (reason, running, waiting) = (String::new(), 0, 0);
        s.push(RunEvent::WorkerLost { worker: WorkerId(id), reason, running, waiting });
        assert_eq!(s.summary.slots(), 2);
    }
    assert!(matches!(s.summary.bound(), Bound::Work(_, 4)));
}

#[test]
fn what_was_lost_for_good_before_a_run_was_cancelled_is_no_test_that_did_not_run() {
    let mut s = Script::new(SummarySettings::default(), &["far"]);
    s.built();
    let [lost, waiting] = ["lost", "waiting"].map(|name| s.plan("one", name, None));
    s.planned();
    s.attempt(lost, AttemptResult::Lost, 0, |_| {});
    s.attempt(lost, AttemptResult::Lost, 0, |_| {});
    s.verdict(lost, Verdict::Lost);
    s.push(RunEvent::Cancelling { reason: CancelReason::TestFailure, running: 0 });
    s.attempt(waiting, AttemptResult::Lost, 0, |_| {});
    s.verdict(waiting, Verdict::Lost);
    let not_run = |test| s.summary.not_run(s.summary.test(test));
    assert_eq!([lost, waiting].map(not_run), [false, true]);
}

#[test]
fn a_hedged_test_runs_until_its_last_attempt_that_counts_and_takes_time_once() {
    let mut s = Script::new(SummarySettings::default(), &["local", "far"]);
    s.built();
    let test = s.plan("one", "a", Some(500));
    s.planned();
    let from = s.now;
    let [here, there] = [0, 1].map(WorkerId);
    s.push(RunEvent::AttemptStarted { test, attempt: 1, worker: here });
    s.push(RunEvent::Hedged { test, attempt: 1, overdue: here, worker: there });
    s.now += millis(2000);
    s.attempt(test, AttemptResult::Fail, 400, |ended| {
        (ended.worker, ended.will_retry) = (there, true);
    });
    assert_eq!(s.summary.running(), 0);
    s.push(RunEvent::AttemptGoesOn { test, attempt: 2, worker: here });
    assert_eq!(s.summary.running(), 1);
    s.attempt(test, AttemptResult::Pass, 2500, |ended| ended.started = from);
    s.verdict(test, Verdict::Flaky);
    let numbers = s.summary.test(test).attempts.iter().map(|attempt| attempt.number);
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 2]);
    assert_eq!((s.summary.running(), s.summary.hedged()), (0, 1));
    assert_eq!(s.summary.test(test).duration(), millis(2500));
}

#[test]
fn flaky_tests_fail_a_run_only_when_asked_to() {
    let code = |flaky_fails| {
        let settings = SummarySettings { flaky_fails, ..Default::default() };
        let mut s = Script::new(settings, &["local"]);
        let test = s.plan("one", "a", None);
        s.attempt(test, AttemptResult::Fail, 1, |ended| ended.will_retry = true);
        s.attempt(test, AttemptResult::Pass, 1, |_| {});
        s.verdict(test, Verdict::Flaky);
        s.summary.exit_code()
    };
    assert_eq!((code(false), code(true)), (ExitCode::Passed, ExitCode::TestsFailed));
}

#[test]
fn what_remains_is_expected_or_like_what_was_measured() {
    let settings = SummarySettings { test_threads: Some(1), ..Default::default() };
    let mut s = Script::new(settings, &["local", "w2"]);
    let tests = [Some(700), None, None].map(|expected| s.plan("one", "a", expected));
    assert_eq!(s.summary.remaining(), None);
    s.attempt(tests[1], AttemptResult::Pass, 40, |_| {});
    s.verdict(tests[1], Verdict::Pass);
    assert_eq!(s.summary.remaining(), Some(millis(740)));
}

#[test]
#[should_panic(expected = "one a got a second verdict, lost")]
fn a_second_verdict_is_a_bug() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    let test = s.plan("one", "a", None);
    s.verdict(test, Verdict::Pass);
    s.verdict(test, Verdict::Lost);
}

#[test]
#[should_panic(expected = "one a got no verdict before the run's end")]
fn a_missing_verdict_is_a_bug() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.plan("one", "a", None);
    s.finish(ExitCode::Passed, false);
}
