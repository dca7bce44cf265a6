//! Digests of files that have not changed since they were last read.
//!
//! A file counts as unchanged if its path, device, inode, size, modification and change time are
//! as they were. One whose [`Stamp`] would not tell that it has changed again is not remembered.
//!
//! On disk: a line with the version, records in the order of paths, and the SHA-256 of all of that.
//! A file that is anything else is ignored and written anew.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use distest_worker::digest::Digest;
use nix::fcntl::OFlag;

use crate::stamp::Stamp;

/// First line of the file.
const VERSION: &[u8] = b"cargo-distest stat cache 1\n";
/// What was not asked for in so many days is forgotten.
const DAYS_MAX: u32 = 30;
/// More than so many files are not remembered.
const ENTRIES_MAX: usize = 500_000;
const DIGEST_BYTES: usize = 32;

/// Digests by file. Safe to use from several threads; of several processes the last to save wins.
#[derive(Debug)]
pub struct StatCache {
    path: PathBuf,
    today: u32,
    entries: RwLock<BTreeMap<OsString, Entry>>,
    changed: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    digest: Digest,
    /// Last asked for, in days since 1970.
    day: AtomicU32,
}

impl StatCache {
    /// What `path` remembers; nothing if it doesn't exist or can't be used.
    pub fn open(path: &Path) -> Self {
        let entries = fs::read(path).ok().and_then(|bytes| decode(&bytes)).unwrap_or_default();
        let today = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() / 86_400);
        Self {
            path: path.to_owned(),
            today: u32::try_from(today).unwrap_or(u32::MAX),
            entries: RwLock::new(entries),
            changed: AtomicBool::new(false),
        }
    }

    /// Digest, size and permission bits of a file; links are followed.
    ///
    /// # Errors
    /// It is no regular file, or can't be read.
    pub fn digest_of(&self, path: &Path) -> io::Result<(Digest, u64, u32)> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            let text = format!("{} is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (digest, size) = self.digest_with(path, &metadata)?;
        Ok((digest, size, metadata.mode() & 0o777))
    }

    /// Digest and size of a regular file whose metadata the caller has just read.
    pub(super) fn digest_with(
        &self,
        path: &Path,
        metadata: &Metadata,
    ) -> io::Result<(Digest, u64)> {
        if let Some(digest) = self.lookup(path, metadata) {
            return Ok((digest, metadata.len()));
        }
        let now = SystemTime::now();
        // Should a named pipe have taken its place, opening it must not wait for a writer.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        let before = file.metadata()?;
        let (digest, size) = Digest::of_reader(&file)?;
        let after = file.metadata()?;
        if Stamp::of(&before) == Stamp::of(&after) && size == after.len() {
            self.remember(path, &after, digest, now);
        }
        Ok((digest, size))
    }

    /// The digest of a file that has not changed.
    pub(super) fn lookup(&self, path: &Path, metadata: &Metadata) -> Option<Digest> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(path.as_os_str())?;
        if entry.stamp != Stamp::of(metadata) {
            return None;
        }
        if entry.day.swap(self.today, Ordering::Relaxed) != self.today {
            self.changed.store(true, Ordering::Relaxed);
        }
        Some(entry.digest)
    }

    /// Remembers a digest, if `metadata` would show that the file has changed since `hashed`.
    pub(super) fn remember(
        &self,
        path: &Path,
        metadata: &Metadata,
        digest: Digest,
        hashed: SystemTime,
    ) {
        let stamp = Stamp::lasting(path, metadata, hashed);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(stamp) = stamp.filter(|_| entries.len() < ENTRIES_MAX) {
            let day = AtomicU32::new(self.today);
            entries.insert(path.into(), Entry { stamp, digest, day });
            self.changed.store(true, Ordering::Relaxed);
        } else if entries.remove(path.as_os_str()).is_some() {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Writes what is remembered, if it differs from what was.
    ///
    /// # Errors
    /// The file or its folder can't be written.
    pub fn save(&self) -> io::Result<()> {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let bytes = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            encode(&entries, self.today.saturating_sub(DAYS_MAX))
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut temp = tempfile::NamedTempFile::new_in(folder)?;
        temp.write_all(&bytes)?;
        temp.persist(&self.path)?;
        Ok(())
    }
}

fn encode(entries: &BTreeMap<OsString, Entry>, day_min: u32) -> Vec<u8> {
    let mut out = VERSION.to_vec();
    for (path, Entry { stamp, digest, day }) in entries {
        let day = day.load(Ordering::Relaxed);
        let Ok(length) = u32::try_from(path.len()) else { continue };
        if day < day_min {
            continue;
        }
        out.extend(length.to_le_bytes());
        out.extend(path.as_bytes());
        let Stamp { device, inode, size, modified, changed } = *stamp;
        for number in [device, inode, size, modified.cast_unsigned(), changed.cast_unsigned()] {
            out.extend(number.to_le_bytes());
        }
        out.extend(day.to_le_bytes());
        out.extend(digest.as_bytes());
    }
    let seal = Digest::of(&out);
    out.extend(seal.as_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<OsString, Entry>> {
    let (body, seal) = bytes.split_last_chunk::<DIGEST_BYTES>()?;
    let mut rest = body.strip_prefix(VERSION)?;
    if Digest::of(body).as_bytes() != seal {
        return None;
    }
    // Sorted already, which makes building the map quick.
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(take(&mut rest)?);
        let (path, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        rest = after;
        let mut number = || take(&mut rest).map(u64::from_le_bytes);
        let stamp = Stamp {
            device: number()?,
            inode: number()?,
            size: number()?,
            modified: number()?.cast_signed(),
            changed: number()?.cast_signed(),
        };
        let day = AtomicU32::new(u32::from_le_bytes(take(&mut rest)?));
        let digest = Digest::from(take::<DIGEST_BYTES>(&mut rest)?);
        entries.push((OsStr::from_bytes(path).to_owned(), Entry { stamp, digest, day }));
    }
    Some(entries.into_iter().collect())
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stamp::date;

    /// A cache and a file that was written an hour ago.
    fn bench() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("deep/cache"), dir.path().join("file"));
        fs::write(&file, "first").unwrap();
        age(&file);
        (dir, cache, file)
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn age(file: &Path) {
        date(file, SystemTime::now() - HOUR);
    }

    /// For as long as the test may take.
    fn be_young(file: &Path) {
        date(file, SystemTime::now() + HOUR);
    }

    fn knows(cache: &Path, file: &Path) -> Option<Digest> {
        StatCache::open(cache).lookup(file, &fs::metadata(file).unwrap())
    }

    #[test]
    fn remembers_until_the_file_changes() {
        let (_dir, path, file) = bench();
        let first = Digest::of(b"first");
        let cache = StatCache::open(&path);
        assert_eq!(cache.digest_of(&file).unwrap().0, first);
        cache.save().unwrap();
        assert_eq!(knows(&path, &file), Some(first));

        // Same size and times, but the change time can't be set.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "other").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_eq!(knows(&path, &file), None);
        assert_eq!(StatCache::open(&path).digest_of(&file).unwrap().0, Digest::of(b"other"));
    }

    #[test]
    fn what_was_just_modified_is_not_trusted() {
        let (_dir, path, file) = bench();
        let cache = StatCache::open(&path);
        fs::write(&file, "young").unwrap();
        be_young(&file);
        cache.digest_of(&file).unwrap();
        assert_eq!(cache.lookup(&file, &fs::metadata(&file).unwrap()), None);
        age(&file);
        cache.digest_of(&file).unwrap();
        assert!(cache.lookup(&file, &fs::metadata(&file).unwrap()).is_some());
    }

    #[test]
    fn a_spoilt_file_is_ignored() {
        let (_dir, path, file) = bench();
        let cache = StatCache::open(&path);
        cache.digest_of(&file).unwrap();
        cache.save().unwrap();
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[VERSION.len() + 30] ^= 1;
        let other_version = good.iter().map(|b| if *b == b'1' { b'2' } else { *b }).collect();
        for bad in [flipped, good[..good.len() - 1].to_vec(), Vec::new(), other_version] {
            fs::write(&path, bad).unwrap();
            assert_eq!(knows(&path, &file), None);
        }
        fs::write(&path, good).unwrap();
        assert!(knows(&path, &file).is_some());
    }

    #[test]
    fn only_regular_files_have_a_digest() {
        let (dir, path, _file) = bench();
        let error = StatCache::open(&path).digest_of(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
