//! Clients that come back to their session after a connection broke, and others who would like to.

use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;

use distest_worker::link::resume::Claim;
use distest_worker::link::{Dialling, Renewal, Resumed, Stream, Undialled, client_end_lasting};
use distest_worker::message;
use distest_worker::tls::{Purpose, Secured};
use tokio::io::AsyncReadExt;

use super::*;

/// The same socket, to break the connection by.
type Cutter = Arc<Mutex<Option<TcpStream>>>;

impl Served {
    /// Dials for something; remembers the socket.
    async fn dial(
        address: &str,
        worker_key: PublicKey,
        key: &PrivateKey,
        purpose: Purpose,
        cutter: &Cutter,
    ) -> Result<tls::Stream<tokio::net::TcpStream>, tls::TlsError> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        *cutter.lock().unwrap() = Some(stream.try_clone().unwrap());
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let trust: tls::Trust = Arc::new(move |key| *key == worker_key);
        let secured = tls::connect(stream, key, purpose, trust).await;
        secured.map(|Secured { stream, .. }| stream)
    }

    /// A client that comes back if it may, and what it takes to break its connection.
    async fn lasting(
        &self,
        key: &PrivateKey,
        returns: bool,
    ) -> (Peer, Cutter, mpsc::Receiver<Resumed>) {
        let cutter = Cutter::default();
        let (address, worker_key) = (self.address.clone(), self.worker_key);
        let first = Self::dial(&address, worker_key, key, Purpose::Session, &cutter).await;
        let mut stream = first.unwrap();
        let ours = Hello { comes_back: true, ..Hello::new(Role::Client, "test") };
        let hello = exchange(&mut stream, &ours, HELLO_TIMEOUT).await.unwrap();
        let (key, again) = (key.clone(), Arc::clone(&cutter));
        let dial = Box::new(move || {
            let (address, key, cutter) = (address.clone(), key.clone(), Arc::clone(&again));
            let dialled = async move {
                if !returns {
                    return Err(Undialled::Yet);
                }
                let stream = Self::dial(&address, worker_key, &key, Purpose::Resume, &cutter);
                Ok(Box::new(stream.await.map_err(|_| Undialled::Yet)?) as Stream)
            };
            Box::pin(dialled) as _
        });
        let (told, resumed) = mpsc::channel(100);
        let tell = Box::new(move |it| told.try_send(it).unwrap());
        let token = hello.comeback.clone();
        let renewal = Renewal::Dials(Dialling { dial, token, tell, tries: 0 });
        let (tell, told) = mpsc::unbounded_channel();
        let (worker, link) =
            client_end_lasting(Box::new(stream), renewal, move |context, request| {
                Listener(tell.clone()).serve().serve(context, request)
            });
        let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
        worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
        (Peer { worker, link, told, hello }, cutter, resumed)
    }

    /// What somebody with this key is told who claims that.
    async fn claims(&self, key: &PrivateKey, token: &str, number: u64, received: u64) -> Answer {
        let cutter = Cutter::default();
        let purpose = Purpose::Resume;
        let stream = Self::dial(&self.address, self.worker_key, key, purpose, &cutter).await;
        let mut stream = stream.unwrap();
        let claim = Claim { token: token.to_owned(), number, received };
        message::send(&mut stream, &claim).await.unwrap();
        let length = match stream.read_u32().await {
            Ok(length) => length,
            Err(error) => {
                assert!(tls::refusal(&error), "{error}");
                return Answer::NotLetIn;
            }
        };
        let mut told = vec![0; length as usize];
        stream.read_exact(&mut told).await.unwrap();
        match told.escape_ascii().to_string() {
            told if told.contains("Resumed") => Answer::Resumed,
            told if told.contains("Unknown") => Answer::Unknown,
            odd => panic!("{odd}"),
        }
    }
}

/// What somebody is told who comes back.
#[derive(PartialEq, Eq, Debug)]
enum Answer {
    Resumed,
    Unknown,
    NotLetIn,
}

#[tokio::test]
async fn a_session_goes_on_over_connections_that_break() {
    let served = Served::start();
    let (mut peer, cutter, mut resumed) = served.lasting(&served.our_key, true).await;
    peer.prepare_sh("/", vec![], vec![]).await.unwrap();
    let script = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done";
    peer.lease(&[(7, script, Streams::Live)]).await;
    peer.started(7).await;
    let (mut output, mut broken) = (Vec::new(), 0);
    let finished = loop {
        match peer.told.recv().await.unwrap() {
            Told::Output(chunk) => output.extend_from_slice(&chunk.data),
            Told::Report(Report::Finished(finished)) => break finished,
            other => panic!("{other:?}"),
        }
        // Somewhere in what is on the way, and again when that has healed.
        if output.len() > broken * 40_000 && broken < 6 {
            cutter.lock().unwrap().take().unwrap().shutdown(Shutdown::Both).unwrap();
            broken += 1;
            // A connection of which something has come is a new one.
            let Resumed { broke, .. } = resumed.recv().await.unwrap();
            assert_eq!(broke, LinkEnd::PeerClosed);
        }
    };
    assert_eq!((finished.attempt, finished.exit, broken), (AttemptId(7), Exit::Code(0), 6));
    let expected: String = (0..30_000).map(|i| format!("line {i}\n")).collect();
    assert!(output == expected.as_bytes(), "each byte once, and in order");
    peer.worker.close(link::context(DEADLINE)).await.unwrap();
}

#[tokio::test]
async fn only_its_own_client_comes_back_to_a_session_and_once_by_each_attempt() {
    let served = Served::start();
    let (other, _peer) = client(&served, "other").await;
    let (key, first) = client(&served, "mine").await;
    let (peer, _cutter, _) = served.lasting(&key, false).await;
    let (token, received) = (peer.hello.comeback.as_str(), peer.link.stats().received());
    assert!(token.len() >= 22, "128 bits at least: {token}");
    let claims = |key, token, number| served.claims(key, token, number, received);
    for stolen_by in [&other, &served.our_key] {
        assert_eq!(claims(stolen_by, token, 1).await, Answer::Unknown);
    }
    let stranger = PrivateKey::generate().unwrap();
    assert_eq!(claims(&stranger, token, 1).await, Answer::NotLetIn);
    let guessed = token.replace(|_| true, "A");
    for guess in [&guessed, "", &token[1..]] {
        assert_eq!(claims(&key, guess, 1).await, Answer::Unknown);
    }
    // Who has not said that it comes back can't.
    assert_eq!(claims(&key, &first.hello.comeback, 1).await, Answer::Unknown);
    peer.worker.ping(link::context(DEADLINE)).await.unwrap();
    let received = peer.link.stats().received();
    let claims = |number| served.claims(&key, token, number, received);
    // To the worker the first connection seems alive, and the later one counts.
    assert_eq!(claims(2).await, Answer::Resumed);
    for late in [2, 1] {
        assert_eq!(claims(late).await, Answer::Unknown, "replayed");
    }
    assert_eq!(claims(3).await, Answer::Resumed);
    // No position at which anything could go on.
    assert_eq!(served.claims(&key, token, 4, 1 << 40).await, Answer::Unknown);
    assert_eq!(claims(5).await, Answer::Unknown, "that ended it");
}

/// An attempt that would never end, under a name of its own.
async fn sleeps(peer: &mut Peer, number: u32) -> [String; 2] {
    let seconds = format!("{number}.{}", std::process::id());
    peer.prepare_sh("/", vec![], vec![]).await.unwrap();
    let script = format!("sleep {seconds} & echo it sleeps; wait");
    peer.lease(&[(7, &script, Streams::Live)]).await;
    peer.started(7).await;
    peer.output(10).await;
    let words = ["sleep".to_owned(), seconds];
    while !runs(&[&words[0], &words[1]]) {
        tokio::task::yield_now().await;
    }
    words
}

#[tokio::test]
async fn who_stays_away_finds_nothing_left() {
    let served = Served::start();
    let (key, _peer) = client(&served, "mine").await;
    let (mut peer, cutter, _) = served.lasting(&key, false).await;
    let [sleep, seconds] = sleeps(&mut peer, 3000).await;
    cutter.lock().unwrap().take().unwrap().shutdown(Shutdown::Both).unwrap();
    assert_eq!(peer.link.ended().await, LinkEnd::PeerClosed);
    while runs(&[&sleep, &seconds]) {
        tokio::task::yield_now().await;
    }
    let received = peer.link.stats().received();
    let token = peer.hello.comeback.as_str();
    assert_eq!(served.claims(&key, token, 1, received).await, Answer::Unknown);
}

#[tokio::test]
async fn a_withdrawn_key_comes_back_to_nothing() {
    let served = Served::start();
    let (key, _peer) = client(&served, "mine").await;
    let (mut peer, cutter, _) = served.lasting(&key, false).await;
    let [sleep, seconds] = sleeps(&mut peer, 4000).await;
    cutter.lock().unwrap().take().unwrap().shutdown(Shutdown::Both).unwrap();
    let list = std::fs::read_to_string(served.authorized_keys()).unwrap();
    std::fs::write(served.authorized_keys(), "").unwrap();
    let received = peer.link.stats().received();
    let token = peer.hello.comeback.as_str();
    assert_eq!(served.claims(&key, token, 1, received).await, Answer::NotLetIn);
    while runs(&[&sleep, &seconds]) {
        tokio::task::yield_now().await;
    }
    std::fs::write(served.authorized_keys(), list).unwrap();
    assert_eq!(served.claims(&key, token, 2, received).await, Answer::Unknown);
}
