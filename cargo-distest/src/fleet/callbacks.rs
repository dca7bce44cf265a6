//! The client's end of a session: what workers call.

use std::sync::Arc;

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::protocol::{
    Client, CollectedPiece, Forward, ForwardedId, ForwardedPiece, OutputChunk, Refusal,
    RefusalKind, Report,
};
use tarpc::context::Context;
use tokio::sync::{mpsc, oneshot};

use super::FleetMessage;
use super::forward::Forwards;
use crate::collect::Collector;
use crate::model::WorkerId;
use crate::wary;

/// Hands on what one worker says; answers when it has been taken.
#[derive(Clone)]
pub(super) struct Callbacks {
    pub(super) worker: WorkerId,
    pub(super) messages: mpsc::Sender<FleetMessage>,
    pub(super) collector: Arc<Collector>,
    pub(super) forwards: Arc<Forwards>,
}

impl Callbacks {
    async fn pass(&self, message: FleetMessage, taken: oneshot::Receiver<()>) {
        // If nobody listens any more the run is over, and the answer doesn't matter.
        if self.messages.send(message).await.is_ok() {
            let _ = taken.await;
        }
    }
}

impl Client for Callbacks {
    async fn report(self, _: Context, reports: Vec<Report>) {
        let (taken, answer) = oneshot::channel();
        let reports = reports.into_iter().map(wary::report).collect();
        self.pass(FleetMessage::Reports { worker: self.worker, reports, taken }, answer).await;
    }

    async fn output(self, _: Context, chunk: OutputChunk) {
        let (taken, answer) = oneshot::channel();
        self.pass(FleetMessage::Output { worker: self.worker, chunk, taken }, answer).await;
    }

    async fn collect(self, _: Context, piece: CollectedPiece) -> Result<(), Refusal> {
        let piece = wary::collected(piece);
        let (collector, worker) = (self.collector, self.worker);
        let taken = tokio::task::spawn_blocking(move || collector.take(worker, &piece)).await;
        taken.unwrap_or_else(|error| {
            Err(Refusal::new(RefusalKind::Invalid, format!("could not take a file: {error}")))
        })
    }

    async fn fetch(self, _: Context, digest: Digest, _: u64) -> Result<Bytes, Refusal> {
        // Blobs are pushed to workers before they are needed; nothing is offered for fetching.
        let message = format!("this client offers no blob {digest}");
        Err(Refusal::new(RefusalKind::MissingBlob, message))
    }

    async fn forward_open(
        self,
        _: Context,
        connection: ForwardedId,
        forward: Forward,
    ) -> Result<(), Refusal> {
        self.forwards.open(connection, &forward).await
    }

    async fn forward_write(self, _: Context, piece: ForwardedPiece) -> Result<(), Refusal> {
        self.forwards.write(piece).await
    }

    async fn forward_read(self, _: Context, connection: ForwardedId) -> Result<Bytes, Refusal> {
        self.forwards.read(connection).await
    }

    async fn forward_close(self, _: Context, connection: ForwardedId) {
        self.forwards.close(connection);
    }
}
