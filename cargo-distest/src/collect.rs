//! Brings files back that tests created or changed on workers: snapshots to review, regressions,
//! coverage profiles.
//!
//! What arrives comes from a peer that is not to be trusted with this machine. A path is taken only
//! if the user's patterns name it and it lies in the workspace's folders; it is reached without
//! following links; and a file that is no longer what travelled is left alone.

mod disputes;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use distest_worker::digest::{Digest, Hasher};
use distest_worker::globs::Globs;
use distest_worker::protocol::{
    COLLECTED_FILE_BYTES_MAX, COLLECTED_FILES_MAX, CollectedPiece, Refusal, RefusalKind, TreeNode,
    Writer,
};

use self::disputes::Disputes;
use self::place::{Found, Placed};
use crate::model::WorkerId;
use crate::tree::Tree;

/// Bytes that come back in one run.
pub const BYTES_MAX: u64 = 1 << 30;
/// Files on their way at a time.
const PARTIAL_MAX: usize = 64;
/// A file system's clock may be this much behind.
const CLOCK: Duration = Duration::from_secs(2);
/// Notices beyond this are counted, not told.
const NOTICES_MAX: usize = 5;

/// Takes in the files of one run. All its functions block on the disk.
pub struct Collector {
    roots: Vec<PathBuf>,
    globs: Globs,
    /// Where files lie until they are complete.
    folder: PathBuf,
    /// What this one and those before it have written.
    brought: Arc<Mutex<BTreeMap<PathBuf, Digest>>>,
    state: Mutex<State>,
}

/// What came back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Files that were written, by this one, those before it and its heirs.
    pub files: Vec<PathBuf>,
    /// What did not come back, and why.
    pub notices: Vec<String>,
}

struct State {
    /// What lies there from before may be replaced if nothing changed it since.
    started: SystemTime,
    /// Calls that are under way.
    calls: usize,
    tree: Option<Arc<Tree>>,
    partial: BTreeMap<(WorkerId, PathBuf), Partial>,
    /// What we have written.
    written: BTreeMap<PathBuf, (WorkerId, Digest)>,
    files: usize,
    bytes: u64,
    notices: BTreeSet<String>,
    disputes: Disputes,
    /// Notices that have been told.
    told: BTreeSet<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            calls: 0,
            tree: None,
            partial: BTreeMap::new(),
            written: BTreeMap::new(),
            files: 0,
            bytes: 0,
            notices: BTreeSet::new(),
            disputes: Disputes::default(),
            told: BTreeSet::new(),
        }
    }
}

/// A call whose files are taken, until this is dropped.
#[derive(Debug)]
pub struct Underway(Arc<Collector>);

impl Drop for Underway {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls = state.calls.saturating_sub(1);
    }
}

/// A file on its way.
struct Partial {
    file: File,
    hasher: Hasher,
    received: u64,
    writers: Vec<Writer>,
}

impl Collector {
    /// Takes files that match `globs` and lie in `roots`, none of which lies in another.
    pub fn new(roots: Vec<PathBuf>, globs: Globs, folder: PathBuf) -> Self {
        Self { roots, globs, folder, brought: Arc::default(), state: Mutex::default() }
    }

    /// The same with all bounds anew, which may replace what this one has written.
    #[must_use]
    pub fn heir(&self) -> Self {
        let heir = Self::new(self.roots.clone(), self.globs.clone(), self.folder.clone());
        Self { brought: Arc::clone(&self.brought), ..heir }
    }

    /// A call begins. What earlier ones have brought is the user's now, to change and to delete,
    /// unless one of them is still under way: such calls are told apart as the tests of a run are.
    #[must_use]
    pub fn call(self: &Arc<Self>) -> Underway {
        let mut state = self.state();
        if state.calls == 0 {
            state.started = SystemTime::now();
            state.written.clear();
            state.notices.clear();
            state.told.clear();
        }
        state.calls += 1;
        Underway(Arc::clone(self))
    }

    /// Whether its bounds are near.
    pub fn is_worn(&self) -> bool {
        let state = self.state();
        state.files > COLLECTED_FILES_MAX / 2 || state.bytes > BYTES_MAX / 2
    }

    /// Takes nothing.
    pub fn nothing() -> Self {
        Self::new(Vec::new(), Globs::default(), PathBuf::new())
    }

    /// Says what travelled.
    pub fn know(&self, tree: Arc<Tree>) {
        self.state().tree = Some(tree);
    }

    /// Takes the next piece of a file; the last one puts the file into its place.
    ///
    /// # Errors
    /// A piece that no honest worker sends, or that there is no room for.
    pub fn take(&self, worker: WorkerId, piece: &CollectedPiece) -> Result<(), Refusal> {
        let path = self.checked(piece.path.as_path())?;
        let mut state = self.state();
        let key = (worker, path.clone());
        if piece.offset == 0 {
            state.partial.remove(&key);
            state.files += 1;
            if state.files > COLLECTED_FILES_MAX {
                let text = format!(
                    "more than {COLLECTED_FILES_MAX} files were created on workers: the rest stays there"
                );
                state.notices.insert(text.clone());
                return Err(Refusal::new(RefusalKind::OutOfResources, text));
            }
            if let Some(bytes) = piece.too_large {
                let (mib, most) = (bytes.div_ceil(1 << 20), COLLECTED_FILE_BYTES_MAX >> 20);
                let text = format!("it has {mib} MiB, and at most {most} MiB of a file come back");
                let shown = self.shown(&path).display();
                let text = format!("{shown} was not brought back from a worker: {text}");
                state.notices.insert(text);
                return Ok(());
            }
            if state.partial.len() >= PARTIAL_MAX {
                let text = format!("more than {PARTIAL_MAX} files are on their way at once");
                return Err(Refusal::new(RefusalKind::Invalid, text));
            }
            let partial = self.begin(&piece.writers).map_err(|error| no_room(&path, &error))?;
            state.partial.insert(key.clone(), partial);
        }
        state.bytes = state.bytes.saturating_add(piece.data.len() as u64);
        if state.bytes > BYTES_MAX {
            let mib = BYTES_MAX >> 20;
            let text =
                format!("tests created more than {mib} MiB of files to bring back: the rest stays");
            state.notices.insert(text.clone());
            state.partial.remove(&key);
            return Err(Refusal::new(RefusalKind::OutOfResources, text));
        }
        let Some(partial) = state.partial.get_mut(&key) else {
            let text = format!("{} does not begin at its beginning", path.display());
            return Err(Refusal::new(RefusalKind::Invalid, text));
        };
        if partial.received != piece.offset {
            let text = format!("a piece of {} is missing", path.display());
            state.partial.remove(&key);
            return Err(Refusal::new(RefusalKind::Invalid, text));
        }
        partial.hasher.update(&piece.data);
        partial.received += piece.data.len() as u64;
        partial.file.write_all(&piece.data).map_err(|error| no_room(&path, &error))?;
        if piece.last
            && let Some(partial) = state.partial.remove(&key)
        {
            self.place(&mut state, worker, &path, piece.mode, partial);
        }
        Ok(())
    }

    /// Something else after something has come: how many files have begun, and the bytes of all.
    pub fn progress(&self) -> (usize, u64) {
        let state = self.state();
        (state.files, state.bytes)
    }

    /// A worker did not say that it had brought everything.
    pub fn cut_short(&self, worker: &str, why: &str) {
        if !self.globs.is_empty() {
            let text =
                format!("files that tests created on worker {worker} may be missing here: {why}");
            self.state().notices.insert(text);
        }
    }

    /// What has come back, and all notices. Files that were on their way are dropped.
    pub fn finish(&self) -> Collected {
        let state = std::mem::take(&mut *self.state());
        let disputes = state.disputes.told(|path| self.shown(path));
        let some = |notices: Vec<String>, rest: &str| {
            let more = notices.len().saturating_sub(NOTICES_MAX);
            let rest = (more > 0).then(|| format!("and {more} more files {rest}"));
            notices.into_iter().take(NOTICES_MAX).chain(rest)
        };
        let notices = some(state.notices.into_iter().collect(), "were left where they are");
        let notices = notices.chain(some(disputes, "were written differently by several tests"));
        let files = self.brought().keys().cloned().collect();
        Collected { files, notices: notices.collect() }
    }

    /// Notices that have come since it was asked last, each once.
    pub fn news(&self) -> Vec<String> {
        let mut state = self.state();
        let state = &mut *state;
        let disputes = state.disputes.fresh(|path| self.shown(path));
        let new = state.notices.difference(&state.told).cloned().chain(disputes);
        let new: Vec<String> = new.take(NOTICES_MAX).collect();
        state.told.extend(new.iter().cloned());
        new
    }

    fn place(&self, state: &mut State, worker: WorkerId, path: &Path, mode: u32, mut new: Partial) {
        let (digest, _) = std::mem::take(&mut new.hasher).finish();
        let Some(root) = self.root_of(path) else { return };
        let mut again = false;
        let may_replace = |found: Found| {
            // What we brought ourselves is newer than what travelled.
            let ours = state.written.get(path);
            let travelled = state.tree.as_ref().and_then(|tree| match tree.entry(path)?.node {
                TreeNode::File { digest, .. } => Some(digest),
                TreeNode::Folder { .. } | TreeNode::Link { .. } => None,
            });
            again = ours.is_none()
                && self.brought().get(path).is_some_and(
                    |brought| !matches!(found, Found::File { digest, .. } if digest == *brought),
                );
            match (ours, found) {
                (None, Found::Nothing) => travelled.is_none(),
                (Some(_), Found::Nothing) => false,
                (Some((by, brought)), Found::File { digest, .. }) => {
                    *by == worker && *brought == digest
                }
                (None, Found::File { digest, changed }) => match travelled {
                    Some(travelled) if travelled == digest => true,
                    _ if self.has_brought(path, digest) => true,
                    Some(_) => false,
                    None => changed + CLOCK < state.started,
                },
            }
        };
        let shown = || self.shown(path).display();
        let placed = place::place(root, path, &mut new.file, digest, mode, may_replace);
        let others = state.written.get(path).is_some_and(|(by, _)| *by != worker);
        match placed {
            Ok(Placed::Written) => {
                if again {
                    state.disputes.begin_again(path, &new.writers);
                }
                state.written.insert(path.to_owned(), (worker, digest));
                let mut brought = self.brought();
                if brought.len() < COLLECTED_FILES_MAX || brought.contains_key(path) {
                    brought.insert(path.to_owned(), digest);
                }
                state.disputes.judge(path, &new.writers, digest, true);
            }
            Ok(Placed::Same) => state.disputes.judge(path, &new.writers, digest, true),
            Ok(Placed::Kept) if others => {
                state.disputes.judge(path, &new.writers, digest, false);
            }
            Ok(Placed::Kept) => {
                let why = "it has changed here meanwhile";
                let text = format!("{} was not brought back from a worker: {why}", shown());
                state.notices.insert(text);
            }
            Err(error) => {
                let text = format!("{} could not be brought back from a worker: {error}", shown());
                state.notices.insert(text);
            }
        }
    }

    fn begin(&self, writers: &[Writer]) -> io::Result<Partial> {
        fs::create_dir_all(&self.folder)?;
        let file = tempfile::tempfile_in(&self.folder)?;
        let writers = disputes::bounded(writers);
        Ok(Partial { file, hasher: Hasher::default(), received: 0, writers })
    }

    /// The path, if it is one that the user wants files at.
    fn checked(&self, path: &Path) -> Result<PathBuf, Refusal> {
        let mut components = path.components();
        let absolute = components.next() == Some(Component::RootDir);
        let plain = absolute
            && components
                .all(|component| matches!(component, Component::Normal(name) if name != ".git"));
        let relative = self.root_of(path).and_then(|root| path.strip_prefix(root).ok());
        let inside = relative.is_some_and(|relative| relative != Path::new(""));
        if plain && inside && self.globs.matches(path, relative) {
            // Written in the one plain way.
            return Ok(path.components().collect());
        }
        let text = format!("the client does not collect {path:?}");
        Err(Refusal::new(RefusalKind::Forbidden, text))
    }

    /// A path as people are told of it.
    fn shown<'a>(&self, path: &'a Path) -> &'a Path {
        self.root_of(path).and_then(|root| path.strip_prefix(root).ok()).unwrap_or(path)
    }

    fn root_of(&self, path: &Path) -> Option<&Path> {
        self.roots.iter().map(PathBuf::as_path).find(|root| path.starts_with(root))
    }

    fn has_brought(&self, path: &Path, digest: Digest) -> bool {
        self.brought().get(path) == Some(&digest)
    }

    fn brought(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Digest>> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("roots", &self.roots).finish_non_exhaustive()
    }
}

fn no_room(path: &Path, error: &io::Error) -> Refusal {
    let text = format!("could not keep a piece of {}: {error}", path.display());
    Refusal::new(RefusalKind::OutOfResources, text)
}

#[cfg(test)]
mod tests;
