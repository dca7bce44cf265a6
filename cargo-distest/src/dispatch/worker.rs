//! What is asked of one worker, each in a task of its own, answered by an [`Outcome`].

use std::sync::Arc;
use std::time::Duration;

use distest_worker::link;
use distest_worker::protocol::{AttemptId, AttemptSpec, BinaryKey, Lease, Refusal, Stop};
use tokio::sync::{mpsc, watch};

use super::Runnable;
use crate::fleet::Connection;
use crate::model::WorkerId;
use crate::ship::{ShipError, Shipper};
use crate::tree::Tree;

/// An answer to a short request.
const ANSWER: Duration = Duration::from_secs(10);

/// What came of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A binary and the tree are there.
    Ready { worker: WorkerId, binary: BinaryKey },
    /// The worker won't run a binary.
    Refused { worker: WorkerId, binary: BinaryKey, refusal: Refusal },
    /// Bytes went there.
    Shipped { worker: WorkerId, bytes: u64, blobs: u32 },
    /// These attempts came back unstarted.
    Revoked { worker: WorkerId, attempts: Vec<AttemptId> },
    /// A request was not answered: the worker is of no use any more.
    Gone { worker: WorkerId, reason: String },
}

/// A worker of this run.
pub(super) struct Connected {
    connection: Connection,
    shipper: Arc<Shipper>,
    tree: watch::Receiver<Option<Arc<Tree>>>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Connected {
    pub(super) fn new(
        connection: Connection,
        tree: watch::Receiver<Option<Arc<Tree>>>,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        let shipper = Arc::new(Shipper::new(connection.worker.clone()));
        Self { connection, shipper, tree, outcomes }
    }

    pub(super) fn name(&self) -> &str {
        &self.connection.name
    }

    pub(super) fn embedded(&self) -> bool {
        self.connection.embedded
    }

    /// Ships a binary and the tree. Answered by [`Outcome::Ready`], [`Outcome::Refused`] or
    /// [`Outcome::Gone`].
    pub(super) fn prepare(&self, runnable: Arc<Runnable>) {
        let (worker, embedded) = (self.connection.id, self.connection.embedded);
        let (shipper, mut tree) = (Arc::clone(&self.shipper), self.tree.clone());
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            let binary = runnable.key;
            let result = async {
                let shipped = shipper.binary(&runnable.parcel, embedded).await?;
                // The sender lives as long as the run: if it is gone, so is the answer's reader.
                let laid = tree.wait_for(Option::is_some).await;
                let tree = laid.ok().and_then(|tree| tree.clone()).filter(|_| !embedded);
                let more = match tree {
                    Some(tree) => shipper.tree(&tree).await?,
                    None => Default::default(),
                };
                Ok(shipped + more)
            };
            let outcome = match result.await {
                Ok(shipped) => {
                    if shipped.bytes > 0 {
                        let (bytes, blobs) = (shipped.bytes, shipped.blobs);
                        let _ = outcomes.send(Outcome::Shipped { worker, bytes, blobs }).await;
                    }
                    Outcome::Ready { worker, binary }
                }
                Err(ShipError::Refused(refusal)) => Outcome::Refused { worker, binary, refusal },
                Err(ShipError::Connection(reason)) => Outcome::Gone { worker, reason },
            };
            let _ = outcomes.send(outcome).await;
        });
    }

    /// Hands over attempts. Their reports answer; a refusal costs the worker.
    pub(super) fn lease(&self, attempts: Vec<AttemptSpec>) {
        let client = self.connection.worker.clone();
        let (worker, outcomes) = (self.connection.id, self.outcomes.clone());
        tokio::spawn(async move {
            let reason = match client.lease(link::context(ANSWER), Lease { attempts }).await {
                Ok(Ok(())) => return,
                Ok(Err(refusal)) => format!("it refused a lease: {refusal}"),
                Err(error) => format!("it did not take a lease: {error}"),
            };
            let _ = outcomes.send(Outcome::Gone { worker, reason }).await;
        });
    }

    /// Takes back attempts. Answered by [`Outcome::Revoked`] or [`Outcome::Gone`].
    pub(super) fn revoke(&self, attempts: Vec<AttemptId>) {
        let client = self.connection.worker.clone();
        let (worker, outcomes) = (self.connection.id, self.outcomes.clone());
        tokio::spawn(async move {
            let outcome = match client.revoke(link::context(ANSWER), attempts).await {
                Ok(attempts) => Outcome::Revoked { worker, attempts },
                Err(error) => {
                    let reason = format!("it did not answer: {error}");
                    Outcome::Gone { worker, reason }
                }
            };
            let _ = outcomes.send(outcome).await;
        });
    }

    /// Ends what runs there. The attempts' reports answer.
    pub(super) fn stop(&self, how: Stop) {
        let client = self.connection.worker.clone();
        let (worker, outcomes) = (self.connection.id, self.outcomes.clone());
        tokio::spawn(async move {
            if let Err(error) = client.stop(link::context(ANSWER), how).await {
                let reason = format!("it did not answer: {error}");
                let _ = outcomes.send(Outcome::Gone { worker, reason }).await;
            }
        });
    }

    /// Ends the session in order.
    pub(super) async fn close(self) {
        // A worker that doesn't answer ends the session when the connection does.
        let _ = self.connection.worker.close(link::context(ANSWER)).await;
    }
}
