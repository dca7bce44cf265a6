//! One-time invitations: how two ends that don't know each other come to do so.
//!
//! The host of an invitation (a worker for a client, or a client for a worker that will join) makes
//! a string with its address, its key and a secret. Whoever has the string dials the host with that
//! key pinned, proves a key of their own, and sends the secret inside that channel: a relay in the
//! middle has another key and learns nothing. Nothing is stored before both sides have confirmed:
//!
//! ```text
//! guest ─ Redeem {secret, name} ─► host   the invitation is used up
//! guest ◄─ Granted {name, permissions} ─ host
//! guest ─ Confirm ─► host                 the host stores the guest's key
//! guest ◄─ Stored ─ host                  the guest stores the host's key
//! ```

mod exchange;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpStream;

use crate::digest::Digest;
use crate::identity::{Permissions, PrivateKey, PublicKey};
use crate::tls::{self, Purpose, TlsError, Trust};

pub use self::exchange::{Granted, Guest, InvitationError, grant, redeem};

/// Invitations that may be open at once.
pub const INVITATIONS_MAX: usize = 64;
/// How long an invitation is good for, if nothing else is said.
pub const VALID_FOR: Duration = Duration::from_secs(15 * 60);

/// How long dialling the host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SECRET_BYTES: usize = 16;
const FORM: &str = "an invitation is written invite+worker://HOST:PORT/KEY/SECRET/PERMISSIONS";

/// What only the two ends of an invitation know. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

/// Who made an invitation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// A worker: a client takes it.
    Worker,
    /// A client: a worker takes it, to join.
    Client,
}

/// An invitation as it is handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invitation {
    /// Who made it.
    pub host: Host,
    /// Where they are: `HOST:PORT`.
    pub address: String,
    /// Their key.
    pub key: PublicKey,
    /// Good for one use.
    pub secret: Secret,
    /// What the client's key may do on the worker.
    pub permissions: Permissions,
}

/// The invitations that a host has open.
#[derive(Debug, Default)]
pub struct Invitations {
    /// By the secret's digest, so that looking one up tells nothing by how long it takes.
    open: Mutex<BTreeMap<Digest, Open>>,
}

#[derive(Debug)]
struct Open {
    permissions: Permissions,
    until: Instant,
}

impl Secret {
    /// A new one. None if the system has no randomness.
    pub fn generate() -> Option<Self> {
        let mut bytes = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Invitations {
    /// Opens one until `until`. None if there are [`INVITATIONS_MAX`] already, or no randomness.
    pub fn open(&self, permissions: Permissions, now: Instant, until: Instant) -> Option<Secret> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, one| one.until > now);
        if open.len() >= INVITATIONS_MAX {
            return None;
        }
        let secret = Secret::generate()?;
        open.insert(Digest::of(&secret.0), Open { permissions, until });
        Some(secret)
    }

    /// Whether any is open.
    pub fn any(&self, now: Instant) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|one| one.until > now)
    }

    /// Uses one up: what it permits, if it was open.
    pub fn take(&self, secret: &[u8], now: Instant) -> Option<Permissions> {
        let taken =
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&Digest::of(secret));
        taken.filter(|one| one.until > now).map(|one| one.permissions)
    }
}

/// Dials the host of an invitation and takes it. Only the host's own key will do.
///
/// # Errors
/// See [`InvitationError`]; nothing has been stored here.
pub async fn take(
    invitation: &Invitation,
    ours: &PrivateKey,
    name: &str,
    store: impl FnOnce(&Granted) -> Result<(), String>,
) -> Result<Granted, InvitationError> {
    let connect = TcpStream::connect(&invitation.address);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
    let stream = stream
        .map_err(|_| format!("{} does not answer", invitation.address))
        .and_then(|stream| {
            stream.map_err(|error| format!("could not connect to {}: {error}", invitation.address))
        })
        .map_err(InvitationError::NoConnection)?;
    let _ = stream.set_nodelay(true);
    let expected = invitation.key;
    let trust: Trust = Arc::new(move |key| *key == expected);
    let secured = tls::connect(stream, ours, Purpose::Invitation, trust).await;
    let secured = secured.map_err(|error| match error {
        TlsError::UnknownKey(key) => InvitationError::Other(format!(
            "somebody else answers at {}: their key is {key}, the invitation's is {expected}",
            invitation.address
        )),
        // Who has no invitation open listens to nobody who brings one.
        TlsError::WrongPurpose | TlsError::Closed => InvitationError::NotOpen,
        other => InvitationError::Other(other.to_string()),
    })?;
    let Invitation { secret, permissions, .. } = invitation;
    redeem(secured.stream, secret, permissions, name, store).await
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Client => "client",
        })
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, address, key, secret, permissions } = self;
        let secret = BASE64URL_NOPAD.encode(&secret.0);
        write!(f, "invite+{host}://{address}/{key}/{secret}/{permissions}")
    }
}

impl FromStr for Invitation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || FORM.to_owned();
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(form)?;
        let host = match scheme {
            "invite+worker" => Host::Worker,
            "invite+client" => Host::Client,
            _ => return Err(form()),
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let [address, key, secret, permissions] = parts[..] else { return Err(form()) };
        if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(form());
        }
        let key = key.parse().map_err(|error| format!("{FORM}; {error}"))?;
        let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).map_err(|_| form())?;
        let secret = Secret(secret.try_into().map_err(|_| form())?);
        let (address, permissions) = (address.to_owned(), permissions.parse()?);
        Ok(Self { host, address, key, secret, permissions })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests;
