use std::fs;
use std::time::SystemTime;

use super::*;
use crate::batch::Ran;
use crate::cost::Past;
use crate::model::{AttemptResult, TestCase};
use crate::pace::Met;
use crate::results::script::{case, every_verdict};
use crate::results::{Counts, SummarySettings};

fn open(path: &Path) -> History {
    let (history, warning) = History::open(path);
    assert_eq!(warning, None);
    history.unwrap()
}

fn triple() -> Triple {
    Triple::new("x86_64-unknown-linux-gnu")
}

fn timings(history: &mut History) -> Timings {
    let (Remembered { timings, .. }, warning) = history.tests(&triple(), "dev");
    assert_eq!(warning, None);
    timings
}

/// A run of one test.
fn run(name: &str, case: &TestCase, verdict: Verdict, millis: u64) -> RunRecord {
    let duration = Duration::from_millis(millis);
    let last = AttemptResult::Pass;
    let ran = Ran {
        verdict,
        last,
        orderly: true,
        duration,
        batched: false,
        in_company: false,
        batch_mean: Duration::ZERO,
        printed: 90,
        had_trouble_in_company: false,
        only_in_company: false,
    };
    let (case, triple) = (case.clone(), triple());
    let test = TestRecord {
        case,
        triple,
        verdict,
        attempts: 1,
        duration,
        ordinary: duration,
        ran,
        company: None,
    };
    RunRecord {
        name: name.to_owned(),
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_342_500),
        elapsed: duration,
        cargo_profile: "dev".to_owned(),
        exit_code: 0,
        counts: Counts::default(),
        tests: vec![test],
        batches: Vec::new(),
        paces: Vec::new(),
    }
}

fn past_of(history: &mut History, case: &TestCase) -> Past {
    *timings(history).get(&case.binary, &case.name).unwrap()
}

/// The files beside and including the database, the lock left out.
fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| {
        !name.ends_with(".lock") && !name.ends_with("-wal") && !name.ends_with("-shm")
    });
    names.sort();
    names
}

#[test]
fn a_run_is_there_in_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/history.sqlite");
    let script = every_verdict(SummarySettings::default());
    let record = RunRecord::of(&script.summary, "dev", &[]).unwrap();
    assert_eq!(open(&path).record(&record), None);

    let mut history = open(&path);
    let timings = timings(&mut history);
    let told = timings.iter();
    let told: Vec<_> =
        told.map(|(b, n, past)| format!("{b} {n}: {} {}", past.last, past.runs)).collect();
    assert_eq!(
        told,
        [
            "basic tests::bad: fail 0",
            "basic tests::ok: pass 1",
            "basic tests::seg: crashed 0",
            "basic::it flaky: flaky 1",
            "basic::it hang: timeout 0",
            "basic::it leak: pass 1",
            "basic::it moved: pass 1",
        ]
    );
    let ok = past_of(&mut history, &case("basic", "tests::ok"));
    assert_eq!(ok.mean, Duration::from_millis(4));
    assert!(history.tests(&triple(), "release").0.timings.is_empty());
}

#[test]
fn failures_change_the_verdict_but_not_the_timing() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = open(&folder.path().join("h"));
    let case = case("one", "a");
    history.record(&run("1", &case, Verdict::Fail, 9000));
    history.record(&run("2", &case, Verdict::Pass, 100));
    assert_eq!(past_of(&mut history, &case).mean, Duration::from_millis(100));
    history.record(&run("3", &case, Verdict::Timeout, 9000));
    let past = past_of(&mut history, &case);
    assert_eq!(
        (past.mean, past.last, past.runs),
        (Duration::from_millis(100), Verdict::Timeout, 1)
    );
}

#[test]
fn only_the_last_runs_and_the_tests_they_saw_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = open(&folder.path().join("h"));
    // Of a binary that is gone, and of one that is not.
    for binary in ["gone", "one"] {
        let mut old = run(binary, &case(binary, "forgotten"), Verdict::Pass, 1);
        old.started = SystemTime::UNIX_EPOCH;
        assert_eq!(history.record(&old), None);
    }
    for number in 0..RUNS_KEPT {
        assert_eq!(
            history.record(&run(&number.to_string(), &case("one", "a"), Verdict::Pass, 1)),
            None
        );
    }
    let count = |sql| history.db.query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM runs"), RUNS_KEPT);
    assert_eq!(count("SELECT count(*) FROM outcomes WHERE tests = 'pass 1 1000 a'"), RUNS_KEPT);
    assert_eq!(count("SELECT count(*) FROM tests"), 1);
    let known = timings(&mut history);
    let known: Vec<_> = known.iter().map(|(binary, name, _)| format!("{binary} {name}")).collect();
    assert_eq!(known, ["one a"]);
}

#[test]
fn two_runs_at_once_lose_nothing() {
    const RUNS: u32 = 10;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    let shared = case("one", "shared");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (path, shared) = (&path, &shared);
            scope.spawn(move || {
                // Opening races too: one of them makes the tables.
                let mut history = open(path);
                for number in 0..RUNS {
                    let name = format!("{thread}-{number}");
                    assert_eq!(history.record(&run(&name, shared, Verdict::Pass, 5)), None);
                    let own = case("one", &name);
                    assert_eq!(
                        history.record(&run(&format!("{name}x"), &own, Verdict::Pass, 5)),
                        None
                    );
                }
            });
        }
    });
    let mut history = open(&path);
    assert_eq!(past_of(&mut history, &shared).runs, 4 * RUNS);
    assert_eq!(timings(&mut history).iter().count() as u32, 4 * RUNS + 1);
}

#[test]
fn a_damaged_file_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    fs::write(&path, "no database, but longer than a header ".repeat(100)).unwrap();
    let (history, warning) = History::open(&path);
    assert!(warning.unwrap().text.contains("is damaged"));
    let mut history = history.unwrap();
    assert_eq!(history.record(&run("1", &case("one", "a"), Verdict::Pass, 1)), None);
    assert_eq!(timings(&mut history).iter().count(), 1);
    drop(history);
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn what_is_another_programs_or_a_newer_versions_stays_as_it_is() {
    let newer = |path: &Path| {
        open(path).db.pragma_update(None, "user_version", 99).unwrap();
    };
    let foreign = |path: &Path| {
        let db = Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE precious (x); INSERT INTO precious VALUES (1)").unwrap();
    };
    type Make = fn(&Path);
    let cases: [(Make, &str); 2] =
        [(newer, "was written by a newer cargo distest"), (foreign, "is no history")];
    for (make, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        make(&path);
        let before = fs::read(&path).unwrap();
        let (history, warning) = History::open(&path);
        assert!(history.is_none());
        let warning = warning.unwrap();
        assert!(warning.text.contains(why) && warning.text.contains("stays"), "{warning:?}");
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(files(folder.path()), ["h"]);
    }
}

#[test]
fn what_cannot_be_read_is_set_aside_however_sound_the_file_is() {
    for damage in [
        "UPDATE tests SET tests = cast(x'fffe20ff0a31' AS TEXT)",
        "DROP TABLE tests",
        "ALTER TABLE batches RENAME COLUMN names TO other",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        let record = run("1", &case("one", "a"), Verdict::Pass, 1);
        assert_eq!(open(&path).record(&record), None);
        open(&path).db.execute_batch(damage).unwrap();
        let mut history = open(&path);
        let (remembered, warning) = history.tests(&triple(), "dev");
        assert!(remembered.timings.is_empty());
        let told = warning.map(|it| it.text).unwrap_or_default();
        assert!(told.contains("is damaged"), "{damage}: {told}");
        assert_eq!(history.record(&record), None);
        drop(history);
        assert_eq!(files(folder.path()).len(), 2, "{damage}");
        assert_eq!(timings(&mut open(&path)).iter().count(), 1);
    }
}

#[test]
fn damage_that_is_found_late_is_set_aside_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    let mut record = run("1", &case("one", "a"), Verdict::Pass, 1);
    record.tests = (0..2000)
        .map(|n| TestRecord { case: case("one", &n.to_string()), ..record.tests[0].clone() })
        .collect();
    assert_eq!(open(&path).record(&record), None);
    // The header and the schema stay; the tables' pages don't.
    let mut bytes = fs::read(&path).unwrap();
    let from = bytes.len() / 4;
    bytes[from..].fill(0xa5);
    fs::write(&path, bytes).unwrap();

    let mut history = open(&path);
    let (remembered, warning) = history.tests(&triple(), "dev");
    assert!(remembered.timings.is_empty());
    assert!(warning.unwrap().text.contains("is damaged"));
    assert_eq!(history.record(&run("2", &case("one", "a"), Verdict::Pass, 1)), None);
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn tests_of_one_name_share_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = open(&folder.path().join("h"));
    let mut record = run("1", &case("one", "twice"), Verdict::Pass, 10);
    record.tests.push(record.tests[0].clone());
    assert_eq!(history.record(&record), None);
    record.name = "2".to_owned();
    assert_eq!(history.record(&record), None);
    assert_eq!(timings(&mut history).iter().count(), 1);
}

#[test]
fn a_place_that_cannot_be_used_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let mut places = vec![folder.path().join("file/h"), folder.path().to_owned()];
    if cfg!(target_os = "linux") {
        // Where not even root can make a file.
        places.push(PathBuf::from("/proc/self/h"));
    }
    for path in places {
        let (history, warning) = History::open(&path);
        assert!(history.is_none());
        assert!(warning.unwrap().text.starts_with("this run has no history"));
    }
}

#[test]
fn a_workspace_is_named_by_its_root_and_members() {
    let path = |root: &str, members: &[&str]| {
        let members: Vec<_> = members.iter().map(|&member| member.to_owned()).collect();
        default_path(Path::new(root), &members)
    };
    assert_eq!(path("/a", &["x", "y"]), path("/a", &["y", "x"]));
    assert_ne!(path("/a", &["x", "y"]), path("/b", &["x", "y"]));
    assert_ne!(path("/a", &["x"]), path("/a", &["x", "y"]));
}

#[test]
fn workers_are_remembered_by_a_standard_that_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    let script = every_verdict(SummarySettings::default());
    let worker = script.summary.tests()[0].attempts[0].worker;
    let mut history = open(&path);
    assert_eq!(history.paces(), (Paces::default(), None));
    // Twice as slow as all tests were expected to be: that is the tests' doing.
    let before = Pace::remembered(1.0, None, None);
    let mut now = Pace::remembered(0.5, Some(Duration::from_millis(7)), Some(1e6));
    let met = |before, now| [Met { worker, name: "w".to_owned(), before, now }];
    let record = RunRecord::of(&script.summary, "dev", &met(Some(before), now)).unwrap();
    assert_eq!(record.tests[0].ordinary, record.tests[0].duration);
    assert_eq!(history.record(&record), None);
    let (paces, _) = open(&path).paces();
    let pace = paces["w"];
    assert_eq!((pace.speed(), pace.overhead(), pace.rate()), (1.0, now.overhead(), now.rate()));
    // A worker that was as slow before: the tests are as they were.
    now = Pace::remembered(0.5, None, None);
    let record = RunRecord::of(&script.summary, "dev", &met(Some(now), now)).unwrap();
    assert_eq!(record.tests[0].ordinary, record.tests[0].duration / 2);
}

#[test]
fn the_batch_in_which_a_test_passed_last_is_known_while_its_run_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = open(&folder.path().join("h"));
    let it = case("one", "it");
    let recalled = |history: &mut History| {
        let (Remembered { standings, .. }, warning) = history.tests(&triple(), "dev");
        assert_eq!(warning, None);
        let (_, recalled) = standings.get(&it.binary, &it.name);
        recalled
            .map(|it| (it.passes, it.members.map(|all| all.names().collect::<Vec<_>>().join(" "))))
    };
    let batched = |name: &str, passed: bool, number: u32, members: [&str; 2]| {
        let mut record = run(name, &it, Verdict::Pass, 1);
        let test = &mut record.tests[0];
        test.ran = Ran { batched: passed, in_company: passed, ..test.ran };
        test.company = passed.then_some(number);
        let binary = it.binary.clone();
        let others = BatchRecord { number: 9, binary, names: vec![TestName::new("other")] };
        let names = members.map(TestName::new).into();
        record.batches = vec![BatchRecord { number, names, ..others.clone() }, others];
        record
    };
    history.record(&run("1", &it, Verdict::Pass, 1));
    assert_eq!(recalled(&mut history), None, "it was alone");
    history.record(&batched("2", true, 4, ["helper", "it"]));
    assert_eq!(recalled(&mut history), Some((1, Some("helper it".to_owned()))));
    // It was in a batch, and not passed there: nobody got to it, say.
    history.record(&batched("3", false, 2, ["it", "x"]));
    assert_eq!(recalled(&mut history), None, "its last pass was alone");
    history.record(&batched("4", true, 2, ["it", "y"]));
    history.record(&batched("5", true, 4, ["helper", "it"]));
    assert_eq!(recalled(&mut history), Some((2, Some("helper it".to_owned()))));
    for number in 0..RUNS_KEPT {
        history.record(&run(&format!("x{number}"), &case("one", "x"), Verdict::Pass, 1));
    }
    assert_eq!(recalled(&mut history), Some((2, None)), "that run is forgotten");
}
