//! A registry under attack: it answers the honest, forgets the silent, and keeps its bounds.
#![expect(clippy::unwrap_used, reason = "a test that cannot be carried out has failed")]

use std::net::SocketAddr;
use std::sync::Arc;

use distest_worker::identity::{Gate, PrivateKey, PublicKey};
use distest_worker::log::Log;
use distest_worker::registry::{
    Asker, HOST_CONNECTIONS_MAX, Registration, Registry, RegistryError, RegistryPlace,
};
use distest_worker::tls::{self, Purpose, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A registry that runs, and where.
async fn start() -> RegistryPlace {
    let key = PrivateKey::generate().unwrap();
    let registry = Registry::at("127.0.0.1:0".parse().unwrap(), key, None).await.unwrap();
    let place = registry.address().unwrap().to_string();
    tokio::spawn(registry.serve(Log::to(|_| {})));
    RegistryPlace { place, key: None }
}

fn worker(name: &str, address: &str, lets_in: PublicKey) -> Registration {
    let (name, address) = (name.to_owned(), address.to_owned());
    Registration { name, address, lets_in: [lets_in].into(), ..Registration::default() }
}

/// A connection from another host of this machine's.
async fn from(host: &str, at: &RegistryPlace) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(host.parse().unwrap(), 0)).unwrap();
    socket.connect(at.place.parse().unwrap()).await.unwrap()
}

/// An honest worker and its client.
struct Honest {
    worker: Asker,
    client: Asker,
    client_key: PublicKey,
}

impl Honest {
    async fn at(at: &RegistryPlace) -> Self {
        let keys = [(); 2].map(|()| PrivateKey::generate().unwrap());
        let client_key = keys[1].public();
        let mut worker_end = Asker::dial(at, &keys[0]).await.unwrap();
        worker_end.register(worker("w1", "h:1", client_key)).await.unwrap();
        let client = Asker::dial(at, &keys[1]).await.unwrap();
        Self { worker: worker_end, client, client_key }
    }

    async fn names(&mut self) -> Vec<String> {
        self.client.list().await.unwrap().into_iter().map(|entry| entry.name).collect()
    }

    /// Still served, both of them.
    async fn is_well(&mut self) {
        self.worker.register(worker("w1", "h:1", self.client_key)).await.unwrap();
        assert_eq!(self.names().await, ["w1"]);
    }
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let at = start().await;
    let mut honest = Honest::at(&at).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 10_000]] {
        let mut stream = TcpStream::connect(&at.place).await.unwrap();
        // It may have closed the connection before it had all.
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    // With a key that was proved, nonsense is still nonsense.
    let declared_4_gib = [0xff, 0xff, 0xff, 0xff, 0, 0];
    let no_question = [0, 0, 0, 1, 0xc0];
    for nonsense in [&declared_4_gib[..], &no_question] {
        let key = PrivateKey::generate().unwrap();
        let anybody: Trust = Arc::new(|_| true);
        let stream = TcpStream::connect(&at.place).await.unwrap();
        let secured = tls::connect(stream, &key, Purpose::Registry, anybody).await.unwrap();
        let mut stream = secured.stream;
        stream.write_all(nonsense).await.unwrap();
        stream.flush().await.unwrap();
        let mut answered = Vec::new();
        let _ = stream.read_to_end(&mut answered).await;
        assert_eq!(answered, [0; 0], "it hangs up");
    }
    honest.is_well().await;
}

#[tokio::test]
async fn it_does_nothing_but_what_its_protocol_says() {
    let at = start().await;
    let (key, anybody): (_, Trust) = (PrivateKey::generate().unwrap(), Arc::new(|_| true));
    for purpose in [Purpose::Session, Purpose::Invitation, Purpose::Join, Purpose::Resume] {
        let stream = TcpStream::connect(&at.place).await.unwrap();
        let refused = tls::connect(stream, &key, purpose, Arc::clone(&anybody)).await;
        assert!(refused.is_err(), "{purpose:?}");
    }
    let other = PrivateKey::generate().unwrap().public();
    let pinned = RegistryPlace { key: Some(other), ..at.clone() };
    let refused = Asker::dial(&pinned, &key).await.err().unwrap();
    assert!(matches!(refused, RegistryError::OtherKey(_)), "{refused}");
}

#[tokio::test]
async fn a_host_that_registers_thousands_takes_only_its_own_places() {
    let at = start().await;
    let mut honest = Honest::at(&at).await;
    let key = PrivateKey::generate().unwrap();
    let mut kept = Vec::new();
    let mut refused = 0;
    for number in 0..2000_u32 {
        let stream = from("127.0.0.2", &at).await;
        let mut asker = Asker::over(stream, &at, &key).await.unwrap();
        // Under the honest worker's name, and for the same client.
        let entry = worker("w1", &format!("evil:{}", number + 1), honest.client_key);
        match asker.register(entry).await {
            Ok(()) => kept.push(asker),
            Err(RegistryError::Refused(_) | RegistryError::Broken(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if number % 50 == 0 {
            honest.worker.register(worker("w1", "h:1", honest.client_key)).await.unwrap();
            let listed = honest.client.list().await.unwrap();
            assert!(listed.len() <= 1 + HOST_CONNECTIONS_MAX, "{} are listed", listed.len());
            assert_eq!(listed.iter().filter(|entry| entry.address == "h:1").count(), 1);
        }
    }
    assert!(refused > 0 && kept.len() >= HOST_CONNECTIONS_MAX, "{refused} of 2000 were refused");
    drop(kept);
    while honest.names().await.len() > 1 {
        honest.worker.register(worker("w1", "h:1", honest.client_key)).await.unwrap();
    }
    honest.is_well().await;
}

#[tokio::test]
async fn who_falls_silent_is_forgotten() {
    let at = start().await;
    let mut honest = Honest::at(&at).await;
    assert_eq!(honest.names().await, ["w1"]);
    // Its connection stays; it says nothing more on it.
    while !honest.names().await.is_empty() {}
    let late = honest.worker.register(worker("w1", "h:1", honest.client_key)).await;
    assert!(late.is_err(), "it has to come anew");
}

#[tokio::test]
async fn a_withdrawn_key_is_out_and_so_is_its_entry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authorized_keys");
    let [worker_key, client_key] = [(); 2].map(|()| PrivateKey::generate().unwrap());
    let client_line = format!("{} view client\n", client_key.public());
    let lines = format!("{client_line}{} run worker\n", worker_key.public());
    std::fs::write(&path, lines).unwrap();
    let gate = Gate::new(Some(path.clone()), None);
    gate.refresh();
    let key = PrivateKey::generate().unwrap();
    let registry = Registry::at("127.0.0.1:0".parse().unwrap(), key, Some(gate)).await.unwrap();
    let at = RegistryPlace { place: registry.address().unwrap().to_string(), key: None };
    tokio::spawn(registry.serve(Log::to(|_| {})));
    let mut registered = Asker::dial(&at, &worker_key).await.unwrap();
    registered.register(worker("w1", "h:1", client_key.public())).await.unwrap();
    let mut client = Asker::dial(&at, &client_key).await.unwrap();
    assert_eq!(client.list().await.unwrap().len(), 1);

    std::fs::write(&path, client_line).unwrap();
    while !client.list().await.unwrap().is_empty() {}
    assert!(registered.register(worker("w1", "h:1", client_key.public())).await.is_err());
    // A client of TLS 1.3 hears of its refusal with the first answer.
    let again = async { Asker::dial(&at, &worker_key).await?.list().await };
    assert!(again.await.is_err());
}
