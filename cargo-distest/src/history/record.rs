//! What one run adds to the history.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{
    CachedStatement, Connection, OptionalExtension, Transaction, TransactionBehavior, params,
};

use super::known::{self, Known};
use super::lines::Text;
use super::{FORGET_AFTER, RUNS_KEPT, WORKERS_KEPT, micros};
use crate::batch::Ran;
use crate::cost::Past;
use crate::event::BatchEnded;
use crate::model::{AttemptResult, BinaryId, TestCase, TestName, Triple, Verdict, WorkerId};
use crate::pace::{Met, Pace, standard};
use crate::results::{Counts, Summary, TestState};

/// A run as it is remembered.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// Its name, unique.
    pub name: String,
    /// Wall clock.
    pub started: SystemTime,
    /// How long it took.
    pub elapsed: Duration,
    /// Name of the cargo profile: `dev`, `release`, …
    pub cargo_profile: String,
    /// What it exited with.
    pub exit_code: u8,
    /// Test cases by verdict.
    pub counts: Counts,
    /// Tests whose verdict says something about them.
    pub tests: Vec<TestRecord>,
    /// Tests that shared a process.
    pub batches: Vec<BatchRecord>,
    /// What is known of its workers now, by name.
    pub paces: Vec<(String, Pace)>,
}

/// A batch as it is remembered.
#[derive(Clone, Debug)]
pub struct BatchRecord {
    /// From 1 within the run.
    pub number: u32,
    /// Their binary.
    pub binary: BinaryId,
    /// In the order in which they were to run.
    pub names: Vec<TestName>,
}

/// A test as it is remembered of one run.
#[derive(Clone, Debug)]
pub struct TestRecord {
    /// What it is.
    pub case: TestCase,
    /// What it was built for.
    pub triple: Triple,
    /// How it ended.
    pub verdict: Verdict,
    /// Attempts that came to an end of their own.
    pub attempts: u32,
    /// What the last of them took.
    pub duration: Duration,
    /// What that would have taken on an ordinary worker.
    pub ordinary: Duration,
    /// What the run was to it, with respect to company.
    pub ran: Ran,
    /// The number of the batch with others in which it passed.
    pub company: Option<u32>,
}

impl RunRecord {
    /// What is to be remembered of a run, finished or not. None before its first event.
    ///
    /// Tests that were lost or skipped leave nothing: no attempt says anything about them.
    /// `met`: what the run has found out of its workers.
    pub fn of(summary: &Summary, cargo_profile: &str, met: &[Met]) -> Option<Self> {
        let started = summary.started()?;
        let paces = relative(summary, met);
        let speed = |worker: WorkerId| paces.get(&worker).map_or(1.0, |(_, pace)| pace.speed());
        let finished = summary.finished();
        let batches = summary.batches().iter().map(|it| (it.number, &**it)).collect();
        Some(Self {
            name: started.run.clone(),
            started: started.at,
            elapsed: finished.map_or(Duration::ZERO, |finished| finished.elapsed),
            cargo_profile: cargo_profile.to_owned(),
            exit_code: finished.map_or(summary.exit_code().number(), |end| end.exit_code),
            counts: summary.counts(),
            tests: summary
                .tests()
                .iter()
                .filter_map(|it| TestRecord::of(it, &batches, speed))
                .collect(),
            batches: summary.batches().iter().map(|it| BatchRecord::of(it, summary)).collect(),
            paces: paces.into_values().map(|(name, pace)| (name.to_owned(), pace)).collect(),
        })
    }

    fn seen_s(&self) -> i64 {
        let since = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }

    /// Whatever was seen last before that is forgotten.
    fn forget_before_s(&self) -> i64 {
        self.seen_s() - FORGET_AFTER.as_secs() as i64
    }
}

impl BatchRecord {
    fn of(batch: &BatchEnded, summary: &Summary) -> Self {
        let cases = || batch.tests.iter().map(|test| &summary.test(*test).case);
        Self {
            number: batch.number,
            binary: cases().next().map_or_else(|| BinaryId::new(""), |case| case.binary.clone()),
            names: cases().map(|case| case.name.clone()).collect(),
        }
    }
}

impl TestRecord {
    fn of(
        test: &TestState,
        batches: &BTreeMap<u32, &BatchEnded>,
        speed: impl Fn(WorkerId) -> f64,
    ) -> Option<Self> {
        let says = |verdict: &Verdict| !matches!(verdict, Verdict::Lost | Verdict::Skipped);
        let told = || test.attempts.iter().filter(|attempt| attempt.result != AttemptResult::Lost);
        let (verdict, last) = (test.verdict.filter(says)?, told().next_back()?);
        let batch = last.batch.and_then(|number| batches.get(&number).copied());
        let company = batch.filter(|batch| batch.tests.len() > 1);
        Some(Self {
            case: test.case.clone(),
            triple: test.triple.clone(),
            verdict,
            attempts: told().count() as u32,
            duration: last.duration,
            ordinary: last.duration.mul_f64(speed(last.worker)),
            ran: Ran {
                verdict,
                last: last.result,
                orderly: last.orderly,
                duration: last.duration,
                batched: last.batch.is_some(),
                in_company: company.is_some(),
                batch_mean: batch.map_or(Duration::ZERO, |it| it.duration / it.tests.len() as u32),
                printed: last.printed,
                had_trouble_in_company: test.trouble_in_company,
                only_in_company: test.only_in_company,
            },
            company: company.filter(|_| last.result.passed()).map(|batch| batch.number),
        })
    }

    fn passed(&self) -> bool {
        matches!(self.verdict, Verdict::Pass | Verdict::Flaky)
    }

    /// What is known after this run. How long a test takes that fails says little about how long
    /// it will take: only its verdict is kept.
    fn merge(&self, before: Past) -> Past {
        match self.passed() {
            true => Past::after(Some(&before), self.ordinary, self.verdict),
            false => Past { last: self.verdict, ..before },
        }
    }
}

/// What is known of a run's workers, by a standard that stays the same from run to run.
fn relative<'a>(summary: &Summary, met: &'a [Met]) -> BTreeMap<WorkerId, (&'a str, Pace)> {
    let mut counts: BTreeMap<WorkerId, u32> = BTreeMap::new();
    for attempt in summary.tests().iter().flat_map(|test| &test.attempts) {
        *counts.entry(attempt.worker).or_default() += 1;
    }
    let standard = standard(met.iter().map(|met| {
        let counts = counts.get(&met.worker).copied().unwrap_or(0);
        (met.before, met.now, counts)
    }));
    let known = met.iter().map(|met| {
        // Of whom nothing was heard nothing has changed.
        let heard = met.now.is_known() && counts.contains_key(&met.worker);
        let pace = if heard { met.now.relative_to(standard) } else { met.now };
        (met.worker, (met.name.as_str(), pace))
    });
    known.collect()
}

/// Adds a run in one transaction.
pub(super) fn write(db: &mut Connection, run: &RunRecord) -> rusqlite::Result<()> {
    // Taken at once: what is read must still hold when it is written.
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let id = insert_run(&change, run)?;
    {
        let mut statements = Statements::prepare(&change)?;
        let mut binaries: BTreeMap<(&Triple, &BinaryId), Vec<&TestRecord>> = BTreeMap::new();
        for test in &run.tests {
            binaries.entry((&test.triple, &test.case.binary)).or_default().push(test);
        }
        for ((triple, binary), tests) in binaries {
            statements.write_tests(run, id, (triple, binary), &tests)?;
            let outcomes = outcomes(&tests);
            statements.outcomes.execute(params![id, &*triple.0, &*binary.0, outcomes])?;
        }
        for batch in &run.batches {
            statements.write_batch(id, batch)?;
        }
        for (name, pace) in &run.paces {
            write_pace(&change, run, name, pace)?;
        }
    }
    forget(&change, run)?;
    change.commit()
}

fn insert_run(change: &Transaction<'_>, run: &RunRecord) -> rusqlite::Result<i64> {
    let Counts { passed, failed, flaky, timed_out, crashed, skipped, lost } = run.counts;
    let since = run.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    change.execute(
        "INSERT INTO runs (name, cargo_profile, started_ms, elapsed_ms, exit_code,
             passed, failed, flaky, timed_out, crashed, skipped, lost)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            run.name,
            run.cargo_profile,
            millis(since),
            millis(run.elapsed),
            run.exit_code,
            passed,
            failed,
            flaky,
            timed_out,
            crashed,
            skipped,
            lost
        ],
    )?;
    Ok(change.last_insert_rowid())
}

/// How tests ended, one a line: verdict, attempts, microseconds, name.
fn outcomes(tests: &[&TestRecord]) -> String {
    let mut text = Text::with_room_for(tests.iter().map(|test| &*test.case.name.0));
    for test in tests {
        text.begin_line();
        text.word(test.verdict.as_str());
        text.number(test.attempts);
        text.number(micros(test.duration));
        text.end_line(&test.case.name.0);
    }
    text.into_string()
}

/// Statements that run more than once.
struct Statements<'a> {
    find: CachedStatement<'a>,
    put: CachedStatement<'a>,
    outcomes: CachedStatement<'a>,
    batch: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(change: &'a Transaction<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            find: change.prepare_cached(
                "SELECT tests FROM tests
                 WHERE triple = ?1 AND cargo_profile = ?2 AND binary = ?3",
            )?,
            put: change.prepare_cached(
                "INSERT INTO tests (triple, cargo_profile, binary, seen_s, tests)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET seen_s = ?4, tests = ?5",
            )?,
            outcomes: change.prepare_cached(
                "INSERT INTO outcomes (run, triple, binary, tests) VALUES (?1, ?2, ?3, ?4)",
            )?,
            batch: change.prepare_cached(
                "INSERT OR REPLACE INTO batches (run, number, binary, names)
                 VALUES (?1, ?2, ?3, ?4)",
            )?,
        })
    }

    /// Adds what a run with this number was to a binary's tests.
    fn write_tests(
        &mut self,
        run: &RunRecord,
        id: i64,
        (triple, binary): (&Triple, &BinaryId),
        tests: &[&TestRecord],
    ) -> rusqlite::Result<()> {
        let key = (&*triple.0, &*run.cargo_profile, &*binary.0);
        let text: Option<String> = self.find.query_row(key, |row| row.get(0)).optional()?;
        let mut all: BTreeMap<&str, Known> = known::read(text.as_deref().unwrap_or("")).collect();
        all.retain(|_, known| known.seen_s >= run.forget_before_s());
        for test in tests {
            // A custom harness may have several tests of one name.
            let known = all.entry(&test.case.name.0).or_insert_with(Known::nothing);
            *known = Known {
                past: test.merge(known.past),
                seen_s: run.seen_s(),
                standing: known.standing.after(&test.ran),
                company: test.company.map(|number| (id, number)).or(known.company),
            };
        }
        let (triple, profile, binary) = key;
        self.put.execute(params![triple, profile, binary, run.seen_s(), known::write(&all)])?;
        Ok(())
    }

    fn write_batch(&mut self, run: i64, batch: &BatchRecord) -> rusqlite::Result<()> {
        let names: Vec<_> = batch.names.iter().map(|name| &*name.0).collect();
        self.batch.execute(params![run, batch.number, &*batch.binary.0, names.join("\n")])?;
        Ok(())
    }
}

fn write_pace(
    change: &Transaction<'_>,
    run: &RunRecord,
    name: &str,
    pace: &Pace,
) -> rusqlite::Result<()> {
    let speed = pace.is_known().then(|| pace.speed());
    let overhead = pace.overhead().map(micros);
    change.execute(
        "INSERT OR REPLACE INTO workers (name, speed, overhead_us, rate, seen_s)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![name, speed, overhead, pace.rate(), run.seen_s()],
    )?;
    Ok(())
}

/// Keeps the file small: outcomes of the last runs, and tests that some recent run saw.
fn forget(change: &Transaction<'_>, run: &RunRecord) -> rusqlite::Result<()> {
    change.execute(
        "DELETE FROM runs WHERE id NOT IN (SELECT id FROM runs ORDER BY id DESC LIMIT ?1)",
        [RUNS_KEPT],
    )?;
    let before = run.forget_before_s();
    change.execute("DELETE FROM tests WHERE seen_s < ?1", [before])?;
    change.execute(
        "DELETE FROM workers WHERE seen_s < ?1 OR name NOT IN
             (SELECT name FROM workers ORDER BY seen_s DESC, name LIMIT ?2)",
        params![before, WORKERS_KEPT],
    )?;
    Ok(())
}
