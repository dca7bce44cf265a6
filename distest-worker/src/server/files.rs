//! The files of a connection: blobs that come in, the sandbox that they are laid out in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Mutex as AsyncMutex;

use crate::digest::Digest;
use crate::protocol::{
    BinarySpec, BlobChunk, PutReply, Refusal, RefusalKind, SessionSpec, TreeEntry,
};
use crate::sandbox::Sandbox;
use crate::store::{Pin, Store, Upload};

/// Blobs that one connection sends at a time.
const UPLOADS_MAX: usize = 64;

/// A blob on its way in. Pieces wait for each other in the order in which they arrived.
type Incoming = Arc<AsyncMutex<Option<Upload>>>;

/// What a connection has and lays out.
pub(super) struct Files {
    store: Option<Store>,
    uploads: Mutex<BTreeMap<Digest, Incoming>>,
    /// Blobs that the client counts on are not evicted while it is there.
    pins: Mutex<Vec<Pin>>,
    sandbox: OnceLock<Arc<Sandbox>>,
}

impl Files {
    pub(super) fn new(store: Option<Store>) -> Self {
        Self {
            store,
            uploads: Mutex::default(),
            pins: Mutex::default(),
            sandbox: OnceLock::new(),
        }
    }

    /// Makes the session's sandbox.
    pub(super) async fn open(&self, spec: &SessionSpec) -> Result<Arc<Sandbox>, Refusal> {
        let sandbox = match (&self.store, spec.in_place) {
            (None, true) => Sandbox::in_place(),
            (Some(store), false) => {
                static SESSIONS: AtomicU64 = AtomicU64::new(0);
                let number = SESSIONS.fetch_add(1, Ordering::Relaxed);
                let dir = store.scratch().join(format!("session-{number}"));
                let roots = spec.roots.clone();
                blocking(move || Sandbox::at(dir, &roots)).await?
            }
            (Some(_), true) => {
                let message = "this worker doesn't use files where they lie: it isn't embedded";
                return Err(Refusal::new(RefusalKind::Forbidden, message));
            }
            (None, false) => {
                let message = "this worker has no store: it is embedded";
                return Err(Refusal::new(RefusalKind::Invalid, message));
            }
        };
        let sandbox = Arc::new(sandbox);
        match self.sandbox.set(Arc::clone(&sandbox)) {
            Ok(()) => Ok(sandbox),
            Err(_) => Err(Refusal::new(RefusalKind::Invalid, "the session is open already")),
        }
    }

    pub(super) async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Refusal> {
        let store = self.store()?;
        let (pin, missing) = blocking(move || (store.pin(&digests), store.missing(&digests))).await;
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).push(pin);
        Ok(missing)
    }

    /// Takes the next piece of a blob. The turn is taken before the first `await`, so pieces keep
    /// the order in which they arrived.
    pub(super) async fn put(&self, chunk: BlobChunk) -> Result<PutReply, Refusal> {
        let store = self.store()?;
        let digest = chunk.digest;
        let incoming = self.incoming(digest)?;
        let mut upload = incoming.lock_owned().await;
        let work = move || {
            if upload.is_none() {
                if store.contains(digest) {
                    return (Ok(PutReply::Stored), true);
                }
                match store.begin(digest, chunk.size, chunk.encoding) {
                    Ok(begun) => *upload = Some(begun),
                    Err(refusal) => return (Err(refusal), true),
                }
            }
            let Some(mut begun) = upload.take() else { return (Ok(PutReply::More), false) };
            match begun.push(&chunk.data) {
                Err(refusal) => (Err(refusal), true),
                Ok(()) if chunk.last => (begun.finish().map(|()| PutReply::Stored), true),
                Ok(()) => {
                    *upload = Some(begun);
                    (Ok(PutReply::More), false)
                }
            }
        };
        let (reply, over) = blocking(work).await;
        if over {
            self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        }
        reply
    }

    pub(super) async fn lay(&self, entries: Vec<TreeEntry>) -> Result<(), Refusal> {
        let (store, sandbox) = (self.store()?, self.sandbox()?);
        blocking(move || sandbox.lay(&store, &entries)).await
    }

    /// Lays out a binary's files and folders.
    pub(super) async fn prepare(&self, binary: &BinarySpec) -> Result<(), Refusal> {
        let sandbox = self.sandbox()?;
        if !binary.files.is_empty() {
            self.lay(binary.files.clone()).await?;
        }
        let writable = binary.writable.clone();
        blocking(move || sandbox.make_writable(&writable)).await
    }

    pub(super) fn sandbox(&self) -> Result<Arc<Sandbox>, Refusal> {
        let closed = || Refusal::new(RefusalKind::Closed, "no session is open");
        self.sandbox.get().cloned().ok_or_else(closed)
    }

    fn store(&self) -> Result<Store, Refusal> {
        let none = || Refusal::new(RefusalKind::Invalid, "an embedded worker takes no files");
        self.store.clone().ok_or_else(none)
    }

    fn incoming(&self, digest: Digest) -> Result<Incoming, Refusal> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if uploads.len() >= UPLOADS_MAX && !uploads.contains_key(&digest) {
            let message = format!("more than {UPLOADS_MAX} blobs are on their way");
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        Ok(Arc::clone(uploads.entry(digest).or_default()))
    }
}

/// Runs what blocks or computes without holding up everything else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
