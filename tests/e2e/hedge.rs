//! Overdue attempts that are started once more at the end of a run.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use distest_tests::accept;
use distest_tests::client::Client;
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Case, Transcript};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("hedge::the_first_of_two_decides_and_the_other_is_killed", first_decides),
        case("hedge::if_one_of_two_fails_the_other_is_the_next_try", other_is_next),
        case("hedge::nobody_is_hedged_by_default_or_in_a_group", never),
    ]
}

/// A package with one test, which passes or fails when it is told to, and says that it was.
fn subject(scratch: &Scratch, port: u16, config: &str) -> PathBuf {
    let manifest =
        "[workspace]\n[package]\nname = \"subject\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    scratch.write("subject/Cargo.toml", manifest);
    let source = format!(
        r#"
        #[test]
        fn asks() {{
            use std::io::{{Read, Write}};
            let mut who = std::net::TcpStream::connect(("127.0.0.1", {port})).unwrap();
            let mut told = [0];
            who.read_exact(&mut told).unwrap();
            who.write_all(b"!").unwrap();
            assert_eq!(told, *b"!");
        }}
        "#
    );
    scratch.write("subject/tests/it.rs", &source);
    scratch.write("subject/src/lib.rs", "");
    scratch.write("subject/.config/distest.toml", config);
    scratch.join("subject")
}

fn run(scratch: &Scratch, folder: &Path, workers: &[Worker]) -> Client {
    let junit = scratch.join("junit.xml").display().to_string();
    let args = ["run", "--offline", "--isolation", "process", "--junit", &junit];
    Client::call(scratch, folder, &args).json().only_on(workers)
}

fn let_go(process: &mut TcpStream) {
    tell(process, b"!");
}

fn let_fail(process: &mut TcpStream) {
    tell(process, b"?");
}

fn tell(process: &mut TcpStream, what: &[u8]) {
    process.write_all(what).expect("a test waits");
    process.read_exact(&mut [0]).expect("the test says that it was told");
}

/// Lets as many processes go as come.
fn let_all_go(listener: &TcpListener, count: usize) -> JoinHandle<()> {
    let listener = listener.try_clone().expect("a listener can be shared");
    std::thread::spawn(move || {
        for _ in 0..count {
            let_go(&mut accept(&listener));
        }
    })
}

/// The run once more, now that the test's time is known; the first process is kept waiting.
fn stalled(
    scratch: &Scratch,
    config: &str,
    while_waiting: impl FnOnce(&TcpListener, TcpStream),
) -> Transcript {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let folder = subject(scratch, port, config);
    let workers = Worker::fleet(scratch, 2, 1);
    let letting = let_all_go(&listener, 1);
    let first = run(scratch, &folder, &workers).finish().transcript(0);
    assert_eq!((first.summary.passed, first.summary.hedged), (1, 0));
    letting.join().expect("the test came");
    let running = run(scratch, &folder, &workers).start();
    while_waiting(&listener, accept(&listener));
    let finished = running.finish();
    let transcript = finished.transcript(0);
    // Whoever was ended last is heard before its session is over, and nobody is dialled again
    // meanwhile.
    assert!(!finished.stderr.contains("may be missing"), "{}", finished.stderr);
    for worker in &workers {
        let log = worker.log();
        let run = |line: &&str| line.contains(&transcript.start.run) && line.contains("begins");
        assert_eq!(log.lines().filter(run).count(), 1, "one session in each run: {log}");
    }
    transcript
}

fn first_decides(scratch: &Scratch) {
    let config = "[profile.default]\nhedge = \"tail\"\n";
    let transcript = stalled(scratch, config, |listener, mut stalled| {
        let mut second = accept(listener);
        let_go(&mut second);
        // It was never told to go on.
        assert_eq!(stalled.read(&mut [0]).unwrap_or(0), 0, "the first process is killed");
    });
    assert_eq!(attempts(&transcript), [(1, AttemptResult::Pass)]);
    assert_eq!((transcript.summary.passed, transcript.summary.hedged), (1, 1));
    let report = Report::read(&scratch.join("junit.xml")).expect("the JUnit file can be read");
    let asks = &report.cases[&asks()];
    assert_eq!((asks.failed, asks.text.as_str()), (false, ""), "nothing of the other");
}

fn other_is_next(scratch: &Scratch) {
    let config = "[profile.default]\nhedge = \"tail\"\nretries = 1\n";
    let transcript = stalled(scratch, config, |listener, mut stalled| {
        let mut second = accept(listener);
        let_fail(&mut second);
        // What goes on is still overdue.
        let mut third = accept(listener);
        let_go(&mut stalled);
        assert_eq!(third.read(&mut [0]).unwrap_or(0), 0, "the third process is killed");
    });
    assert_eq!(attempts(&transcript), [(1, AttemptResult::Fail), (2, AttemptResult::Pass)]);
    assert_eq!((transcript.summary.flaky, transcript.summary.hedged), (1, 1));
    let report = Report::read(&scratch.join("junit.xml")).expect("the JUnit file can be read");
    let asks = &report.cases[&asks()];
    assert!(!asks.failed && asks.text.contains("try 1"), "{asks:?}");
    assert!(!asks.text.contains("try 3"), "{asks:?}");
}

fn asks() -> Case {
    Case::new("subject::it", "asks")
}

fn attempts(transcript: &Transcript) -> Vec<(u32, AttemptResult)> {
    let attempts = transcript.attempts_of(&asks());
    attempts.into_iter().map(|attempt| (attempt.attempt, attempt.result)).collect()
}

fn never(scratch: &Scratch) {
    // Longer than it would take until it is overdue.
    const OVERDUE: std::time::Duration = std::time::Duration::from_millis(1_500);
    let grouped = "[test-groups]\nlone = { max-threads = 1 }\n\
                   [profile.default]\nhedge = \"tail\"\n\
                   [[profile.default.overrides]]\nfilter = \"all()\"\ntest-group = \"lone\"\n";
    for config in ["", grouped] {
        let transcript = stalled(scratch, config, |listener, mut stalled| {
            std::thread::sleep(OVERDUE);
            let_go(&mut stalled);
            listener.set_nonblocking(true).expect("a listener can be asked");
            assert!(listener.accept().is_err(), "nobody comes a second time");
        });
        assert_eq!((transcript.summary.passed, transcript.summary.hedged), (1, 0));
    }
}
