//! Clients that come back to their session on another connection, after the last one broke.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64URL_NOPAD;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::digest::Digest;
use crate::hello::HELLO_TIMEOUT;
use crate::identity::PublicKey;
use crate::link::{Awaiting, Back, resume};

/// What a client must have been told to come back; 256 bits.
const TOKEN_BYTES: usize = 32;
/// Those that came back to one session and wait for their turn.
const WAITING_MAX: usize = 4;

/// Sessions to which a client may come back.
#[derive(Clone, Default)]
pub(super) struct Comebacks {
    /// By the digest of their token: how long it takes not to find one says nothing of any.
    lasting: Arc<Mutex<BTreeMap<Digest, Lasting>>>,
}

struct Lasting {
    key: PublicKey,
    back: mpsc::Sender<Back>,
}

/// One session may be come back to for as long as this is there.
pub(super) struct Offer {
    comebacks: Comebacks,
    digest: Digest,
}

/// Nobody has come back: there is no such session of that key's, or it is over, or the client has
/// come by a later connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NoComeback;

impl Comebacks {
    /// A new token; none if the system has no randomness.
    pub(super) fn token() -> Option<String> {
        let mut bytes = [0; TOKEN_BYTES];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(BASE64URL_NOPAD.encode(&bytes))
    }

    /// Who has this key and this token may come back.
    pub(super) fn offer(&self, token: &str, key: PublicKey) -> (Offer, Awaiting) {
        let (back, awaited) = mpsc::channel(WAITING_MAX);
        let digest = Digest::of(token.as_bytes());
        self.lasting().insert(digest, Lasting { key, back });
        (Offer { comebacks: self.clone(), digest }, Awaiting::new(awaited))
    }

    /// Hands a stream from somebody with this key to the session that they name.
    pub(super) async fn take<S>(&self, mut stream: S, key: &PublicKey) -> Result<(), NoComeback>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let claim = timeout(HELLO_TIMEOUT, resume::listen(&mut stream)).await;
        let Ok(Ok(claim)) = claim else { return Err(NoComeback) };
        let Some(back) = self.find(&claim.token, key) else {
            // Who doesn't listen is not let in either.
            let _ = timeout(HELLO_TIMEOUT, resume::refuse(&mut stream)).await;
            return Err(NoComeback);
        };
        let (coming_back, told) = Back::new(stream, claim);
        let coming = async {
            // If it ends this moment the client learns that by coming once more.
            back.send(coming_back).await.ok()?;
            told.await.ok()
        };
        timeout(HELLO_TIMEOUT, coming).await.ok().flatten().ok_or(NoComeback)
    }

    fn find(&self, token: &str, key: &PublicKey) -> Option<mpsc::Sender<Back>> {
        let lasting = self.lasting();
        let found = lasting.get(&Digest::of(token.as_bytes()))?;
        (found.key == *key).then(|| found.back.clone())
    }

    fn lasting(&self) -> MutexGuard<'_, BTreeMap<Digest, Lasting>> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.comebacks.lasting().remove(&self.digest);
    }
}
