//! What past runs know: how long each test takes, how it ended last, and the runs themselves.
//!
//! One SQLite database per workspace, shared by all runs on this machine, two at once included.
//! A test is known by (binary id, name, triple, cargo profile). History never fails a run: a file
//! that is damaged, or not ours, is set aside with a [`Warning`], and where nothing can be
//! written there is none. No environment, output or path of a test is stored.

mod known;
mod lines;
mod record;
mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distest_worker::digest::Digest;
use etcetera::BaseStrategy;
use rusqlite::{Connection, OptionalExtension, params};

use self::known::Known;
pub use self::record::{BatchRecord, RunRecord, TestRecord};
use crate::batch::{Members, Standings};
use crate::cost::Timings;
use crate::model::{BinaryId, TestName, Triple, Verdict};
use crate::pace::{Pace, Paces};
use crate::settings::Warning;

/// Runs whose outcomes are kept.
pub const RUNS_KEPT: u32 = 50;
/// How long a test that no run sees any more is remembered.
pub const FORGET_AFTER: Duration = Duration::from_secs(180 * 24 * 60 * 60);
/// Workers that are remembered, those that were met last.
pub const WORKERS_KEPT: u32 = 1000;
/// What to do about a file that is of no use.
const ANOTHER_PATH: &str = "give --history another path, or --no-history";
/// How long to wait for another run's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// An open history.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    db: Connection,
}

/// What is known of tests.
#[derive(Debug, Default)]
pub struct Remembered {
    /// What they take.
    pub timings: Timings,
    /// How they fare in one process with others.
    pub standings: Standings,
}

/// Where a workspace's history lies by default: named by its root and its members' names, in the
/// user's cache folder. None if this user has no home.
pub fn default_path(root: &Path, members: &[String]) -> Option<PathBuf> {
    let cache = etcetera::base_strategy::Xdg::new().ok()?.cache_dir();
    let mut members: Vec<_> = members.iter().map(String::as_str).collect();
    members.sort_unstable();
    let name = format!("{}\n{}", root.display(), members.join("\n"));
    let name = Digest::of(name.as_bytes()).to_string();
    Some(cache.join("cargo-distest/history").join(format!("{}.sqlite", &name[..16])))
}

/// How an SQLite database begins.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Why a file that the user named is not touched: it is no database at all.
pub fn foreign(path: &Path) -> Option<Warning> {
    if !std::fs::metadata(path).ok()?.is_file() {
        // Opening it says what is wrong.
        return None;
    }
    let mut start = [0; SQLITE_MAGIC.len()];
    let mut file = std::fs::File::open(path).ok()?;
    let is_ours = match std::io::Read::read_exact(&mut file, &mut start) {
        Ok(()) => start == *SQLITE_MAGIC,
        // A new and empty file is as good as none.
        Err(_) => file.metadata().is_ok_and(|metadata| metadata.len() == 0),
    };
    (!is_ours).then(|| Warning {
        text: format!("{} is no history and stays as it is: this run has none", path.display()),
        hint: Some(ANOTHER_PATH.to_owned()),
    })
}

impl History {
    /// Opens or makes the database; folders are made as needed.
    ///
    /// A file that is damaged is renamed, and a new one begun; one that is not ours, or of a newer
    /// version, stays. Without a history at the end there is always a warning.
    pub fn open(path: &Path) -> (Option<Self>, Option<Warning>) {
        match schema::open(path) {
            Ok(schema::Opened { db, set_aside }) => {
                let warning = set_aside.map(|aside| aside.warning(path));
                (Some(Self { path: path.to_owned(), db }), warning)
            }
            Err(schema::OpenError::NotOurs(why)) => (None, Some(not_ours(path, &why))),
            Err(error) => (None, Some(unusable(path, &error))),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of all tests built for `triple` under `cargo_profile`.
    pub fn tests(&mut self, triple: &Triple, cargo_profile: &str) -> (Remembered, Option<Warning>) {
        match read_tests(&self.db, triple, cargo_profile) {
            Ok(remembered) => (remembered, None),
            Err(error) => (Remembered::default(), Some(self.recover("read", &error))),
        }
    }

    /// What is known of workers.
    pub fn paces(&mut self) -> (Paces, Option<Warning>) {
        match read_paces(&self.db) {
            Ok(paces) => (paces, None),
            Err(error) => (Paces::default(), Some(self.recover("read", &error))),
        }
    }

    /// Stores what a run was told, all of it or nothing.
    pub fn record(&mut self, run: &RunRecord) -> Option<Warning> {
        let error = record::write(&mut self.db, run).err()?;
        Some(self.recover("write", &error))
    }

    /// After a failure: a database that proves damaged is set aside here too.
    fn recover(&mut self, doing: &str, error: &rusqlite::Error) -> Warning {
        if schema::is_damage(error) {
            match schema::replace(&self.path) {
                Ok(schema::Opened { db, set_aside: Some(aside) }) => {
                    self.db = db;
                    return aside.warning(&self.path);
                }
                Ok(schema::Opened { db, set_aside: None }) => self.db = db,
                Err(error) => return unusable(&self.path, &error),
            }
        }
        let text = format!("could not {doing} the history {}: {error}", self.path.display());
        Warning { text, hint: Some(ANOTHER_PATH.to_owned()) }
    }
}

fn read_paces(db: &Connection) -> rusqlite::Result<Paces> {
    let mut query = db.prepare("SELECT name, speed, overhead_us, rate FROM workers")?;
    let rows = query.query_map([], |row| {
        let (speed, overhead): (Option<f64>, Option<i64>) = (row.get(1)?, row.get(2)?);
        let pace = Pace::remembered(speed.unwrap_or(0.0), overhead.map(duration), row.get(3)?);
        Ok((row.get(0)?, pace))
    })?;
    rows.collect()
}

fn read_tests(
    db: &Connection,
    triple: &Triple,
    cargo_profile: &str,
) -> rusqlite::Result<Remembered> {
    let runs: i64 = db.query_row("SELECT coalesce(max(id), 0) FROM runs", [], |row| row.get(0))?;
    let mut timings = Timings::default();
    let mut standings = Standings::after(runs.try_into().unwrap_or_default());
    let mut find = db.prepare("SELECT names FROM batches WHERE run = ?1 AND number = ?2")?;
    let mut batches: BTreeMap<(i64, u32), Option<Members>> = BTreeMap::new();
    let mut members = |batch: (i64, u32)| {
        if let Some(known) = batches.get(&batch) {
            return Ok::<_, rusqlite::Error>(known.clone());
        }
        let read = |row: &rusqlite::Row<'_>| Ok(Members::from_lines(row.get_ref(0)?.as_str()?));
        let found = find.query_row(batch, read).optional()?;
        batches.insert(batch, found.clone());
        Ok(found)
    };
    let mut query =
        db.prepare("SELECT binary, tests FROM tests WHERE triple = ?1 AND cargo_profile = ?2")?;
    let mut rows = query.query(params![&*triple.0, cargo_profile])?;
    while let Some(row) = rows.next()? {
        let binary = BinaryId::new(row.get_ref(0)?.as_str()?);
        let (mut pasts, mut stands) = (Vec::new(), Vec::new());
        for (name, Known { past, standing, company, .. }) in known::read(row.get_ref(1)?.as_str()?)
        {
            let name = TestName::new(name);
            let company = company.map(&mut members).transpose()?.flatten();
            pasts.push((name.clone(), past));
            stands.push((name, (standing, company)));
        }
        timings.insert_all(binary.clone(), pasts);
        standings.insert_all(binary, stands);
    }
    Ok(Remembered { timings, standings })
}

/// A stored verdict. One that this version doesn't know says nothing about the test.
fn verdict(text: &str) -> Verdict {
    let all = [Verdict::Pass, Verdict::Fail, Verdict::Flaky, Verdict::Timeout, Verdict::Crashed];
    all.into_iter().find(|verdict| verdict.as_str() == text).unwrap_or(Verdict::Lost)
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(micros.try_into().unwrap_or(0))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn not_ours(path: &Path, why: &str) -> Warning {
    Warning {
        text: format!("this run has no history: {} {why}, and stays as it is", path.display()),
        hint: Some(ANOTHER_PATH.to_owned()),
    }
}

fn unusable(path: &Path, error: &impl fmt::Display) -> Warning {
    Warning {
        text: format!("this run has no history: could not open {}: {error}", path.display()),
        hint: Some("make its folder writable, or give --history a path that is".to_owned()),
    }
}

#[cfg(test)]
mod tests;
