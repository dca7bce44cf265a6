//! Many bytes through forwards: nobody else waits for them, and nobody keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use distest_tests::DEADLINE;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Line;
use distest_tests::worker::Worker;

use super::{Service, byte, rest};

/// What goes through one connection.
const MANY_BYTES: usize = 100 << 20;
/// What a process may need more while they do.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

/// One test's bytes go out, another's come in, both as slowly as can be: not before a third has
/// ended, which prints a lot.
pub(super) fn many_bytes(scratch: &Scratch, workers: &[Worker]) {
    let service = Service::new();
    let tests = r#"
        const BYTES: usize = MANY;
        const PIECE: &[u8] = &[b'x'; 1 << 16];

        #[test]
        fn out() {
            let mut stream = connect();
            stream.write_all(b"o").unwrap();
            for _ in 0..BYTES / PIECE.len() {
                stream.write_all(PIECE).unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, BYTES.to_string());
        }

        #[test]
        fn into() {
            let (mut stream, mut gate) = (connect(), connect());
            stream.write_all(b"i").unwrap();
            gate.write_all(b"g").unwrap();
            gate.read_exact(&mut [0]).unwrap();
            assert_eq!(std::io::copy(&mut stream, &mut std::io::sink()).unwrap(), BYTES as u64);
        }

        #[test]
        fn meanwhile() {
            let mut stream = connect();
            stream.write_all(b"m").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            println!("{}", "output ".repeat(300_000));
        }
    "#;
    let folder = service.tested_by(scratch, &tests.replace("MANY", &MANY_BYTES.to_string()));
    let args = ["--success-output", "final"];
    let mut client = service.run(scratch, &folder, workers).args(args).json().start();
    let pids: Vec<u32> =
        workers.iter().map(|worker| worker.process.pid()).chain([client.pid()]).collect();
    let (ended, third_ended) = channel();
    let serving = thread::spawn(move || serve_many(&service, &third_ended, &pids));
    client.until(|line| matches!(line, Line::Test(attempt) if attempt.name == "meanwhile"));
    ended.send(()).expect("the service waits for it");
    assert_eq!(client.finish().transcript(0).summary.passed, 3);
    for (pid, growth) in serving.join().expect("it served all") {
        assert!(growth < GROWTH_BYTES_MAX, "process {pid} grew by {growth} bytes");
    }
}

/// By how much each process grew while everything went through.
fn serve_many(service: &Service, third_ended: &Receiver<()>, pids: &[u32]) -> Vec<(u32, u64)> {
    let mut streams = BTreeMap::new();
    while streams.len() < 4 {
        let mut stream = service.accept();
        streams.insert(byte(&mut stream), stream);
    }
    let mut take = |kind: u8| streams.remove(&kind).expect("each test connects");
    let [mut out, mut into, mut gate, mut third] = [b'o', b'i', b'g', b'm'].map(&mut take);
    let before: Vec<u64> = pids.iter().map(|pid| reset_peak(*pid)).collect();
    let sending = thread::spawn(move || {
        let piece = vec![b'y'; 1 << 16];
        for _ in 0..MANY_BYTES / piece.len() {
            into.write_all(&piece).expect("the test reads");
        }
    });
    third.write_all(b"!").expect("the test reads");
    third_ended.recv_timeout(DEADLINE).expect("it ends, whatever the others do");
    gate.write_all(b"!").expect("the test reads");
    sending.join().expect("all is sent");
    let bytes = rest(&mut out);
    let peaks = pids.iter().zip(before);
    let growth = peaks.map(|(pid, before)| (*pid, memory(*pid, "VmHWM:").saturating_sub(before)));
    let growth = growth.collect();
    write!(out, "{bytes}").expect("the test reads");
    growth
}

/// Forgets the most memory that a process has had, as proc(5) has it, and gives what it has now.
fn reset_peak(pid: u32) -> u64 {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("it is ours");
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("it has memory");
    let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
    kilobytes * 1024
}
