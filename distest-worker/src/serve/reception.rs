//! Who gets in: proves the peer's key, asks the gate, serves.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::half_open::Place;
use super::{End, SESSIONS_MAX};
use crate::identity::{Gate, Peer, PrivateKey, PublicKey};
use crate::server::{ConnectionEnd, WorkerShared, serve_peer};
use crate::tls::{self, Purpose, TlsError, Trust};

/// Lets clients in, one connection at a time.
pub struct Reception {
    key: PrivateKey,
    gate: Arc<Gate>,
    worker: Arc<WorkerShared>,
    sessions: Arc<Semaphore>,
}

impl Reception {
    /// A worker with this key, which lets in whom `gate` does.
    pub fn new(key: PrivateKey, gate: Gate, worker: Arc<WorkerShared>) -> Arc<Self> {
        let sessions = Arc::new(Semaphore::new(SESSIONS_MAX));
        Arc::new(Self { key, gate: Arc::new(gate), worker, sessions })
    }

    /// The worker's own key.
    pub fn key(&self) -> PublicKey {
        self.key.public()
    }

    /// Whom it lets in.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The worker.
    pub fn worker(&self) -> &Arc<WorkerShared> {
        &self.worker
    }

    /// One session on a stream, whoever dialled. What ends before its peer has proved its key is
    /// an error of TLS.
    ///
    /// # Errors
    /// The peer has not proved a key that is let in.
    pub async fn serve_stream<S>(
        &self,
        stream: S,
        loopback: bool,
    ) -> Result<ConnectionEnd, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, peer) = self.prove(stream, loopback).await?;
        Ok(self.session(stream, peer).await)
    }

    pub(super) async fn receive<S>(&self, stream: S, loopback: bool, place: Place) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, peer) = match self.prove(stream, loopback).await {
            Ok(proved) => proved,
            Err(error) => return End::Refused(error),
        };
        drop(place);
        let Ok(_session) = Arc::clone(&self.sessions).try_acquire_owned() else { return End::Full };
        End::Served(self.session(stream, peer).await)
    }

    async fn prove<S>(&self, stream: S, loopback: bool) -> Result<(tls::Stream<S>, Peer), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // What was added a moment ago counts.
        self.gate.refresh();
        let gate = Arc::clone(&self.gate);
        let known: Trust = Arc::new(move |key| gate.admit(key, loopback).is_some());
        let secured = tls::accept(stream, &self.key, |purpose| match purpose {
            Purpose::Session => Some(Arc::clone(&known)),
            Purpose::Invitation | Purpose::Join | Purpose::Registry => None,
        });
        let secured = secured.await?;
        // It may have been withdrawn meanwhile.
        let peer = self.gate.admit(&secured.key, loopback);
        let peer = peer.ok_or(TlsError::UnknownKey(secured.key))?;
        Ok((secured.stream, peer))
    }

    async fn session<S>(&self, stream: S, peer: Peer) -> ConnectionEnd
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        serve_peer(stream, Arc::clone(&self.worker), peer, Arc::clone(&self.gate)).await
    }
}
