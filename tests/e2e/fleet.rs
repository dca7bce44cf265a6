//! How machines come together: invitations, and workers that dial.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::process::Owned;
use distest_tests::product::product;
use distest_tests::proxy::Proxy;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::case;
use crate::drain::{look, says};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("invitation::introduces_both_sides", introduces),
        case("invitation::is_good_once", good_once),
        case("invitation::a_worker_is_meant_by_what_it_is_called_here", by_alias),
        case("invitation::does_not_survive_a_relay", relay),
        case("invitation::is_the_workers_own_users_to_give", not_for_others),
        case("invitation::one_of_two_workers_of_one_name_gives_it", one_of_two),
        case("invitation::sockets_of_killed_workers_go", sockets),
        case("join::a_worker_dials_and_is_used", join),
        case("join::an_unknown_worker_is_refused", join_unknown),
        case("join::places_that_are_none_or_taken", odd_places),
        case("join::who_dials_is_looked_at", looked_at),
        case("join::a_worker_reconnects", reconnects),
        case("join::those_that_fall_silent_hold_up_nobody", silent),
        case("join::an_invited_worker_is_used", join_invited),
        case("join::gives_no_more_than_its_user_agrees_to", join_permits),
    ]
}

fn call(scratch: &Scratch, args: &[&str]) -> Finished {
    Client::call(scratch, scratch.path(), args).finish()
}

/// What `distest-worker invite` prints.
fn invitation(worker: &Scratch, args: &[&str]) -> String {
    let invited = call(worker, &[&["worker", "invite"], args].concat());
    assert_eq!(invited.code(), 0, "{}", invited.stderr);
    invited.stdout.trim().to_owned()
}

fn run_on(scratch: &Scratch, address: &str) -> Finished {
    run_by(scratch, &["--worker", address])
}

/// Runs `paths` on none but the workers that these arguments name.
fn run_by(scratch: &Scratch, args: &[&str]) -> Finished {
    let fixture = Fixture::named("paths");
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    Client::run_human(scratch, &fixture).args(["--local-slots", "0"]).args(args).finish()
}

fn passed(finished: &Finished) {
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let all = format!("{} passed", Fixture::named("paths").model.verdicts.len());
    assert!(finished.stderr.contains(&all), "{}", finished.stderr);
}

fn without_pin(address: &str) -> &str {
    address.split('#').next().expect("a split has a first part")
}

fn read(scratch: &Scratch, name: &str) -> String {
    fs::read_to_string(scratch.join("config/distest").join(name)).unwrap_or_default()
}

/// A worker that dials.
pub(crate) fn joiner(scratch: &Scratch, name: &str, address: &str) -> Owned {
    joiner_with(scratch, name, address, &[])
}

fn joiner_with(scratch: &Scratch, name: &str, address: &str, more: &[&str]) -> Owned {
    let mut command = scratch.command(&product().worker);
    command.args(["join", address, "--name", name, "--slots", "2"]).args(more).arg("--store");
    command.arg(scratch.join(format!("store-{name}")));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let log = fs::File::create(scratch.join(format!("joiner-{name}.log")));
    command.stderr(log.expect("a folder of ours"));
    Owned::start(&mut command).expect("a worker can be started")
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Whether somebody listens at a port of loopback, without going there.
fn is_listened_at(port: u16) -> bool {
    let place = format!("0100007F:{port:04X}");
    let sockets = fs::read_to_string("/proc/net/tcp").expect("it is there");
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        // Its state, as proc_net_tcp has it.
        words.next() == Some(&place) && words.nth(1) == Some("0A")
    })
}

fn introduces(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start_with(&other, "w1", 2, &other.join("store"), Executable::Worker);
    let text = invitation(&other, &["--permit", "run"]);
    let added = call(scratch, &["workers", "add", &text]);
    assert_eq!(added.code(), 0, "{}", added.stderr);
    let told: Vec<_> = added.stdout.lines().collect();
    assert_eq!(told[0], format!("added w1 {}", worker.address));
    assert!(told[1].ends_with("cargo distest run --on w1"), "{told:?}");
    assert!(read(&other, "authorized_keys").contains(" run "), "the worker knows us");
    // Another invitation adds to what we may do.
    let text = invitation(&other, &["--permit", "view"]);
    assert_eq!(call(scratch, &["workers", "add", &text]).code(), 0);
    assert!(read(&other, "authorized_keys").contains(" run,view "), "and takes nothing");
    says(&worker, "may now run,view");
    // No key in the address any more.
    passed(&run_on(scratch, without_pin(&worker.address)));
    // Nor any address.
    passed(&run_by(scratch, &["--on", "w1"]));
    run_by(scratch, &["--on", "w7"]).complains(97, &["--on asks for \"w7\""]);
    let removed = call(scratch, &["workers", "rm", "w1"]);
    assert!(removed.stdout.starts_with("removed ed25519:"), "{}", removed.stdout);
    run_on(scratch, without_pin(&worker.address)).complains(97, &["not known here"]);
    run_by(scratch, &["--on", "w1"]).complains(97, &["no worker is known", "workers add"]);
}

fn by_alias(scratch: &Scratch) {
    let others = [Scratch::new(), Scratch::new()];
    // Both call themselves the same.
    let workers = [("near", &others[0]), ("far", &others[1])].map(|(alias, other)| {
        let worker = Worker::start(other, "w1", 2);
        let text = invitation(other, &[]);
        let added = call(scratch, &["workers", "add", &text, "--name", alias]);
        assert_eq!(added.code(), 0, "{}", added.stderr);
        worker
    });
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let fixture = Fixture::named("paths");
    let run = |on: &str| Client::run(scratch, &fixture).only_on(&workers).args(["--on", on]);
    let tests = fixture.model.verdicts.len();
    let key = workers[1].address.split('#').nth(1).expect("a worker prints its key");
    for (on, chosen) in [("near", 0), ("far", 1), (key, 1)] {
        let transcript = run(on).finish().transcript(0);
        assert_eq!(transcript.verdicts, fixture.model.verdicts);
        assert_eq!(transcript.summary.workers.len(), 1, "{:?}", transcript.summary.workers);
        // Which of them it was is in their logs alone.
        let run = |worker: &Worker| worker.log().contains(&transcript.start.run);
        let told = || (0..2).filter(|at| run(&workers[*at])).collect::<Vec<_>>();
        let silent = what_stays(DEADLINE, || if told().is_empty() { vec![()] } else { vec![] });
        assert!(silent.is_empty(), "neither tells of a run of {tests} tests");
        assert_eq!(told(), [chosen], "--on {on}");
    }
    run("w7").finish().complains(97, &["--on asks for \"w7\""]);
    // Nor do tests run here in its place.
    scratch.write("config/distest/config.toml", "");
    let run = Client::run_human(scratch, &fixture).args(["--on", "w7"]).finish();
    run.complains(97, &["--on asks for \"w7\""]);
}

fn good_once(scratch: &Scratch) {
    let (other, thief) = (Scratch::new(), Scratch::new());
    let worker = Worker::start(&other, "w1", 2);
    let text = invitation(&other, &[]);
    // A changed secret is none, and does not use up the invitation.
    let (head, secret) = text
        .rsplit_once('/')
        .and_then(|(head, permissions)| {
            let (head, secret) = head.rsplit_once('/')?;
            Some(((head, permissions), secret))
        })
        .expect("four parts");
    let guessed = format!("{}/{}/{}", head.0, "A".repeat(secret.len()), head.1);
    call(&thief, &["workers", "add", &guessed]).complains(96, &["used up"]);
    assert_eq!(call(scratch, &["workers", "add", &text]).code(), 0);
    call(&thief, &["workers", "add", &text]).complains(96, &["used up"]);
    says(&worker, "somebody brought an invitation, and none is open here");
    assert_eq!(read(&thief, "known_workers"), "", "nothing is stored");
    assert_eq!(read(&other, "authorized_keys").lines().count(), 1);
}

fn relay(scratch: &Scratch) {
    let (other, middle) = (Scratch::new(), Scratch::new());
    let worker = Worker::start(&other, "w1", 2);
    let evil = Worker::start(&middle, "w2", 2);
    let text = invitation(&other, &[]);
    // Somebody in the middle answers with a key of their own.
    let diverted = text.replace(worker.socket(), evil.socket());
    invitation(&middle, &[]);
    call(scratch, &["workers", "add", &diverted]).complains(96, &["somebody else answers"]);
    assert_eq!(read(scratch, "known_workers"), "");
    assert_eq!(read(&middle, "authorized_keys"), "");
    // Who only passes bytes on learns nothing and changes nothing.
    let proxy = Proxy::to(worker.socket());
    let through = text.replace(worker.socket(), proxy.address.trim_start_matches("tcp://"));
    assert_eq!(call(scratch, &["workers", "add", &through]).code(), 0);
}

fn not_for_others(scratch: &Scratch) {
    let other = Scratch::new();
    let _worker = Worker::start(&other, "w1", 2);
    call(scratch, &["worker", "invite"]).complains(96, &["no worker of this user"]);
    let sockets = fs::read_dir(other.join("state/distest/workers")).expect("it was made");
    for socket in sockets {
        use std::os::unix::fs::PermissionsExt;
        let mode = socket.expect("an entry").metadata().expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
    call(&other, &["worker", "invite", "--name", "nobody"]).complains(96, &["nobody"]);
}

/// Two workers of one user's, both called `w1`.
fn twins(scratch: &Scratch) -> [Worker; 2] {
    ["one", "other"].map(|store| {
        let store = scratch.join(store);
        Worker::start_with(scratch, "w1", 1, &store, Executable::Worker)
    })
}

fn one_of_two(scratch: &Scratch) {
    let workers = twins(scratch);
    for args in [&[][..], &["--name", "w1"]] {
        let told = call(scratch, &[&["worker", "invite"], args].concat());
        let typed = workers.each_ref().map(|worker| format!("--at {}", worker.socket()));
        told.complains(96, &["several workers", &typed[0], &typed[1]]);
    }
    for worker in &workers {
        let (pid, socket) = (worker.process.pid().to_string(), worker.socket());
        let port = socket.rsplit(':').next().expect("a port");
        for choice in [
            &["--at", &worker.address][..],
            &["--at", socket],
            &["--at", port, "--name", "w1"],
            &["--process", &pid],
        ] {
            let text = invitation(scratch, choice);
            assert!(text.contains(socket), "{choice:?}: {text}");
        }
    }
    call(scratch, &["worker", "invite", "--at", "127.0.0.1:9"])
        .complains(96, &["no worker", "listens at 127.0.0.1:9", "--at"]);
    call(scratch, &["worker", "invite", "--at", "w1"]).complains(2, &["or its port"]);
}

fn sockets(scratch: &Scratch) {
    let [mut killed, stays] = twins(scratch);
    let there = || {
        let folder = fs::read_dir(scratch.join("state/distest/workers")).expect("it was made");
        let names = folder.map(|entry| entry.expect("an entry").file_name().into_string());
        names.collect::<Result<BTreeSet<_>, _>>().expect("names of ours")
    };
    let of = |workers: &[&Worker]| -> BTreeSet<String> {
        workers.iter().map(|worker| format!("{}.sock", worker.process.pid())).collect()
    };
    let kill = |worker: &mut Worker| {
        worker.process.signal(Signal::SIGKILL);
        worker.process.wait(DEADLINE).expect("it ends");
    };
    kill(&mut killed);
    assert_eq!(there(), of(&[&killed, &stays]), "a killed worker leaves its socket");
    let mut next = Worker::start(scratch, "w2", 1);
    assert_eq!(there(), of(&[&stays, &next]), "which goes when another one starts");
    kill(&mut next);
    invitation(scratch, &[]);
    assert_eq!(there(), of(&[&stays]), "or when one is asked for an invitation");
}

/// One user's worker dials a run of theirs.
fn join(scratch: &Scratch) {
    let port = free_port();
    call(scratch, &["key", "show"]);
    let (place, store) = (format!("127.0.0.1:{port}"), scratch.join("store-j1"));
    let args = ["worker", "join", &place, "--name", "j1", "--slots", "2", "--store"];
    let mut joining = Client::call(scratch, scratch.path(), &args).args([store]).start();
    let line = joining.line();
    let address = line.trim().strip_prefix("ready j1 ").expect("it says that it is ready");
    // As `--worker` takes it.
    assert_eq!(address, format!("listen://{place}"));
    passed(&run_on(scratch, address));
    joining.signal(Signal::SIGTERM);
    assert_eq!(joining.finish().code(), 0);
}

/// By `workers` and `doctor`, as one that listens.
fn looked_at(scratch: &Scratch) {
    let other = Scratch::new();
    let port = free_port();
    let address = format!("listen://127.0.0.1:{port}");
    call(scratch, &["key", "show"]);
    let dialled = format!("127.0.0.1:{port}");
    let (_joiner, _stranger) =
        (joiner(scratch, "j1", &dialled), joiner(&other, "stranger", &dialled));
    let seen = look(scratch, &["--worker", &address]);
    let [ours, unknown] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!((&ours["name"], &ours["usable"]), (&"j1".into(), &true.into()), "{ours:#}");
    assert_eq!((&ours["slots"], &ours["address"]), (&2.into(), &address.as_str().into()));
    assert_eq!(unknown["usable"], Value::from(false));
    assert!(unknown["reason"].to_string().contains("from 127.0.0.1: "), "{unknown:#}");
    let told = call(scratch, &["doctor", "--worker", &address]);
    assert_eq!(told.code(), 0, "{}{}", told.stdout, told.stderr);
    assert!(told.stdout.contains("ok     worker j1: 2 slots"), "{}", told.stdout);
    let waits = format!("waiting 9 s for workers that dial {address}\n");
    assert!(told.stderr.starts_with(&waits), "{}", told.stderr);
    let of_unknown = format!("could  worker {address}: who dialled from 127.0.0.1: ");
    assert!(told.stdout.contains(&of_unknown), "{}", told.stdout);
    // Somebody else listens there.
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let taken = format!("listen://{}", held.local_addr().expect("it is bound"));
    let told = call(scratch, &["doctor", "--worker", &taken]);
    assert_eq!(told.code(), 96, "{}", told.stdout);
    assert!(told.stdout.contains("something else listens there"), "{}", told.stdout);
}

/// What can't be listened at or dialled is told before anybody waits.
fn odd_places(scratch: &Scratch) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let at = taken.local_addr().expect("it is bound").to_string();
    for args in [
        &["worker", "serve", "--listen", &at][..],
        &["worker", "registry", "--listen", &at],
        &["workers", "invite", "--listen", &at],
    ] {
        call(scratch, args).complains(96, &["in use", "hint: something else listens there"]);
    }
    let listen = format!("listen://{at}");
    let args = ["exec", "--worker", &listen, "--all", "--", "true"];
    call(scratch, &args).complains(97, &[&at, "something else listens there"]);
    for odd in ["h", "a b:1", "h:0", ":1"] {
        call(scratch, &["worker", "invite", "--address", odd]).complains(2, &["HOST:PORT"]);
        let args = ["workers", "invite", "--listen", "127.0.0.1:0", "--address", odd];
        call(scratch, &args).complains(2, &["HOST:PORT"]);
    }
    // Nobody finds the worker to ask for an invitation.
    let (state, store) = (scratch.join("x".repeat(120)), scratch.join("store"));
    let worker = Worker::start_changed(scratch, "w1", 1, &store, Executable::Worker, |command| {
        command.env("XDG_STATE_HOME", &state);
    });
    says(&worker, "hint: set XDG_STATE_HOME");
}

fn join_unknown(scratch: &Scratch) {
    let (other, willing) = (Scratch::new(), Scratch::new());
    let port = free_port();
    let key = call(scratch, &["key", "show"]).stdout;
    let list = willing.write("config/distest/authorized_keys", &format!("{} run x\n", key.trim()));
    fs::set_permissions(list, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    let fixture = Fixture::named("paths");
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let running = Client::run_human(scratch, &fixture)
        .args(["--local-slots", "0", "--worker", &format!("listen://127.0.0.1:{port}")])
        .args(["--wait-workers", "1:6s"])
        .start();
    // Whoever dialled before would not dial again for a while.
    let deaf = what_stays(DEADLINE, || if is_listened_at(port) { vec![] } else { vec![port] });
    assert!(deaf.is_empty(), "nobody listens: {}", running.stderr());
    let _joiner = joiner(&other, "j1", &format!("127.0.0.1:{port}"));
    let _willing = joiner(&willing, "j2", &format!("127.0.0.1:{port}"));
    let finished = running.finish();
    finished.complains(97, &["no worker has joined"]);
    let told = finished.stderr.matches("worker from 127.0.0.1 can't be used").count();
    assert_eq!(told, 2, "each once, however often it dials: {}", finished.stderr);
    let log = fs::read_to_string(willing.join("joiner-j2.log")).expect("it was made");
    assert!(log.contains("the client there does not know this worker's key"), "{log}");
    assert!(log.contains("cargo distest workers invite") && !log.contains("AccessDenied"), "{log}");
    let log = fs::read_to_string(other.join("joiner-j1.log")).expect("it was made");
    assert!(log.contains("not known here"), "the worker doesn't trust us either: {log}");
    assert!(log.contains("hint: ask there for an invitation"), "{log}");
}

fn reconnects(scratch: &Scratch) {
    let port = free_port();
    call(scratch, &["key", "show"]);
    let mut joiner = joiner(scratch, "j1", &format!("127.0.0.1:{port}"));
    // One run after the other: between them nobody listens.
    for _ in 0..2 {
        passed(&run_on(scratch, &format!("listen://127.0.0.1:{port}")));
    }
    joiner.signal(Signal::SIGTERM);
    assert!(joiner.wait(DEADLINE).expect("it ends").success());
}

/// How many bytes a worker that dials may say before nothing more comes: none, in the middle of the
/// handshake, about when it is over, of the greeting, and of the session.
const SILENT_AFTER: [usize; 6] = [0, 100, 500, 900, 1500, 4000];

fn silent(scratch: &Scratch) {
    let port = free_port();
    let address = format!("listen://127.0.0.1:{port}");
    call(scratch, &["key", "show"]);
    let fixture = Fixture::named("paths");
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let run = |patience: &str| {
        let args = ["--local-slots", "0", "--worker", &address, "--wait-workers", patience];
        Client::run(scratch, &fixture).args(args)
    };
    // One that says nothing at all.
    let stranger = || {
        let dial = || std::net::TcpStream::connect(("127.0.0.1", port));
        let refused = what_stays(DEADLINE, || Vec::from_iter(dial().err()));
        assert!(refused.is_empty(), "{refused:?}");
        dial().expect("the client listens")
    };
    let nobody = run("1:4s").start();
    let held = stranger();
    nobody.finish().complains(97, &["no worker has joined within 4 s"]);
    drop(held);
    let proxies = SILENT_AFTER.map(|it| Proxy::stall_after(&format!("127.0.0.1:{port}"), it));
    let running = run("1:60s").start();
    let _held = stranger();
    let _silent: Vec<_> = (0..)
        .zip(&proxies)
        .map(|(number, proxy)| {
            let name = format!("s{number}");
            joiner(scratch, &name, proxy.address.trim_start_matches("tcp://"))
        })
        .collect();
    let _talks = joiner(scratch, "j1", &format!("127.0.0.1:{port}"));
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
    assert!(transcript.attempts.iter().any(|it| it.result.passed() && it.worker == "j1"));
}

fn join_invited(scratch: &Scratch) {
    let other = Scratch::new();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut inviting =
        Client::call(scratch, scratch.path(), &["workers", "invite", "--listen", &listen]).start();
    let text = inviting.line().trim().to_owned();
    assert!(text.starts_with("invite+client://"), "{text}");
    let _joiner = joiner(&other, "j1", &text);
    let invited = inviting.finish();
    let address = format!("listen://{listen}");
    // Wherever else tests may run: only there, and nothing says where.
    for fallback in ["fail", "embedded"] {
        let file = format!("[fleet]\nfallback = \"{fallback}\"\n");
        scratch.write("config/distest/config.toml", &file);
        let run = Client::run_human(scratch, &Fixture::named("paths"));
        let told = ["could not run tests on j1", "dials this machine", "--worker listen://IP:PORT"];
        run.args(["--on", "j1"]).finish().complains(97, &told);
    }
    let run_there = format!("cargo distest run --worker {address}");
    let told = ["distest-worker join INVITATION", "added j1 ed25519:", &run_there];
    invited.complains(0, &told);
    assert_eq!(invited.stdout.trim(), text, "it alone, for scripts");
    passed(&run_by(scratch, &["--worker", &address, "--on", "j1"]));
    // It goes by the name under which it was taken in, too.
    let args = ["exec", "--worker", &address, "--on", "j1", "--", "echo", "there"];
    // Whom it lets in by itself may only run tests.
    call(scratch, &args).complains(1, &["permission `exec`"]);
}

/// By an invitation, whatever it says.
fn join_permits(scratch: &Scratch) {
    let other = Scratch::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["workers", "invite", "--listen", &listen, "--permit", "run,exec"];
    let mut inviting = Client::call(scratch, scratch.path(), &args).start();
    let text = inviting.line().trim().to_owned();
    assert!(text.ends_with("/run,exec"), "{text}");
    let refused = call(&other, &["worker", "join", &text]);
    refused
        .complains(96, &["more here than --permit run,view", "--permit run,exec", "any command"]);
    assert_eq!(read(&other, "authorized_keys"), "", "nothing is stored");
    // One that says less than its host will.
    let less = text.replace("/run,exec", "/run");
    call(&other, &["worker", "join", &less]).complains(96, &["the invitation says run, and"]);
    assert_eq!(read(&other, "authorized_keys"), "");
    assert_eq!(read(scratch, "known_workers"), "");
    drop(inviting);
    let left = call(&other, &["worker", "join", "--permit", "run,exec", &text]);
    left.complains(96, &["could not connect", "hint: `cargo distest workers invite` must be"]);

    let args = [&args[..], &["--valid", "5"]].concat();
    let mut inviting = Client::call(scratch, scratch.path(), &args).start();
    let text = inviting.line().trim().to_owned();
    let _joiner = joiner_with(&other, "j1", &text, &["--permit", "run,view,exec"]);
    let invited = inviting.finish();
    let with_permit = "distest-worker join --permit run,exec INVITATION";
    invited.complains(0, &[with_permit, "for 5 minutes", "cargo distest exec --worker"]);
    let log = || fs::read_to_string(other.join("joiner-j1.log")).unwrap_or_default();
    let untold = what_stays(DEADLINE, || {
        let log = log();
        let shown = ["run any command as the worker's user (run,exec)", "may now run,exec"];
        let place = format!("`distest-worker join {listen}` will do");
        match shown.iter().all(|it| log.contains(it)) && log.contains(&place) {
            true => vec![],
            false => vec![log],
        }
    });
    assert!(untold.is_empty(), "{untold:?}");
    let address = format!("listen://{listen}");
    let told = call(scratch, &["exec", "--worker", &address, "--on", "j1", "--", "echo", "there"]);
    assert_eq!((told.code(), told.stdout.as_str()), (0, "there\n"), "{}", told.stderr);
}
