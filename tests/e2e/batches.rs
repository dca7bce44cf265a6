//! Tests that share a process: what is seen of it, and that it never turns a red test green.

use std::collections::BTreeMap;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Case, Isolation, Transcript, Verdict};
use distest_tests::trap::Trap;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case;

/// Compositions of batches that every test run tries; the command `batch-trap` tries more.
const SEEDS: u64 = 8;
/// More than this many of 2,000 quick tests share processes.
const MANY: u32 = 1500;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("batches::model", model),
        case("batches::no_red_test_turns_green", |scratch| {
            let trap = Trap::set(scratch);
            let sprung: Vec<_> = (0..SEEDS).map(|seed| trap.spring(scratch, seed)).collect();
            let kept = sprung
                .iter()
                .filter(|it| it.transcript.summary.rerun_alone < it.transcript.summary.batched);
            assert!(kept.count() > 0, "some batch keeps some of its passes");
        }),
        case("batches::what_passes_only_in_company_is_found", |scratch| {
            Trap::set(scratch).until_company_is_found(scratch);
        }),
        case("batches::what_lacks_its_company_is_told_with_it", |scratch| {
            Trap::set(scratch).its_helper_is_elsewhere(scratch);
        }),
        case("batches::a_second_run_is_batched", a_second_run_is_batched),
        case("batches::on_a_worker", |scratch| {
            let workers = Worker::fleet(scratch, 1, 2);
            let fixture = Fixture::named("many");
            let run = || Client::run(scratch, &fixture).only_on(&workers).finish().transcript(0);
            let (_, warm) = (run(), run());
            assert!(warm.summary.batched > MANY, "{:?}", warm.summary);
            assert_eq!(warm.verdicts, fixture.model.verdicts);
        }),
        case("batches::the_named_isolation_holds", the_named_isolation_holds),
        case("batches::output_of_passing_tests_needs_processes", |scratch| {
            let fixture = Fixture::named("many");
            let args = ["t_00", "--isolation", "batch", "--success-output", "final"];
            let told = Client::run(scratch, &fixture).args(args).finish().transcript(0);
            assert_eq!(told.summary.batched, 0);
        }),
    ]
}

/// The fixture's model, in processes; the test without a verdict of its own is left out.
fn model(scratch: &Scratch) {
    let fixture = Fixture::named("batch-trap");
    let mut client = Client::run(scratch, &fixture).args(&fixture.model.args);
    client = client.args(["--", "--skip", "one_time_in_three"]);
    let mut transcript = client.finish().transcript(fixture.model.exit_code);
    transcript.verdicts.retain(|_, verdict| *verdict != Verdict::Skipped);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
    assert_eq!(transcript.summary.batched, 0);
}

fn a_second_run_is_batched(scratch: &Scratch) {
    let fixture = Fixture::named("many");
    let junit = scratch.join("junit.xml");
    let run = || {
        let client = Client::run(scratch, &fixture).args(["--junit"]).args([&junit]);
        client.finish().transcript(0)
    };
    let cold = run();
    assert_eq!((cold.summary.batched, cold.summary.rerun_alone), (0, 0));
    let warm = run();
    // One in fifty runs alone, and so does what was slow in the first run.
    let batched = warm.summary.batched;
    assert!(batched > MANY && batched <= 1960, "{:?}", warm.summary);
    assert_eq!(warm.summary.rerun_alone, 0);
    let batches = by_batch(&warm);
    assert_eq!(batches.values().sum::<usize>(), batched as usize);
    assert!(batches.values().all(|tests| *tests > 1 && *tests <= 512), "{batches:?}");
    let report = Report::read(&junit).expect("the JUnit file can be read");
    report.check(&warm.verdicts).expect("JUnit says what the run said");

    let args = ["--seed", "7", "--color", "never"];
    let told = Client::run_human(scratch, &fixture).args(args).finish();
    assert!(told.stderr.contains("(batched 1,"), "{}", told.stderr);
}

fn by_batch(transcript: &Transcript) -> BTreeMap<u32, usize> {
    let mut batches = BTreeMap::new();
    for attempt in &transcript.attempts {
        assert_eq!(attempt.batch.is_some(), attempt.isolation == Isolation::Batch);
        assert_eq!(attempt.result, AttemptResult::Pass);
        if let Some(batch) = attempt.batch {
            *batches.entry(batch).or_default() += 1;
        }
    }
    batches
}

fn the_named_isolation_holds(scratch: &Scratch) {
    let fixture = Fixture::named("basic");
    let run = |isolation: &str| {
        let args = ["--nff", "-p", "basic", "--lib", "--isolation", isolation, "-j", "1"];
        Client::run(scratch, &fixture).args(args).finish().transcript(100)
    };
    let alone = run("process");
    assert_eq!(alone.summary.batched, 0);
    let together = run("batch");
    assert!(together.summary.batched > 1, "{:?}", together.summary);
    // What fails in a batch runs again alone and fails there too.
    assert_eq!(together.verdicts, alone.verdicts);
    let failed = together.verdicts.iter().find(|(_, verdict)| **verdict == Verdict::Fail);
    let (failed, _): (&Case, _) = failed.expect("the fixture has a failing test");
    let told: Vec<_> = together.attempts_of(failed).iter().map(|it| it.isolation).collect();
    assert_eq!(told.last(), Some(&Isolation::Process));
}
