//! How long tests take, kept for clients that have no history: a new container, for one.
//!
//! One file per client and project, `v1/times/KEY/PROJECT`, written beside and renamed, so that a
//! process that dies leaves the old one. What one client's tests are called and take is told to
//! nobody else. Whatever can't be read or written is not known, which costs but time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::{Store, create_private};
use crate::digest::Digest;
use crate::packed;
use crate::protocol::{TestTime, bounded_times};

/// The most clients whose tests' times are kept, those that were here last.
const CLIENTS_MAX: usize = 256;
/// The most projects of one client, those that were run last.
const PROJECTS_MAX: usize = 16;
/// The most bytes of a file; a longer one is none of ours.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Stands for clients without a key: they could read the store anyway.
const NOBODY: &str = "nobody";

/// What is kept for one client.
#[derive(Clone)]
pub struct Times {
    folder: PathBuf,
    store: Store,
}

impl Times {
    pub(super) fn of(store: &Store, key: Option<&str>) -> Self {
        let folder = store.inner.times.join(key.unwrap_or(NOBODY));
        Self { folder, store: store.clone() }
    }

    /// What is known of a project's tests, the newest last.
    pub fn read(&self, project: &str) -> Vec<TestTime> {
        self.load(project).unwrap_or_default()
    }

    /// Takes in what a project's tests took. Of what is known already the new value is half.
    pub fn add(&self, project: &str, times: Vec<TestTime>) {
        if project.is_empty() || times.is_empty() {
            return;
        }
        // Sessions of one client may end together.
        let _alone = self.store.inner.timing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = BTreeMap::new();
        let mut order = Vec::new();
        for time in self.read(project) {
            let TestTime { binary, name, micros } = time;
            order.push((binary.clone(), name.clone()));
            known.insert((binary, name), micros);
        }
        for TestTime { binary, name, micros } in bounded_times(times) {
            let key = (binary, name);
            let before = known.get(&key).copied();
            let now = before.map_or(micros, |before| before / 2 + micros / 2);
            known.insert(key.clone(), now);
            order.push(key);
        }
        // The newest stay: each test is kept where it was named last.
        let newest = order.into_iter().rev().filter_map(|key| {
            let micros = known.remove(&key)?;
            Some(TestTime { binary: key.0, name: key.1, micros })
        });
        let mut kept = bounded_times(newest);
        kept.reverse();
        // Where nothing can be written nothing is remembered.
        let _ = self.save(project, &kept);
    }

    fn path(&self, project: &str) -> PathBuf {
        // Whatever a client calls it, that is no path.
        self.folder.join(&Digest::of(project.as_bytes()).to_string()[..32])
    }

    fn load(&self, project: &str) -> Option<Vec<TestTime>> {
        let path = self.path(project);
        if project.is_empty() || fs::metadata(&path).ok()?.len() > FILE_BYTES_MAX {
            return None;
        }
        let times: Vec<TestTime> = packed::read(&fs::read(&path).ok()?).ok()?;
        Some(bounded_times(times))
    }

    fn save(&self, project: &str, times: &[TestTime]) -> io::Result<()> {
        create_private(&self.folder)?;
        let bytes = rmp_serde::to_vec_named(times).map_err(io::Error::other)?;
        let serial = self.store.inner.serial.fetch_add(1, Ordering::Relaxed);
        let beside = self.store.inner.live.dir().join(format!("times-{serial}"));
        fs::write(&beside, bytes)?;
        fs::rename(&beside, self.path(project))?;
        // A folder's time changes with what is renamed into it.
        keep_newest(&self.folder, PROJECTS_MAX, |path| fs::remove_file(path));
        keep_newest(&self.store.inner.times, CLIENTS_MAX, |path| fs::remove_dir_all(path));
        Ok(())
    }
}

/// Removes all but the newest in a folder.
fn keep_newest(folder: &Path, max: usize, remove: impl Fn(&Path) -> io::Result<()>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<_> = entries
        .map(|entry| {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            (changed.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
        })
        .collect();
    if entries.len() > max {
        entries.sort();
        for (_, path) in &entries[..entries.len() - max] {
            let _ = remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::TIMES_MAX;

    fn time(name: &str, micros: u64) -> TestTime {
        TestTime { binary: "it".to_owned(), name: name.to_owned(), micros }
    }

    fn store(dir: &Path) -> Store {
        Store::open(dir, 1 << 20).unwrap()
    }

    #[test]
    fn times_are_there_for_another_process_and_follow_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path()).times(Some("alice")).add("p", vec![time("a", 100), time("b", 10)]);
        let times = store(dir.path()).times(Some("alice"));
        assert_eq!(times.read("p"), [time("a", 100), time("b", 10)]);
        times.add("p", vec![time("a", 200)]);
        assert_eq!(times.read("p"), [time("b", 10), time("a", 150)]);
    }

    #[test]
    fn no_client_and_no_project_sees_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.times(Some("alice")).add("p", vec![time("secret", 1)]);
        for (key, project) in [(Some("bob"), "p"), (None, "p"), (Some("alice"), "q")] {
            assert_eq!(store.times(key).read(project), []);
        }
        store.times(Some("alice")).add("", vec![time("a", 1)]);
        assert_eq!(store.times(Some("alice")).read(""), []);
        // A project's name leads nowhere.
        store.times(Some("alice")).add("../../x", vec![time("a", 1)]);
        assert_eq!(fs::read_dir(dir.path().join("v1/times/alice")).unwrap().count(), 2);
    }

    #[test]
    fn all_of_it_is_bounded_and_the_newest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let times = store.times(Some("alice"));
        let many = |from: usize| (from..from + TIMES_MAX).map(|n| time(&n.to_string(), 1));
        times.add("p", many(0).collect());
        times.add("p", many(10).collect());
        let kept = times.read("p");
        assert_eq!(kept.len(), TIMES_MAX);
        assert!(!kept.contains(&time("9", 1)) && kept.contains(&time("20009", 1)));
        times.add("p", vec![time(&"x".repeat(2000), 1)]);
        assert_eq!(times.read("p"), kept);
        for number in 0..2 * PROJECTS_MAX {
            times.add(&number.to_string(), vec![time("a", 1)]);
        }
        let files = fs::read_dir(dir.path().join("v1/times/alice")).unwrap();
        assert_eq!(files.count(), PROJECTS_MAX);
    }

    #[test]
    fn what_is_damaged_is_not_known_and_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let times = store(dir.path()).times(Some("alice"));
        times.add("p", vec![time("a", 1)]);
        fs::write(times.path("p"), b"\x91\xff").unwrap();
        assert_eq!(times.read("p"), []);
        times.add("p", vec![time("b", 2)]);
        assert_eq!(times.read("p"), [time("b", 2)]);
    }
}
