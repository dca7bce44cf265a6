//! When a worker on a colleague's machine is not to be used: while others need the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::server::WorkerShared;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Files that are looked at in one folder.
const FILES_MAX: usize = 4096;

/// What others' use of a machine keeps a worker from starting anything.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Politeness {
    /// The system's load average over the last minute is above this.
    pub load_max: Option<f64>,
    /// Somebody is there.
    pub presence: Option<Presence>,
}

/// Somebody is there: one of these files was read or written a short while ago.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presence {
    /// Files, and folders of files.
    pub paths: Vec<PathBuf>,
    /// How long it must be ago.
    pub idle_after: Duration,
}

impl Politeness {
    /// Why nothing may be started now.
    pub fn objection(&self) -> Option<String> {
        let load = self.load_max.and_then(|max| {
            let load = load(&fs::read_to_string("/proc/loadavg").ok()?)?;
            (load > max).then(|| format!("the machine's load is {load}, more than {max}"))
        });
        load.or_else(|| self.presence.as_ref().and_then(Presence::objection))
    }

    /// Keeps a worker to it for as long as it is polled. Whoever calls has looked once.
    pub async fn keep(self, worker: Arc<WorkerShared>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            worker.pause(self.objection());
        }
    }
}

impl Presence {
    fn objection(&self) -> Option<String> {
        let now = SystemTime::now();
        let used = self.paths.iter().flat_map(|path| files(path)).filter_map(|file| {
            let about = fs::metadata(&file).ok()?;
            let last = about.accessed().ok().max(about.modified().ok())?;
            // A time to come is no long time ago.
            let ago = now.duration_since(last).unwrap_or_default();
            (ago < self.idle_after).then_some((ago, file))
        });
        let (ago, file) = used.min()?;
        let (file, ago) = (file.display(), ago.as_secs());
        Some(format!("somebody is there: {file} was used {ago} s ago"))
    }
}

/// The file, or those in the folder.
fn files(path: &Path) -> Vec<PathBuf> {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().take(FILES_MAX).map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_owned()],
    }
}

/// The first number of `/proc/loadavg`.
fn load(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_the_first_number() {
        assert_eq!(load("0.75 1.00 2.5 1/99 1234\n"), Some(0.75));
        assert_eq!(load(""), None);
        let never = Politeness { load_max: Some(-1.0), presence: None };
        assert!(never.objection().unwrap().contains("more than -1"));
        let always = Politeness { load_max: Some(f64::INFINITY), presence: None };
        assert_eq!(always.objection(), None);
    }

    #[test]
    fn somebody_is_there_whose_files_were_used_a_short_while_ago() {
        let folder = tempfile::tempdir().unwrap();
        let terminal = folder.path().join("0");
        let presence = Presence {
            paths: vec![folder.path().to_owned(), "/nowhere".into()],
            idle_after: Duration::from_secs(300),
        };
        let polite = Politeness { load_max: None, presence: Some(presence) };
        assert_eq!(polite.objection(), None);
        let file = fs::File::create(&terminal).unwrap();
        assert!(polite.objection().unwrap().contains(terminal.to_str().unwrap()));
        let set = |ago: u64| {
            let then = SystemTime::now() - Duration::from_secs(ago);
            file.set_times(fs::FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
        };
        set(301);
        assert_eq!(polite.objection(), None);
        set(10);
        assert!(polite.objection().is_some());
    }
}
