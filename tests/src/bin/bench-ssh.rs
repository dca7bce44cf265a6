//! `bench-ssh [ROUNDS]`: time from the start of a run to its first test on a machine behind ssh, by step.
//!
//! A real sshd on loopback, nothing installed behind it. Each round begins with an empty home there
//! (asks, copies, starts) and runs again (starts). The steps are those that runs tell of. Meant for
//! `cargo run --release -p distest-tests --bin bench-ssh`.

#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::measure::median;
use distest_tests::scratch::Scratch;
use distest_tests::sshd::{Sshd, possible};
use distest_tests::transcript::Line;

const ROUNDS: usize = 5;
/// In the order in which they are taken.
const STEPS: [&str; 10] =
    ["read", "connect", "probe", "copy", "start", "hello", "session", "build", "files", "test"];

/// What took how long, in seconds: by kind of run, and step.
type Taken = BTreeMap<(&'static str, &'static str), Vec<f64>>;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    if let Err(why) = possible() {
        println!("can't be measured here: {why}");
        return;
    }
    let scratch = Scratch::new();
    let sshd = Sshd::start(&scratch);
    let fixture = Fixture::named("paths");
    // Builds, so that rounds don't.
    run(&scratch, &fixture, &sshd);
    let (mut logins, mut taken) = (Vec::new(), Taken::new());
    for _ in 0..rounds {
        logins.push(login(&sshd));
        let _ = fs::remove_dir_all(sshd.home.join("cache"));
        for kind in ["first run", "again"] {
            let (steps, all) = run(&scratch, &fixture, &sshd);
            for step in STEPS {
                let took = steps.get(step).copied();
                taken.entry((kind, step)).or_default().extend(took);
            }
            taken.entry((kind, "all, from the call to the first result")).or_default().push(all);
        }
    }
    println!("medians of {rounds} rounds, in ms");
    println!("{:<52} {:8.1}", "a login alone", median(logins.into_iter()) * 1e3);
    for kind in ["first run", "again"] {
        for step in STEPS.into_iter().chain(["all, from the call to the first result"]) {
            if let Some(took) = taken.get(&(kind, step)).filter(|took| !took.is_empty()) {
                let label = format!("{kind}: {step}");
                println!("{label:<52} {:8.1}", median(took.iter().copied()) * 1e3);
            }
        }
    }
}

/// How long ssh takes to do nothing there.
fn login(sshd: &Sshd) -> f64 {
    let began = Instant::now();
    let (host, port) = sshd.address.trim_start_matches("ssh://").split_once(':').expect("both");
    let mut login = Command::new(&sshd.client);
    login.args(["-T", "-p", port, "--", host, "true"]).stdin(Stdio::null());
    assert!(login.status().expect("ssh can be started").success());
    began.elapsed().as_secs_f64()
}

/// A run's steps, and all of it until the first result.
fn run(scratch: &Scratch, fixture: &Fixture, sshd: &Sshd) -> (BTreeMap<String, f64>, f64) {
    let began = Instant::now();
    let mut running = Client::run(scratch, fixture)
        .args(["--local-slots", "0", "--isolation", "process", "--no-history"])
        .worker(&sshd.address)
        .env("DISTEST_SSH", &sshd.client)
        .start();
    let mut all = 0.0;
    running.until(|line| {
        all = began.elapsed().as_secs_f64();
        matches!(line, Line::Test(_))
    });
    let transcript = running.finish().transcript(0);
    let [worker] = &transcript.summary.workers[..] else { panic!("one worker") };
    (worker.start_s.clone(), all)
}
