//! Brings files to the client that its tests created or changed here.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::files::blocking;
use crate::globs::Globs;
use crate::link::{self, DEADLINE_BULK};
use crate::protocol::{
    CHUNK_BYTES_MAX, COLLECTED_FILE_BYTES_MAX, COLLECTED_FILES_MAX, ClientClient, CollectedPiece,
    Refusal, RefusalKind, SessionSpec, WRITERS_MAX, Writer,
};
use crate::sandbox::changes::{Change, ChangeKind, Written};
use crate::sandbox::left::{Left, Wanted};
use crate::sandbox::{Created, Sandbox};

/// Files that one session brings to its client: one more than it takes, so that it says so.
const FILES_MAX: usize = COLLECTED_FILES_MAX + 1;

/// Files of different names are brought at once, as many as this; of one name one after the other.
const LANES: usize = 16;

/// What a session's client wants to have.
pub(super) struct Collect {
    wanted: Arc<Wanted>,
    at_once: bool,
    client: ClientClient,
    files: AtomicUsize,
    /// The client takes no more.
    over: AtomicBool,
    lanes: [tokio::sync::Mutex<()>; LANES],
    /// What was brought from where nothing tells what an attempt wrote: its inode, size and times.
    known: Mutex<BTreeMap<PathBuf, Known>>,
}

type Known = (u64, u64, i64, i64);

/// What attempts write in one sandbox, and who of them wrote what.
pub(super) struct Layer {
    written: Arc<Written>,
    writers: Mutex<BTreeMap<PathBuf, Vec<Writer>>>,
}

impl Layer {
    pub(super) fn new(written: Arc<Written>) -> Self {
        Self { written, writers: Mutex::default() }
    }

    /// Whether it is this one.
    pub(super) fn is(&self, written: &Arc<Written>) -> bool {
        Arc::ptr_eq(&self.written, written)
    }

    /// Takes note of what an attempt left.
    pub(super) fn note(&self, label: &str, left: &[Left]) {
        let mut writers = self.writers();
        for Left { path, digest, adds, .. } in left {
            let of_file = writers.entry(path.clone()).or_default();
            if of_file.len() == WRITERS_MAX {
                // The last one matters.
                of_file.pop();
            }
            of_file.push(Writer { label: label.to_owned(), digest: *digest, adds: *adds });
        }
    }

    /// Some files in it, opened.
    fn open<'a>(&self, files: impl Iterator<Item = (&'a Path, u32)>) -> Vec<Found> {
        let writers = self.writers();
        let open = |(path, mode): (&Path, u32)| {
            let file = self.written.open(path).ok()?;
            let writers = writers.get(path).cloned().unwrap_or_default();
            Some(Found { file: Created { path: path.to_owned(), mode, file }, writers })
        };
        files.filter_map(open).take(FILES_MAX).collect()
    }

    fn writers(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Vec<Writer>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file to be brought.
struct Found {
    file: Created,
    writers: Vec<Writer>,
}

impl Collect {
    /// None if the client wants nothing.
    pub(super) fn new(
        spec: &SessionSpec,
        client: &ClientClient,
    ) -> Result<Option<Arc<Self>>, Refusal> {
        if spec.collect.is_empty() || spec.in_place {
            return Ok(None);
        }
        let globs = Globs::new(&spec.collect).map_err(|why| {
            let message = format!("could not use the patterns of files to bring back: {why}");
            Refusal::new(RefusalKind::Invalid, message)
        })?;
        let roots = spec.roots.iter().map(|root| root.as_path().to_owned()).collect();
        Ok(Some(Arc::new(Self {
            wanted: Arc::new(Wanted::new(globs, roots)),
            at_once: spec.collect_at_once,
            client: client.clone(),
            files: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            known: Mutex::default(),
        })))
    }

    /// What it is about.
    pub(super) fn wanted(&self) -> Arc<Wanted> {
        Arc::clone(&self.wanted)
    }

    /// Each attempt's end waits for what it left.
    pub(super) fn is_at_once(&self) -> bool {
        self.at_once
    }

    /// Brings what one attempt left in a layer.
    pub(super) async fn left(self: Arc<Self>, layer: Arc<Layer>, left: Vec<Left>) {
        let opening = move || layer.open(left.iter().map(|left| (&*left.path, left.mode)));
        self.bring(blocking(opening).await).await;
    }

    /// Brings what has changed where attempts write into the laid-out files themselves, when one
    /// has ended.
    pub(super) async fn in_place(self: Arc<Self>, label: String, sandbox: Arc<Sandbox>) {
        let this = Arc::clone(&self);
        let writer = Writer { label, digest: None, adds: false };
        let found = blocking(move || {
            let mut known = this.known.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = sandbox.created(this.wanted.globs(), FILES_MAX);
            changed.retain(|created| is_news(&mut known, created));
            let found = changed.into_iter();
            found.map(|file| Found { file, writers: vec![writer.clone()] }).collect()
        });
        self.bring(found.await).await;
    }

    /// Brings what attempts wrote into a layer of their own, when no more will.
    pub(super) async fn written(self: Arc<Self>, layer: Arc<Layer>) {
        if self.at_once {
            return;
        }
        let this = Arc::clone(&self);
        let found = blocking(move || this.in_layer(&layer)).await;
        self.bring(found).await;
    }

    /// Brings what has not been brought, at the session's end.
    pub(super) async fn rest(self: Arc<Self>, layers: Vec<Arc<Layer>>, sandbox: Arc<Sandbox>) {
        for layer in layers {
            Arc::clone(&self).written(layer).await;
        }
        if !sandbox.discards_writes() && !self.at_once {
            let this = Arc::clone(&self);
            let created = blocking(move || sandbox.created(this.wanted.globs(), FILES_MAX)).await;
            let found = created.into_iter().map(|file| Found { file, writers: Vec::new() });
            self.bring(found.collect()).await;
        }
    }

    fn in_layer(&self, layer: &Layer) -> Vec<Found> {
        // What can't be listed can't be brought.
        let changes = layer.written.list().unwrap_or_default();
        let wanted = changes.iter().filter_map(|Change { path, kind, .. }| match kind {
            ChangeKind::File { mode, .. } if self.wanted.holds(path) => Some((&**path, *mode)),
            _ => None,
        });
        layer.open(wanted)
    }

    async fn bring(&self, found: Vec<Found>) {
        for Found { file: Created { path, mode, file }, writers } in found {
            let mut hasher = DefaultHasher::new();
            path.hash(&mut hasher);
            let _turn = self.lanes[hasher.finish() as usize % LANES].lock().await;
            if self.over.load(Ordering::Relaxed)
                || self.files.fetch_add(1, Ordering::Relaxed) >= FILES_MAX
            {
                return;
            }
            if let Err(Stop) = self.bring_one(&path, mode, file, writers).await {
                return self.over.store(true, Ordering::Relaxed);
            }
        }
    }

    async fn bring_one(
        &self,
        path: &Path,
        mode: u32,
        file: File,
        writers: Vec<Writer>,
    ) -> Result<(), Stop> {
        let mut piece = CollectedPiece {
            path: path.into(),
            mode,
            offset: 0,
            data: Bytes::new(),
            last: false,
            too_large: None,
            writers,
        };
        let known = file.metadata().map_or(0, |metadata| metadata.len());
        let mut size = known;
        let mut file = file;
        loop {
            if size > COLLECTED_FILE_BYTES_MAX {
                let (offset, data) = (0, Bytes::new());
                let told = CollectedPiece { offset, data, too_large: Some(size), ..piece };
                return self.send(told).await.map(drop);
            }
            // What can't be read on is left out; the client has half of it and forgets it.
            let Ok((rest, data)) = next(file).await else { return Ok(()) };
            file = rest;
            let last = data.len() < CHUNK_BYTES_MAX;
            let length = data.len() as u64;
            // It may have grown meanwhile.
            size = known.max(piece.offset + length);
            if size <= COLLECTED_FILE_BYTES_MAX {
                let next = CollectedPiece { data, last, ..piece.clone() };
                if !self.send(next).await? || last {
                    return Ok(());
                }
                piece.offset += length;
                piece.writers.clear();
            }
        }
    }

    /// Whether the client wants more of this file.
    async fn send(&self, piece: CollectedPiece) -> Result<bool, Stop> {
        match self.client.collect(link::context(DEADLINE_BULK), piece).await {
            Ok(Ok(())) => Ok(true),
            // Not of this one, but perhaps others.
            Ok(Err(refusal)) if refusal.kind != RefusalKind::OutOfResources => Ok(false),
            Ok(Err(_)) | Err(_) => Err(Stop),
        }
    }
}

/// Whether a file is not as it was when it was brought.
fn is_news(known: &mut BTreeMap<PathBuf, Known>, created: &Created) -> bool {
    let Ok(metadata) = created.file.metadata() else { return false };
    let now = (metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec());
    known.insert(created.path.clone(), now) != Some(now)
}

/// The client takes no more files, or is gone.
struct Stop;

/// The next bytes: a whole piece, or the last.
async fn next(file: File) -> io::Result<(File, Bytes)> {
    blocking(move || {
        let mut data = Vec::with_capacity(CHUNK_BYTES_MAX);
        (&file).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut data)?;
        Ok((file, data.into()))
    })
    .await
}
