//! Talking to a registry, as a worker or as a client.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{ANSWER_BYTES_MAX, Answer, Entry, HEARTBEAT, Question, Registration, RegistryPlace};
use crate::identity::{PrivateKey, PublicKey};
use crate::log::{Line, Log};
use crate::message;
use crate::tls::{self, Purpose, TlsError, Trust};

/// How long dialling may take, and an answer.
const TIME: Duration = Duration::from_secs(5);
/// Between two attempts to reach a registry: at first, and at most. Each failure doubles it.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(8);

/// Why a registry is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no connection.
    #[error("could not connect: {0}")]
    NoConnection(io::Error),
    /// It has not proved the expected key, or doesn't want ours.
    #[error("{0}")]
    NotSecure(#[from] TlsError),
    /// Another key is there than the address names.
    #[error("its key is {0}, and the address names another")]
    OtherKey(PublicKey),
    /// It doesn't do what it was asked.
    #[error("it refused: {0}")]
    Refused(String),
    /// It does something else.
    #[error("it answers what was not asked")]
    Odd,
    /// It said nothing.
    #[error("it did not answer within {} s", TIME.as_secs())]
    Silent,
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl RegistryError {
    /// What to do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoConnection(_) | Self::Silent => {
                Some("start it with: distest-worker registry --listen IP:PORT")
            }
            Self::NotSecure(TlsError::Closed | TlsError::WrongPurpose) => Some(
                "check that a registry listens there: a worker itself is named tcp://HOST:PORT, \
                 without one",
            ),
            _ => None,
        }
    }
}

/// A connection to a registry.
pub struct Asker {
    stream: tls::Stream<TcpStream>,
    /// Our own address, as the registry's network sees it.
    local: IpAddr,
}

impl Asker {
    /// Dials a registry.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn dial(at: &RegistryPlace, ours: &PrivateKey) -> Result<Self, RegistryError> {
        let stream = timeout(TIME, TcpStream::connect(&at.place)).await;
        let stream = stream.map_err(|_| RegistryError::Silent)?;
        Self::over(stream.map_err(RegistryError::NoConnection)?, at, ours).await
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn over(
        stream: TcpStream,
        at: &RegistryPlace,
        ours: &PrivateKey,
    ) -> Result<Self, RegistryError> {
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr()?.ip();
        let pinned = at.key;
        let trust: Trust = Arc::new(move |key| pinned.is_none_or(|pinned| pinned == *key));
        let secured = tls::connect(stream, ours, Purpose::Registry, trust).await;
        let secured = secured.map_err(|error| match error {
            TlsError::UnknownKey(key) => RegistryError::OtherKey(key),
            other => other.into(),
        })?;
        Ok(Self { stream: secured.stream, local })
    }

    /// The workers that let our key in.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub async fn list(&mut self) -> Result<Vec<Entry>, RegistryError> {
        match self.ask(&Question::List {}).await? {
            Answer::Listed { entries } => Ok(entries),
            Answer::Refused { why } => Err(RegistryError::Refused(why)),
            Answer::Registered {} => Err(RegistryError::Odd),
        }
    }

    /// Says that we are there; to be said again within [`super::SILENT_MAX`].
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub async fn register(&mut self, registration: Registration) -> Result<(), RegistryError> {
        match self.ask(&Question::Register(registration)).await? {
            Answer::Registered {} => Ok(()),
            Answer::Refused { why } => Err(RegistryError::Refused(why)),
            Answer::Listed { .. } => Err(RegistryError::Odd),
        }
    }

    async fn ask(&mut self, question: &Question) -> Result<Answer, RegistryError> {
        let talk = async {
            message::send(&mut self.stream, question).await?;
            message::receive(&mut self.stream, ANSWER_BYTES_MAX).await
        };
        match timeout(TIME, talk).await {
            Err(_) => Err(RegistryError::Silent),
            Ok(Err(error)) if tls::refusal(&error) => Err(TlsError::Refused.into()),
            Ok(answer) => Ok(answer?),
        }
    }
}

/// A worker's entry in a registry.
pub struct Announced {
    /// Which registry.
    pub at: RegistryPlace,
    /// The worker's key.
    pub key: PrivateKey,
    /// Where it listens.
    pub listens: SocketAddr,
    /// Tells of each change of what `describe` says.
    pub changes: watch::Receiver<u64>,
}

/// Keeps a worker registered for as long as it is polled, whatever becomes of the connection.
/// `describe` says what, for the address at which others reach the worker; `log` gets what an
/// operator should know, once.
pub async fn announce(
    announced: Announced,
    describe: impl Fn(SocketAddr) -> Registration,
    log: &Log,
) {
    let Announced { at, key, listens, mut changes } = announced;
    let mut back_off = BACK_OFF_MIN;
    let mut last = String::new();
    loop {
        let talking = async {
            let mut asker = Asker::dial(&at, &key).await?;
            loop {
                let reached = reached(listens, asker.local);
                changes.mark_unchanged();
                asker.register(describe(reached)).await?;
                let text = format!("registered with {at} as {reached}");
                if text != last {
                    log.tell(text.clone());
                    last = text;
                }
                back_off = BACK_OFF_MIN;
                // A new client's key is told at once.
                let _ = timeout(HEARTBEAT, changes.changed()).await;
            }
        };
        let ended: Result<std::convert::Infallible, RegistryError> = talking.await;
        let text = match ended {
            Err(error) => {
                let text = format!("could not register with {at}: {error}; it is tried again");
                if text != last {
                    let hint = error.hint().map(str::to_owned);
                    log.tell(Line { hint, ..Line::warning(text.clone()) });
                }
                text
            }
            Ok(never) => match never {},
        };
        last = text;
        tokio::time::sleep(back_off).await;
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// Where others reach who listens there and has this address on the way to the registry.
fn reached(listens: SocketAddr, local: IpAddr) -> SocketAddr {
    match listens.ip().is_unspecified() {
        true if local.is_loopback() => crate::serve::reachable(listens),
        true => SocketAddr::new(local, listens.port()),
        false => listens,
    }
}
