//! Copies of workspace files, made while they are hashed and served instead of them.
//!
//! `TARGET/distest/tree/DIGEST` is a clone where the file system can clone, else a copy; never a
//! hard link, which would show what an editor writes into the file meanwhile. So every worker
//! gets the same bytes, however long the run is and whatever becomes of the workspace.
//!
//! Once a day, after a run, copies go that no run has used for [`UNUSED_MAX`].

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use distest_worker::digest::{Digest, Hasher};
use nix::fcntl::OFlag;

use super::statcache::StatCache;
use crate::stamp::Stamp;

/// What no run has used for so long goes.
const UNUSED_MAX: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often the folder is tidied.
const TIDY_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A file that is being written to is read so often; then what was read last counts.
const READS_MAX: u32 = 3;
/// Bytes copied at a time.
const READ_BYTES: usize = 256 * 1024;
/// Its modification time is when the folder was last tidied.
const TIDIED: &str = ".tidied";

/// The copies of one workspace. All its functions block on the disk.
#[derive(Debug)]
pub struct Copies {
    dir: PathBuf,
    stats: Arc<StatCache>,
    /// What is there, once the folder has been read.
    present: OnceLock<RwLock<BTreeSet<Digest>>>,
    /// The file system can't clone.
    no_clones: AtomicBool,
}

/// A file as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// When it was read.
    pub(super) stamp: Stamp,
    /// It was written to while it was read, each time.
    pub(super) restless: bool,
}

impl Copies {
    /// Copies below cargo's target directory. Nothing is read or written yet.
    pub fn new(target_dir: &Path, stats: Arc<StatCache>) -> Self {
        let dir = target_dir.join("distest").join("tree");
        Self { dir, stats, present: OnceLock::new(), no_clones: AtomicBool::new(false) }
    }

    /// Where the copy of a content lies.
    pub fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// The means to know what has not changed.
    pub fn stats(&self) -> &Arc<StatCache> {
        &self.stats
    }

    /// Finds out what is there already.
    pub(super) fn look(&self) {
        _ = self.present();
    }

    /// Takes a regular file whose metadata the caller has just read. One that has not changed since
    /// it was last taken is not read.
    pub(super) fn take(&self, path: &Path, metadata: &Metadata) -> io::Result<Taken> {
        let stamp = Stamp::of(metadata);
        let known = self.stats.lookup(path, metadata);
        if let Some(digest) = known.filter(|digest| self.has(*digest)) {
            return Ok(Taken { digest, size: metadata.len(), stamp, restless: false });
        }
        self.settle(path, |file| self.copy(file))
    }

    /// Reads a file until nobody writes to it meanwhile.
    fn settle(
        &self,
        path: &Path,
        mut copy: impl FnMut(&File) -> io::Result<(Digest, u64)>,
    ) -> io::Result<Taken> {
        let mut reads = 1;
        loop {
            let hashed = SystemTime::now();
            // Should a named pipe have taken its place, opening it must not wait for a writer.
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
            let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
            let before = file.metadata()?;
            if !before.is_file() {
                let text = "it was replaced by something that is no file";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let (digest, size) = copy(&file)?;
            let after = file.metadata()?;
            let stamp = Stamp::of(&after);
            let quiet = Stamp::of(&before) == stamp && size == after.len();
            if quiet {
                self.stats.remember(path, &after, digest, hashed);
            }
            if quiet || reads == READS_MAX {
                return Ok(Taken { digest, size, stamp, restless: !quiet });
            }
            reads += 1;
        }
    }

    /// Notes what this run has used, and once a day removes what none has for long.
    pub fn tidy(&self, used: impl Iterator<Item = Digest>) {
        // What can't be tidied now is tidied another day.
        let _ = self.tidy_at(used.collect(), SystemTime::now());
    }

    fn tidy_at(&self, used: BTreeSet<Digest>, now: SystemTime) -> io::Result<()> {
        let mark = self.dir.join(TIDIED);
        let age = |path: &Path| -> io::Result<Duration> {
            Ok(now.duration_since(fs::metadata(path)?.modified()?).unwrap_or_default())
        };
        if used.is_empty() || age(&mark).is_ok_and(|age| age < TIDY_EVERY) {
            return Ok(());
        }
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if digest.is_some_and(|digest| used.contains(&digest)) {
                File::open(&path)?.set_modified(now)?;
            } else if age(&path).is_ok_and(|age| age > UNUSED_MAX) {
                fs::remove_file(&path)?;
            }
        }
        File::create(&mark)?.set_modified(now)
    }

    fn has(&self, digest: Digest) -> bool {
        self.present().read().unwrap_or_else(PoisonError::into_inner).contains(&digest)
    }

    /// Reading one folder is much quicker than looking for each copy.
    fn present(&self) -> &RwLock<BTreeSet<Digest>> {
        self.present.get_or_init(|| {
            let names = fs::read_dir(&self.dir).into_iter().flatten().flatten();
            let digests = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            RwLock::new(digests.collect())
        })
    }

    /// Copies what a file holds now; answers what the copy holds.
    fn copy(&self, file: &File) -> io::Result<(Digest, u64)> {
        fs::create_dir_all(&self.dir)?;
        let mut temp = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.dir)?;
        let (digest, size) = match self.clone_into(file, &mut temp)? {
            true => Digest::of_reader(temp.as_file())?,
            false => pass(file, temp.as_file())?,
        };
        if !self.has(digest) {
            temp.as_file().set_permissions(Permissions::from_mode(0o600))?;
            temp.persist(self.path(digest))?;
            let mut present = self.present().write().unwrap_or_else(PoisonError::into_inner);
            present.insert(digest);
        }
        Ok((digest, size))
    }

    /// Whether the file system could clone the file.
    fn clone_into(&self, file: &File, temp: &mut tempfile::NamedTempFile) -> io::Result<bool> {
        if self.no_clones.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let cloned = reflink_copy::reflink_file(file, temp.as_file()).is_ok();
        if !cloned {
            self.no_clones.store(true, Ordering::Relaxed);
        }
        temp.rewind()?;
        Ok(cloned)
    }
}

/// Copies a stream and hashes it on the way.
fn pass(mut from: &File, mut to: &File) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                to.write_all(&buffer[..read])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn bench() -> (tempfile::TempDir, Copies, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let stats = Arc::new(StatCache::open(&dir.path().join("stats")));
        let copies = Copies::new(dir.path(), stats);
        let file = dir.path().join("file");
        (dir, copies, file)
    }

    fn write(file: &Path, content: &str, age: Duration) {
        fs::write(file, content).unwrap();
        let then = SystemTime::now() - age;
        File::options().write(true).open(file).unwrap().set_modified(then).unwrap();
    }

    fn take(copies: &Copies, file: &Path) -> io::Result<Taken> {
        copies.take(file, &fs::symlink_metadata(file)?)
    }

    #[test]
    fn a_file_that_has_not_changed_is_not_read() {
        let (_dir, copies, file) = bench();
        write(&file, "content", DAY);
        let digest = take(&copies, &file).unwrap().digest;
        fs::write(copies.path(digest), "never looked at").unwrap();
        assert_eq!(take(&copies, &file).unwrap().digest, digest);
        assert_eq!(fs::read_to_string(copies.path(digest)).unwrap(), "never looked at");

        // A copy that is gone is made again.
        fs::remove_file(copies.path(digest)).unwrap();
        let again = Copies { present: OnceLock::new(), ..copies };
        assert_eq!(take(&again, &file).unwrap().digest, digest);
        assert_eq!(fs::read_to_string(again.path(digest)).unwrap(), "content");
    }

    #[test]
    fn a_file_that_keeps_changing_is_taken_as_it_was_read() {
        let (_dir, copies, file) = bench();
        write(&file, "content 0", DAY);
        let mut reads = 0;
        let restless = copies.settle(&file, |open| {
            let read = copies.copy(open)?;
            reads += 1;
            write(&file, &format!("content {reads}"), DAY - Duration::from_secs(reads));
            Ok(read)
        });
        let restless = restless.unwrap();
        assert!(restless.restless);
        assert_eq!(fs::read_to_string(copies.path(restless.digest)).unwrap(), "content 2");
        assert_eq!(copies.stats.lookup(&file, &fs::metadata(&file).unwrap()), None);

        let mut reads = 0;
        let quiet = copies.settle(&file, |open| {
            let read = copies.copy(open)?;
            reads += 1;
            if reads == 1 {
                write(&file, "written once", DAY);
            }
            Ok(read)
        });
        let quiet = quiet.unwrap();
        assert!(!quiet.restless);
        assert_eq!(fs::read_to_string(copies.path(quiet.digest)).unwrap(), "written once");
    }

    #[test]
    fn a_pipe_or_link_in_a_files_place_is_no_file() {
        let (dir, copies, file) = bench();
        write(&file, "content", DAY);
        let metadata = fs::symlink_metadata(&file).unwrap();
        fs::rename(&file, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &file).unwrap();
        assert!(copies.take(&file, &metadata).is_err());
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(copies.take(&file, &metadata).is_err());
    }

    #[test]
    fn what_no_run_uses_goes_once_a_day() {
        let (_dir, copies, file) = bench();
        let take = |content| {
            write(&file, content, DAY);
            let digest = take(&copies, &file).unwrap().digest;
            let old = File::options().write(true).open(copies.path(digest)).unwrap();
            old.set_modified(SystemTime::now() - 20 * DAY).unwrap();
            digest
        };
        let [used, unused] = [take("used"), take("unused")];
        let there = || [used, unused].map(|digest| copies.path(digest).exists());
        copies.tidy_at(BTreeSet::new(), SystemTime::now()).unwrap();
        assert_eq!(there(), [true, true], "a run without a tree says nothing");
        copies.tidy_at([used].into(), SystemTime::now()).unwrap();
        assert_eq!(there(), [true, false]);
        copies.tidy_at([unused].into(), SystemTime::now() + 15 * DAY).unwrap();
        assert_eq!(there(), [false, false]);
    }
}
