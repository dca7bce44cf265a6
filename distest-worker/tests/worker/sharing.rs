//! Clients with keys of their own on one worker of two slots.

use super::*;

/// Does one thing after the other, without end.
const ENDLESS: &str = "while :; do echo one more >&3; sleep 0.05; done";

async fn ready(served: &Served, name: &str) -> Peer {
    let (_, peer) = client(served, name).await;
    peer.prepare_sh("/", vec![], vec![]).await.unwrap();
    peer
}

impl Peer {
    async fn lease_specs(&self, attempts: Vec<AttemptSpec>) {
        let lease = Lease { attempts };
        self.worker.lease(link::context(DEADLINE), lease).await.unwrap().unwrap();
    }

    /// The next report that is none of progress.
    async fn happens(&mut self) -> Report {
        loop {
            match self.report().await {
                Report::Progress { .. } => {}
                report => return report,
            }
        }
    }

    async fn counts(&self) -> (u32, u32) {
        let pong = self.worker.ping(link::context(DEADLINE)).await.unwrap();
        (pong.running, pong.queued)
    }
}

#[tokio::test]
async fn a_client_that_lies_about_how_little_it_wants_is_cut_while_another_waits() {
    let served = Served::start();
    let (mut liar, mut other) = (ready(&served, "liar").await, ready(&served, "other").await);
    // What it says are quick tests that share a process goes on for ever, in every slot; and there
    // is as much as may wait, on two connections.
    let endless = |id| AttemptSpec { progress: true, ..attempt(id, ENDLESS, Streams::Capture) };
    liar.lease_specs((0..1000).map(endless).collect()).await;
    for _ in 0..2 {
        assert!(matches!(liar.happens().await, Report::Started { .. }));
    }
    other.lease(&[(1, "echo mine", Streams::Capture)]).await;
    let Report::Lost { reason, detail, .. } = liar.happens().await else { panic!("no loss") };
    assert_eq!(reason, LossReason::Stopped);
    assert!(detail.contains("other clients"), "{detail}");
    other.started(1).await;
    assert_eq!(other.finished(1).await.exit, Exit::Code(0));
    // Both of its slots may have been overdue before the other's began. Its next ones have the
    // places now: nobody waits any more, and they are left alone.
    loop {
        match liar.happens().await {
            Report::Started { .. } if liar.counts().await.0 == 2 => break,
            Report::Started { .. } | Report::Lost { reason: LossReason::Stopped, .. } => {}
            report => panic!("{report:?}"),
        }
    }
}

#[tokio::test]
async fn what_wants_all_places_has_nobody_beside_it() {
    let served = Served::start();
    let (mut one, mut other) = (ready(&served, "one").await, ready(&served, "other").await);
    let spec = attempt(1, "read line", Streams::LiveWithStdin);
    one.lease_specs(vec![AttemptSpec { places: u32::MAX, ..spec }]).await;
    one.started(1).await;
    // There is a second slot.
    other.lease(&[(1, "true", Streams::Capture)]).await;
    for _ in 0..3 {
        assert_eq!(other.counts().await, (0, 1));
    }
    let end = StdinChunk { attempt: AttemptId(1), data: Bytes::new() };
    one.worker.stdin(link::context(DEADLINE), end).await.unwrap().unwrap();
    one.finished(1).await;
    other.started(1).await;
    other.finished(1).await;
}

#[tokio::test]
async fn a_worker_that_hides_nothing_serves_one_client() {
    let served = Served::with(&["--sandbox", "variables"]);
    let spec = || SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    let (key, first) = client(&served, "first").await;
    let second = PrivateKey::generate().unwrap();
    let line = format!("{} run first\n{} run second\n", key.public(), second.public());
    std::fs::write(served.authorized_keys(), line).unwrap();
    for _ in 0..2 {
        let other = connect(served.stream_of(&second).await).await;
        let refused = other.worker.open(link::context(DEADLINE), spec()).await.unwrap();
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind, RefusalKind::Forbidden);
        assert_eq!(other.hello.refusal.as_ref(), Some(&refused), "it says so before it is asked");
        assert!(refused.hint.unwrap().contains("--trust-clients"));
    }
    // Another connection of the first, at the same time and later.
    session_of(&served, &key).await;
    assert_eq!(first.hello.refusal, None);
    drop(first);
    session_of(&served, &key).await;
    let other = connect(served.stream_of(&second).await).await;
    assert!(other.worker.open(link::context(DEADLINE), spec()).await.unwrap().is_err());

    let served = Served::with(&["--sandbox", "variables"]);
    let (first, second) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let line = format!("{} run first\n{} run second\n", first.public(), second.public());
    std::fs::write(served.authorized_keys(), line).unwrap();
    // Who gets no session has had none.
    let other = connect(served.stream_of(&first).await).await;
    let invalid = SessionSpec { collect: vec!["[".into()], ..spec() };
    let refused = other.worker.open(link::context(DEADLINE), invalid).await.unwrap();
    assert_eq!(refused.unwrap_err().kind, RefusalKind::Invalid);
    session_of(&served, &second).await;

    let served = Served::with(&["--sandbox", "variables", "--trust-clients"]);
    let (_first, _second) = (client(&served, "a").await, client(&served, "b").await);
}
