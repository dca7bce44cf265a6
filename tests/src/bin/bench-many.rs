//! What a runner costs per test: `cargo run --release -p distest-tests --bin bench-many -- [ROUNDS] [JOBS]`
//!
//! On the fixture `many` (2,000 tests that do next to nothing, debug build), paired: each round runs
//! all contenders one after the other, and ratios are taken within a round.
//!
//! - `raw loop`: posix_spawn of the test binary with `--exact NAME --nocapture`, JOBS at a time, in
//!   a process of its own; knows the names beforehand and reads no output. Its tests get a bare
//!   environment.
//! - `same env`: the same with the environment that cargo gives to tests. Its `LD_LIBRARY_PATH` costs
//!   the dynamic loader something at each start, whoever starts them.
//! - `20 x 100`: the same with 100 names and `--test-threads=1` for each process.
//! - `process`, `auto`: `cargo distest run --isolation … -j JOBS`, embedded worker, with history.
//! - `edited`: `auto` after one more line in the library, which `cargo test --no-run` has built.
//! - `nextest`: `cargo nextest run --test-threads JOBS` with its defaults, if it is installed.
//! - `cargo test`: `cargo test --lib`; `build`: `cargo test --no-run` with nothing to build.
//!
//! All but the two loops include what `build` costs. Each ratio is given as it is, and after that
//! with the round's `build` subtracted, which is then the runner's own. Everything is built and has
//! run before the first round. Processor time is user + system of the whole process tree; output
//! goes to /dev/null.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use distest_tests::fixture::Fixture;
use distest_tests::measure::{Cost, beside_this, measure, median};
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;
use serde_json::Value;

const ROUNDS: usize = 7;
const JOBS: usize = 2;

/// Names in one process of the contender `20 x 100`.
const NAMES: usize = 100;

struct Contender {
    name: &'static str,
    command: Command,
    costs: Vec<Cost>,
}

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [mode, binary, names, jobs, together] = &args[..]
        && mode == "raw-loop"
    {
        let (binary, names) = (Path::new(binary), Path::new(names));
        return raw_loop(binary, names, number(jobs)?, number(together)?);
    }
    let rounds = args.first().map_or(Ok(ROUNDS), |text| number(text))?;
    let jobs = args.get(1).map_or(Ok(JOBS), |text| number(text))?;
    compare(rounds, jobs)
}

fn compare(rounds: usize, jobs: usize) -> io::Result<()> {
    let scratch = Scratch::new();
    // A copy, because it is edited.
    let fixture = Fixture::copied("many", &scratch);
    let tests = fixture.model.verdicts.len();
    let mut contenders = contenders(&scratch, &fixture, jobs)?;
    for contender in &contenders {
        // Warm: caches of files, of listings, history.
        checked(contender)?;
        checked(contender)?;
    }
    for round in 1..=rounds {
        for contender in &mut contenders {
            if contender.name == EDITED {
                edit(&scratch, &fixture, round)?;
            }
            let cost = checked(contender)?;
            contender.costs.push(cost);
        }
        println!("round {round} of {rounds} done");
    }
    println!("\n{tests} tests, {jobs} at a time, medians of {rounds} rounds");
    println!("ratios to three of them: as it is | less the round's `build`");
    for (label, of) in
        [("CPU", (|cost| cost.cpu_s) as fn(&Cost) -> f64), ("wall", |cost| cost.wall_s)]
    {
        table(label, &contenders, tests, of);
    }
    Ok(())
}

fn table(label: &str, contenders: &[Contender], tests: usize, of: fn(&Cost) -> f64) {
    let costs = |name: &str| -> Vec<f64> {
        let found = contenders.iter().find(|contender| contender.name == name);
        found.map(|contender| contender.costs.iter().map(of).collect()).unwrap_or_default()
    };
    let (references, build) = ([RAW, SAME_ENV, BATCHES], costs(BUILD));
    let [raw, same, batches] = references;
    println!("\n{label:<10} {:>9} {raw:>17} {same:>17} {batches:>17}", "ms/test");
    for contender in contenders {
        let own = costs(contender.name);
        let loops = references.contains(&contender.name);
        let ratios = |reference: &[f64]| {
            let pairs = || own.iter().zip(reference).zip(&build);
            let whole = median(pairs().map(|((own, reference), _)| own / reference));
            let less = median(pairs().map(|((own, reference), build)| {
                (own - if loops { 0.0 } else { *build }) / reference
            }));
            format!("{whole:.2} | {less:.2}")
        };
        let per_test = 1000.0 * median(own.iter().copied()) / tests as f64;
        let [raw, same, batches] = references.map(|name| ratios(&costs(name)));
        println!("{:<10} {per_test:>9.3} {raw:>17} {same:>17} {batches:>17}", contender.name);
    }
}

const RAW: &str = "raw loop";
const SAME_ENV: &str = "same env";
const BATCHES: &str = "20 x 100";
const EDITED: &str = "edited";
const BUILD: &str = "build";

fn contenders(scratch: &Scratch, fixture: &Fixture, jobs: usize) -> io::Result<Vec<Contender>> {
    let jobs = jobs.to_string();
    let names = scratch.join("names");
    let list: Vec<&str> = fixture.model.verdicts.keys().map(|case| case.name.as_str()).collect();
    fs::write(&names, list.join("\n"))?;
    let with = |program: &Path, args: &[&str]| in_fixture(scratch, fixture, program, args);
    // An edit changes the file and not its name, which depends on the package alone.
    let binary = test_binary(with(&cargo(), &["test", "--no-run", "--message-format", "json"]))?;
    let raw_loop = |together: usize| -> io::Result<Command> {
        let mut command = with(&beside_this("bench-many")?, &["raw-loop"]);
        command.arg(&binary).arg(&names).arg(&jobs).arg(together.to_string());
        Ok(command)
    };
    let distest = |isolation: &str| {
        let history = scratch.join(format!("{isolation}.sqlite"));
        let args = ["distest", "run", "--isolation", isolation, "-j", &jobs, "--history"];
        let mut command = with(&product().client, &args);
        command.arg(history);
        command
    };
    let mut all = vec![
        (RAW, raw_loop(1)?),
        (SAME_ENV, {
            let mut command = raw_loop(1)?;
            command.envs(cargo_environment(scratch, fixture)?);
            command
        }),
        (BATCHES, raw_loop(NAMES)?),
        ("process", distest("process")),
        ("auto", distest("auto")),
        (EDITED, distest("auto")),
        ("cargo test", with(&cargo(), &["test", "--lib"])),
        (BUILD, with(&cargo(), &["test", "--no-run"])),
    ];
    let installed = with(Path::new("cargo-nextest"), &["nextest", "--version"])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if installed {
        let args = ["nextest", "run", "--test-threads", &jobs];
        all.push(("nextest", with(Path::new("cargo-nextest"), &args)));
    } else {
        println!("cargo-nextest is not installed and left out");
    }
    Ok(all
        .into_iter()
        .map(|(name, command)| Contender { name, command, costs: Vec::new() })
        .collect())
}

/// What cargo gives to the fixture's tests, caught by a target runner.
fn cargo_environment(
    scratch: &Scratch,
    fixture: &Fixture,
) -> io::Result<Vec<(OsString, OsString)>> {
    let folder = scratch.join("environment");
    fs::create_dir_all(&folder)?;
    let runner = beside_this("dump-environment")?;
    let mut command = in_fixture(scratch, fixture, &cargo(), &["test", "--lib", "--config"]);
    command.arg(format!("target.'cfg(all())'.runner = {:?}", runner.display().to_string()));
    command.args(["--", "--list"]).env("ENVIRONMENT_OUT", &folder).stderr(Stdio::null());
    if !command.stdout(Stdio::null()).status()?.success() {
        return Err(io::Error::other("cargo test --list failed"));
    }
    let Some(file) = fs::read_dir(&folder)?.next() else {
        return Err(io::Error::other("cargo ran no test binary"));
    };
    let bytes = fs::read(file?.path())?;
    let entries = bytes.split(|byte| *byte == 0);
    Ok(entries
        .filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b'=')?;
            let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
            Some((text(&entry[..at]), text(&entry[at + 1..])))
        })
        .collect())
}

fn in_fixture(scratch: &Scratch, fixture: &Fixture, program: &Path, args: &[&str]) -> Command {
    let mut command = scratch.command(program);
    command.args(args).current_dir(&fixture.root);
    command.env("CARGO_TARGET_DIR", &fixture.target_dir);
    command
}

/// Adds a line to the library and builds it.
fn edit(scratch: &Scratch, fixture: &Fixture, round: usize) -> io::Result<()> {
    let library = fixture.root.join("src/lib.rs");
    let text = fs::read_to_string(&library)?;
    fs::write(&library, format!("{text}\npub const ROUND_{round}: usize = {round};\n"))?;
    let mut build = in_fixture(scratch, fixture, &cargo(), &["test", "--no-run"]);
    let status = build.stdin(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other("the edited library doesn't build"))
    }
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

/// The least that a process for each so many tests can cost.
fn raw_loop(binary: &Path, names: &Path, jobs: usize, together: usize) -> io::Result<()> {
    let text = fs::read_to_string(names)?;
    let names: Vec<&str> = text.lines().collect();
    let groups: Vec<&[&str]> = names.chunks(together.max(1)).collect();
    let mode = if together > 1 { "--test-threads=1" } else { "--nocapture" };
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Without pre_exec the standard library uses posix_spawn.
                    let status = Command::new(binary)
                        .arg("--exact")
                        .args(*group)
                        .arg(mode)
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
        failed => Err(io::Error::other(format!("{failed} processes failed"))),
    }
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(|_| io::Error::other(format!("{text} is no number")))
}
