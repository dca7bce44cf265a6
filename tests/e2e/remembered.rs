//! What is remembered from one run to the next: of tests, of workers, and by workers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use distest_tests::client::Client;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Transcript;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;

use crate::case;
use crate::drain::authorize;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("remembered::workers_by_their_names_with_how_fast_they_are", names),
        case("remembered::times_by_workers_for_a_client_that_has_none", lent),
        case("remembered::what_cargo_says_of_a_workspace_until_it_changes", metadata),
    ]
}

/// A package whose tests sleep: the later in the alphabet, the longer.
fn subject(scratch: &Scratch) -> PathBuf {
    let manifest =
        "[workspace]\n[package]\nname = \"subject\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    scratch.write("subject/Cargo.toml", manifest);
    let tests = ["a", "b", "c", "d"].into_iter().zip([30, 60, 120, 240]);
    let source: String = tests
        .map(|(name, millis)| {
            let nap = format!("std::thread::sleep(std::time::Duration::from_millis({millis}))");
            format!("#[test]\nfn {name}() {{ {nap} }}\n")
        })
        .collect();
    scratch.write("subject/tests/it.rs", &source);
    scratch.write("subject/src/lib.rs", "");
    scratch.join("subject")
}

fn run(scratch: &Scratch, folder: &Path, history: &Path, workers: &[Worker]) -> Transcript {
    let args = ["run", "--offline", "--isolation", "process", "--history"];
    let client = Client::call(scratch, folder, &args).args([history]);
    client.json().only_on(workers).finish().transcript(0)
}

fn names(scratch: &Scratch) {
    let (folder, history) = (subject(scratch), scratch.join("history.sqlite"));
    let workers = [Worker::start(scratch, "hare", 1)];
    let is_known = || fs::read(&history).unwrap().windows(4).any(|bytes| bytes == b"hare");
    let first = run(scratch, &folder, &history, &workers);
    assert!(is_known(), "a worker that was met is remembered");
    let second = run(scratch, &folder, &history, &workers);
    assert_eq!((first.summary.passed, second.summary.passed), (4, 4));
}

/// Nobody but a worker knows how long tests take: it tells who told it, and nobody else, and goes on
/// to know it when it was killed.
fn lent(scratch: &Scratch) {
    let store = scratch.join("store");
    let start = || [Worker::start_with(scratch, "lender", 1, &store, Executable::Worker)];
    // One slot: tests end in the order in which they start.
    let order = |client: &Scratch, workers: &[Worker]| -> String {
        let args = ["run", "--offline", "--isolation", "process", "--no-history"];
        let client = Client::call(client, &subject(client), &args).json().only_on(workers);
        let transcript = client.finish().transcript(0);
        transcript.attempts.iter().map(|attempt| attempt.name.as_str()).collect()
    };
    let bob = Scratch::new();
    let workers = start();
    assert_eq!(order(scratch, &workers), "abcd", "nobody knows them");
    assert_eq!(order(scratch, &workers), "dcba", "the longest first");
    authorize(scratch, &bob, "run");
    assert_eq!(order(&bob, &workers), "abcd", "what is told by one is told to nobody else");
    drop(workers);
    assert_eq!(order(scratch, &start()), "dcba", "another process of the worker");
}

/// Runs until nothing is asked again: what has just been written is not relied upon for 2 s.
const RUNS_MAX: usize = 200;

/// cargo is asked what there is once, and again when a manifest or a folder of tests says more.
fn metadata(scratch: &Scratch) {
    let folder = subject(scratch);
    let log = scratch.join("calls");
    let real = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let script = format!("#!/bin/sh\necho \"$1\" >> '{}'\nexec '{real}' \"$@\"\n", log.display());
    let cargo = scratch.write("cargo", &script);
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o700)).unwrap();
    let run = |passed: u32| -> String {
        fs::write(&log, "").unwrap();
        let client = Client::call(scratch, &folder, &["run", "--offline"]).json();
        let client = client.args(["--no-tests", "pass"]);
        let transcript = client.env("CARGO", &cargo).finish().transcript(0);
        assert_eq!(transcript.summary.passed, passed);
        fs::read_to_string(&log).unwrap()
    };
    let (asked, known) = ("metadata\ntest\n", "test\n");
    let until_known = |passed| {
        let calls = (0..RUNS_MAX).map(|_| run(passed)).find(|calls| calls != asked);
        assert_eq!(calls.as_deref(), Some(known));
    };
    assert_eq!(run(4), asked, "it was never asked");
    until_known(4);
    scratch.write("subject/tests/more.rs", "#[test]\nfn e() {}\n");
    assert_eq!(run(5), asked, "there is one more target");
    until_known(5);
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    scratch.write("subject/Cargo.toml", &format!("{manifest}autotests = false\n"));
    assert_eq!(run(0), asked, "the manifest says that there are none");
    until_known(0);
}
