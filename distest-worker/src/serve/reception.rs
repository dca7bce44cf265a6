//! Who gets in: proves the peer's key, asks the gate, serves.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};

use super::half_open::Place;
use super::seats::Seats;
use super::{End, REFRESH};
use crate::identity::{Authorized, Gate, Peer, Permissions, PrivateKey, PublicKey};
use crate::invitation::{self, Granted, Guest, Host, Invitation, InvitationError, Invitations};
use crate::log::Log;
use crate::server::{
    Begins, ConnectionEnd, NoComeback, WorkerShared, come_back, serve_peer, turn_away,
};
use crate::tls::{self, Purpose, TlsError, Trust};

/// Lets clients in, one connection at a time.
pub struct Reception {
    key: PrivateKey,
    gate: Arc<Gate>,
    worker: Arc<WorkerShared>,
    seats: Seats,
    invitations: Invitations,
    /// Where others reach this worker, if it listens: `HOST:PORT`.
    address: OnceLock<String>,
}

/// A peer that has proved its key.
enum Proved<S> {
    /// One that is let in.
    Peer(tls::Stream<S>, Peer),
    /// One that is let in and has a session, or says so.
    Back(tls::Stream<S>, Peer),
    /// One that has an invitation, or says so.
    Guest(tls::Stream<S>, PublicKey),
}

impl Reception {
    /// A worker with this key, which lets in whom `gate` does.
    pub fn new(key: PrivateKey, gate: Gate, worker: Arc<WorkerShared>) -> Arc<Self> {
        let (gate, seats) = (Arc::new(gate), Seats::default());
        let (invitations, address) = (Invitations::default(), OnceLock::new());
        Arc::new(Self { key, gate, worker, seats, invitations, address })
    }

    /// Others reach this worker at `HOST:PORT`.
    pub fn listens_at(&self, address: String) {
        // It listens once.
        let _ = self.address.set(address);
    }

    /// Takes a client's invitation: it may use this worker from now on. Answers who may do what.
    ///
    /// # Errors
    /// See [`InvitationError`].
    pub async fn accept_invitation(
        &self,
        invitation: &Invitation,
    ) -> Result<String, InvitationError> {
        let name = self.worker.config().name.clone();
        let mut now = Permissions::default();
        let store = |granted: &Granted| {
            let Granted { name, permissions } = granted.clone();
            let stored = self.gate.authorize(&invitation.key, &Authorized { permissions, name });
            now = stored.map_err(|error| error.to_string())?;
            Ok(())
        };
        let granted = invitation::take(invitation, &self.key, &name, store).await?;
        Ok(may_now(&granted.name, &invitation.key, &now))
    }

    /// Where others reach this worker, if it listens: `HOST:PORT`.
    pub fn address(&self) -> Option<&str> {
        self.address.get().map(String::as_str)
    }

    /// Opens an invitation for a client that will dial `address`, or where this worker listens.
    ///
    /// # Errors
    /// In words.
    pub fn invite(
        &self,
        permissions: Permissions,
        valid_for: Duration,
        address: Option<String>,
    ) -> Result<Invitation, String> {
        let address = address.or_else(|| self.address.get().cloned());
        let address = address.ok_or("this worker doesn't listen anywhere")?;
        let now = Instant::now();
        let until = now.checked_add(valid_for).ok_or("that is too long")?;
        let secret = self.invitations.open(permissions.clone(), now, until);
        let secret = secret.ok_or("too many invitations are open")?;
        Ok(Invitation { host: Host::Worker, address, key: self.key(), secret, permissions })
    }

    /// The worker's own key.
    pub fn key(&self) -> PublicKey {
        self.key.public()
    }

    /// Proves who it is.
    pub fn private_key(&self) -> &PrivateKey {
        &self.key
    }

    /// Whom it lets in.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Looks again and again whom it lets in, and tells what is wrong with the list.
    pub async fn watch(&self, log: &Log) -> Infallible {
        let mut refresh = tokio::time::interval(REFRESH);
        loop {
            refresh.tick().await;
            self.gate.news().into_iter().for_each(|line| log.tell(line));
        }
    }

    /// The worker.
    pub fn worker(&self) -> &Arc<WorkerShared> {
        &self.worker
    }

    /// One session on a stream that a client began. What ends before its peer has proved its key
    /// is an error of TLS.
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
        match self.prove(stream, loopback).await? {
            Proved::Peer(stream, peer) => {
                Ok(self.session(stream, peer, false, Box::new(|_, _| {})).await)
            }
            Proved::Back(..) | Proved::Guest(..) => Err(TlsError::WrongPurpose),
        }
    }

    /// One session on a stream that this worker began, with a client that listens for workers.
    /// `pinned` is its key, if the address names it; it must be let in all the same.
    ///
    /// # Errors
    /// The client has not proved a key that is let in.
    pub async fn join_stream<S>(
        &self,
        stream: S,
        loopback: bool,
        pinned: Option<PublicKey>,
        begins: Begins,
    ) -> Result<ConnectionEnd, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.gate.refresh();
        let gate = Arc::clone(&self.gate);
        let known: Trust = Arc::new(move |key| {
            pinned.is_none_or(|pinned| pinned == *key) && gate.admit(key, loopback).is_some()
        });
        let secured = tls::connect(stream, &self.key, Purpose::Join, known).await?;
        let peer = self.gate.admit(&secured.key, loopback);
        let peer = peer.ok_or(TlsError::UnknownKey(secured.key))?;
        Ok(self.session(secured.stream, peer, false, begins).await)
    }

    pub(super) async fn receive<S>(
        &self,
        stream: S,
        loopback: bool,
        place: Place,
        begins: Begins,
    ) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match self.prove(stream, loopback).await {
            Err(error) => End::Refused(error),
            // Until it has said what it comes back to, it is one of those that are half open; its
            // session has a seat.
            Ok(Proved::Back(stream, peer)) => match self.come_back(stream, &peer).await {
                Ok(()) => End::CameBack(peer.name),
                Err(NoComeback) => End::NothingLeft(peer.name),
            },
            Ok(Proved::Guest(stream, key)) => End::Invited(self.invited(stream, key).await),
            Ok(Proved::Peer(stream, peer)) => match self.seats.take(peer.key) {
                Ok(_seat) => {
                    drop(place);
                    End::Served(self.session(stream, peer, true, begins).await)
                }
                Err(full) => {
                    // Until it has been told, it is one of those that are half open.
                    turn_away(stream, &self.worker, full.refusal()).await;
                    End::Full(full)
                }
            },
        }
    }

    async fn prove<S>(&self, stream: S, loopback: bool) -> Result<Proved<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // What was added a moment ago counts.
        self.gate.refresh();
        let gate = Arc::clone(&self.gate);
        let known: Trust = Arc::new(move |key| gate.admit(key, loopback).is_some());
        let secured = tls::accept(stream, &self.key, |purpose| match purpose {
            Purpose::Session | Purpose::Resume => Some(Arc::clone(&known)),
            // Any key will do: the secret decides.
            Purpose::Invitation => self
                .invitations
                .any(Instant::now())
                .then(|| Arc::new(|_: &PublicKey| true) as Trust),
            Purpose::Join | Purpose::Registry => None,
        });
        let secured = secured.await?;
        if secured.purpose == Purpose::Invitation {
            return Ok(Proved::Guest(secured.stream, secured.key));
        }
        // It may have been withdrawn meanwhile.
        let peer = self.gate.admit(&secured.key, loopback);
        let peer = peer.ok_or(TlsError::UnknownKey(secured.key))?;
        Ok(match secured.purpose {
            Purpose::Resume => Proved::Back(secured.stream, peer),
            _ => Proved::Peer(secured.stream, peer),
        })
    }

    async fn invited<S>(
        &self,
        stream: tls::Stream<S>,
        key: PublicKey,
    ) -> Result<String, InvitationError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.worker.config().name.clone();
        let mut now = Permissions::default();
        let store = |guest: &Guest| {
            let Guest { name, permissions } = guest.clone();
            let stored = self.gate.authorize(&key, &Authorized { permissions, name });
            now = stored.map_err(|error| error.to_string())?;
            Ok(())
        };
        let guest = invitation::grant(stream, &self.invitations, &name, store).await?;
        Ok(may_now(&guest.name, &key, &now))
    }

    async fn come_back<S>(&self, stream: tls::Stream<S>, peer: &Peer) -> Result<(), NoComeback>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let key = peer.key.as_ref().ok_or(NoComeback)?;
        come_back(stream, &self.worker, key).await
    }

    async fn session<S>(
        &self,
        stream: S,
        peer: Peer,
        dialled: bool,
        begins: Begins,
    ) -> ConnectionEnd
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (worker, gate) = (Arc::clone(&self.worker), Arc::clone(&self.gate));
        serve_peer(stream, worker, peer, gate, dialled, begins).await
    }
}

/// Told when an invitation has come to something.
fn may_now(name: &str, key: &PublicKey, permissions: &Permissions) -> String {
    format!("{name} ({key}) may now {permissions}")
}
