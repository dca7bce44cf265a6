//! A worker that is given another executable.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Trial runs take their time.
const TRIED: Duration = Duration::from_secs(120);

async fn peer_with(served: &Served, permissions: &str) -> (PrivateKey, Peer) {
    let key = PrivateKey::generate().unwrap();
    fs::write(served.authorized_keys(), format!("{} {permissions} x\n", key.public())).unwrap();
    let peer = connect(served.stream_of(&key).await).await;
    (key, peer)
}

impl Peer {
    async fn upgrade_piece(
        &self,
        digest: Digest,
        all: &[u8],
        from: usize,
        to: usize,
    ) -> Result<UpgradeReply, Refusal> {
        let data = Bytes::copy_from_slice(&all[from..to]);
        let piece = ExecutablePiece { digest, size: all.len() as u64, offset: from as u64, data };
        self.worker.upgrade(link::context(TRIED), piece).await.unwrap()
    }

    async fn upgrade(&self, all: &[u8]) -> Result<UpgradeReply, Refusal> {
        let digest = Digest::of(all);
        for from in (0..all.len()).step_by(CHUNK_BYTES_MAX) {
            let to = all.len().min(from + CHUNK_BYTES_MAX);
            match self.upgrade_piece(digest, all, from, to).await? {
                UpgradeReply::More {} => {}
                reply => return Ok(reply),
            }
        }
        panic!("all of it was sent, and more is wanted")
    }
}

fn executables(served: &Served) -> usize {
    let entries = fs::read_dir(served.folder.path().join("store/v1/executables"));
    entries.map_or(0, Iterator::count)
}

#[tokio::test]
async fn only_who_administers_a_worker_upgrades_it_or_empties_its_store() {
    let served = Served::start();
    let (_, peer) = peer_with(&served, "run,exec,copy,view").await;
    let refused = peer.upgrade(b"anything").await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Forbidden);
    assert!(refused.message.contains("`admin`"), "{refused}");
    let refused = peer.worker.collect_garbage(link::context(DEADLINE)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Forbidden);
    let names = || vec!["libno-such.so".to_owned()];
    let lacks = peer.worker.lacks_libraries(link::context(DEADLINE), names()).await.unwrap();
    assert_eq!(lacks, Ok(names()));
    let (_, peer) = peer_with(&served, "admin").await;
    let refused = peer.worker.lacks_libraries(link::context(DEADLINE), names()).await.unwrap();
    assert_eq!(refused.unwrap_err().kind, RefusalKind::Forbidden);
    let asked = peer.upgrade_piece(Digest::of(b"x"), b"x", 0, 0).await;
    assert_eq!(asked, Ok(UpgradeReply::More {}));
    let own = fs::read(WORKER).unwrap();
    assert_eq!(peer.upgrade_piece(Digest::of(&own), &own, 0, 0).await, Ok(UpgradeReply::Same {}));
    let freed = peer.worker.collect_garbage(link::context(DEADLINE)).await.unwrap();
    assert_eq!(freed, Ok(Freed::default()));
}

#[tokio::test]
async fn a_worker_that_does_not_listen_is_not_upgraded() {
    let (peer, _served) = peer_of(&shared(1, None)).await;
    let refused = peer.upgrade(b"anything").await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Incompatible);
    assert!(refused.message.contains("no worker that listens"), "{refused}");
}

#[tokio::test]
async fn a_bad_executable_leaves_the_worker_as_it_was() {
    let served = Served::start();
    let (key, peer) = peer_with(&served, "run,admin").await;
    let script = |text: &str| format!("#!/bin/sh\n{text}\n").into_bytes();
    let version = "[ \"$*\" = --version ] && echo distest-worker 9 && exit 0";
    for (bad, why) in [
        (script("exit 1"), "ended with exit status: 1"),
        (script("echo true 9"), "another program, which calls itself true 9"),
        (script(&format!("{version}; echo no such loader >&2; exit 127")), "no such loader"),
        (script(&format!("{version}; echo checked 0")), "run-time variables only"),
        (script(&format!("{version}; kill -11 $$")), "signal: 11"),
        (b"\x7fELF and nothing more".to_vec(), "can't be started"),
    ] {
        let refused = peer.upgrade(&bad).await.unwrap_err();
        assert_eq!(refused.kind, RefusalKind::Incompatible);
        assert!(refused.message.contains(why), "{refused}");
        assert!(refused.message.contains("the old one goes on"), "{refused}");
        assert_eq!(executables(&served), 0, "nothing is left of {why}");
    }
    let other = peer.upgrade_piece(Digest::of(b"other"), b"bytes", 0, 5).await.unwrap_err();
    assert!(other.message.contains("its bytes have digest"), "{other}");
    // It is the same as ever.
    let again = connect(served.stream_of(&key).await).await;
    assert_eq!(again.hello.instance, peer.hello.instance);
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    again.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
}

#[tokio::test]
async fn it_goes_on_as_the_same_process_at_the_same_address_when_what_runs_has_ended() {
    let mut served = Served::start();
    let (key, peer) = peer_with(&served, "run,admin").await;
    let mut runs = connect(served.stream_of(&key).await).await;
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    runs.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();
    runs.prepare_sh("/", vec![], vec![]).await.unwrap();
    runs.lease(&[(1, "cat", Streams::LiveWithStdin)]).await;
    runs.started(1).await;
    // The same program by another digest.
    let mut other = fs::read(WORKER).unwrap();
    other.extend_from_slice(b"and more");
    assert_eq!(peer.upgrade(&other).await, Ok(UpgradeReply::Begun {}));
    assert_eq!(runs.report().await, Report::Draining {});
    let late = connect_to(&served, &key).await;
    assert!(late.is_none(), "nobody is let in while it finishes what runs");
    let end = StdinChunk { attempt: AttemptId(1), data: Bytes::new() };
    runs.worker.stdin(link::context(DEADLINE), end).await.unwrap().unwrap();
    let said = runs.finished(1).await;
    assert_eq!(said.exit, Exit::Code(0));
    let new = loop {
        if let Some(new) = connect_to(&served, &key).await {
            break new;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(served.process.try_wait().unwrap().is_none(), "the same process");
    assert_ne!(new.hello.instance, peer.hello.instance);
    assert_eq!(new.hello.name, "w2");
    assert_eq!(new.upgrade(&other).await, Ok(UpgradeReply::Same {}));
    assert_eq!(executables(&served), 1);
    let link = format!("/proc/{}/exe", served.process.id());
    let runs_now = fs::read_link(link).unwrap();
    assert!(runs_now.starts_with(served.folder.path()), "{runs_now:?}");
    assert_eq!(runs_now.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    // Nothing of the old one is left: neither helpers nor what was waiting to be reaped.
    let children = format!("/proc/{0}/task/{0}/children", served.process.id());
    assert_eq!(fs::read_to_string(children).unwrap(), "");
    // Back again, and the first goes.
    let own = fs::read(WORKER).unwrap();
    assert_eq!(new.upgrade(&own).await, Ok(UpgradeReply::Begun {}));
    let instance = new.hello.instance.clone();
    drop(new);
    loop {
        match connect_to(&served, &key).await {
            Some(back) if back.hello.instance != instance => break,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert_eq!(executables(&served), 1);
    assert!(served.process.try_wait().unwrap().is_none());
    // What it runs stays while it does, whatever is cleared, and goes with it.
    let last = connect(served.stream_of(&key).await).await;
    let freed = last.worker.collect_garbage(link::context(DEADLINE)).await.unwrap();
    assert_eq!((freed, executables(&served)), (Ok(Freed::default()), 1));
    let id = nix::unistd::Pid::from_raw(served.process.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(served.process.wait().unwrap().success());
    assert_eq!(executables(&served), 0);
}

#[tokio::test]
async fn executables_that_nobody_runs_are_cleared() {
    let mut served = Served::start();
    let (_, peer) = peer_with(&served, "admin").await;
    let folder = served.folder.path().join("store/v1/executables");
    let leave = || {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("digest-1"), "left").unwrap();
    };
    leave();
    let freed = peer.worker.collect_garbage(link::context(DEADLINE)).await.unwrap();
    assert_eq!((freed, executables(&served)), (Ok(Freed { blobs: 1, bytes: 4 }), 0));
    leave();
    served.restart();
    assert_eq!(executables(&served), 0);
}

/// A greeted peer, unless the worker sends us away.
async fn connect_to(served: &Served, key: &PrivateKey) -> Option<Peer> {
    let stream = tokio::net::TcpStream::connect(&served.address).await.ok()?;
    let worker_key = served.worker_key;
    let trust: tls::Trust = Arc::new(move |key| *key == worker_key);
    let secured = tls::connect(stream, key, tls::Purpose::Session, trust).await.ok()?;
    let mut stream = secured.stream;
    let ours = Hello::new(Role::Client, "test");
    let hello = exchange(&mut stream, &ours, HELLO_TIMEOUT).await.ok()?;
    let (tell, told) = mpsc::unbounded_channel();
    let (worker, link) = client_end(stream, move |context, request| {
        Listener(tell.clone()).serve().serve(context, request)
    });
    Some(Peer { worker, link, told, hello })
}
