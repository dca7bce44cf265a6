//! Takes the client's calls.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tarpc::ServerError;
use tarpc::context::Context;
use tarpc::server::Serve;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use super::WorkerShared;
use super::driver;
use super::files::Files;
use super::hands::Hands;
use super::upgrading::{self, Arriving};
use crate::compat::lacking;
use crate::digest::Digest;
use crate::identity::{Permission, Permissions};
use crate::protocol::{
    AttemptId, AttemptSignal, BinarySpec, BlobChunk, CHUNK_BYTES_MAX, Challenge, ExecutablePiece,
    FilePiece, FolderPage, Freed, LIBRARIES_BYTES_MAX, LIBRARIES_MAX, Lease, OsText, Pong, Proof,
    PutReply, Refusal, RefusalKind, SessionReady, SessionSpec, StdinChunk, Stop, TestTime,
    TreePiece, TreeSpec, UpgradeReply, Worker, WorkerRequest, WorkerResponse, WorkerStatus,
};

/// Between signs of life that a long call gives.
const WORD_EVERY: Duration = Duration::from_secs(1);

/// A call that concerns the session. Sent before the handler's first `await`, so in the order of
/// arrival.
#[derive(Debug)]
pub(super) enum Request {
    /// The client is alive.
    Ping(oneshot::Sender<Pong>),
    /// The session's sandbox is there.
    Open(SessionSpec, oneshot::Sender<Result<SessionReady, Refusal>>),
    /// A binary's files are there.
    Prepared(BinarySpec, oneshot::Sender<Result<(), Refusal>>),
    Lease(Lease, oneshot::Sender<Result<(), Refusal>>),
    Revoke(Vec<AttemptId>, oneshot::Sender<Vec<AttemptId>>),
    Stop(Stop),
    Stdin(StdinChunk, oneshot::Sender<Result<(), Refusal>>),
    Signal(AttemptId, AttemptSignal, oneshot::Sender<Result<(), Refusal>>),
    Close(oneshot::Sender<()>),
    /// A call that doesn't concern the session: a sign of life.
    Word,
}

/// Serves one connection's calls. Clones share everything.
#[derive(Clone)]
pub(super) struct Handler {
    requests: mpsc::UnboundedSender<Request>,
    files: Arc<Files>,
    permissions: Arc<Permissions>,
    worker: Arc<WorkerShared>,
    /// The session is for remote hands.
    hands: Arc<AtomicBool>,
    copying: Hands,
    arriving: Arriving,
    /// Held while libraries are looked for.
    looking: Arc<AsyncMutex<()>>,
}

impl Handler {
    pub(super) fn new(
        requests: mpsc::UnboundedSender<Request>,
        files: Arc<Files>,
        permissions: Arc<Permissions>,
        worker: Arc<WorkerShared>,
    ) -> Self {
        Self {
            requests,
            files,
            permissions,
            worker,
            hands: Arc::default(),
            copying: Hands::default(),
            arriving: Arriving::default(),
            looking: Arc::default(),
        }
    }

    /// Whether this connection's key may do that.
    fn need(&self, permission: Permission) -> Result<(), Refusal> {
        need(&self.permissions, permission)
    }

    /// Whether this connection's key may run something in its session.
    fn need_to_run(&self) -> Result<(), Refusal> {
        match self.hands.load(Ordering::Relaxed) {
            true => self.need(Permission::Exec),
            false => self.need(Permission::Run),
        }
    }

    pub(super) async fn answer(
        self,
        context: Context,
        request: WorkerRequest,
    ) -> Result<WorkerResponse, ServerError> {
        self.serve().serve(context, request).await
    }

    fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        // If the driver is gone the receiver says so.
        let _ = self.requests.send(request(answer));
        receiver
    }

    fn word(&self) {
        let _ = self.requests.send(Request::Word);
    }
}

/// Whether who has these permissions may do that.
pub(super) fn need(permissions: &Permissions, permission: Permission) -> Result<(), Refusal> {
    if permissions.allow(permission) {
        return Ok(());
    }
    let word = permission.word();
    let message = format!("this key does not have the permission `{word}` on this worker");
    let hint = format!(
        "add `{word}` to its line in the worker's authorized_keys, or take another invitation, made \
         with --permit {word}"
    );
    Err(Refusal::new(RefusalKind::Forbidden, message).with_hint(hint))
}

/// Whether one call may bring so much.
fn may_be_a_piece(data: &[u8]) -> Result<(), Refusal> {
    if data.len() <= CHUNK_BYTES_MAX {
        return Ok(());
    }
    let message = format!("could not take {} bytes at once: at most {CHUNK_BYTES_MAX}", data.len());
    Err(Refusal::new(RefusalKind::Invalid, message))
}

/// The answer, or that the session is over.
async fn answered<T>(receiver: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
    let closed = |_| Err(Refusal::new(RefusalKind::Closed, "the session is over"));
    receiver.await.unwrap_or_else(closed)
}

impl Worker for Handler {
    async fn ping(self, _: Context) -> Pong {
        self.ask(Request::Ping).await.unwrap_or_default()
    }

    async fn open(self, _: Context, spec: SessionSpec) -> Result<SessionReady, Refusal> {
        self.need(if spec.hands { Permission::Exec } else { Permission::Run })?;
        driver::may_open(&spec)?;
        self.hands.store(spec.hands, Ordering::Relaxed);
        self.files.open(&spec).await?;
        let asked = self.ask(|answer| Request::Open(spec.clone(), answer));
        let mut ready = answered(asked).await?;
        self.files.lend_times(&spec, &mut ready).await;
        Ok(ready)
    }

    async fn missing(self, _: Context, digests: Vec<Digest>) -> Result<Vec<Digest>, Refusal> {
        self.need(Permission::Run)?;
        self.word();
        self.files.missing(digests).await
    }

    async fn put(self, _: Context, chunk: BlobChunk) -> Result<PutReply, Refusal> {
        self.need(Permission::Run)?;
        self.word();
        may_be_a_piece(&chunk.data)?;
        self.files.put(chunk).await
    }

    async fn lay_tree(self, _: Context, tree: TreeSpec) -> Result<(), Refusal> {
        self.need(Permission::Run)?;
        self.word();
        self.files.lay(tree.entries).await
    }

    async fn prepare(self, _: Context, binary: BinarySpec) -> Result<(), Refusal> {
        self.need_to_run()?;
        self.word();
        self.files.prepare(&binary).await?;
        answered(self.ask(|answer| Request::Prepared(binary, answer))).await
    }

    async fn lease(self, _: Context, lease: Lease) -> Result<(), Refusal> {
        self.need_to_run()?;
        answered(self.ask(|answer| Request::Lease(lease, answer))).await
    }

    async fn revoke(self, _: Context, attempts: Vec<AttemptId>) -> Vec<AttemptId> {
        self.ask(|answer| Request::Revoke(attempts, answer)).await.unwrap_or_default()
    }

    async fn stop(self, _: Context, how: Stop) {
        let _ = self.requests.send(Request::Stop(how));
    }

    async fn stdin(self, _: Context, chunk: StdinChunk) -> Result<(), Refusal> {
        self.need_to_run()?;
        may_be_a_piece(&chunk.data)?;
        answered(self.ask(|answer| Request::Stdin(chunk, answer))).await
    }

    async fn close(self, _: Context) {
        // If the driver is gone, everything has ended already.
        let _ = self.ask(Request::Close).await;
    }

    async fn signal(
        self,
        _: Context,
        attempt: AttemptId,
        signal: AttemptSignal,
    ) -> Result<(), Refusal> {
        answered(self.ask(|answer| Request::Signal(attempt, signal, answer))).await
    }

    async fn status(self, _: Context) -> Result<WorkerStatus, Refusal> {
        self.need(Permission::View)?;
        self.word();
        Ok(self.worker.status())
    }

    async fn read_file(self, _: Context, path: OsText, offset: u64) -> Result<FilePiece, Refusal> {
        self.need(Permission::Copy)?;
        self.word();
        self.copying.read(path, offset).await
    }

    async fn write_file(self, _: Context, piece: FilePiece) -> Result<(), Refusal> {
        self.need(Permission::Copy)?;
        self.word();
        self.copying.write(piece).await
    }

    async fn challenge(self, _: Context) -> Result<Challenge, Refusal> {
        self.need(Permission::Run)?;
        self.word();
        self.files.challenge().await
    }

    async fn prove(self, _: Context, proofs: Vec<Proof>) -> Result<Vec<Digest>, Refusal> {
        self.need(Permission::Run)?;
        self.word();
        self.files.prove(proofs).await
    }

    async fn list_folder(
        self,
        _: Context,
        path: OsText,
        after: OsText,
    ) -> Result<FolderPage, Refusal> {
        self.need(Permission::Copy)?;
        self.word();
        self.copying.list(path, after).await
    }

    async fn write_tree(self, _: Context, piece: TreePiece) -> Result<(), Refusal> {
        self.need(Permission::Copy)?;
        self.word();
        self.copying.write_tree(piece).await
    }

    async fn remember(self, _: Context, times: Vec<TestTime>) -> Result<(), Refusal> {
        self.need(Permission::Run)?;
        self.word();
        self.files.remember(times).await
    }

    async fn upgrade(self, _: Context, piece: ExecutablePiece) -> Result<UpgradeReply, Refusal> {
        self.need(Permission::Admin)?;
        let mut upgrading = pin!(upgrading::take(&self.worker, &self.arriving, piece));
        loop {
            // It is tried for longer than a client may be silent.
            self.word();
            if let Ok(answer) = tokio::time::timeout(WORD_EVERY, &mut upgrading).await {
                return answer;
            }
        }
    }

    async fn collect_garbage(self, _: Context) -> Result<Freed, Refusal> {
        self.need(Permission::Admin)?;
        self.word();
        upgrading::collect_garbage(&self.worker).await
    }

    async fn lacks_libraries(self, _: Context, names: Vec<String>) -> Result<Vec<String>, Refusal> {
        self.need(Permission::View)?;
        self.word();
        let bytes: usize = names.iter().map(String::len).sum();
        if names.len() > LIBRARIES_MAX || bytes > LIBRARIES_BYTES_MAX {
            let message = format!(
                "could not look for {} libraries with names of {bytes} bytes: at most \
                 {LIBRARIES_MAX} with {LIBRARIES_BYTES_MAX} are looked for at a time",
                names.len()
            );
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        let Ok(own_turn) = self.looking.try_lock_owned() else {
            let message = "could not look for libraries: this connection's last such call is not \
                           answered yet";
            return Err(Refusal::new(RefusalKind::Invalid, message));
        };
        let turn = Arc::clone(&self.worker.looking).lock_owned().await;
        let looked = tokio::task::spawn_blocking(move || {
            // Whoever is next waits for the work to end, not for the answer.
            let _turns = (own_turn, turn);
            lacking(names)
        });
        looked.await.map_err(|error| Refusal::new(RefusalKind::Closed, error.to_string()))
    }

    async fn drain(self, _: Context) -> Result<(), Refusal> {
        self.need(Permission::Admin)?;
        self.worker.drain();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::server::{WorkerConfig, WorkerShared};
    use crate::zygote::ZygoteProgram;

    fn worker() -> Arc<WorkerShared> {
        let (name, labels) = ("w".to_owned(), Default::default());
        let config = WorkerConfig { name, slots: 1, store: None, in_place: true, labels };
        WorkerShared::new(config, ZygoteProgram::new("/bin/false"))
    }

    /// A connection's.
    fn handler(worker: &Arc<WorkerShared>) -> Handler {
        let host = Arc::clone(&worker.host);
        let files = Arc::new(Files::new(None, None, true, host));
        let (requests, _) = mpsc::unbounded_channel();
        Handler::new(requests, files, Arc::new(Permissions::all()), Arc::clone(worker))
    }

    #[tokio::test]
    async fn libraries_are_looked_for_one_call_after_another_and_not_without_end() {
        let worker = worker();
        let [one, other] = [(); 2].map(|()| handler(&worker));
        let ask = |handler: &Handler, names| {
            handler.clone().lacks_libraries(tarpc::context::current(), names).boxed()
        };
        let names = || vec!["libno-such.so".to_owned()];
        let kind = |refused: Result<_, Refusal>| refused.map(|_: Vec<String>| ()).unwrap_err().kind;
        for bad in
            [vec!["a".to_owned(); LIBRARIES_MAX + 1], vec!["a".repeat(LIBRARIES_BYTES_MAX + 1)]]
        {
            assert_eq!(kind(ask(&one, bad).await), RefusalKind::Invalid);
        }
        let looks = Arc::clone(&worker.looking).lock_owned().await;
        let (mut first, mut others) = (ask(&one, names()), ask(&other, names()));
        assert!((&mut first).now_or_never().is_none(), "somebody else's is looked at");
        assert_eq!(kind(ask(&one, names()).await), RefusalKind::Invalid, "it has one already");
        assert!((&mut others).now_or_never().is_none());
        drop(looks);
        assert_eq!(first.await, Ok(names()));
        assert_eq!(others.await, Ok(names()));
        // Its turn ends with the work, which may be a little later than the answer.
        let again = async { while ask(&one, names()).await.is_err() {} };
        again.await;
    }

    #[tokio::test]
    async fn no_piece_is_larger_than_agreed() {
        let handler = handler(&worker());
        let data = bytes::Bytes::from(vec![0; CHUNK_BYTES_MAX + 1]);
        let chunk = StdinChunk { attempt: AttemptId(1), data };
        let refused = handler.stdin(tarpc::context::current(), chunk).await.unwrap_err();
        assert_eq!(refused.kind, RefusalKind::Invalid, "{refused}");
        assert!(refused.message.contains("262145 bytes"), "{refused}");
    }
}
