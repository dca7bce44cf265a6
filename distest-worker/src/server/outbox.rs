//! Brings reports and output to the client: one `report` call at a time, what happens meanwhile
//! goes with the next; output in order, and before the report that it belongs to.

use std::io;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::link::{self, DEADLINE_BULK};
use crate::output::Capture;
use crate::protocol::{AttemptId, ClientClient, OutputChunk, Report, Stream};

/// Pieces of live output that wait for the client; more make the test wait in its write.
const LIVE_MAX: usize = 16;
/// Reports in one call.
const REPORTS_MAX: usize = 256;

enum Item {
    Report(Report),
    Live(OutputChunk, OwnedSemaphorePermit),
}

/// Where to put what the client is to get. Clones share everything.
#[derive(Clone)]
pub(super) struct Outbox {
    items: mpsc::UnboundedSender<Item>,
    live: Arc<Semaphore>,
    client: ClientClient,
}

impl Outbox {
    /// An outbox, and the work of emptying it. The work ends when the outbox is dropped and empty,
    /// or the client is gone.
    pub(super) fn new(client: ClientClient) -> (Self, impl Future<Output = ()>) {
        let (items, items_in) = mpsc::unbounded_channel();
        let live = Arc::new(Semaphore::new(LIVE_MAX));
        (Self { items, live, client: client.clone() }, empty(items_in, client))
    }

    pub(super) fn report(&self, report: Report) {
        // Without a client nobody needs it.
        let _ = self.items.send(Item::Report(report));
    }

    /// Puts live output in line; waits while too much of it waits.
    pub(super) async fn live(&self, chunk: OutputChunk) {
        if let Ok(permit) = Arc::clone(&self.live).acquire_owned().await {
            let _ = self.items.send(Item::Live(chunk, permit));
        }
    }

    /// Sends long outputs and then the report that they belong to, without holding up others.
    pub(super) fn report_after(&self, attempt: AttemptId, outputs: [Option<Capture>; 2], report: Report) {
        let this = self.clone();
        tokio::spawn(async move {
            for (stream, output) in [Stream::Stdout, Stream::Stderr].into_iter().zip(outputs) {
                // What can't be read back from the disk is missing from the total, which tells.
                let _ = this.send(attempt, stream, output).await;
            }
            this.report(report);
        });
    }

    async fn send(
        &self,
        attempt: AttemptId,
        stream: Stream,
        output: Option<Capture>,
    ) -> io::Result<()> {
        let Some(output) = output else { return Ok(()) };
        let mut chunks = output.into_chunks();
        while let Some(data) = chunks.next().await? {
            let chunk = OutputChunk { attempt, stream, data };
            let sent = self.client.output(link::context(DEADLINE_BULK), chunk).await;
            sent.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Whether an output is too long to go within its report.
pub(super) fn is_long(output: &crate::protocol::Output) -> bool {
    output.inline.len() as u64 != output.total
}

async fn empty(mut items: mpsc::UnboundedReceiver<Item>, client: ClientClient) {
    let mut next = items.recv().await;
    while let Some(item) = next.take() {
        let sent = match item {
            Item::Live(chunk, permit) => {
                let sent = client.output(link::context(DEADLINE_BULK), chunk).await;
                drop(permit);
                sent
            }
            Item::Report(report) => {
                let mut reports = vec![report];
                while reports.len() < REPORTS_MAX {
                    match items.try_recv() {
                        Ok(Item::Report(report)) => reports.push(report),
                        Ok(live) => {
                            next = Some(live);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                client.report(link::context(DEADLINE_BULK), reports).await
            }
        };
        if sent.is_err() {
            return;
        }
        if next.is_none() {
            next = items.recv().await;
        }
    }
}

