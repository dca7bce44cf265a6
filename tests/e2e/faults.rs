//! What dies in the middle: workers, connections, the client, disks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Running};
use distest_tests::fixture::Fixture;
use distest_tests::junit::Report;
use distest_tests::product::product;
use distest_tests::proxy::Proxy;
use distest_tests::referee::{Present, Referee};
use distest_tests::scratch::{Scratch, Stray, what_stays};
use distest_tests::transcript::{Attempt, AttemptResult, Line, Transcript, Verdict};
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::travel::package;
use crate::{GONE_WITHIN, case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("faults::one_of_three_workers_is_killed", one_of_three),
        case("faults::the_only_worker_is_killed", only_worker),
        case("faults::a_worker_beside_the_embedded_one_is_killed", beside_embedded),
        case("faults::a_test_kills_its_worker_before_that_says_so", killed_unsaid),
        case("faults::connection_is_cut_while_shipping", cut),
        case("faults::client_is_killed_embedded", |scratch| client_killed(scratch, &[])),
        case("faults::client_is_killed_with_workers", |scratch| {
            client_killed(scratch, &Worker::fleet(scratch, 2, 2));
        }),
        case("faults::a_test_that_ignores_sigterm_is_killed", ignores_sigterm),
        case("faults::every_blob_of_a_worker_is_damaged", damaged_store),
        case("faults::executables_are_built_anew", rebuilt),
        case("faults::executables_are_built_anew_before_a_worker_comes", rebuilt_before_a_worker),
        case_if("faults::disk_of_a_worker_is_full", can_mount, full_disk),
        case_if("faults::disk_of_the_only_worker_is_full", can_mount, only_disk_full),
    ]
}

fn one_of_three(scratch: &Scratch) {
    let fixture = Fixture::named("naps");
    let workers = Worker::fleet(scratch, 3, 2);
    let mut run = Client::run(scratch, &fixture).only_on(&workers).start();
    let victim = &workers[1];
    let mut seen = 0;
    run.until(|line| {
        seen += usize::from(matches!(line, Line::Test(_)));
        seen >= 100 && matches!(line, Line::Test(Attempt { worker, .. }) if *worker == victim.name)
    });
    victim.process.signal(Signal::SIGKILL);
    let transcript = run.finish().transcript(0);
    all_passed_once(&transcript);
    let of_victim = transcript.attempts.iter().filter(|attempt| attempt.worker == victim.name);
    assert!(of_victim.count() < 500, "the others took over");
}

fn all_passed_once(transcript: &Transcript) {
    // That each has one verdict is checked for every run.
    assert_eq!(transcript.verdicts.len(), 600, "verdicts");
    assert_eq!(transcript.count(Verdict::Pass), 600, "passes");
}

/// Some tests are under way when others have ended, and no more than one of the rest.
const HELD: u32 = 2;
const ENDED: u32 = 10;
const WAITING: u32 = 10;
/// One that is not held.
const SLOTS: u32 = HELD + 1;

fn referee() -> Referee {
    ["held", "quick", "waits"].iter().fold(Referee::new(), |it, kind| it.together(kind, usize::MAX))
}

/// Begins a run of them, one by one.
fn caught_in_the_middle(
    scratch: &Scratch,
    referee: &Referee,
    to: impl FnOnce(Client) -> Client,
) -> Running {
    // They begin in the order in which they stand here.
    let kinds = [("held", HELD), ("quick", ENDED), ("waits", WAITING)];
    let tests: String = kinds.iter().map(|(kind, count)| referee.tests(kind, *count)).collect();
    let folder = package(scratch, &(referee.prelude() + &tests));
    let args = ["run", "--offline", "--no-fail-fast", "--isolation", "process"];
    let mut run = to(Client::call(scratch, &folder, &args).json()).start();
    for number in 0..HELD {
        referee.wait_for(|it| it.test.name == format!("held_{number}"));
    }
    // What ends from now on is told after what began before.
    referee.let_go("quick");
    run.until_attempts(ENDED as usize);
    run
}

fn only_worker(scratch: &Scratch) {
    let (referee, workers) = (referee(), Worker::fleet(scratch, 1, SLOTS));
    let run = caught_in_the_middle(scratch, &referee, |client| client.only_on(&workers));
    workers[0].process.signal(Signal::SIGKILL);
    let transcript = run.finish().transcript(98);
    let mut count = BTreeMap::new();
    for (case, verdict) in &transcript.verdicts {
        *count.entry((case.name.split('_').next().unwrap(), *verdict)).or_insert(0) += 1;
    }
    assert_eq!(count[&("quick", Verdict::Pass)], ENDED, "what passed before stays passed");
    assert_eq!(count[&("held", Verdict::Lost)], HELD, "what came to no end is lost");
    // A loss is no test's failure, and what never began is not lost.
    let [begun, rest] = [Verdict::Lost, Verdict::Skipped].map(|it| count.get(&("waits", it)));
    let (begun, rest) = (begun.unwrap_or(&0), rest.unwrap_or(&0));
    assert!(*begun <= 1 && begun + rest == WAITING, "{count:?}");
}

fn beside_embedded(scratch: &Scratch) {
    let fixture = Fixture::named("naps");
    let worker = Worker::start(scratch, "w1", 2);
    let mut run = Client::run(scratch, &fixture)
        .args(["--local-slots", "2", "--worker", &worker.address, "--wait-workers", "1"])
        .start();
    run.until(|line| matches!(line, Line::Test(Attempt { worker, .. }) if worker == "w1"));
    worker.process.signal(Signal::SIGKILL);
    all_passed_once(&run.finish().transcript(0));
}

/// Each time it has begun, its worker is dead before the client hears of it, and another one is there at
/// once. Who runs beside it the first time is not to suffer for that.
fn killed_unsaid(scratch: &Scratch) {
    const LOSSES_MAX: usize = 5;
    const UNDER_WAY: Duration = Duration::from_millis(300);
    let referee = Referee::new().together("kills", usize::MAX);
    let tests = referee.test("kills_it") + &referee.tests("quick", 3);
    let folder = package(scratch, &[referee.prelude(), tests].concat());
    let mut worker = Worker::start(scratch, "w1", 2);
    let proxy = Proxy::late(worker.socket(), UNDER_WAY);
    let run = Client::call(scratch, &folder, &["run", "--offline", "--no-fail-fast"]).json();
    let run = run.args(["--local-slots", "0", "--wait-workers", "1"]).worker(&proxy.address);
    let run = run.start();
    for time in 1..=LOSSES_MAX {
        referee.wait_for_beginning("kills_it", time);
        worker.process.signal(Signal::SIGKILL);
        worker.process.wait(DEADLINE).expect("nothing survives SIGKILL");
        worker.restart(scratch, 2, &scratch.join("store-w1"));
    }
    let transcript = run.finish().transcript(100);
    assert_eq!((transcript.count(Verdict::Lost), transcript.count(Verdict::Pass)), (1, 3));
    for attempts in transcript.verdicts.keys().map(|case| transcript.attempts_of(case)) {
        let numbers: Vec<_> = attempts.iter().map(|it| it.attempt as usize).collect();
        assert_eq!(numbers, (1..=attempts.len()).collect::<Vec<_>>(), "{attempts:#?}");
        let lost = attempts.iter().filter(|it| it.result == AttemptResult::Lost);
        let unsaid =
            lost.filter(|it| it.reason.contains("before it said that the test had started"));
        let most = if attempts[0].name == "kills_it" { LOSSES_MAX } else { 2 };
        assert!(unsaid.count() <= most, "{attempts:#?}");
    }
    let killer = transcript.attempts.iter().filter(|it| it.name == "kills_it");
    let unsaid = killer.map(|it| it.reason.contains("before it said that the test had started"));
    assert_eq!(unsaid.collect::<Vec<_>>(), [true; LOSSES_MAX]);
}

fn cut(scratch: &Scratch) {
    const TESTS: u32 = 8;
    // In the middle of the first blobs.
    const CUT_AFTER: u64 = 64 * 1024;
    let referee = Referee::new().together("held", usize::MAX);
    let folder = package(scratch, &(referee.prelude() + &referee.tests("held", TESTS)));
    let workers = Worker::fleet(scratch, 2, 1);
    let proxy = Proxy::cut_after(workers[0].socket(), CUT_AFTER);
    let run = Client::call(scratch, &folder, &["run", "--offline", "--isolation", "process"])
        .json()
        .args(["--local-slots", "0", "--wait-workers", "2"])
        .worker(&proxy.address)
        .worker(&workers[1].address)
        .start();
    // The other worker can't be done before.
    let unused = what_stays(DEADLINE, || match proxy.sent() {
        CUT_AFTER.. => vec![],
        sent => vec![sent],
    });
    assert!(unused.is_empty(), "the connection was used for {unused:?} bytes");
    referee.let_go("held");
    assert_eq!(run.finish().transcript(0).summary.passed, TESTS);
}

fn client_killed(scratch: &Scratch, workers: &[Worker]) {
    let fixture = Fixture::named("slow");
    // Two tests that never end, one of them with a child.
    let mut client = Client::run(scratch, &fixture).args(["tests::hangs"]);
    client = if workers.is_empty() {
        client.args(["--local-slots", "2"])
    } else {
        client.only_on(workers)
    };
    let run = client.start();
    scratch.wait_for("the hanging test", |process| {
        process.command_line.contains("tests::hangs") && !is_product(process)
    });
    scratch.wait_for("the child", |process| process.command_line.starts_with("sleep"));
    run.signal(Signal::SIGKILL);
    // Workers and their helpers outlive a client.
    let left =
        scratch.left_after(GONE_WITHIN, |process| workers.is_empty() || !is_product(process));
    assert!(left.is_empty(), "left after the client was killed: {left:#?}");
}

fn is_product(process: &Stray) -> bool {
    [&product().client, &product().worker].contains(&&process.executable)
}

fn ignores_sigterm(scratch: &Scratch) {
    let fixture = Fixture::named("slow");
    let args = ["--run-ignored", "only", "--test-timeout", "1s"];
    let transcript = Client::run(scratch, &fixture).args(args).finish().transcript(100);
    assert_eq!(transcript.count(Verdict::Timeout), 1);
}

/// One run mends all of it: nothing is taken for what it was.
fn damaged_store(scratch: &Scratch) {
    let fixture = Fixture::copied("basic", scratch);
    let worker = Worker::start(scratch, "w1", 2);
    let run = || {
        let client = Client::run(scratch, &fixture).args(&fixture.model.args);
        let client = client.args(["--local-slots", "0", "--worker", &worker.address]);
        client.finish().transcript(fixture.model.exit_code)
    };
    let first = run();
    let blobs = scratch.join("store-w1/v1/blobs");
    let damaged = damage(&blobs);
    assert!(damaged > 10, "{damaged} blobs in {}", blobs.display());
    let second = run();
    assert_eq!(first.verdicts, second.verdicts);
    assert!(second.summary.shipped_bytes > 0, "all of it is sent again");
}

/// The embedded worker runs executables where cargo put them: what others say doesn't count.
fn rebuilt(scratch: &Scratch) {
    let referee = referee();
    let slots = SLOTS.to_string();
    let to = |client: Client| client.args(["--local-slots", &slots]);
    let run = caught_in_the_middle(scratch, &referee, to);
    build_anew(scratch);
    referee.let_go("held");
    referee.let_go("waits");
    let transcript = run.finish().transcript(100);
    let [passed, lost] = [Verdict::Pass, Verdict::Lost].map(|it| transcript.count(it));
    assert_eq!(passed, ENDED as usize, "what ended before: {:?}", transcript.verdicts);
    assert_eq!(lost, (HELD + WAITING) as usize, "all others are told as lost");
}

/// Puts executables that run no test and succeed in the place of those of the subject.
fn build_anew(scratch: &Scratch) {
    for entry in fs::read_dir(scratch.join("subject/target/debug/deps")).unwrap() {
        let path = entry.unwrap().path();
        let is_executable = path.extension().is_none() && path.is_file();
        if is_executable {
            let other = path.with_extension("other");
            fs::copy("/bin/true", &other).unwrap();
            fs::rename(&other, &path).unwrap();
        }
    }
}

/// A worker that comes later gets the executables that were listed, and runs what the embedded one
/// no longer can.
fn rebuilt_before_a_worker(scratch: &Scratch) {
    let referee = referee();
    let mut worker = Worker::start(scratch, "w1", SLOTS);
    worker.process.signal(Signal::SIGKILL);
    worker.process.wait(DEADLINE).expect("it ends");
    let (slots, address) = (SLOTS.to_string(), worker.address.clone());
    let to = |client: Client| client.args(["--local-slots", &slots, "--worker", &address]);
    let run = caught_in_the_middle(scratch, &referee, to);
    build_anew(scratch);
    worker.restart(scratch, SLOTS, &scratch.join("store-w1"));
    // It is there, and the embedded worker's tests have somewhere to go.
    referee.wait_for(|it| it.test.worker == "w1");
    referee.let_go("held");
    referee.let_go("waits");
    let transcript = run.finish().transcript(0);
    assert_eq!(transcript.count(Verdict::Pass), (HELD + ENDED + WAITING) as usize);
    let ran: BTreeSet<_> = referee.seen().into_iter().map(|it| it.test).collect();
    for (case, _) in transcript.verdicts.iter().filter(|it| !it.0.name.starts_with("quick")) {
        let there = Present { name: case.name.clone(), worker: "w1".to_owned() };
        assert!(ran.contains(&there), "{case:?} passes and did not run there: {ran:?}");
    }
}

/// Overwrites a byte in every file below `folder`, empty ones excepted.
fn damage(folder: &Path) -> usize {
    let mut damaged = 0;
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            damaged += damage(&entry.path());
            continue;
        }
        let mut bytes = fs::read(entry.path()).unwrap();
        let Some(last) = bytes.last_mut() else { continue };
        *last ^= 1;
        let mut permissions = entry.metadata().unwrap().permissions();
        permissions.set_mode(0o600);
        fs::set_permissions(entry.path(), permissions).unwrap();
        fs::write(entry.path(), bytes).unwrap();
        damaged += 1;
    }
    damaged
}

/// The worker is there and takes nothing: it was not lost.
fn only_disk_full(scratch: &Scratch) {
    let fixture = Fixture::named("basic");
    let disk = SmallDisk::mount(scratch.join("small-disk"));
    let full =
        Worker::start_with(scratch, "full", 1, &disk.folder.join("store"), Executable::Worker);
    let finished = Client::run_human(scratch, &fixture).only_on(&[full]).finish();
    finished.complains(97, &["full", "space", "no worker takes the tests that are left"]);
    assert!(!finished.stderr.contains("lost"), "{}", finished.stderr);
}

fn full_disk(scratch: &Scratch) {
    let fixture = Fixture::named("basic");
    let disk = SmallDisk::mount(scratch.join("small-disk"));
    let store = disk.folder.join("store");
    let full = Worker::start_with(scratch, "full", 1, &store, Executable::Worker);
    let roomy = Worker::start(scratch, "roomy", 1);
    let junit = scratch.join("junit.xml");
    let finished = Client::run_human(scratch, &fixture)
        .args(&fixture.model.args)
        .args(["--junit".as_ref(), junit.as_os_str()])
        .only_on(&[full, roomy])
        .finish();
    // Its tests went elsewhere, and the reason is shown.
    finished.complains(fixture.model.exit_code, &["full", "space"]);
    let report = Report::read(&junit).expect("the JUnit file can be read");
    report.check(&fixture.model.verdicts).expect("JUnit says what the model says");
}

/// A file system in memory that is soon full, unmounted when dropped.
pub(crate) struct SmallDisk {
    pub(crate) folder: PathBuf,
}

impl SmallDisk {
    fn mount(folder: PathBuf) -> Self {
        Self::of(folder, "1m")
    }

    /// In memory, of this size.
    pub(crate) fn of(folder: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&folder).expect("a folder of ours can be written");
        mount(&folder, size).expect("a file system can be mounted");
        Self { folder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there doesn't keep the folder.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn mount(folder: &Path, size: &str) -> Result<(), String> {
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder);
    let output = command.output().map_err(|error| format!("mount: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

pub(crate) fn can_mount() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("only root can mount a small file system".to_owned());
    }
    let scratch = Scratch::new();
    let folder = scratch.join("disk");
    fs::create_dir(&folder).map_err(|error| error.to_string())?;
    mount(&folder, "1m")?;
    drop(SmallDisk { folder });
    Ok(())
}
