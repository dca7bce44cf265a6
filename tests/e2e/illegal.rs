//! Instructions that a processor doesn't know: told apart are a machine that is older than the one
//! that the test was built for, and a test that is wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Case, Verdict};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;
use crate::travel::{on_a_worker, package};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("illegal::unknown_on_the_first_worker", |scratch| {
            judged(scratch, 2, Known::Elsewhere, Verdict::Pass);
        }),
        case("illegal::unknown_everywhere", |scratch| {
            judged(scratch, 2, Known::Nowhere, Verdict::Crashed);
        }),
        case("illegal::nowhere_else_to_go", |scratch| {
            judged(scratch, 1, Known::Elsewhere, Verdict::Crashed);
        }),
    ]
}

/// Which workers know the instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// All but the one that meets it first.
    Elsewhere,
    Nowhere,
}

/// Runs a test that executes what is no instruction, where that is to be unknown.
fn judged(scratch: &Scratch, workers: u32, known: Known, verdict: Verdict) {
    let oracle = oracle(known);
    let folder = package(
        scratch,
        &format!(
            r#"
            use std::{{io::{{Read, Write}}, net::TcpStream}};

            #[test]
            fn executes() {{
                let mut oracle = TcpStream::connect({oracle:?}).unwrap();
                writeln!(oracle, "{{}}", std::env::var("DISTEST_TEST_WORKER").unwrap()).unwrap();
                let mut unknown = [0];
                oracle.read_exact(&mut unknown).unwrap();
                if unknown == [b'!'] {{
                    #[cfg(target_arch = "x86_64")]
                    unsafe {{ std::arch::asm!("ud2") }};
                    #[cfg(target_arch = "aarch64")]
                    unsafe {{ std::arch::asm!("udf #0") }};
                }}
            }}
            "#
        ),
    );
    let workers = Worker::fleet(scratch, workers, 1);
    let finished = on_a_worker(scratch, &folder, &workers).finish();
    let transcript = finished.transcript(if verdict == Verdict::Pass { 0 } else { 100 });
    let case = Case::new("subject::it", "executes");
    assert_eq!(transcript.verdicts[&case], verdict);

    let attempts = transcript.attempts_of(&case);
    let (last, moved) = attempts.split_last().expect("it ran");
    assert_eq!(moved.len(), workers.len() - 1, "once elsewhere, if there is one: {attempts:?}");
    for attempt in moved {
        assert_eq!(attempt.result, AttemptResult::Lost, "it is not held against the test");
        let reason = "signal 4 (SIGILL): the processor there may lack an instruction";
        assert_eq!(attempt.reason, reason);
        assert_ne!(attempt.worker, last.worker);
    }
    match verdict {
        Verdict::Pass => assert_eq!(last.result, AttemptResult::Pass),
        _ => {
            assert_eq!((last.result, &*last.reason), (AttemptResult::Crashed, "signal 4 (SIGILL)"));
        }
    }
}

/// Tells tests that say on which worker they are whether to execute it: `!`.
fn oracle(known: Known) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    // As long as the process lives: who asks no more is no matter.
    thread::spawn(move || {
        let mut first = None;
        for stream in listener.incoming() {
            let mut stream = stream.expect("a test connects");
            let mut name = String::new();
            BufReader::new(&stream).read_line(&mut name).expect("a test says where it is");
            let is_first = *first.get_or_insert_with(|| name.clone()) == name;
            let unknown = known == Known::Nowhere || is_first;
            stream.write_all(if unknown { b"!" } else { b"." }).expect("a test listens");
        }
    });
    address
}
