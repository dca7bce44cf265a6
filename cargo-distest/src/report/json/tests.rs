use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::*;
use crate::event::RunEvent;
use crate::failure::ExitCode;
use crate::model::{Step, WorkerId};
use crate::report::memory::shown;
use crate::results::SummarySettings;
use crate::results::script::{Script, every_verdict};

fn lines(script: &Script) -> Vec<Map<String, Value>> {
    let (stderr, stdout) = shown(script, |screen| Box::new(Json::new(screen)));
    assert_eq!(stderr, "");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `field: type` of CLI.md: S for strings, N for counts, F for seconds.
fn check_fields(line: &Map<String, Value>, expected: &[(&str, &str)]) {
    let kind = |value: &Value| match value {
        Value::String(_) => "S",
        Value::Number(number) if number.is_u64() => "N",
        Value::Number(_) => "F",
        Value::Array(_) => "A",
        _ => "?",
    };
    let found: BTreeMap<_, _> =
        line.iter().map(|(name, value)| (name.as_str(), kind(value))).collect();
    assert_eq!(found, expected.iter().copied().collect());
}

#[test]
fn lines_have_the_promised_fields() {
    let lines = lines(&every_verdict(SummarySettings::default()));
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
    check_fields(of("start")[0], &[("type", "S"), ("schema", "N"), ("run", "S"), ("version", "S")]);
    for test in of("test") {
        let strings =
            ["type", "binary_id", "name", "target", "result", "reason", "worker", "isolation"];
        let mut fields: Vec<_> = strings.map(|name| (name, "S")).into();
        fields.extend([("attempt", "N"), ("duration_s", "F")]);
        check_fields(test, &fields);
    }
    for verdict in of("verdict") {
        check_fields(verdict, &["type", "binary_id", "name", "verdict"].map(|name| (name, "S")));
    }
    let summary = of("summary")[0];
    let counts = [
        "exit_code",
        "tests",
        "passed",
        "failed",
        "flaky",
        "timed_out",
        "crashed",
        "skipped",
        "lost",
        "batched",
        "rerun_alone",
        "hedged",
        "listed",
        "shipped_bytes",
    ];
    let times = ["elapsed_s", "build_s", "ship_s", "first_result_s", "bound_s", "longest_test_s"];
    let mut fields = vec![("type", "S"), ("workers", "A")];
    fields.extend(counts.map(|name| (name, "N")));
    fields.extend(times.map(|name| (name, "F")));
    check_fields(summary, &fields);
    let worker = summary["workers"][1].as_object().unwrap();
    let fields =
        [("name", "S"), ("slots", "N"), ("tests", "N"), ("busy_s", "F"), ("shipped_bytes", "N")];
    check_fields(worker, &fields);
}

#[test]
fn a_workers_start_is_told_by_step() {
    let mut s = Script::new(SummarySettings::default(), &["far"]);
    for (step, ms) in [(Step::Connect, 210), (Step::Test, 7)] {
        let took = Duration::from_millis(ms);
        s.push(RunEvent::Step { worker: WorkerId(0), step, took });
    }
    s.built();
    s.planned();
    s.finish(ExitCode::Passed, false);
    let lines = lines(&s);
    let worker = &lines.last().unwrap()["workers"][0];
    assert_eq!(worker["start_s"], serde_json::json!({ "connect": 0.21, "test": 0.007 }));
}

#[test]
fn every_test_case_has_one_verdict_and_every_attempt_one_line() {
    let lines = lines(&every_verdict(SummarySettings::default()));
    let texts = |kind: &str, field: &str| {
        let of_kind = lines.iter().filter(|line| line["type"] == kind);
        of_kind
            .map(|line| format!("{} {}", line["name"], line[field]))
            .collect::<Vec<_>>()
            .join("\n")
    };
    insta::assert_snapshot!(texts("verdict", "verdict").replace('"', ""), @r"
    tests::ignored skipped
    tests::ok pass
    tests::bad fail
    tests::seg crashed
    hang timeout
    leak pass
    flaky flaky
    moved pass
    gone lost
    ");
    insta::assert_snapshot!(texts("test", "result").replace('"', ""), @r"
    tests::ok pass
    tests::bad fail
    tests::bad fail
    tests::seg crashed
    hang timeout
    leak leak
    flaky fail
    flaky pass
    moved lost
    moved pass
    gone lost
    ");
    let summary = lines.last().unwrap();
    let verdicts = ["passed", "failed", "flaky", "timed_out", "crashed", "skipped", "lost"];
    let sum = verdicts.iter().map(|name| summary[*name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(summary["tests"], sum);
    assert_eq!((&summary["exit_code"], &summary["passed"]), (&100.into(), &3.into()));
}

#[test]
fn a_build_error_has_its_summary_too() {
    let mut s = Script::new(SummarySettings::default(), &[]);
    s.push(RunEvent::Warning { text: "not for programs".to_owned(), hint: None });
    s.finish(ExitCode::BuildFailed, true);
    let lines = lines(&s);
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "summary"]);
    assert_eq!(lines[1]["exit_code"], 101);
}
