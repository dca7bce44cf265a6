//! A worker whose packets are lost from one moment on, both ways or one: nothing tells either end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use distest_tests::client::Client;
use distest_tests::hermetic::{Plan, possible};
use distest_tests::link::Lost;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{Attempt, AttemptResult, Line};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::case_if;
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    let case = |name, lost| case_if(name, possible, move |scratch| finish_elsewhere(scratch, lost));
    vec![
        case("blackhole::all_packets_of_a_worker_are_lost", Lost::All),
        case("blackhole::a_worker_hears_nothing_more", Lost::ToWorker),
        // It hears that the client is there, and may not go on all the same.
        case("blackhole::a_worker_is_not_heard_any_more", Lost::FromWorker),
        case_if("blackhole::a_worker_that_is_asked_for_something", possible, lost_while_asked),
    ]
}

/// More than the survivor's slots, so that the other worker gets one, too.
const LONG: u32 = 3;
const QUICK: u32 = 12;
/// What says that packets are lost.
const LOST: &str = "lost";

/// A folder that is not hidden from these workers, and in no sandbox a private one.
fn locks() -> TempDir {
    let locks = tempfile::Builder::new().prefix("distest-e2e-").tempdir_in("/run");
    let locks = locks.expect("root can write there");
    fs::set_permissions(locks.path(), Permissions::from_mode(0o755)).unwrap();
    locks
}

/// Each test holds a lock while it runs, on a file of this machine's that all workers see. Until
/// packets are lost the survivor's go on waiting, whoever was there first, and so do long ones: the
/// victim's would still run when others may have them, if nobody ended them.
fn subject(scratch: &Scratch, locks: &TempDir) -> PathBuf {
    let folder = locks.path().display().to_string();
    let mut source = format!(
        r#"
        fn hold(name: &str, is_long: bool) {{
            let open = |name: &str| std::fs::File::open(format!("{{}}/{{name}}", {folder:?}));
            let file = open(name).unwrap();
            file.try_lock().expect("this test runs elsewhere at the same time");
            let is_victims = std::env::var("DISTEST_TEST_WORKER").as_deref() == Ok("victim");
            while (is_long || !is_victims) && open({LOST:?}).is_err() {{
                std::thread::sleep(std::time::Duration::from_millis(5));
            }}
            if is_long && is_victims {{
                std::thread::sleep(std::time::Duration::from_secs(6));
            }}
        }}
        "#
    );
    let long = (0..LONG).map(|number| (format!("long_{number}"), true));
    let quick = (0..QUICK).map(|number| (format!("quick_{number}"), false));
    for (name, is_long) in long.chain(quick) {
        fs::write(locks.path().join(&name), "").unwrap();
        source += &format!("#[test]\nfn {name}() {{ hold({name:?}, {is_long}) }}\n");
    }
    package(scratch, &source)
}

#[expect(clippy::print_stderr, reason = "a figure to be shown, about which nothing is asserted")]
fn finish_elsewhere(scratch: &Scratch, lost: Lost) {
    let locks = locks();
    let folder = subject(scratch, &locks);
    let plan = Plan::new(scratch);
    let survivor = plan.start(scratch, "survivor", 2);
    let (victim, link) = plan.start_linked(scratch, "victim", 1);
    let workers = [survivor, victim];
    let victim = &workers[1];
    let mut running = Client::call(scratch, &folder, &["run", "--offline"])
        .json()
        .args(["--isolation", "process"])
        .only_on(&workers)
        .start();
    let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let victims = network(victim.process.pid());
    scratch.wait_for("a long test of the victim's", |stray| {
        stray.command_line.contains("long_") && network(stray.pid) == victims
    });
    link.lose(lost);
    let silent_since = Instant::now();
    fs::write(locks.path().join(LOST), "").unwrap();
    running.until(|line| {
        let Line::Test(Attempt { worker, result, .. }) = line else { return false };
        *worker == victim.name && *result == AttemptResult::Lost
    });
    let took = silent_since.elapsed().as_secs_f64();
    eprintln!("packets lost: {lost:?}; the worker was given up after {took:.2} s");
    let transcript = running.finish().transcript(0);
    // A test that met itself would have failed.
    assert_eq!(transcript.summary.passed, LONG + QUICK);
    let of_victim = transcript.attempts.iter().filter(|it| it.worker == victim.name);
    let lost: Vec<_> = of_victim.filter(|it| it.result == AttemptResult::Lost).collect();
    assert!(lost.iter().any(|it| it.name.starts_with("long_")), "{lost:#?}");
    for it in lost {
        let passed = |other: &&Attempt| other.name == it.name && other.result.passed();
        let passed: Vec<_> = transcript.attempts.iter().filter(passed).collect();
        assert!(matches!(passed[..], [one] if one.worker == "survivor"), "{passed:#?}");
    }
}

/// Slots of the two workers: the victim has more free than the survivor when a test is to run again.
const SLOTS: (u32, u32) = (2, 4);
const TESTS: usize = 12;
/// How test processes wait, to be known by it.
const LONG_SLEEP: &str = "3600.125";
const HELD_SLEEP: &str = "3600.0625";

/// Those that the survivor gets wait for a word and fail. Those of the victim wait until it has got
/// some, whoever was there first: then one goes on long after the word, and all others pass at once.
fn held_and_long(scratch: &Scratch, locks: &TempDir) -> PathBuf {
    let folder = locks.path().display().to_string();
    let mut source = format!(
        r#"
        fn run(name: &str) {{
            let open = |name: &str| std::fs::File::open(format!("{{}}/{{name}}", {folder:?}));
            let own = open(name).unwrap();
            own.try_lock().expect("this test runs elsewhere at the same time");
            let sleep = |seconds: &str| std::process::Command::new("sleep").arg(seconds).spawn().unwrap();
            let wait_for = |name: &str| while open(name).is_err() {{
                std::thread::sleep(std::time::Duration::from_millis(5));
            }};
            let wait_to_go = |seconds: &str| {{
                let mut waits = sleep(seconds);
                wait_for("go");
                waits.kill().unwrap();
                waits.wait().unwrap();
            }};
            if std::env::var("DISTEST_TEST_WORKER").as_deref() == Ok("victim") {{
                wait_for("held");
                let long = open("long").unwrap();
                if long.try_lock().is_ok() {{
                    wait_to_go({LONG_SLEEP:?});
                    std::thread::sleep(std::time::Duration::from_secs(6));
                }}
            }} else if open("go").is_err() {{
                wait_to_go({HELD_SLEEP:?});
                panic!("to be tried again");
            }}
        }}
        "#
    );
    fs::write(locks.path().join("long"), "").unwrap();
    for name in (0..TESTS).map(|number| format!("test_{number}")) {
        fs::write(locks.path().join(&name), "").unwrap();
        source += &format!("#[test]\nfn {name}() {{ run({name:?}) }}\n");
    }
    package(scratch, &source)
}

#[expect(clippy::print_stderr, reason = "a figure to be shown, about which nothing is asserted")]
fn lost_while_asked(scratch: &Scratch) {
    let locks = locks();
    let folder = held_and_long(scratch, &locks);
    let plan = Plan::new(scratch);
    let survivor = plan.start(scratch, "survivor", SLOTS.0);
    let (victim, link) = plan.start_linked(scratch, "victim", SLOTS.1);
    let workers = [survivor, victim];
    let mut running = Client::call(scratch, &folder, &["run", "--offline", "--retries", "1"])
        .json()
        .args(["--isolation", "process"])
        .only_on(&workers)
        .start();
    let held = RefCell::new(BTreeSet::new());
    scratch.wait_for("tests on all of the survivor's slots", |stray| {
        let mut held = held.borrow_mut();
        held.extend(stray.command_line.contains(HELD_SLEEP).then_some(stray.pid));
        held.len() == SLOTS.0 as usize
    });
    fs::write(locks.path().join("held"), "").unwrap();
    scratch.wait_for("the long test", |stray| stray.command_line.contains(LONG_SLEEP));
    running.until_attempts(TESTS - 1 - SLOTS.0 as usize);
    link.lose(Lost::All);
    let silent_since = Instant::now();
    // Tests fail, and are handed to the victim, which can't say that it has them.
    fs::write(locks.path().join("go"), "").unwrap();
    running.until(|line| {
        let Line::Test(Attempt { worker, result, .. }) = line else { return false };
        *worker == "victim" && *result == AttemptResult::Lost
    });
    let took = silent_since.elapsed().as_secs_f64();
    eprintln!("asked for more; the worker was given up after {took:.2} s");
    let finished = running.finish();
    let transcript = finished.transcript(0);
    assert_eq!(transcript.summary.passed + transcript.summary.flaky, TESTS as u32);
    // With what it can't have heard of. And not because that was not answered: from when on it would
    // have had more time.
    let told = &finished.stderr;
    assert!(told.contains("worker victim was lost with 1 test running and "), "{told}");
    assert!(!told.contains("did not answer"), "{told}");
}
