//! A worker that dials clients: `distest-worker join`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Begins, ConnectionEnd, REFRESH, Reception, Signals, Telling};
use crate::hello::HelloError;
use crate::identity::PublicKey;
use crate::log::{Line, Log};
use crate::tls::{self, TlsError};

/// Between two attempts to reach a client: at first, and at most. Each failure doubles it.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(8);
/// How long dialling may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sessions may take to end when the worker shuts down, before they are dropped.
const SHUT_DOWN_TIME: Duration = Duration::from_secs(5);

/// A client that listens for workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinAddress {
    /// `HOST:PORT`.
    pub place: String,
    /// Its key, if the address names it.
    pub key: Option<PublicKey>,
}

impl std::str::FromStr for JoinAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = ["tcp://", "listen://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.unwrap_or(text);
        let (place, key) = match rest.split_once('#') {
            Some((place, key)) => (place, Some(key.parse().map_err(|error| format!("{error}"))?)),
            None => (rest, None),
        };
        match place.rsplit_once(':') {
            // Another kind of address is no host.
            Some((host, port))
                if !host.is_empty()
                    && !host.contains('/')
                    && port.parse::<u16>().is_ok_and(|port| port > 0) =>
            {
                Ok(Self { place: place.to_owned(), key })
            }
            _ => Err("expected HOST:PORT[#KEY] of a client that was given --worker listen://…"
                .to_owned()),
        }
    }
}

/// Dials every address, serves the client there, and dials again, until SIGINT or SIGTERM; the
/// latter lets what runs come to its end.
///
/// # Errors
/// Signals can't be caught.
pub async fn join(
    reception: Arc<Reception>,
    addresses: Vec<JoinAddress>,
    log: &Log,
) -> io::Result<()> {
    let mut signals = Signals::listen()?;
    let mut refresh = tokio::time::interval(REFRESH);
    let mut dialling = JoinSet::new();
    for address in addresses {
        let (reception, log) = (Arc::clone(&reception), log.clone());
        dialling.spawn(async move { again_and_again(&reception, &address, &log).await });
    }
    loop {
        tokio::select! {
            asked = signals.next() => {
                asked.of(reception.worker());
                break;
            }
            () = reception.worker().draining() => break,
            // Who is removed now is out now.
            _ = refresh.tick() => look(&reception, log),
        }
    }
    if !reception.worker().shuts_down() {
        let ended = async {
            loop {
                tokio::select! {
                    _ = refresh.tick() => look(&reception, log),
                    ended = dialling.join_next() => if ended.is_none() { break },
                }
            }
        };
        signals.hurry(ended).await;
    }
    reception.worker().shut_down();
    let ended = async { while dialling.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUT_DOWN_TIME, ended).await;
    dialling.shutdown().await;
    Ok(())
}

/// Looks who is let in now.
fn look(reception: &Reception, log: &Log) {
    reception.gate().news().into_iter().for_each(|line| log.tell(line));
    log.catch_up();
}

async fn again_and_again(reception: &Reception, address: &JoinAddress, log: &Log) {
    let about = |line: Line| Line { peer: Some(address.place.clone()), ..line };
    let mut back_off = BACK_OFF_MIN;
    let mut last = None;
    loop {
        let telling = Telling::new(log.clone(), address.place.clone());
        let line = match dial(reception, address, telling.begins()).await {
            Ok(ConnectionEnd::Session { end, client, run }) => {
                back_off = BACK_OFF_MIN;
                last = None;
                telling.ended(client, run, &end);
                None
            }
            Ok(ConnectionEnd::Link(end)) => {
                back_off = BACK_OFF_MIN;
                Some(Line::from(end.to_string()))
            }
            Ok(ConnectionEnd::NoHello(HelloError::Io(error))) if tls::refusal(&error) => {
                Some(not_joined(&TlsError::Refused))
            }
            Ok(ConnectionEnd::NoHello(error)) => Some(Line::warning(error.to_string())),
            Err(line) => Some(line),
        };
        // A client that isn't there yet is told of once.
        if let Some(line) = line.filter(|line| last.as_ref() != Some(line)) {
            log.often("", &line.message, about(line.clone()));
            last = Some(line);
        }
        let wait = tokio::time::timeout(back_off, reception.worker().draining());
        if wait.await.is_ok() {
            return;
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

async fn dial(
    reception: &Reception,
    address: &JoinAddress,
    begins: Begins,
) -> Result<ConnectionEnd, Line> {
    let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address.place)).await;
    let stream = connect
        .map_err(|_| format!("could not connect within {} s", CONNECT_TIMEOUT.as_secs()))
        .and_then(|stream| stream.map_err(|error| format!("could not connect: {error}")))
        .map_err(|why| Line::warning(format!("{why}; it is tried again")))?;
    let _ = stream.set_nodelay(true);
    let loopback = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
    let served = reception.join_stream(stream, loopback, address.key, begins).await;
    served.map_err(|error| not_joined(&error))
}

/// Why a client that is there is not served.
fn not_joined(error: &TlsError) -> Line {
    match error {
        TlsError::Refused => Line::warning("the client there does not know this worker's key")
            .hint(
                "ask there for an invitation (`cargo distest workers invite`), and run \
             `distest-worker join INVITATION` here",
            ),
        TlsError::UnknownKey(key) => Line::warning(error.to_string()).hint(format!(
            "ask there for an invitation (`cargo distest workers invite`), or add this line to \
             authorized_keys here: {key} run,view NAME"
        )),
        TlsError::WrongPurpose | TlsError::Closed => Line::warning(error.to_string())
            .hint("check that a run with --worker listen://IP:PORT waits for workers there"),
        _ => Line::warning(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn addresses_are_places_with_or_without_a_key() {
        let key = PrivateKey::generate().unwrap().public();
        let place = "h:7".to_owned();
        for text in ["h:7", "tcp://h:7", "listen://h:7"] {
            let expected = JoinAddress { place: place.clone(), key: None };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        let pinned = JoinAddress { place, key: Some(key) };
        assert_eq!(format!("tcp://h:7#{key}").parse(), Ok(pinned));
        for text in ["h", ":7", "h:0", "h:7#x", "ssh://h:7"] {
            assert!(text.parse::<JoinAddress>().is_err(), "{text}");
        }
    }
}
