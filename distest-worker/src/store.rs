//! Content-addressed blobs: verified, then renamed into place; bounded.
//!
//! Layout below the folder: `v1/blobs/ab/abcd…` are the blobs, their modification time is their
//! last use; `v1/owners/KEY` says which of them the client with that key may use ([`owned`]);
//! `v1/executables/` has what workers were upgraded to ([`crate::upgrade`]);
//! `v1/live/PID-x/` belongs to one process and holds its uploads, its pins and whatever
//! it puts into [`Store::scratch`].
//!
//! Several processes may use one folder. Blobs come and go by `rename` and `unlink`, without locks:
//! whoever finds a blob gone asks for it again. Only what must agree between processes takes
//! `flock` on `v1/lock`: pinning (shared) against eviction (exclusive), and becoming alive against
//! removing what dead processes left (exclusive). That a process lives is a lock, too, held on
//! `live/PID-x/owner`, which the kernel drops however the process ends.
//!
//! Nothing is synced to disk: every use of a blob verifies it again, so a blob that a power cut
//! spoilt is noticed and sent once more.

mod claim;
mod live;
mod owned;
mod times;
mod upload;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::digest::{Digest, Hasher};
use crate::evict::{self, Resident};
use crate::protocol::{Encoding, Freed, Refusal, RefusalKind};

pub use self::claim::{Claim, PinRoom};
pub use self::live::Pin;
use self::live::{Live, Pinned};
pub use self::owned::Owned;
pub use self::times::Times;
pub use self::upload::Upload;

/// A use within this long after the last one is not written down.
const USE_GRANULARITY: Duration = Duration::from_secs(60);
/// Eviction makes room for this share of the bound at a time, so that it needn't look at every blob
/// for every upload; and a process looks again after having added as much.
const SLACK_DIVISOR: u64 = 16;
/// A file takes whole blocks of the disk, at least one: tiny ones are not for free.
const BLOCK_BYTES: u64 = 4096;
/// Bytes copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// A folder of blobs. All its functions block on the disk. Clones share everything.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    blobs: PathBuf,
    owners: PathBuf,
    times: PathBuf,
    /// Held by whoever changes what is kept of tests' times.
    timing: Mutex<()>,
    lock: PathBuf,
    bytes_max: u64,
    live: Live,
    usage: Mutex<Usage>,
    /// What clients have on the disk beside blobs, by their keys.
    claims: claim::ByKey,
    /// What their lists of pins take of it.
    pinned: claim::ByKey,
    /// What clients own, as long as they are there: their connections share it.
    known: owned::Shared,
    serial: AtomicU64,
    evicted: AtomicU64,
    /// Held by whoever looks at proofs.
    proving: Arc<tokio::sync::Mutex<()>>,
}

/// Bytes of disk as far as this process knows.
#[derive(Default)]
struct Usage {
    /// In blobs, when we last looked, and since then by us.
    stored: u64,
    /// Promised to uploads that have not ended: what has come of them, and not much more.
    reserved: u64,
    /// Stored by us since we last looked. Other processes do the same.
    unseen: u64,
}

/// The store's folder can't be used.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {path} of the blob store: {cause}", path = path.display())]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl Store {
    /// Opens the store in `dir`, which is created for this user only, and keeps it below
    /// `max_bytes`. Removes what dead processes left in it.
    ///
    /// # Errors
    /// The folder can't be created, read or locked.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, StoreError> {
        let fail = |action, path: &Path| {
            let path = path.to_owned();
            move |cause| StoreError { action, path, cause }
        };
        let root = dir.join("v1");
        let blobs = root.join("blobs");
        create_private(&blobs).map_err(fail("create", &blobs))?;
        let has_blobs = fs::read_dir(&blobs).is_ok_and(|mut shelves| shelves.next().is_some());
        let owners = root.join("owners");
        owned::begin(&owners, has_blobs).map_err(fail("create", &owners))?;
        let lock = root.join("lock");
        let live = Live::begin(&root.join("live"), &lock).map_err(fail("use", &root))?;
        let inner = Inner {
            folder: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()),
            blobs,
            owners,
            times: root.join("times"),
            timing: Mutex::default(),
            lock,
            bytes_max: max_bytes,
            live,
            usage: Mutex::default(),
            claims: claim::ByKey::default(),
            pinned: claim::ByKey::default(),
            known: owned::Shared::default(),
            serial: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            proving: Arc::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        store.make_room(0).map_err(fail("read", &store.inner.blobs))?;
        Ok(store)
    }

    /// Whether a blob is here. If so, it counts as used now.
    pub fn contains(&self, digest: Digest) -> bool {
        let path = self.blob(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                if is_stale(metadata.modified()) {
                    // Failure only makes the blob look older than it is.
                    let _ = File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
                }
                true
            }
            _ => false,
        }
    }

    /// What the client with this key may use; without one it is somebody who could read the store
    /// anyway, and may use all.
    pub fn owned(&self, key: Option<&str>) -> Owned {
        Owned::of(self, key)
    }

    /// What is kept of the times of tests of the client with this key.
    pub fn times(&self, key: Option<&str>) -> Times {
        Times::of(self, key)
    }

    /// What the client with this key takes of the disk beside blobs, for one connection.
    pub fn claim(&self, key: Option<&str>) -> Claim {
        Claim::of(self, key)
    }

    /// Starts taking in a blob of `size` uncompressed bytes. Room is made as they arrive: a size that
    /// is only declared takes nothing from anybody.
    ///
    /// # Errors
    /// [`RefusalKind::OutOfResources`] if it is larger than the store may be, or can't be written.
    pub fn begin(&self, digest: Digest, size: u64, encoding: Encoding) -> Result<Upload, Refusal> {
        if size > self.inner.bytes_max {
            return Err(self.no_room(digest, size));
        }
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let temp = self.inner.live.dir().join(format!("upload-{serial}"));
        Upload::create(self.clone(), digest, size, encoding, temp)
    }

    /// Keeps blobs from being evicted, by any process, until the pin is dropped.
    ///
    /// Pin first, then ask for what is [`missing`](Owned::missing): a blob that is not here can be
    /// pinned, too.
    pub fn pin(&self, digests: impl IntoIterator<Item = impl Borrow<Digest>>) -> Pin {
        let digests: Vec<Digest> = digests.into_iter().map(|digest| *digest.borrow()).collect();
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        Pin::new(self.clone(), &digests, serial)
    }

    /// Makes `dest` a new file with a blob's bytes, which are verified on the way.
    ///
    /// # Errors
    /// As [`Self::copy_to`]. `dest` doesn't exist then.
    pub fn place(&self, digest: Digest, size: u64, mode: u32, dest: &Path) -> Result<(), Refusal> {
        let what = || format!("could not write {}", dest.display());
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dest)
            .map_err(|error| storage_refusal(what(), &error))?;
        let placed = self.copy_to(digest, size, &file).and_then(|()| {
            file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
                .map_err(|error| storage_refusal(what(), &error))
        });
        if placed.is_err() {
            let _ = fs::remove_file(dest);
        }
        placed
    }

    /// Writes a blob's bytes into `to`, a new and empty file, verifying them on the way.
    ///
    /// # Errors
    /// [`RefusalKind::MissingBlob`] if the blob isn't here or is no longer what it was; it is
    /// removed then. [`RefusalKind::OutOfResources`] if `to` can't be written. What `to` contains
    /// is undefined.
    pub fn copy_to(&self, digest: Digest, size: u64, to: &File) -> Result<(), Refusal> {
        let path = self.blob(digest);
        let from = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_here(digest));
            }
            Err(error) => {
                return Err(storage_refusal(format!("could not read blob {digest}"), &error));
            }
        };
        match copy_verified(&from, to, digest, size) {
            Ok(()) => {
                if is_stale(from.metadata().and_then(|metadata| metadata.modified())) {
                    let _ = from.set_modified(SystemTime::now());
                }
                Ok(())
            }
            Err(CopyError::Write(error)) => {
                Err(storage_refusal(format!("could not copy blob {digest}"), &error))
            }
            Err(CopyError::Source(_)) if from.metadata().is_ok_and(|it| it.len() != size) => {
                // Others may use it: who names a wrong size doesn't take it from them.
                if is_whole(&path, digest) {
                    let message = format!("could not use blob {digest}: it has not {size} bytes");
                    return Err(Refusal::new(RefusalKind::Invalid, message));
                }
                Err(self.damaged(&path, &from, digest, size, "it has another size"))
            }
            Err(CopyError::Source(why)) => Err(self.damaged(&path, &from, digest, size, &why)),
        }
    }

    /// Removes a blob whose bytes are not its own; what is said of it.
    fn damaged(&self, path: &Path, read: &File, digest: Digest, size: u64, why: &str) -> Refusal {
        if discard(path, read).is_ok() {
            let mut usage = self.usage();
            usage.stored = usage.stored.saturating_sub(on_disk(size));
        }
        missing_blob(digest, &format!("was damaged in the store ({why})"))
    }

    /// A folder of this process on the store's file system, for whatever may go when the process
    /// ends. The next process to open the store removes it if this one can't.
    pub fn scratch(&self) -> &Path {
        self.inner.live.scratch()
    }

    /// The folder that it was opened in.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Bytes that are free on the disk that it lies on, if the system says.
    pub fn disk_free(&self) -> Option<u64> {
        disk_free(self.folder())
    }

    /// Bytes that it keeps, as far as this process knows.
    pub fn bytes(&self) -> u64 {
        self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner).stored
    }

    /// Blobs that this process has removed to make room.
    pub fn evicted(&self) -> u64 {
        self.inner.evicted.load(Ordering::Relaxed)
    }

    /// The bound that it was opened with, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.inner.bytes_max
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.inner.blobs.join(&name[..2]).join(name)
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        // Plain numbers, consistent after any panic.
        self.inner.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_room(&self, digest: Digest, size: u64) -> Refusal {
        let bytes_max = self.inner.bytes_max;
        let why = match size > bytes_max {
            true => "it alone is more",
            false => "the rest is needed just now",
        };
        let message = format!(
            "could not make room for blob {digest} of {size} bytes: the store is bounded to \
             {bytes_max} bytes, and {why}"
        );
        Refusal::new(RefusalKind::OutOfResources, message)
            .with_hint("give the worker a larger --store-max")
    }

    /// Promises `more` bytes to the upload of a blob of `size`, evicting what must go.
    fn reserve(&self, digest: Digest, size: u64, more: u64) -> Result<(), Refusal> {
        let bytes_max = self.inner.bytes_max;
        let mut looked = false;
        loop {
            let mut usage = self.usage();
            let fits =
                usage.stored.saturating_add(usage.reserved).saturating_add(more) <= bytes_max;
            if fits && (looked || usage.unseen <= bytes_max / SLACK_DIVISOR) {
                usage.reserved += more;
                return Ok(());
            }
            drop(usage);
            if looked {
                return Err(self.no_room(digest, size));
            }
            self.make_room(more).map_err(|error| {
                let what = format!("could not make room for blob {digest} of {size} bytes");
                storage_refusal(what, &error)
            })?;
            looked = true;
        }
    }

    /// Looks at all blobs and evicts so many that `size` more bytes fit.
    fn make_room(&self, size: u64) -> io::Result<()> {
        let _lock = live::lock_exclusive(&self.inner.lock)?;
        let bytes_max = self.inner.bytes_max;
        let bound = bytes_max.saturating_sub(self.usage().reserved.saturating_add(size));
        self.evict(live::Hold::Firm, |stored| match stored > bound {
            true => bound.saturating_sub(bytes_max / SLACK_DIVISOR),
            false => bound,
        })?;
        Ok(())
    }

    /// Removes all blobs that nobody has pinned; answers what that freed.
    ///
    /// # Errors
    /// The folder can't be read, or a blob not be removed. Those before it are gone.
    pub fn evict_unused(&self) -> io::Result<Freed> {
        let _lock = live::lock_exclusive(&self.inner.lock)?;
        self.evict(live::Hold::Any, |_| 0)
    }

    /// Evicts until what is left takes no more than `bound` makes of what there is. The caller holds
    /// the store's lock.
    fn evict(&self, held: live::Hold, bound: impl FnOnce(u64) -> u64) -> io::Result<Freed> {
        let residents = residents(&self.inner.blobs, &self.inner.live.pinned(held)?)?;
        let mut stored: u64 = residents.iter().map(|resident| resident.size).sum();
        let sizes: BTreeMap<_, _> =
            residents.iter().map(|resident| (resident.digest, resident.size)).collect();
        let mut freed = Freed::default();
        for digest in evict::choose(residents, bound(stored)) {
            match fs::remove_file(self.blob(digest)) {
                Ok(()) => {
                    freed.blobs += 1;
                    freed.bytes += sizes[&digest];
                    self.inner.evicted.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            stored -= sizes[&digest];
        }
        let mut usage = self.usage();
        usage.stored = stored;
        usage.unseen = 0;
        Ok(freed)
    }
}

/// All blobs, with their sizes and last uses.
fn residents(blobs: &Path, pinned: &Pinned) -> io::Result<Vec<Resident>> {
    let mut residents = Vec::new();
    for shelf in fs::read_dir(blobs)? {
        for entry in fs::read_dir(shelf?.path())? {
            let entry = entry?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Another process may just have found it damaged and removed it.
            let Ok(metadata) = entry.metadata() else { continue };
            residents.push(Resident {
                digest,
                size: on_disk(metadata.len()),
                last_use: metadata.modified()?,
                pinned: pinned.contains(&digest),
            });
        }
    }
    Ok(residents)
}

/// What a file of so many bytes takes on the disk.
fn on_disk(size: u64) -> u64 {
    size.max(1).next_multiple_of(BLOCK_BYTES)
}

/// Bytes that are free on the disk that a folder lies on, if the system says.
pub fn disk_free(folder: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(disk.blocks_available() * disk.fragment_size())
}

/// Whether a blob's bytes are its own.
fn is_whole(path: &Path, digest: Digest) -> bool {
    File::open(path).and_then(Digest::of_reader).is_ok_and(|(found, _)| found == digest)
}

/// Removes a damaged blob, unless what lies there by now is not `damaged`: whoever read the same
/// blob may have had it sent again.
fn discard(path: &Path, damaged: &File) -> io::Result<()> {
    let (there, read) = (fs::symlink_metadata(path)?, damaged.metadata()?);
    if (there.dev(), there.ino()) != (read.dev(), read.ino()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::remove_file(path)
}

enum CopyError {
    Source(String),
    Write(io::Error),
}

/// Clones `from` if the file system can, else copies it; either way what is in `to` is verified.
fn copy_verified(from: &File, to: &File, digest: Digest, size: u64) -> Result<(), CopyError> {
    let cloned = size > 0 && reflink_copy::reflink_file(from, to).is_ok();
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(size).unwrap_or(COPY_BYTES) + 1)];
    let mut left = size;
    let (mut from, mut to) = (from, to);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Source(error.to_string())),
        };
        left = left
            .checked_sub(n as u64)
            .ok_or_else(|| CopyError::Source(format!("it is longer than {size} bytes")))?;
        hasher.update(&buffer[..n]);
        if !cloned {
            to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        }
    }
    let (found, _) = hasher.finish();
    if found != digest {
        return Err(CopyError::Source(format!("its bytes have digest {found}")));
    }
    if left != 0 {
        return Err(CopyError::Source(format!("it is shorter than {size} bytes")));
    }
    Ok(())
}

fn is_stale(modified: io::Result<SystemTime>) -> bool {
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > USE_GRANULARITY))
}

/// What is said of a blob that is not here, and of one that only others have sent.
pub(crate) fn not_here(digest: Digest) -> Refusal {
    missing_blob(digest, "is not in the store")
}

fn missing_blob(digest: Digest, why: &str) -> Refusal {
    Refusal::new(RefusalKind::MissingBlob, format!("could not use blob {digest}: it {why}"))
}

/// Creates a folder and its parents, the folder readable for this user only.
pub(crate) fn create_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A refusal because of this machine's storage. Whatever the cause, another worker may do better.
pub(crate) fn storage_refusal(what: String, error: &io::Error) -> Refusal {
    let refusal = Refusal::new(RefusalKind::OutOfResources, format!("{what}: {error}"));
    match error.kind() {
        io::ErrorKind::StorageFull => {
            refusal.with_hint("the worker's disk is full: free some space")
        }
        io::ErrorKind::QuotaExceeded => {
            refusal.with_hint("the worker's disk quota is used up: free some space")
        }
        _ => refusal,
    }
}

/// Removes a folder and all in it, also what is in folders that may not be written.
pub(crate) fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(dir);
            fs::remove_dir_all(dir)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Gives this user all permissions on a folder and those in it. Doesn't follow links.
fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
