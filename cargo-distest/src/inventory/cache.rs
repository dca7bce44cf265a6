//! Listings that were made before: one small file for each executable, named by its path. Its first
//! line is the SHA-256 of the rest, which is JSON: a name in which a bit has flipped would be a test
//! that runs no more.
//!
//! A listing holds as long as the executable's [`Stamp`] is what it was; its bytes are not looked at,
//! since hashing them takes longer than asking it again.
//!
//! Nothing here can fail a run: what can't be read is asked again, what can't be written is
//! forgotten.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use distest_worker::digest::Digest;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::LIST_BYTES_MAX;
use super::probe::Probe;
use crate::model::{ListedCase, Triple};
use crate::stamp::Stamp;

/// Raised when the file's meaning changes.
const FORMAT: u32 = 4;
/// The most bytes of a file that are read.
const FILE_BYTES_MAX: u64 = 2 * LIST_BYTES_MAX;
/// Files beyond this many are removed, oldest first.
const LISTINGS_MAX: usize = 4096;
/// Files older than this are removed.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A folder of listings.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    swept: AtomicBool,
}

/// What is remembered of an executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// The executable's, if it tells it from any that may take its place.
    pub(super) stamp: Option<Stamp>,
    pub(super) cases: Vec<ListedCase>,
    /// None if nobody asked.
    pub(super) probe: Option<Probe>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    /// Its file's name says less.
    executable: PathBuf,
    triple: Triple,
    known: Known,
}

impl Cache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, swept: AtomicBool::new(false) }
    }

    /// What is remembered of an executable, or of one that was in its place.
    pub(super) async fn load(
        self: Arc<Self>,
        executable: PathBuf,
        triple: Triple,
    ) -> Option<Known> {
        tokio::task::spawn_blocking(move || self.read(&executable, &triple)).await.ok()?
    }

    pub(super) async fn save(self: Arc<Self>, executable: PathBuf, triple: Triple, known: Known) {
        let entry = Entry { format: FORMAT, executable, triple, known };
        let write = move || {
            self.write(&entry).ok();
            if !self.swept.swap(true, Ordering::Relaxed) {
                sweep(&self.folder, LISTINGS_MAX, AGE_MAX).ok();
            }
        };
        tokio::task::spawn_blocking(write).await.ok();
    }

    fn file(&self, executable: &Path, triple: &Triple) -> PathBuf {
        let name = Digest::of(executable.as_os_str().as_encoded_bytes());
        self.folder.join(format!("{name}-{triple}.json"))
    }

    fn read(&self, executable: &Path, triple: &Triple) -> Option<Known> {
        // A named pipe in its place must not be waited for.
        let flags = OFlag::O_NONBLOCK.bits();
        let path = self.file(executable, triple);
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        if !file.metadata().is_ok_and(|it| it.is_file() && it.len() <= FILE_BYTES_MAX) {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let end = memchr::memchr(b'\n', &bytes)?;
        let (seal, json) = (&bytes[..end], &bytes[end + 1..]);
        if Digest::of(json).to_string().as_bytes() != seal {
            return None;
        }
        let entry: Entry = serde_json::from_slice(json).ok()?;
        let same =
            entry.format == FORMAT && entry.executable == executable && entry.triple == *triple;
        same.then_some(entry.known)
    }

    fn write(&self, entry: &Entry) -> io::Result<()> {
        let json = serde_json::to_vec(entry)?;
        fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        writeln!(file, "{}", Digest::of(&json))?;
        file.write_all(&json)?;
        file.persist(self.file(&entry.executable, &entry.triple))?;
        Ok(())
    }
}

/// Removes what is too old, and the oldest of what is too much.
fn sweep(folder: &Path, max: usize, age_max: Duration) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    let too_old = |time: &SystemTime| time.elapsed().is_ok_and(|age| age > age_max);
    for (_, file) in files
        .iter()
        .enumerate()
        .filter(|(i, (time, _))| *i >= max || too_old(time))
        .map(|(_, file)| file)
    {
        fs::remove_file(file).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::model::TestName;

    fn entry(executable: &Path, name: &str) -> Entry {
        let cases = vec![ListedCase { name: TestName::new(name), ignored: true }];
        let probe = Some(Probe::Shares { start_us: 1500 });
        let stamp = Some(Stamp { device: 1, inode: 2, size: 3, modified: 4, changed: 5 });
        let known = Known { stamp, cases, probe };
        let (executable, triple) = (executable.to_owned(), Triple::new("t"));
        Entry { format: FORMAT, executable, triple, known }
    }

    #[test]
    fn what_was_not_written_so_is_not_there() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::new(temp.path().join("made/when/needed"));
        let (one, other) = (Path::new("/deps/one"), Path::new("/deps/other"));
        let triple = Triple::new("t");
        assert_eq!(cache.read(one, &triple), None);
        cache.write(&entry(one, "x")).unwrap();
        assert_eq!(cache.read(one, &triple), Some(entry(one, "x").known));
        assert_eq!(cache.read(one, &Triple::new("u")), None);
        assert_eq!(cache.read(other, &triple), None);
        cache.write(&entry(one, "y")).unwrap();
        assert_eq!(cache.read(one, &triple), Some(entry(one, "y").known));

        // Renamed, of another version, torn, foreign.
        let file = cache.file(one, &triple);
        fs::copy(&file, cache.file(other, &triple)).unwrap();
        assert_eq!(cache.read(other, &triple), None);
        cache.write(&Entry { format: FORMAT + 1, ..entry(one, "x") }).unwrap();
        assert_eq!(cache.read(one, &triple), None);
        cache.write(&entry(one, "x")).unwrap();
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(cache.read(one, &triple), None);
        fs::write(&file, b"[]").unwrap();
        assert_eq!(cache.read(one, &triple), None);
        // Any bit of it.
        for byte in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1;
            fs::write(&file, flipped).unwrap();
            assert_eq!(cache.read(one, &triple), None, "byte {byte}");
        }
        // No file, or one that nobody would read to its end.
        File::create(&file).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(cache.read(one, &triple), None);
        fs::remove_file(&file).unwrap();
        mkfifo(&file, Mode::S_IRWXU).unwrap();
        assert_eq!(cache.read(one, &triple), None);
        cache.write(&entry(one, "x")).unwrap();
        assert_eq!(cache.read(one, &triple), Some(entry(one, "x").known));
    }

    #[test]
    fn a_sweep_keeps_the_newest() {
        let temp = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        for days in 0..5 {
            let file = fs::File::create(temp.path().join(days.to_string())).unwrap();
            file.set_modified(SystemTime::now() - day * days - day / 2).unwrap();
        }
        let left = |max, age| {
            sweep(temp.path(), max, age).unwrap();
            let entries = fs::read_dir(temp.path()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(left(9, day * 4), ["0", "1", "2", "3"]);
        assert_eq!(left(2, day * 4), ["0", "1"]);
    }
}
