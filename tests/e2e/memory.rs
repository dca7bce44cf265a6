//! Tests that want more memory than there is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use distest_tests::DEADLINE;
use distest_tests::client::Client;
use distest_tests::referee::Referee;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::transcript::{AttemptResult, Case, Verdict};
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::unistd::geteuid;

use crate::case_if;
use crate::drain::look;
use crate::faults::{SmallDisk, can_mount};
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case_if("memory::a_test_that_takes_all_is_told_to_have", possible, takes_all),
        case_if(
            "memory::a_worker_whose_group_is_short_runs_one_at_a_time",
            possible,
            one_at_a_time,
        ),
    ]
}

/// Bytes: more than a worker and a usual test need.
const LIMIT: u32 = 128 << 20;
/// The same with room to come close to it.
const ROOMY: u32 = 512 << 20;
/// When only these are left of that, that is little.
const LITTLE: u64 = 48 << 20;

/// A control group whose memory is bounded.
struct Group(PathBuf);

impl Group {
    fn new(limit: u32) -> Result<Self, String> {
        let (old, new) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (parent, bound) = match old.is_dir() {
            true => (old, "memory.limit_in_bytes"),
            false => (new, "memory.max"),
        };
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let group = Self(parent.join(format!("distest-{}-{number}", std::process::id())));
        let limit = limit.to_string();
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(bound), limit));
        made.map(|()| group).map_err(|error| format!("no control group can be made: {error}"))
    }
}

impl Group {
    /// A command that runs in it from its first moment on.
    fn enter(&self, scratch: &Scratch, command: &Command) -> Command {
        let script = "echo $$ > \"$1\" && shift && exec \"$@\"";
        let mut shell = scratch.command("sh");
        shell.args(["-c", script, "sh"]).arg(self.0.join("cgroup.procs"));
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    /// Bytes in it that can't be had back: no pages of files on a disk.
    fn taken(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.stat")).unwrap();
        let of = |name: &str| -> Option<u64> {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.trim().parse().ok()
        };
        // Of older groups these are without what is in others below them; there are none.
        ["active_anon ", "inactive_anon "].map(|name| of(name).unwrap()).iter().sum()
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
        true => Group::new(LIMIT).map(drop).and_then(|()| can_mount()),
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
    let group = Group::new(LIMIT).expect("it was possible before");
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

/// The machine has plenty: it is the group that leaves little.
fn one_at_a_time(scratch: &Scratch) {
    let group = Group::new(ROOMY).expect("it was possible before");
    let disk = SmallDisk::of(scratch.join("disk"), "1g");
    let store = scratch.join("store");
    let worker = Worker::start_changed(scratch, "w1", 2, &store, Executable::Worker, |command| {
        let mut entered = group.enter(scratch, command);
        entered.current_dir(scratch.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        entered.stderr(File::create(scratch.join("worker-w1.log")).unwrap());
        *command = entered;
    });
    let is_short = || look(scratch, &["--worker", &worker.address])[0]["short_of_memory"] == true;
    let run = |folder: &Path| {
        let client = Client::call(scratch, folder, &["run", "--offline", "--isolation", "process"]);
        client.json().only_on(std::slice::from_ref(&worker)).finish().transcript(0)
    };
    let (apart, pairs) = (Referee::new(), Referee::new().together("pair", 2));
    let [apart_tests, pair_tests] = [("apart", &apart), ("pair", &pairs)].map(|(kind, referee)| {
        let sources = referee.prelude() + &referee.tests(kind, 6);
        let folder = package(scratch, &sources);
        let own = scratch.join(kind);
        fs::rename(folder, &own).unwrap();
        own
    });
    assert!(!is_short());
    // What was written in a group is the group's, also when whoever wrote it has ended.
    let mut pieces = 0..;
    while group.taken() + LITTLE < u64::from(ROOMY) {
        let file = disk.folder.join(pieces.next().unwrap().to_string());
        let mut write = Command::new("dd");
        write.args(["if=/dev/zero", "bs=1M", "count=8", "status=none"]);
        write.arg(format!("of={}", file.display()));
        assert!(group.enter(scratch, &write).status().unwrap().success());
    }
    let unnoticed = what_stays(DEADLINE, || if is_short() { vec![] } else { vec![()] });
    assert!(unnoticed.is_empty(), "{} of {ROOMY} bytes are taken", group.taken());
    assert_eq!(run(&apart_tests).summary.passed, 6);
    let beside: Vec<_> = apart.seen().into_iter().filter(|it| !it.beside.is_empty()).collect();
    assert!(beside.is_empty(), "{beside:#?}");
    for entry in fs::read_dir(&disk.folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let stays = what_stays(DEADLINE, || if is_short() { vec![()] } else { vec![] });
    assert!(stays.is_empty(), "there is enough again");
    // Each goes on when another is there.
    assert_eq!(run(&pair_tests).summary.passed, 6);
    drop(worker);
}
