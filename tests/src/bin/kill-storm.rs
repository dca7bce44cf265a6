//! Kills a random worker each second: `cargo run --release -p distest-tests --bin kill-storm -- [ROUNDS] [FIRST]`
//!
//! 10,000 tests of 5 ms run on four worker processes of two slots on this machine. Each second one
//! of them is killed with SIGKILL and started again at its address. Rounds are numbered from FIRST,
//! which is also the seed of who is killed: odd ones start a process for each test, even ones run
//! in batches. Each test binds a socket of its name for as long as it runs, so a test that runs
//! twice at once fails. Exits with 1 if a round does not end with 10,000 passes, each once.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Finished};
use distest_tests::random;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Transcript, Verdict};
use distest_tests::worker::Worker;
use nix::sys::signal::Signal;

const ROUNDS: u64 = 20;
const TESTS: usize = 10_000;
const WORKERS: u32 = 4;
const SLOTS: u32 = 2;
const KILL_EVERY: Duration = Duration::from_secs(1);
/// For what other processes of a killed worker to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut numbers = env::args().skip(1).map(|text| text.parse::<u64>().ok());
    let (rounds, first) =
        (numbers.next().flatten().unwrap_or(ROUNDS), numbers.next().flatten().unwrap_or(1));
    let scratch = Scratch::new();
    let folder = subject(&scratch);
    let mut workers = Worker::fleet(&scratch, WORKERS, SLOTS);
    println!("building {TESTS} tests, and running them once in peace");
    let (mut good, mut kills_over_all) = (0, 0);
    let calm = client(&scratch, &folder, &workers, "process").finish();
    if let Err(error) = check(&calm) {
        println!("in peace: {error}");
        return ExitCode::FAILURE;
    }
    for seed in first..first + rounds {
        let isolation = if seed % 2 == 1 { "process" } else { "batch" };
        let began = Instant::now();
        let client = client(&scratch, &folder, &workers, isolation);
        let (over, storm_is_over) = channel::<()>();
        let (scratch, workers) = (&scratch, &mut workers);
        let (finished, kills) = thread::scope(|scope| {
            let storm = scope.spawn(move || storm(scratch, workers, seed, &storm_is_over));
            let finished = client.finish();
            drop(over);
            (finished, storm.join().expect("it killed and restarted in order"))
        });
        let wall = began.elapsed().as_secs_f64();
        kills_over_all += kills;
        let told = match check(&finished) {
            Ok(told) => {
                good += 1;
                told
            }
            Err(error) => format!("WRONG: {error}\n{}", finished.stderr),
        };
        println!("round {seed:>3} ({isolation:<7}): {kills:>3} kills, {wall:6.1} s, {told}");
    }
    println!("{good} of {rounds} rounds are right, {kills_over_all} kills");
    drop(workers);
    let left = scratch.left_after(GONE_WITHIN, |_| true);
    left.iter().for_each(|stray| println!("left behind: {stray:?}"));
    if good == rounds && left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn client(scratch: &Scratch, folder: &Path, workers: &[Worker], isolation: &str) -> Client {
    let args = ["run", "--offline", "--no-fail-fast", "--isolation", isolation];
    Client::call(scratch, folder, &args).json().only_on(workers)
}

/// Kills and restarts until it is over. Answers how often.
fn storm(scratch: &Scratch, workers: &mut [Worker], seed: u64, over: &Receiver<()>) -> u32 {
    let (mut state, mut kills) = (seed, 0);
    while over.recv_timeout(KILL_EVERY) == Err(RecvTimeoutError::Timeout) {
        let victim = (random::next(&mut state) % workers.len() as u64) as usize;
        let victim = &mut workers[victim];
        victim.process.signal(Signal::SIGKILL);
        victim.process.wait(DEADLINE).expect("nothing survives SIGKILL");
        let store = scratch.join(format!("store-{}", victim.name));
        victim.restart(scratch, SLOTS, &store);
        kills += 1;
    }
    kills
}

/// Says what a run came to, or what is wrong with it.
fn check(finished: &Finished) -> Result<String, String> {
    // No test has two verdicts, and the summary counts them.
    let transcript = Transcript::check(&finished.lines)?;
    let (verdicts, passed) = (transcript.verdicts.len(), transcript.count(Verdict::Pass));
    let again = transcript.attempts.iter().filter(|it| it.result == AttemptResult::Lost).count();
    let told = format!("{verdicts} verdicts, {passed} passes, {again} attempts lost and repeated");
    if finished.status.success() && verdicts == TESTS && passed == TESTS {
        return Ok(told);
    }
    let mut told = format!("{told}, {}", finished.status);
    let others = transcript.verdicts.iter().filter(|(_, verdict)| **verdict != Verdict::Pass);
    for (case, verdict) in others.take(20) {
        let attempts = transcript.attempts_of(case);
        let attempts = attempts.iter().map(|it| (it.result, &it.worker, &it.reason));
        let _ = write!(told, "\n  {case}: {verdict:?} after {:?}", attempts.collect::<Vec<_>>());
    }
    Err(told)
}

/// A package of so many tests, none of which can run twice at once on this machine.
fn subject(scratch: &Scratch) -> PathBuf {
    let manifest = "[workspace]\n[package]\nname = \"storm\"\nversion = \"0.1.0\"\n\
                    edition = \"2024\"\n[profile.dev]\ndebug = false\n";
    scratch.write("storm/Cargo.toml", manifest);
    let mut source = format!(
        "#[cfg(test)]\nfn alone(number: u32) {{\n    \
         use std::os::linux::net::SocketAddrExt;\n    use std::os::unix::net;\n    \
         let name = format!(\"kill-storm-{}-{{number}}\");\n    \
         let address = net::SocketAddr::from_abstract_name(name).unwrap();\n    \
         let _held = net::UnixListener::bind_addr(&address).expect(\"it runs twice at once\");\n    \
         std::thread::sleep(std::time::Duration::from_millis(5));\n}}\n",
        std::process::id()
    );
    for number in 0..TESTS {
        let _ = write!(source, "#[test]\nfn t_{number:05}() {{ alone({number}) }}\n");
    }
    scratch.write("storm/src/lib.rs", &source);
    scratch.join("storm")
}
