//! What one run adds to the history.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{CachedStatement, Connection, Transaction, TransactionBehavior, params};

use super::{FORGET_AFTER, RUNS_KEPT, WORKERS_KEPT, micros, past, standing};
use crate::batch::{Ran, Standing};
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
    fn merge(&self, before: Option<Past>) -> Past {
        match (self.passed(), before) {
            (true, before) => {
                let timed = before.as_ref().filter(|before| before.runs > 0);
                Past::after(timed, self.ordinary, self.verdict)
            }
            (false, Some(before)) => Past { last: self.verdict, ..before },
            (false, None) => {
                let (mean, spread) = (Duration::ZERO, Duration::ZERO);
                Past { mean, spread, runs: 0, last: self.verdict }
            }
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
            let mut known = statements.known(triple, &run.cargo_profile, binary)?;
            for test in &tests {
                statements.write_test(run, id, test, &mut known)?;
            }
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
    let line = |test: &&TestRecord| {
        let (verdict, time) = (test.verdict.as_str(), micros(test.duration));
        format!("{verdict} {} {time} {}", test.attempts, test.case.name.0)
    };
    tests.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Rows of a binary's tests by name: number, timings, and where the test stands.
type Known = HashMap<String, (i64, Option<Past>, Standing)>;

/// Statements that run more than once.
struct Statements<'a> {
    find: CachedStatement<'a>,
    put: CachedStatement<'a>,
    change: CachedStatement<'a>,
    outcomes: CachedStatement<'a>,
    batch: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(change: &'a Transaction<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            find: change.prepare_cached(
                "SELECT name, id, mean_us, spread_us, runs, last,
                     streak, failed_before, kept_out, only_in_company, in_company,
                     alone_us, batched_us, gains, printed
                 FROM tests WHERE triple = ?1 AND cargo_profile = ?2 AND binary = ?3",
            )?,
            put: change.prepare_cached(
                "INSERT INTO tests (triple, cargo_profile, binary, name,
                     mean_us, spread_us, runs, last, last_us, seen_s)
                 VALUES (?1, ?2, ?3, ?4, 0, 0, 0, '', 0, 0)",
            )?,
            change: change.prepare_cached(
                "UPDATE tests SET
                     mean_us = ?2, spread_us = ?3, runs = ?4, last = ?5, last_us = ?6, seen_s = ?7,
                     streak = ?8, failed_before = ?9, kept_out = ?10, only_in_company = ?11,
                     in_company = ?12, alone_us = ?13, batched_us = ?14, gains = ?15, printed = ?16,
                     company_run = coalesce(?17, company_run),
                     company_batch = coalesce(?18, company_batch)
                 WHERE id = ?1",
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

    /// What is known of a binary's tests: one pass over its rows costs less than a search for
    /// each.
    fn known(
        &mut self,
        triple: &Triple,
        profile: &str,
        binary: &BinaryId,
    ) -> rusqlite::Result<Known> {
        let rows = self.find.query_map(params![&*triple.0, profile, &*binary.0], |row| {
            Ok((row.get(0)?, (row.get(1)?, Some(past(row, 2)?), standing(row, 6)?)))
        })?;
        rows.collect()
    }

    fn write_test(
        &mut self,
        run: &RunRecord,
        id: i64,
        test: &TestRecord,
        known: &mut Known,
    ) -> rusqlite::Result<()> {
        let name = &*test.case.name.0;
        let (row, before, stood) = match known.get(name) {
            Some(known) => *known,
            None => {
                let row = self.insert_test(run, test)?;
                // A custom harness may have several tests of one name.
                known.insert(name.to_owned(), (row, None, Standing::default()));
                (row, None, Standing::default())
            }
        };
        let now = test.merge(before);
        let stands = stood.after(&test.ran);
        self.change.execute(params![
            row,
            micros(now.mean),
            micros(now.spread),
            now.runs,
            now.last.as_str(),
            micros(test.duration),
            run.seen_s(),
            stands.streak,
            stands.failed_before,
            stands.kept_out,
            stands.only_in_company,
            stands.in_company,
            stands.alone.map(micros),
            stands.batched.map(micros),
            stands.gains,
            i64::try_from(stands.printed).unwrap_or(i64::MAX),
            test.company.map(|_| id),
            test.company
        ])?;
        Ok(())
    }

    fn insert_test(&mut self, run: &RunRecord, test: &TestRecord) -> rusqlite::Result<i64> {
        let TestCase { binary, name } = &test.case;
        self.put.insert(params![&*test.triple.0, run.cargo_profile, &*binary.0, &*name.0])
    }
}

impl Statements<'_> {
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
    let before = run.seen_s() - FORGET_AFTER.as_secs() as i64;
    change.execute("DELETE FROM tests WHERE seen_s < ?1", [before])?;
    change.execute(
        "DELETE FROM workers WHERE seen_s < ?1 OR name NOT IN
             (SELECT name FROM workers ORDER BY seen_s DESC, name LIMIT ?2)",
        params![before, WORKERS_KEPT],
    )?;
    Ok(())
}
