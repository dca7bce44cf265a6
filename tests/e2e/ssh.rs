//! Workers that are started through a real sshd, with nothing installed behind it.

use std::fs;
use std::path::Path;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::sshd::{Sshd, possible};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{GONE_WITHIN, case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case_if("ssh::nothing_is_installed_and_the_copy_is_used_again", possible, copies_once),
        case_if("ssh::a_failed_run_leaves_nothing", possible, |scratch| {
            ends(scratch, "basic", |run| assert_eq!(run.finish().code(), 100));
        }),
        case_if("ssh::an_interrupted_run_leaves_nothing", possible, |scratch| {
            ends(scratch, "naps", |mut run| {
                run.until_attempts(20);
                run.signal(Signal::SIGINT);
                assert_eq!(run.finish().code(), 130);
            });
        }),
        case_if("ssh::a_killed_client_leaves_nothing", possible, |scratch| {
            ends(scratch, "naps", |mut run| {
                run.until_attempts(20);
                run.signal(Signal::SIGKILL);
                drop(run);
            });
        }),
        case_if("ssh::a_login_that_fails_is_told", possible, no_login),
        case("ssh::a_host_cannot_be_an_option", dash),
    ]
}

fn run_on(scratch: &Scratch, sshd: &Sshd, fixture: &Fixture) -> Client {
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    Client::run(scratch, fixture)
        .args(["--local-slots", "0", "--isolation", "process", "--worker", &sshd.address])
        .env("DISTEST_SSH", &sshd.client)
}

fn copies_once(scratch: &Scratch) {
    let sshd = Sshd::start(scratch);
    let fixture = Fixture::named("paths");
    let run = |steps: &[&str]| {
        let transcript = run_on(scratch, &sshd, &fixture).finish().transcript(0);
        assert_eq!(transcript.verdicts, fixture.model.verdicts);
        let told = &transcript.summary.workers[0].start_s;
        assert!(told.keys().eq(steps), "{told:?}");
        let copies = sshd.copies();
        assert_eq!(copies.len(), 1, "one executable and nothing else: {copies:?}");
        copies
    };
    // In the order of their names.
    let again = ["build", "connect", "files", "hello", "probe", "read", "session", "start", "test"];
    let mut all = [&again[..], &["copy"]].concat();
    all.sort_unstable();
    let first = run(&all);
    assert_eq!(sshd.logins(), 3, "asks, copies, starts");
    assert_eq!(run(&again), first);
    assert_eq!(sshd.logins(), 4, "starts");
    // For people, on demand.
    let human = Client::run_human(scratch, &fixture).env("DISTEST_SSH", &sshd.client);
    let args = ["-v", "--local-slots", "0", "--worker", &sshd.address];
    let told = human.args(args).finish().stderr;
    assert!(told.contains("had a first result after") && told.contains(", connect "), "{told}");
    left_nothing(scratch, &sshd);
}

fn ends(scratch: &Scratch, fixture: &str, end: impl FnOnce(distest_tests::client::Running)) {
    let sshd = Sshd::start(scratch);
    end(run_on(scratch, &sshd, &Fixture::named(fixture)).start());
    left_nothing(scratch, &sshd);
}

/// No process and no temporary file on the other side.
fn left_nothing(scratch: &Scratch, sshd: &Sshd) {
    let left = scratch.left_after(GONE_WITHIN, |stray| stray.pid != sshd.pid());
    assert!(left.is_empty(), "processes left behind: {left:#?}");
    assert!(sshd.copies().iter().all(|name| !name.starts_with('.')), "{:?}", sshd.copies());
    // Only root sees the worker among the processes: it holds keys. It removes these as it ends.
    let live = sshd.home.join("cache/cargo-distest/worker/v1/live");
    let sessions = what_stays(GONE_WITHIN, || files(&live));
    assert!(sessions.is_empty(), "files left behind: {sessions:#?}");
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

fn no_login(scratch: &Scratch) {
    let sshd = Sshd::start(scratch);
    fs::write(scratch.join("ssh/user.pub"), "").expect("a file of ours");
    let fixture = Fixture::named("paths");
    let finished = run_on(scratch, &sshd, &fixture).finish();
    finished.complains(97, &["Permission denied", "without a password"]);
}

fn dash(scratch: &Scratch) {
    let args = ["run", "--worker", "ssh://-oProxyCommand=touch%20pwned"];
    let finished = Client::call(scratch, scratch.path(), &args).finish();
    finished.complains(2, &["no user or host"]);
    assert!(!scratch.join("pwned").exists());
}
