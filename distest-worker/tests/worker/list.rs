//! `authorized_keys` as a worker sees it while it has connections.

use std::fs;

use distest_worker::identity::Gate;
use distest_worker::log::Log;
use distest_worker::serve::Reception;
use distest_worker::serve::join::join;
use distest_worker::tls::Purpose;

use super::*;

#[tokio::test]
async fn a_worker_that_dials_tells_what_is_wrong_and_lets_go_whom_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("authorized_keys");
    let [ours, theirs] = [(); 2].map(|()| PrivateKey::generate().unwrap());
    let line = format!("{} run a client\n", ours.public());
    fs::write(&list, &line).unwrap();
    let store = Store::open(&folder.path().join("store"), 1 << 20).unwrap();
    let gate = Gate::new(Some(list.clone()), None);
    let reception = Reception::new(theirs.clone(), gate, shared(1, Some(store)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let log = Log::to(move |line| _ = tell.send(line.clone()));
    let joined = tokio::spawn(async move { join(reception, vec![address], &log).await });

    let (stream, _) = listener.accept().await.unwrap();
    let trust: tls::Trust = Arc::new(move |key| *key == theirs.public());
    let accepted = tls::accept(stream, &ours, |purpose| {
        (purpose == Purpose::Join).then(|| Arc::clone(&trust))
    });
    let peer = connect(accepted.await.unwrap().stream).await;
    let spec = SessionSpec { roots: vec!["/client".into()], ..SessionSpec::default() };
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();

    let begins = told.recv().await.unwrap();
    assert_eq!((begins.message.as_str(), begins.client.as_deref()), ("begins", Some("a client")));
    fs::write(&list, format!("{line}nonsense\n")).unwrap();
    let wrong = told.recv().await.unwrap().message;
    assert!(wrong.contains("authorized_keys: line 2: "), "{wrong}");
    fs::write(&list, "").unwrap();
    let end = peer.link.ended().await;
    assert_eq!(end, LinkEnd::Goodbye("this key's permission was withdrawn".to_owned()));
    let ended = told.recv().await.unwrap();
    assert_eq!((ended.run, ended.client), (begins.run, begins.client));
    assert!(ended.message.starts_with("ended: "), "{}", ended.message);
    joined.abort();
}
