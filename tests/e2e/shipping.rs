//! What crosses the wire and what is executed, seen from outside: bytes are counted by a relay on
//! the socket, listings by a tracer of system calls.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::proxy::Proxy;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Transcript;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;

use crate::drain::authorize;
use crate::{case, case_if};

/// More than the control messages of a run of a dozen tests, less than any executable, however
/// well it is packed.
const CONTROL_BYTES_MAX: u64 = 48 * 1024;
/// Size of a data file of the project: more than that, too.
const DATA_BYTES: usize = 512 * 1024;
/// Holds a test binary of 16 MiB more than usual, and no second one.
const SMALL_STORE_BYTES: u64 = 30 << 20;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("ship::second_run_sends_no_blob", second_run),
        case("ship::store_survives_a_restart", store_survives),
        case("ship::what_a_colleague_has_sent_is_proved_not_sent", proved),
        case("ship::a_store_that_holds_one_binary_at_a_time_is_enough", small_store),
        case("ship::what_fits_nowhere_does_not_end_what_fits", too_large_for_the_store),
        case_if("list::second_run_executes_none_embedded", can_trace, |scratch| {
            second_run_lists_nothing(scratch, &[]);
        }),
        case_if("list::second_run_executes_none_with_a_worker", can_trace, |scratch| {
            second_run_lists_nothing(scratch, &Worker::fleet(scratch, 1, 2));
        }),
    ]
}

fn second_run(scratch: &Scratch) {
    let fixture = small_project(scratch);
    let worker = Worker::start(scratch, "w1", 2);
    let first = counted_run(scratch, &fixture, &worker);
    let second = counted_run(scratch, &fixture, &worker);
    check_nothing_shipped(&first, &second);
}

fn store_survives(scratch: &Scratch) {
    let fixture = small_project(scratch);
    let worker = Worker::start(scratch, "w1", 2);
    let first = counted_run(scratch, &fixture, &worker);
    // By SIGKILL: what was stored must be on the disk, whole, without an orderly end.
    drop(worker);
    let worker = Worker::start(scratch, "w1", 2);
    let second = counted_run(scratch, &fixture, &worker);
    check_nothing_shipped(&first, &second);
}

/// Another client of the same worker, with another key and the same files.
fn proved(scratch: &Scratch) {
    let fixture = small_project(scratch);
    let worker = Worker::start(scratch, "w1", 2);
    let first = counted_run(scratch, &fixture, &worker);
    let colleague = Scratch::new();
    authorize(scratch, &colleague, "run");
    let second = counted_run(&colleague, &fixture, &worker);
    // Proofs are longer than nothing.
    assert!(second.0 < 2 * CONTROL_BYTES_MAX, "the second client sent {} bytes", second.0);
    assert_eq!(second.1.summary.shipped_bytes, 0, "bytes of blobs of the second client");
    check_nothing_shipped(&first, &counted_run(&colleague, &fixture, &worker));
}

/// Each of its binaries fits into the worker's store, and no two do.
fn small_store(scratch: &Scratch) {
    let (worker, folder) = (worker_with_small_store(scratch), large_binaries(scratch, &[16; 4]));
    let run = || Client::call(scratch, &folder, &["run", "--offline"]).json();
    let run = || run().only_on(std::slice::from_ref(&worker)).finish().transcript(0);
    assert_eq!(run().summary.passed, 4);
    // Most of what the first run sent has made room for the rest.
    assert_eq!(run().summary.passed, 4);
}

fn too_large_for_the_store(scratch: &Scratch) {
    let (worker, folder) = (worker_with_small_store(scratch), large_binaries(scratch, &[1, 40, 1]));
    let client = Client::call(scratch, &folder, &["run", "--offline"]);
    let finished = client.only_on(&[worker]).finish();
    let texts = ["subject::t1", "--store-max", "no worker takes the tests that are left"];
    finished.complains(97, &texts);
    for line in ["3 tests run", "2 passed", "1 skipped"] {
        assert!(finished.stderr.contains(line), "{line}: {}", finished.stderr);
    }
}

fn worker_with_small_store(scratch: &Scratch) -> Worker {
    let store = scratch.join("small-store");
    Worker::start_changed(scratch, "small", 2, &store, Executable::Worker, |command| {
        command.args(["--store-max", &SMALL_STORE_BYTES.to_string()]);
    })
}

/// A package with one test in each of its test binaries, which are so many MiB larger than others.
fn large_binaries(scratch: &Scratch, sizes: &[u64]) -> PathBuf {
    scratch.write(
        "subject/Cargo.toml",
        "[package]\nname = 'subject'\nversion = '0.1.0'\nedition = '2024'\n[workspace]\n",
    );
    scratch.write("subject/src/lib.rs", "");
    for (number, mib) in sizes.iter().enumerate() {
        let bytes = mib << 20;
        let code = format!(
            "static ONES: [u8; {bytes}] = [1; {bytes}];\n\
             #[test]\nfn holds() {{ assert_eq!(std::hint::black_box(&ONES)[{bytes} - 1], 1); }}\n"
        );
        scratch.write(&format!("subject/tests/t{number}.rs"), &code);
    }
    scratch.join("subject")
}

/// A project with few files, one of which nothing can pack: sent again it would be seen.
fn small_project(scratch: &Scratch) -> Fixture {
    let fixture = Fixture::copied("basic", scratch);
    let mut state = 1u64;
    let bytes = (0..DATA_BYTES).map(|_| {
        // Knuth's MMIX generator; its high bits look like noise to any packer.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    fs::write(fixture.root.join("data.bin"), bytes.collect::<Vec<u8>>()).unwrap();
    fixture
}

fn check_nothing_shipped(first: &(u64, Transcript), second: &(u64, Transcript)) {
    assert!(first.0 > 10 * CONTROL_BYTES_MAX, "the first run sent only {} bytes", first.0);
    assert!(first.1.summary.shipped_bytes > 0, "the summary knows what the first run sent");
    assert!(second.0 < CONTROL_BYTES_MAX, "the second run sent {} bytes", second.0);
    assert_eq!(second.1.summary.shipped_bytes, 0, "bytes of blobs in the second run");
    assert_eq!(first.1.verdicts, second.1.verdicts);
}

/// Runs `basic` on one worker; returns the bytes that the relay saw on their way there.
fn counted_run(scratch: &Scratch, fixture: &Fixture, worker: &Worker) -> (u64, Transcript) {
    let proxy = Proxy::to(worker.socket());
    let (_, key) = worker.address.split_once('#').expect("a worker prints its key");
    let transcript = Client::run(scratch, fixture)
        .env("DISTEST_KNOWN_WORKERS", key)
        .args(&fixture.model.args)
        .args(["--local-slots", "0", "--worker", &proxy.address])
        .finish()
        .transcript(100);
    (proxy.sent(), transcript)
}

fn second_run_lists_nothing(scratch: &Scratch, workers: &[Worker]) {
    // Of its own: another case may have listed the shared one.
    let fixture = Fixture::copied("basic", scratch);
    let (listed, first) = traced_run(scratch, &fixture, workers, "first");
    assert!(listed > 0, "the tracer sees listings");
    assert!(first.summary.listed > 0, "the summary counts listings");
    let (listed, second) = traced_run(scratch, &fixture, workers, "second");
    assert_eq!(listed, 0, "listings executed by the second run");
    assert_eq!(second.summary.listed, 0, "listings in the second run's summary");
    assert_eq!(first.verdicts, second.verdicts);
}

/// Runs `basic` under strace; returns how many processes were given `--list`.
fn traced_run(
    scratch: &Scratch,
    fixture: &Fixture,
    workers: &[Worker],
    name: &str,
) -> (usize, Transcript) {
    let file = scratch.join(format!("{name}.strace"));
    let tracer = ["strace", "-f", "-qq", "-e", "trace=execve", "-s", "65536", "-o"].map(OsStr::new);
    let tracer = [&tracer[..], &[file.as_os_str(), OsStr::new("--")]].concat();
    let mut client = Client::call_through(scratch, &tracer, &fixture.root, &["run"])
        .json()
        .env("CARGO_TARGET_DIR", &fixture.target_dir)
        .args(&fixture.model.args);
    if !workers.is_empty() {
        client = client.only_on(workers);
    }
    let transcript = client.finish().transcript(100);
    let trace = fs::read(&file).expect("strace writes its file");
    let trace = String::from_utf8_lossy(&trace);
    // A call may be tried along PATH: one that failed executed nothing.
    let listings =
        trace.lines().filter(|line| line.contains("\"--list\"") && !line.contains("ENOENT"));
    (listings.count(), transcript)
}

fn can_trace() -> Result<(), String> {
    let output = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output();
    match output {
        Err(error) => Err(format!("strace: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
