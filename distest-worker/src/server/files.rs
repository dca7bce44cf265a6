//! The files of a connection: blobs that come in, the sandbox that they are laid out in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;

use crate::compat::Loader;
use crate::digest::Digest;
use crate::identity::PublicKey;
use crate::proof::Nonce;
use crate::protocol::{
    BinarySpec, BlobChunk, Challenge, OsText, PROOFS_MAX, PROVED_BYTES_MAX, Proof, PutReply,
    Refusal, RefusalKind, SessionReady, SessionSpec, TestTime, TreeEntry, TreeNode,
};
use crate::sandbox::Sandbox;
use crate::sandbox::host::Host;
use crate::store::{Claim, Owned, Store, Times, Upload, not_here};

use super::pins::Pins;

/// Blobs that one connection sends at a time.
const UPLOADS_MAX: usize = 64;

/// A blob on its way in. Pieces wait for each other in the order in which they arrived.
type Incoming = Arc<AsyncMutex<Progress>>;

/// How far a blob has come.
#[derive(Default)]
enum Progress {
    /// Nothing yet.
    #[default]
    Awaited,
    /// So far.
    Begun(Box<Upload>),
    /// It can't be taken. Pieces that had arrived already meet this: taken for a beginning they
    /// would only make a corrupt blob.
    Refused(Refusal),
    /// It is there.
    Stored,
}

/// What a connection has and lays out.
pub(super) struct Files {
    store: Option<Store>,
    /// What of the store the client may use.
    owned: Option<Owned>,
    /// What it takes of the disk beside that.
    claim: Option<Arc<Claim>>,
    /// What its proofs are made with.
    nonce: OnceLock<Nonce>,
    /// One call at a time, so that a connection stands in the store's line but once.
    proving: AsyncMutex<()>,
    in_place: bool,
    host: Arc<Host>,
    uploads: Mutex<BTreeMap<Digest, Incoming>>,
    /// Blobs that the client counts on are not evicted before they are laid out.
    pins: Arc<Mutex<Pins>>,
    sandbox: OnceLock<Arc<Sandbox>>,
    /// What is known of how long its tests take, where that is kept, and of which project they are.
    times: Option<Times>,
    project: OnceLock<String>,
}

impl Files {
    /// For the client with this key, or for one that needs none.
    pub(super) fn new(
        store: Option<Store>,
        key: Option<&PublicKey>,
        in_place: bool,
        host: Arc<Host>,
    ) -> Self {
        let name = key.map(PublicKey::file_name);
        Self {
            owned: store.as_ref().map(|store| store.owned(name.as_deref())),
            claim: store.as_ref().map(|store| Arc::new(store.claim(name.as_deref()))),
            times: store.as_ref().map(|store| store.times(name.as_deref())),
            project: OnceLock::new(),
            nonce: OnceLock::new(),
            proving: AsyncMutex::default(),
            store,
            in_place,
            host,
            uploads: Mutex::default(),
            pins: Arc::default(),
            sandbox: OnceLock::new(),
        }
    }

    /// Makes the session's sandbox.
    pub(super) async fn open(&self, spec: &SessionSpec) -> Result<Arc<Sandbox>, Refusal> {
        let sandbox = match &self.store {
            _ if spec.in_place && self.in_place => Sandbox::in_place(),
            _ if spec.in_place => {
                let message = "this worker doesn't use files where they lie: it isn't embedded";
                return Err(Refusal::new(RefusalKind::Forbidden, message));
            }
            Some(store) => {
                static SESSIONS: AtomicU64 = AtomicU64::new(0);
                let number = SESSIONS.fetch_add(1, Ordering::Relaxed);
                let dir = store.scratch().join(format!("session-{number}"));
                let roots = spec.roots.clone();
                let host = match spec.hands {
                    true => Arc::new(Host::plain()),
                    false => Arc::clone(&self.host),
                };
                blocking(move || Sandbox::on(host, dir, &roots)).await?
            }
            None => {
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

    /// Says what is known of how long a session's tests take.
    pub(super) async fn lend_times(&self, spec: &SessionSpec, ready: &mut SessionReady) {
        let Some(times) = self.times.clone().filter(|_| !spec.project.is_empty()) else { return };
        let project = self.project.get_or_init(|| spec.project.clone()).clone();
        let known = blocking(move || times.read(&project)).await;
        ready.times_known = Some(known.len() as u32);
        if spec.lend_times {
            ready.times = known;
        }
    }

    /// Keeps how long tests took.
    pub(super) async fn remember(&self, taken: Vec<TestTime>) -> Result<(), Refusal> {
        let (Some(times), Some(project)) = (self.times.clone(), self.project.get().cloned()) else {
            let message = "could not keep tests' times: the session is of no project";
            return Err(Refusal::new(RefusalKind::Invalid, message));
        };
        blocking(move || times.add(&project, taken)).await;
        Ok(())
    }

    pub(super) async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Refusal> {
        let (owned, claim) = (self.owned()?, self.claim()?);
        let pins = Arc::clone(&self.pins);
        let missing = blocking(move || {
            locked(&pins).add(&claim, &digests);
            owned.missing(&digests)
        });
        Ok(missing.await)
    }

    /// What proofs are to be made with.
    pub(super) async fn challenge(&self) -> Result<Challenge, Refusal> {
        let owned = self.owned()?;
        if !blocking(move || owned.others_have_some()).await {
            return Ok(Challenge::default());
        }
        // Without random numbers nothing can be proved, and all is sent.
        let fresh = Nonce::new();
        let nonce = fresh.map(|fresh| self.nonce.get_or_init(|| fresh));
        let bytes = nonce.map(|nonce| Bytes::copy_from_slice(nonce.as_bytes()));
        Ok(Challenge { nonce: bytes.unwrap_or_default() })
    }

    /// Takes proofs; answers what was proved.
    pub(super) async fn prove(&self, proofs: Vec<Proof>) -> Result<Vec<Digest>, Refusal> {
        let owned = self.owned()?;
        let Some(nonce) = self.nonce.get().cloned().filter(|_| proofs.len() <= PROOFS_MAX) else {
            let message = format!("could not take {} proofs: more than asked for", proofs.len());
            return Err(Refusal::new(RefusalKind::Invalid, message));
        };
        if is_too_much(&proofs) {
            let message = format!(
                "could not take {} proofs: all but the largest are of more than {PROVED_BYTES_MAX} \
                 bytes",
                proofs.len()
            );
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        let _turn = self.proving.lock().await;
        let turn = self.store()?.proving().await;
        // If nobody waits for the answer any more, this is dropped.
        let gone = Gone::default();
        let seen = Arc::clone(&gone.0);
        let proved = blocking(move || {
            // Whoever is next waits for the work to end, not for the answer.
            let _turn = turn;
            owned.prove(&nonce, &proofs, &seen)
        });
        Ok(proved.await)
    }

    /// Takes the next piece of a blob. The turn is taken before the first `await`, so pieces keep
    /// the order in which they arrived.
    pub(super) async fn put(&self, chunk: BlobChunk) -> Result<PutReply, Refusal> {
        let (store, owned) = (self.store()?, self.owned()?);
        let (digest, last) = (chunk.digest, chunk.last);
        let incoming = self.incoming(digest)?;
        let mut progress = Arc::clone(&incoming).lock_owned().await;
        let pins = Arc::clone(&self.pins);
        let reply = blocking(move || {
            let next = match std::mem::take(&mut *progress) {
                // What only others have sent is taken as if it were not here.
                Progress::Awaited if owned.missing(&[digest]).is_empty() => Progress::Stored,
                Progress::Awaited => match store.begin(digest, chunk.size, chunk.encoding) {
                    Ok(upload) => take_piece(Box::new(upload), &chunk, &owned),
                    Err(refusal) => Progress::Refused(refusal),
                },
                Progress::Begun(upload) => take_piece(upload, &chunk, &owned),
                over @ (Progress::Refused(_) | Progress::Stored) => over,
            };
            let reply = match &next {
                Progress::Refused(refusal) => {
                    if refusal.kind == RefusalKind::OutOfResources {
                        locked(&pins).yield_to(digest);
                    }
                    Err(refusal.clone())
                }
                Progress::Stored => Ok(PutReply::Stored),
                Progress::Awaited | Progress::Begun(_) => Ok(PutReply::More),
            };
            *progress = next;
            reply
        })
        .await;
        if last || reply != Ok(PutReply::More) {
            self.forget(digest, &incoming);
        }
        reply
    }

    /// The blob's next piece, if any, begins it anew: once no piece that has arrived waits any more.
    fn forget(&self, digest: Digest, incoming: &Incoming) {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let current = uploads.get(&digest).is_some_and(|it| Arc::ptr_eq(it, incoming));
        // The map has one, the caller has one, and so has each piece that waits.
        if current && Arc::strong_count(incoming) == 2 {
            uploads.remove(&digest);
        }
    }

    pub(super) async fn lay(&self, entries: Vec<TreeEntry>) -> Result<(), Refusal> {
        let (claim, owned, sandbox) = (self.claim()?, self.owned()?, self.sandbox()?);
        let pins = Arc::clone(&self.pins);
        blocking(move || {
            let digests = entries.iter().filter_map(|entry| match &entry.node {
                TreeNode::File { digest, .. } => Some(*digest),
                TreeNode::Folder { .. } | TreeNode::Link { .. } => None,
            });
            let digests: BTreeSet<Digest> = digests.collect();
            match owned.lacks(&digests) {
                Some(digest) => Err(not_here(digest)),
                None => {
                    sandbox.lay(&claim, &entries)?;
                    locked(&pins).laid(&digests);
                    Ok(())
                }
            }
        })
        .await
    }

    /// Lays out a binary's files and folders.
    pub(super) async fn prepare(&self, binary: &BinarySpec) -> Result<(), Refusal> {
        let sandbox = self.sandbox()?;
        if !binary.files.is_empty() {
            self.lay(binary.files.clone()).await?;
        }
        let binary = binary.clone();
        blocking(move || {
            sandbox.make_writable(&binary.writable)?;
            // What an embedded worker runs was listed here, or is about to be.
            if binary.files.is_empty() { Ok(()) } else { loadable(&binary, &sandbox) }
        })
        .await
    }

    pub(super) fn sandbox(&self) -> Result<Arc<Sandbox>, Refusal> {
        let closed = || Refusal::new(RefusalKind::Closed, "no session is open");
        self.sandbox.get().cloned().ok_or_else(closed)
    }

    fn store(&self) -> Result<Store, Refusal> {
        self.store.clone().ok_or_else(embedded)
    }

    fn owned(&self) -> Result<Owned, Refusal> {
        self.owned.clone().ok_or_else(embedded)
    }

    fn claim(&self) -> Result<Arc<Claim>, Refusal> {
        self.claim.clone().ok_or_else(embedded)
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

/// Whoever holds this may wait for the store: not for the runtime's threads.
fn locked(pins: &Mutex<Pins>) -> MutexGuard<'_, Pins> {
    pins.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says when it is dropped.
#[derive(Default)]
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether proofs are more work than a call may be. A blob of any size may be proved.
fn is_too_much(proofs: &[Proof]) -> bool {
    let sizes = || proofs.iter().map(|proof| u128::from(proof.size));
    sizes().sum::<u128>() - sizes().max().unwrap_or_default() > u128::from(PROVED_BYTES_MAX)
}

fn embedded() -> Refusal {
    Refusal::new(RefusalKind::Invalid, "an embedded worker takes no files")
}

fn take_piece(mut upload: Box<Upload>, chunk: &BlobChunk, owned: &Owned) -> Progress {
    let taken = upload.push(&chunk.data);
    match taken {
        Ok(()) if !chunk.last => Progress::Begun(upload),
        Ok(()) => match upload.finish() {
            Ok(()) => {
                owned.add(&[chunk.digest]);
                Progress::Stored
            }
            Err(refusal) => Progress::Refused(refusal),
        },
        Err(refusal) => Progress::Refused(refusal),
    }
}

/// Whether the binary and the programs that travel with it find all that they are linked with.
fn loadable(binary: &BinarySpec, sandbox: &Sandbox) -> Result<(), Refusal> {
    let named = |(name, _): &&(OsText, OsText)| name.as_os_str() == "LD_LIBRARY_PATH";
    let library_path = binary.env.iter().find(named).map(|(_, value)| value.as_os_str());
    let loader = Loader {
        library_path: library_path
            .map(|path| std::env::split_paths(path).collect())
            .unwrap_or_default(),
        on_disk: &|path| sandbox.on_disk(path),
    };
    for program in programs(binary) {
        loader.check(program).map_err(|why| {
            let message = format!("it can't be started here: {why}");
            let hint = "install what is missing on that worker, or run these tests elsewhere";
            Refusal::new(RefusalKind::Incompatible, message).with_hint(hint)
        })?;
    }
    Ok(())
}

/// The binary, and executables beside it. What lies in folders that travel as a whole is data.
fn programs(binary: &BinarySpec) -> impl Iterator<Item = &Path> {
    let folders: Vec<&Path> = binary
        .files
        .iter()
        .filter(|entry| matches!(entry.node, TreeNode::Folder { .. }))
        .map(|entry| entry.path.as_path())
        .collect();
    let executables = binary.files.iter().filter(move |entry| {
        let executable = matches!(entry.node, TreeNode::File { mode, .. } if mode & 0o111 != 0);
        executable && !folders.iter().any(|folder| entry.path.as_path().starts_with(folder))
    });
    let beside = executables.map(|entry| entry.path.as_path());
    [binary.program.as_path()].into_iter().chain(beside)
}

/// Runs what blocks or computes without holding up everything else.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
