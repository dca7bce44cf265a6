//! Getting test binaries and the tree to where one worker's tests will find them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distest_worker::protocol::{Refusal, RefusalKind};
use tokio::sync::{RwLock, watch};

use super::Runnable;
use crate::ship::{ShipError, Shipper};
use crate::tree::Tree;

/// Bytes that say how much gets there each second; fewer may travel for nothing.
const TELLING_BYTES: u64 = 1 << 20;

/// What became of a binary.
pub(super) enum Placed {
    /// It is there; if much had to be sent: how much, in what time.
    There { sent: Option<(u64, Duration)> },
    /// So many bytes are missing, which is too much.
    Lacks(u64),
}

/// The way to one worker. Clones share everything.
#[derive(Clone)]
pub(super) struct Placing {
    shipper: Shipper,
    tree: watch::Receiver<Option<Arc<Tree>>>,
    embedded: bool,
    /// Held by all that travels at once, or by one that needs all the room.
    room: Arc<RwLock<()>>,
}

impl Placing {
    pub(super) fn new(
        shipper: Shipper,
        tree: watch::Receiver<Option<Arc<Tree>>>,
        embedded: bool,
    ) -> Self {
        Self { shipper, tree, embedded, room: Arc::default() }
    }

    /// Gets a binary and the tree there, unless more than `bytes_max` bytes of it are missing. Where
    /// there is no room for it beside others it is tried again alone.
    pub(super) async fn place(
        &self,
        runnable: &Runnable,
        bytes_max: u64,
    ) -> Result<Placed, ShipError> {
        let beside_others = self.room.read().await;
        let placed = self.try_to(runnable, bytes_max).await;
        drop(beside_others);
        if !lacks_room(&placed) {
            return placed;
        }
        let _alone = self.room.write().await;
        self.try_to(runnable, bytes_max).await
    }

    async fn try_to(&self, runnable: &Runnable, bytes_max: u64) -> Result<Placed, ShipError> {
        let Self { shipper, embedded, .. } = self;
        if *embedded {
            shipper.binary(&runnable.parcel.in_place(), &BTreeMap::new()).await?;
            return Ok(Placed::There { sent: None });
        }
        let packed = runnable.parcel.pack().await.map_err(|failure| {
            ShipError::Refused(Refusal::new(RefusalKind::Invalid, failure.to_string()))
        })?;
        if bytes_max < u64::MAX {
            let lacks = shipper.lacks(&packed.spec).await?;
            if lacks > bytes_max {
                return Ok(Placed::Lacks(lacks));
            }
        }
        // What others send there meanwhile goes the same way.
        let (before, began) = (shipper.arrived(), Instant::now());
        shipper.binary(&packed.spec, &packed.files).await?;
        let sent = Some((shipper.arrived() - before, began.elapsed()));
        let sent = sent.filter(|(bytes, _)| *bytes >= TELLING_BYTES);
        // The sender lives as long as the run: if it is gone, so is the answer's reader.
        let mut tree = self.tree.clone();
        let laid = tree.wait_for(Option::is_some).await;
        if let Some(tree) = laid.ok().and_then(|tree| tree.clone()) {
            shipper.tree(&tree).await?;
        }
        Ok(Placed::There { sent })
    }
}

fn lacks_room(placed: &Result<Placed, ShipError>) -> bool {
    let lacks = |refusal: &Refusal| refusal.kind == RefusalKind::OutOfResources;
    matches!(placed, Err(ShipError::Refused(refusal)) if lacks(refusal))
}
