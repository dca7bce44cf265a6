//! Links that outlive their connections.

use std::sync::atomic::{AtomicUsize, Ordering};

use distest_worker::link::resume::{self, Claim};
use distest_worker::link::{
    Awaiting, BROKEN_MAX, Back, Backlog, Dialling, Renewal, Stream, Undialled, client_end_lasting,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::*;

const TOKEN: &str = "token";

/// Who learns that a connection has broken. The other end's stays open, and nothing comes any more.
#[derive(Clone, Copy, Debug)]
enum Notices {
    Both,
    Client,
    Worker,
}

/// Numbers that look random, the same for each seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % most
    }
}

/// A connection that breaks when so many bytes have gone either way; what is on the way is lost.
fn cable(bytes: [u64; 2], notices: Notices) -> (DuplexStream, DuplexStream) {
    let ((near, a), (b, far)) = (duplex(4096), duplex(4096));
    tokio::spawn(async move {
        let (mut from_near, mut to_near) = tokio::io::split(a);
        let (mut from_far, mut to_far) = tokio::io::split(b);
        let up = pass(&mut from_near, &mut to_far, bytes[0]);
        let down = pass(&mut from_far, &mut to_near, bytes[1]);
        tokio::select! {
            () = up => {}
            () = down => {}
        }
        let unaware = match notices {
            Notices::Both => return,
            Notices::Client => (from_far, to_far, drop((from_near, to_near))),
            Notices::Worker => (from_near, to_near, drop((from_far, to_far))),
        };
        sleep(Duration::from_secs(60)).await;
        drop(unaware);
    });
    (near, far)
}

async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), bytes: u64) {
    let _ = tokio::io::copy(&mut from.take(bytes), to).await;
}

/// Both ends of a link, whose connections each get what `cable` answers.
fn lasting(
    mut next: impl FnMut() -> Option<(DuplexStream, DuplexStream)> + Send + 'static,
) -> (Ends, Arc<AtomicUsize>) {
    let (near, far) = next().unwrap();
    let (back, awaited) = mpsc::channel(4);
    let next = Mutex::new(next);
    let dial = Box::new(move || {
        let connection = (next.lock().unwrap())();
        let back = back.clone();
        let dialled = async move {
            let (near, mut far) = connection.ok_or(Undialled::Yet)?;
            tokio::spawn(async move {
                // A connection may break before anything is said.
                let Ok(claim) = resume::listen(&mut far).await else { return };
                assert_eq!(claim.token, TOKEN);
                let _ = back.send(Back::new(far, claim).0).await;
            });
            Ok(Box::new(near) as Stream)
        };
        Box::pin(dialled) as _
    });
    let resumed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&resumed);
    let tell = Box::new(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
    let dialling = Dialling { dial, token: TOKEN.to_owned(), tell, tries: 0 };
    let (worker_link, service) = far_end(Box::new(far), awaited);
    let (worker, client_link) =
        client_end_lasting(Box::new(near), Renewal::Dials(dialling), |context, request| {
            TestClient.serve().serve(context, request)
        });
    (Ends { worker, client_link, worker_link, service }, resumed)
}

fn far_end(stream: Stream, awaited: mpsc::Receiver<Back>) -> (Link, TestWorker) {
    let back = Renewal::Awaits(Awaiting::new(awaited));
    serving(WorkerSide::lasting(stream, back, &Backlog::default()))
}

/// In virtual time.
#[tokio::test(start_paused = true)]
async fn wherever_connections_break_nothing_is_lost_or_repeated() {
    let mut all = 0;
    for seed in 0..24 {
        let mut dice = Dice(seed);
        let (ends, resumed) = lasting(move || {
            let bytes = [(); 2].map(|()| match dice.below(4) {
                0 => dice.below(200),
                _ => 20_000 + dice.below(400_000),
            });
            let whose = [Notices::Both, Notices::Client, Notices::Worker];
            Some(cable(bytes, whose[dice.below(3) as usize]))
        });
        let blob = |factor: usize| (0..1_500_000).map(|i| (i * i / factor) as u8).collect();
        let (a, b): (Vec<u8>, Vec<u8>) = (blob(7), blob(31));
        let spec = SessionSpec { slots: 300, ..SessionSpec::default() };
        let work = async {
            let opened = ends.worker.open(link::context(DEADLINE_BULK), spec);
            tokio::join!(upload(&ends.worker, &a), upload(&ends.worker, &b), opened)
        };
        // Who notices nothing is told that pings go unanswered.
        let doubts = async {
            loop {
                sleep(Duration::from_millis(20)).await;
                ends.client_link.doubt();
            }
        };
        let done = tokio::select! {
            done = work => done,
            () = doubts => unreachable!(),
            end = ends.client_link.ended() => panic!("seed {seed}, the client's end: {end}"),
            end = ends.worker_link.ended() => panic!("seed {seed}, the worker's end: {end}"),
        };
        assert_eq!((done.0, done.1), (PutReply::Stored, PutReply::Stored), "seed {seed}");
        assert_eq!(done.2.unwrap().unwrap().slots, 300, "seed {seed}");
        let blobs = ends.service.blobs.lock().unwrap();
        for sent in [&a, &b] {
            assert!(blobs[&Digest::of(sent)] == *sent, "seed {seed}: each byte, once");
        }
        all += resumed.load(Ordering::SeqCst);
    }
    assert!(all > 100, "{all} connections broke");
}

/// In virtual time.
#[tokio::test(start_paused = true)]
async fn a_link_that_stays_broken_ends_at_both_ends_in_time() {
    let mut first = Some(cable([u64::MAX, 300], Notices::Both));
    let (ends, _) = lasting(move || first.take());
    let spec = SessionSpec { slots: 100, ..SessionSpec::default() };
    let began = Instant::now();
    let (call, near, far) = tokio::join!(
        ends.worker.open(link::context(DEADLINE), spec),
        ends.client_link.ended(),
        ends.worker_link.ended(),
    );
    assert_eq!((near, far), (LinkEnd::PeerClosed, LinkEnd::PeerClosed));
    call.unwrap_err();
    assert!(began.elapsed() <= BROKEN_MAX + Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_link_that_is_settled_ends_with_its_connection() {
    let (ends, resumed) = lasting(|| Some(cable([u64::MAX; 2], Notices::Both)));
    ends.worker.ping(link::context(DEADLINE)).await.unwrap();
    ends.worker_link.settle();
    drop(ends.client_link);
    assert_eq!(ends.worker_link.ended().await, LinkEnd::PeerClosed);
    assert_eq!(resumed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_last_word_reaches_whoever_comes_back() {
    let (ends, _) = lasting(|| Some(cable([u64::MAX; 2], Notices::Both)));
    ends.worker.ping(link::context(DEADLINE)).await.unwrap();
    ends.worker_link.close("the worker is shutting down").await;
    let end = ends.client_link.ended().await;
    assert_eq!(end, LinkEnd::Goodbye("the worker is shutting down".to_owned()));
}

/// Comes back to a link and answers what it is told, and whether it goes on there.
async fn come_back(back: &mpsc::Sender<Back>, number: u64, received: u64) -> (String, bool) {
    let (mut near, far) = duplex(1024);
    let claim = Claim { token: TOKEN.to_owned(), number, received };
    let (coming, resumed): (_, oneshot::Receiver<()>) = Back::new(far, claim);
    assert!(back.send(coming).await.is_ok());
    let mut told = vec![0; near.read_u32().await.unwrap() as usize];
    near.read_exact(&mut told).await.unwrap();
    (told.escape_ascii().to_string(), resumed.await.is_ok())
}

#[tokio::test]
async fn each_attempt_to_come_back_is_good_once_and_none_after_a_later_one() {
    let (back, awaited) = mpsc::channel(4);
    let (_near, far) = duplex(1024);
    let (link, _service) = far_end(Box::new(far), awaited);
    let (told, goes_on) = come_back(&back, 2, 0).await;
    assert!(goes_on && told.contains("Resumed"), "{told}");
    for late in [2, 1] {
        let (told, goes_on) = come_back(&back, late, 0).await;
        assert!(!goes_on && told.contains("Unknown"), "{told}");
    }
    let (told, goes_on) = come_back(&back, 3, 0).await;
    assert!(goes_on && told.contains("Resumed"), "{told}");
    // What was never sent can't have been received.
    let (told, goes_on) = come_back(&back, 4, 1).await;
    assert!(!goes_on && told.contains("Unknown"), "{told}");
    let LinkEnd::Violation(why) = link.ended().await else { panic!("it goes on") };
    assert!(why.contains("never was"), "{why}");
}
