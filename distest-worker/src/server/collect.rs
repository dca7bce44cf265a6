//! Brings files to the client that its tests created or changed here.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::files::blocking;
use crate::globs::Globs;
use crate::link::{self, DEADLINE_BULK};
use crate::protocol::{
    CHUNK_BYTES_MAX, COLLECTED_FILE_BYTES_MAX, ClientClient, CollectedPiece, Refusal, RefusalKind,
    SessionSpec,
};
use crate::sandbox::changes::{Change, ChangeKind, Written};
use crate::sandbox::{Created, Sandbox};

/// Files that one session brings to its client.
const FILES_MAX: usize = 10_000;

/// What a session's client wants to have.
pub(super) struct Collect {
    globs: Globs,
    roots: Vec<PathBuf>,
    client: ClientClient,
    files: AtomicUsize,
    /// The client takes no more.
    over: AtomicBool,
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
        let (files, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let roots = spec.roots.iter().map(|root| root.as_path().to_owned()).collect();
        Ok(Some(Arc::new(Self { globs, roots, client: client.clone(), files, over })))
    }

    /// Brings what attempts wrote into a layer of their own, when no more will.
    pub(super) async fn written(self: Arc<Self>, written: Arc<Written>) {
        let this = Arc::clone(&self);
        let created = blocking(move || this.in_layer(&written)).await;
        self.bring(created).await;
    }

    /// Brings what has not been brought, at the session's end.
    pub(super) async fn rest(self: Arc<Self>, layers: Vec<Arc<Written>>, sandbox: Arc<Sandbox>) {
        for layer in layers {
            Arc::clone(&self).written(layer).await;
        }
        if !sandbox.discards_writes() {
            let this = Arc::clone(&self);
            let created = blocking(move || sandbox.created(&this.globs, FILES_MAX)).await;
            self.bring(created).await;
        }
    }

    fn in_layer(&self, written: &Written) -> Vec<Created> {
        // What can't be listed can't be brought.
        let changes = written.list().unwrap_or_default().into_iter();
        let wanted = changes.filter_map(|Change { path, kind, .. }| {
            let ChangeKind::File { mode, .. } = kind else { return None };
            let root = self.roots.iter().find(|root| path.starts_with(root))?;
            let wanted = self.globs.matches(&path, path.strip_prefix(root).ok());
            wanted.then(|| Some(Created { file: written.open(&path).ok()?, path, mode }))?
        });
        wanted.take(FILES_MAX).collect()
    }

    async fn bring(&self, created: Vec<Created>) {
        for Created { path, mode, file } in created {
            if self.over.load(Ordering::Relaxed)
                || self.files.fetch_add(1, Ordering::Relaxed) >= FILES_MAX
            {
                return;
            }
            if let Err(Stop) = self.bring_one(&path, mode, file).await {
                return self.over.store(true, Ordering::Relaxed);
            }
        }
    }

    async fn bring_one(&self, path: &Path, mode: u32, file: File) -> Result<(), Stop> {
        let mut piece = CollectedPiece {
            path: path.into(),
            mode,
            offset: 0,
            data: Bytes::new(),
            last: false,
            too_large: None,
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
