use super::*;
use crate::report::memory::{Memory, settings, shown, tell};
use crate::results::SummarySettings;
use crate::results::script::{Script, every_verdict, millis, output};

fn stderr(script: &Script, settings: &ReportSettings) -> String {
    shown(script, |screen| Box::new(Terminal::new(settings, screen))).0
}

#[test]
fn every_verdict_as_nextest_shows_it() {
    let script = every_verdict(SummarySettings::default());
    insta::assert_snapshot!(stderr(&script, &settings()));
}

#[test]
fn a_workers_start_is_shown_by_step_if_it_is_wanted() {
    let mut s = Script::new(SummarySettings::default(), &["far"]);
    s.built();
    s.planned();
    for (step, ms) in [(Step::Connect, 210), (Step::Files, 40), (Step::Test, 7)] {
        let took = Duration::from_millis(ms);
        s.push(RunEvent::Step { worker: WorkerId(0), step, took });
    }
    let line = "      Worker far had a first result after 0.257s: connect 0.210s, files 0.040s, \
                test 0.007s\n";
    assert!(!stderr(&s, &settings()).contains("first result"));
    let told = stderr(&s, &ReportSettings { verbose: true, ..settings() });
    assert!(told.contains(line), "{told}");
}

#[test]
fn at_the_end_with_everything() {
    let script = every_verdict(SummarySettings { keep_passes: true, ..Default::default() });
    let settings = ReportSettings {
        status_level: StatusLevel::None,
        final_status_level: StatusLevel::All,
        failure_output: OutputWhen::Final,
        success_output: OutputWhen::Final,
        ..settings()
    };
    insta::assert_snapshot!(stderr(&script, &settings));
}

#[test]
fn what_others_name_turns_nothing_around() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let a = s.plan("one", "x\u{202e}y\nz", None);
    s.planned();
    s.attempt(a, AttemptResult::Fail, 10, |ended| {
        ended.reason = "it says \u{2066}so".to_owned();
        ended.hints = vec!["see \x1b[2Jthere".to_owned()];
        ended.stdout = output("\u{202e}turned\n");
    });
    s.verdict(a, Verdict::Fail);
    s.push(RunEvent::Warning { text: "\u{202e}".to_owned(), hint: None });
    let told = stderr(&s, &settings());
    for line in [
        r"one x\u{202e}y\nz",
        r"(it says \u{2066}so)",
        r"see \u{1b}[2Jthere",
        r"warning: \u{202e}",
        r"\u{202e}turned",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(!told.contains('\u{202e}'));
}

#[test]
fn colours_change_nothing_but_colours() {
    let script = every_verdict(SummarySettings::default());
    let memory = Memory { colors: true, ..Default::default() };
    let memory = Rc::new(memory);
    tell(&script, &mut Terminal::new(&settings(), Rc::clone(&memory) as Rc<dyn Screen>));
    let colored = memory.stderr.take();
    assert!(colored.contains("out\x1b[31mred\x1b[0m"), "the test's own colours stay");
    let plain = super::super::text::clean(colored.as_bytes(), super::super::text::Escapes::None);
    assert_eq!(plain, stderr(&script, &settings()));
}

#[test]
fn cancelled_by_a_failure() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let tests = ["a", "b", "c", "d"].map(|name| s.plan("one", name, None));
    s.planned();
    s.attempt(tests[0], AttemptResult::Fail, 3, |_| {});
    s.verdict(tests[0], Verdict::Fail);
    s.push(RunEvent::Cancelling { reason: CancelReason::TestFailure, running: 1 });
    s.attempt(tests[1], AttemptResult::Pass, 5, |_| {});
    s.verdict(tests[1], Verdict::Pass);
    s.verdict(tests[2], Verdict::Lost);
    s.attempt(tests[3], AttemptResult::Lost, 0, |_| {});
    s.verdict(tests[3], Verdict::Lost);
    s.finish(ExitCode::TestsFailed, false);
    insta::assert_snapshot!(stderr(&s, &settings()));
}

#[test]
fn a_failed_build_leaves_the_terminal_to_cargo() {
    let mut s = Script::new(SummarySettings::default(), &["local", "w2"]);
    let test = s.plan("one", "a", None);
    s.attempt(test, AttemptResult::Fail, 3, |_| {});
    s.verdict(test, Verdict::Fail);
    s.push(RunEvent::Warning { text: "something".to_owned(), hint: None });
    s.finish(ExitCode::BuildFailed, true);
    assert_eq!(stderr(&s, &settings()), "");
}

#[test]
fn a_run_without_worker_says_why() {
    let mut s = Script::new(SummarySettings::default(), &[]);
    let (address, reason) = ("tcp://a:1".to_owned(), "refused".to_owned());
    s.push(RunEvent::WorkerUnusable { address, reason, hint: None });
    s.finish(ExitCode::NoWorker, true);
    assert_eq!(stderr(&s, &settings()), "warning: worker tcp://a:1 can't be used: refused\n");
}

#[test]
fn live_output_is_passed_on_as_it_is() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let test = s.plan("one", "a", None);
    s.planned();
    let live =
        |stream, data: &'static [u8]| RunEvent::LiveOutput { test, stream, data: data.into() };
    s.push(live(Stream::Stdout, b"running\x1b[2J\n"));
    s.push(live(Stream::Stderr, b"no newline"));
    s.attempt(test, AttemptResult::Pass, 5, |_| {});
    s.verdict(test, Verdict::Pass);
    s.finish(ExitCode::Passed, false);
    let (stderr, stdout) = shown(&s, |screen| Box::new(Terminal::new(&settings(), screen)));
    assert_eq!(stdout, "running\x1b[2J\n");
    let about = stderr.find("START").unwrap()..stderr.find("PASS").unwrap();
    assert_eq!(stderr[about].trim_end_matches(' '), "START [         ] (───) one a\nno newline\n");
}

#[test]
fn retries_and_outputs_of_passes_when_asked_for() {
    let mut s =
        Script::new(SummarySettings { flaky_fails: true, ..Default::default() }, &["local"]);
    s.built();
    let (flaky, ok) = (s.plan("one", "flaky", None), s.plan("one", "ok", None));
    s.planned();
    s.attempt(flaky, AttemptResult::Timeout, 3, |ended| ended.will_retry = true);
    s.attempt(flaky, AttemptResult::Pass, 3, |_| {});
    s.verdict(flaky, Verdict::Flaky);
    s.attempt(ok, AttemptResult::Pass, 2, |ended| ended.stdout = output("shown\n"));
    s.verdict(ok, Verdict::Pass);
    s.finish(ExitCode::TestsFailed, false);
    let settings = ReportSettings { success_output: OutputWhen::Immediate, ..settings() };
    insta::assert_snapshot!(stderr(&s, &settings));
}

#[test]
fn what_was_lost_is_numbered_and_took_no_try() {
    let mut s = Script::new(SummarySettings { retries: 1, ..Default::default() }, &["local"]);
    s.built();
    let test = s.plan("one", "a", None);
    s.planned();
    s.attempt(test, AttemptResult::Lost, 0, |_| {});
    s.attempt(test, AttemptResult::Fail, 3, |ended| ended.will_retry = true);
    s.attempt(test, AttemptResult::Pass, 3, |_| {});
    s.verdict(test, Verdict::Flaky);
    s.finish(ExitCode::Passed, false);
    let told = stderr(&s, &settings());
    let labels = ["TRY 1 LOST", "TRY 2 FAIL", "TRY 3 PASS", "FLAKY 3/3"];
    let places: Vec<_> = labels.iter().map(|label| told.find(label)).collect();
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{told}");
}

#[test]
fn what_bounds_a_run_is_its_work_where_no_test_is_long() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let tests = ["a", "b", "c"].map(|name| s.plan("one", name, None));
    s.planned();
    for test in tests {
        s.attempt(test, AttemptResult::Pass, 1000, |ended| ended.started = millis(2000));
        s.verdict(test, Verdict::Pass);
    }
    s.finish(ExitCode::Passed, false);
    let last = stderr(&s, &settings()).lines().last().unwrap().to_owned();
    assert_eq!(last, "  build 2.0 s · tests 1.0 s (bound 1.5 s: total work over 2 slots)");
}
