//! Who gets in, and whom a client trusts: attacks on either end.
//!
//! A worker of *another user* has a scratch folder, and so a configuration, of its own: the only
//! thing that connects the two is what a case sets up.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::proxy::Proxy;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("keys::this_users_own_need_no_telling", this_users_own),
        case("keys::a_stranger_is_refused_and_told_what_to_do", stranger),
        case("keys::authorized_and_pinned_is_let_in", authorized_and_pinned),
        case("keys::known_by_the_environment_is_let_in", known_by_environment),
        case("keys::an_unknown_worker_is_never_trusted", unknown_worker),
        case("keys::another_key_behind_a_known_address", another_key),
        case("keys::a_key_without_the_permission_runs_nothing", without_permission),
        case("keys::a_key_that_others_can_read_is_refused", exposed_key),
        case("keys::an_empty_key_is_one_notice", empty_key),
        case("keys::what_is_no_key_of_a_worker_ends_every_command", unknown_keys),
        case("keys::a_list_that_is_no_file_is_told_at_the_start", no_list),
        case("keys::a_relay_changes_nothing", relay),
        case("keys::a_command_shows_and_makes_them", command),
    ]
}

/// This user's public key.
fn own_key(scratch: &Scratch) -> String {
    let shown = Client::call(scratch, scratch.path(), &["key", "show"]).finish();
    assert_eq!(shown.code(), 0, "{}", shown.stderr);
    let key = shown.stdout.trim().to_owned();
    assert!(key.starts_with("ed25519:"), "{key}");
    key
}

/// Runs `paths` on one address only.
fn run_on(scratch: &Scratch, address: &str) -> Client {
    let fixture = Fixture::named("paths");
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    Client::run_human(scratch, &fixture).args(["--local-slots", "0", "--worker", address])
}

fn authorize(other: &Scratch, line: &str) {
    let path = other.write("config/distest/authorized_keys", &format!("{line}\n"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a file of ours");
}

fn without_pin(address: &str) -> &str {
    address.split('#').next().expect("a split has a first part")
}

fn pin(address: &str) -> &str {
    address.split_once('#').expect("a worker prints its key").1
}

fn passed(finished: &Finished) {
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let all = format!("{} passed", Fixture::named("paths").model.verdicts.len());
    assert!(finished.stderr.contains(&all), "{}", finished.stderr);
}

fn this_users_own(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 2);
    passed(&run_on(scratch, without_pin(&worker.address)).finish());
    passed(&run_on(scratch, &worker.address).finish());
}

fn stranger(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 2);
    let key = own_key(scratch);
    let finished = run_on(scratch, &worker.address).finish();
    finished.complains(97, &["does not let this key in", "distest-worker invite", &key]);
    assert!(worker.log().contains(&key), "the worker names the key: {}", worker.log());
}

fn authorized_and_pinned(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 2);
    // While the worker runs.
    authorize(&other, &format!("{} run a-colleague", own_key(scratch)));
    passed(&run_on(scratch, &worker.address).finish());
    authorize(&other, "# nobody");
    run_on(scratch, &worker.address).finish().complains(97, &["does not let this key in"]);
}

fn known_by_environment(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 2);
    let ci = scratch.join("ci-key");
    let path = ci.display().to_string();
    let made = Client::call(scratch, scratch.path(), &["key", "new", "--out", &path]).finish();
    authorize(&other, &format!("{} run ci", made.stdout.trim()));
    let address = without_pin(&worker.address);
    let pem = fs::read_to_string(&ci).expect("it was written");
    for key in [path.as_str(), pem.as_str()] {
        let run = run_on(scratch, address).env("DISTEST_KEY", key);
        passed(&run.env("DISTEST_KNOWN_WORKERS", pin(&worker.address)).finish());
    }
    assert!(!scratch.join("config/distest/key").exists(), "no key but the given one");
}

fn unknown_worker(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 2);
    // It would let us in, but who is it?
    authorize(&other, &format!("{} run us", own_key(scratch)));
    let key = pin(&worker.address).to_owned();
    for _ in 0..2 {
        let finished = run_on(scratch, without_pin(&worker.address)).finish();
        finished.complains(97, &[&key, "not known here", "invit"]);
    }
}

fn another_key(scratch: &Scratch) {
    let (other, impostor) = (Scratch::new(), Scratch::new());
    let worker = Worker::start(&other, "w1", 2);
    let false_worker = Worker::start(&impostor, "w2", 2);
    let ours = own_key(scratch);
    for side in [&other, &impostor] {
        authorize(side, &format!("{ours} run us"));
    }
    // Both are known, each at its address; now the impostor answers at the other's.
    let known = format!(
        "{} {} w1\n{} {} w2\n",
        pin(&worker.address),
        false_worker.socket(),
        pin(&false_worker.address),
        worker.socket()
    );
    scratch.write("config/distest/known_workers", &known);
    let finished = run_on(scratch, without_pin(&false_worker.address)).finish();
    finished.complains(97, &["is expected there", pin(&worker.address)]);
    let swapped = format!("tcp://{}#{}", false_worker.socket(), pin(&worker.address));
    run_on(scratch, &swapped).finish().complains(97, &["is expected there"]);
    assert!(!false_worker.log().contains(": begins"), "{}", false_worker.log());
}

fn without_permission(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 2);
    authorize(&other, &format!("{} view,copy us", own_key(scratch)));
    let finished = run_on(scratch, &worker.address).finish();
    finished.complains(97, &["permission `run`", "authorized_keys"]);
}

fn exposed_key(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 2);
    own_key(scratch);
    let path = scratch.join("config/distest/key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a file of ours");
    run_on(scratch, &worker.address).finish().complains(97, &["not safe", "chmod 600"]);
}

fn empty_key(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    let run = Client::run_human(scratch, &fixture)
        .worker("tcp://127.0.0.1:1")
        .worker("tcp://127.0.0.1:2")
        .env("DISTEST_KEY", "");
    let finished = run.finish();
    finished.complains(0, &["DISTEST_KEY is empty"]);
    assert_eq!(finished.stderr.matches("warning").count(), 1, "{}", finished.stderr);
}

/// A pipe, to which nobody ever writes.
fn no_list(scratch: &Scratch) {
    let list = scratch.join("config/distest/authorized_keys");
    fs::create_dir_all(scratch.join("config/distest")).expect("ours");
    nix::unistd::mkfifo(&list, nix::sys::stat::Mode::S_IRWXU).expect("ours");
    let path = list.display().to_string();
    for args in [
        &["serve", "--listen", "127.0.0.1:0"][..],
        &["serve", "--listen", "127.0.0.1:0", "--authorized-keys", &path],
        &["join", "127.0.0.1:9"],
        &["stdio"],
        &["registry", "--listen", "127.0.0.1:0", "--authorized-keys", &path],
    ] {
        let told = Client::call(scratch, scratch.path(), &[&["worker"], args].concat()).finish();
        told.complains(96, &["authorized_keys: it is a pipe, not a file", "hint: put a file"]);
        assert_eq!(told.stdout, "", "{args:?} is not ready");
    }
}

fn relay(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 2);
    authorize(&other, &format!("{} run us", own_key(scratch)));
    // It sees ciphertext, and may pass it on.
    let proxy = Proxy::to(worker.socket());
    let through = format!("{}#{}", proxy.address, pin(&worker.address));
    passed(&run_on(scratch, &through).finish());
    assert!(proxy.sent() > 0);
}

fn command(scratch: &Scratch) {
    let call = |args: &[&str]| Client::call(scratch, scratch.path(), args).finish();
    let key = own_key(scratch);
    assert_eq!(call(&["key", "show"]).stdout.trim(), key, "it stays the same");
    call(&["key", "new"]).complains(96, &["already"]);
    let mode = fs::metadata(scratch.join("config/distest/key")).expect("it was made");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    // One for a CI service, and what it is to workers.
    let of_ci = call(&["key", "new", "--out", "ci"]).stdout;
    let shown = |value: &str| {
        Client::call(scratch, scratch.path(), &["key", "show"]).env("DISTEST_KEY", value).finish()
    };
    assert_eq!(shown("ci").stdout, of_ci);
    assert_ne!(of_ci.trim(), key);
    shown("").complains(96, &["DISTEST_KEY is empty"]);
    let secret = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp";
    for value in ["/nonexistent", secret] {
        let told = shown(value);
        told.complains(96, &["neither the path of a file", "key new --out FILE"]);
        assert!(!told.stderr.contains(secret), "{}", told.stderr);
    }
}

fn unknown_keys(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    for value in ["rubbish", "no/rubbish", "ed25519:rubbish"] {
        let all: [&[&str]; 5] =
            [&["workers"], &["exec", "--all", "--", "true"], &["key", "show"], &["list"], &["run"]];
        for args in all {
            let call = Client::call(scratch, &fixture.root, args);
            let told = call.env("DISTEST_KNOWN_WORKERS", value).finish();
            told.complains(2, &["DISTEST_KNOWN_WORKERS", "rubbish`"]);
        }
        let call = Client::call(scratch, scratch.path(), &["doctor"]);
        let told = call.env("DISTEST_KNOWN_WORKERS", value).finish();
        assert_eq!(told.code(), 96, "{}", told.stdout);
        assert!(told.stdout.contains("WRONG  configuration: invalid"), "{}", told.stdout);
    }
}
