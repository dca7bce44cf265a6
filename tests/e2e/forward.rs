//! Services of the client's: where tests find them, and what happens when someone fails.

mod bulk;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use distest_tests::DEADLINE;
use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{self, Plan};
use distest_tests::postgres::{self, Postgres};
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::travel::package;
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        // On workers of each kind: among `levels`.
        case_if("forward::database::embedded", postgres::possible, database),
        case("forward::two_tests_at_once::embedded", |it| at_once(it, &[])),
        case_if("forward::two_tests_at_once::hermetic", hermetic::possible, |it| {
            at_once(it, &[Plan::new(it).start(it, "w1", 2)]);
        }),
        case("forward::many_bytes_and_little_memory::embedded", |it| bulk::many_bytes(it, &[])),
        case_if("forward::many_bytes_and_little_memory::hermetic", hermetic::possible, |it| {
            bulk::many_bytes(it, &[Plan::new(it).start(it, "w1", 3)]);
        }),
        case("forward::nobody_listens_and_this_is_told_once", nobody_listens),
        case("forward::a_failed_test_says_why_it_was_closed", says_why),
        case("forward::more_connections_than_there_may_be", too_many),
        case("forward::a_service_that_goes_is_gone_for_the_test", service_goes),
        case("forward::what_a_test_wrote_last_arrives", last_words),
        case("forward::an_interrupted_run_ends_its_connections", interrupted),
        case("forward::a_worker_that_dies_ends_its_connections", worker_dies),
        case_if("forward::without_sandbox_ports_only", hermetic::possible, without_sandbox),
        case("forward::the_runner_forwards_what_the_profile_says", runner),
        case("forward::bad_input", bad_input),
    ]
}

fn database(scratch: &Scratch) {
    let fixture = Fixture::named("database");
    let (_server, client) = with_database(scratch, None);
    let transcript = client.finish().transcript(fixture.model.exit_code);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
}

/// A run of the fixture beside a server of this machine's, and that server.
pub(crate) fn with_database(scratch: &Scratch, worker: Option<&Worker>) -> (Postgres, Client) {
    let fixture = Fixture::named("database");
    let server = Postgres::start(scratch);
    let sockets: Vec<String> =
        server.sockets.iter().map(|path| path.display().to_string()).collect();
    let port = server.port.to_string();
    let mut client = Client::run(scratch, &fixture)
        .args(["--forward", &port])
        .env("DATABASE_PORT", &port)
        .env("DATABASE_SOCKETS", sockets.join(":"));
    for socket in &sockets {
        client = client.args(["--forward", socket]);
    }
    if let Some(worker) = worker {
        client = client.only_on(std::slice::from_ref(worker));
    }
    (server, client.args(&fixture.model.args))
}

/// A service of this process, on a port of its own.
struct Service {
    listener: TcpListener,
    port: u16,
}

impl Service {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let port = listener.local_addr().expect("it is bound").port();
        Self { listener, port }
    }

    /// The port of one that was there.
    fn gone() -> u16 {
        Self::new().port
    }

    fn accept(&self) -> TcpStream {
        distest_tests::accept(&self.listener)
    }

    /// Tests that find it, in a package of their own.
    fn tested_by(&self, scratch: &Scratch, tests: &str) -> PathBuf {
        let port = self.port;
        let head = format!(
            "#[allow(unused_imports)]\nuse std::io::{{Read, Write}};\nuse std::net::TcpStream;\n\
             #[allow(dead_code)]\nfn try_connect() -> std::io::Result<TcpStream> {{\n    \
             TcpStream::connect((\"127.0.0.1\", {port}))\n}}\n\
             #[allow(dead_code)]\nfn connect() -> TcpStream {{\n    try_connect().unwrap()\n}}\n"
        );
        package(scratch, &(head + tests))
    }

    /// A run of them, embedded if there are no workers.
    fn run(&self, scratch: &Scratch, folder: &std::path::Path, workers: &[Worker]) -> Client {
        let client = Client::call(scratch, folder, &["run", "--offline", "--no-fail-fast"]);
        let client = client.args(["--forward", &self.port.to_string()]);
        match workers {
            [] => client.args(["--local-slots", "3"]),
            _ => client.only_on(workers),
        }
    }
}

fn byte(stream: &mut TcpStream) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("the test writes");
    byte[0]
}

/// What comes until the other side ends, in whatever way.
fn rest(stream: &mut TcpStream) -> u64 {
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes += read as u64;
    }
    bytes
}

fn at_once(scratch: &Scratch, workers: &[Worker]) {
    let service = Service::new();
    let folder = service.tested_by(
        scratch,
        r#"
        fn both() {
            let mut answer = String::new();
            connect().read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "both");
        }
        #[test]
        fn one() {
            both();
        }
        #[test]
        fn other() {
            both();
        }
        "#,
    );
    let client = service.run(scratch, &folder, workers).json().start();
    let serving = thread::spawn(move || {
        let streams = [service.accept(), service.accept()];
        for mut stream in streams {
            stream.write_all(b"both").expect("the test reads");
        }
    });
    assert_eq!(client.finish().transcript(0).summary.passed, 2);
    serving.join().expect("it served both");
}

/// Reads to the end, which may be a reset.
const SEES_THE_END: &str = r#"
    fn sees_the_end() {
        let mut stream = connect();
        let _ = stream.write_all(b"?");
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    #[test]
    fn one() {
        sees_the_end();
    }
    #[test]
    fn other() {
        sees_the_end();
    }
"#;

fn nobody_listens(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(scratch, SEES_THE_END);
    let Service { listener, port } = service;
    drop(listener);
    let doctest = format!(
        "//! ```\n//! use std::io::Read;\n\
         //! let mut stream = std::net::TcpStream::connect((\"127.0.0.1\", {port})).unwrap();\n\
         //! assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));\n//! ```\n"
    );
    scratch.write("subject/src/lib.rs", &doctest);
    let run = ["run", "--offline", "--forward", &port.to_string()];
    let finished = Client::call(scratch, &folder, &run).finish();
    let notice =
        format!("could not connect tests to port {port} of this machine: Connection refused");
    finished.complains(0, &[&notice, "3 passed"]);
    assert_eq!(finished.stderr.matches("could not connect").count(), 1, "{}", finished.stderr);
    // Doctests have another fleet.
    let finished = Client::call(scratch, &folder, &run).args(["--doc"]).finish();
    finished.complains(0, &[&notice, "1 passed"]);
}

/// What stands below the failed test, and not only above all tests.
fn says_why(scratch: &Scratch) {
    let (up, lower) = (Service::new(), Service::gone());
    let upper = up.port;
    let folder = up.tested_by(
        scratch,
        &format!(
            r#"
            #[test]
            fn needs_more_than_there_may_be() {{
                let streams: Vec<_> = (0..101).map(|_| connect()).collect();
                for mut stream in &streams {{
                    stream.read_exact(&mut [0]).unwrap();
                }}
            }}
            #[test]
            fn needs_what_is_down() {{
                let mut stream = TcpStream::connect(("127.0.0.1", {lower})).unwrap();
                stream.read_exact(&mut [0]).unwrap();
            }}
            "#
        ),
    );
    let (over, is_over) = channel::<()>();
    let serving = thread::spawn(move || {
        while is_over.try_recv().is_err() {
            let mut stream = up.accept();
            thread::spawn(move || {
                let _ = stream.write_all(b"!");
                rest(&mut stream)
            });
        }
    });
    let worker = Worker::start(scratch, "w1", 1);
    let args = ["run", "--offline", "--no-fail-fast", "--forward", &upper.to_string()];
    let client = Client::call(scratch, &folder, &args).args(["--forward", &lower.to_string()]);
    let finished = client.json().only_on(std::slice::from_ref(&worker)).finish();
    over.send(()).expect("it serves until told");
    TcpStream::connect(("127.0.0.1", upper)).expect("the service listens");
    serving.join().expect("it ends when told");
    assert_eq!(finished.transcript(100).summary.failed, 2);
    for (test, hint) in [
        (
            "needs_more_than_there_may_be",
            "have 100 connections to forwarded services open".to_owned(),
        ),
        (
            "needs_what_is_down",
            format!("could not connect tests to port {lower} of this machine: Connection refused"),
        ),
    ] {
        let (name, hints) = (format!("\"name\":\"{test}\""), "\"hints\":[\"");
        let told = finished.stdout.lines().any(|line| {
            line.contains("\"type\":\"test\"")
                && line.contains(&name)
                && line.contains(hints)
                && line.contains(&hint)
        });
        assert!(told, "{test}: {}", finished.stdout);
    }
}

fn too_many(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(
        scratch,
        r#"
        #[test]
        fn some_are_answered() {
            let is_answered = |mut stream: &TcpStream| matches!(stream.read(&mut [0]), Ok(1));
            // What is closed at once may be so before `connect` is told that it is open.
            let streams: Vec<_> = (0..300).filter_map(|_| try_connect().ok()).collect();
            let answered = streams.iter().filter(|stream| is_answered(stream)).count();
            assert_eq!(answered, 100);
            drop(streams);
            // There is room again, if not at once.
            while !try_connect().is_ok_and(|stream| is_answered(&stream)) {}
        }
        "#,
    );
    let port = service.port;
    let (over, is_over) = channel::<()>();
    let serving = thread::spawn(move || {
        while is_over.try_recv().is_err() {
            let mut stream = service.accept();
            thread::spawn(move || {
                // One that is gone doesn't read.
                let _ = stream.write_all(b"!");
                rest(&mut stream)
            });
        }
    });
    let run = ["run", "--offline", "--forward", &port.to_string()];
    let finished = Client::call(scratch, &folder, &run).finish();
    over.send(()).expect("it serves until told");
    TcpStream::connect(("127.0.0.1", port)).expect("the service listens");
    serving.join().expect("it ends when told");
    finished.complains(0, &["have 100 connections to forwarded services open", "1 passed"]);
}

fn service_goes(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(scratch, SEES_THE_END);
    let client = service.run(scratch, &folder, &[]).json().start();
    let serving = thread::spawn(move || {
        for _ in 0..2 {
            let mut stream = service.accept();
            assert_eq!(byte(&mut stream), b'?');
        }
    });
    assert_eq!(client.finish().transcript(0).summary.passed, 2);
    serving.join().expect("it served both");
}

fn last_words(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(
        scratch,
        r#"
        #[test]
        fn writes_and_is_gone() {
            let mut stream = connect();
            stream.write_all(&[b'x'; 200_000]).unwrap();
            std::process::exit(0);
        }
        "#,
    );
    let worker = Worker::start(scratch, "w1", 1);
    let (sender, counted) = channel();
    let serving = count(service, sender);
    let service = serving.1;
    let client = Client::call(scratch, &folder, &["run", "--offline", "--isolation", "process"]);
    let client = client.json().args(["--forward", &service.to_string()]);
    client.only_on(std::slice::from_ref(&worker)).finish().transcript(0);
    assert_eq!(counted.recv_timeout(DEADLINE).expect("it saw the end"), 200_000);
    serving.0.join().expect("it served");
}

/// A service that counts what comes through one connection.
fn count(service: Service, counted: Sender<u64>) -> (JoinHandle<()>, u16) {
    let port = service.port;
    let serving = thread::spawn(move || {
        let bytes = rest(&mut service.accept());
        let _ = counted.send(bytes);
    });
    (serving, port)
}

fn interrupted(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(
        scratch,
        r#"
        #[test]
        fn waits_for_ever() {
            let mut stream = connect();
            stream.write_all(b"?").unwrap();
            let _ = stream.read(&mut [0]);
        }
        "#,
    );
    let client = service.run(scratch, &folder, &[]).json().start();
    let mut stream = service.accept();
    assert_eq!(byte(&mut stream), b'?');
    client.signal(Signal::SIGINT);
    assert_eq!(client.finish().code(), 130);
    assert_eq!(rest(&mut stream), 0);
}

fn worker_dies(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(
        scratch,
        r#"
        #[test]
        fn writes_much() {
            let mut stream = connect();
            let worker = std::env::var("DISTEST_TEST_WORKER").unwrap();
            stream.write_all(worker.as_bytes()).unwrap();
            let mut answer = [0];
            // Until somebody answers, or the connection breaks.
            stream.set_nonblocking(true).unwrap();
            while stream.read(&mut answer).is_err() {
                stream.set_nonblocking(false).unwrap();
                stream.write_all(&[b'x'; 1 << 16]).unwrap();
                stream.set_nonblocking(true).unwrap();
            }
            assert_eq!(answer, *b"!");
        }
        "#,
    );
    let workers = Worker::fleet(scratch, 2, 1);
    let client = service.run(scratch, &folder, &workers).json().start();
    let mut stream = service.accept();
    let mut much = vec![0; 1 << 20];
    stream.read_exact(&mut much).expect("the test writes");
    let name = String::from_utf8_lossy(&much[..2]).into_owned();
    let first = workers.iter().find(|worker| worker.name == name).expect("one of ours");
    first.process.signal(Signal::SIGKILL);
    rest(&mut stream);
    // What can't tell whether it was the reason runs again elsewhere.
    let mut stream = service.accept();
    stream.read_exact(&mut much).expect("the test writes");
    assert_ne!(String::from_utf8_lossy(&much[..2]), name);
    stream.write_all(b"!").expect("the test reads");
    let serving = thread::spawn(move || rest(&mut stream));
    assert_eq!(client.finish().transcript(0).summary.passed, 1);
    serving.join().expect("it read on");
}

fn without_sandbox(scratch: &Scratch) {
    let service = Service::new();
    let folder = service.tested_by(
        scratch,
        r#"
        #[test]
        fn is_answered() {
            let mut answer = String::new();
            connect().read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "here");
            // One that only root may listen at, elsewhere; nobody does here.
            let mut nobody = TcpStream::connect(("127.0.0.1", 9)).unwrap();
            assert!(matches!(nobody.read(&mut [0]), Ok(0) | Err(_)));
        }
        "#,
    );
    let worker = Plan::new(scratch).with(&["--sandbox", "variables"]).start(scratch, "w1", 1);
    let workers = std::slice::from_ref(&worker);
    let nowhere =
        service.run(scratch, &folder, workers).args(["--forward", "/run/a.sock"]).finish();
    nowhere.complains(
        97,
        &[
            "network = \"private\", forward",
            "it can't forward the client's services: it has no sandbox in which /run/a.sock could",
        ],
    );
    let client = service.run(scratch, &folder, workers).args(["--forward", "9"]).json().start();
    service.accept().write_all(b"here").expect("the test reads");
    assert_eq!(client.finish().transcript(0).summary.passed, 1);
}

/// `cargo test` with the runner: the profile's services are found, and one that is down is named.
fn runner(scratch: &Scratch) {
    let (up, lower) = (Service::new(), Service::gone());
    let upper = up.port;
    let folder = up.tested_by(
        scratch,
        &format!(
            r#"
            #[test]
            fn is_answered() {{
                let mut answer = String::new();
                connect().read_to_string(&mut answer).unwrap();
                assert_eq!(answer, "here");
                TcpStream::connect(("127.0.0.1", {lower})).unwrap().read_exact(&mut [0]).unwrap();
            }}
            "#
        ),
    );
    let profile = format!("[profile.default]\nforward = [{upper}, {lower}]\n");
    scratch.write("subject/.config/distest.toml", &profile);
    let worker = Worker::start(scratch, "w1", 1);
    let mut command = scratch.command(cargo());
    let runner =
        format!("target.'cfg(all())'.runner = [\"{}\", \"runner\"]", product().client.display());
    command.args(["test", "--offline", "--test", "it", "--config", &runner]);
    command.env("DISTEST_WORKERS", &worker.address).env("DISTEST_RUNNER_IDLE", "1");
    let serving = thread::spawn(move || {
        up.accept().write_all(b"here").expect("the test reads");
    });
    let output = command.current_dir(&folder).output().expect("cargo can be run");
    serving.join().expect("it served");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let why = format!("runner: note: could not connect tests to port {lower} of this machine");
    assert!(told.contains(&why), "{told}\n{}", String::from_utf8_lossy(&output.stdout));
}

fn bad_input(scratch: &Scratch) {
    let folder = package(scratch, "#[test]\nfn one() {}\n");
    let run = |args: &[&str]| {
        Client::call(scratch, &folder, &["run", "--offline"]).args(args.iter()).finish()
    };
    for (value, why) in [
        ("0", "expected a port from 1 to 65535"),
        ("65536", "expected a port from 1 to 65535"),
        ("database.sock", "the absolute path of a Unix socket"),
        ("/run/../database.sock", "without"),
    ] {
        run(&["--forward", value]).complains(2, &["--forward", why]);
    }
    let no_socket = folder.join("Cargo.toml");
    for (path, why) in [(&*folder, "it is a folder"), (&*no_socket, "it is no Unix socket")] {
        let shown = path.display().to_string();
        run(&["--forward", &shown]).complains(96, &[&format!("could not forward {shown}"), why]);
    }
    for (path, at) in [("/proc/self/a.sock", "/proc"), ("/sys/a.sock", "/sys")] {
        let why = format!("nobody can listen below {at}");
        run(&["--forward", path]).complains(96, &[&format!("could not forward {path}"), &why]);
    }
    let twice = run(&["--forward", "5432", "--forward", "05432"]);
    twice.complains(2, &["`--forward 5432` is given twice"]);
    for (config, why) in [
        ("forward = 5432", "expected an array"),
        ("forward = 5432", "write `forward = [5432]`"),
        ("forward = [0]", "expected a port from 1 to 65535"),
        ("forward = [5432, '5432']", "`5432` is there before"),
        ("forward = ['database.sock']", "the absolute path of a Unix socket"),
        ("forward = [5432]\nnetwork = 'host'", "leave `network` out"),
    ] {
        scratch.write("subject/.config/distest.toml", &format!("[profile.default]\n{config}\n"));
        run(&[]).complains(96, &["forward", why]);
    }
}
