//! A hostile worker, and services that misbehave.

use std::net::{TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::net::UnixListener as StdUnixListener;

use distest_worker::link::{self, DEADLINE, DEADLINE_BULK, Link};
use distest_worker::protocol::{
    AttemptId, ClientClient, OutputChunk, Stream, WorkerRequest, WorkerResponse,
};
use tarpc::ServerError;
use tarpc::server::Serve;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use super::*;
use crate::collect::Collector;
use crate::fleet::FleetMessage;
use crate::fleet::callbacks::Callbacks;
use crate::fleet::notices::Notice;
use crate::model::WorkerId;
use distest_worker::protocol::Client;

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker that may ask for whatever it wants.
struct Hostile {
    client: ClientClient,
    said: mpsc::Receiver<FleetMessage>,
    told: mpsc::UnboundedReceiver<Notice>,
    _links: [Link; 2],
}

/// To which these were declared.
fn hostile(declared: &[Forward]) -> Hostile {
    let (messages, said) = mpsc::channel(64);
    let (notices, told) = Notices::new();
    let forwards = Forwards::new("w1", declared, notices);
    let collector = Arc::new(Collector::nothing());
    let callbacks = Callbacks { worker: WorkerId(0), messages, collector, forwards };
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (_, near) = link::client_end(near, move |context, request| {
        callbacks.clone().serve().serve(context, request)
    });
    let mut client = None;
    let far = link::worker_end(far, |it| {
        client = Some(it);
        |_, _: WorkerRequest| std::future::pending::<Result<WorkerResponse, ServerError>>()
    });
    Hostile { client: client.unwrap(), said, told, _links: [near, far] }
}

impl Hostile {
    async fn open(&self, id: u64, forward: &Forward) -> Result<(), Refusal> {
        let context = link::context(DEADLINE);
        self.client.forward_open(context, ForwardedId(id), forward.clone()).await.unwrap()
    }

    async fn write(&self, id: u64, data: Bytes) -> Result<(), Refusal> {
        let piece = ForwardedPiece { connection: ForwardedId(id), data };
        self.client.forward_write(link::context(DEADLINE_BULK), piece).await.unwrap()
    }

    async fn read(&self, id: u64) -> Result<Bytes, Refusal> {
        self.client.forward_read(link::context(DEADLINE_BULK), ForwardedId(id)).await.unwrap()
    }

    async fn close(&self, id: u64) {
        self.client.forward_close(link::context(DEADLINE), ForwardedId(id)).await.unwrap();
    }

    /// What the user has been told of so far.
    fn notices(&mut self) -> Vec<String> {
        let notices = std::iter::from_fn(|| self.told.try_recv().ok());
        notices.map(|notice| notice.text).collect()
    }
}

fn at(path: &Path) -> Forward {
    Forward::Socket(path.into())
}

fn piece(bytes: usize) -> Bytes {
    vec![7; bytes].into()
}

/// What a call is refused for.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Refusal>) -> RefusalKind {
    answer.unwrap_err().kind
}

#[tokio::test]
async fn what_was_not_declared_is_never_reached() {
    let folder = tempfile::tempdir().unwrap();
    let decoy = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let declared = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &StdTcpListener| Forward::Port(listener.local_addr().unwrap().port());
    let path = folder.path().join("decoy");
    let socket = StdUnixListener::bind(&path).unwrap();
    let near = folder.path().join("declared");
    let declared_socket = StdUnixListener::bind(&near).unwrap();

    let mut worker = hostile(&[port(&declared), at(&near)]);
    let roundabout = near.join("../decoy");
    let doubled = folder.path().join(".//declared");
    let targets = [port(&decoy), at(&path), at(&roundabout), at(&doubled), Forward::Port(0)];
    for (id, target) in (0..).zip(&targets) {
        for _ in 0..2 {
            assert_eq!(refused(worker.open(id, target).await), RefusalKind::Forbidden, "{target}");
        }
        assert_eq!(refused(worker.read(id).await), RefusalKind::Closed);
        assert_eq!(refused(worker.write(id, piece(1)).await), RefusalKind::Closed);
    }
    let notices = worker.notices();
    assert_eq!(notices.len(), targets.len(), "each once: {notices:#?}");
    assert!(notices.iter().all(|text| text.contains("worker w1") && text.contains("refused")));
    let Forward::Port(number) = targets[0] else { unreachable!() };
    assert!(notices[0].contains(&format!("port {number}")), "{notices:#?}");

    // A connection would be in the queue by now.
    for listener in [&decoy, &declared] {
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    for listener in [&socket, &declared_socket] {
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    // What was declared is, also after all that.
    worker.open(50, &port(&declared)).await.unwrap();
    worker.open(51, &at(&near)).await.unwrap();
    assert!(declared.accept().is_ok() && declared_socket.accept().is_ok());
}

#[tokio::test]
async fn whoever_has_nothing_declared_reaches_nothing() {
    let decoy = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let worker = hostile(&[]);
    let target = Forward::Port(decoy.local_addr().unwrap().port());
    assert_eq!(refused(worker.open(0, &target).await), RefusalKind::Forbidden);
    decoy.set_nonblocking(true).unwrap();
    assert_eq!(decoy.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    const BYTES: usize = 3 << 20;
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let forward = Forward::Port(service.local_addr().unwrap().port());
    let worker = hostile(std::slice::from_ref(&forward));
    let served = tokio::spawn(async move {
        let (mut stream, _) = service.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    });
    worker.open(1, &forward).await.unwrap();
    let sent: Vec<u8> = (0..BYTES).map(|number| (number % 251) as u8).collect();
    for chunk in sent.chunks(CHUNK_BYTES_MAX) {
        worker.write(1, Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    worker.write(1, Bytes::new()).await.unwrap();
    let mut back = Vec::new();
    loop {
        let data = worker.read(1).await.unwrap();
        assert!(data.len() <= CHUNK_BYTES_MAX);
        if data.is_empty() {
            break;
        }
        back.extend_from_slice(&data);
    }
    back.reverse();
    assert!(back == sent);
    served.await.unwrap();
}

#[tokio::test]
async fn each_bound_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    // Takes connections in, and never reads.
    let _service = UnixListener::bind(&path).unwrap();
    let forward = at(&path);
    let mut worker = hostile(std::slice::from_ref(&forward));
    worker.open(1, &forward).await.unwrap();
    assert_eq!(refused(worker.open(1, &forward).await), RefusalKind::Invalid, "twice");
    assert_eq!(refused(worker.write(1, piece(CHUNK_BYTES_MAX + 1)).await), RefusalKind::Invalid);

    // More than the kernel keeps.
    let writes: Vec<_> = (0..FORWARD_PIECES_MAX)
        .map(|_| {
            let piece = ForwardedPiece { connection: ForwardedId(1), data: piece(CHUNK_BYTES_MAX) };
            let client = worker.client.clone();
            tokio::spawn(
                async move { client.forward_write(link::context(DEADLINE_BULK), piece).await },
            )
        })
        .collect();
    let client = worker.client.clone();
    let reading = tokio::spawn(async move {
        client.forward_read(link::context(DEADLINE_BULK), ForwardedId(1)).await
    });
    // On one thread: they have been sent, and what follows comes after them.
    tokio::task::yield_now().await;
    assert_eq!(refused(worker.write(1, piece(CHUNK_BYTES_MAX)).await), RefusalKind::Invalid);
    assert_eq!(refused(worker.read(1).await), RefusalKind::Invalid);

    for id in 2..=FORWARDED_MAX as u64 {
        worker.open(id, &forward).await.unwrap();
    }
    let refusal = worker.open(1000, &forward).await;
    assert_eq!(refused(refusal), RefusalKind::OutOfResources);
    assert_eq!(refused(worker.open(1001, &forward).await), RefusalKind::OutOfResources);
    let notices = worker.notices();
    assert!(notices.len() == 1 && notices[0].contains("100 connections"), "{notices:?}");
    worker.close(2).await;
    worker.open(1002, &forward).await.unwrap();
    worker.close(1).await;
    assert_eq!(refused(worker.write(1, piece(1)).await), RefusalKind::Closed);
    writes.iter().chain([]).for_each(tokio::task::JoinHandle::abort);
    reading.abort();
}

/// The services are stuck, not the link.
#[tokio::test]
async fn services_that_do_not_read_hold_up_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _service = UnixListener::bind(&path).unwrap();
    let forward = at(&path);
    let mut worker = hostile(std::slice::from_ref(&forward));
    let mut stuck = tokio::task::JoinSet::new();
    for id in 0..60 {
        worker.open(id, &forward).await.unwrap();
        for _ in 0..FORWARD_PIECES_MAX {
            let piece =
                ForwardedPiece { connection: ForwardedId(id), data: piece(CHUNK_BYTES_MAX) };
            let client = worker.client.clone();
            stuck.spawn(
                async move { client.forward_write(link::context(DEADLINE_BULK), piece).await },
            );
        }
    }
    // 30 MB before it, on the same lane.
    let chunk = OutputChunk { attempt: AttemptId(1), stream: Stream::Stdout, data: piece(9) };
    let output = worker.client.output(link::context(DEADLINE_BULK), chunk);
    let taken = async {
        let Some(FleetMessage::Output { taken, .. }) = worker.said.recv().await else {
            panic!("no output")
        };
        taken.send(()).unwrap();
    };
    let both = async { tokio::join!(output, taken).0.unwrap() };
    tokio::time::timeout(PATIENCE, both).await.expect("output hangs");
    assert!(stuck.try_join_next().is_none(), "they still are");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_told_of_once_by_its_name_and_the_cause() {
    let nobody = {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        Forward::Port(listener.local_addr().unwrap().port())
    };
    let folder = tempfile::tempdir().unwrap();
    let absent = at(&folder.path().join("absent"));
    let mut worker = hostile(&[nobody.clone(), absent.clone()]);
    for id in 0..3 {
        assert_eq!(refused(worker.open(id, &nobody).await), RefusalKind::Closed);
        assert_eq!(refused(worker.open(id, &absent).await), RefusalKind::Closed);
    }
    let notices = worker.notices();
    assert_eq!(notices.len(), 2, "{notices:#?}");
    let port = format!("could not connect tests to port {nobody} of this machine: ");
    assert!(notices[0].starts_with(&port) && notices[0].contains("refused"), "{notices:#?}");
    assert!(notices[1].contains(&absent.to_string()), "{notices:#?}");
}

#[tokio::test]
async fn a_service_that_breaks_off_breaks_the_connection_and_no_other() {
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let forward = Forward::Port(service.local_addr().unwrap().port());
    let worker = hostile(std::slice::from_ref(&forward));
    worker.open(1, &forward).await.unwrap();
    worker.open(2, &forward).await.unwrap();
    let (first, _) = service.accept().await.unwrap();
    let (mut second, _) = service.accept().await.unwrap();
    worker.write(1, piece(1)).await.unwrap();
    first.readable().await.unwrap();
    // With something unread, the kernel resets it.
    drop(first);
    assert_eq!(refused(worker.read(1).await), RefusalKind::Closed);
    second.write_all(b"well").await.unwrap();
    assert_eq!(worker.read(2).await.unwrap(), "well");
}

/// The kernel says so to the service as soon as nobody holds the connection.
#[tokio::test]
async fn connections_end_with_the_worker() {
    let service = StdTcpListener::bind("127.0.0.1:0").unwrap();
    let forward = Forward::Port(service.local_addr().unwrap().port());
    let worker = hostile(std::slice::from_ref(&forward));
    worker.open(1, &forward).await.unwrap();
    let (stream, _): (StdTcpStream, _) = service.accept().unwrap();
    let client = worker.client.clone();
    tokio::spawn(
        async move { client.forward_read(link::context(DEADLINE_BULK), ForwardedId(1)).await },
    );
    tokio::task::yield_now().await;
    drop(worker);
    stream.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}
