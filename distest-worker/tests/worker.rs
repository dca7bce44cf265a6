//! A worker as a client sees it: sessions over a pipe and over TCP, with real processes.
#![expect(clippy::unwrap_used, reason = "a test that fails may panic, helpers included")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::hello::{HELLO_TIMEOUT, Hello, HelloError, Role, exchange};
use distest_worker::identity::{Folder, PrivateKey, PublicKey};
use distest_worker::link::{self, DEADLINE, Link, LinkEnd, client_end};
use distest_worker::protocol::*;
use distest_worker::sandbox::host::Host;
use distest_worker::server::{ConnectionEnd, WorkerConfig, WorkerShared, serve_connection};
use distest_worker::store::Store;
use distest_worker::tls;
use distest_worker::zygote::ZygoteProgram;
use tarpc::context::Context;
use tarpc::server::Serve;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

#[path = "worker/blobs.rs"]
mod blobs;
#[path = "worker/bounds.rs"]
mod bounds;
#[path = "worker/comeback.rs"]
mod comeback;
#[path = "worker/list.rs"]
mod list;
#[path = "worker/sharing.rs"]
mod sharing;
#[path = "worker/upgrade.rs"]
mod upgrade;

const WORKER: &str = env!("CARGO_BIN_EXE_distest-worker");
/// The key of `/bin/sh`, which every session here prepares.
const SH: BinaryKey = BinaryKey(0);

/// What the worker told.
#[derive(Debug)]
enum Told {
    Report(Report),
    Output(OutputChunk),
    /// A piece of a file, which is answered when the test says so.
    Piece(CollectedPiece, oneshot::Sender<()>),
}

#[derive(Clone)]
struct Listener(mpsc::UnboundedSender<Told>);

impl Client for Listener {
    async fn report(self, _: Context, reports: Vec<Report>) {
        reports.into_iter().for_each(|report| _ = self.0.send(Told::Report(report)));
    }

    async fn output(self, _: Context, chunk: OutputChunk) {
        let _ = self.0.send(Told::Output(chunk));
    }

    async fn collect(self, _: Context, piece: CollectedPiece) -> Result<(), Refusal> {
        let (taken, answer) = oneshot::channel();
        let _ = self.0.send(Told::Piece(piece, taken));
        let not_taken = |_| Refusal::new(RefusalKind::Invalid, "nothing is collected here");
        answer.await.map_err(not_taken)
    }

    async fn fetch(self, _: Context, _: Digest, _: u64) -> Result<Bytes, Refusal> {
        Err(Refusal::new(RefusalKind::Invalid, "nothing is offered here"))
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

struct Peer {
    worker: WorkerClient,
    link: Link,
    told: mpsc::UnboundedReceiver<Told>,
    hello: Hello,
}

async fn connect(mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Peer {
    let ours = Hello::new(Role::Client, "test");
    let hello = exchange(&mut stream, &ours, HELLO_TIMEOUT).await.unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    let (worker, link) = client_end(stream, move |context, request| {
        Listener(tell.clone()).serve().serve(context, request)
    });
    Peer { worker, link, told, hello }
}

fn config(slots: u32, store: Option<Store>) -> WorkerConfig {
    let in_place = store.is_none();
    WorkerConfig { name: "w1".to_owned(), slots, store, in_place, labels: Labels::new() }
}

fn shared(slots: u32, store: Option<Store>) -> Arc<WorkerShared> {
    WorkerShared::new(config(slots, store), ZygoteProgram::new(WORKER))
}

async fn peer_of(worker: &Arc<WorkerShared>) -> (Peer, JoinHandle<ConnectionEnd>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(serve_connection(far, Arc::clone(worker)));
    (connect(near).await, served)
}

/// An in-place session in which `/bin/sh` is prepared.
async fn session(worker: &Arc<WorkerShared>) -> (Peer, JoinHandle<ConnectionEnd>) {
    let (peer, served) = peer_of(worker).await;
    let env = vec![("A".into(), "session".into()), ("B".into(), "session".into())];
    let spec = SessionSpec { in_place: true, slot_base: 40, env, ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    peer.prepare_sh("/", vec![("B".into(), "binary".into())], vec![]).await.unwrap();
    (peer, served)
}

impl Peer {
    async fn prepare_sh(
        &self,
        cwd: &str,
        env: Vec<(OsText, OsText)>,
        files: Vec<TreeEntry>,
    ) -> Result<(), Refusal> {
        let (label, program) = ("sh".to_owned(), "/bin/sh".into());
        let writable = Vec::new();
        let binary = BinarySpec { key: SH, label, program, cwd: cwd.into(), env, files, writable };
        self.worker.prepare(link::context(DEADLINE), binary).await.unwrap()
    }

    async fn lease(&self, scripts: &[(u64, &str, Streams)]) {
        let attempts = scripts.iter().map(|(id, script, streams)| attempt(*id, script, *streams));
        let lease = Lease { attempts: attempts.collect() };
        self.worker.lease(link::context(DEADLINE), lease).await.unwrap().unwrap();
    }

    async fn report(&mut self) -> Report {
        match self.told.recv().await.unwrap() {
            Told::Report(report) => report,
            other => panic!("not a report: {other:?}"),
        }
    }

    async fn started(&mut self, id: u64) {
        let report = self.report().await;
        assert!(
            matches!(report, Report::Started { attempt, .. } if attempt.0 == id),
            "not the start of {id}: {report:?}"
        );
    }

    async fn finished(&mut self, id: u64) -> Finished {
        match self.report().await {
            Report::Finished(finished) if finished.attempt.0 == id => finished,
            other => panic!("not the end of {id}: {other:?}"),
        }
    }

    async fn lost(&mut self) -> (u64, LossReason) {
        match self.report().await {
            Report::Lost { attempt, reason, .. } => (attempt.0, reason),
            other => panic!("not a loss: {other:?}"),
        }
    }

    /// Live output of one attempt until it has this many bytes.
    async fn output(&mut self, bytes: usize) -> Vec<u8> {
        let mut output = Vec::new();
        while output.len() < bytes {
            match self.told.recv().await.unwrap() {
                Told::Output(chunk) => output.extend_from_slice(&chunk.data),
                other => panic!("{other:?} after {} bytes", output.len()),
            }
        }
        output
    }

    async fn put(&self, blob: &[u8], data: &[u8], encoding: Encoding) -> Result<PutReply, Refusal> {
        let (digest, size) = (Digest::of(blob), blob.len() as u64);
        let data = Bytes::copy_from_slice(data);
        let chunk = BlobChunk { digest, size, encoding, data, last: true };
        self.worker.put(link::context(DEADLINE), chunk).await.unwrap()
    }
}

fn alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

/// Whether a process was started with exactly these arguments. Numbers of processes in a sandbox
/// mean nothing outside.
fn runs(arguments: &[&str]) -> bool {
    let wanted = arguments.join("\0") + "\0";
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| line == wanted.as_bytes())
}

#[tokio::test]
async fn an_attempt_runs_with_its_environment_and_tells_its_output() {
    let (mut peer, _served) = session(&shared(2, None)).await;
    assert_eq!((peer.hello.name.as_str(), peer.hello.slots), ("w1", 2));
    let script = "echo $A $B $C $DISTEST $DISTEST_TEST_WORKER $NEXTEST_TEST_GLOBAL_SLOT \
                  ${HOME-none} ${DISTEST_TEST_SLOT:+slot}; pwd; echo oops >&2; exit 3";
    peer.lease(&[(1, script, Streams::Capture)]).await;
    peer.started(1).await;
    let finished = peer.finished(1).await;
    assert_eq!(finished.exit, Exit::Code(3));
    assert_eq!(finished.stdout.inline, "session binary attempt 1 w1 40 none slot\n/\n");
    assert_eq!(finished.stderr.inline, "oops\n");
}

#[tokio::test]
async fn a_network_of_its_own_is_refused_where_it_was_never_found_to_work() {
    let worker = shared(1, None);
    let (peer, served) = session(&worker).await;
    let attempt = AttemptSpec { network: Network::Private, ..attempt(1, "true", Streams::Capture) };
    let lease = Lease { attempts: vec![attempt] };
    let answer = peer.worker.lease(link::context(DEADLINE), lease).await.unwrap();
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Incompatible, "{refusal}");
    assert!(refusal.message.contains("a network of its own"), "{refusal}");
    peer.worker.close(link::context(DEADLINE)).await.unwrap();
    drop(peer);
    served.await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_forwarded_is_refused() {
    let socket = |path: &str| vec![Forward::Socket(path.into())];
    let many = (1..=FORWARDS_MAX as u16 + 1).map(Forward::Port).collect();
    for forwards in [vec![Forward::Port(0)], socket("a.sock"), socket("/run/../a.sock"), many] {
        let (peer, served) = peer_of(&shared(1, None)).await;
        let spec = SessionSpec { in_place: true, forwards, ..SessionSpec::default() };
        let answer = peer.worker.open(link::context(DEADLINE), spec).await.unwrap();
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal}");
        assert!(refusal.message.contains("could not forward"), "{refusal}");
        drop(peer);
        served.await.unwrap();
    }

    // Without a sandbox the paths of this machine are in sight, which are nobody's to change.
    let dir = tempfile::tempdir().unwrap();
    let store = Some(Store::open(dir.path(), 1 << 30).unwrap());
    let host = Host { private_network: Ok(()), ..Host::plain() };
    let worker = WorkerShared::on(host, config(1, store), ZygoteProgram::new(WORKER));
    let (peer, served) = peer_of(&worker).await;
    assert!(peer.hello.forwards);
    let (roots, forwards) = (vec!["/client".into()], socket("/run/a.sock"));
    let spec = SessionSpec { roots, forwards, ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    peer.prepare_sh("/", vec![], vec![]).await.unwrap();
    let attempt = AttemptSpec { network: Network::Private, ..attempt(1, "true", Streams::Capture) };
    let lease = Lease { attempts: vec![attempt] };
    let answer = peer.worker.lease(link::context(DEADLINE), lease).await.unwrap();
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Incompatible, "{refusal}");
    assert!(refusal.message.contains("/run/a.sock"), "{refusal}");
    drop(peer);
    served.await.unwrap();
}

#[tokio::test]
async fn long_output_comes_before_the_report_that_it_belongs_to() {
    let (mut peer, _served) = session(&shared(1, None)).await;
    peer.lease(&[(1, "head -c 3000000 /dev/zero; echo short >&2", Streams::Capture)]).await;
    peer.started(1).await;
    assert!(peer.output(3_000_000).await == vec![0; 3_000_000]);
    let finished = peer.finished(1).await;
    assert_eq!((finished.stdout.total, finished.stdout.inline.len()), (3_000_000, 0));
    assert_eq!(finished.stderr.inline, "short\n");
}

/// Reports with output are large together, and one call of them must still fit a message.
#[tokio::test]
async fn many_reports_with_output_all_arrive() {
    let (mut peer, _served) = session(&shared(4, None)).await;
    let script = "head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2";
    let scripts: Vec<_> = (0..150).map(|id| (id, script, Streams::Capture)).collect();
    peer.lease(&scripts).await;
    let mut bytes = 0;
    for _ in 0..300 {
        if let Report::Finished(finished) = peer.report().await {
            bytes += finished.stdout.inline.len() + finished.stderr.inline.len();
        }
    }
    assert_eq!(bytes, 150 * 120_000);
}

#[tokio::test]
async fn live_streams_carry_input_and_output() {
    let (mut peer, _served) = session(&shared(1, None)).await;
    peer.lease(&[(1, "read line; echo got $line; cat", Streams::LiveWithStdin)]).await;
    peer.started(1).await;
    for data in ["word\n", "rest", ""] {
        let chunk = StdinChunk { attempt: AttemptId(1), data: data.into() };
        peer.worker.stdin(link::context(DEADLINE), chunk).await.unwrap().unwrap();
    }
    assert_eq!(peer.output(12).await, b"got word\nrest");
    assert_eq!(peer.finished(1).await.exit, Exit::Code(0));
    let late = StdinChunk { attempt: AttemptId(1), data: "x".into() };
    let refusal = peer.worker.stdin(link::context(DEADLINE), late).await.unwrap().unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Closed);
}

#[tokio::test]
async fn a_stop_kills_what_runs_and_drops_what_waits_and_a_close_is_told_last() {
    let (mut peer, _served) = session(&shared(1, None)).await;
    let nap = ("trap '' TERM; echo up; sleep 1000", Streams::Live);
    peer.lease(&[(1, nap.0, nap.1), (2, nap.0, nap.1), (3, nap.0, nap.1)]).await;
    peer.started(1).await;
    peer.output(3).await;
    let back = peer.worker.revoke(link::context(DEADLINE), vec![AttemptId(1), AttemptId(3)]);
    assert_eq!(back.await.unwrap(), [AttemptId(3)]);
    peer.worker.stop(link::context(DEADLINE), Stop::Terminate).await.unwrap();
    assert_eq!(peer.lost().await, (2, LossReason::Dropped));
    let pong = peer.worker.ping(link::context(DEADLINE)).await.unwrap();
    assert_eq!((pong.running, pong.queued), (1, 0), "it ignores SIGTERM");
    peer.worker.close(link::context(DEADLINE)).await.unwrap();
    // All has been told by the time a close is answered.
    let Ok(Told::Report(Report::Lost { attempt: AttemptId(1), reason, .. })) = peer.told.try_recv()
    else {
        panic!("the close was answered before the report")
    };
    assert_eq!(reason, LossReason::Stopped);
}

#[tokio::test]
async fn sessions_share_the_workers_slots_and_a_lost_client_leaves_nothing() {
    let worker = shared(1, None);
    let (mut first, first_served) = session(&worker).await;
    let (mut second, _second_served) = session(&worker).await;
    first.lease(&[(1, "echo $$; sleep 1000 & wait", Streams::Live)]).await;
    first.started(1).await;
    let pid = String::from_utf8(first.output(2).await).unwrap();
    assert!(alive(&pid));
    second.lease(&[(1, "true", Streams::Capture)]).await;
    let pong = second.worker.ping(link::context(DEADLINE)).await.unwrap();
    assert_eq!((pong.running, pong.queued), (0, 1), "the only slot is taken");
    drop(first);
    second.started(1).await;
    second.finished(1).await;
    let end = first_served.await.unwrap();
    let closed = matches!(end, ConnectionEnd::Session { end: LinkEnd::PeerClosed, .. });
    assert!(closed, "{end:?}");
    assert!(!alive(&pid), "process {pid} outlived its client");
}

#[tokio::test]
async fn a_client_that_falls_silent_is_fenced() {
    let (mut peer, served) = session(&shared(1, None)).await;
    peer.lease(&[(1, "sleep 1000", Streams::Capture)]).await;
    peer.started(1).await;
    peer.worker.ping(link::context(DEADLINE)).await.unwrap();
    // Not a word from here on.
    let end = peer.link.ended().await;
    assert!(matches!(end, LinkEnd::Goodbye(why) if why.contains("said nothing")));
    served.await.unwrap();
}

#[tokio::test]
async fn a_client_that_wants_nothing_does_not_stay() {
    let (peer, served) = peer_of(&shared(1, None)).await;
    let end = peer.link.ended().await;
    assert!(matches!(end, LinkEnd::Goodbye(why) if why.contains("wanted nothing")));
    served.await.unwrap();
}

#[tokio::test]
async fn files_are_verified_laid_out_and_run_below_the_workers_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let worker = shared(1, Some(store.clone()));
    let (mut peer, served) = peer_of(&worker).await;
    let roots = vec!["/client/project".into()];
    let spec = SessionSpec { roots, ..SessionSpec::default() };
    let in_place = SessionSpec { in_place: true, ..spec.clone() };
    let refusal = peer.worker.open(link::context(DEADLINE), in_place).await.unwrap().unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Forbidden);
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();

    let blob = b"the data of a test";
    let (digest, size) = (Digest::of(blob), blob.len() as u64);
    let node = TreeNode::File { digest, size, mode: 0o644 };
    let entries = vec![TreeEntry { path: "/client/project/data.txt".into(), node }];
    let missing = peer.worker.missing(link::context(DEADLINE), vec![digest]).await.unwrap();
    assert_eq!(missing.unwrap(), [digest]);
    let tree = TreeSpec { entries };
    let refusal = peer.worker.lay_tree(link::context(DEADLINE), tree.clone()).await;
    assert_eq!(refusal.unwrap().unwrap_err().kind, RefusalKind::MissingBlob);
    let forged = peer.put(blob, b"something different", Encoding::Raw).await.unwrap_err();
    assert!(matches!(forged.kind, RefusalKind::Corrupt | RefusalKind::Invalid), "{forged:?}");
    let packed = zstd::encode_all(&blob[..], 1).unwrap();
    assert_eq!(peer.put(blob, &packed, Encoding::Zstd).await, Ok(PutReply::Stored));
    peer.worker.lay_tree(link::context(DEADLINE), tree).await.unwrap().unwrap();

    let env = vec![("DATA".into(), "/client/project/data.txt".into())];
    peer.prepare_sh("/client/project", env, vec![]).await.unwrap();
    peer.lease(&[(1, "cat data.txt \"$DATA\"; echo; echo $DATA", Streams::Capture)]).await;
    peer.started(1).await;
    let output = String::from_utf8(peer.finished(1).await.stdout.inline.to_vec()).unwrap();
    let (texts, path) = output.trim_end().split_once('\n').unwrap();
    assert_eq!(texts, "the data of a testthe data of a test");
    assert!(path.starts_with(dir.path().to_str().unwrap()) && path.ends_with("/data.txt"));
    assert!(Path::new(path).exists());
    drop(peer);
    served.await.unwrap();
    assert!(!Path::new(path).exists(), "the sandbox outlived its session");
    assert_eq!(store.owned(None).missing(&[digest]), [], "the blob is kept");
}

#[tokio::test]
async fn an_upload_left_half_way_is_refused_once_and_then_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (peer, _served) =
        peer_of(&shared(1, Some(Store::open(dir.path(), 1 << 30).unwrap()))).await;
    let blob: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let packed = zstd::encode_all(&blob[..], 1).unwrap();
    let (digest, size) = (Digest::of(&blob), blob.len() as u64);
    let half = Bytes::copy_from_slice(&packed[..packed.len() / 2]);
    let encoding = Encoding::Zstd;
    let chunk = BlobChunk { digest, size, encoding, data: half.clone(), last: false };
    let reply = peer.worker.put(link::context(DEADLINE), chunk.clone()).await.unwrap();
    assert_eq!(reply, Ok(PutReply::More));
    // Another sender begins, and waits for each answer.
    let mut reply = peer.worker.put(link::context(DEADLINE), chunk).await.unwrap();
    if reply == Ok(PutReply::More) {
        let data = Bytes::copy_from_slice(&packed[packed.len() / 2..]);
        let chunk = BlobChunk { digest, size, encoding, data, last: true };
        reply = peer.worker.put(link::context(DEADLINE), chunk).await.unwrap();
    }
    assert_eq!(reply.unwrap_err().kind, RefusalKind::Corrupt);
    assert_eq!(peer.put(&blob, &packed, encoding).await, Ok(PutReply::Stored));
}

/// It serves several clients, on whatever machine.
const SEVERAL: &[&str] = &["--trust-clients"];

/// A `distest-worker serve` of its own, and a key that it lets in. Ended when dropped.
struct Served {
    process: Child,
    address: String,
    worker_key: PublicKey,
    our_key: PrivateKey,
    folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        Self::with(SEVERAL)
    }

    fn with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What a client of the same user has: on loopback it needs no telling.
        let config = Folder::at(folder.path().join("config/distest"));
        let our_key = PrivateKey::load_or_make(&config.client_key()).unwrap();
        let (process, address, worker_key) = Self::run(&folder, more);
        Self { process, address, worker_key, our_key, folder }
    }

    /// Kills it and starts another with the same files.
    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.process, self.address, self.worker_key) = Self::run(&self.folder, SEVERAL);
    }

    fn run(folder: &tempfile::TempDir, more: &[&str]) -> (Child, String, PublicKey) {
        let mut process = Command::new(WORKER)
            .args(["serve", "--listen", "127.0.0.1:0", "--slots", "2", "--name", "w2"])
            .args(more)
            .arg("--store")
            .arg(folder.path().join("store"))
            .env("XDG_CONFIG_HOME", folder.path().join("config"))
            .env("XDG_STATE_HOME", folder.path().join("state"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("ready w2 tcp://").unwrap();
        let (address, worker_key) = address.split_once('#').unwrap();
        (process, address.to_owned(), worker_key.parse().unwrap())
    }

    /// The list of keys that it lets in.
    fn authorized_keys(&self) -> std::path::PathBuf {
        Folder::at(self.folder.path().join("config/distest")).authorized_keys()
    }

    /// A secured stream of whoever has `key`.
    async fn stream_of(&self, key: &PrivateKey) -> tls::Stream<tokio::net::TcpStream> {
        let stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let worker_key = self.worker_key;
        let trust: tls::Trust = Arc::new(move |key| *key == worker_key);
        tls::connect(stream, key, tls::Purpose::Session, trust).await.unwrap().stream
    }
}

/// A key that the worker lets in, and a session of its own.
async fn client(served: &Served, name: &str) -> (PrivateKey, Peer) {
    let key = PrivateKey::generate().unwrap();
    let path = served.authorized_keys();
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, format!("{before}{} run {name}\n", key.public())).unwrap();
    let peer = session_of(served, &key).await;
    (key, peer)
}

async fn session_of(served: &Served, key: &PrivateKey) -> Peer {
    let peer = connect(served.stream_of(key).await).await;
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    peer
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn the_executable_serves_and_ends_in_order() {
    let mut served = Served::start();
    let mut peer = connect(served.stream_of(&served.our_key).await).await;
    assert_eq!((peer.hello.name.as_str(), peer.hello.slots), ("w2", 2));
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    peer.prepare_sh("/", vec![], vec![]).await.unwrap();
    let seconds = format!("1000.{}", std::process::id());
    let script = format!("sleep {seconds} & echo it sleeps; wait");
    peer.lease(&[(7, &script, Streams::Live)]).await;
    peer.started(7).await;
    peer.output(10).await;
    // The shell has started it, but perhaps it is still the shell.
    while !runs(&["sleep", &seconds]) {
        tokio::task::yield_now().await;
    }
    let id = nix::unistd::Pid::from_raw(served.process.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(peer.report().await, Report::Draining {});
    assert!(runs(&["sleep", &seconds]), "what runs comes to its end, unless");
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(peer.lost().await, (7, LossReason::Stopped));
    let end = peer.link.ended().await;
    assert_eq!(end, LinkEnd::Goodbye("the worker is shutting down".to_owned()));
    assert!(served.process.wait().unwrap().success());
    assert!(!runs(&["sleep", &seconds]), "it outlived its worker");
}

/// What a hello of whoever has `key` comes to.
async fn greets(served: &Served, key: &PrivateKey) -> Result<(), HelloError> {
    let mut stream = served.stream_of(key).await;
    let hello = exchange(&mut stream, &Hello::new(Role::Client, "test"), HELLO_TIMEOUT).await;
    hello.map(|_| ())
}

fn refused(result: Result<(), HelloError>) -> bool {
    matches!(result, Err(HelloError::Io(error)) if tls::refusal(&error))
}

#[tokio::test]
async fn an_unknown_key_is_refused_and_a_withdrawn_one_is_out_at_once() {
    let served = Served::start();
    let key = PrivateKey::generate().unwrap();
    assert!(refused(greets(&served, &key).await), "nobody knows this key");

    let line = format!("{} run a colleague\n", key.public());
    std::fs::write(served.authorized_keys(), &line).unwrap();
    let mut peer = connect(served.stream_of(&key).await).await;
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    peer.prepare_sh("/", vec![], vec![]).await.unwrap();
    // By its arguments, because in a sandbox it has another number.
    let seconds = format!("2000.{}", std::process::id());
    let script = format!("sleep {seconds} & echo it sleeps; wait");
    peer.lease(&[(7, &script, Streams::Live)]).await;
    peer.started(7).await;
    peer.output(10).await;

    std::fs::write(served.authorized_keys(), "").unwrap();
    let end = peer.link.ended().await;
    assert_eq!(end, LinkEnd::Goodbye("this key's permission was withdrawn".to_owned()));
    assert!(!runs(&["sleep", &seconds]), "what it ran has ended");
    assert!(refused(greets(&served, &key).await), "the same process, a second connection");
    assert!(greets(&served, &served.our_key).await.is_ok(), "others are none the worse");
}

#[tokio::test]
async fn a_worker_that_brings_files_is_not_silent() {
    let served = Served::start();
    let mut peer = connect(served.stream_of(&served.our_key).await).await;
    let (roots, collect) = (vec!["/client".into()], vec!["**/*.out".into()]);
    let spec = SessionSpec { roots, collect, ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec.clone()).await.unwrap().unwrap();
    peer.prepare_sh("/client", vec![], vec![]).await.unwrap();
    peer.lease(&[(1, "echo one > a.out; echo two > b.out", Streams::Capture)]).await;
    peer.started(1).await;
    assert_eq!(peer.finished(1).await.exit, Exit::Code(0));
    let worker = peer.worker.clone();
    let closing = tokio::spawn(async move { worker.close(link::context(DEADLINE)).await });
    for name in ["/client/a.out", "/client/b.out"] {
        let Some(Told::Piece(piece, taken)) = peer.told.recv().await else { panic!("no piece") };
        assert_eq!(piece.path.as_path(), Path::new(name));
        // However long this client takes for it, the worker is heard.
        peer.worker.ping(link::context(DEADLINE)).await.unwrap();
        taken.send(()).unwrap();
    }
    closing.await.unwrap().unwrap();
    let refusal = peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Invalid, "a connection has one session");
}

#[tokio::test]
async fn a_session_whose_files_take_long_is_closed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let (mut peer, _served) = peer_of(&shared(1, Some(store))).await;
    let (roots, collect) = (vec!["/client".into()], vec!["**/*.out".into()]);
    let spec = SessionSpec { roots, collect, ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    peer.prepare_sh("/client", vec![], vec![]).await.unwrap();
    peer.lease(&[(1, "echo one > a.out", Streams::Capture)]).await;
    peer.started(1).await;
    assert_eq!(peer.finished(1).await.exit, Exit::Code(0));
    let worker = peer.worker.clone();
    let deadline = link::context(link::DEADLINE_MAX);
    let closing = tokio::spawn(async move { worker.close(deadline).await });
    let Some(Told::Piece(_, taken)) = peer.told.recv().await else { panic!("no piece") };
    // Longer than a client without a session may want nothing.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(30)).await;
    tokio::time::resume();
    taken.send(()).unwrap();
    closing.await.unwrap().expect("what it asked for is answered before it is sent away");
}

#[tokio::test]
async fn a_key_without_the_permission_runs_nothing() {
    let served = Served::start();
    let key = PrivateKey::generate().unwrap();
    std::fs::write(served.authorized_keys(), format!("{} view,copy x\n", key.public())).unwrap();
    let peer = connect(served.stream_of(&key).await).await;
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    let refusal = peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Forbidden);
    assert!(refusal.message.contains("`run`"), "{refusal}");
    let digest = Digest::of(b"x");
    let missing = peer.worker.missing(link::context(DEADLINE), vec![digest]).await.unwrap();
    assert_eq!(missing.unwrap_err().kind, RefusalKind::Forbidden);
    let refusal = peer.prepare_sh("/", vec![], vec![]).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Forbidden);
}

/// An attempt to run a script.
fn attempt(id: u64, script: &str, streams: Streams) -> AttemptSpec {
    AttemptSpec {
        id: AttemptId(id),
        binary: SH,
        args: vec!["-c".into(), script.into()],
        env: vec![("C".into(), "attempt".into())],
        limits: Limits { grace: Duration::from_secs(60), ..Limits::default() },
        streams,
        progress: false,
        unset: Vec::new(),
        network: Network::Host,
        places: 1,
        label: String::new(),
    }
}

/// Connections to an address that its server holds, by the kernel's table: its descriptors are
/// hidden, as it holds keys.
fn held(address: &str) -> usize {
    let port = address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let is_held = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return false };
        // Established or half closed; no inode before it is accepted.
        local.ends_with(&format!(":{port:04X}")) && matches!(state, "01" | "08") && inode != "0"
    };
    std::fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).filter(is_held).count()
}

#[tokio::test]
async fn a_thousand_silent_strangers_keep_nobody_out() {
    let served = Served::start();
    let mut strangers = Vec::new();
    for number in 0..1000 {
        let mut stream = tokio::net::TcpStream::connect(&served.address).await.unwrap();
        if number % 2 == 0 {
            // Half a ClientHello.
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x16\x03\x01\x02\x00")
                .await
                .unwrap();
        }
        strangers.push(stream);
    }
    assert!(greets(&served, &served.our_key).await.is_ok());
    let open = held(&served.address);
    assert!(open <= 256 + 8, "{open} connections of strangers");
    assert!(open > 0, "some are held still");
}

#[tokio::test]
async fn a_known_peer_that_breaks_the_rules_is_cut_and_others_are_none_the_worse() {
    let served = Served::start();
    let mut other = connect(served.stream_of(&served.our_key).await).await;
    let spec = || SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    other.worker.open(link::context(DEADLINE), spec()).await.unwrap().unwrap();
    other.prepare_sh("/", vec![], vec![]).await.unwrap();
    // After the greeting: a frame of 4 GiB, and garbage.
    let garbage: Vec<u8> =
        (3..4096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [vec![0xff; 64], garbage] {
        let mut stream = served.stream_of(&served.our_key).await;
        exchange(&mut stream, &Hello::new(Role::Client, "liar"), HELLO_TIMEOUT).await.unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
        let mut rest = Vec::new();
        // Closed by the worker, whatever it says before.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    }
    // A greeting that declares 4 GiB, and one of another version.
    for head in [[0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff], [0, 0, 0, 0, 0, 0, 0, 1]] {
        let mut stream = served.stream_of(&served.our_key).await;
        let bytes = [b"\xd1distest".as_slice(), &head].concat();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
    }
    other.lease(&[(1, "true", Streams::Capture)]).await;
    other.started(1).await;
    assert_eq!(other.finished(1).await.exit, Exit::Code(0));
}

#[test]
fn stdio_checks_keys_and_its_exception_is_not_for_networks() {
    let folder = tempfile::tempdir().unwrap();
    let stdio = |args: &[&str]| {
        let mut command = Command::new(WORKER);
        command.arg("stdio").args(args).arg("--store").arg(folder.path().join("store"));
        command.env("XDG_CONFIG_HOME", folder.path().join("config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    // As inetd would start it.
    let socket = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        (near, std::os::fd::OwnedFd::from(far))
    };
    let end = |mut command: Command| command.spawn().unwrap().wait_with_output().unwrap();
    for which in ["stdin", "stdout", "stderr"] {
        let (mut near, far) = socket();
        let mut command = stdio(&["--trusted"]);
        match which {
            "stdin" => command.stdin(far),
            "stdout" => command.stdout(far),
            _ => command.stderr(far),
        };
        let refused = end(command);
        assert_eq!(refused.status.code(), Some(96), "{which}");
        let mut said = String::from_utf8(refused.stderr).unwrap();
        if which == "stderr" {
            std::io::Read::read_to_string(&mut near, &mut said).unwrap();
        }
        assert!(said.contains(&format!("{which} is a network socket")), "{which}: {said}");
    }
    // Somebody at the other end greets without a key.
    let (mut near, far) = socket();
    std::io::Write::write_all(&mut near, b"\xd1distest\0\x01\0\0\0\0\0\x01\x80").unwrap();
    let mut command = stdio(&[]);
    command.stdin(far);
    let refused = end(command);
    assert_eq!(refused.status.code(), Some(96));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no client"), "{refused:?}");
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test]
async fn what_cannot_be_loaded_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let compile = |args: &[&str], code: &str| {
        std::fs::write(dir.path().join("source.c"), code).unwrap();
        let status = Command::new("cc").current_dir(dir.path()).args(args).arg("source.c").status();
        assert!(status.unwrap().success());
    };
    compile(&["-shared", "-fPIC", "-o", "libmine.so"], "int f(void) { return 0; }");
    std::fs::write(dir.path().join("source.c"), "int f(void); int main(void) { return f(); }")
        .unwrap();
    let linked = Command::new("cc")
        .current_dir(dir.path())
        .args(["-o", "program", "source.c", "-L.", "-lmine"])
        .status();
    assert!(linked.unwrap().success());

    let store = Store::open(&dir.path().join("store"), u64::MAX).unwrap();
    let (peer, _) = peer_of(&shared(1, Some(store))).await;
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    let send = async |name: &str| {
        let bytes = std::fs::read(dir.path().join(name)).unwrap();
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let chunk =
            BlobChunk { digest, size, encoding: Encoding::Raw, data: bytes.into(), last: true };
        let stored = peer.worker.put(link::context(DEADLINE), chunk).await.unwrap();
        assert_eq!(stored, Ok(PutReply::Stored));
        let path = format!("/client/{name}").as_str().into();
        TreeEntry { path, node: TreeNode::File { digest, size, mode: 0o755 } }
    };
    let (program, library) = (send("program").await, send("libmine.so").await);
    let prepare = async |files: Vec<TreeEntry>| {
        let binary = BinarySpec {
            key: BinaryKey(1),
            label: "mine".to_owned(),
            program: "/client/program".into(),
            cwd: "/client".into(),
            env: vec![("LD_LIBRARY_PATH".into(), "/client:/nowhere".into())],
            files,
            writable: vec![],
        };
        peer.worker.prepare(link::context(DEADLINE), binary).await.unwrap()
    };
    let refusal = prepare(vec![program.clone()]).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Incompatible);
    assert!(refusal.message.contains("program needs the library libmine.so"), "{refusal}");
    assert_eq!(prepare(vec![library, program]).await, Ok(()));
}
