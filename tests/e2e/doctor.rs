//! What a worker tells to monitoring, and what the doctor finds.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use distest_tests::DEADLINE;
use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::sshd::{self, Sshd};
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::drain::Subject;
use crate::faults::can_mount;
use crate::fleet::free_port;
use crate::travel::package;
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("metrics::count_what_happens", metrics),
        case("metrics::count_one_end_of_each_attempt", ends),
        case("log::json_names_the_run_and_the_client", json_log),
        case("log::json_has_one_object_for_each_event", json_notices),
        case("log::whoever_is_refused_again_and_again_is_told_once", refused_often),
        case("doctor::finds_nothing_where_nothing_is", healthy),
        case("doctor::finds_what_is_wrong", ill),
        case("doctor::known_keys_without_a_place_are_no_finding", known_without_place),
        case("doctor::looks_at_no_worker_while_keys_can_not_be_used", bad_keys),
        case("doctor::uses_the_compiler_that_cargo_would", compiler),
        case("doctor::tells_that_nobody_has_dialled", dials),
        case_if("doctor::starts_workers_behind_ssh", sshd::possible, behind_ssh),
        case_if("doctor::finds_libraries_that_a_worker_lacks", library, lacks),
    ]
}

/// What is answered to a request, if anything.
fn ask(socket: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(socket).expect("it listens");
    // It may have hung up before it had all.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A worker with metrics, and where they are.
fn watched(scratch: &Scratch, slots: u32) -> (Worker, String) {
    let store = scratch.join("store");
    let metrics = |command: &mut Command| _ = command.args(["--metrics", "127.0.0.1:0"]);
    let worker = Worker::start_changed(scratch, "w1", slots, &store, Executable::Worker, metrics);
    let log = worker.log();
    let url = log.lines().find_map(|line| line.strip_prefix("metrics are at http://"));
    let socket = url.expect("it says where").trim_end_matches("/metrics").to_owned();
    (worker, socket)
}

fn look(socket: &str) -> String {
    ask(socket, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn counted(text: &str, name: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("distest_{name}_total ")));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().expect("a number")
}

fn ends(scratch: &Scratch) {
    let (worker, socket) = watched(scratch, 1);
    let workers = [worker];
    let subject = Subject::new(scratch);
    let running = subject.run(scratch, &workers);
    let (_gate, _) = subject.holds(&workers);
    let text = look(&socket);
    let [started, finished] = ["attempts_started", "attempts"].map(|name| counted(&text, name));
    assert_eq!(started, finished + 1, "the one that holds: {text}");
    running.signal(Signal::SIGKILL);
    let untold = what_stays(DEADLINE, || {
        let text = look(&socket);
        if text.contains("\ndistest_sessions 0\n") { vec![] } else { vec![text] }
    });
    assert!(untold.is_empty(), "{untold:?}");
    let text = look(&socket);
    let names = ["attempts_started", "attempts", "attempts_stopped", "attempts_lost"];
    // What waited was never started.
    assert_eq!(names.map(|name| counted(&text, name)), [started, finished, 1, 0], "{text}");
}

fn metrics(scratch: &Scratch) {
    let (worker, socket) = watched(scratch, 2);
    let fixture = Fixture::named("paths");
    let run = Client::run(scratch, &fixture).only_on(std::slice::from_ref(&worker));
    let tests = run.finish().transcript(0).attempts.len();
    // Somebody whom it doesn't know.
    assert!(!ask(worker.socket(), b"GET / HTTP/1.0\r\n\r\n").contains("HTTP"));
    let uncounted = what_stays(DEADLINE, || {
        let text = look(&socket);
        if text.contains("distest_connections_refused_total 1") { vec![] } else { vec![text] }
    });
    assert!(uncounted.is_empty(), "{uncounted:?}");
    let text = look(&socket);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("\ndistest_slots 2\n"), "{text}");
    assert_eq!(counted(&text, "attempts"), counted(&text, "attempts_started"), "{text}");
    assert!(counted(&text, "attempts") >= tests, "of {tests}: {text}");
    assert!(text.contains("\ndistest_store_evictions_total 0\n"), "{text}");
    assert!(ask(&socket, b"GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert_eq!(ask(&socket, &[b'x'; 100_000]), "", "no answer to a request without end");
}

fn json_lines(worker: &Worker) -> Vec<Value> {
    worker.log().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn json_log(scratch: &Scratch) {
    let store = scratch.join("store");
    let worker = Worker::start_changed(scratch, "w1", 2, &store, Executable::Worker, |command| {
        command.args(["--log-format", "json"]);
    });
    let fixture = Fixture::named("paths");
    let run = Client::run(scratch, &fixture).only_on(std::slice::from_ref(&worker));
    let transcript = run.finish().transcript(0);
    let of_the_run = || {
        let is_of = |line: &Value| line["run"] == transcript.start.run.as_str();
        json_lines(&worker).into_iter().filter(is_of).collect::<Vec<_>>()
    };
    // The worker may hear of the end after the client.
    let silent = what_stays(DEADLINE, || match of_the_run().len() {
        2.. => vec![],
        _ => vec![worker.log()],
    });
    assert!(silent.is_empty(), "{silent:?}");
    let lines = of_the_run();
    for line in &lines {
        assert_eq!((&line["client"], &line["level"]), (&"this user".into(), &"info".into()));
        assert!(line["time"].is_f64(), "{line}");
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    }
    let message = |line: &Value| line["message"].as_str().expect("words").to_owned();
    let [begins, ends] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!(message(begins), "begins");
    assert!(message(ends).starts_with("ended: "), "{ends}");
    assert_eq!(begins["peer"], ends["peer"]);
}

/// One event is one object, and what to do is a field of its own.
fn json_notices(scratch: &Scratch) {
    let store = scratch.join("store");
    let worker = Worker::start_changed(scratch, "w1", 1, &store, Executable::Worker, |command| {
        command.args(["--log-format", "json", "--sandbox", "variables"]);
    });
    let lines = json_lines(&worker);
    for line in &lines {
        let message = line["message"].as_str().expect("words");
        assert!(!message.contains("warning:") && !message.contains("hint:"), "{line}");
        assert!(["info", "warning"].contains(&line["level"].as_str().expect("a word")), "{line}");
    }
    let about = |text: &str| {
        let about = |line: &&Value| line["message"].as_str().is_some_and(|it| it.contains(text));
        let found: Vec<_> = lines.iter().filter(about).collect();
        assert_eq!(found.len(), 1, "{text}: {lines:#?}");
        found[0]
    };
    let one = about("serves one client only");
    assert_eq!(one["level"], "warning");
    assert!(one["hint"].as_str().expect("a hint").contains("--trust-clients"), "{one}");
    assert_eq!(about("recreated by")["level"], "warning");
    // What ends it is an event, too.
    let args = ["worker", "serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let ended = Client::call(scratch, scratch.path(), &args).args(["--store", "/proc/x"]).finish();
    assert_eq!(ended.code(), 96);
    let line = ended.stderr.lines().last().expect("it says why");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["level"], "error");
    assert!(line["hint"].as_str().expect("a hint").contains("--store"), "{line}");
}

/// Somebody who isn't let in comes again and again.
fn refused_often(scratch: &Scratch) {
    const TIMES: usize = 30;
    let (worker, socket) = watched(scratch, 1);
    for _ in 0..TIMES {
        ask(worker.socket(), b"GET / HTTP/1.0\r\n\r\n");
    }
    let uncounted = what_stays(DEADLINE, || match counted(&look(&socket), "connections_refused") {
        TIMES => vec![],
        fewer => vec![fewer],
    });
    assert!(uncounted.is_empty(), "{uncounted:?}");
    let told = worker.log().matches(": refused: ").count();
    assert_eq!(told, 1, "{}", worker.log());
}

fn findings(scratch: &Scratch, exit_code: i32, args: &[&str]) -> Vec<Value> {
    let args = [&["doctor", "--format", "json"], args].concat();
    let finished = Client::call(scratch, scratch.path(), &args).finish();
    assert_eq!(finished.code(), exit_code, "{}{}", finished.stdout, finished.stderr);
    let value: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    value["findings"].as_array().expect("a list").clone()
}

#[track_caller]
fn finds<'a>(findings: &'a [Value], about: &str, grade: &str) -> &'a Value {
    let found = findings.iter().find(|it| it["about"] == about && it["grade"] == grade);
    found.unwrap_or_else(|| panic!("nothing {grade} about {about}: {findings:#?}"))
}

fn healthy(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 2);
    let found = findings(scratch, 0, &["--worker", &worker.address]);
    for about in ["version", "cargo", "rustc", "configuration", "key", "known workers", "mdns"] {
        finds(&found, about, "ok");
    }
    // The scratch folder's mark is set here, and no worker gets it.
    let variables = finds(&found, "variables", "could");
    assert!(variables["text"].as_str().expect("a text").contains("E2E_SCRATCH"));
    assert!(variables["hint"].as_str().expect("what to do").contains("env.pass"));
    assert!(found.iter().any(|it| it["about"] == "disk"), "{found:#?}");
    // Both clocks are the same one.
    for looked in
        ["2 slots for ", "has version ", "its clock and this machine's differ by at most "]
    {
        let of_it = |it: &&Value| it["about"] == "worker w1" && it["grade"] == "ok";
        let text = |it: &&Value| it["text"].as_str().is_some_and(|text| text.starts_with(looked));
        assert_eq!(found.iter().filter(of_it).filter(text).count(), 1, "{looked}: {found:#?}");
    }
    assert!(found.iter().any(|it| it["text"].to_string().contains("sandboxes")), "{found:#?}");
    assert!(found.iter().all(|it| it["grade"] != "wrong"), "{found:#?}");
    // One that is known, and in no setting, gets no variables either.
    let (place, key) = worker.address.split_once('#').expect("a worker prints its key");
    let known = format!("{key} {} w1\n", place.trim_start_matches("tcp://"));
    scratch.write("config/distest/known_workers", &known);
    finds(&findings(scratch, 0, &[]), "variables", "could");
    scratch.write("config/distest/known_workers", "");
    finds(&findings(scratch, 0, &[]), "variables", "ok");
}

fn known_without_place(scratch: &Scratch) {
    let other = Scratch::new();
    let [joiner, pod] = [scratch, &other].map(|scratch| {
        let shown = Client::call(scratch, scratch.path(), &["key", "show"]).finish().stdout;
        shown.trim().to_owned()
    });
    scratch.write("config/distest/known_workers", &format!("{joiner} - j1\n"));
    let call = |args: &[&str]| {
        Client::call(scratch, scratch.path(), args).env("DISTEST_KNOWN_WORKERS", &pod).finish()
    };
    let listen = format!("listen://127.0.0.1:{}", free_port());
    for (args, why) in [
        (&["doctor"][..], "it dials this machine, and nothing says where"),
        (&["doctor", "--worker", &listen], "it has not dialled this machine within"),
    ] {
        let told = call(args);
        assert_eq!(told.code(), 0, "{}", told.stdout);
        assert!(told.stdout.contains(&format!("could  worker j1: {why}")), "{}", told.stdout);
        assert!(!told.stdout.contains("unnamed"), "{}", told.stdout);
    }
    let listed = call(&["workers"]).stdout;
    assert!(listed.contains("j1") && listed.contains("listen://IP:PORT"), "{listed}");
    assert!(!listed.contains("unnamed") && listed.lines().count() == 4, "{listed}");
    let other = call(&["workers", "--on", "nix"]).stdout;
    assert!(other.contains("leave out --on"), "{other}");
}

fn bad_keys(scratch: &Scratch) {
    let doctor = || Client::call(scratch, scratch.path(), &["doctor"]);
    let not_looked = "could  workers: were not looked at";
    let no_key = doctor().env("DISTEST_KEY", "/nonexistent").finish();
    assert_eq!(no_key.code(), 96, "{}", no_key.stdout);
    assert!(no_key.stdout.contains(not_looked), "{}", no_key.stdout);
    assert!(!no_key.stdout.contains("tests run"), "{}", no_key.stdout);
    let known = scratch.write("config/distest/known_workers", "");
    fs::set_permissions(known, fs::Permissions::from_mode(0o666)).expect("a file of ours");
    let exposed = doctor().finish();
    assert_eq!(exposed.code(), 96, "{}", exposed.stdout);
    assert_eq!(exposed.stdout.matches("WRONG").count(), 1, "{}", exposed.stdout);
    assert!(exposed.stdout.contains("WRONG  known workers:"), "{}", exposed.stdout);
    assert!(exposed.stdout.contains(not_looked), "{}", exposed.stdout);
}

fn compiler(scratch: &Scratch) {
    let args = ["doctor", "--format", "json"];
    let run = Client::call(scratch, scratch.path(), &args).env("RUSTC", "/no/such/rustc");
    let finished = run.finish();
    assert_eq!(finished.code(), 96, "{}", finished.stdout);
    let value: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let found = value["findings"].as_array().expect("a list");
    let rustc = finds(found, "rustc", "wrong");
    assert!(rustc["hint"].as_str().expect("what to do").contains("variable"), "{rustc}");
}

fn ill(scratch: &Scratch) {
    let other = Scratch::new();
    let stranger = Worker::start(&other, "w1", 2);
    let args = ["--worker", "tcp://127.0.0.1:9", "--worker", &stranger.address];
    let found = findings(scratch, 96, &args);
    let nobody = finds(&found, "worker tcp://127.0.0.1:9", "wrong");
    assert!(nobody["hint"].as_str().expect("what to do").contains("distest-worker serve"));
    let refused = finds(&found, &format!("worker {}", stranger.address), "wrong");
    assert!(refused["hint"].as_str().expect("what to do").contains("distest-worker invite"));
    // A key that others can read, and a configuration that can't be.
    let key = scratch.join("config/distest/key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("a file of ours");
    let found = findings(scratch, 96, &[]);
    assert!(finds(&found, "key", "wrong")["hint"].as_str().expect("what to do").contains("chmod"));
    scratch.write("config/distest/config.toml", "[fleet]\nworker = 1\n");
    let found = findings(scratch, 96, &[]);
    assert!(finds(&found, "configuration", "wrong")["text"].to_string().contains("worker"));
}

fn dials(scratch: &Scratch) {
    let listen = format!("listen://127.0.0.1:{}", free_port());
    let found = findings(scratch, 0, &["--worker", &listen]);
    let dials = finds(&found, &format!("worker {listen}"), "could");
    assert!(dials["text"].as_str().expect("a text").starts_with("no worker has dialled"));
    assert!(dials["hint"].as_str().expect("what to do").contains("distest-worker join"));
}

fn behind_ssh(scratch: &Scratch) {
    let sshd = Sshd::start(scratch);
    let look = |code| {
        let args = ["doctor", "--format", "json", "--worker", &sshd.address];
        let call = Client::call(scratch, scratch.path(), &args).env("DISTEST_SSH", &sshd.client);
        let finished = call.finish();
        assert_eq!(finished.code(), code, "{}", finished.stdout);
        serde_json::from_str::<Value>(&finished.stdout).expect("JSON")["findings"].clone()
    };
    let found = look(0);
    let found = found.as_array().expect("a list");
    let is_worker = |it: &&Value| it["about"].as_str().is_some_and(|it| it.starts_with("worker "));
    let told: Vec<_> = found.iter().filter(is_worker).collect();
    assert!(!told.is_empty() && told.iter().all(|it| it["grade"] != "wrong"), "{told:#?}");
    let left = scratch.left_after(crate::GONE_WITHIN, |stray| stray.pid != sshd.pid());
    assert!(left.is_empty(), "processes left behind: {left:#?}");
    fs::write(scratch.join("ssh/user.pub"), "").expect("a file of ours");
    let found = look(96);
    let about = format!("worker {}", sshd.address);
    let refused = finds(found.as_array().expect("a list"), &about, "wrong");
    assert!(refused["text"].to_string().contains("Permission denied"), "{refused}");
    assert!(refused["hint"].to_string().contains("without a password"), "{refused}");
}

/// One that no program of ours needs.
const LIBRARY: &str = "libcrypt.so.1";

fn library_path() -> Option<PathBuf> {
    let listed = Command::new("/sbin/ldconfig").arg("-p").output().ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = listed.lines().find(|line| line.trim_start().starts_with(LIBRARY))?;
    fs::canonicalize(line.rsplit("=> ").next()?.trim()).ok()
}

fn library() -> Result<(), String> {
    can_mount()?;
    library_path().map(drop).ok_or_else(|| format!("{LIBRARY} (libcrypt1) is needed"))
}

/// A worker in whose mount namespace a library is no library.
fn lacks(scratch: &Scratch) {
    let folder = package(scratch, "#[test] fn t() {}");
    let link = format!(
        "fn main() {{ println!(\"cargo:rustc-link-arg-tests=-Wl,--no-as-needed,-l:{LIBRARY}\"); }}"
    );
    scratch.write("subject/build.rs", &link);
    let run = Client::call(scratch, &folder, &["run", "--offline", "--no-run"]).finish();
    assert_eq!(run.code(), 0, "{}", run.stderr);
    let path = library_path().expect("it was there");
    let store = scratch.join("store");
    let worker = Worker::start_changed(scratch, "w1", 1, &store, Executable::Worker, |command| {
        let mut entered = scratch.command("unshare");
        let script = "mount --bind /dev/null \"$1\" && shift && exec \"$@\"";
        entered.args(["-m", "sh", "-c", script, "sh"]).arg(&path);
        entered.arg(command.get_program()).args(command.get_args()).current_dir(scratch.path());
        entered.stdin(Stdio::null()).stdout(Stdio::piped());
        entered.stderr(File::create(scratch.join("worker-w1.log")).expect("ours"));
        *command = entered;
    });
    let has = Worker::start(scratch, "w2", 1);
    let look = |worker: &Worker| {
        let args = ["doctor", "--format", "json", "--worker", &worker.address];
        let finished = Client::call(scratch, &folder, &args).finish();
        assert_eq!(finished.code(), 0, "{}", finished.stdout);
        finished.stdout
    };
    let value: Value = serde_json::from_str(&look(&worker)).expect("JSON");
    let found = value["findings"].as_array().expect("a list");
    let needed = finds(found, "libraries", "ok")["text"].to_string();
    assert!(needed.contains(LIBRARY) && needed.contains("libc.so"), "{needed}");
    let text = |it: &&Value| it["text"].as_str().is_some_and(|it| it.contains("lacks libraries"));
    let lacking = found.iter().find(text).unwrap_or_else(|| panic!("{found:#?}"));
    assert!(lacking["text"].as_str().expect("a text").ends_with(&format!(": {LIBRARY}")));
    assert!(lacking["hint"].to_string().contains("install"), "{lacking}");
    assert!(!look(&has).contains("lacks libraries"), "it has all");
}
