//! TLS 1.3 between two ends that know each other's key.
//!
//! Raw public keys (RFC 7250): no certificates, no names, no authorities. Both ends present an
//! Ed25519 key, both prove that they hold it by signing the handshake, and each asks its own
//! [`Trust`] whether it wants to talk to that key. There is no session resumption, no ticket and no
//! early data: each connection is judged anew, so that a key that was withdrawn is out.
//!
//! Until a peer has proved its key it gets [`UNPROVED_BYTES_MAX`] bytes of attention and
//! [`HANDSHAKE_TIMEOUT`] of time.

mod bounded;
mod config;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::rustls::{self, AlertDescription, CommonState, HandshakeKind, InvalidMessage};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use self::bounded::Bounded;
use crate::identity::{PrivateKey, PublicKey};

/// Bytes that a peer may send before it has proved its key; the handshake itself takes about 700.
pub const UNPROVED_BYTES_MAX: usize = 4096;
/// How long proving may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long and how much to listen to a peer that was refused, so that it gets to hear it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 16 * 1024;

/// What a connection is for. Negotiated by ALPN, so that what was said on one kind of connection
/// can't be replayed on another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Purpose {
    /// A client dialled a worker.
    Session,
    /// Someone with an invitation dialled who made it.
    Invitation,
    /// A worker dialled a client.
    Join,
    /// Someone dialled a registry.
    Registry,
    /// A client dialled a worker with which it has a session, after a connection broke.
    Resume,
}

impl Purpose {
    const ALL: [Self; 5] =
        [Self::Session, Self::Invitation, Self::Join, Self::Registry, Self::Resume];

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Session => b"distest/1",
            Self::Invitation => b"distest-invite/1",
            Self::Join => b"distest-join/1",
            Self::Registry => b"distest-registry/1",
            Self::Resume => b"distest-resume/1",
        }
    }

    /// What to say where nobody waits for that.
    fn not_here(self) -> &'static str {
        match self {
            Self::Session => "a client came to run tests, and no worker listens here",
            Self::Invitation => {
                "somebody brought an invitation, and none is open here: it is used up, has expired \
                 or was never given"
            }
            Self::Join => "a worker came to join a run, and no run waits for workers here",
            Self::Registry => "somebody looked for a registry, and none is here",
            Self::Resume => "a client came back to a session, and no worker listens here",
        }
    }

    fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.alpn() == name)
    }
}

/// Whether to talk to a key. Asked once a connection, before anything is said.
pub type Trust = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// A stream whose other end has proved its key.
pub struct Secured<S> {
    /// For talking.
    pub stream: Stream<S>,
    /// The other end's key.
    pub key: PublicKey,
    /// What for.
    pub purpose: Purpose,
}

/// An encrypted stream.
pub type Stream<S> = TlsStream<Bounded<S>>;

/// Why there is no secured stream.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Something else is there.
    #[error("this is no distest peer: it began with {0}")]
    NotDistest(String),
    /// It said nothing, or not all.
    #[error("the other side did not prove its key within {} s", .0.as_secs())]
    Silent(Duration),
    /// It closed the connection.
    #[error("the other side closed the connection before it proved its key")]
    Closed,
    /// It sent more than a handshake takes.
    #[error("the other side sent more than {UNPROVED_BYTES_MAX} bytes without proving its key")]
    TooMuch,
    /// We don't trust it.
    #[error("its key is {0}, which is not known here")]
    UnknownKey(PublicKey),
    /// It doesn't trust us.
    #[error("the other side does not let this key in")]
    Refused,
    /// It is there for something else.
    #[error("the other side does not do that")]
    WrongPurpose,
    /// It came for what nobody does here now.
    #[error("{}", .0.not_here())]
    NotHere(Purpose),
    /// It broke the rules, or can't do what we need.
    #[error("no secure connection: {0}")]
    Failed(String),
}

/// Secures a connection that was dialled. The peer is refused unless `trust` holds for its key.
///
/// That the *other* side doesn't trust us shows on the first read: see [`refusal`].
///
/// # Errors
/// See [`TlsError`]; the connection is of no use after one.
pub async fn connect<S>(
    stream: S,
    ours: &PrivateKey,
    purpose: Purpose,
    trust: Trust,
) -> Result<Secured<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (config, seen) = config::client(ours, purpose, trust)?;
    let handshake = async {
        let connect = TlsConnector::from(config).connect(config::no_name(), Bounded::new(stream));
        connect.into_fallible().await
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Err(_) => Err(TlsError::Silent(HANDSHAKE_TIMEOUT)),
        Ok(Err((error, stream))) => Err(explain(&error, stream.beginning(), seen.rejected())),
        Ok(Ok(mut stream)) => {
            let key = judge(stream.get_ref().1, purpose)?;
            stream.get_mut().0.unbind();
            Ok(Secured { stream: TlsStream::Client(stream), key, purpose })
        }
    }
}

/// Secures a connection that was accepted. `trust` says for each purpose whose keys are welcome,
/// or none where nobody's are.
///
/// # Errors
/// See [`TlsError`]. The peer has been told.
pub async fn accept<S>(
    stream: S,
    ours: &PrivateKey,
    trust: impl Fn(Purpose) -> Option<Trust>,
) -> Result<Secured<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        let mut acceptor = LazyConfigAcceptor::new(Default::default(), Bounded::new(stream));
        let start = match (&mut acceptor).await {
            Ok(start) => start,
            Err(error) => {
                let stream = acceptor.take_io();
                let beginning = stream.as_ref().map_or(&[][..], Bounded::beginning);
                return Err(explain(&error, beginning, None));
            }
        };
        // One protocol, or none: nobody gets to choose.
        let asked = start.client_hello().alpn().map(|names| {
            let mut names = names.map(Purpose::of_alpn);
            (names.next().flatten(), names.next())
        });
        let Some((Some(purpose), None)) = asked else { return Err(TlsError::WrongPurpose) };
        let Some(trust) = trust(purpose) else { return Err(TlsError::NotHere(purpose)) };
        let (config, seen) = config::server(ours, purpose, trust)?;
        match start.into_stream(config).into_fallible().await {
            Err((error, mut stream)) => {
                let error = explain(&error, stream.beginning(), seen.rejected());
                linger(&mut stream).await;
                Err(error)
            }
            Ok(mut stream) => {
                let key = judge(stream.get_ref().1, purpose)?;
                stream.get_mut().0.unbind();
                Ok(Secured { stream: TlsStream::Server(stream), key, purpose })
            }
        }
    };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    handshake.unwrap_or(Err(TlsError::Silent(HANDSHAKE_TIMEOUT)))
}

/// Whether a failed read or write on a secured stream says that the other side doesn't let our key
/// in. It can say so only after we believe to be connected.
pub fn refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)))
}

/// What must hold of every secured connection, whatever rustls made of it.
fn judge(state: &CommonState, purpose: Purpose) -> Result<PublicKey, TlsError> {
    let failed = |what: &str| TlsError::Failed(what.to_owned());
    if state.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
        return Err(failed("it is not TLS 1.3"));
    }
    if state.handshake_kind() == Some(HandshakeKind::Resumed) {
        return Err(failed("it resumes an old session"));
    }
    if state.alpn_protocol() != Some(purpose.alpn()) {
        return Err(TlsError::WrongPurpose);
    }
    match state.peer_certificates() {
        Some([only]) => {
            PublicKey::from_spki(only).ok_or_else(|| failed("its key is no Ed25519 key"))
        }
        _ => Err(failed("it presented no key")),
    }
}

fn explain(error: &io::Error, beginning: &[u8], rejected: Option<PublicKey>) -> TlsError {
    if let Some(key) = rejected {
        return TlsError::UnknownKey(key);
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => TlsError::Refused,
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            TlsError::WrongPurpose
        }
        Some(rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        )) => TlsError::NotDistest(format!("\"{}\"", beginning.escape_ascii())),
        Some(inner) => TlsError::Failed(inner.to_string()),
        None if bounded::is_too_much(error) => TlsError::TooMuch,
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => TlsError::Closed,
            _ => TlsError::Failed(error.to_string()),
        },
    }
}

/// Closing with something unread would reset the connection, and the peer would lose our alert.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let drain = async {
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await;
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

impl TlsError {
    /// What to do, for the side that dialled a worker with this key.
    pub fn hint(&self, ours: &PublicKey) -> Option<String> {
        match self {
            Self::NotDistest(what) if what.contains("SSH-") => {
                Some("an ssh server answers there: use ssh://HOST instead of tcp://".to_owned())
            }
            Self::NotDistest(_) => {
                Some("check host and port: a worker prints its address when it is ready".to_owned())
            }
            Self::Silent(_) => {
                Some("check that a distest worker listens there and is not stopped".to_owned())
            }
            Self::UnknownKey(key) => Some(format!(
                "if that is the key that the worker printed when it was ready, append it to the \
                 address: #{key}; or take an invitation: run `distest-worker invite` there"
            )),
            Self::Refused => Some(format!(
                "run `distest-worker invite` there and `cargo distest workers add INVITATION` \
                 here, or add this line to its authorized_keys: {ours} run,view NAME"
            )),
            Self::Closed | Self::WrongPurpose => Some(
                "check that a worker listens there: a registry is named registry://HOST:PORT, and \
                 no client can be dialled"
                    .to_owned(),
            ),
            Self::TooMuch | Self::NotHere(_) | Self::Failed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
