//! `bench-ssh [ROUNDS]`: time from the start of a run to its first test on a machine behind ssh, by step.
//!
//! A real sshd on loopback, nothing installed behind it. Each round begins with an empty home there
//! (asks, copies, starts) and runs again (starts). Every call of ssh is timed by the program that
//! stands for it, and the rest by the lines that the run prints. Meant for
//! `cargo run --release -p distest-tests --bin bench-ssh`.

#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::measure::median;
use distest_tests::scratch::Scratch;
use distest_tests::sshd::{Sshd, possible};
use distest_tests::transcript::Line;

const ROUNDS: usize = 5;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    if let Err(why) = possible() {
        println!("can't be measured here: {why}");
        return;
    }
    let scratch = Scratch::new();
    let sshd = Sshd::start(&scratch);
    let fixture = Fixture::named("paths");
    let timed = timed_client(&scratch, &sshd.client);
    // Builds, so that rounds don't.
    run(&scratch, &fixture, &sshd, &timed, &mut BTreeMap::new(), "");
    let mut steps: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        let began = Instant::now();
        let mut login = Command::new(&sshd.client);
        let (host, port) = sshd.address.trim_start_matches("ssh://").split_once(':').expect("both");
        login.args(["-T", "-p", port, "--", host, "true"]).stdin(Stdio::null());
        assert!(login.status().expect("ssh can be started").success());
        let took = began.elapsed().as_secs_f64();
        steps.entry("0 a login alone (connect)".to_owned()).or_default().push(took);
        let _ = fs::remove_dir_all(sshd.home.join("cache"));
        run(&scratch, &fixture, &sshd, &timed, &mut steps, "1 first");
        run(&scratch, &fixture, &sshd, &timed, &mut steps, "2 again");
    }
    println!("medians of {rounds} rounds, in ms");
    for (step, took) in steps {
        println!("{:<44} {:8.1}", &step[2..], median(took.into_iter()) * 1e3);
    }
}

/// An `ssh` that notes when it was started, and what for.
fn timed_client(scratch: &Scratch, client: &Path) -> PathBuf {
    let log = scratch.join("calls");
    let script = format!(
        "#!/bin/bash\ncase \"$*\" in *'cat >'*) what=copy;; *) what=start;; esac\n\
         echo \"$what begins $EPOCHREALTIME\" >> {log}\n\
         exec {client} \"$@\"\n",
        log = log.display(),
        client = client.display(),
    );
    let path = scratch.write("timed-ssh", &script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a file of ours");
    path
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs_f64()
}

fn run(
    scratch: &Scratch,
    fixture: &Fixture,
    sshd: &Sshd,
    ssh: &Path,
    steps: &mut BTreeMap<String, Vec<f64>>,
    kind: &str,
) {
    let calls = scratch.join("calls");
    let _ = fs::remove_file(&calls);
    let began = now();
    let mut running = Client::run(scratch, fixture)
        .args(["--local-slots", "0", "--isolation", "process", "--no-history"])
        .worker(&sshd.address)
        .env("DISTEST_SSH", ssh)
        .start();
    let mut first = 0.0;
    running.until(|line| {
        first = now();
        matches!(line, Line::Test(_))
    });
    running.finish().transcript(0);
    let told = fs::read_to_string(&calls).expect("ssh was called");
    let at = |what: &str, nth: usize| -> Option<f64> {
        told.lines().filter_map(|line| line.strip_prefix(what)?.trim().parse().ok()).nth(nth)
    };
    let mut note = |step: &str, took: f64| {
        if !kind.is_empty() {
            steps.entry(format!("{kind} run: {step}")).or_default().push(took);
        }
    };
    let probe = at("start begins", 0).expect("it was asked");
    note("a build that has nothing to do, until ssh", probe - began);
    let mut last = probe;
    // Whoever calls ssh ends it when it has its answer.
    if let (Some(copy), Some(copied)) = (at("copy begins", 0), at("start begins", 1)) {
        note("b probe: connect and ask", copy - probe);
        note("c copy the worker", copied - copy);
        last = copied;
    }
    note("d start, hello, ship, first test", first - last);
    note("e all, until the first test", first - began);
}
