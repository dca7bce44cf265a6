//! Copies of what cargo built, because cargo overwrites its outputs.
//!
//! `TARGET/distest/store/DIGEST/blob` is a clone of the file where the file system can clone,
//! else a hard link, else a copy. A linker that writes into an existing file (most replace it)
//! changes what a hard link shows; so a copy is only trusted as long as its times say that it is
//! what was hashed, and whoever sends it hashes what it sends ([`crate::ship`]).
//!
//! The folder's modification time is the last use of what is in it, since touching a hard link
//! would make cargo believe that its output has changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use distest_worker::digest::Digest;

use super::copies::Copies;
use super::statcache::StatCache;
use crate::stamp::Stamp;

/// What is kept at most, in bytes.
pub const KEPT_BYTES_MAX: u64 = 10 << 30;
/// What was not used for so long goes.
const UNUSED_MAX: Duration = Duration::from_secs(14 * 24 * 3600);
/// What was used so recently may be in use by a run, and stays.
const IN_USE: Duration = Duration::from_secs(3600);
/// Begins the names of folders that are not complete.
const TEMP_PREFIX: &str = "tmp-";
const BLOB: &str = "blob";

/// What cargo built, by contents. All its functions block on the disk.
#[derive(Debug)]
pub struct ClientStore {
    dir: PathBuf,
    stats: Arc<StatCache>,
    copies: Arc<Copies>,
    /// What this process has taken, also what is too young for the stat cache.
    taken: Mutex<BTreeMap<PathBuf, (Stamp, Digest)>>,
}

/// A file as it was when it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Its contents.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where our copy lies.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// What told it from any other file at its path.
    pub stamp: Stamp,
}

impl ClientStore {
    /// Opens the store below cargo's target directory, and removes what is old or too much.
    ///
    /// # Errors
    /// The folder can't be created or read.
    pub fn open(target_dir: &Path, copies: Arc<Copies>) -> io::Result<Self> {
        let dir = target_dir.join("distest").join("store");
        fs::create_dir_all(&dir)?;
        prune(&dir, SystemTime::now(), KEPT_BYTES_MAX)?;
        let stats = Arc::clone(copies.stats());
        Ok(Self { dir, stats, copies, taken: Mutex::default() })
    }

    /// Keeps a file's contents as they are now. A file that has not changed since it was last
    /// taken is not read.
    ///
    /// # Errors
    /// It can't be read or kept, is no regular file, or is being written to.
    pub fn take(&self, path: &Path) -> io::Result<Blob> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            let text = format!("{} is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let stamp = Stamp::of_contents(&metadata);
        let known = match self.taken().get(path) {
            Some((taken, digest)) if *taken == stamp => Some(*digest),
            _ => self.stats.lookup(path, &metadata),
        };
        let digest = match known.filter(|digest| self.keeps(*digest, &metadata)) {
            Some(digest) => digest,
            None => self.take_now(path, stamp)?,
        };
        let mode = metadata.mode() & 0o777;
        Ok(Blob { digest, size: metadata.len(), path: self.copy(digest), mode, stamp })
    }

    /// Where what is no executable is kept.
    pub fn copies(&self) -> &Copies {
        &self.copies
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, (Stamp, Digest)>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    fn copy(&self, digest: Digest) -> PathBuf {
        self.folder(digest).join(BLOB)
    }

    /// Whether the copy of a file that has this digest is there and unspoilt.
    fn keeps(&self, digest: Digest, file: &fs::Metadata) -> bool {
        let copy = self.copy(digest);
        let Ok(metadata) = fs::metadata(&copy) else { return false };
        let hard_link = metadata.dev() == file.dev() && metadata.ino() == file.ino();
        let intact = hard_link
            || self.stats.digest_with(&copy, &metadata).is_ok_and(|(found, _)| found == digest);
        if intact {
            self.touch(digest);
        }
        intact
    }

    /// Says that a copy is in use, which only pruning asks for.
    fn touch(&self, digest: Digest) {
        let _ = File::open(self.folder(digest)).and_then(|f| f.set_modified(SystemTime::now()));
    }

    fn take_now(&self, path: &Path, before: Stamp) -> io::Result<Digest> {
        let keep = |error: io::Error| {
            let text = format!("could not keep a copy in {}: {error}", self.dir.display());
            io::Error::new(error.kind(), text)
        };
        let hashed = SystemTime::now();
        let temp = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir_in(&self.dir);
        let temp = temp.map_err(keep)?;
        let copy = temp.path().join(BLOB);
        clone_or_link(path, &copy).map_err(keep)?;
        let (digest, _) = Digest::of_reader(File::open(&copy)?)?;
        if Stamp::of_contents(&fs::metadata(path)?) != before {
            let text = format!("{} is being written to", path.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        self.place(&copy, digest).map_err(keep)?;
        self.touch(digest);
        // Renaming one hard link over another leaves both, so that one goes with its folder now.
        temp.close()?;
        // Linking has changed the file's change time.
        let after = fs::metadata(path)?;
        self.stats.remember(path, &after, digest, hashed);
        let copied = self.copy(digest);
        self.stats.remember(&copied, &fs::metadata(&copied)?, digest, hashed);
        self.taken().insert(path.to_owned(), (before, digest));
        Ok(digest)
    }

    /// Puts a copy where its digest says, in one step: another run may be reading what is there.
    fn place(&self, copy: &Path, digest: Digest) -> io::Result<()> {
        loop {
            fs::create_dir_all(self.folder(digest))?;
            match fs::rename(copy, self.copy(digest)) {
                // Another run has just pruned the folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound && copy.exists() => {}
                done => return done,
            }
        }
    }
}

fn clone_or_link(from: &Path, to: &Path) -> io::Result<()> {
    // Links on the way are followed, so that a hard link is one to the file.
    let from = fs::canonicalize(from)?;
    if reflink_copy::reflink(&from, to).is_ok() || fs::hard_link(&from, to).is_ok() {
        return Ok(());
    }
    fs::copy(&from, to).map(|_| ())
}

/// Removes folders that have not been used for long, and the least recently used ones while more
/// than `bytes_max` are kept.
fn prune(dir: &Path, now: SystemTime, bytes_max: u64) -> io::Result<()> {
    let mut kept = Vec::new();
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // Another run may be pruning, too.
        let Ok(used) = fs::metadata(&path).and_then(|metadata| metadata.modified()) else {
            continue;
        };
        let size = fs::metadata(path.join(BLOB)).map_or(0, |metadata| metadata.len());
        total += size;
        kept.push((used, path, size));
    }
    kept.sort();
    for (used, path, size) in kept {
        let unused = now.duration_since(used).unwrap_or_default();
        let temp = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()));
        if unused > UNUSED_MAX || (unused > IN_USE && (temp || total > bytes_max)) {
            // What can't be removed now is tried again by the next run.
            let _ = fs::remove_dir_all(&path);
            total -= size;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::stamp::date;

    struct Bench {
        dir: tempfile::TempDir,
        store: ClientStore,
        built: PathBuf,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let stats = Arc::new(StatCache::open(&dir.path().join("stats")));
        let copies = Arc::new(Copies::new(dir.path(), stats));
        let store = ClientStore::open(dir.path(), copies).unwrap();
        let built = dir.path().join("built");
        Bench { dir, store, built }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_copy_survives_what_cargo_does_to_the_file() {
        let Bench { dir: _dir, store, built } = bench();
        fs::write(&built, "first").unwrap();
        let blob = store.take(&built).unwrap();
        assert_eq!((blob.digest, blob.size), (Digest::of(b"first"), 5));
        assert_eq!(store.take(&built).unwrap(), blob);

        fs::remove_file(&built).unwrap();
        fs::write(&built, "second").unwrap();
        assert_eq!(store.take(&built).unwrap().digest, Digest::of(b"second"));
        assert_eq!(fs::read_to_string(blob.path).unwrap(), "first");
    }

    #[test]
    fn what_was_old_enough_when_it_was_taken_is_not_read_again() {
        let Bench { dir, store, built } = bench();
        fs::write(&built, "built").unwrap();
        // Too young to be remembered, so that it is taken once more when a copy lies there already.
        date(&built, SystemTime::now() + HOUR);
        store.take(&built).unwrap();
        date(&built, SystemTime::now() - HOUR);
        for _ in 0..2 {
            let copies = Arc::clone(&store.copies);
            let next = ClientStore::open(dir.path(), copies).unwrap();
            let blob = next.take(&built).unwrap();
            let known = next.stats.lookup(&built, &fs::metadata(&built).unwrap());
            assert_eq!(known, Some(blob.digest));
        }
    }

    #[test]
    fn a_copy_that_was_written_to_is_replaced() {
        let Bench { dir: _dir, store, built } = bench();
        fs::write(&built, "first").unwrap();
        let first = store.take(&built).unwrap();
        // In place, as some linkers do: a hard link shows this, too.
        fs::write(&built, "other").unwrap();
        let other = store.take(&built).unwrap();
        assert_eq!(other.digest, Digest::of(b"other"));
        fs::write(&first.path, "spoilt").unwrap();
        fs::remove_file(&built).unwrap();
        fs::write(&built, "first").unwrap();
        let again = store.take(&built).unwrap();
        assert_eq!((again.digest, &again.path), (first.digest, &first.path));
        assert_eq!(fs::read_to_string(again.path).unwrap(), "first");
        assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 2, "nothing half-done");
    }

    #[test]
    fn runs_at_once_do_not_miss_what_the_other_keeps() {
        let Bench { dir, store: _, built } = bench();
        fs::write(&built, "built").unwrap();
        date(&built, SystemTime::now() + HOUR);
        thread::scope(|scope| {
            for run in 0..4 {
                let (dir, built) = (dir.path(), &built);
                scope.spawn(move || {
                    for round in 0..100 {
                        // As young as each is, no stat cache knows the file.
                        let stats = Arc::new(StatCache::open(&dir.join("stats")));
                        let copies = Arc::new(Copies::new(dir, stats));
                        let store = ClientStore::open(dir, copies).unwrap();
                        let blob = store.take(built).unwrap_or_else(|error| {
                            panic!("run {run} in round {round}: {error}");
                        });
                        assert_eq!(fs::read_to_string(blob.path).unwrap(), "built");
                    }
                });
            }
        });
    }

    #[test]
    fn the_second_run_reads_nothing() {
        let Bench { dir, store, built } = bench();
        fs::write(&built, "built").unwrap();
        date(&built, SystemTime::now() - HOUR);
        let blob = store.take(&built).unwrap();
        store.stats.save().unwrap();

        let stats = Arc::new(StatCache::open(&dir.path().join("stats")));
        assert_eq!(stats.lookup(&built, &fs::metadata(&built).unwrap()), Some(blob.digest));
        let copies = Arc::new(Copies::new(dir.path(), stats));
        assert_eq!(ClientStore::open(dir.path(), copies).unwrap().take(&built).unwrap(), blob);
    }

    #[test]
    fn prunes_what_is_old_or_too_much() {
        let Bench { dir: _dir, store, built } = bench();
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let [ancient, old, recent, fresh] = [15, 5, 3, 0].map(|days| {
            fs::write(&built, days.to_string().repeat(10)).unwrap();
            let folder = store.folder(store.take(&built).unwrap().digest);
            fs::remove_file(&built).unwrap();
            File::open(&folder).unwrap().set_modified(now - days * day).unwrap();
            folder
        });
        prune(&store.dir, now, 100).unwrap();
        assert!(!ancient.exists() && old.exists());
        prune(&store.dir, now, 20).unwrap();
        assert!(!old.exists() && recent.exists());
        prune(&store.dir, now, 0).unwrap();
        assert!(!recent.exists() && fresh.exists(), "it may be in use");
    }
}
