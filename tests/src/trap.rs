//! The fixture `batch-trap`: whatever shares a process, no red test turns green.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::client::Client;
use crate::fixture::Fixture;
use crate::scratch::Scratch;
use crate::transcript::{AttemptResult, Case, Isolation, Transcript, Verdict};

/// The test that has no verdict of its own.
const LUCK: &str = "t0080_fails_one_time_in_three";
/// The test that a batch can turn green, until its turn to run alone comes.
const COMPANY: &str = "t0075_passes_only_in_company";

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

    /// Runs it armed, with the batches of this seed and the calm run's history.
    pub fn spring(&self, scratch: &Scratch, seed: u64) -> Sprung {
        let history = scratch.join("armed.sqlite");
        fs::copy(&self.history, &history).expect("a history of ours can be copied");
        let args = ["--no-fail-fast", "--isolation", "auto", "--test-timeout", "3s", "--seed"];
        let client = Client::run(scratch, &self.fixture).args(args).args([seed.to_string()]);
        let transcript = client.args(["--history"]).args([&history]).finish().transcript(100);
        fs::remove_file(&history).expect("a file of ours can be removed");
        let company = Case::new("batch-trap", COMPANY);
        let company_hidden = transcript.verdicts[&company] == Verdict::Pass;
        let sprung = Sprung { company_hidden, transcript };
        sprung.check(&self.fixture.model.verdicts);
        sprung
    }

    /// Runs the test that passes only in company in good company again and again, each run knowing
    /// the ones before, until its turn to run alone comes. Answers after how many runs.
    pub fn until_company_is_found(&self, scratch: &Scratch) -> usize {
        let history = scratch.join("company.sqlite");
        fs::copy(&self.history, &history).expect("a history of ours can be copied");
        let company = Case::new("batch-trap", COMPANY);
        let run = || {
            let args = ["-E", "test(/^t00.5_/)", "--isolation", "auto", "--history"];
            let client = Client::run(scratch, &self.fixture).env("BATCH_TRAP", "company");
            client.args(args).args([&history]).finish()
        };
        // One of ten tests runs alone in each run, and none twice before all have.
        for number in 1..=10 {
            let finished = run();
            if finished.code() == 0 {
                assert_eq!(finished.transcript(0).verdicts[&company], Verdict::Pass);
                continue;
            }
            let transcript = finished.transcript(100);
            let told = transcript.attempts_of(&company);
            assert!(told.iter().all(|it| it.only_in_company), "{told:?}");
            assert!(told[0].reason.contains("passes only in company"), "{told:?}");
            let again = run().transcript(100);
            assert_eq!(again.attempts_of(&company)[0].isolation, Isolation::Process);
            return number;
        }
        panic!("the test that passes only in company never had its turn");
    }
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
