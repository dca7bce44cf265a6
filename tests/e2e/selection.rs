//! Which tests run, how often, and when a run stops early.

use std::collections::BTreeSet;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Case, Verdict};
use libtest_mimic::Trial;

use crate::case;

const ADDING: [&str; 5] = [
    "basic tests::adds",
    "basic::bench/tally bench_adds",
    "basic::bin/basic tests::adds",
    "basic::example/demo example_adds",
    "basic::integration nested::adds",
];
const IGNORED: [&str; 2] = ["basic tests::ignored", "basic tests::ignored_and_fails"];

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("select::filter_is_a_part_of_a_name", |scratch| {
            check(scratch, &["adds"], 0, &ADDING);
        }),
        case("select::several_filters_are_alternatives", |scratch| {
            let expected = ["basic::example/demo example_adds", "basic::integration nested::adds"];
            check(scratch, &["example_adds", "nested"], 0, &expected);
        }),
        case("select::filterset", |scratch| {
            let filterset = "binary_id(basic::integration) and test(=nested::adds)";
            check(scratch, &["-E", filterset], 0, &["basic::integration nested::adds"]);
        }),
        case("select::filtersets_are_alternatives", |scratch| {
            let args = ["-E", "test(=bench_adds)", "-E", "test(=example_adds)"];
            let expected = ["basic::bench/tally bench_adds", "basic::example/demo example_adds"];
            check(scratch, &args, 0, &expected);
        }),
        case("select::skip", |scratch| {
            let args = ["adds", "--", "--skip", "tests::", "--skip", "bench"];
            let expected = ["basic::example/demo example_adds", "basic::integration nested::adds"];
            check(scratch, &args, 0, &expected);
        }),
        case("select::exact", |scratch| {
            let expected = ["basic tests::adds", "basic::bin/basic tests::adds"];
            check(scratch, &["tests::adds", "--", "--exact"], 0, &expected);
        }),
        case("select::run_ignored_only", |scratch| {
            check(scratch, &["--nff", "--run-ignored", "only"], 100, &IGNORED);
            check(scratch, &["--nff", "--", "--ignored"], 100, &IGNORED);
        }),
        case("select::run_ignored_all", |scratch| {
            let all: Vec<String> =
                Fixture::named("basic").model.verdicts.keys().map(Case::to_string).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            check(scratch, &["--nff", "--run-ignored", "all"], 100, &all);
            check(scratch, &["--nff", "--", "--include-ignored"], 100, &all);
        }),
        case("select::no_test_left", |scratch| {
            check(scratch, &["no_such_test"], 4, &[]);
            check(scratch, &["no_such_test", "--no-tests", "fail"], 4, &[]);
            check(scratch, &["no_such_test", "--no-tests", "pass"], 0, &[]);
            check(scratch, &["no_such_test", "--no-tests", "warn"], 0, &[]);
            let finished = Client::run_human(scratch, &Fixture::named("basic"))
                .args(["no_such_test", "--no-tests", "warn"])
                .finish();
            finished.complains(0, &["warning", "no tests"]);
        }),
        case("select::build_flags_are_cargos", |scratch| {
            check(scratch, &["--lib", "tests::adds"], 0, &["basic tests::adds"]);
            check(scratch, &["--test", "integration", "nested"], 0, &[ADDING[4]]);
        }),
        case("select::list_is_the_model", list_is_the_model),
        case("retries::none_by_default", no_retries_by_default),
        case("retries::flaky_result", flaky_result),
        case("fail_fast::is_the_default", |scratch| stops_after(scratch, &[], 1)),
        case("fail_fast::max_fail", |scratch| stops_after(scratch, &["--max-fail", "3"], 3)),
        case("fail_fast::max_fail_all", |scratch| {
            stops_after(scratch, &["--max-fail", "all"], 7);
        }),
        case("fail_fast::immediate_ends_what_runs", immediate),
    ]
}

/// Runs `basic` and compares what was not left out.
fn check(scratch: &Scratch, args: &[&str], exit_code: i32, expected: &[&str]) {
    let fixture = Fixture::named("basic");
    let transcript = Client::run(scratch, &fixture).args(args).finish().transcript(exit_code);
    let ran = transcript.verdicts.iter().filter(|(_, verdict)| **verdict != Verdict::Skipped);
    let ran: BTreeSet<String> = ran.map(|(case, _)| case.to_string()).collect();
    let expected: BTreeSet<String> = expected.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(ran, expected, "what {args:?} selects");
}

fn list_is_the_model(scratch: &Scratch) {
    for name in ["basic", "mimic", "workspace"] {
        let fixture = Fixture::named(name);
        let finished = Client::call(
            scratch,
            &fixture.root,
            &["list", "--workspace", "--run-ignored", "all", "--message-format", "oneline"],
        )
        .env("CARGO_TARGET_DIR", &fixture.target_dir)
        .finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
        let told: BTreeSet<String> = finished.stdout.lines().map(str::to_owned).collect();
        let model = fixture.model.verdicts.keys().map(Case::to_string).collect();
        assert_eq!(told, model, "the list of {name}");
    }
}

fn no_retries_by_default(scratch: &Scratch) {
    let fixture = Fixture::named("flaky");
    let transcript = Client::run(scratch, &fixture).args(["--nff"]).finish().transcript(100);
    let of = |name: &str| transcript.results(&Case::new("flaky", name));
    assert_eq!(of("tests::passes_at_once"), [AttemptResult::Pass]);
    assert_eq!(of("tests::passes_at_the_second_attempt"), [AttemptResult::Fail]);
    assert_eq!(of("tests::crashes_at_the_first_attempt"), [AttemptResult::Crashed]);
    assert_eq!(transcript.summary.flaky, 0);
}

fn flaky_result(scratch: &Scratch) {
    let fixture = Fixture::named("flaky");
    let run = |result: &str| {
        let args = ["passes_at_the", "--nff", "--retries", "2", "--flaky-result", result];
        Client::run(scratch, &fixture).args(args).finish()
    };
    assert_eq!(run("pass").transcript(0).summary.flaky, 2);
    run("fail").transcript(100);
}

/// Runs seven failing tests one after the other.
fn stops_after(scratch: &Scratch, args: &[&str], failures: usize) {
    let fixture = Fixture::named("output");
    let client = Client::run(scratch, &fixture).args(["-j1"]).args(args);
    let transcript = client.finish().transcript(100);
    assert_eq!(transcript.count(Verdict::Fail), failures, "failures before the end");
    let known: BTreeSet<&Case> = transcript.verdicts.keys().collect();
    assert_eq!(known, fixture.model.verdicts.keys().collect(), "tests that have a verdict");
}

fn immediate(scratch: &Scratch) {
    let fixture = Fixture::named("slow");
    let failing = "tests::leaves_a_child_in_another_session_and_fails";
    let filterset = format!("test(=tests::hangs) + test(={failing})");
    let args = ["--max-fail", "1:immediate", "--local-slots", "2", "-E", &filterset];
    // Would take ten minutes if what runs were waited for.
    let transcript = Client::run(scratch, &fixture).args(args).finish().transcript(100);
    assert_eq!(transcript.verdicts[&Case::new("slow", failing)], Verdict::Fail);
}
