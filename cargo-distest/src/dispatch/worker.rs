//! What is asked of one worker, each in a task of its own, answered by an [`Outcome`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::hello::Hello;
use distest_worker::link;
use distest_worker::protocol::{
    AttemptId, AttemptSignal, AttemptSpec, BinaryKey, Lease, Refusal, StdinChunk, Stop, TestTime,
};
use tarpc::client::RpcError;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Runnable;
use super::place::{Placed, Placing};
use crate::baked;
use crate::fleet::{Connection, PathsThere};
use crate::model::{TestBinary, WorkerId};
use crate::scheduler::Traits;
use crate::ship::{ShipError, Shipped, Shipper};
use crate::suits;
use crate::tree::Tree;
use crate::wary;

/// An answer to a short request.
const ANSWER: Duration = Duration::from_secs(10);
/// A worker that brings no more of the files that tests left, and doesn't say that this was all, for
/// this long has had its time.
const CLOSED: Duration = Duration::from_secs(130);
/// Bytes of our standard input that are handed on at a time.
const STDIN_BYTES: usize = 16 * 1024;

/// What came of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A binary and the tree are there, and if much had to be sent: how much, in what time.
    Ready { worker: WorkerId, binary: BinaryKey, sent: Option<(u64, Duration)> },
    /// More of a binary is missing there than was to be sent: nothing was.
    Lacks { worker: WorkerId, binary: BinaryKey, bytes: u64 },
    /// The worker won't run a binary.
    Refused { worker: WorkerId, binary: BinaryKey, reason: String, hint: Option<String> },
    /// Bytes went there.
    Shipped { worker: WorkerId, bytes: u64, blobs: u32 },
    /// These attempts came back unstarted.
    Revoked { worker: WorkerId, attempts: Vec<AttemptId> },
    /// A request was not answered although the connection is there: the worker is of no use any more.
    Gone { worker: WorkerId, reason: String },
    /// A worker whose connection is gone has fenced itself by now.
    Fenced { worker: WorkerId, reason: String },
}

/// A worker of this run.
pub(super) struct Connected {
    connection: Connection,
    placing: Placing,
    outcomes: mpsc::Sender<Outcome>,
    was_short: bool,
    leaving: bool,
}

impl Connected {
    pub(super) fn new(
        connection: Connection,
        tree: watch::Receiver<Option<Arc<Tree>>>,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        let shipper = Shipper::new(connection.worker.clone(), connection.hello.proofs);
        let (worker, told) = (connection.id, outcomes.clone());
        // A full channel only costs a step of the progress display: totals come with the answer.
        let shipper = shipper.with_progress(move |Shipped { bytes, blobs }| {
            let _ = told.try_send(Outcome::Shipped { worker, bytes, blobs });
        });
        let placing = Placing::new(shipper, tree, connection.embedded);
        Self { connection, placing, outcomes, was_short: false, leaving: false }
    }

    pub(super) fn name(&self) -> &str {
        &self.connection.name
    }

    /// It has not been short of memory before: shortages come and go with what runs there, and one
    /// word is enough.
    pub(super) fn is_first_shortage(&mut self) -> bool {
        !std::mem::replace(&mut self.was_short, true)
    }

    /// It finishes what runs and takes nothing more; answers whether that is news.
    pub(super) fn leaves(&mut self) -> bool {
        !std::mem::replace(&mut self.leaving, true)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    pub(super) fn slots(&self) -> u32 {
        self.connection.slots
    }

    pub(super) fn traits(&self) -> Traits {
        let Connection { hello, embedded, forwards, .. } = &self.connection;
        Traits {
            embedded: *embedded,
            labels: hello.labels.clone(),
            private_network_lack: suits::private_network_lack(hello),
            forward_lack: suits::forward_lack(hello, *embedded, forwards),
            ..Traits::default()
        }
    }

    pub(super) fn embedded(&self) -> bool {
        self.connection.embedded
    }

    /// From when on nothing of ours can run there any more, if nothing more is heard of it.
    pub(super) fn dead_at(&self) -> Instant {
        self.connection.dead_at()
    }

    /// Why it would not run a binary, as far as that is known here.
    pub(super) async fn obstacle_to(
        &self,
        binary: Arc<TestBinary>,
    ) -> Option<(String, Option<String>)> {
        let Connection { hello, paths, .. } = &self.connection;
        obstacle(binary, Arc::clone(hello), Arc::clone(paths)).await
    }

    /// Ships a binary and the tree, unless more than `bytes_max` bytes of it are missing there.
    /// Answered by [`Outcome::Ready`], [`Outcome::Lacks`], [`Outcome::Refused`] or
    /// [`Outcome::Gone`], if the connection lasts.
    pub(super) fn prepare(&self, runnable: Arc<Runnable>, bytes_max: u64) {
        let (worker, embedded) = (self.connection.id, self.connection.embedded);
        let placing = self.placing.clone();
        let outcomes = self.outcomes.clone();
        let (hello, paths) =
            (Arc::clone(&self.connection.hello), Arc::clone(&self.connection.paths));
        tokio::spawn(async move {
            let binary = runnable.key;
            let obstacle = match embedded {
                true => None,
                false => obstacle(Arc::clone(&runnable.binary), hello, paths).await,
            };
            if let Some((reason, hint)) = obstacle {
                let _ = outcomes.send(Outcome::Refused { worker, binary, reason, hint }).await;
                return;
            }
            let outcome = match placing.place(&runnable, bytes_max).await {
                Ok(Placed::There { sent }) => Outcome::Ready { worker, binary, sent },
                Ok(Placed::Lacks(bytes)) => Outcome::Lacks { worker, binary, bytes },
                Err(ShipError::Connection(error)) => match unanswered(&error) {
                    Some(reason) => Outcome::Gone { worker, reason },
                    None => return,
                },
                Err(ShipError::Refused(refusal)) => {
                    let Refusal { message, hint, .. } = wary::refusal(refusal);
                    Outcome::Refused { worker, binary, reason: message, hint }
                }
                Err(error) => {
                    Outcome::Refused { worker, binary, reason: error.to_string(), hint: None }
                }
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
                Ok(Err(refusal)) => Some(format!("it refused a lease: {}", wary::refusal(refusal))),
                Err(error) => unanswered(&error),
            };
            tell_gone(&outcomes, worker, reason).await;
        });
    }

    /// Takes back attempts. Answered by [`Outcome::Revoked`] or [`Outcome::Gone`], if the connection
    /// lasts.
    pub(super) fn revoke(&self, attempts: Vec<AttemptId>) {
        let client = self.connection.worker.clone();
        let (worker, outcomes) = (self.connection.id, self.outcomes.clone());
        tokio::spawn(async move {
            match client.revoke(link::context(ANSWER), attempts).await {
                Ok(attempts) => _ = outcomes.send(Outcome::Revoked { worker, attempts }).await,
                Err(error) => tell_gone(&outcomes, worker, unanswered(&error)).await,
            }
        });
    }

    /// Ends a running attempt. Its report answers, or nothing if it has just ended.
    pub(super) fn kill(&self, attempt: AttemptId) {
        let client = self.connection.worker.clone();
        tokio::spawn(async move {
            // A worker that doesn't answer is found out by its heartbeat.
            let _ = client.signal(link::context(ANSWER), attempt, AttemptSignal::Kill).await;
        });
    }

    /// Hands our standard input to an attempt, until either ends. Not answered.
    pub(super) fn pass_stdin(&self, attempt: AttemptId) {
        let client = self.connection.worker.clone();
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0; STDIN_BYTES];
            loop {
                // What can't be read has ended.
                let read = stdin.read(&mut buffer).await.unwrap_or(0);
                let data = Bytes::copy_from_slice(&buffer[..read]);
                let chunk = StdinChunk { attempt, data };
                let taken = client.stdin(link::context(link::DEADLINE_MAX), chunk).await;
                if read == 0 || !matches!(taken, Ok(Ok(()))) {
                    return;
                }
            }
        });
    }

    /// Ends what runs there. The attempts' reports answer.
    pub(super) fn stop(&self, how: Stop) {
        let client = self.connection.worker.clone();
        let (worker, outcomes) = (self.connection.id, self.outcomes.clone());
        tokio::spawn(async move {
            if let Err(error) = client.stop(link::context(ANSWER), how).await {
                tell_gone(&outcomes, worker, unanswered(&error)).await;
            }
        });
    }

    /// What it knew of how long tests take. Only the first call says it.
    pub(super) fn take_times(&mut self) -> Vec<TestTime> {
        std::mem::take(&mut self.connection.times)
    }

    /// Of how many of our tests it knows how long they take; none if it doesn't keep that.
    pub(super) fn times_known(&self) -> Option<u32> {
        self.connection.times_known
    }

    /// Has it keep how long tests took, and ends the session in order.
    pub(super) async fn close(self, times: Vec<TestTime>) {
        if !times.is_empty() {
            // What it doesn't take it doesn't know.
            let _ = self.connection.worker.remember(link::context(ANSWER), times).await;
        }
        let Connection { worker, collector, embedded, name, .. } = &self.connection;
        let mut closed = pin!(worker.close(link::context(link::DEADLINE_MAX)));
        let mut before = collector.progress();
        let ended = loop {
            if let Ok(closed) = tokio::time::timeout(CLOSED, &mut closed).await {
                break closed.map_err(|error| wary::sentence(&link::why(&error)));
            }
            let now = collector.progress();
            if std::mem::replace(&mut before, now) == now {
                break Err(format!("nothing came for {} s", CLOSED.as_secs()));
            }
        };
        // One that doesn't answer ends the session when the connection does.
        if let Err(why) = ended
            && !embedded
        {
            collector.cut_short(name, &why);
        }
    }
}

/// That a worker did not answer, and why. None if its connection is over: who attends to that knows
/// why, and until when something may run there.
fn unanswered(error: &RpcError) -> Option<String> {
    match error {
        RpcError::Shutdown | RpcError::Channel(_) => None,
        RpcError::Send(_) | RpcError::DeadlineExceeded | RpcError::Server(_) => {
            Some(format!("it did not answer: {}", wary::sentence(&link::why(error))))
        }
    }
}

async fn tell_gone(outcomes: &mpsc::Sender<Outcome>, worker: WorkerId, reason: Option<String>) {
    if let Some(reason) = reason {
        let _ = outcomes.send(Outcome::Gone { worker, reason }).await;
    }
}

/// Why a worker can't run a binary, and what to do.
async fn obstacle(
    binary: Arc<TestBinary>,
    hello: Arc<Hello>,
    paths: Arc<PathsThere>,
) -> Option<(String, Option<String>)> {
    let unsuited = suits::obstacle(&binary, &hello);
    if unsuited.is_some() {
        return unsuited;
    }
    let asked = tokio::task::spawn_blocking(move || baked::obstacle(&binary.executable, &paths));
    asked.await.unwrap_or_else(|error| Some((format!("could not look into it: {error}"), None)))
}
