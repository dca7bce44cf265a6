//! Ctrl-C once, and twice.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Verdict;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::case;

/// What ignores SIGTERM is killed after this long, which nobody waits for here.
const GRACE: &str = "[profile.default]\nslow-timeout = { period = '1h', grace-period = '1h' }\n";
/// Between the first signal and the second.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("signals::ctrl_c_writes_the_reports_embedded", |scratch| once(scratch, &[])),
        case("signals::ctrl_c_writes_the_reports_with_workers", |scratch| {
            once(scratch, &Worker::fleet(scratch, 2, 2));
        }),
        case("signals::ctrl_c_twice_kills_embedded", |scratch| twice(scratch, &[])),
        case("signals::ctrl_c_twice_kills_on_a_worker", |scratch| {
            twice(scratch, &Worker::fleet(scratch, 1, 1));
        }),
    ]
}

fn once(scratch: &Scratch, workers: &[Worker]) {
    let fixture = Fixture::named("naps");
    let junit = scratch.join("junit.xml");
    let mut client = Client::run(scratch, &fixture).args([
        "--isolation".as_ref(),
        "process".as_ref(),
        "--junit".as_ref(),
        junit.as_os_str(),
    ]);
    if !workers.is_empty() {
        client = client.only_on(workers);
    }
    let mut run = client.start();
    run.until_attempts(20);
    run.signal(Signal::SIGINT);
    let transcript = run.finish().transcript(130);

    let passed = transcript.count(Verdict::Pass);
    assert!((20..600).contains(&passed), "{passed} tests passed before the end");
    assert_eq!(transcript.verdicts.len(), 600, "tests that have a verdict");
    let report = Report::read(&junit).expect("the JUnit file can be read");
    for (case, verdict) in &transcript.verdicts {
        match (verdict, report.cases.get(case)) {
            (Verdict::Pass, Some(told)) => assert!(!told.failed && !told.skipped, "{case}"),
            (Verdict::Pass, None) => panic!("JUnit lacks {case}, which passed"),
            (_, told) => assert!(told.is_none_or(|told| told.failed || told.skipped), "{case}"),
        }
    }
}

fn twice(scratch: &Scratch, workers: &[Worker]) {
    let fixture = Fixture::named("slow");
    let name = "tests::hangs_and_ignores_sigterm";
    let config = scratch.write("patient.toml", GRACE);
    let mut client = Client::run_human(scratch, &fixture).args(["--config-file"]).args([config]);
    if !workers.is_empty() {
        client = client.only_on(workers);
    }
    // Behind the `--` are libtest's arguments: ours come before.
    let run = client.args(["--run-ignored", "all", name, "--", "--exact"]).start();
    scratch.wait_for(name, |process| {
        process.pid != run.pid()
            && process.command_line.contains(name)
            && ignores_sigterm(process.pid)
    });
    run.signal(Signal::SIGINT);
    // Nothing tells from outside that the first has been taken, so the second is sent until the
    // run ends: a third means no more than a second.
    let finished = thread::scope(|scope| {
        let (done, ended) = channel::<()>();
        let pid = Pid::from_raw(run.pid().cast_signed());
        scope.spawn(move || {
            while ended.recv_timeout(AGAIN_AFTER) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGINT);
            }
        });
        let finished = run.finish();
        drop(done);
        finished
    });
    assert_eq!(finished.code(), 130, "{}", finished.stderr);
    assert!(finished.stderr.contains(" · tests "), "{}", finished.stderr);
    assert!(!finished.stderr.contains("tests 0.00 s"), "{}", finished.stderr);
}

fn ignores_sigterm(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (Signal::SIGTERM as u64 - 1)) != 0
}
