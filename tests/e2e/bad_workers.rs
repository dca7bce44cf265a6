//! Addresses that yield no usable worker: a warning and the embedded worker, or exit 97.

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::impostor::{Impostor, Manner, refusing_address};
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;

/// The greeting of a worker that uses no keys: magic, version, length, a map.
const WITHOUT_KEYS: [u8; 17] =
    [0xd1, b'd', b'i', b's', b't', b'e', b's', b't', 0, 1, 0, 0, 0, 0, 0, 1, 0x80];

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("bad_worker::refuses", |scratch| unusable(scratch, &refusing_address(), &["refused"])),
        case("bad_worker::speaks_http", |scratch| poses(scratch, &Impostor::http(), &["distest"])),
        case("bad_worker::speaks_nonsense", |scratch| {
            poses(scratch, &Impostor::garbage(), &["distest"]);
        }),
        case("bad_worker::closes_at_once", |scratch| {
            poses(scratch, &Impostor::start(Manner::Closes), &["closed"]);
        }),
        case("bad_worker::stays_silent", |scratch| {
            poses(scratch, &Impostor::start(Manner::Silent), &[]);
        }),
        case("bad_worker::has_no_key", |scratch| {
            let greeting = Manner::Says(WITHOUT_KEYS.to_vec());
            poses(scratch, &Impostor::start(greeting), &["distest peer"]);
        }),
        case("bad_worker::nobody_waits_for_it_where_the_run_is_short", stays_local),
        case("bad_worker::beside_a_good_one", beside_a_good_one),
        case("bad_worker::fallback_forbidden", fallback_forbidden),
    ]
}

fn poses(scratch: &Scratch, impostor: &Impostor, texts: &[&str]) {
    unusable(scratch, &impostor.address, texts);
}

/// The run falls back to the embedded worker and says which address it was, and why.
fn unusable(scratch: &Scratch, address: &str, texts: &[&str]) {
    let fixture = Fixture::named("paths");
    let junit = scratch.join("junit.xml");
    let finished = Client::run_human(scratch, &fixture)
        .worker(address)
        .args(["--junit".as_ref(), junit.as_os_str()])
        .finish();
    let socket = address.trim_start_matches("tcp://");
    finished.complains(0, &["warning", socket]);
    finished.complains(0, texts);
    let report = Report::read(&junit).expect("the JUnit file can be read");
    report.check(&fixture.model.verdicts).expect("JUnit says what the model says");
}

/// A run whose tests are known to be quick waits for workers no longer than it takes, unless told to.
fn stays_local(scratch: &Scratch) {
    const STAYS: &str = "Staying local";
    let fixture = Fixture::named("paths");
    let silent = Impostor::start(Manner::Silent);
    let run = |args: &[&str]| {
        let finished =
            Client::run_human(scratch, &fixture).args(["--local-slots", "2"]).args(args).finish();
        finished.complains(0, &["Summary"]);
        finished.stderr
    };
    let on_silent = ["--worker", &silent.address];
    // Nothing is known of the tests, so it waits to the end.
    let first = run(&on_silent);
    assert!(!first.contains(STAYS) && first.contains("can't be used"), "{first}");
    let known = run(&on_silent);
    assert!(known.contains(STAYS), "{known}");
    let told = run(&[on_silent[0], on_silent[1], "--wait-workers", "1"]);
    assert!(!told.contains(STAYS) && told.contains("can't be used"), "{told}");
    let alone = run(&[]);
    assert!(!alone.contains(STAYS), "nobody else is there: {alone}");
}

fn beside_a_good_one(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    let worker = Worker::start(scratch, "w1", 1);
    let transcript = Client::run(scratch, &fixture)
        .worker(&refusing_address())
        .worker(&worker.address)
        .args(["--local-slots", "0"])
        .finish()
        .transcript(0);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
    assert!(transcript.attempts.iter().all(|attempt| attempt.worker == "w1"));
}

fn fallback_forbidden(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let address = refusing_address();
    let run = || Client::run_human(scratch, &fixture).worker(&address);
    let socket = address.trim_start_matches("tcp://");
    run().finish().complains(97, &["error", socket]);
    let transcript = run().json().finish().transcript(97);
    assert!(transcript.attempts.is_empty(), "nothing runs");

    // Nor when the tests are known to be quick here.
    Client::run_human(scratch, &fixture).finish().complains(0, &["Summary"]);
    let silent = Impostor::start(Manner::Silent);
    let known = Client::run_human(scratch, &fixture).worker(&silent.address);
    let known = known.args(["--local-slots", "2"]).json().finish().transcript(97);
    assert!(known.attempts.is_empty(), "nothing runs here either");
}
