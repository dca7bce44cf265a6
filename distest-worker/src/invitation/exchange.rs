//! What host and guest of an invitation say to each other.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Invitations, Secret};
use crate::identity::{Permission, Permissions};
use crate::message;

/// The most bytes of one message.
const MESSAGE_BYTES_MAX: u32 = 4096;
/// How long all of it may take.
const TIME: Duration = Duration::from_secs(10);

/// Who took an invitation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// What they call themselves.
    pub name: String,
    /// What the invitation permits.
    pub permissions: Permissions,
}

/// What an invitation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Granted {
    /// What the host calls itself.
    pub name: String,
    /// What it permits.
    pub permissions: Permissions,
}

/// Why an invitation came to nothing. Nothing has been stored, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    /// Nobody could be reached.
    #[error("{0}")]
    NoConnection(String),
    /// Who is there isn't who gave it.
    #[error("{0}")]
    Other(String),
    /// It was used before, has expired, or never was.
    #[error("the invitation is used up, has expired or was never given")]
    NotOpen,
    /// The other side could not do its part.
    #[error("the other side could not: {0}")]
    Refused(String),
    /// We could not do ours.
    #[error("{0}")]
    NotStored(String),
    /// It took too long.
    #[error("the other side did not answer within {} s", TIME.as_secs())]
    Silent,
    /// It wants other permissions than the invitation says.
    #[error("the invitation says {said}, and the other side {told}: do not trust it")]
    MoreThanSaid {
        /// What the invitation permits.
        said: Permissions,
        /// What the host says that it permits.
        told: Permissions,
    },
    /// What it said makes no sense.
    #[error("the other side says what makes no sense: {0}")]
    Garbled(String),
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
enum FromGuest {
    Redeem { secret: Bytes, name: String },
    Confirm {},
}

#[derive(Debug, Serialize, Deserialize)]
enum FromHost {
    NotOpen {},
    Granted { name: String, permissions: Vec<Permission> },
    Stored {},
    Refused { why: String },
}

/// The guest's part, over a stream whose other end has proved the host's key. What is permitted is no
/// more than `said`, which is what the invitation says.
///
/// # Errors
/// Nothing has been stored here.
pub async fn redeem<S>(
    mut stream: S,
    secret: &Secret,
    said: &Permissions,
    name: &str,
    store: impl FnOnce(&Granted) -> Result<(), String>,
) -> Result<Granted, InvitationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let secret = Bytes::copy_from_slice(secret.as_bytes());
        send(&mut stream, &FromGuest::Redeem { secret, name: name.to_owned() }).await?;
        let granted = match receive(&mut stream).await? {
            FromHost::Granted { name, permissions } => {
                Granted { name, permissions: permissions.into_iter().collect() }
            }
            other => return Err(not_granted(other)),
        };
        // Nobody has stored anything yet.
        if !said.include(&granted.permissions) {
            let (said, told) = (said.clone(), granted.permissions);
            return Err(InvitationError::MoreThanSaid { said, told });
        }
        send(&mut stream, &FromGuest::Confirm {}).await?;
        match receive(&mut stream).await? {
            FromHost::Stored {} => {}
            other => return Err(not_granted(other)),
        }
        store(&granted).map_err(InvitationError::NotStored)?;
        Ok(granted)
    })
    .await
}

/// The host's part, over a stream whose other end has proved the guest's key.
///
/// # Errors
/// Nothing has been stored here, except after an error of writing.
pub async fn grant<S>(
    mut stream: S,
    invitations: &Invitations,
    name: &str,
    store: impl FnOnce(&Guest) -> Result<(), String>,
) -> Result<Guest, InvitationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let FromGuest::Redeem { secret, name: guest } = receive(&mut stream).await? else {
            return Err(InvitationError::Garbled("no secret".to_owned()));
        };
        // Used up now: whoever comes second with it gets nothing, whatever becomes of the first.
        let Some(permissions) = invitations.take(&secret, Instant::now()) else {
            send(&mut stream, &FromHost::NotOpen {}).await?;
            return Err(InvitationError::NotOpen);
        };
        let listed = Permission::ALL.into_iter().filter(|one| permissions.allow(*one)).collect();
        let granted = FromHost::Granted { name: name.to_owned(), permissions: listed };
        send(&mut stream, &granted).await?;
        let FromGuest::Confirm {} = receive(&mut stream).await? else {
            return Err(InvitationError::Garbled("no confirmation".to_owned()));
        };
        let guest = Guest { name: guest, permissions };
        if let Err(why) = store(&guest) {
            send(&mut stream, &FromHost::Refused { why: why.clone() }).await?;
            return Err(InvitationError::NotStored(why));
        }
        send(&mut stream, &FromHost::Stored {}).await?;
        stream.shutdown().await?;
        Ok(guest)
    })
    .await
}

fn not_granted(answer: FromHost) -> InvitationError {
    match answer {
        FromHost::NotOpen {} => InvitationError::NotOpen,
        FromHost::Refused { why } => InvitationError::Refused(why),
        FromHost::Granted { .. } | FromHost::Stored {} => {
            InvitationError::Garbled("it answers what was not asked".to_owned())
        }
    }
}

async fn within<T>(
    work: impl Future<Output = Result<T, InvitationError>>,
) -> Result<T, InvitationError> {
    tokio::time::timeout(TIME, work).await.unwrap_or(Err(InvitationError::Silent))
}

async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), InvitationError> {
    Ok(message::send(stream, message).await?)
}

async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, InvitationError> {
    message::receive(stream, MESSAGE_BYTES_MAX).await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => InvitationError::Garbled(error.to_string()),
        _ => InvitationError::Io(error),
    })
}
