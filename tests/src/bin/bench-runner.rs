//! `bench-runner [CALLS]`: what `cargo distest runner` adds to an executable's own time.
//!
//! Starts a worker on loopback and calls a small executable directly and through the runner in
//! turn, so that both meet the same machine; prints paired medians, and the time that 100 MB take
//! through standard input. Meant for `cargo run --release -p distest-tests --bin bench-runner`.

#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::fs::File;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use distest_tests::measure::median;
use distest_tests::product::product;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;

const CALLS: usize = 1000;
const STDIN_BYTES: u64 = 100_000_000;

fn main() -> io::Result<()> {
    let calls = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(CALLS);
    let scratch = Scratch::new();
    let worker = Worker::start(&scratch, "w1", 1);
    // In a package, as everything that cargo runs.
    scratch.write("project/Cargo.toml", "[package]\nname = \"project\"\nedition = \"2024\"\n");
    scratch.write("project/src/lib.rs", "");
    let executable = scratch.join("project/target/debug/executable");
    std::fs::create_dir_all(scratch.join("project/target/debug"))?;
    std::fs::copy("/bin/true", &executable)?;
    let through = || {
        let mut command = scratch.command(&product().client);
        command
            .args(["runner".as_ref(), executable.as_os_str()])
            .env("DISTEST_WORKERS", &worker.address)
            .env("DISTEST_RUNNER_IDLE", "2")
            .current_dir(scratch.join("project"))
            .stdin(Stdio::null());
        command
    };
    let direct = || {
        let mut command = scratch.command(&executable);
        command.current_dir(scratch.join("project")).stdin(Stdio::null());
        command
    };
    // The first call starts the agent, connects and ships.
    let first = timed(&mut through())?;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..calls {
        here.push(timed(&mut direct())?.as_secs_f64() * 1e3);
        there.push(timed(&mut through())?.as_secs_f64() * 1e3);
    }
    let added = here.iter().zip(&there).map(|(here, there)| there - here);
    println!("calls                 {calls}");
    println!("first call            {:.1} ms", first.as_secs_f64() * 1e3);
    println!("median, direct        {:.2} ms", median(here.clone()));
    println!("median, runner        {:.2} ms", median(there.clone()));
    println!("median, added in pair {:.2} ms", median(added));

    let zeros = scratch.join("zeros");
    File::create(&zeros)?.set_len(STDIN_BYTES)?;
    let mut command = scratch.command(&product().client);
    command
        .args(["runner", "wc", "-c"])
        .env("DISTEST_WORKERS", &worker.address)
        .env("DISTEST_RUNNER_IDLE", "2")
        .current_dir(scratch.join("project"))
        .stdin(File::open(&zeros)?)
        .stdout(Stdio::null());
    let took = timed(&mut command)?;
    println!("100 MB through stdin  {:.2} s", took.as_secs_f64());
    Ok(())
}

fn timed(command: &mut Command) -> io::Result<Duration> {
    let started = Instant::now();
    let status = command.status()?;
    let took = started.elapsed();
    match status.success() {
        true => Ok(took),
        false => Err(io::Error::other(format!("{command:?} ended with {status}"))),
    }
}
