//! Showing a worker that we hold what it may have from others already, in place of sending it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use distest_worker::digest::Digest;
use distest_worker::proof::Nonce;
use distest_worker::protocol::{PROOFS_MAX, PROVED_BYTES_MAX, Proof, WorkerClient};
use tokio::sync::OnceCell;

use super::{Claimed, LAY_DEADLINE, within};

/// Proves to one worker.
#[derive(Default)]
pub(super) struct Prover {
    /// The worker takes proofs, as far as we know.
    able: AtomicBool,
    /// What it wants them made with; none if there is nothing to be gained.
    nonce: OnceCell<Option<Nonce>>,
}

impl Prover {
    /// For a worker that takes proofs, or one that does not.
    pub(super) fn new(able: bool) -> Self {
        Self { able: AtomicBool::new(able), nonce: OnceCell::new() }
    }

    /// Proves what can be proved of `missing`; answers what is left to be sent. A worker that fails
    /// to take a proof gets all from then on: if it is gone, sending tells.
    pub(super) async fn prove(
        &self,
        worker: &WorkerClient,
        missing: Vec<Claimed>,
        files: &BTreeMap<Digest, PathBuf>,
    ) -> Vec<Claimed> {
        if !self.able.load(Ordering::Relaxed) || missing.is_empty() {
            return missing;
        }
        let challenge = async || {
            let challenge = worker.challenge(within(LAY_DEADLINE)).await.ok()?.ok()?;
            Nonce::from_bytes(&challenge.nonce)
        };
        let Some(nonce) = self.nonce.get_or_init(challenge).await else { return missing };
        let named = missing.iter().filter_map(|(digest, _)| Some((*digest, files.get(digest)?)));
        let mut files: Vec<(Digest, PathBuf)> =
            named.map(|(digest, path)| (digest, path.clone())).collect();
        let mut proved = BTreeSet::new();
        while !files.is_empty() {
            let nonce = nonce.clone();
            let making = tokio::task::spawn_blocking(move || (make(&nonce, &mut files), files));
            // Whatever stopped that thread, sending tells of it.
            let Ok((proofs, rest)) = making.await else { break };
            files = rest;
            let Ok(Ok(taken)) = worker.prove(within(LAY_DEADLINE), proofs).await else {
                self.able.store(false, Ordering::Relaxed);
                break;
            };
            proved.extend(taken);
        }
        let left = missing.into_iter().filter_map(|(digest, mut there)| {
            *there = proved.contains(&digest);
            (!*there).then_some((digest, there))
        });
        left.collect()
    }
}

/// Takes as many files as make up a call, whose last alone may go beyond the bound, and proves those that can be read.
fn make(nonce: &Nonce, files: &mut Vec<(Digest, PathBuf)>) -> Vec<Proof> {
    let (mut proofs, mut bytes) = (Vec::new(), 0);
    while bytes < PROVED_BYTES_MAX
        && proofs.len() < PROOFS_MAX
        && let Some((digest, path)) = files.pop()
    {
        // What can't be read is told when it is sent.
        let Ok(file) = File::open(path) else { continue };
        let Ok(size) = file.metadata().map(|metadata| metadata.len()) else { continue };
        let Ok(mac) = nonce.prove(file) else { continue };
        bytes += size;
        proofs.push(Proof { digest, size, mac: mac.as_bytes().to_vec().into() });
    }
    proofs
}
