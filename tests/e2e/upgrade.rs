//! Workers that are given another executable, or room.

use std::fs;
use std::process::Stdio;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::process::Owned;
use distest_tests::product::product;
use distest_tests::scratch::Scratch;
use distest_tests::sshd::{Sshd, possible};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::deploy::start_handed;
use crate::drain::{Subject, authorize, look, says};
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("upgrade::in_the_middle_of_a_run", in_a_run),
        case("upgrade::under_systemd", under_systemd),
        case("upgrade::a_signal_meanwhile_ends_the_worker", ended),
        case("upgrade::all_one_after_the_other", all),
        case("upgrade::not_by_a_key_that_may_do_everything_else", not_permitted),
        case("upgrade::what_dials_is_not_upgraded", not_listening),
        case_if("upgrade::what_ssh_starts_is_not_upgraded_but_cleared", possible, behind_ssh),
        case("gc::frees_what_no_session_uses", frees),
    ]
}

fn workers(scratch: &Scratch, command: &str, worker: &Worker, names: &[&str]) -> Client {
    let args = [&["workers", command, "--worker", &worker.address], names].concat();
    Client::call(scratch, scratch.path(), &args)
}

/// Two workers that the client's executable is news to.
fn fleet(scratch: &Scratch) -> Vec<Worker> {
    ["a1", "b1"].map(|name| Worker::start(scratch, name, 1)).into()
}

fn runs_client(worker: &Worker) -> bool {
    let link = fs::read_link(format!("/proc/{}/exe", worker.process.pid())).expect("it runs");
    let length = |path| fs::metadata(path).expect("it is there").len();
    length(link) == length(product().client.clone())
}

/// What the system calls its process, and the first word of its command line.
fn called(worker: &Worker) -> (String, String) {
    let read = |name: &str| {
        let path = format!("/proc/{}/{name}", worker.process.pid());
        fs::read_to_string(path).expect("it runs")
    };
    let words = read("cmdline");
    let first = words.split('\0').next().expect("a split has a first part");
    (read("comm").trim_end().to_owned(), first.to_owned())
}

#[track_caller]
fn is_up_to_date(scratch: &Scratch, worker: &Worker) {
    let told = workers(scratch, "upgrade", worker, &[&worker.name]).finish();
    assert_eq!(told.code(), 0, "{}", told.stderr);
    assert_eq!(told.stdout, format!("{} is up to date\n", worker.name));
}

fn in_a_run(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let workers_there = fleet(scratch);
    let running = subject.run(scratch, &workers_there);
    let (gate, holder) = subject.holds(&workers_there);
    let worker = &workers_there[holder];
    let mut upgrading = workers(scratch, "upgrade", worker, &[&worker.name]).start();
    assert_eq!(upgrading.line(), format!("{} has it, and finishes what runs\n", worker.name));
    says(worker, "finishing what runs");
    assert!(!runs_client(worker), "not before");
    let called = called(worker);
    assert_eq!(called.0, "distest-worker");
    drop(gate);
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 13);
    assert_eq!(transcript.attempts.len(), 13, "nothing ran twice: {:#?}", transcript.attempts);
    let upgraded = upgrading.finish();
    assert_eq!(upgraded.code(), 0, "{}", upgraded.stderr);
    let version = env!("CARGO_PKG_VERSION");
    assert!(upgraded.stdout.ends_with(&format!("{} goes on as version {version}\n", worker.name)));
    assert!(runs_client(worker), "the same process is another program");
    assert_eq!(self::called(worker), called, "and is listed as before");
    is_up_to_date(scratch, worker);
    let fixture = Fixture::named("paths");
    let run = Client::run(scratch, &fixture).only_on(std::slice::from_ref(worker));
    assert_eq!(run.finish().transcript(0).verdicts, fixture.model.verdicts);
}

fn under_systemd(scratch: &Scratch) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let worker = start_handed(scratch, listener.into(), "LISTEN_PID=$$ LISTEN_FDS=1");
    let told = workers(scratch, "upgrade", &worker, &["w1"]).finish();
    assert_eq!(told.code(), 0, "{}", told.stderr);
    assert!(runs_client(&worker));
    is_up_to_date(scratch, &worker);
    let fixture = Fixture::named("paths");
    let run = Client::run(scratch, &fixture).only_on(std::slice::from_ref(&worker));
    assert_eq!(run.finish().transcript(0).verdicts, fixture.model.verdicts);
}

fn ended(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let mut workers_there = fleet(scratch);
    let running = subject.run(scratch, &workers_there);
    let (gate, holder) = subject.holds(&workers_there);
    let worker = &mut workers_there[holder];
    let mut upgrading = workers(scratch, "upgrade", worker, &[&worker.name]).start();
    assert!(upgrading.line().contains("finishes what runs"));
    worker.process.signal(Signal::SIGTERM);
    drop(gate);
    // What ran has come to its end.
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.attempts.len(), 13, "{:#?}", transcript.attempts);
    assert!(worker.process.wait(DEADLINE).expect("it ends").success());
    upgrading.signal(Signal::SIGKILL);
}

fn all(scratch: &Scratch) {
    let workers_there = fleet(scratch);
    let addresses: Vec<_> = workers_there.iter().map(|it| it.address.as_str()).collect();
    let call = || -> Finished {
        let client = Client::call(scratch, scratch.path(), &["workers", "upgrade", "--all"]);
        client.env("DISTEST_WORKERS", addresses.join(",")).finish()
    };
    let upgraded = call();
    assert_eq!(upgraded.code(), 0, "{}", upgraded.stderr);
    let said: Vec<_> = upgraded.stdout.lines().collect();
    let [one, two, three, four] = said[..] else { panic!("{said:?}") };
    assert!(one.starts_with("a1 has it") && two.starts_with("a1 goes on"), "{said:?}");
    assert!(three.starts_with("b1 has it") && four.starts_with("b1 goes on"), "{said:?}");
    assert!(workers_there.iter().all(runs_client));
    assert_eq!(call().stdout, "a1 is up to date\nb1 is up to date\n");
}

fn not_permitted(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 1);
    authorize(&other, scratch, "run,exec,copy,view");
    let refused = workers(scratch, "upgrade", &worker, &["w1"]).finish();
    refused.complains(96, &["could not upgrade w1", "permission `admin`", "authorized_keys"]);
    let refused = workers(scratch, "gc", &worker, &["--all"]).finish();
    refused.complains(96, &["could not clear w1", "permission `admin`"]);
    workers(scratch, "gc", &worker, &["w2"]).finish().complains(97, &["no worker is called w2"]);
    workers(scratch, "gc", &worker, &[]).finish().complains(2, &["<NAME|--all>"]);
    assert!(!runs_client(&worker));
    assert!(!other.join("store/v1/executables").exists());
}

fn not_listening(scratch: &Scratch) {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.local_addr().expect("it is bound").port()
    };
    let mut command = scratch.command(&product().worker);
    command.args(["join", &format!("127.0.0.1:{port}"), "--name", "w1", "--slots", "1"]);
    command.args(["--store".as_ref(), scratch.join("store").as_os_str()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _joiner = Owned::start(&mut command).expect("a program of ours");
    let address = format!("listen://127.0.0.1:{port}");
    let call = |command: &str| {
        let args = ["workers", command, "w1", "--worker", &address];
        Client::call(scratch, scratch.path(), &args).finish()
    };
    call("upgrade").complains(96, &["could not upgrade w1", "no worker that listens"]);
    assert_eq!(call("gc").stdout, "w1 freed 0 bytes of 0 files\n");
}

fn behind_ssh(scratch: &Scratch) {
    let sshd = Sshd::start(scratch);
    let call = |args: &[&str]| {
        let args = [&["workers"], args, &["--worker", &sshd.address]].concat();
        Client::call(scratch, scratch.path(), &args).env("DISTEST_SSH", &sshd.client).finish()
    };
    call(&["upgrade", "127.0.0.1"]).complains(96, &["no worker that listens", "ssh"]);
    let cleared = call(&["gc", "--all"]);
    assert_eq!(cleared.stdout, "127.0.0.1 freed 0 bytes of 0 files\n", "{}", cleared.stderr);
    let left = scratch.left_after(crate::GONE_WITHIN, |stray| stray.pid != sshd.pid());
    assert!(left.is_empty(), "processes left behind: {left:#?}");
}

fn frees(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let workers_there = [Worker::start(scratch, "w1", 1)];
    let worker = &workers_there[0];
    let running = subject.run(scratch, &workers_there);
    let (gate, _) = subject.holds(&workers_there);
    let clear = || workers(scratch, "gc", worker, &["w1"]).finish();
    let kept = || look(scratch, &["--worker", &worker.address])[0]["store_bytes"].as_u64();
    let before = kept();
    assert_eq!(clear().stdout, "w1 freed 0 bytes of 0 files\n", "the session uses all");
    assert_eq!(kept(), before);
    drop(gate);
    assert_eq!(running.finish().transcript(0).summary.passed, 13);
    let cleared = clear();
    assert_eq!(cleared.code(), 0, "{}", cleared.stderr);
    let freed = format!("w1 freed {} bytes of ", before.expect("it tells"));
    assert!(cleared.stdout.starts_with(&freed), "{} and not {freed}", cleared.stdout);
    assert_eq!(kept(), Some(0));
    // It is sent again.
    let running = subject.run(scratch, &workers_there);
    drop(subject.holds(&workers_there));
    assert_eq!(running.finish().transcript(0).summary.passed, 13);
}
