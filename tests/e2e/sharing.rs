//! Two clients at once on one worker: each gets the same, and its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Running};
use distest_tests::referee::Referee;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;
use crate::drain::look;
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    let per_test = [(100, 100), (60, 180)];
    vec![
        case("sharing::two_clients_at_once_get_the_same", move |scratch| {
            two_clients(scratch, 2, per_test[0]);
        }),
        case("sharing::longer_tests_and_an_odd_number_of_slots_gain_nothing", move |scratch| {
            two_clients(scratch, 3, per_test[1]);
        }),
    ]
}

const TESTS: u32 = 60;
const OWNERS: [&str; 2] = ["alice", "bob"];

/// When a test ran, in microseconds of this machine's clock.
type Span = (u64, u64);

/// Takes what tests say: whose they are, and when they ran.
fn listen() -> (u16, Receiver<(String, Span)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let (sender, said) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut text = String::new();
            stream.expect("a connection").read_to_string(&mut text).expect("text");
            let words: Vec<&str> = text.split(' ').collect();
            let [owner, start, end] = words[..] else { panic!("odd words: {text}") };
            let time = |word: &str| word.parse().expect("a number");
            if sender.send((owner.to_owned(), (time(start), time(end)))).is_err() {
                return;
            }
        }
    });
    (port, said)
}

/// A workspace whose tests make sure that they see their own files.
fn subject(scratch: &Scratch, owner: &str, port: u16, milliseconds: u64) -> PathBuf {
    let manifest = format!(
        "[workspace]\n[package]\nname = \"{owner}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n"
    );
    scratch.write("subject/Cargo.toml", &manifest);
    scratch.write("subject/src/lib.rs", "");
    let tests: String = (0..TESTS)
        .map(|number| format!("#[test]\nfn {owner}_{number}() {{ ran({number}) }}\n"))
        .collect();
    let source = format!(
        r#"
        use std::io::Write;
        use std::time::{{Duration, SystemTime, UNIX_EPOCH}};

        fn now() -> u128 {{
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()
        }}

        fn ran(number: u64) {{
            let start = now();
            assert_eq!(std::fs::read_to_string("owner").unwrap(), "{owner}");
            std::thread::sleep(Duration::from_millis({milliseconds} + number % 5 * 10));
            let mut harness = std::net::TcpStream::connect(("127.0.0.1", {port})).unwrap();
            write!(harness, "{owner} {{start}} {{}}", now()).unwrap();
        }}
        {tests}
        "#
    );
    scratch.write("subject/tests/it.rs", &source);
    scratch.write("subject/owner", owner);
    scratch.join("subject")
}

/// The kind of tests that keep a worker's places.
const HELD: &str = "held";

/// All of a worker's places are a third client's until its tests are let go.
fn hold(third: &Scratch, worker: &Worker, slots: u32) -> (Referee, Running) {
    let referee = Referee::new().together(HELD, usize::MAX);
    let folder = package(third, &(referee.prelude() + &referee.tests(HELD, slots)));
    let args = ["run", "--offline", "--isolation", "process"];
    let client = Client::call(third, &folder, &args).json();
    let running = client.only_on(std::slice::from_ref(worker)).start();
    for number in 0..slots {
        referee.wait_for(|it| it.test.name == format!("{HELD}_{number}"));
    }
    (referee, running)
}

#[expect(clippy::print_stderr, reason = "a figure to be shown")]
fn two_clients(scratch: &Scratch, slots: u32, milliseconds: (u64, u64)) {
    let (colleague, third) = (Scratch::new(), Scratch::new());
    let worker = Worker::start(scratch, "w1", slots);
    let others = [(&colleague, "bob"), (&third, "carol")].map(|(client, name)| {
        let key = Client::call(client, client.path(), &["key", "show"]).finish().stdout;
        format!("{} run {name}\n", key.trim())
    });
    let list = scratch.write("config/distest/authorized_keys", &others.concat());
    fs::set_permissions(list, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    let (port, said) = listen();
    let clients = [scratch, &colleague];
    let subjects = [
        subject(clients[0], OWNERS[0], port, milliseconds.0),
        subject(clients[1], OWNERS[1], port, milliseconds.1),
    ];
    let call = |index: usize| Client::call(clients[index], &subjects[index], &["run", "--offline"]);
    for index in [0, 1] {
        let built = call(index).args(["--no-run"]).finish();
        assert_eq!(built.code(), 0, "{}", built.stderr);
    }
    let (held, holding) = hold(&third, &worker, slots);
    let running = [0, 1].map(|index| {
        let client = call(index).json().args(["--isolation", "process"]);
        client.only_on(std::slice::from_ref(&worker)).start()
    });
    // Neither begins before the other one waits, too.
    let fewer = what_stays(DEADLINE, || {
        let shown = look(scratch, &["--worker", &worker.address]);
        let sessions = shown[0]["sessions"].as_array().cloned().unwrap_or_default();
        let waiting = sessions.iter().filter(|it| it["queued"].as_u64() > Some(0)).count();
        if waiting == running.len() { vec![] } else { shown }
    });
    assert!(fewer.is_empty(), "{fewer:#?}");
    held.let_go(HELD);
    let mut spans: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for (owner, running) in OWNERS.iter().zip(running) {
        let transcript = running.finish().transcript(0);
        assert_eq!(transcript.summary.passed, TESTS);
        let theirs = transcript.verdicts.keys().all(|case| case.name.starts_with(owner));
        assert!(theirs, "results are mixed: {:#?}", transcript.verdicts);
    }
    assert_eq!(holding.finish().transcript(0).summary.passed, slots);
    for _ in 0..2 * TESTS {
        let (owner, span) = said.recv_timeout(DEADLINE).expect("each test says when it ran");
        spans.entry(owner).or_default().push(span);
    }
    let [alice, bob] = OWNERS.map(|owner| spans.remove(owner).expect("they ran"));
    assert_eq!((alice.len(), bob.len()), (TESTS as usize, TESTS as usize));
    // Both are backlogged from when they may begin until the first has nothing to start.
    let starts = |spans: &[Span]| {
        let starts = spans.iter().map(|(start, _)| *start);
        (starts.clone().min().unwrap_or(0), starts.max().unwrap_or(0))
    };
    let (a, b) = (starts(&alice), starts(&bob));
    let window = (a.0.max(b.0), a.1.min(b.1));
    let inside = |spans: &[Span]| -> (u64, usize) {
        let parts = spans
            .iter()
            .map(|(start, end)| (*end).min(window.1).saturating_sub((*start).max(window.0)));
        let parts: Vec<_> = parts.filter(|part| *part > 0).collect();
        (parts.iter().sum(), parts.len())
    };
    let (a, b) = (inside(&alice), inside(&bob));
    assert!(a.1 >= 20 && b.1 >= 20, "they were hardly there together: {a:?} {b:?}");
    let even = (a.0 + b.0) as f64 / 2.0;
    let of_even = a.0 as f64 / even;
    eprintln!(
        "slot-seconds {:.2} : {:.2}, {of_even:.3} of even",
        a.0 as f64 / 1e6,
        b.0 as f64 / 1e6
    );
    assert!((0.9..=1.1).contains(&of_even), "slot-seconds of two clients: {a:?} {b:?}");
}
