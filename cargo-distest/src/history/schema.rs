//! The database's tables, and what to do with a file that doesn't have them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::BUSY_TIMEOUT;
use crate::settings::Warning;

/// Marks our files: `dstH`.
const APPLICATION_ID: i32 = 0x6473_7448;
/// Of new files: what is known of a binary's tests fills many pages of the usual size.
const PAGE_BYTES: u32 = 16 * 1024;
/// Raised when the tables change; older ones are migrated, newer ones are not understood.
const VERSION: i32 = 7;
/// What brings version 1 to 2, and so on.
const MIGRATIONS: &[&str] = &[
    "
    -- How a test fares in one process with others: see `batch::Standing`.
    ALTER TABLE tests ADD COLUMN streak INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tests ADD COLUMN failed_before INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tests ADD COLUMN kept_out INTEGER;
    ALTER TABLE tests ADD COLUMN only_in_company INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tests ADD COLUMN in_company INTEGER NOT NULL DEFAULT 0;
    UPDATE tests SET streak = runs WHERE last = 'pass';
    UPDATE tests SET failed_before = 1 WHERE last <> 'pass';
    -- Who shared a process with whom: names in the order in which they ran, one a line.
    CREATE TABLE batches (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
        number INTEGER NOT NULL,
        binary TEXT NOT NULL,
        names TEXT NOT NULL,
        PRIMARY KEY (run, number)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- What a pass takes in a process of its own and in a batch, and what it prints.
    ALTER TABLE tests ADD COLUMN alone_us INTEGER;
    ALTER TABLE tests ADD COLUMN batched_us INTEGER;
    ALTER TABLE tests ADD COLUMN gains INTEGER;
    ALTER TABLE tests ADD COLUMN printed INTEGER NOT NULL DEFAULT 0;
",
    "
    -- What is known of workers, by their names: see `pace::Pace`.
    CREATE TABLE workers (
        name TEXT NOT NULL PRIMARY KEY,
        speed REAL,
        overhead_us INTEGER,
        rate REAL,
        seen_s INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    -- The batch in which a test passed in company last. Its run may be forgotten.
    ALTER TABLE tests ADD COLUMN company_run INTEGER;
    ALTER TABLE tests ADD COLUMN company_batch INTEGER;
",
    "
    -- How a run's tests ended, those of a binary in one text: verdict, attempts, microseconds and
    -- name of each, one a line. Thousands of rows would cost more to write than quick tests to run.
    CREATE TABLE outcomes_of_binaries (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
        triple TEXT NOT NULL,
        binary TEXT NOT NULL,
        tests TEXT NOT NULL,
        PRIMARY KEY (run, triple, binary)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO outcomes_of_binaries
        SELECT run, triple, binary,
            group_concat(verdict || ' ' || attempts || ' ' || duration_us || ' ' || name, char(10))
        FROM outcomes JOIN tests ON tests.id = test GROUP BY run, triple, binary;
    DROP TABLE outcomes;
    ALTER TABLE outcomes_of_binaries RENAME TO outcomes;
",
    "
    -- What is known of tests, too, those of a binary in one text: see `known`.
    CREATE TABLE tests_of_binaries (
        id INTEGER PRIMARY KEY,
        triple TEXT NOT NULL,
        cargo_profile TEXT NOT NULL,
        binary TEXT NOT NULL,
        seen_s INTEGER NOT NULL,
        tests TEXT NOT NULL,
        UNIQUE (triple, cargo_profile, binary)
    ) STRICT;
    INSERT INTO tests_of_binaries (triple, cargo_profile, binary, seen_s, tests)
        SELECT triple, cargo_profile, binary, max(seen_s), group_concat(
            mean_us || ' ' || spread_us || ' ' || runs || ' ' || last || ' ' || seen_s || ' ' ||
            streak || ' ' || failed_before || ' ' || coalesce(kept_out, '-') || ' ' ||
            only_in_company || ' ' || in_company || ' ' || coalesce(alone_us, '-') || ' ' ||
            coalesce(batched_us, '-') || ' ' || coalesce(gains, '-') || ' ' || printed || ' ' ||
            coalesce(company_run, '-') || ' ' || coalesce(company_batch, '-') || ' ' || name,
            char(10))
        FROM tests GROUP BY triple, cargo_profile, binary;
    DROP TABLE tests;
    ALTER TABLE tests_of_binaries RENAME TO tests;
",
];

const TABLES: &str = "
    -- What is known of a test. Durations are of attempts that passed; `last` is of any.
    CREATE TABLE tests (
        id INTEGER PRIMARY KEY,
        binary TEXT NOT NULL,
        name TEXT NOT NULL,
        triple TEXT NOT NULL,
        cargo_profile TEXT NOT NULL,
        mean_us INTEGER NOT NULL,
        spread_us INTEGER NOT NULL,
        runs INTEGER NOT NULL,
        last TEXT NOT NULL,
        last_us INTEGER NOT NULL,
        seen_s INTEGER NOT NULL,
        UNIQUE (triple, cargo_profile, binary, name)
    ) STRICT;
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        cargo_profile TEXT NOT NULL,
        started_ms INTEGER NOT NULL,
        elapsed_ms INTEGER NOT NULL,
        exit_code INTEGER NOT NULL,
        passed INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        flaky INTEGER NOT NULL,
        timed_out INTEGER NOT NULL,
        crashed INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        lost INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE outcomes (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
        test INTEGER NOT NULL REFERENCES tests ON DELETE CASCADE,
        verdict TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        duration_us INTEGER NOT NULL,
        PRIMARY KEY (run, test)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX outcomes_of_test ON outcomes (test);
";

/// A database that can be used.
pub(super) struct Opened {
    pub(super) db: Connection,
    /// What lay there before and could not be used.
    pub(super) set_aside: Option<SetAside>,
}

/// A file that was renamed.
pub(super) struct SetAside {
    reason: String,
    to: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("{0}")]
    Folder(#[from] io::Error),
    #[error("{0}")]
    Sqlite(rusqlite::Error),
    /// The file is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The file is somebody else's, or a newer version's.
    #[error("{0}")]
    NotOurs(String),
}

impl SetAside {
    pub(super) fn warning(&self, path: &Path) -> Warning {
        let (path, to) = (path.display(), self.to.display());
        Warning {
            text: format!("began a new history: {path} {}, and is now {to}", self.reason),
            hint: Some("delete that file if nobody needs it".to_owned()),
        }
    }
}

/// Opens or makes the database at `path`, setting aside what can't be used.
pub(super) fn open(path: &Path) -> Result<Opened, OpenError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match open_ours(path, false) {
        Ok(db) => Ok(Opened { db, set_aside: None }),
        Err(OpenError::Damaged(_)) => replace(path),
        Err(error) => Err(error),
    }
}

/// Sets aside the file at `path` unless it is in order, and begins a new one.
pub(super) fn replace(path: &Path) -> Result<Opened, OpenError> {
    // Another run may be doing the same: whoever comes second finds a good file.
    let _lock = lock(path)?;
    let reason = match open_ours(path, true).and_then(sound) {
        Ok(db) => return Ok(Opened { db, set_aside: None }),
        Err(OpenError::Damaged(reason)) => reason,
        Err(error) => return Err(error),
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut to = with_suffix(path, &format!(".corrupt-{seconds}"));
    for number in 2.. {
        if !to.exists() {
            break;
        }
        to = with_suffix(path, &format!(".corrupt-{seconds}-{number}"));
    }
    fs::rename(path, &to)?;
    // The write-ahead log belongs to the file; left here, it would be applied to the new one.
    for suffix in ["-wal", "-shm"] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&to, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let db = open_ours(path, true)?;
    Ok(Opened { db, set_aside: Some(SetAside { reason, to }) })
}

/// Held while a file is made or set aside.
fn lock(path: &Path) -> io::Result<File> {
    let file = File::create(with_suffix(path, ".lock"))?;
    file.lock()?;
    Ok(file)
}

/// Whether an error says that the file itself is broken, or what is in it.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, InvalidColumnType, SqlInputError, SqliteFailure, Utf8Error,
    };
    let code = error.sqlite_error_code();
    match error {
        // A table that is not there, or has other columns.
        SqlInputError { .. } => true,
        SqliteFailure(..) if code == Some(ErrorCode::Unknown) => true,
        FromSqlConversionFailure(..) | InvalidColumnType(..) | Utf8Error(..) => true,
        _ => matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)),
    }
}

/// `locked`: the caller holds the [`lock`].
fn open_ours(path: &Path, locked: bool) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    // Asked before anything is written, so that a foreign file stays as it is.
    let mut state = state(&db)?;
    // To change how an empty file is journalled nobody waits for others who do so, too.
    let makes = matches!(state, State::Empty) && !locked;
    let _lock = makes.then(|| lock(path)).transpose()?;
    if makes {
        state = self::state(&db)?;
    }
    if matches!(state, State::Foreign) {
        return Err(OpenError::NotOurs("is no history of cargo distest".to_owned()));
    }
    if let State::Ours(version) = state
        && version > VERSION
    {
        let reason = format!("was written by a newer cargo distest (version {version})");
        return Err(OpenError::NotOurs(reason));
    }
    if matches!(state, State::Empty) {
        db.pragma_update(None, "page_size", PAGE_BYTES)?;
    }
    // Readers and one writer at once. Where a file system can't, the usual journal does.
    let _mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    if !matches!(state, State::Ours(VERSION)) {
        let begin = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another run may have made or changed the tables meanwhile.
        let version = match self::state(&begin)? {
            State::Ours(version) => version,
            State::Empty | State::Foreign => {
                begin.execute_batch(TABLES)?;
                begin.pragma_update(None, "application_id", APPLICATION_ID)?;
                1
            }
        };
        for migration in MIGRATIONS.iter().skip(usize::try_from(version - 1).unwrap_or(0)) {
            begin.execute_batch(migration)?;
        }
        begin.pragma_update(None, "user_version", VERSION)?;
        begin.commit()?;
    }
    Ok(db)
}

enum State {
    Empty,
    /// Of this version.
    Ours(i32),
    Foreign,
}

fn state(db: &Connection) -> rusqlite::Result<State> {
    // One statement sees one state, whatever another run does meanwhile.
    let (id, version, tables): (i32, i32, i64) = db.query_row(
        "SELECT (SELECT application_id FROM pragma_application_id),
                (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    Ok(match (id, version, tables) {
        (0, 0, 0) => State::Empty,
        (APPLICATION_ID, version @ 1.., _) => State::Ours(version),
        _ => State::Foreign,
    })
}

/// The same database, if sqlite finds no fault with it and all that is read can be.
fn sound(db: Connection) -> Result<Connection, OpenError> {
    let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(OpenError::Damaged(format!("is damaged ({found})")));
    }
    for texts in [
        "SELECT triple, cargo_profile, binary, tests FROM tests",
        "SELECT names FROM batches",
        "SELECT name FROM workers",
        "SELECT name FROM runs",
        "SELECT tests FROM outcomes",
    ] {
        let mut all = db.prepare(texts)?;
        let columns = all.column_count();
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
            }
        }
    }
    Ok(db)
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) {
            Self::Damaged(format!("is damaged ({error})"))
        } else {
            Self::Sqlite(error)
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::history::known;

    /// A file of this version, with these rows, as this version finds it.
    fn opened(folder: &Path, version: i32, rows: &str) -> Connection {
        let path = folder.join("h");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(TABLES).unwrap();
        let migrations = &MIGRATIONS[..version as usize - 1];
        migrations.iter().for_each(|migration| old.execute_batch(migration).unwrap());
        old.execute_batch(rows).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", version).unwrap();
        drop(old);
        let opened = open(&path).unwrap();
        assert!(opened.set_aside.is_none());
        opened.db
    }

    #[test]
    fn outcomes_of_an_older_version_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let db = opened(
            folder.path(),
            5,
            "INSERT INTO runs VALUES (1, 'one', 'dev', 0, 0, 0, 1, 1, 0, 0, 0, 0, 0);
             INSERT INTO tests (id, binary, name, triple, cargo_profile, mean_us, spread_us, runs,
                 last, last_us, seen_s)
             VALUES (1, 'b', 'x', 't', 'dev', 0, 0, 0, '', 0, 0),
                 (2, 'b', 'y z', 't', 'dev', 0, 0, 0, '', 0, 0);
             INSERT INTO outcomes VALUES (1, 1, 'pass', 1, 5), (1, 2, 'fail', 3, 70);",
        );
        let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let tests = db.query_row("SELECT tests FROM outcomes", [], read).unwrap();
        assert_eq!(tests, "pass 1 5 x\nfail 3 70 y z");
        db.execute("DELETE FROM runs", []).unwrap();
        let count = db.query_row("SELECT count(*) FROM outcomes", [], |row| row.get(0));
        assert_eq!(count, Ok(0));
    }

    #[test]
    fn tests_of_an_older_version_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let db = opened(
            folder.path(),
            6,
            "INSERT INTO tests (binary, name, triple, cargo_profile, mean_us, spread_us, runs,
                 last, last_us, seen_s, streak, failed_before, kept_out, only_in_company,
                 in_company, alone_us, batched_us, gains, printed, company_run, company_batch)
             VALUES ('b', 'x y', 't', 'dev', 10, 5, 2, 'pass', 9, 77, 2, 1, 3, 0, 4, 11, 6, 1, 90,
                 8, 1),
                 ('b', 'z', 't', 'dev', 1, 0, 1, 'fail', 1, 78, 0, 0, NULL, 0, 0, NULL, NULL, NULL,
                 0, NULL, NULL),
                 ('c', 'z', 't', 'dev', 1, 0, 1, 'fail', 1, 7, 0, 0, NULL, 0, 0, NULL, NULL, NULL,
                 0, NULL, NULL);",
        );
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?));
        let find = "SELECT seen_s, tests FROM tests WHERE binary = 'b'";
        let (seen_s, text): (i64, _) = db.query_row(find, [], read).unwrap();
        let tests: BTreeMap<_, _> = known::read(&text).collect();
        assert_eq!((seen_s, tests.len()), (78, 2));
        assert_eq!(
            known::write(&tests),
            "10 5 2 pass 77 2 1 3 0 4 11 6 1 90 8 1 x y\n1 0 1 fail 78 0 0 - 0 0 - - - 0 - - z"
        );
    }
}
