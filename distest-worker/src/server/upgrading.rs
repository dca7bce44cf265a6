//! What only who administers a worker asks of it: another executable, room in the store.

use std::sync::{Arc, Mutex, PoisonError};

use super::WorkerShared;
use super::files::blocking;
use crate::protocol::{ExecutablePiece, Freed, Refusal, RefusalKind, UpgradeReply};
use crate::store::storage_refusal;
use crate::upgrade::{self, Incoming};

/// A connection's executable on its way in; what is unfinished goes with the connection.
pub(super) type Arriving = Arc<Mutex<Option<Incoming>>>;

/// Takes the next piece. With the last, the worker drains.
pub(super) async fn take(
    worker: &Arc<WorkerShared>,
    arriving: &Arriving,
    piece: ExecutablePiece,
) -> Result<UpgradeReply, Refusal> {
    let Some(upgrades) = worker.upgrades() else {
        let message = "could not upgrade it: it is no worker that listens for clients";
        let hint = "one that ssh starts is copied when it is needed; start any other again with \
                    the new executable";
        return Err(Refusal::new(RefusalKind::Incompatible, message).with_hint(hint));
    };
    if worker.drains() {
        let message = "could not upgrade it: it finishes what runs, and takes nothing more";
        return Err(Refusal::new(RefusalKind::Closed, message));
    }
    let (shared, arriving) = (Arc::clone(worker), Arc::clone(arriving));
    let taken = blocking(move || {
        let Some(upgrades) = shared.upgrades() else { return Ok(Taken::Same) };
        let own = upgrades.is_own(piece.digest).map_err(|error| {
            storage_refusal("could not read its own executable".to_owned(), &error)
        })?;
        if own {
            return Ok(Taken::Same);
        }
        if piece.data.is_empty() {
            return Ok(Taken::Some);
        }
        let mut arriving = arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = Incoming::take(&mut arriving, upgrades.scratch(), &piece)?;
        Ok(whole.map_or(Taken::Some, |whole| Taken::All(Box::new(whole))))
    });
    match taken.await? {
        Taken::Same => Ok(UpgradeReply::Same {}),
        Taken::Some => Ok(UpgradeReply::More {}),
        Taken::All(incoming) => {
            upgrades.choose(*incoming).await?;
            worker.drain();
            Ok(UpgradeReply::Begun {})
        }
    }
}

/// How much of an executable is here.
enum Taken {
    /// All of it, all the time: it runs.
    Same,
    Some,
    All(Box<Incoming>),
}

/// Removes what no session uses.
pub(super) async fn collect_garbage(worker: &Arc<WorkerShared>) -> Result<Freed, Refusal> {
    let Some(store) = worker.config().store.clone() else { return Ok(Freed::default()) };
    blocking(move || {
        let freed = store.evict_unused().map_err(|error| {
            storage_refusal("could not remove what is not used".to_owned(), &error)
        })?;
        let executables = upgrade::prune(&store);
        Ok(Freed { blobs: freed.blobs + executables.blobs, bytes: freed.bytes + executables.bytes })
    })
    .await
}
