//! Where tests run and beside whom, under the configuration's constraints. The tests themselves
//! tell, through a [`Referee`].

use std::path::{Path, PathBuf};

use distest_tests::client::Client;
use distest_tests::referee::{Present, Referee, Sighting};
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Transcript;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::case;
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("constraints::max_threads_holds_over_the_fleet", max_threads),
        case("constraints::a_group_holds_when_a_worker_is_lost", loss_in_a_group),
        case("constraints::per_worker_holds_on_each", per_worker),
        case("constraints::threads_required_take_slots", threads_required),
        case("constraints::an_exclusive_test_is_alone_on_its_worker", exclusive),
        case("constraints::test_threads_hold_over_the_fleet", test_threads),
        case("constraints::labels_and_sides_say_where", labels_and_sides),
        case("constraints::a_test_that_no_worker_may_run_is_named", unplaceable),
        case("constraints::contradictions_are_refused_before_the_build", contradictions),
        case("constraints::priorities_say_when", priorities),
    ]
}

/// Writes a package of these tests, and its configuration.
fn subject(scratch: &Scratch, referee: &Referee, tests: &[String], config: &str) -> PathBuf {
    let folder = package(scratch, &(referee.prelude() + &tests.concat()));
    scratch.write("subject/.config/distest.toml", config);
    folder
}

fn overriding(kind: &str, line: &str) -> String {
    format!("[[profile.default.overrides]]\nfilter = 'test(/^{kind}_/)'\n{line}\n")
}

fn run(scratch: &Scratch, folder: &Path) -> Client {
    Client::call(scratch, folder, &["run", "--offline"]).json()
}

/// Each of `count` tests passed, and was seen once.
fn all_seen_once(transcript: &Transcript, seen: &[Sighting], count: u32) {
    assert_eq!(transcript.summary.passed, count, "{:?}", transcript.verdicts);
    let mut names: Vec<&str> = seen.iter().map(|it| it.test.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), seen.len()), (count as usize, count as usize), "{seen:#?}");
}

fn max_threads(scratch: &Scratch) {
    // Pairs wait for each other: that two run at once is needed, and never three.
    let referee = Referee::new().together("pair", 2).together("free", 2);
    let tests = [referee.tests("mutex", 8), referee.tests("pair", 12), referee.tests("free", 12)];
    let config = "[test-groups]\nmutex = { max-threads = 1 }\npair = { max-threads = 2 }\n"
        .to_owned()
        + &overriding("mutex", "test-group = 'mutex'")
        + &overriding("pair", "test-group = 'pair'");
    let folder = subject(scratch, &referee, &tests, &config);
    let workers = Worker::fleet(scratch, 3, 2);
    let transcript = run(scratch, &folder).only_on(&workers).finish().transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 32);
    for it in &seen {
        let most = match it.test.kind() {
            "mutex" => 0,
            "pair" => 1,
            _ => continue,
        };
        assert!(it.of_kind(it.test.kind()).len() <= most, "{it:#?}");
    }
}

/// The mutex passes on only when the lost worker's test is gone, and then it does.
fn loss_in_a_group(scratch: &Scratch) {
    let referee = Referee::new().together("mutex", usize::MAX);
    let tests = [referee.tests("mutex", 4), referee.tests("free", 8)];
    let config = "[test-groups]\nmutex = { max-threads = 1 }\n".to_owned()
        + &overriding("mutex", "test-group = 'mutex'");
    let folder = subject(scratch, &referee, &tests, &config);
    let workers = Worker::fleet(scratch, 3, 2);
    let running = run(scratch, &folder).only_on(&workers).start();
    let first = referee.wait_for(|it| it.test.kind() == "mutex").test;
    let victim = workers.iter().find(|it| it.name == first.worker).expect("one of ours");
    victim.process.signal(Signal::SIGKILL);
    referee.let_go("mutex");
    let transcript = running.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 12);
    let seen = referee.seen();
    let of_mutex: Vec<_> = seen.iter().filter(|it| it.test.kind() == "mutex").collect();
    assert!(of_mutex.iter().all(|it| it.of_kind("mutex").is_empty()), "{of_mutex:#?}");
    let again: Vec<_> = of_mutex.iter().filter(|it| it.test.name == first.name).collect();
    assert!(matches!(again[..], [_, it] if it.test.worker != first.worker), "{again:#?}");
}

fn per_worker(scratch: &Scratch) {
    // Two at once, so one on each of two workers.
    let referee = Referee::new().together("port", 2);
    let tests = [referee.tests("port", 8), referee.tests("free", 12)];
    let config = "[test-groups]\nport = { per-worker = 1 }\n".to_owned()
        + &overriding("port", "test-group = 'port'");
    let folder = subject(scratch, &referee, &tests, &config);
    let workers = Worker::fleet(scratch, 2, 3);
    let transcript = run(scratch, &folder).only_on(&workers).finish().transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 20);
    for it in seen.iter().filter(|it| it.test.kind() == "port") {
        assert!(it.there().iter().all(|other| other.kind() != "port"), "{it:#?}");
    }
}

fn threads_required(scratch: &Scratch) {
    const SLOTS: usize = 3;
    let slots_of = |test: &Present| match test.kind() {
        "double" => 2,
        // More than a worker has: it gets all of them.
        "whole" => SLOTS,
        _ => 1,
    };
    let referee = Referee::new();
    let tests =
        [referee.tests("double", 8), referee.tests("whole", 3), referee.tests("single", 16)];
    let config = overriding("double", "threads-required = 2")
        + &overriding("whole", "threads-required = 99");
    let folder = subject(scratch, &referee, &tests, &config);
    let workers = Worker::fleet(scratch, 2, SLOTS as u32);
    let transcript = run(scratch, &folder).only_on(&workers).finish().transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 27);
    for it in &seen {
        let taken: usize = it.there().into_iter().chain([&it.test]).map(slots_of).sum();
        assert!(taken <= SLOTS, "{taken} slots: {it:#?}");
    }
}

fn exclusive(scratch: &Scratch) {
    let referee = Referee::new();
    let tests = [referee.tests("alone", 4), referee.tests("free", 24)];
    let folder = subject(scratch, &referee, &tests, &overriding("alone", "exclusive = true"));
    let workers = Worker::fleet(scratch, 2, 3);
    let transcript = run(scratch, &folder).only_on(&workers).finish().transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 28);
    for it in &seen {
        let involved = it.there().into_iter().chain([&it.test]);
        let alone = involved.filter(|it| it.kind() == "alone").count();
        assert!(alone == 0 || it.there().is_empty(), "{it:#?}");
    }
}

fn test_threads(scratch: &Scratch) {
    // Two at once are needed, so that the bound is also reached.
    let referee = Referee::new().together("free", 2);
    let folder = subject(scratch, &referee, &[referee.tests("free", 12)], "");
    let workers = Worker::fleet(scratch, 3, 2);
    let client = run(scratch, &folder).args(["-j", "2"]).only_on(&workers);
    let transcript = client.finish().transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 12);
    assert!(seen.iter().all(|it| it.beside.len() <= 1), "{seen:#?}");
}

/// Workers `plain` without labels and `gpu` with `gpu=yes`.
fn labelled(scratch: &Scratch) -> [Worker; 2] {
    let start = |name: &str, labels: &[&str]| {
        let store = scratch.join(format!("store-{name}"));
        Worker::start_changed(scratch, name, 2, &store, Executable::Worker, |command| {
            command.args(labels);
        })
    };
    [start("plain", &[]), start("gpu", &["--label", "gpu=yes", "--label", "zone=a"])]
}

fn labels_and_sides(scratch: &Scratch) {
    let referee = Referee::new();
    let kinds = ["gpu", "both", "here", "away", "free"];
    let tests = kinds.map(|kind| referee.tests(kind, 6));
    let config = overriding("gpu", "requires = ['gpu=yes']")
        + &overriding("both", "requires = ['gpu=yes', 'zone=a']")
        + &overriding("here", "local-only = true")
        + &overriding("away", "remote-only = true");
    let folder = subject(scratch, &referee, &tests, &config);
    let [plain, gpu] = labelled(scratch);
    let transcript = run(scratch, &folder)
        .args(["--local-slots", "1", "--wait-workers", "2"])
        .worker(&plain.address)
        .worker(&gpu.address)
        .finish()
        .transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 30);
    for Present { name, worker } in seen.iter().map(|it| &it.test) {
        let allowed: &[&str] = match name.split('_').next() {
            Some("gpu" | "both") => &["gpu"],
            Some("here") => &["local"],
            Some("away") => &["plain", "gpu"],
            _ => &["plain", "gpu", "local"],
        };
        assert!(allowed.contains(&worker.as_str()), "{name} on {worker}");
    }
}

fn unplaceable(scratch: &Scratch) {
    let referee = Referee::new();
    let tests = [referee.tests("far", 1), referee.tests("free", 2)];
    let folder =
        subject(scratch, &referee, &tests, &overriding("far", "requires = ['gpu=yes', 'zone=b']"));
    let workers = labelled(scratch);
    let finished = run(scratch, &folder).only_on(&workers).finish();
    // The worker that lacks least is the one to look at.
    finished.complains(97, &["far_0", "zone=b", "gpu", "it has a"]);
    assert!(referee.seen().iter().all(|it| it.test.kind() != "far"), "it ran nowhere");
    finished.transcript(97);
}

fn contradictions(scratch: &Scratch) {
    let referee = Referee::new();
    // The build would fail, with another exit code.
    let broken = ["fn".to_owned()];
    for (line, texts) in [
        ("test-group = 'db'", ["`db`", "[test-groups]"]),
        ("local-only = true\nremote-only = true", ["both", "keep one"]),
        ("remote-only = true", ["no worker is given", "--worker"]),
    ] {
        let folder = subject(scratch, &referee, &broken, &overriding("any", line));
        let finished = Client::call(scratch, &folder, &["run", "--offline"]).finish();
        finished.complains(96, &texts);
    }
    // Who runs nothing needs no worker for the last one, and gets as far as the build.
    let folder = scratch.join("subject");
    for command in ["list", "plan"] {
        let finished = Client::call(scratch, &folder, &[command, "--offline"]).finish();
        finished.complains(101, &["tests/it.rs"]);
    }
}

fn priorities(scratch: &Scratch) {
    let referee = Referee::new();
    // Listed, and so queued, in the wrong order.
    let kinds = ["a", "b", "c", "d"];
    let tests = kinds.map(|kind| referee.tests(kind, 5));
    let config = overriding("a", "priority = -10")
        + &overriding("c", "priority = 100")
        + &overriding("d", "priority = 50");
    let folder = subject(scratch, &referee, &tests, &config);
    let workers = Worker::fleet(scratch, 1, 1);
    let transcript = run(scratch, &folder).only_on(&workers).finish().transcript(0);
    let seen = referee.seen();
    all_seen_once(&transcript, &seen, 20);
    let order: String = seen.iter().map(|it| it.test.kind()).collect();
    assert_eq!(order, "cccccdddddbbbbbaaaaa");
}
