//! Listings that were made before: one small JSON file each, named by digest and triple.
//!
//! Nothing here can fail a run: what can't be read is asked again, what can't be written is
//! forgotten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use distest_worker::digest::Digest;
use serde::{Deserialize, Serialize};

use super::probe::Probe;
use crate::model::{ListedCase, Triple};

/// Raised when the file's meaning changes.
const FORMAT: u32 = 2;
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

#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    /// As in the file's name, for a file that was renamed or copied.
    digest: String,
    triple: Triple,
    cases: Vec<ListedCase>,
    /// None if nobody asked.
    probe: Option<Probe>,
}

/// What is remembered of a binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) cases: Vec<ListedCase>,
    pub(super) probe: Option<Probe>,
}

impl Cache {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, swept: AtomicBool::new(false) }
    }

    pub(super) async fn load(self: Arc<Self>, digest: Digest, triple: Triple) -> Option<Known> {
        tokio::task::spawn_blocking(move || self.read(digest, &triple)).await.ok()?
    }

    pub(super) async fn save(self: Arc<Self>, digest: Digest, triple: Triple, known: Known) {
        let Known { cases, probe } = known;
        let entry = Entry { format: FORMAT, digest: digest.to_string(), triple, cases, probe };
        let write = move || {
            self.write(&entry).ok();
            if !self.swept.swap(true, Ordering::Relaxed) {
                sweep(&self.folder, LISTINGS_MAX, AGE_MAX).ok();
            }
        };
        tokio::task::spawn_blocking(write).await.ok();
    }

    fn file(&self, digest: &str, triple: &Triple) -> PathBuf {
        self.folder.join(format!("{digest}-{triple}.json"))
    }

    fn read(&self, digest: Digest, triple: &Triple) -> Option<Known> {
        let digest = digest.to_string();
        let bytes = fs::read(self.file(&digest, triple)).ok()?;
        let entry: Entry = serde_json::from_slice(&bytes).ok()?;
        let same = entry.format == FORMAT && entry.digest == digest && entry.triple == *triple;
        same.then_some(Known { cases: entry.cases, probe: entry.probe })
    }

    fn write(&self, entry: &Entry) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        serde_json::to_writer(io::BufWriter::new(&mut file), entry)?;
        file.persist(self.file(&entry.digest, &entry.triple))?;
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
    use super::*;
    use crate::model::TestName;

    fn known(name: &str) -> Known {
        let cases = vec![ListedCase { name: TestName::new(name), ignored: true }];
        Known { cases, probe: Some(Probe::Shares { start_us: 1500 }) }
    }

    fn entry(digest: Digest, name: &str) -> Entry {
        let triple = Triple::new("t");
        let Known { cases, probe } = known(name);
        Entry { format: FORMAT, digest: digest.to_string(), triple, cases, probe }
    }

    #[test]
    fn what_was_not_written_so_is_not_there() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::new(temp.path().join("made/when/needed"));
        let (digest, triple) = (Digest::of(b"a"), Triple::new("t"));
        assert_eq!(cache.read(digest, &triple), None);
        cache.write(&entry(digest, "x")).unwrap();
        assert_eq!(cache.read(digest, &triple), Some(known("x")));
        assert_eq!(cache.read(digest, &Triple::new("u")), None);
        assert_eq!(cache.read(Digest::of(b"b"), &triple), None);

        // Renamed, of another version, torn, foreign.
        let file = cache.file(&digest.to_string(), &triple);
        let other = cache.file(&Digest::of(b"b").to_string(), &triple);
        fs::copy(&file, other).unwrap();
        assert_eq!(cache.read(Digest::of(b"b"), &triple), None);
        cache.write(&Entry { format: FORMAT + 1, ..entry(digest, "x") }).unwrap();
        assert_eq!(cache.read(digest, &triple), None);
        cache.write(&entry(digest, "x")).unwrap();
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(cache.read(digest, &triple), None);
        fs::write(&file, b"[]").unwrap();
        assert_eq!(cache.read(digest, &triple), None);
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
