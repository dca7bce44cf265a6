//! What a worker lacks, and sending it.
//!
//! One [`Shipper`] per connection. Blobs travel whole, as zstd frames in pieces; the pieces of one
//! blob wait for each other's answers (the worker sees them in order), while up to
//! [`BLOBS_IN_FLIGHT`] blobs travel at once: at most that many pieces of
//! [`CHUNK_BYTES_MAX`](distest_worker::protocol::CHUNK_BYTES_MAX) are under way. What is under way or has arrived is never sent again, however
//! many binaries share it; only a worker that says that it lost or misread a blob gets it once more.
//! What a worker may have from other clients is proved to be ours, too, in place of being sent ([`prove`]).
//!
//! A future that is dropped in the middle of a blob leaves half of it at the worker. Whoever sends
//! it next is told that it is corrupt, whereupon the worker has forgotten it, and sends it again.

mod encode;
mod prove;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::protocol::{
    BinarySpec, BlobChunk, PutReply, Refusal, RefusalKind, TreeEntry, TreeNode, TreeSpec,
    WorkerClient,
};
use futures::stream::{self, StreamExt};
use tarpc::client::RpcError;
use tarpc::context::{self, Context};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use self::encode::{EncodeError, Piece};
use self::prove::Prover;
use crate::tree::Tree;

/// Blobs that travel to one worker at a time.
pub const BLOBS_IN_FLIGHT: usize = 8;
/// For a link of unknown speed; 1 suits a fast one.
pub const ZSTD_LEVEL: i32 = 3;
/// A piece may wait behind others on a slow link. Whether the worker lives at all is the
/// heartbeat's business.
const PUT_DEADLINE: Duration = Duration::from_secs(120);
/// Looking for or laying out very many files on a slow disk.
const LAY_DEADLINE: Duration = Duration::from_secs(600);
/// Digests in one question for what is missing.
const DIGESTS_MAX: usize = 10_000;
/// Bytes of entries in one message, estimated; a frame may be several times as large.
const ENTRIES_BYTES_MAX: usize = 1 << 20;
/// An entry's bytes beside its texts: names of fields, digest, size, mode.
const ENTRY_BYTES: usize = 100;

/// Sends blobs to one worker. Clones share everything.
#[derive(Clone)]
pub struct Shipper {
    worker: WorkerClient,
    level: i32,
    slots: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
    prover: Arc<Prover>,
}

/// Called with the bytes, as encoded, and the blobs that have arrived since the last call.
pub type Progress = Box<dyn FnMut(Shipped) + Send>;

/// What has travelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shipped {
    /// Bytes of blobs, as encoded.
    pub bytes: u64,
    /// Blobs that are complete.
    pub blobs: u32,
}

#[derive(Default)]
struct State {
    /// Whether the worker has a blob. Locked by whoever finds out or sends it.
    blobs: BTreeMap<Digest, Arc<tokio::sync::Mutex<bool>>>,
    shipped: Shipped,
    arrived: u64,
    progress: Option<Progress>,
}

/// A blob that this caller alone looks after.
type Claimed = (Digest, OwnedMutexGuard<bool>);

/// Why something did not get to the worker.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The worker refused it; [`RefusalKind::OutOfResources`]: use another worker.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection failed.
    #[error("could not reach the worker: {}", distest_worker::link::why(.0))]
    Connection(#[from] RpcError),
    /// A file is no longer what was hashed: take it again.
    #[error("could not ship {}: it has changed since it was hashed", .path.display())]
    Changed {
        /// Where the content was.
        path: PathBuf,
        /// What it was.
        digest: Digest,
    },
    /// A file can't be read.
    #[error("could not ship {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something names a content for which no file was given: a bug of ours.
    #[error("could not ship {0}: no file with this digest was given")]
    Unknown(Digest),
}

impl Shipper {
    /// Sends to this worker, whose session is open. `proofs`: it takes proofs that we hold a blob.
    pub fn new(worker: WorkerClient, proofs: bool) -> Self {
        let slots = Arc::new(Semaphore::new(BLOBS_IN_FLIGHT));
        let prover = Arc::new(Prover::new(proofs));
        Self { worker, level: ZSTD_LEVEL, slots, state: Arc::default(), prover }
    }

    /// Compresses at another level than [`ZSTD_LEVEL`].
    #[must_use]
    pub fn with_level(self, level: i32) -> Self {
        Self { level, ..self }
    }

    /// Tells of each piece that has arrived.
    #[must_use]
    pub fn with_progress(self, progress: impl FnMut(Shipped) + Send + 'static) -> Self {
        self.state().progress = Some(Box::new(progress));
        self
    }

    /// Bytes of files, before compression, that have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.state().arrived
    }

    /// Bytes of a test binary's files, before compression, that the worker lacks, or that somebody
    /// is sending just now.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub async fn lacks(&self, spec: &BinarySpec) -> Result<u64, ShipError> {
        let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
        for entry in &spec.files {
            if let TreeNode::File { digest, size, .. } = entry.node {
                sizes.insert(digest, size);
            }
        }
        {
            // Nobody holds these who does not also change them.
            let mut state = self.state();
            sizes.retain(|digest, _| {
                let blob = state.blobs.entry(*digest).or_default();
                !blob.try_lock().is_ok_and(|there| *there)
            });
        }
        let asked: Vec<Digest> = sizes.keys().copied().collect();
        let mut bytes = 0u64;
        for digests in asked.chunks(DIGESTS_MAX) {
            let lacks = self.worker.missing(within(LAY_DEADLINE), digests.to_vec()).await??;
            let theirs = lacks.iter().filter_map(|digest| sizes.get(digest));
            bytes = theirs.fold(bytes, |bytes, size| bytes.saturating_add(*size));
        }
        Ok(bytes)
    }

    /// What has travelled so far.
    pub fn shipped(&self) -> Shipped {
        self.state().shipped
    }

    /// Sends what the worker lacks of the workspace files and has them laid out.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub async fn tree(&self, tree: &Tree) -> Result<(), ShipError> {
        self.with_blobs(&tree.entries, &tree.files, || self.lay(&tree.entries)).await
    }

    /// Sends what the worker lacks of a test binary and has it made ready. `files` says where the
    /// contents lie that its files name.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub async fn binary(
        &self,
        spec: &BinarySpec,
        files: &BTreeMap<Digest, PathBuf>,
    ) -> Result<(), ShipError> {
        self.with_blobs(&spec.files, files, || async {
            // What is too much for one message is laid out ahead.
            let mut batches = batches(&spec.files);
            let last = batches.pop().unwrap_or_default();
            for batch in batches {
                self.lay(batch).await?;
            }
            let spec = BinarySpec { files: last.to_vec(), ..spec.clone() };
            Ok(self.worker.prepare(within(LAY_DEADLINE), spec).await??)
        })
        .await
    }

    /// Lays out entries, in as many messages as it takes.
    async fn lay(&self, entries: &[TreeEntry]) -> Result<(), ShipError> {
        for batch in batches(entries) {
            let tree = TreeSpec { entries: batch.to_vec() };
            self.worker.lay_tree(within(LAY_DEADLINE), tree).await??;
        }
        Ok(())
    }

    /// Does `act` when the worker has all blobs that `entries` name. Blobs that it has lost
    /// meanwhile are sent once more; it may notice them one at a time.
    async fn with_blobs<F>(
        &self,
        entries: &[TreeEntry],
        files: &BTreeMap<Digest, PathBuf>,
        act: impl Fn() -> F,
    ) -> Result<(), ShipError>
    where
        F: Future<Output = Result<(), ShipError>>,
    {
        let digests: BTreeSet<Digest> = entries
            .iter()
            .filter_map(|entry| match entry.node {
                TreeNode::File { digest, .. } => Some(digest),
                TreeNode::Folder { .. } | TreeNode::Link { .. } => None,
            })
            .collect();
        self.ensure(&digests, files, false).await?;
        // Each blob is sent again once at most, so that a worker that loses all ends this too.
        for _ in 0..digests.len() {
            match act().await {
                Err(ShipError::Refused(refusal)) if refusal.kind == RefusalKind::MissingBlob => {
                    self.ensure(&digests, files, true).await?;
                }
                done => return done,
            }
        }
        act().await
    }

    /// Makes sure that the worker has these blobs; asks again about those that we believe it has
    /// if `doubt`.
    async fn ensure(
        &self,
        digests: &BTreeSet<Digest>,
        files: &BTreeMap<Digest, PathBuf>,
        doubt: bool,
    ) -> Result<(), ShipError> {
        // Everyone claims in the order of digests, so nobody waits in a circle; and a claim that
        // is dropped, with an error or its future, leaves the blob to the next.
        let mut claimed: BTreeMap<Digest, OwnedMutexGuard<bool>> = BTreeMap::new();
        for digest in digests {
            let blob = Arc::clone(self.state().blobs.entry(*digest).or_default());
            let guard = blob.lock_owned().await;
            if doubt || !*guard {
                claimed.insert(*digest, guard);
            }
        }
        let mut missing: Vec<Claimed> = Vec::new();
        let asked: Vec<Digest> = claimed.keys().copied().collect();
        for digests in asked.chunks(DIGESTS_MAX) {
            let lacks = self.worker.missing(within(LAY_DEADLINE), digests.to_vec()).await??;
            for digest in lacks {
                // A worker that names what it wasn't asked for is not listened to.
                missing.extend(claimed.remove(&digest).map(|guard| (digest, guard)));
            }
        }
        for (_, mut there) in claimed {
            *there = true;
        }
        let missing = self.prover.prove(&self.worker, missing, files).await;
        // After a failure no other blob is begun, but what is under way is sent to its end: half a
        // blob would be in the way when it is sent again.
        let failed: Mutex<Option<ShipError>> = Mutex::default();
        let failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        stream::iter(missing)
            .for_each_concurrent(BLOBS_IN_FLIGHT, |(digest, mut there)| async move {
                *there = false;
                match self.send(digest, files, || failure().is_some()).await {
                    Ok(sent) => *there = sent,
                    Err(error) => *failure() = Some(error),
                }
            })
            .await;
        failure().take().map_or(Ok(()), Err)
    }

    /// Sends a blob unless `stop` says so when it is its turn; once more if it arrives spoilt.
    /// Answers whether it was sent.
    async fn send(
        &self,
        digest: Digest,
        files: &BTreeMap<Digest, PathBuf>,
        stop: impl Fn() -> bool,
    ) -> Result<bool, ShipError> {
        // Never closed.
        let _slot = self.slots.acquire().await;
        if stop() {
            return Ok(false);
        }
        let path = files.get(&digest).ok_or(ShipError::Unknown(digest))?;
        match self.send_once(digest, path).await {
            Err(ShipError::Refused(refusal)) if refusal.kind == RefusalKind::Corrupt => {
                self.send_once(digest, path).await?;
            }
            done => done?,
        }
        Ok(true)
    }

    async fn send_once(&self, digest: Digest, path: &Path) -> Result<(), ShipError> {
        let read = |source| ShipError::Read { path: path.to_owned(), source };
        let changed = || ShipError::Changed { path: path.to_owned(), digest };
        let mut encoded = encode::start(path.to_owned(), digest, self.level).await.map_err(read)?;
        loop {
            let piece = encoded.next().await;
            // A premature end makes the worker forget what it has.
            let (data, last) = match &piece {
                Ok(Piece { data, last }) => (data.clone(), *last),
                Err(_) => (Bytes::new(), true),
            };
            let (size, encoding, bytes) = (encoded.size(), encoded.encoding(), data.len() as u64);
            let chunk = BlobChunk { digest, size, encoding, data, last };
            let reply = self.worker.put(within(PUT_DEADLINE), chunk).await?;
            let stored = reply == Ok(PutReply::Stored);
            self.count(bytes, u32::from(stored));
            self.state().arrived += if stored { size } else { 0 };
            match (piece, reply) {
                (_, Ok(PutReply::Stored)) => return Ok(()),
                (Err(EncodeError::Changed), _) => return Err(changed()),
                (Err(EncodeError::Read(error)), _) => return Err(read(error)),
                (Ok(piece), Ok(PutReply::More)) if !piece.last => {}
                (Ok(_), Ok(PutReply::More)) => {
                    let message =
                        format!("could not ship blob {digest}: the worker waits for more than all");
                    return Err(Refusal::new(RefusalKind::Invalid, message).into());
                }
                // It is right to refuse what isn't what it is said to be.
                (Ok(_), Err(refusal)) if refusal.kind == RefusalKind::Corrupt => {
                    let changed_meanwhile = encoded.changed().await;
                    return Err(if changed_meanwhile { changed() } else { refusal.into() });
                }
                (Ok(_), Err(refusal)) => return Err(refusal.into()),
            }
        }
    }

    fn count(&self, bytes: u64, blobs: u32) {
        let mut state = self.state();
        state.shipped.bytes += bytes;
        state.shipped.blobs += blobs;
        if let Some(progress) = &mut state.progress {
            progress(Shipped { bytes, blobs });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn within(deadline: Duration) -> Context {
    let mut context = context::current();
    context.deadline = Instant::now() + deadline;
    context
}

/// Entries in runs that fit into a message each.
fn batches(entries: &[TreeEntry]) -> Vec<&[TreeEntry]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        let target = match &entry.node {
            TreeNode::Link { target } => target.as_bytes().len(),
            TreeNode::Folder { .. } | TreeNode::File { .. } => 0,
        };
        let size = ENTRY_BYTES + entry.path.as_bytes().len() + target;
        if bytes + size > ENTRIES_BYTES_MAX && start < index {
            batches.push(&entries[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < entries.len() {
        batches.push(&entries[start..]);
    }
    batches
}

#[cfg(test)]
mod tests;
