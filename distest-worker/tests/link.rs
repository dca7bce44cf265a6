//! Links between services that are made up here: order, priority, bounds, and hostile peers.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic, helpers included")]

#[path = "link/lasting.rs"]
mod lasting;
mod slow_pipe;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::identity::PrivateKey;
use distest_worker::link::{
    self, Backlog, ClientSide, DEADLINE, DEADLINE_BULK, Link, LinkEnd, Pipeline, WorkerSide,
    client_end,
};
use distest_worker::protocol::*;
use distest_worker::tls::{self, Purpose};
use serde::Serialize;
use slow_pipe::slow_pipe;
use tarpc::client::RpcError;
use tarpc::context::Context;
use tarpc::server::Serve;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;

/// A worker that keeps what it is sent.
#[derive(Clone)]
struct TestWorker {
    client: ClientClient,
    blobs: Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>,
    /// Told when a call that never ends has begun, and when it is dropped.
    begun: Arc<Notify>,
    dropped: Arc<Notify>,
}

impl Worker for TestWorker {
    async fn ping(self, _: Context) -> Pong {
        Pong::default()
    }

    /// Calls the client back as often as slots are wanted.
    async fn open(self, _: Context, spec: SessionSpec) -> Result<SessionReady, Refusal> {
        for offset in 0..u64::from(spec.slots) {
            let piece = self.client.fetch(link::context(DEADLINE), Digest::of(b""), offset).await;
            assert_eq!(piece.unwrap().unwrap(), offset.to_string());
        }
        Ok(SessionReady { slots: spec.slots, ..SessionReady::default() })
    }

    async fn missing(self, _: Context, digests: Vec<Digest>) -> Result<Vec<Digest>, Refusal> {
        Ok(digests)
    }

    async fn put(self, _: Context, chunk: BlobChunk) -> Result<PutReply, Refusal> {
        let mut blobs = self.blobs.lock().unwrap();
        blobs.entry(chunk.digest).or_default().extend_from_slice(&chunk.data);
        Ok(if chunk.last { PutReply::Stored } else { PutReply::More })
    }

    async fn lay_tree(self, _: Context, _: TreeSpec) -> Result<(), Refusal> {
        Ok(())
    }

    async fn prepare(self, _: Context, _: BinarySpec) -> Result<(), Refusal> {
        Ok(())
    }

    async fn lease(self, _: Context, _: Lease) -> Result<(), Refusal> {
        panic!("no leases here")
    }

    async fn revoke(self, _: Context, attempts: Vec<AttemptId>) -> Vec<AttemptId> {
        attempts
    }

    async fn stop(self, _: Context, _: Stop) {}

    async fn stdin(self, _: Context, _: StdinChunk) -> Result<(), Refusal> {
        Ok(())
    }

    async fn signal(self, _: Context, _: AttemptId, _: AttemptSignal) -> Result<(), Refusal> {
        Ok(())
    }

    async fn status(self, _: Context) -> Result<WorkerStatus, Refusal> {
        Ok(WorkerStatus::default())
    }

    async fn challenge(self, _: Context) -> Result<Challenge, Refusal> {
        Ok(Challenge::default())
    }

    async fn prove(self, _: Context, _: Vec<Proof>) -> Result<Vec<Digest>, Refusal> {
        Ok(Vec::new())
    }

    async fn drain(self, _: Context) -> Result<(), Refusal> {
        Ok(())
    }

    async fn read_file(self, _: Context, path: OsText, _: u64) -> Result<FilePiece, Refusal> {
        Err(Refusal::new(RefusalKind::Invalid, format!("there is no {path:?}")))
    }

    async fn write_file(self, _: Context, _: FilePiece) -> Result<(), Refusal> {
        Ok(())
    }

    async fn list_folder(self, _: Context, _: OsText, _: OsText) -> Result<FolderPage, Refusal> {
        Ok(FolderPage::default())
    }

    async fn write_tree(self, _: Context, _: TreePiece) -> Result<(), Refusal> {
        Ok(())
    }

    async fn remember(self, _: Context, _: Vec<TestTime>) -> Result<(), Refusal> {
        Ok(())
    }

    async fn upgrade(self, _: Context, _: ExecutablePiece) -> Result<UpgradeReply, Refusal> {
        Ok(UpgradeReply::Same {})
    }

    async fn collect_garbage(self, _: Context) -> Result<Freed, Refusal> {
        Ok(Freed::default())
    }

    async fn lacks_libraries(self, _: Context, _: Vec<String>) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }

    async fn close(self, _: Context) {
        struct TellDropped(Arc<Notify>);
        impl Drop for TellDropped {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let _guard = TellDropped(self.dropped.clone());
        self.begun.notify_one();
        std::future::pending().await
    }
}

#[derive(Clone)]
struct TestClient;

impl Client for TestClient {
    async fn report(self, _: Context, _: Vec<Report>) {}
    async fn output(self, _: Context, _: OutputChunk) {}
    async fn collect(self, _: Context, _: CollectedPiece) -> Result<(), Refusal> {
        Err(Refusal::new(RefusalKind::Invalid, "nothing is collected here"))
    }

    async fn fetch(self, _: Context, _: Digest, offset: u64) -> Result<Bytes, Refusal> {
        Ok(offset.to_string().into())
    }

    async fn forward_open(self, _: Context, _: ForwardedId, _: Forward) -> Result<(), Refusal> {
        Err(Refusal::new(RefusalKind::Forbidden, "nothing is forwarded here"))
    }

    async fn forward_write(self, _: Context, _: ForwardedPiece) -> Result<(), Refusal> {
        Err(Refusal::new(RefusalKind::Closed, "nothing is forwarded here"))
    }

    async fn forward_read(self, _: Context, _: ForwardedId) -> Result<Bytes, Refusal> {
        Err(Refusal::new(RefusalKind::Closed, "nothing is forwarded here"))
    }

    async fn forward_close(self, _: Context, _: ForwardedId) {}
}

struct Ends {
    worker: WorkerClient,
    client_link: Link,
    worker_link: Link,
    service: TestWorker,
}

fn ends<S>(near: S, far: S) -> Ends
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let within = Backlog::default();
    between(ClientSide::over(near, &within), WorkerSide::over(far, &within))
}

/// One over a stream, one within this process.
fn of_each_kind() -> [Ends; 2] {
    let (near, far) = duplex(1024);
    let (client, worker) = link::near();
    [ends(near, far), between(client, worker)]
}

fn between(client: ClientSide, worker: WorkerSide) -> Ends {
    let (worker_link, service) = serving(worker);
    let (worker, client_link) =
        client.serve(|context, request| TestClient.serve().serve(context, request));
    Ends { worker, client_link, worker_link, service }
}

fn serving(side: WorkerSide) -> (Link, TestWorker) {
    let mut service = None;
    let link = side.serve(|client| {
        let worker = TestWorker {
            client,
            blobs: Arc::default(),
            begun: Arc::default(),
            dropped: Arc::default(),
        };
        service = Some(worker.clone());
        move |context, request| worker.clone().serve().serve(context, request)
    });
    (link, service.unwrap())
}

fn near_end<S>(stream: S) -> (WorkerClient, Link)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    client_end(stream, |context, request| TestClient.serve().serve(context, request))
}

fn chunks(blob: &[u8]) -> impl Iterator<Item = BlobChunk> {
    let (digest, size) = (Digest::of(blob), blob.len() as u64);
    let blob = Bytes::copy_from_slice(blob);
    let count = blob.len().div_ceil(CHUNK_BYTES_MAX);
    (0..count).map(move |i| {
        let end = blob.len().min((i + 1) * CHUNK_BYTES_MAX);
        let data = blob.slice(i * CHUNK_BYTES_MAX..end);
        BlobChunk { digest, size, encoding: Encoding::Raw, data, last: i + 1 == count }
    })
}

async fn upload(worker: &WorkerClient, blob: &[u8]) -> PutReply {
    let mut pipeline = Pipeline::new(8);
    let mut last = None;
    for chunk in chunks(blob) {
        let call = worker.put(link::context(DEADLINE_BULK), chunk);
        last = pipeline.push(call).await.or(last);
    }
    while let Some(reply) = pipeline.next().await {
        last = Some(reply);
    }
    last.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn calls_go_both_ways_at_once() {
    for ends in of_each_kind() {
        let spec = SessionSpec { slots: 500, ..SessionSpec::default() };
        let ready = ends.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
        assert_eq!(ready.slots, 500);
    }
}

#[tokio::test]
async fn within_a_process_a_blob_arrives_whole_and_nothing_is_sent() {
    let [_, ends] = of_each_kind();
    let blob: Vec<u8> = (0..3_000_000_usize).map(|i| (i * i / 7) as u8).collect();
    assert_eq!(upload(&ends.worker, &blob).await, PutReply::Stored);
    assert!(ends.service.blobs.lock().unwrap()[&Digest::of(&blob)] == blob);
    assert_eq!((ends.client_link.stats().sent(), ends.worker_link.stats().received()), (0, 0));
}

#[tokio::test]
async fn pieces_of_a_blob_arrive_whole_and_in_order_beside_those_of_another() {
    let (near, far) = duplex(64 * 1024);
    let ends = ends(near, far);
    let blob = |seed: usize| (0..3_000_000).map(|i| (i * i / seed) as u8).collect::<Vec<_>>();
    let (a, b) = (blob(7), blob(31));
    let stored = tokio::join!(upload(&ends.worker, &a), upload(&ends.worker, &b));
    assert_eq!(stored, (PutReply::Stored, PutReply::Stored));
    let blobs = ends.service.blobs.lock().unwrap();
    for sent in [&a, &b] {
        assert!(blobs[&Digest::of(sent)] == *sent);
    }
    let (sent, received) = (ends.client_link.stats().sent(), ends.worker_link.stats().received());
    assert_eq!(sent, received);
    assert!((6_000_000..6_100_000).contains(&sent), "{sent} bytes for two blobs of 3 MB");
}

/// In virtual time, so that it says the same on any machine.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_passes_an_upload_over_a_slow_link() {
    let (near, far) = slow_pipe(1_000_000);
    let ends = ends(near, far);
    let worker = ends.worker.clone();
    let upload = tokio::spawn(async move { upload(&worker, &vec![5; 20_000_000]).await });
    let mut worst = Duration::ZERO;
    let began = tokio::time::Instant::now();
    while !upload.is_finished() {
        tokio::time::sleep(Duration::from_millis(83)).await;
        let asked = tokio::time::Instant::now();
        ends.worker.ping(link::context(DEADLINE)).await.unwrap();
        worst = worst.max(asked.elapsed());
    }
    assert_eq!(upload.await.unwrap(), PutReply::Stored);
    assert!(worst < Duration::from_millis(250), "a heartbeat took {worst:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(22), "20 MB at 1 MB/s took {took:?}");
}

/// In TLS, which has buffers of its own: what counts is what comes before what, in bytes.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_and_a_cancellation_overtake_an_upload_over_tls() {
    let (near, far) = slow_pipe(1_000_000);
    let [client, worker] = [(); 2].map(|()| PrivateKey::generate().unwrap());
    let only = |key| -> tls::Trust { Arc::new(move |theirs| *theirs == key) };
    let (theirs, ours) = (only(client.public()), only(worker.public()));
    let accepted = tls::accept(far, &worker, |_| Some(Arc::clone(&theirs)));
    let secured = tokio::join!(tls::connect(near, &client, Purpose::Session, ours), accepted);
    let ends = ends(secured.0.unwrap().stream, secured.1.unwrap().stream);
    let worker = ends.worker.clone();
    let upload = tokio::spawn(async move { upload(&worker, &vec![5; 20_000_000]).await });
    let (mut most, mut count) = (0, 0);
    while !upload.is_finished() {
        tokio::time::sleep(Duration::from_millis(83)).await;
        let before = ends.worker_link.stats().received();
        ends.worker.ping(link::context(DEADLINE)).await.unwrap();
        ends.worker.stop(link::context(DEADLINE), Stop::Kill).await.unwrap();
        most = most.max(ends.worker_link.stats().received() - before);
        count += 1;
    }
    assert_eq!(upload.await.unwrap(), PutReply::Stored);
    assert!(count > 10, "the upload was under way");
    // Two round trips while 20 MB want to go.
    assert!(most < 1_000_000, "{most} bytes of the upload came first");
}

#[tokio::test]
async fn the_end_of_a_connection_drops_handlers_and_ends_calls() {
    for ends in of_each_kind() {
        let worker = ends.worker.clone();
        let call = tokio::spawn(async move { worker.close(link::context(DEADLINE)).await });
        ends.service.begun.notified().await;
        drop(ends.client_link);
        assert_eq!(ends.worker_link.ended().await, LinkEnd::PeerClosed);
        ends.service.dropped.notified().await;
        assert!(matches!(call.await.unwrap(), Err(RpcError::Shutdown | RpcError::Channel(_))));
    }
}

#[tokio::test]
async fn dropping_a_call_drops_its_handler() {
    for ends in of_each_kind() {
        let worker = ends.worker.clone();
        let call = tokio::spawn(async move { worker.close(link::context(DEADLINE)).await });
        ends.service.begun.notified().await;
        call.abort();
        ends.service.dropped.notified().await;
        ends.worker.ping(link::context(DEADLINE)).await.unwrap();
    }
}

#[tokio::test]
async fn a_last_word_is_heard() {
    for ends in of_each_kind() {
        ends.worker_link.close("the worker is shutting down").await;
        let end = ends.client_link.ended().await;
        assert_eq!(end, LinkEnd::Goodbye("the worker is shutting down".to_owned()));
        let late = ends.worker.ping(link::context(DEADLINE)).await;
        assert!(matches!(late, Err(RpcError::Shutdown | RpcError::Channel(_))), "{late:?}");
    }
}

#[tokio::test]
async fn a_panicking_handler_is_a_bug_that_is_told() {
    for ends in of_each_kind() {
        let lease = Lease { attempts: Vec::new() };
        ends.worker.lease(link::context(DEADLINE), lease).await.unwrap_err();
        assert_eq!(ends.worker_link.ended().await, LinkEnd::Bug("no leases here".to_owned()));
    }
}

#[tokio::test]
async fn too_large_a_message_fails_by_itself() {
    let (near, far) = duplex(1024);
    let ends = ends(near, far);
    let env = vec![("A".into(), OsText::from("x".repeat(9 << 20)))];
    let spec = SessionSpec { env, ..SessionSpec::default() };
    let error = ends.worker.open(link::context(DEADLINE), spec).await.unwrap_err();
    assert!(matches!(error, RpcError::Send(_)), "{error}");
    ends.worker.ping(link::context(DEADLINE)).await.unwrap();
}

/// What a hostile client may put on the wire.
#[derive(Serialize)]
enum Raw {
    Request { id: u64, timeout_ms: u64 },
    Answer { id: u64 },
}

fn message(channel: u8, envelope: Raw, rest: impl Serialize) -> Vec<u8> {
    let mut payload = rmp_serde::to_vec_named(&envelope).unwrap();
    payload.extend(rmp_serde::to_vec_named(&rest).unwrap());
    let mut frame = vec![channel, 1];
    frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    frame.extend(payload);
    frame
}

/// A worker's end whose client is whatever the test writes.
fn raw_client() -> (DuplexStream, Ends) {
    let (near, far) = duplex(1 << 20);
    let unused = duplex(1).0;
    (near, ends(unused, far))
}

async fn violation(bytes: &[u8]) -> String {
    let (mut near, ends) = raw_client();
    near.write_all(bytes).await.unwrap();
    let LinkEnd::Violation(what) = ends.worker_link.ended().await else { panic!() };
    // And the peer is told.
    let mut told = Vec::new();
    near.read_to_end(&mut told).await.unwrap();
    assert!(String::from_utf8_lossy(&told).contains(&what));
    what
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_a_reason() {
    assert!(violation(b"GET / HTTP/1.1\r\n\r\n").await.contains("frame"));
    assert!(violation(&[0, 1, 0, 3, 1, 2, 3]).await.contains("makes no sense"));
    assert!(violation(&[2, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9]).await.contains("credit"));
    // Nobody gives credit for what comes on the first channel.
    for (channel, frames, most) in [(0, 1, "16384 bytes on the control"), (1, 257, "8388608 bytes")]
    {
        let frame = [&[channel, 0, 0x80, 0][..], &[0; 0x8000]].concat();
        let (mut near, ends) = raw_client();
        let _ = near.write_all(&frame.repeat(frames)).await;
        let LinkEnd::Violation(what) = ends.worker_link.ended().await else { panic!() };
        assert!(what.starts_with(&format!("it sent a message of more than {most}")), "{what}");
    }
}

#[tokio::test]
async fn requests_that_are_not_served_are_answered() {
    #[derive(Serialize)]
    enum Request {
        Ping {},
        Dance {},
    }
    let (mut near, _ends) = raw_client();
    let absurd = Raw::Request { id: 1, timeout_ms: u64::MAX };
    near.write_all(&message(0, absurd, Request::Ping {})).await.unwrap();
    let unknown = Raw::Request { id: 2, timeout_ms: 1000 };
    near.write_all(&message(0, unknown, Request::Dance {})).await.unwrap();
    let fine = Raw::Request { id: 3, timeout_ms: 1000 };
    near.write_all(&message(0, fine, Request::Ping {})).await.unwrap();
    let mut heard = String::new();
    while !heard.contains("running") {
        let mut bytes = [0; 1024];
        let count = near.read(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "closed after {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(heard.contains("days away") && heard.contains("not known here"), "{heard}");
}

#[tokio::test]
async fn an_answer_to_another_question_is_no_panic() {
    let (near, mut far) = duplex(1024);
    let (worker, link) = near_end(near);
    let call = tokio::spawn(async move { worker.ping(link::context(DEADLINE)).await });
    let mut bytes = [0; 256];
    assert_ne!(far.read(&mut bytes).await.unwrap(), 0);
    #[derive(Serialize)]
    enum Answer {
        Revoke(Vec<u64>),
    }
    // An answer that nobody asked for is only late.
    far.write_all(&message(0, Raw::Answer { id: 77 }, Answer::Revoke(vec![]))).await.unwrap();
    far.write_all(&message(0, Raw::Answer { id: 0 }, Answer::Revoke(vec![]))).await.unwrap();
    assert!(matches!(link.ended().await, LinkEnd::Violation(what) if what.contains("another")));
    call.await.unwrap().unwrap_err();
}
