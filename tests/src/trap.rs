//! The fixture `batch-trap`: whatever shares a process, no red test turns green.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::fixture::Fixture;
use crate::random;
use crate::scratch::Scratch;
use crate::transcript::{AttemptResult, Case, Isolation, Transcript, Verdict};

/// The test that has no verdict of its own.
const LUCK: &str = "t0080_fails_one_time_in_three";
/// The test that a batch can turn green, until its turn to run alone comes.
const COMPANY: &str = "t0075_passes_only_in_company";
/// What it needs to have run before it.
const HELPER: &str = "t0005_leaves_company";
/// What is of no help to it.
const STRANGER: &str = "t0025_expects_its_folder";
/// Seeds of which some one has each of three tests run alone.
const SEEDS_MAX: u64 = 64;
/// More clean runs alone than after which other tests return to company.
const CLEAN_RUNS: u32 = 21;

/// A history in which every test of the fixture has passed alone, quickly.
#[derive(Debug)]
pub struct Trap {
    fixture: Fixture,
    history: PathBuf,
}

/// What a run with one seed came to.
#[derive(Debug)]
pub struct Sprung {
    /// What it said.
    pub transcript: Transcript,
    /// The test that passes only in company passed, in company.
    pub company_hidden: bool,
}

impl Trap {
    /// Builds the fixture, and runs it calmly once.
    pub fn set(scratch: &Scratch) -> Self {
        let fixture = Fixture::named("batch-trap");
        let history = scratch.join("calm.sqlite");
        let calm = Client::run(scratch, &fixture).env("BATCH_TRAP", "calm").args(["--history"]);
        let transcript = calm.args([&history]).finish().transcript(0);
        assert_eq!(transcript.summary.batched, 0, "a first run is alone");
        Self { fixture, history }
    }

    /// Runs those of its tests armed that this seed chooses, with the calm run's history.
    ///
    /// All of them fit into one batch, and in that all had to run again: few of them at a time
    /// show what each does to others.
    pub fn spring(&self, scratch: &Scratch, seed: u64) -> Sprung {
        let history = scratch.join("armed.sqlite");
        fs::copy(&self.history, &history).expect("a history of ours can be copied");
        let mut chosen = self.choose(seed);
        let names: Vec<_> = chosen.keys().map(|case| format!("test(={})", case.name)).collect();
        let args = ["--no-fail-fast", "--isolation", "auto", "--test-timeout", "3s", "--seed"];
        let client = Client::run(scratch, &self.fixture).args(args).args([seed.to_string()]);
        let client = client.args(["-E", &names.join(" | "), "--history"]).args([&history]);
        let finished = client.finish();
        let code = finished.code();
        let mut transcript = finished.transcript(code);
        fs::remove_file(&history).expect("a file of ours can be removed");
        transcript.verdicts.retain(|_, verdict| *verdict != Verdict::Skipped);
        let failed = transcript.verdicts.values().any(|verdict| verdict.failed());
        assert_eq!(code, if failed { 100 } else { 0 });
        let company = transcript.verdicts.get(&Case::new("batch-trap", COMPANY));
        let sprung = Sprung { company_hidden: company == Some(&Verdict::Pass), transcript };
        chosen.remove(&Case::new("batch-trap", LUCK));
        sprung.check(&chosen);
        sprung
    }

    /// One in six of the tests and the one of luck, with what each comes to by itself.
    fn choose(&self, seed: u64) -> BTreeMap<Case, Verdict> {
        let mut state = seed;
        let luck = (Case::new("batch-trap", LUCK), Verdict::Pass);
        let all = self.fixture.model.verdicts.iter();
        let chosen = all.filter(|_| random::next(&mut state).is_multiple_of(6));
        chosen.map(|(case, verdict)| (case.clone(), *verdict)).chain([luck]).collect()
    }

    /// Runs the test that passes only in company in good company again and again, each run knowing
    /// the ones before, until its turn to run alone comes. From then on it never has company
    /// again, however often it passes alone. Answers after how many runs it was found.
    pub fn until_company_is_found(&self, scratch: &Scratch) -> usize {
        let history = scratch.join("company.sqlite");
        fs::copy(&self.history, &history).expect("a history of ours can be copied");
        let company = Case::new("batch-trap", COMPANY);
        let run = |mood: &str| {
            let args = ["-E", "test(/^t00.5_/)", "--isolation", "auto", "--history"];
            let client = Client::run(scratch, &self.fixture).env("BATCH_TRAP", mood);
            client.args(args).args([&history]).finish()
        };
        // One of ten tests runs alone in each run, and none twice before all have.
        for number in 1..=10 {
            let finished = run("company");
            if finished.code() == 0 {
                assert_eq!(finished.transcript(0).verdicts[&company], Verdict::Pass);
                continue;
            }
            let transcript = finished.transcript(100);
            let told = transcript.attempts_of(&company);
            assert!(told.iter().all(|it| it.only_in_company), "{told:?}");
            assert!(told[0].reason.contains("passes only in company"), "{told:?}");
            for clean in 1..=CLEAN_RUNS {
                let calm = run("calm").transcript(0);
                let told = calm.attempts_of(&company);
                assert_eq!(told[0].isolation, Isolation::Process, "in clean run {clean}");
                assert!(calm.summary.batched > 1, "{:?}", calm.summary);
            }
            let again = run("company").transcript(100);
            let told = again.attempts_of(&company);
            assert_eq!(told[0].isolation, Isolation::Process);
            assert!(told[0].reason.ends_with("it passed only in company before"), "{told:?}");
            return number;
        }
        panic!("the test that passes only in company never had its turn");
    }

    /// Three tests, of which one runs alone in each run: the test that passes only in company has
    /// its helper beside it in a first run, and in the next fails in a batch without it, because
    /// the helper runs alone.
    pub fn its_helper_is_elsewhere(&self, scratch: &Scratch) {
        let [company, helper, stranger] =
            [COMPANY, HELPER, STRANGER].map(|name| Case::new("batch-trap", name));
        let run = |history: &Path, tests: &str, seed: u64, human: bool| {
            let client = match human {
                true => Client::run_human(scratch, &self.fixture).args(["--color", "never"]),
                false => Client::run(scratch, &self.fixture),
            };
            let args = ["-E", tests, "--nff", "--isolation", "auto", "--seed", &seed.to_string()];
            let client = client.env("BATCH_TRAP", "company").args(args).args(["--history"]);
            client.args([history]).finish()
        };
        let all = [COMPANY, HELPER, STRANGER].map(|name| format!("test(={name})")).join(" | ");
        // Runs after `before` with one seed after the other, until this test runs alone at once.
        let until_alone = |before: &Path, after: &Path, rotated: &Case| {
            for seed in 0..SEEDS_MAX {
                fs::copy(before, after).expect("a history of ours can be copied");
                let finished = run(after, &all, seed, false);
                let code = finished.code();
                let transcript = finished.transcript(code);
                if transcript.attempts_of(rotated)[0].isolation == Isolation::Process {
                    return (seed, transcript);
                }
            }
            panic!("no seed lets {rotated} run alone");
        };
        let together = scratch.join("together.sqlite");
        let (_, first) = until_alone(&self.history, &together, &stranger);
        assert_eq!(first.verdicts[&company], Verdict::Pass, "its helper was there");

        let found = scratch.join("found.sqlite");
        let (seed, second) = until_alone(&together, &found, &helper);
        let told = second.attempts_of(&company);
        let isolations: Vec<_> = told.iter().map(|it| it.isolation).collect();
        assert_eq!(isolations, [Isolation::Batch, Isolation::Process]);
        assert_eq!(second.verdicts[&company], Verdict::Fail);
        assert!(told[1].only_in_company && told[1].reason.contains("passes only in company"));
        fs::copy(&together, &found).expect("a history of ours can be copied");
        let human = run(&found, &all, seed, true).stderr;
        let filterset = in_company(&human);
        assert!(!filterset.contains(STRANGER), "{human}");
        let args = ["--isolation", "batch", "-j", "1", "--no-history", "-E", filterset];
        let client = Client::run(scratch, &self.fixture).env("BATCH_TRAP", "company").args(args);
        let again = client.finish().transcript(0);
        assert_eq!(again.verdicts[&helper], Verdict::Pass);
        assert_eq!(again.attempts_of(&company)[0].isolation, Isolation::Batch);

        // Where its helper doesn't run at all nobody can see it, but it is known.
        let alone = format!("test(={COMPANY})");
        fs::copy(&together, &found).expect("a history of ours can be copied");
        let human = run(&found, &alone, 0, true).stderr;
        assert!(human.contains("its last pass was in company"), "{human}");
        assert!(in_company(&human).contains(HELPER), "{human}");
    }
}

/// The filterset of the command that a run names for a test's company.
fn in_company(human: &str) -> &str {
    let command = human.lines().find_map(|line| line.trim().strip_prefix("in company: "));
    let filterset = command.and_then(|command| {
        let (_, last) = command.split_once(" --isolation batch -j 1 --no-history -E '")?;
        last.strip_suffix('\'')
    });
    filterset.unwrap_or_else(|| panic!("no such command in {human}"))
}

impl Sprung {
    /// What the fixture's model says of each test holds, but for what is named here.
    fn check(&self, model: &BTreeMap<Case, Verdict>) {
        let transcript = &self.transcript;
        for (case, verdict) in &transcript.verdicts {
            let expected = model.get(case);
            let as_expected = match *verdict {
                _ if case.name == LUCK => true,
                Verdict::Pass if case.name == COMPANY => {
                    let last = transcript.attempts_of(case).pop();
                    last.is_some_and(|it| it.isolation == Isolation::Batch)
                }
                // It failed with others around and passed alone.
                Verdict::Flaky => expected == Some(&Verdict::Pass),
                verdict => expected == Some(&verdict),
            };
            assert!(as_expected, "{case} is {verdict:?} and should be {expected:?}");
        }
        assert_eq!(transcript.verdicts.len(), model.len() + 1, "all tests but that of luck");
        for case in transcript.verdicts.keys() {
            let attempts = transcript.attempts_of(case);
            let in_vain = attempts
                .iter()
                .any(|it| it.isolation == Isolation::Batch && it.result != AttemptResult::Pass);
            let alone = attempts.last().is_some_and(|it| it.isolation == Isolation::Process);
            assert!(!in_vain || alone, "{case} failed in a batch and ran not alone");
        }
    }
}
