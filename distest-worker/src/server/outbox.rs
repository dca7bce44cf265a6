//! Brings reports and output to the client: one `report` call at a time, what happens meanwhile
//! goes with the next; output in order, and before the report that it belongs to.

use std::io;
use std::sync::Arc;

use tarpc::client::RpcError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::link::{self, DEADLINE_BULK, Pipeline};
use crate::output::Capture;
use crate::protocol::{AttemptId, ClientClient, OutputChunk, Report, Stream};

/// Pieces of live output that wait for the client; more make the test wait in its write.
const LIVE_MAX: usize = 16;
/// Reports in one call.
const REPORTS_MAX: usize = 256;
/// Bytes of output within the reports of one call, give or take one report's: far less than a
/// message may have.
const REPORT_BYTES_MAX: usize = 1024 * 1024;
/// Pieces of one captured stream under way at once.
const OUTPUT_DEPTH: usize = 4;
/// Attempts whose captured output is sent at once.
const SENDING_MAX: usize = 4;

enum Item {
    Report(Report),
    Live(OutputChunk, OwnedSemaphorePermit),
    Flushed(oneshot::Sender<()>),
}

/// Where to put what the client is to get. Clones share everything.
#[derive(Clone)]
pub(super) struct Outbox {
    items: mpsc::UnboundedSender<Item>,
    live: Arc<Semaphore>,
    sending: Arc<Semaphore>,
    client: ClientClient,
}

impl Outbox {
    /// An outbox, and the work of emptying it. The work ends when the outbox is dropped and empty,
    /// or with an error when the client doesn't take what it is sent.
    pub(super) fn new(
        client: ClientClient,
    ) -> (Self, impl Future<Output = Result<(), RpcError>> + Send) {
        let (items, items_in) = mpsc::unbounded_channel();
        let outbox = Self {
            items,
            live: Arc::new(Semaphore::new(LIVE_MAX)),
            sending: Arc::new(Semaphore::new(SENDING_MAX)),
            client: client.clone(),
        };
        (outbox, empty(items_in, client))
    }

    pub(super) fn report(&self, report: Report) {
        // Without a client nobody needs it.
        let _ = self.items.send(Item::Report(report));
    }

    /// A place in line for a piece of live output, when there is one.
    pub(super) async fn live_place(live: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        live.acquire_owned().await.ok()
    }

    /// What [`Outbox::live_place`] needs.
    pub(super) fn live_places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.live)
    }

    /// Puts live output in line.
    pub(super) fn live(&self, chunk: OutputChunk, place: OwnedSemaphorePermit) {
        let _ = self.items.send(Item::Live(chunk, place));
    }

    /// Sends long outputs and then the report that they belong to, without holding up others.
    pub(super) async fn report_after(
        self,
        attempt: AttemptId,
        outputs: [Option<Capture>; 2],
        report: Report,
    ) {
        let place = self.sending.acquire().await;
        for (stream, output) in [Stream::Stdout, Stream::Stderr].into_iter().zip(outputs) {
            // What can't be read back from the disk is missing from the total, which tells.
            let _ = self.send(attempt, stream, output).await;
        }
        drop(place);
        self.report(report);
    }

    /// Waits until the client has all that was put here before. False if it won't.
    pub(super) async fn flush(&self) -> bool {
        let (flushed, receiver) = oneshot::channel();
        let _ = self.items.send(Item::Flushed(flushed));
        receiver.await.is_ok()
    }

    async fn send(
        &self,
        attempt: AttemptId,
        stream: Stream,
        output: Option<Capture>,
    ) -> io::Result<()> {
        let Some(output) = output else { return Ok(()) };
        let (mut chunks, mut calls) = (output.into_chunks(), Pipeline::new(OUTPUT_DEPTH));
        while let Some(data) = chunks.next().await? {
            let chunk = OutputChunk { attempt, stream, data };
            let call = self.client.output(link::context(DEADLINE_BULK), chunk);
            calls.push(call).await.transpose().map_err(io::Error::other)?;
        }
        while let Some(taken) = calls.next().await {
            taken.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Whether an output is too long to go within its report.
pub(super) fn is_long(output: &crate::protocol::Output) -> bool {
    output.inline.len() as u64 != output.total
}

async fn empty(
    mut items: mpsc::UnboundedReceiver<Item>,
    client: ClientClient,
) -> Result<(), RpcError> {
    let mut next = items.recv().await;
    while let Some(item) = next.take() {
        match item {
            Item::Live(chunk, place) => {
                client.output(link::context(DEADLINE_BULK), chunk).await?;
                drop(place);
            }
            Item::Flushed(tell) => _ = tell.send(()),
            Item::Report(report) => {
                let mut bytes = inline_bytes(&report);
                let mut reports = vec![report];
                while reports.len() < REPORTS_MAX && bytes < REPORT_BYTES_MAX {
                    match items.try_recv() {
                        Ok(Item::Report(report)) => {
                            bytes += inline_bytes(&report);
                            reports.push(report);
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                client.report(link::context(DEADLINE_BULK), reports).await?;
            }
        }
        if next.is_none() {
            next = items.recv().await;
        }
    }
    Ok(())
}

fn inline_bytes(report: &Report) -> usize {
    match report {
        Report::Finished(finished) => finished.stdout.inline.len() + finished.stderr.inline.len(),
        Report::Progress { lines, .. } => lines.iter().map(|line| line.text.len()).sum(),
        Report::Started { .. }
        | Report::Slow { .. }
        | Report::Lost { .. }
        | Report::Draining {} => 0,
    }
}
