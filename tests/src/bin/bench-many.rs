//! What a runner costs per test: `cargo run --release -p distest-tests --bin bench-many -- [ROUNDS] [JOBS]`
//!
//! On the fixture `many` (2,000 tests that do next to nothing, debug build), paired: each round runs
//! all contenders one after the other, and ratios are taken within a round.
//!
//! - `raw loop`: posix_spawn of the test binary with `--exact NAME --nocapture`, JOBS at a time, in
//!   a process of its own; knows the names beforehand and reads no output.
//! - `distest`: `cargo distest run --isolation process -j JOBS`, embedded worker.
//! - `nextest`: `cargo nextest run --test-threads JOBS` with its defaults, if it is installed.
//! - `cargo`: `cargo test --no-run` with nothing to build, which the two above include.
//!
//! Everything is built and has run once before the first round. Nothing is subtracted. Processor
//! time is user + system of the whole process tree; output goes to /dev/null.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use distest_tests::fixture::Fixture;
use distest_tests::measure::{Cost, measure, median};
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;
use serde_json::Value;

const ROUNDS: usize = 7;
const JOBS: usize = 2;

struct Contender {
    name: &'static str,
    command: Command,
    costs: Vec<Cost>,
}

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [mode, binary, names, jobs] = &args[..]
        && mode == "raw-loop"
    {
        return raw_loop(Path::new(binary), Path::new(names), number(jobs)?);
    }
    let rounds = args.first().map_or(Ok(ROUNDS), |text| number(text))?;
    let jobs = args.get(1).map_or(Ok(JOBS), |text| number(text))?;
    compare(rounds, jobs)
}

fn compare(rounds: usize, jobs: usize) -> io::Result<()> {
    let fixture = Fixture::named("many");
    let tests = fixture.model.verdicts.len();
    let scratch = Scratch::new();
    let mut contenders = contenders(&scratch, &fixture, jobs)?;
    for contender in &contenders {
        // Warm: caches of files, of listings, history.
        checked(contender)?;
    }
    for round in 1..=rounds {
        for contender in &mut contenders {
            let cost = checked(contender)?;
            contender.costs.push(cost);
        }
        println!("round {round} of {rounds} done");
    }
    println!(
        "\n{tests} tests, {jobs} at a time, medians of {rounds} rounds; ratio to the raw loop"
    );
    println!(
        "{:<10} {:>13} {:>7} {:>14} {:>7}",
        "", "CPU ms/test", "ratio", "wall ms/test", "ratio"
    );
    let raw = contenders[0].costs.clone();
    for contender in &contenders {
        let per_test =
            |of: fn(&Cost) -> f64| 1000.0 * median(contender.costs.iter().map(of)) / tests as f64;
        let ratio = |of: fn(&Cost) -> f64| {
            median(contender.costs.iter().zip(&raw).map(|(own, raw)| of(own) / of(raw)))
        };
        println!(
            "{:<10} {:>13.3} {:>7.2} {:>14.3} {:>7.2}",
            contender.name,
            per_test(|cost| cost.cpu_s),
            ratio(|cost| cost.cpu_s),
            per_test(|cost| cost.wall_s),
            ratio(|cost| cost.wall_s),
        );
    }
    Ok(())
}

fn contenders(scratch: &Scratch, fixture: &Fixture, jobs: usize) -> io::Result<Vec<Contender>> {
    let jobs = jobs.to_string();
    let names = scratch.join("names");
    let list: Vec<&str> = fixture.model.verdicts.keys().map(|case| case.name.as_str()).collect();
    fs::write(&names, list.join("\n"))?;
    let with = |program: &Path, args: &[&str]| {
        let mut command = scratch.command(program);
        command.args(args).current_dir(&fixture.root);
        command.env("CARGO_TARGET_DIR", &fixture.target_dir);
        command
    };
    let mut raw = with(&env::current_exe()?, &["raw-loop"]);
    raw.arg(test_binary(with(&cargo(), &["test", "--no-run", "--message-format", "json"]))?);
    raw.arg(&names).arg(&jobs);
    let mut all = vec![
        ("raw loop", raw),
        (
            "distest",
            with(&product().client, &["distest", "run", "--isolation", "process", "-j", &jobs]),
        ),
        ("cargo", with(&cargo(), &["test", "--no-run"])),
    ];
    let installed = with(Path::new("cargo-nextest"), &["nextest", "--version"])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if installed {
        let args = ["nextest", "run", "--test-threads", &jobs];
        all.insert(2, ("nextest", with(Path::new("cargo-nextest"), &args)));
    } else {
        println!("cargo-nextest is not installed and left out");
    }
    Ok(all
        .into_iter()
        .map(|(name, command)| Contender { name, command, costs: Vec::new() })
        .collect())
}

fn checked(contender: &Contender) -> io::Result<Cost> {
    let cost = measure(&contender.command, None)?;
    if cost.exit_code == Some(0) {
        return Ok(cost);
    }
    Err(io::Error::other(format!("{} ended with {:?}", contender.name, cost.exit_code)))
}

fn test_binary(mut build: Command) -> io::Result<PathBuf> {
    let output = build.stderr(Stdio::inherit()).output()?;
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut found = messages.filter(|message| message["profile"]["test"] == true);
    let path = found.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.ok_or_else(|| io::Error::other("cargo built no test binary"))
}

/// The least that process per test can cost.
fn raw_loop(binary: &Path, names: &Path, jobs: usize) -> io::Result<()> {
    let text = fs::read_to_string(names)?;
    let names: Vec<&str> = text.lines().collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Without pre_exec the standard library uses posix_spawn.
                    let status = Command::new(binary)
                        .args(["--exact", name, "--nocapture"])
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .status();
                    if !status.is_ok_and(|status| status.success()) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        0 => Ok(()),
        failed => Err(io::Error::other(format!("{failed} tests failed"))),
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::Error::other(format!("{text} is no number")))
}
