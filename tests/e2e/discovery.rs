//! Workers whose addresses nobody types: in the local network, and through a registry.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{Plan, possible};
use distest_tests::link::Lost;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::worker::{Executable, Registry, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::drain::{Subject, look};
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case_if("discovery::mdns_a_worker_is_invited_once_and_found", possible, by_mdns),
        case_if("discovery::registry_a_worker_is_invited_once_and_found", possible, by_registry),
        case("discovery::registry_a_killed_worker_is_gone", killed),
        case_if("discovery::registry_forgets_a_worker_whose_packets_are_lost", possible, lost),
        case("discovery::a_dialled_worker_that_comes_back_is_used_again", redialled),
        case("discovery::a_worker_is_waited_for_that_comes_late_and_again", waited_for),
        case("discovery::registry_anothers_name_is_worth_nothing", impostor),
        case("discovery::registry_lets_in_only_those_it_knows", closed),
        case("discovery::registry_cannot_be_reached", unreachable),
        case("discovery::registry_a_worker_comes_back_when_the_registry_does", comes_back),
        case("discovery::a_worker_is_used_once_whatever_names_it_has", once),
        case("discovery::no_more_workers_than_wanted", no_more),
        case("discovery::on_one_worker", on_one),
    ]
}

fn call(scratch: &Scratch, args: &[&str]) -> Finished {
    Client::call(scratch, scratch.path(), args).finish()
}

/// Runs `paths` on what an address brings.
fn on(scratch: &Scratch, address: &str) -> Client {
    let fixture = Fixture::named("paths");
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    Client::run(scratch, &fixture).args(["--local-slots", "0", "--worker", address])
}

/// All passed, on workers of these names and no others.
#[track_caller]
fn passed_on(finished: &Finished, names: &[&str]) {
    let transcript = finished.transcript(0);
    assert_eq!(transcript.verdicts, Fixture::named("paths").model.verdicts);
    let mut joined: Vec<_> = transcript.summary.workers.iter().map(|it| it.name.as_str()).collect();
    joined.sort_unstable();
    assert_eq!(joined, names, "{}", finished.stderr);
}

fn registered(scratch: &Scratch, name: &str, registry: &Registry) -> Worker {
    let store = scratch.join(format!("store-{name}"));
    Worker::start_changed(scratch, name, 2, &store, Executable::Worker, |command| {
        command.args(["--register", registry.socket()]);
    })
}

/// Who a registry says is there.
fn in_registry(scratch: &Scratch, address: &str) -> Vec<Value> {
    let mut shown = look(scratch, &["--worker", address]);
    shown.retain(|worker| worker["source"] == "registry");
    shown
}

/// Waits for a worker there: one that is ready is still about to register.
#[track_caller]
fn is_registered(scratch: &Scratch, address: &str) {
    let nobody = what_stays(DEADLINE, || match in_registry(scratch, address).len() {
        0 => vec![()],
        _ => vec![],
    });
    assert!(nobody.is_empty(), "no worker registers at {address}");
}

fn by_mdns(scratch: &Scratch) {
    let plan = Plan::new(scratch).with(&["--mdns"]);
    let (_worker, _link, invitation) = plan.start_inviting(scratch, "w1");
    // It is there, and nobody to be trusted yet.
    let stranger = on(scratch, "mdns").args(["--wait-workers", "1:5s"]).finish();
    stranger.complains(97, &["whose key is known here", "distest-worker invite"]);
    let added = call(scratch, &["workers", "add", &invitation]);
    assert_eq!(added.code(), 0, "{}", added.stderr);
    passed_on(&on(scratch, "mdns").finish(), &["w1"]);
}

fn by_registry(scratch: &Scratch) {
    let registry = Registry::start(scratch, "0.0.0.0:0", &[]);
    let register = format!("GATEWAY:{}", registry.port());
    let plan = Plan::new(scratch).behind_a_router();
    let plan = plan.with(&["--mdns", "--register", &register]);
    let (_worker, _link, invitation) = plan.start_inviting(scratch, "w1");
    let address = format!("registry://127.0.0.1:{}", registry.port());
    // Who is not let in there is not shown that it is there.
    let stranger = on(scratch, &address).args(["--wait-workers", "1:2s"]).finish();
    stranger.complains(97, &["no worker was found within 2 s"]);
    let added = call(scratch, &["workers", "add", &invitation]);
    assert_eq!(added.code(), 0, "{}", added.stderr);
    passed_on(&on(scratch, &address).finish(), &["w1"]);
    let multicast = on(scratch, "mdns").args(["--wait-workers", "1:3s"]).finish();
    multicast.complains(97, &["no worker was found within 3 s"]);
}

fn killed(scratch: &Scratch) {
    let registry = Registry::start(scratch, "127.0.0.1:0", &[]);
    call(scratch, &["key", "show"]);
    let mut worker = registered(scratch, "w1", &registry);
    passed_on(&on(scratch, &registry.address).finish(), &["w1"]);
    worker.process.signal(Signal::SIGKILL);
    worker.process.wait(DEADLINE).expect("it ends");
    let nobody = on(scratch, &registry.address).args(["--wait-workers", "1:1s"]).finish();
    nobody.complains(97, &["no worker was found within 1 s"]);
    let none = "it answers, and shows this key no worker";
    let listed = call(scratch, &["workers", "--worker", &registry.address]).stdout;
    assert!(listed.contains(none) && listed.contains("serve --register"), "{listed}");
    let looked = call(scratch, &["doctor", "--worker", &registry.address]);
    assert_eq!(looked.code(), 0, "{}", looked.stdout);
    let found = format!("could  {}: {none}", registry.address);
    assert!(looked.stdout.contains(&found), "{}", looked.stdout);
    // Each is taken for the other.
    let as_worker = on(scratch, &format!("tcp://{}", registry.socket())).finish();
    as_worker.complains(97, &["a registry is named registry://HOST:PORT"]);
    let worker = Worker::start(scratch, "w2", 1);
    let as_registry = on(scratch, &format!("registry://{}", worker.socket())).finish();
    as_registry.complains(97, &["a worker itself is named tcp://HOST:PORT"]);
}

fn lost(scratch: &Scratch) {
    let registry = Registry::start(scratch, "0.0.0.0:0", &[]);
    let register = format!("GATEWAY:{}", registry.port());
    let plan = Plan::new(scratch).with(&["--register", &register]);
    let (_worker, link, invitation) = plan.start_inviting(scratch, "w1");
    assert_eq!(call(scratch, &["workers", "add", &invitation]).code(), 0);
    let address = format!("registry://127.0.0.1:{}", registry.port());
    let listed = || in_registry(scratch, &address);
    is_registered(scratch, &address);
    // Nothing tells the registry that its connection is of no use any more.
    link.lose(Lost::All);
    let stays = what_stays(DEADLINE, listed);
    assert!(stays.is_empty(), "{stays:#?}");
}

fn redialled(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let mut workers = Worker::fleet(scratch, 2, 1);
    let running = subject.run(scratch, &workers);
    let (gate, holder) = subject.holds(&workers);
    let (other, store) = (&mut workers[1 - holder], scratch.join("another-store"));
    other.process.signal(Signal::SIGKILL);
    other.process.wait(DEADLINE).expect("it ends");
    other.restart(scratch, 1, &store);
    let idle = what_stays(DEADLINE, || {
        let mut shown = look(scratch, &["--worker", &other.address]);
        shown.retain(|worker| worker["sessions"].as_array().is_none_or(Vec::is_empty));
        shown
    });
    assert!(idle.is_empty(), "the run comes back to it: {idle:#?}");
    drop(gate);
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 13);
}

fn waited_for(scratch: &Scratch) {
    let subject = Subject::new(scratch);
    let store = scratch.join("store");
    let mut workers = Worker::fleet(scratch, 1, 1);
    workers[0].process.signal(Signal::SIGKILL);
    workers[0].process.wait(DEADLINE).expect("it ends");
    let client = subject.client(scratch).worker(&workers[0].address);
    let running = client.args(["--local-slots", "0", "--wait-workers", "1:240s"]).start();
    let says = |text: &str| {
        let silent = what_stays(DEADLINE, || match running.stderr().contains(text) {
            true => Vec::new(),
            false => vec![running.stderr()],
        });
        assert!(silent.is_empty(), "{silent:?}");
    };
    says("nobody listens there");
    workers[0].restart(scratch, 1, &store);
    let (gate, _) = subject.holds(&workers);
    // It finishes what runs, and takes nothing more.
    workers[0].process.signal(Signal::SIGTERM);
    says("takes no more tests");
    drop(gate);
    says("no worker is left: one is waited for");
    workers[0].process.wait(DEADLINE).expect("it ends");
    workers[0].restart(scratch, 1, &store);
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 13);
    assert!(transcript.attempts.iter().all(|attempt| attempt.attempt == 1), "nothing ran twice");
}

/// Somebody registers a worker with another's name, which lets this client in.
fn impostor(scratch: &Scratch) {
    let other = Scratch::new();
    let registry = Registry::start(scratch, "127.0.0.1:0", &[]);
    let key = call(scratch, &["key", "show"]).stdout;
    let list = other.write("config/distest/authorized_keys", &format!("{} run x\n", key.trim()));
    fs::set_permissions(list, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    let evil = registered(&other, "w1", &registry);
    is_registered(scratch, &registry.address);
    let nobody = on(scratch, &registry.address).args(["--wait-workers", "1:2s"]).finish();
    nobody.complains(97, &["whose key is known here; 1 others are there"]);
    let _honest = registered(scratch, "w1", &registry);
    passed_on(&on(scratch, &registry.address).finish(), &["w1"]);
    assert!(!evil.log().contains(": refused"), "nobody dialled it: {}", evil.log());
}

fn closed(scratch: &Scratch) {
    let other = Scratch::new();
    let keys = scratch.write("registry-keys", "# nobody\n");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    let keys = keys.display().to_string();
    let registry = Registry::start(&other, "127.0.0.1:0", &["--authorized-keys", &keys]);
    let key = call(scratch, &["key", "show"]).stdout;
    let refused = on(scratch, &registry.address).finish();
    refused.complains(97, &["does not let this key in"]);
    let worker = registered(scratch, "w1", &registry);
    let of_worker = worker.address.split('#').nth(1).expect("a worker prints its key");
    fs::write(&keys, format!("{} view me\n{of_worker} view w1\n", key.trim())).expect("ours");
    passed_on(&on(scratch, &registry.address).finish(), &["w1"]);
}

fn unreachable(scratch: &Scratch) {
    let nobody = on(scratch, "registry://127.0.0.1:9").finish();
    nobody.complains(97, &["could not connect", "distest-worker registry"]);
    let worker = Worker::start(scratch, "w1", 2);
    let odd = on(scratch, &format!("registry://{}", worker.socket())).finish();
    odd.complains(97, &["closed the connection before it proved its key"]);
}

fn comes_back(scratch: &Scratch) {
    let registry = Registry::start(scratch, "127.0.0.1:0", &[]);
    call(scratch, &["key", "show"]);
    let _worker = registered(scratch, "w1", &registry);
    let socket = registry.socket().to_owned();
    drop(registry);
    let registry = Registry::start(scratch, &socket, &[]);
    passed_on(&on(scratch, &registry.address).finish(), &["w1"]);
}

fn once(scratch: &Scratch) {
    let registry = Registry::start(scratch, "127.0.0.1:0", &[]);
    call(scratch, &["key", "show"]);
    let worker = registered(scratch, "w1", &registry);
    let by_name = worker.address.replace("127.0.0.1", "localhost");
    let finished = on(scratch, &registry.address)
        .worker(&worker.address)
        .worker(&by_name)
        .args(["--wait-workers", "2:2s"])
        .finish();
    passed_on(&finished, &["w1"]);
    assert_eq!(finished.transcript(0).summary.workers[0].slots, 2);
}

fn no_more(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 3, 1);
    let mut client = on(scratch, &workers[0].address).args(["--max-workers", "2"]);
    client = client.worker(&workers[1].address).worker(&workers[2].address);
    let finished = client.args(["--wait-workers", "3"]).finish();
    let transcript = finished.transcript(0);
    assert_eq!(transcript.summary.workers.len(), 2, "{}", finished.stderr);
}

fn on_one(scratch: &Scratch) {
    let registry = Registry::start(scratch, "127.0.0.1:0", &[]);
    call(scratch, &["key", "show"]);
    let _workers = ["w1", "w2"].map(|name| registered(scratch, name, &registry));
    passed_on(&on(scratch, &registry.address).args(["--on", "w2"]).finish(), &["w2"]);
    let nobody = on(scratch, &registry.address);
    let nobody = nobody.args(["--on", "w3", "--wait-workers", "1:4s"]).finish();
    nobody.complains(97, &["--on asks for \"w3\""]);
}
