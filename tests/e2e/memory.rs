//! Tests that want more memory than there is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distest_tests::client::Client;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::transcript::{AttemptResult, Case, Verdict};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::unistd::geteuid;

use crate::case_if;

pub(crate) fn cases() -> Vec<Trial> {
    vec![case_if("memory::a_test_that_takes_all_is_told_to_have", possible, takes_all)]
}

/// More than a worker and a usual test need.
const LIMIT: &str = "134217728";

/// A control group whose memory is bounded.
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Self, String> {
        let (old, new) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (parent, bound) = match old.is_dir() {
            true => (old, "memory.limit_in_bytes"),
            false => (new, "memory.max"),
        };
        let group = Self(parent.join(format!("distest-{}", std::process::id())));
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(bound), LIMIT));
        made.map(|()| group).map_err(|error| format!("no control group can be made: {error}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever was in it takes a moment to leave.
        what_stays(Duration::from_secs(5), || Vec::from_iter(fs::remove_dir(&self.0).err()));
    }
}

fn possible() -> Result<(), String> {
    match geteuid().is_root() {
        true => Group::new().map(drop),
        false => Err("only root can make control groups".to_owned()),
    }
}

fn takes_all(scratch: &Scratch) {
    let manifest =
        "[workspace]\n[package]\nname = \"subject\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    scratch.write("subject/Cargo.toml", manifest);
    let source = r#"
        #[test]
        fn takes_all() {
            let all = vec![1u8; 1 << 30];
            assert_eq!(std::hint::black_box(all)[7], 1);
        }
        #[test]
        fn goes_first() {
            let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
            assert!(score.trim().parse::<i32>().unwrap() >= 500, "{score}");
        }
        #[test]
        fn is_killed_by_others() {
            let pid = std::process::id().to_string();
            std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
        }
    "#;
    scratch.write("subject/tests/it.rs", source);
    scratch.write("subject/src/lib.rs", "");
    let group = Group::new().expect("it was possible before");
    let worker = Worker::start(scratch, "w1", 1);
    let pid = worker.process.pid().to_string();
    fs::write(group.0.join("cgroup.procs"), pid).expect("a process can be moved");
    let args = ["run", "--offline", "--no-fail-fast"];
    let client = Client::call(scratch, &scratch.join("subject"), &args).json();
    let transcript = client.only_on(std::slice::from_ref(&worker)).finish().transcript(100);
    let told = |name: &str| {
        let attempts = transcript.attempts_of(&Case::new("subject::it", name));
        let told = attempts.iter().map(|attempt| (attempt.result, attempt.reason.clone()));
        told.collect::<Vec<_>>()
    };
    let crashed = |why: &str| [(AttemptResult::Crashed, why.to_owned())];
    assert_eq!(told("takes_all"), crashed("out of memory"));
    assert_eq!(told("is_killed_by_others"), crashed("signal 9 (SIGKILL)"));
    assert_eq!(told("goes_first"), [(AttemptResult::Pass, String::new())]);
    assert_eq!(transcript.count(Verdict::Lost), 0, "the worker is still there");
    drop(worker);
}
