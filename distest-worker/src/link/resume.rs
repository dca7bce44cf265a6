//! How a link is taken up again on another connection, whose both ends have proved their keys.
//!
//! Who dialled says which link it means and how far it has got ([`Claim`]); the other end says how
//! far it has got itself, or that there is no such link, whatever the reason.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::message;

/// The most bytes of a claim, and of its answer.
const CLAIM_BYTES_MAX: u32 = 256;

/// What a peer says that comes back.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    /// The link, by what it was called when it began.
    pub token: String,
    /// Which of the peer's attempts this is: each is good once, and none after a later one.
    pub number: u64,
    /// Bytes that the peer has received since the link began.
    pub received: u64,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
enum Verdict {
    /// We have received so many bytes since the link began; those that follow go on from where the
    /// peer has got.
    Resumed { received: u64 },
    /// There is no such link.
    Unknown {},
}

/// Why a link doesn't go on.
#[derive(Debug)]
pub(super) enum Unresumed {
    /// There is no such link any more.
    Refused,
    /// This connection broke, too.
    Broken,
    /// What they say that they have can't be.
    Gap(String),
}

/// Claims a link. Answers how many bytes the other end has received.
pub(super) async fn ask<S>(stream: &mut S, claim: &Claim) -> Result<u64, Unresumed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    message::send(stream, claim).await.map_err(|_| Unresumed::Broken)?;
    match message::receive(stream, CLAIM_BYTES_MAX).await.map_err(|_| Unresumed::Broken)? {
        Verdict::Resumed { received } => Ok(received),
        Verdict::Unknown {} => Err(Unresumed::Refused),
    }
}

/// Reads what a peer claims.
///
/// # Errors
/// It claims nothing.
pub async fn listen(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Claim> {
    message::receive(stream, CLAIM_BYTES_MAX).await
}

/// Tells a peer that there is no such link.
///
/// # Errors
/// It doesn't listen.
pub async fn refuse(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    message::send(stream, &Verdict::Unknown {}).await?;
    stream.shutdown().await
}

/// That the link goes on, as bytes.
pub(super) fn answer(received: u64) -> io::Result<Bytes> {
    message::bytes(&Verdict::Resumed { received }).map(Bytes::from)
}
