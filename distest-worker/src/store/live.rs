//! What one process has in the store: its folder, which says that it lives, and its pins.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{Store, create_private, remove_all};
use crate::digest::Digest;

/// Locked as long as the process lives that the folder belongs to.
const OWNER: &str = "owner";
/// Begins the names of files that list pinned digests, 32 bytes each.
const PIN_PREFIX: &str = "pin-";
/// The same of those that make room if there is none for others.
const LOOSE_PREFIX: &str = "loose-";
const DIGEST_BYTES: usize = 32;

/// All digests that some live process has pinned.
pub(super) type Pinned = BTreeSet<Digest>;

/// What a pin keeps its blobs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// From all eviction.
    Firm,
    /// From being cleared away while nobody needs the room, at least.
    Any,
}

/// This process's folder in the store. Removed on drop.
pub(super) struct Live {
    /// The folders of all processes.
    all: PathBuf,
    dir: PathBuf,
    scratch: PathBuf,
    /// Holds the lock.
    _owner: File,
}

/// Keeps blobs in the store as long as it exists. See [`Store::pin`].
pub struct Pin {
    /// The file is in its folder.
    store: Store,
    file: PathBuf,
}

impl Live {
    /// Joins the processes whose folders are in `all`, and removes those of the dead.
    pub(super) fn begin(all: &Path, lock: &Path) -> io::Result<Self> {
        create_private(all)?;
        let guard = lock_exclusive(lock)?;
        let mut dead = Vec::new();
        for entry in fs::read_dir(all)? {
            let dir = entry?.path();
            if let Some(owner) = owner_if_dead(&dir) {
                dead.push((dir, owner));
            }
        }
        let prefix = format!("{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(all)?.keep();
        let owner = File::create_new(dir.join(OWNER))?;
        owner.lock()?;
        drop(guard);
        // Their locks are ours now, so that nobody else removes them at the same time. What can't
        // be removed is tried again by the next process.
        for (dir, _owner) in dead {
            let _ = remove_all(&dir);
        }
        let scratch = dir.join("scratch");
        create_private(&scratch)?;
        Ok(Self { all: all.to_owned(), dir, scratch, _owner: owner })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// What live processes have pinned so. The caller holds the store's lock.
    pub(super) fn pinned(&self, hold: Hold) -> io::Result<Pinned> {
        let counts = |name: &[u8]| {
            name.starts_with(PIN_PREFIX.as_bytes())
                || hold == Hold::Any && name.starts_with(LOOSE_PREFIX.as_bytes())
        };
        let mut pinned = Vec::new();
        for entry in fs::read_dir(&self.all)? {
            let dir = entry?.path();
            if dir != self.dir && owner_if_dead(&dir).is_some() {
                continue;
            }
            // A process that ends meanwhile takes its folder and its pins with it.
            let Ok(files) = fs::read_dir(&dir) else { continue };
            for file in files.flatten() {
                if counts(file.file_name().as_encoded_bytes()) {
                    let list = fs::read(file.path()).unwrap_or_default();
                    pinned.extend(
                        list.as_chunks::<DIGEST_BYTES>().0.iter().copied().map(Digest::from),
                    );
                }
            }
        }
        // Far quicker than adding one after the other.
        Ok(Pinned::from_iter(pinned))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Whoever opens the store next tries again.
        let _ = remove_all(&self.dir);
    }
}

impl Pin {
    pub(super) fn new(store: Store, digests: &[Digest], serial: u64) -> Self {
        let file = store.inner.live.dir().join(format!("{PIN_PREFIX}{serial}"));
        let list: Vec<u8> = digests.iter().flat_map(|digest| *digest.as_bytes()).collect();
        // Without the lock, or on a full disk, a pin may come too late; then the blob is missing
        // when it is used and is sent again.
        let guard = lock_shared(&store.inner.lock);
        let _ = fs::write(&file, list);
        drop(guard);
        Self { store, file }
    }

    /// From now on its blobs make room if there is none for others, and only then.
    pub fn loosen(&mut self) {
        let name = self.file.file_name().and_then(|name| name.to_str());
        let Some(serial) = name.and_then(|name| name.strip_prefix(PIN_PREFIX)) else { return };
        let loose = self.store.inner.live.dir().join(format!("{LOOSE_PREFIX}{serial}"));
        if fs::rename(&self.file, &loose).is_ok() {
            self.file = loose;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The locked owner file of a process that is no more; an empty one if it never got so far.
fn owner_if_dead(dir: &Path) -> Option<Option<File>> {
    match File::options().write(true).open(dir.join(OWNER)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(Some(file)),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(None),
        Err(_) => None,
    }
}

/// Holds the store's lock alone until the file is dropped.
pub(super) fn lock_exclusive(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.lock()?;
    Ok(file)
}

fn lock_shared(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.lock_shared()?;
    Ok(file)
}
