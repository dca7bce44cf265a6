//! Every fixture on every kind of fleet: verdicts as in its model, JUnit as in the verdicts. Workers
//! that have never seen its files are the business of [`crate::levels`].

use std::collections::BTreeSet;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Case, Verdict};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;

/// All that have a model of their own and take seconds.
pub(crate) const FIXTURES: [&str; 18] = [
    "basic",
    "build-script",
    "crash",
    "doctests",
    "dylib",
    "environment",
    "flaky",
    "git-tool",
    "many",
    "mimic",
    "naps",
    "network",
    "output",
    "paths",
    "slow",
    "snapshots",
    "weird-names",
    "workspace",
];

pub(crate) fn cases() -> Vec<Trial> {
    let fleets = [("embedded", 0), ("one_worker", 1), ("three_workers", 3)];
    let mut trials = Vec::new();
    for fixture in FIXTURES {
        for (label, workers) in fleets {
            trials.push(case(format!("model::{fixture}::{label}"), move |scratch| {
                let workers = Worker::fleet(scratch, workers, 2);
                check(scratch, &Fixture::named(fixture), &workers, &BTreeSet::new(), 1);
            }));
        }
    }
    trials
}

/// Runs a fixture without some of its binaries, and of the others one test in so many, on these
/// workers alone, embedded if there are none; holds everything that the run says against the model.
pub(crate) fn check(
    scratch: &Scratch,
    fixture: &Fixture,
    workers: &[Worker],
    left_out: &BTreeSet<String>,
    one_in: usize,
) {
    let junit = scratch.join("reports/junit.xml");
    let mut client = Client::run(scratch, fixture).args(&fixture.model.args);
    client = client.args(["--junit".as_ref(), junit.as_os_str()]);
    if !workers.is_empty() {
        client = client.only_on(workers);
    }
    let mut expected = fixture.model.verdicts.clone();
    let mut exit_code = fixture.model.exit_code;
    if !left_out.is_empty() {
        client = client.args(["-E", &format!("not ({})", tests_of(left_out))]);
        expected.retain(|case, _| !left_out.contains(&case.binary));
        exit_code = if expected.values().any(|verdict| verdict.failed()) { 100 } else { 0 };
    }
    if one_in > 1 {
        client = client.args(["--partition", &format!("slice:1/{one_in}")]);
    }
    let finished = client.finish();
    let transcript = finished.transcript(exit_code);
    if one_in > 1 {
        let dealt_out = |case| transcript.verdicts.get(case) == Some(&Verdict::Skipped);
        let others = expected.iter_mut().filter(|(case, _)| dealt_out(case));
        others.for_each(|(_, verdict)| *verdict = Verdict::Skipped);
        let ran = expected.values().filter(|verdict| **verdict != Verdict::Skipped).count();
        assert_eq!(ran, expected.len().div_ceil(one_in), "tests of a share");
    }

    assert_eq!(transcript.verdicts, expected, "verdicts and the model");
    for (case, results) in &fixture.model.attempts {
        assert_eq!(&transcript.results(case), results, "attempts of {case}");
    }
    for attempt in transcript.attempts.iter().filter(|it| it.result == AttemptResult::Leak) {
        let case = Case::new(&attempt.binary_id, &attempt.name);
        let left = fixture.model.leaks.get(&case).expect("the model knows what leaks");
        assert!(attempt.reason.contains(left), "what {case} leaves: {}", attempt.reason);
    }
    let report = Report::read(&junit).expect("the JUnit file can be read");
    report.check(&transcript.verdicts).expect("JUnit says what the run said");

    // Who ran something is who was asked, and everyone was if there was enough to do.
    let mut told: Vec<_> = transcript.summary.workers.iter().map(|worker| &*worker.name).collect();
    // Whose tests ran there rustdoc doesn't say.
    told.retain(|name| *name != "rustdoc");
    told.sort_unstable();
    // Where others keep this machine from it for too long a worker is lost, and comes back as another.
    let came_back = |name: &str| finished.stderr.contains(&format!("worker {name} was lost"));
    told.dedup_by(|one, other| one == other && came_back(one));
    let given: Vec<_> = workers.iter().map(|worker| &*worker.name).collect();
    assert_eq!(told, if given.is_empty() { vec!["local"] } else { given }, "workers of the run");
    if transcript.verdicts.len() > 500 {
        let idle = transcript.summary.workers.iter().find(|worker| worker.tests == 0);
        assert!(idle.is_none(), "a worker had nothing to do: {idle:?}");
    }
}

/// All tests of these binaries, as a filterset.
pub(crate) fn tests_of<'a>(binaries: impl IntoIterator<Item = &'a String>) -> String {
    let each: Vec<_> = binaries.into_iter().map(|binary| format!("binary_id(={binary})")).collect();
    each.join(" | ")
}
