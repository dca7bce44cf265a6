//! What people read: the terminal and the reports.

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Case;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("output::people_see_failures_and_the_bound", people_see_failures),
        case("output::junit_holds_what_failing_tests_wrote", junit_holds_output),
        case("output::no_capture_embedded", |scratch| no_capture(scratch, &[])),
        case("output::no_capture_on_a_worker", |scratch| {
            no_capture(scratch, &Worker::fleet(scratch, 1, 1));
        }),
        case("output::json_is_all_there_is_on_stdout", json_only),
        case("output::needs_no_configuration", needs_no_configuration),
    ]
}

fn people_see_failures(scratch: &Scratch) {
    let fixture = Fixture::named("basic");
    let finished = Client::run_human(scratch, &fixture).args(["--no-fail-fast"]).finish();
    finished.complains(
        100,
        &["basic tests::fails", "two and two", "an error, not a panic", "bound", "build"],
    );
    let told = &finished.stderr;
    assert!(!told.contains('\u{1b}'), "colours where no terminal is:\n{told}");
    reproduces(scratch, &fixture, told);
}

/// Carries out what the report says would run the failed test again.
fn reproduces(scratch: &Scratch, fixture: &Fixture, told: &str) {
    let commands = told.lines().filter_map(|line| line.trim().strip_prefix("reproduce: "));
    let command = commands.into_iter().find(|command| command.contains("test(=tests::fails)"));
    let command = command.unwrap_or_else(|| panic!("nothing reproduces the failure:\n{told}"));
    let client = distest_tests::product::product().client.clone();
    let arguments = command.strip_prefix("cargo distest").expect("it is a call of ours");
    let output = scratch
        .command("sh")
        .args(["-c", &format!("'{}'{arguments}", client.display())])
        .current_dir(&fixture.root)
        .env("CARGO_TARGET_DIR", &fixture.target_dir)
        .output()
        .expect("a shell can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(100), "{told}");
    assert!(told.contains("1 test run: 0 passed, 1 failed"), "{told}");
}

fn junit_holds_output(scratch: &Scratch) {
    let fixture = Fixture::named("output");
    let junit = scratch.join("junit.xml");
    let args = ["--no-fail-fast".as_ref(), "--junit".as_ref(), junit.as_os_str()];
    Client::run(scratch, &fixture).args(args).finish().transcript(100);
    let report = Report::read(&junit).expect("the JUnit file can be read");
    for (name, written) in [
        ("tests::writes_bytes_that_are_not_utf8", "before "),
        ("tests::writes_colours", "red"),
        ("tests::writes_control_characters", "backspace"),
        ("tests::writes_markup", "</testcase>"),
        ("tests::writes_no_newline_at_the_end", "no newline at the end"),
        ("tests::writes_what_looks_like_a_result", "test result: ok. 1 passed"),
    ] {
        let told = &report.cases[&Case::new("output", name)];
        assert!(told.text.contains(written), "{name} wrote {written:?}, JUnit has {:?}", told.text);
        assert!(told.text.contains("to have its output reported"), "no panic message of {name}");
    }
}

fn no_capture(scratch: &Scratch, workers: &[Worker]) {
    let fixture = Fixture::named("output");
    let mut client = Client::run_human(scratch, &fixture)
        .args(["--no-capture", "reads_its_standard_input"])
        .stdin(b"typed by hand");
    if !workers.is_empty() {
        client = client.only_on(workers);
    }
    let finished = client.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let all = format!("{}{}", finished.stdout, finished.stderr);
    assert!(all.contains("stdin: \"typed by hand\""), "not what the test wrote:\n{all}");
}

fn json_only(scratch: &Scratch) {
    let fixture = Fixture::named("crash");
    let finished = Client::run(scratch, &fixture).args(&fixture.model.args).finish();
    // Every line has been parsed; nothing else may be there.
    let transcript = finished.transcript(100);
    assert!(finished.stdout.ends_with("}\n"));
    assert_eq!(transcript.verdicts.len(), fixture.model.verdicts.len());
}

fn needs_no_configuration(scratch: &Scratch) {
    // From elsewhere, as in the README, and without its own name as an argument.
    let fixture = Fixture::named("basic");
    let manifest = fixture.root.join("Cargo.toml");
    let mut command = scratch.command(&distest_tests::product::product().client);
    command
        .args(["run", "--no-fail-fast", "--manifest-path"])
        .arg(&manifest)
        .env("CARGO_TARGET_DIR", &fixture.target_dir)
        .current_dir(scratch.path());
    let output = command.output().expect("cargo-distest can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(100), "{told}");
    assert!(told.contains("10 tests run"), "no summary line in cargo-nextest's manner:\n{told}");
}
