//! `half-open [COUNT]`: what COUNT connections that never prove a key do to a worker and to who may use it.
//!
//! Opens them all at once (10,000 unless told otherwise) and keeps them; meanwhile a client looks at the
//! worker and runs a fixture there. Prints the times with and without, and what the worker has open.
//! Panics if the client is refused. Meant for `cargo run --release -p distest-tests --bin half-open`.

#![expect(clippy::print_stdout, reason = "it prints its result")]

use std::io::Write;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Instant;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const COUNT: usize = 10_000;
/// Descriptors that this process needs beside its connections.
const OTHERS: u64 = 256;

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(COUNT);
    let wanted = count as u64 + OTHERS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the system knows");
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_err() {
        println!("can't be tried here: {hard} files may be open, and {wanted} are needed");
        return ExitCode::FAILURE;
    }
    let scratch = Scratch::new();
    let worker = Worker::start(&scratch, "w1", 2);
    let fixture = Fixture::named("environment");
    let before = use_it(&scratch, &worker, &fixture);
    println!("without strangers: look {:.3} s, run {:.3} s", before.0, before.1);
    let began = Instant::now();
    let mut strangers = Vec::new();
    let mut refused = 0;
    for number in 0..count {
        match TcpStream::connect(worker.socket()) {
            Ok(mut stream) => {
                // Half of them begin a handshake. They may have been sent away already.
                if number % 2 == 0 {
                    let _ = stream.write_all(b"\x16\x03\x01\x02\x00");
                }
                strangers.push(stream);
            }
            Err(_) => refused += 1,
        }
    }
    let took = began.elapsed().as_secs_f64();
    println!("{} strangers came in {took:.2} s, {refused} could not", strangers.len());
    let open = std::fs::read_dir(format!("/proc/{}/fd", worker.process.pid()));
    println!("the worker has {} files open", open.map_or(0, Iterator::count));
    let during = use_it(&scratch, &worker, &fixture);
    println!("beside them:       look {:.3} s, run {:.3} s", during.0, during.1);
    drop(strangers);
    ExitCode::SUCCESS
}

/// Seconds to look at a worker, and to run a fixture there; whether both went well is checked.
fn use_it(scratch: &Scratch, worker: &Worker, fixture: &Fixture) -> (f64, f64) {
    let began = Instant::now();
    let args = ["workers", "--worker", &worker.address, "--format", "json"];
    let looked = Client::call(scratch, scratch.path(), &args).finish();
    assert!(looked.stdout.contains("\"usable\":true"), "{}{}", looked.stdout, looked.stderr);
    let look = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let run = Client::run(scratch, fixture).only_on(std::slice::from_ref(worker)).finish();
    assert_eq!(run.transcript(0).verdicts, fixture.model.verdicts);
    (look, began.elapsed().as_secs_f64())
}
