//! Doctests: when they run, and which.

use std::collections::BTreeMap;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Verdict;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;

use crate::case;
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("doctests::selected_as_cargo_selects_them", selected),
        case("doctests::none_where_a_nextest_configuration_is_in_force", nextest_configuration),
        case("doctests::filters_and_retries_hold_for_them", filters),
        case("doctests::a_failing_library_keeps_the_next_from_running", fail_fast),
        case("doctests::are_listed", listed),
        case("doctests::an_interrupt_ends_them", interrupted),
        case("doctests::that_no_worker_takes_run_here_and_this_is_told", no_worker_takes_them),
    ]
}

/// How many doctests came to which verdict.
fn counts(
    scratch: &Scratch,
    fixture: &Fixture,
    args: &[&str],
    code: i32,
) -> BTreeMap<Verdict, usize> {
    let transcript = Client::run(scratch, fixture).args(args).finish().transcript(code);
    let mut counts = BTreeMap::new();
    for verdict in transcript.verdicts.values() {
        *counts.entry(*verdict).or_default() += 1;
    }
    counts
}

fn selected(scratch: &Scratch) {
    let fixture = Fixture::named("doctests");
    let all = BTreeMap::from([(Verdict::Pass, 12), (Verdict::Fail, 6), (Verdict::Skipped, 2)]);
    assert_eq!(counts(scratch, &fixture, &["--doc", "--no-fail-fast"], 100), all);
    let unit = BTreeMap::from([(Verdict::Pass, 1)]);
    assert_eq!(counts(scratch, &fixture, &["--lib"], 0), unit);

    let half = BTreeMap::from([(Verdict::Pass, 6), (Verdict::Fail, 3), (Verdict::Skipped, 1)]);
    assert_eq!(counts(scratch, &fixture, &["-p", "older", "--no-fail-fast"], 100), half);
}

/// What rustdoc keeps to itself: a shim's words about where it runs.
fn no_worker_takes_them(scratch: &Scratch) {
    let folder = package(scratch, "");
    let doctest =
        "//! ```\n//! assert!(std::fs::exists(env!(\"CARGO_MANIFEST_DIR\")).unwrap());\n//! ```\n";
    scratch.write("subject/src/lib.rs", &[doctest, doctest].join("//!\n"));
    let (store, executable) = (scratch.join("store-plain"), Executable::Worker);
    let worker = Worker::start_changed(scratch, "plain", 1, &store, executable, |command| {
        command.args(["--sandbox", "variables"]);
    });
    let run = Client::call(scratch, &folder, &["run", "--offline", "--doc"]);
    let finished = run.only_on(std::slice::from_ref(&worker)).finish();
    let told = "doctests run on this machine: worker plain does not take doctests: ";
    finished.complains(0, &[told, "is compiled into it", "2 passed"]);
    assert_eq!(finished.stderr.matches(told).count(), 1, "{}", finished.stderr);
}

fn nextest_configuration(scratch: &Scratch) {
    let fixture = Fixture::copied("doctests", scratch);
    let folder = fixture.root.join(".config");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("nextest.toml"), "[profile.default]\n").unwrap();
    assert_eq!(counts(scratch, &fixture, &[], 0), BTreeMap::from([(Verdict::Pass, 1)]));
}

fn filters(scratch: &Scratch) {
    let fixture = Fixture::named("doctests");
    let args = ["--no-fail-fast", "--retries", "1", "-E", "package(older) & test(/two/)"];
    let transcript = Client::run(scratch, &fixture).args(args).finish().transcript(100);
    let ran: Vec<_> =
        transcript.verdicts.iter().filter(|(_, verdict)| **verdict != Verdict::Skipped).collect();
    let [(case, Verdict::Fail)] = ran[..] else { panic!("another selection: {ran:?}") };
    assert_eq!(transcript.results(case).len(), 2, "attempts");
    assert_eq!(transcript.verdicts.len(), 20);
}

fn fail_fast(scratch: &Scratch) {
    let fixture = Fixture::named("doctests");
    let expected = BTreeMap::from([
        (Verdict::Pass, 7),
        (Verdict::Fail, 3),
        (Verdict::Lost, 9),
        (Verdict::Skipped, 2),
    ]);
    assert_eq!(counts(scratch, &fixture, &[], 100), expected);
}

fn listed(scratch: &Scratch) {
    let fixture = Fixture::named("doctests");
    let list = |args: &[&str]| {
        let mut client =
            Client::call(scratch, &fixture.root, &["list", "--message-format", "oneline"]);
        client = client.env("CARGO_TARGET_DIR", &fixture.target_dir).args(args);
        client.finish().stdout
    };
    let told = list(&[]);
    assert!(told.contains("newer::doc/newer newer/src/lib.rs - two (line 7)\n"), "{told}");
    assert_eq!(told.lines().count(), 19, "{told}");
    assert_eq!(list(&["--lib"]), "newer tests::no_doctest\n");
}

fn interrupted(scratch: &Scratch) {
    let fixture = Fixture::copied("doctests", scratch);
    let source = fixture.root.join("older/src/lib.rs");
    let endless = "//! ```\n//! loop { std::thread::sleep(std::time::Duration::MAX) }\n//! ```\n";
    std::fs::write(source, endless).unwrap();
    let running = Client::run(scratch, &fixture).args(["-p", "older"]).start();
    scratch.wait_for("the endless doctest", |stray| {
        stray.executable.file_name().is_some_and(|name| name == "rust_out")
    });
    running.signal(nix::sys::signal::Signal::SIGINT);
    let transcript = running.finish().transcript(130);
    assert_eq!(transcript.verdicts.into_values().collect::<Vec<_>>(), [Verdict::Lost]);
}
