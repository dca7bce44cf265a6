//! Workers that are shown, and told to take nothing more.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Finished, Running};
use distest_tests::fixture::Fixture;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::transcript::{Attempt, AttemptResult, Transcript};
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::case;
use crate::fleet::{free_port, joiner};
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("workers::shows_who_is_there_and_who_is_not", shows),
        case("workers::shows_who_uses_a_worker", shows_use),
        case("workers::shows_only_what_a_key_may_see", shows_by_permission),
        case("workers::tells_whom_a_worker_does_not_serve", serves_another),
        case("workers::watches", watches),
        case("drain::sigterm_finishes_what_runs", |scratch| {
            drained(scratch, |worker, _| worker.process.signal(Signal::SIGTERM));
        }),
        case("drain::a_client_that_may_do_that", |scratch| {
            drained(scratch, |worker, scratch| {
                let args = ["workers", "drain", &worker.name, "--worker", &worker.address];
                let told = call(scratch, &args);
                assert_eq!(told.code(), 0, "{}", told.stderr);
                assert!(told.stdout.starts_with(&worker.name), "{}", told.stdout);
            });
        }),
        case("drain::not_by_a_key_that_may_only_run", not_permitted),
        case("drain::the_second_sigterm_kills", second_signal),
        case("drain::the_last_worker_finishes_what_it_has", last_worker),
        case("drain::the_last_worker_is_killed_by_the_second_sigterm", last_worker_killed),
        case("drain::an_idle_worker_ends_at_once", idle),
        case("drain::one_that_dials_and_has_ended", has_drained),
        case("workers::one_that_is_not_there_ends_every_command_alike", not_there),
    ]
}

fn call(scratch: &Scratch, args: &[&str]) -> Finished {
    Client::call(scratch, scratch.path(), args).finish()
}

/// `workers ls --format json`.
pub(crate) fn look(scratch: &Scratch, args: &[&str]) -> Vec<Value> {
    let looked = call(scratch, &[&["workers", "ls", "--format", "json"], args].concat());
    assert_eq!(looked.code(), 0, "{}", looked.stderr);
    workers(&looked.stdout)
}

fn workers(line: &str) -> Vec<Value> {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    value["workers"].as_array().expect("a list").clone()
}

/// Lets another's client in.
pub(crate) fn authorize(other: &Scratch, client: &Scratch, permissions: &str) {
    let key = call(client, &["key", "show"]).stdout;
    let line = format!("{} {permissions} a-colleague\n", key.trim());
    let path = other.write("config/distest/authorized_keys", &line);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a file of ours");
}

/// A test that says where it runs and ends when it is told, and quick ones.
pub(crate) struct Subject {
    folder: PathBuf,
    held: Receiver<TcpStream>,
}

impl Subject {
    pub(crate) fn new(scratch: &Scratch) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (sender, held) = channel();
        thread::spawn(move || {
            // Goes on for as long as the tests run, if nobody comes.
            while let Ok((stream, _)) = listener.accept() {
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        let quick: String =
            (0..12).map(|number| format!("#[test]\nfn quick_{number}() {{}}\n")).collect();
        let source = format!(
            r#"
            use std::io::{{Read, Write}};

            #[test]
            fn a_holds() {{
                let mut harness = std::net::TcpStream::connect(("127.0.0.1", {port})).unwrap();
                writeln!(harness, "{{}}", std::env::var("DISTEST_TEST_WORKER").unwrap()).unwrap();
                harness.read_to_end(&mut Vec::new()).unwrap();
            }}
            {quick}
            "#
        );
        Self { folder: package(scratch, &source), held }
    }

    pub(crate) fn run(&self, scratch: &Scratch, workers: &[Worker]) -> Running {
        self.client(scratch).only_on(workers).start()
    }

    /// A run that nothing is done for here.
    pub(crate) fn client(&self, scratch: &Scratch) -> Client {
        scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
        let args = ["--isolation", "process", "--no-fail-fast"];
        Client::call(scratch, &self.folder, &["run", "--offline"]).json().args(args)
    }

    /// Waits until the test holds; answers what ends it when dropped, and the worker's number.
    pub(crate) fn holds(&self, workers: &[Worker]) -> (TcpStream, usize) {
        let stream = self.held.recv_timeout(DEADLINE).expect("the test runs somewhere");
        let mut holder = String::new();
        BufReader::new(&stream).read_line(&mut holder).expect("it says where");
        let index = workers.iter().position(|worker| worker.name == holder.trim());
        (stream, index.expect("one of ours"))
    }
}

/// Waits until a worker has said something.
#[track_caller]
pub(crate) fn says(worker: &Worker, text: &str) {
    let silent = what_stays(DEADLINE, || match worker.log().contains(text) {
        true => vec![],
        false => vec![worker.log()],
    });
    assert!(silent.is_empty(), "{silent:?}");
}

pub(crate) fn of<'a>(transcript: &'a Transcript, worker: &str) -> Vec<&'a Attempt> {
    transcript.attempts.iter().filter(|attempt| attempt.worker == worker).collect()
}

fn drained(scratch: &Scratch, drain: impl FnOnce(&Worker, &Scratch)) {
    let subject = Subject::new(scratch);
    let mut workers = Worker::fleet(scratch, 2, 1);
    let running = subject.run(scratch, &workers);
    let (gate, holder) = subject.holds(&workers);
    drain(&workers[holder], scratch);
    says(&workers[holder], "finishing what runs");
    drop(gate);
    let finished = running.finish();
    let transcript = finished.transcript(0);
    assert_eq!(transcript.summary.passed, 13);
    assert_eq!(transcript.attempts.len(), 13, "nothing ran twice: {:#?}", transcript.attempts);
    let theirs = of(&transcript, &workers[holder].name);
    assert_eq!(theirs.last().expect("it held").name, "a_holds", "nothing after it: {theirs:#?}");
    assert!(finished.stderr.contains("takes no more tests"), "{}", finished.stderr);
    // It ends by itself.
    assert!(workers[holder].process.wait(DEADLINE).expect("it ends").success());
}

fn not_permitted(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 1);
    authorize(&other, scratch, "run,view");
    let refused = call(scratch, &["workers", "drain", &worker.address]);
    refused.complains(96, &["could not drain", "permission `admin`", "authorized_keys"]);
    call(scratch, &["workers", "drain", "nobody"]).complains(97, &["no worker is called nobody"]);
    let shown = &look(scratch, &["--worker", &worker.address])[0];
    assert_eq!((&shown["usable"], &shown["draining"]), (&true.into(), &false.into()), "{shown}");
}

fn second_signal(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let mut workers = Worker::fleet(scratch, 2, 1);
    let running = subject.run(scratch, &workers);
    let (gate, holder) = subject.holds(&workers);
    let victim = &mut workers[holder];
    victim.process.signal(Signal::SIGTERM);
    says(victim, "finishing what runs");
    victim.process.signal(Signal::SIGTERM);
    assert!(victim.process.wait(DEADLINE).expect("it ends").success());
    drop(gate);
    // It runs again elsewhere, and is told to end there.
    let (gate, other) = subject.holds(&workers);
    assert_ne!(other, holder);
    drop(gate);
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 13);
    let lost: Vec<_> =
        transcript.attempts.iter().filter(|it| it.result == AttemptResult::Lost).collect();
    assert!(matches!(lost[..], [one] if one.name == "a_holds"), "{lost:#?}");
}

fn last_worker(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let workers = [Worker::start(scratch, "w1", 1)];
    let running = subject.run(scratch, &workers);
    let (gate, _) = subject.holds(&workers);
    workers[0].process.signal(Signal::SIGTERM);
    says(&workers[0], "finishing what runs");
    drop(gate);
    let finished = running.finish();
    // The others are left, and nobody takes them.
    let transcript = finished.transcript(98);
    let held: Vec<_> = transcript.attempts.iter().filter(|it| it.name == "a_holds").collect();
    assert!(matches!(held[..], [one] if one.result.passed()), "{held:#?}");
    assert!(transcript.attempts.iter().all(|it| it.result.passed()), "{transcript:#?}");
}

/// Told twice, it doesn't finish what it has, and nobody else is there for it.
fn last_worker_killed(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let mut workers = [Worker::start(scratch, "w1", 1)];
    let running = subject.run(scratch, &workers);
    let (_gate, _) = subject.holds(&workers);
    workers[0].process.signal(Signal::SIGTERM);
    says(&workers[0], "finishing what runs");
    workers[0].process.signal(Signal::SIGTERM);
    assert!(workers[0].process.wait(DEADLINE).expect("it ends").success());
    let finished = running.finish();
    let transcript = finished.transcript(98);
    assert_eq!(transcript.summary.lost, 1, "what ran, and nothing else began");
    assert!(!finished.stderr.contains("shutdown"), "in our words: {}", finished.stderr);
}

fn idle(scratch: &Scratch) {
    let mut worker = Worker::start(scratch, "w1", 1);
    let told = call(scratch, &["workers", "drain", &worker.address]);
    assert_eq!(told.code(), 0, "{}", told.stderr);
    assert!(worker.process.wait(DEADLINE).expect("it ends").success());
}

/// Whether it still runs can't be known: it dials or it doesn't.
fn has_drained(scratch: &Scratch) {
    let other = Scratch::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["workers", "invite", "--listen", &listen];
    let mut inviting = Client::call(scratch, scratch.path(), &args).start();
    let mut joiner = joiner(&other, "j1", inviting.line().trim());
    assert_eq!(inviting.finish().code(), 0);
    authorize(&other, scratch, "run,admin");
    let drain =
        || call(scratch, &["workers", "drain", "j1", "--worker", &format!("listen://{listen}")]);
    let drained = drain();
    assert_eq!(drained.code(), 0, "{}", drained.stderr);
    assert!(joiner.wait(DEADLINE).expect("it ends").success());
    let again = ["j1 is known here, and has not dialled", "was drained", "distest-worker join"];
    drain().complains(97, &again);
}

fn not_there(scratch: &Scratch) {
    let key = call(&Scratch::new(), &["key", "show"]).stdout;
    let known = format!("{} 127.0.0.1:9 gone\n", key.trim());
    scratch.write("config/distest/known_workers", &known);
    scratch.write("source", "something");
    for (name, why) in [
        ("nobody", "no worker is called nobody"),
        ("gone", "nobody listens there"),
        ("tcp://127.0.0.1:9", "nobody listens there"),
    ] {
        for command in [
            &["exec", "--on", name, "--", "true"][..],
            &["workers", "drain", name],
            &["workers", "gc", name],
            &["workers", "upgrade", name],
        ] {
            call(scratch, command).complains(97, &[why]);
        }
    }
    for (name, why) in [("nobody", "no worker is called"), ("gone", "nobody listens there")] {
        call(scratch, &["cp", "source", &format!("{name}:/tmp/x")]).complains(97, &[why]);
    }
    // One that is there changes nothing about that.
    let worker = Worker::start(scratch, "w1", 1);
    let args = ["exec", "--on", &worker.address, "--on", "tcp://127.0.0.1:9", "--", "false"];
    call(scratch, &args).complains(97, &["exited with 1", "nobody listens there"]);
}

fn shows(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 3);
    let address = worker.address.as_str();
    let shown = look(scratch, &["--worker", address, "--worker", "tcp://127.0.0.1:9"]);
    let [there, gone] = &shown[..] else { panic!("{shown:#?}") };
    for (field, expected) in [
        ("name", Value::from("w1")),
        ("address", address.into()),
        ("source", "address".into()),
        ("usable", true.into()),
        ("slots", 3.into()),
        ("used", 0.into()),
        ("free", 3.into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ] {
        assert_eq!(there[field], expected, "{field} of {there:#}");
    }
    let target = there["target"].as_str().expect("a triple");
    assert!(target.contains("linux"), "{target}");
    assert!(there["store_bytes_max"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!(gone["usable"], Value::from(false));
    assert!(gone["reason"].as_str().expect("a text").contains("nobody listens there"), "{gone:#}");
    // The same for people; and what the environment names.
    let client = Client::call(scratch, scratch.path(), &["workers"]);
    let human = client.env("DISTEST_WORKERS", address).finish();
    assert_eq!(human.code(), 0, "{}", human.stderr);
    assert!(human.stdout.contains("NAME") && human.stdout.contains("w1"), "{}", human.stdout);
}

fn shows_use(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let workers = [Worker::start(scratch, "w1", 1)];
    let running = subject.run(scratch, &workers);
    let (gate, _) = subject.holds(&workers);
    let shown = &look(scratch, &["--worker", &workers[0].address])[0];
    assert_eq!((&shown["used"], &shown["free"]), (&1.into(), &0.into()), "{shown:#}");
    let session = &shown["sessions"][0];
    assert_eq!((&session["client"], &session["running"]), (&"this user".into(), &1.into()));
    drop(gate);
    let transcript = running.finish().transcript(0);
    assert_eq!(session["run"], Value::from(transcript.start.run.clone()));
}

fn shows_by_permission(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 1);
    let stranger = &look(scratch, &["--worker", &worker.address])[0];
    assert_eq!(stranger["usable"], Value::from(false));
    assert!(stranger["reason"].as_str().expect("a text").contains("does not let this key in"));
    authorize(&other, scratch, "run");
    let shown = &look(scratch, &["--worker", &worker.address])[0];
    assert_eq!((&shown["usable"], &shown["slots"]), (&true.into(), &1.into()));
    assert!(shown["status_reason"].as_str().expect("a text").contains("permission `view`"));
    assert!(shown.get("sessions").is_none() && shown.get("used").is_none(), "{shown:#}");
    authorize(&other, scratch, "view");
    let shown = &look(scratch, &["--worker", &worker.address])[0];
    assert_eq!(shown["usable"], Value::from(false));
    assert!(shown["reason"].as_str().expect("a text").contains("permission `run`"));
}

/// One that hides nothing from tests has served somebody else.
fn serves_another(scratch: &Scratch) {
    let other = Scratch::new();
    let store = other.join("store");
    let worker = Worker::start_changed(&other, "w1", 2, &store, Executable::Worker, |command| {
        command.args(["--sandbox", "variables"]);
    });
    authorize(&other, scratch, "run,view");
    let look_at = |format: &str| {
        let args = ["workers", "--format", format, "--worker", &worker.address];
        call(scratch, &args).stdout
    };
    let doctor = |code: i32| {
        let told = call(scratch, &["doctor", "--worker", &worker.address]);
        assert_eq!(told.code(), code, "{}{}", told.stdout, told.stderr);
        told.stdout
    };
    let shown = &workers(&look_at("json"))[0];
    assert_eq!((&shown["usable"], &shown["one_client"]), (&true.into(), &true.into()));
    assert!(look_at("human").contains("serves one client only"));
    let told = doctor(0);
    // What the level means, and what would raise it.
    assert!(told.contains("could  worker w1: its sandboxes have level variables: "), "{told}");
    assert!(told.contains("compiled into a test leads nowhere"), "{told}");
    assert!(told.contains("files and processes included)"), "to its end: {told}");
    assert!(told.contains("hint: start the worker without --sandbox"), "{told}");
    let fixture = Fixture::named("paths");
    Client::run(&other, &fixture).only_on(std::slice::from_ref(&worker)).finish();
    let shown = &workers(&look_at("json"))[0];
    assert_eq!(shown["usable"], Value::from(false), "{shown:#}");
    assert!(shown["reason"].as_str().expect("a text").contains("it has served another client"));
    assert!(shown["hint"].as_str().expect("a text").contains("--trust-clients"), "{shown:#}");
    assert_eq!(shown["slots"], Value::from(2), "it says what it is all the same");
    let table = look_at("human");
    assert!(table.contains("can't be used: could not open a session"), "{table}");
    let told = doctor(96);
    assert!(told.contains("WRONG  worker w1: could not open a session"), "{told}");
    assert!(told.contains("--trust-clients"), "{told}");
}

fn watches(scratch: &Scratch) {
    let mut worker = Worker::start(scratch, "w1", 1);
    let args = ["workers", "ls", "--watch", "--format", "json", "--worker", &worker.address];
    let mut watching = Client::call(scratch, scratch.path(), &args).start();
    assert_eq!(workers(&watching.line())[0]["usable"], Value::from(true));
    worker.process.signal(Signal::SIGKILL);
    worker.process.wait(Duration::from_secs(60)).expect("it ends");
    while workers(&watching.line())[0]["usable"].as_bool() == Some(true) {}
    watching.signal(Signal::SIGTERM);
}
