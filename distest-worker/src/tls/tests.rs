use std::sync::Mutex;

use tokio::io::DuplexStream;

use super::*;

const PIPE_BYTES: usize = 16 * 1024;

fn key() -> PrivateKey {
    PrivateKey::generate().unwrap()
}

fn only(key: PublicKey) -> Trust {
    Arc::new(move |presented| *presented == key)
}

fn anyone() -> Trust {
    Arc::new(|_| true)
}

type Ends = (Result<Secured<DuplexStream>, TlsError>, Result<Secured<DuplexStream>, TlsError>);

/// What becomes of both ends when `client` dials `worker`.
async fn meet(client: (&PrivateKey, Trust), worker: (&PrivateKey, Trust)) -> Ends {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let accepted = accept(far, worker.0, |purpose| {
        (purpose == Purpose::Session).then(|| Arc::clone(&worker.1))
    });
    tokio::join!(connect(near, client.0, Purpose::Session, client.1), accepted)
}

#[tokio::test]
async fn two_ends_that_know_each_other_talk() {
    let (client, worker) = (key(), key());
    let ends = meet((&client, only(worker.public())), (&worker, only(client.public()))).await;
    let (mut near, mut far) = (ends.0.unwrap(), ends.1.unwrap());
    assert_eq!((near.key, far.key), (worker.public(), client.public()));
    // Far more than a stranger may send, both ways.
    let sent = vec![7; 10 * UNPROVED_BYTES_MAX];
    for (one, other) in [(&mut near, &mut far)] {
        let (mut got, mut back) = (vec![0; sent.len()], vec![0; sent.len()]);
        let write = async {
            one.stream.write_all(&sent).await.unwrap();
            one.stream.flush().await.unwrap();
            one.stream.read_exact(&mut back).await.unwrap();
        };
        let read = async {
            other.stream.read_exact(&mut got).await.unwrap();
            other.stream.write_all(&got).await.unwrap();
            other.stream.flush().await.unwrap();
        };
        tokio::join!(write, read);
        assert!(got == sent && back == sent);
    }
}

#[tokio::test]
async fn a_worker_refuses_a_key_that_it_does_not_know_and_says_so() {
    let (client, worker, friend) = (key(), key(), key());
    let (near, far) =
        meet((&client, only(worker.public())), (&worker, only(friend.public()))).await;
    assert!(matches!(far, Err(TlsError::UnknownKey(key)) if key == client.public()));
    // In TLS 1.3 the client learns it only now.
    let error = near.unwrap().stream.read_u8().await.unwrap_err();
    assert!(refusal(&error), "{error:?}");
}

#[tokio::test]
async fn a_client_refuses_a_worker_that_it_does_not_know_and_says_nothing() {
    let (client, worker, friend) = (key(), key(), key());
    let (near, far) = meet((&client, only(friend.public())), (&worker, anyone())).await;
    assert!(matches!(near, Err(TlsError::UnknownKey(key)) if key == worker.public()));
    assert!(matches!(far, Err(TlsError::Refused)));
}

#[tokio::test]
async fn a_withdrawn_key_is_out_on_the_next_connection_of_the_same_process() {
    let (client, worker) = (key(), key());
    let allowed = Arc::new(Mutex::new(true));
    let trust: Trust = {
        let allowed = Arc::clone(&allowed);
        Arc::new(move |_| *allowed.lock().unwrap())
    };
    let again = || meet((&client, only(worker.public())), (&worker, Arc::clone(&trust)));
    let (near, far) = again().await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    // A client of rustls's defaults has a ticket by now.
    near.stream.write_all(b"x").await.unwrap();
    near.stream.flush().await.unwrap();
    far.stream.read_u8().await.unwrap();
    far.stream.write_all(b"y").await.unwrap();
    far.stream.flush().await.unwrap();
    near.stream.read_u8().await.unwrap();
    *allowed.lock().unwrap() = false;
    assert!(matches!(again().await.1, Err(TlsError::UnknownKey(_))));
}

#[tokio::test]
async fn a_stolen_public_key_is_worth_nothing() {
    let (client, worker) = (key(), key());
    // Presents the client's key, signs with another.
    let impostor = PrivateKey::with_public(&key(), client.public());
    let (_, far) = meet((&impostor, anyone()), (&worker, only(client.public()))).await;
    assert!(matches!(far, Err(TlsError::Failed(_))), "{:?}", far.err());
    // The other way round: someone who poses as the worker.
    let impostor = PrivateKey::with_public(&key(), worker.public());
    let (near, _) = meet((&client, only(worker.public())), (&impostor, anyone())).await;
    assert!(matches!(near, Err(TlsError::Failed(_))), "{:?}", near.err());
}

#[tokio::test]
async fn each_purpose_is_its_own() {
    let (client, worker) = (key(), key());
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let accepted = accept(far, &worker, |purpose| (purpose == Purpose::Session).then(anyone));
    let ends = tokio::join!(connect(near, &client, Purpose::Join, anyone()), accepted);
    assert!(matches!(ends.1, Err(TlsError::NotHere(Purpose::Join))));
    let told = ends.0.err().and_then(|error| error.hint(&client.public())).unwrap_or_default();
    assert!(told.contains("registry://"), "{told}");
}

/// What a worker makes of a peer that sends these bytes and then closes, if `closes`.
async fn worker_hears(bytes: &[u8], closes: bool) -> TlsError {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    near.write_all(bytes).await.unwrap();
    let near = (!closes).then_some(near);
    let error = accept(far, &key(), |_| Some(anyone())).await.err().unwrap();
    drop(near);
    error
}

#[tokio::test(start_paused = true)]
async fn strangers_get_little_attention() {
    assert!(matches!(worker_hears(b"", true).await, TlsError::Closed));
    assert!(matches!(worker_hears(b"", false).await, TlsError::Silent(_)));
    assert!(matches!(worker_hears(b"\x16\x03\x01\x10", false).await, TlsError::Silent(_)));
    let http = worker_hears(b"GET / HTTP/1.1\r\n\r\n", false).await;
    assert!(matches!(&http, TlsError::NotDistest(what) if what.contains("GET /")), "{http}");
    // A greeting that never ends: 16 KiB records of a handshake message of 16 MiB.
    let mut endless = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff".to_vec();
    endless.resize(1 << 20, 0);
    let endless = worker_hears(&endless, false).await;
    assert!(matches!(endless, TlsError::TooMuch | TlsError::Failed(_)), "{endless}");
    let mut long = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc".to_vec();
    long.resize(1 << 20, 0);
    let long = worker_hears(&long, false).await;
    assert!(matches!(long, TlsError::TooMuch), "{long}");
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    // A ClientHello of TLS 1.2: no supported_versions, no key shares; suites and curves of then.
    let body = [
        &[3, 3][..],
        &[1; 32],
        &[0],
        &[0, 2, 0xc0, 0x2b],
        &[1, 0],
        &[0, 0x16],
        &[0, 10, 0, 4, 0, 2, 0, 29],
        &[0, 13, 0, 4, 0, 2, 8, 7],
        &[0, 23, 0, 0],
        &[0xff, 1, 0, 1, 0],
    ]
    .concat();
    let body = &body[..body.len() - 1];
    let hello = [&[1, 0, 0, body.len() as u8][..], body].concat();
    let record = [&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat();
    let error = worker_hears(&record, false).await;
    assert!(!matches!(error, TlsError::Silent(_) | TlsError::TooMuch), "{error}");
}

#[tokio::test]
async fn whatever_is_changed_on_the_way_there_is_no_connection() {
    // Each byte of a real ClientHello in turn; none may lead to a connection or a panic.
    let (client, worker) = (key(), key());
    let (near, mut far) = tokio::io::duplex(PIPE_BYTES);
    let trust = only(worker.public());
    let dialling = tokio::spawn(async move {
        let _ = connect(near, &client, Purpose::Session, trust).await;
    });
    let mut hello = vec![0; 5];
    far.read_exact(&mut hello).await.unwrap();
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    hello.resize(5 + length, 0);
    far.read_exact(&mut hello[5..]).await.unwrap();
    dialling.abort();
    for at in 0..hello.len() {
        let mut changed = hello.clone();
        changed[at] ^= 0x55;
        let (mut near, far) = tokio::io::duplex(PIPE_BYTES);
        near.write_all(&changed).await.unwrap();
        near.shutdown().await.unwrap();
        assert!(accept(far, &worker, |_| Some(anyone())).await.is_err(), "byte {at}");
    }
}
