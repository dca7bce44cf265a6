//! What `cargo distest plan` predicts, and that nothing runs for it.

use std::fs;
use std::path::{Path, PathBuf};

use distest_tests::client::{Client, Finished};
use distest_tests::product::product;
use distest_tests::scratch::Scratch;
use libtest_mimic::Trial;
use serde::Deserialize;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("plan::predicts_from_history", predicts),
        case("plan::the_curve_has_a_knee", knee),
        case("plan::knows_what_limits_a_run", limits),
        case("plan::doctests_come_last_and_take_their_time", doctests),
        case("plan::without_history_nothing_is_known", without_history),
        case("plan::tests_of_unknown_time_are_told", unknown),
        case("plan::no_test_left", no_test_left),
        case("plan::what_users_get_wrong", wrong),
    ]
}

/// A prediction under `--message-format json`.
#[derive(Debug, Deserialize, PartialEq)]
struct Predicted {
    workers: u32,
    slots: u32,
    time_s: f64,
    /// Of these, for doctests; none if their time is unknown.
    doctests_s: Option<f64>,
    limited_by: String,
    beyond_knee: bool,
}

/// Seconds that each of the six short tests sleeps at least.
const SHORT_S: f64 = 0.05;
/// Seconds that the long one does: no number of workers makes it shorter.
const LONG_S: f64 = 0.6;

/// A package whose every test that runs adds a line to the file `ran`: six short ones and a long one.
fn subject(scratch: &Scratch) -> PathBuf {
    let manifest =
        "[workspace]\n[package]\nname = \"subject\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    scratch.write("subject/Cargo.toml", manifest);
    let mut source = r#"
        fn nap(millis: u64) {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ran");
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            std::io::Write::write_all(&mut file.unwrap(), b"test\n").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(millis));
        }
        #[test]
        fn long() { nap(600) }
        #[test]
        #[ignore]
        fn ignored() { nap(0) }
    "#
    .to_owned();
    for number in 0..6 {
        source += &format!("#[test]\nfn short_{number}() {{ nap(50) }}\n");
    }
    scratch.write("subject/tests/it.rs", &source);
    scratch.write("subject/src/lib.rs", "");
    scratch.join("subject")
}

/// Runs all tests once, so that their times are known.
fn run(scratch: &Scratch, folder: &Path) {
    let args = ["run", "--offline", "--local-slots", "2"];
    let transcript = Client::call(scratch, folder, &args).json().finish().transcript(0);
    assert_eq!(transcript.summary.passed, 7);
}

/// Calls `plan`, and checks that no test was executed.
fn plan(scratch: &Scratch, folder: &Path, args: &[&str]) -> Finished {
    let ran = || fs::read(folder.join("ran")).unwrap_or_default();
    let before = ran();
    let finished = Client::call(scratch, folder, &["plan", "--offline"]).args(args).finish();
    assert_eq!(ran(), before, "plan runs no test");
    finished
}

/// The predictions of a plan, and nothing else on stdout.
fn predictions(scratch: &Scratch, folder: &Path, args: &[&str]) -> Vec<Predicted> {
    let finished = plan(scratch, folder, &[args, &["--message-format", "json"]].concat());
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let lines = finished.stdout.lines();
    let lines = lines.map(|line| serde_json::from_str(line).map_err(|error| (error, line)));
    lines.collect::<Result<_, _>>().unwrap_or_else(|(error, line)| panic!("{error} in {line}"))
}

fn predicts(scratch: &Scratch) {
    let folder = subject(scratch);
    run(scratch, &folder);
    let args = ["--workers", "1..3", "--slots", "1"];
    let predicted = predictions(scratch, &folder, &args);
    let asked: Vec<_> = predicted.iter().map(|it| (it.workers, it.slots)).collect();
    assert_eq!(asked, [(1, 1), (2, 1), (3, 1)]);
    // Of times that history knows, which are no shorter than what the tests sleep.
    assert!(predicted[0].time_s >= LONG_S + 6.0 * SHORT_S, "{predicted:?}");
    assert!(predicted[2].time_s >= LONG_S, "{predicted:?}");
    assert!(predicted.is_sorted_by(|a, b| a.time_s >= b.time_s), "{predicted:?}");
    // A plan is remembered nowhere: the next one says the same.
    assert_eq!(predictions(scratch, &folder, &args), predicted);

    let finished = plan(scratch, &folder, &args);
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let [first, predicted_lines @ ..] = &lines[..] else { panic!("{lines:?}") };
    assert!(first.starts_with("7 tests, ") && first.contains(" s, longest 0."), "{first}");
    assert_eq!(predicted_lines.len(), predicted.len(), "{lines:?}");
    for (line, Predicted { workers, slots, time_s, limited_by, .. }) in
        predicted_lines.iter().zip(&predicted)
    {
        let told = format!("{workers} × {slots} slots  {time_s:.2} s  limited by: {limited_by}");
        assert!(line.trim_start().starts_with(&told), "{line:?} says the same as {told:?}");
    }

    // One number alone; the default is eight.
    let one = predictions(scratch, &folder, &["--workers", "5"]);
    assert_eq!(one.iter().map(|it| it.workers).collect::<Vec<_>>(), [5]);
    assert_eq!(predictions(scratch, &folder, &[]).len(), 8);
    // What is selected is what is predicted.
    let short = predictions(scratch, &folder, &["short", "--workers", "1", "--slots", "1"]);
    assert!(short[0].time_s >= 6.0 * SHORT_S && short[0].time_s < predicted[0].time_s);
}

fn knee(scratch: &Scratch) {
    let folder = subject(scratch);
    run(scratch, &folder);
    let args = ["--workers", "1..64", "--slots", "1"];
    let predicted = predictions(scratch, &folder, &args);
    assert_eq!(predicted.len(), 64);
    // Seven workers have a test each; more can't help.
    assert!(!predicted[0].beyond_knee && predicted[8].beyond_knee, "{predicted:?}");
    assert!(predicted.is_sorted_by_key(|it| it.beyond_knee), "{predicted:?}");
    let first_beyond = predicted.iter().position(|it| it.beyond_knee).unwrap();
    let human = plan(scratch, &folder, &args).stdout;
    let marked: Vec<usize> = (0..)
        .zip(human.lines().skip(1))
        .filter(|(_, it)| it.contains("knee"))
        .map(|it| it.0)
        .collect();
    assert_eq!(marked, [first_beyond - 1], "the last that pays: {human}");
    let beyond = plan(scratch, &folder, &["--workers", "9..12", "--slots", "1"]).stdout;
    assert!(!beyond.contains("knee"), "it was before: {beyond}");
}

fn limits(scratch: &Scratch) {
    let folder = subject(scratch);
    run(scratch, &folder);
    let limited = |args: &[&str]| {
        let mut predicted = predictions(scratch, &folder, args);
        assert_eq!(predicted.len(), 1);
        predicted.remove(0)
    };
    assert_eq!(limited(&["--workers", "1", "--slots", "1"]).limited_by, "all slots are busy");
    // By itself: with others it may be tried in a batch, which then is longer.
    assert_eq!(limited(&["long", "--workers", "64"]).limited_by, "the longest test");
    let config = "[test-groups]\ndb = { max-threads = 1 }\n[[profile.default.overrides]]\n\
                  filter = 'test(short)'\ntest-group = 'db'\n[profile.serial]\ntest-threads = 1\n";
    scratch.write("subject/.config/distest.toml", config);
    let short = limited(&["short", "--workers", "64"]);
    assert_eq!(short.limited_by, "the test group db");
    assert!(short.time_s >= 6.0 * SHORT_S, "one after the other: {short:?}");
    let serial = limited(&["--workers", "8", "-P", "serial"]);
    assert_eq!(serial.limited_by, "the number of test threads");
    assert!(serial.time_s >= LONG_S + 6.0 * SHORT_S, "one after the other: {serial:?}");
    // Where a test may run is no matter of time: there are no workers to ask.
    let config = "[[profile.default.overrides]]\nfilter = 'test(long)'\nrequires = ['gpu=yes']\n\
                  remote-only = true\nthreads-required = 4\n";
    scratch.write("subject/.config/distest.toml", config);
    assert!(limited(&["--workers", "2", "--slots", "2"]).time_s >= LONG_S);
}

/// Seconds that a doctest sleeps: longer than all tests together.
const DOCTEST_S: f64 = 3.0;

fn doctests(scratch: &Scratch) {
    let folder = subject(scratch);
    run(scratch, &folder);
    let args = ["--workers", "1..8", "--slots", "1"];
    let without = predictions(scratch, &folder, &args);
    assert!(without.iter().all(|it| it.doctests_s == Some(0.0)), "{without:?}");
    let source = format!(
        "//! ```\n//! let path = concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/ran\");\n\
         //! std::fs::write(path, \"doctest\").unwrap();\n\
         //! std::thread::sleep(std::time::Duration::from_secs_f64({DOCTEST_S:?}));\n//! ```\n"
    );
    scratch.write("subject/src/lib.rs", &source);
    // A doctest of which nothing is known takes nobody knows how long.
    let unknown = predictions(scratch, &folder, &args);
    for (now, before) in unknown.iter().zip(&without) {
        assert_eq!((now.doctests_s, now.time_s), (None, before.time_s));
    }
    let human = plan(scratch, &folder, &args).stdout;
    let told = "; then 1 doctests on any number of workers, of unknown time, not counted";
    assert!(human.lines().next().is_some_and(|line| line.ends_with(told)), "{human}");
    plan(scratch, &folder, &["--doc"]).complains(96, &["known time", "cargo distest run"]);

    let ran = Client::call(scratch, &folder, &["run", "--offline", "--local-slots", "2"]);
    assert_eq!(ran.json().finish().transcript(0).summary.passed, 8);
    let with = predictions(scratch, &folder, &args);
    let takes = with[0].doctests_s.unwrap();
    assert!(takes >= DOCTEST_S, "{with:?}");
    for it in &with {
        assert_eq!(it.doctests_s, Some(takes));
        assert!(it.time_s >= takes + LONG_S, "{it:?}");
    }
    assert_eq!(with[7].limited_by, "the doctests");
    let doc = predictions(scratch, &folder, &["--doc", "--workers", "2"]);
    assert_eq!((doc[0].time_s, doc[0].limited_by.as_str()), (takes, "the doctests"));
    let none = predictions(scratch, &folder, &["--tests", "--workers", "2"]);
    assert_eq!(none[0].doctests_s, Some(0.0));
}

fn without_history(scratch: &Scratch) {
    let folder = subject(scratch);
    for format in ["human", "json"] {
        let finished = plan(scratch, &folder, &["--message-format", format]);
        finished.complains(96, &["error", "known time", "cargo distest run"]);
        assert_eq!(finished.stdout, "", "stdout");
    }
    run(scratch, &folder);
    let finished = plan(scratch, &folder, &["--no-history"]);
    finished.complains(96, &["known time", "without --no-history"]);
    // Another file is another history.
    let other = scratch.join("other.sqlite").display().to_string();
    plan(scratch, &folder, &["--history", &other]).complains(96, &["known time"]);
}

fn unknown(scratch: &Scratch) {
    let folder = subject(scratch);
    run(scratch, &folder);
    let finished = plan(scratch, &folder, &["--run-ignored", "all", "--workers", "1"]);
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let first = finished.stdout.lines().next().unwrap_or_default();
    assert!(first.starts_with("8 tests, ") && first.contains("1 of unknown time"), "{first}");
}

fn no_test_left(scratch: &Scratch) {
    let folder = subject(scratch);
    let none = |args: &[&str]| plan(scratch, &folder, &[&["no_such_test"], args].concat());
    none(&[]).complains(4, &["no tests to plan (8 skipped)"]);
    none(&["--no-tests", "warn"]).complains(0, &["warning", "no tests to plan"]);
    let passed = none(&["--no-tests", "pass", "--message-format", "json"]);
    assert_eq!((passed.code(), &*passed.stdout), (0, ""), "{}", passed.stderr);
}

fn wrong(scratch: &Scratch) {
    let folder = subject(scratch);
    let wrong = |args: &[&str], exit_code, text: &str| {
        let finished = plan(scratch, &folder, args);
        finished.complains(exit_code, &["error", text]);
        assert_eq!(finished.stdout, "", "stdout under {args:?}");
    };
    for workers in ["0", "8..1", "..", "many", "1..1000000"] {
        wrong(&["--workers", workers], 2, "1..64");
    }
    wrong(&["--slots", "0"], 2, "--slots");
    wrong(&["--slots", "4000000000"], 2, "--slots");
    wrong(&["-E", "test(=unclosed"], 94, "unclosed");
    wrong(&["-P", "no-such-profile"], 96, "no-such-profile");
    run(scratch, &folder);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = scratch
        .command(&product().client)
        .args(["plan", "--offline"])
        .current_dir(&folder)
        .stdout(full)
        .output()
        .expect("cargo-distest can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(110), "{told}");
    // Last, as nothing can be built any more.
    scratch.write("subject/src/lib.rs", "fn");
    wrong(&[], 101, "src/lib.rs");
}
