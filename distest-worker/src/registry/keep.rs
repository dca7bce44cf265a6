//! The registry itself: listens, and answers workers and clients.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::table::{ConnectionId, Table};
use super::{
    Answer, CONNECTIONS_MAX, HOST_CONNECTIONS_MAX, QUESTION_BYTES_MAX, Question, SILENT_MAX,
};
use crate::accept::AcceptObstacle;
use crate::identity::{Gate, PrivateKey, PublicKey};
use crate::log::{Line, Log};
use crate::message;
use crate::serve::{HalfOpen, REFRESH, Signals};
use crate::tls::{self, Purpose, Trust};

/// A connection is answered at most once in this time.
const PACE: Duration = Duration::from_millis(20);
/// How long a peer may take to take an answer.
const TAKE_TIME: Duration = Duration::from_secs(5);

/// A registry that listens.
pub struct Registry {
    listener: TcpListener,
    signals: Signals,
    shared: Arc<Shared>,
}

struct Shared {
    key: PrivateKey,
    /// Who may register and ask, if not everybody.
    gate: Option<Gate>,
    table: Mutex<Table>,
    connections: AtomicU64,
    hosts: Mutex<BTreeMap<IpAddr, usize>>,
}

impl Registry {
    /// Listens at an address; port 0 picks a free one. With a gate only those whom it lets in may
    /// register and ask. Signals that end a process end it in order from now on.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn at(address: SocketAddr, key: PrivateKey, gate: Option<Gate>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (table, connections, hosts) = (Mutex::default(), AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { key, gate, table, connections, hosts });
        Ok(Self { listener, signals: Signals::listen()?, shared })
    }

    /// Where.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Its own key.
    pub fn key(&self) -> PublicKey {
        self.shared.key.public()
    }

    /// Serves until SIGINT or SIGTERM. `log` gets what an operator should know.
    pub async fn serve(mut self, log: Log) {
        let half_open = HalfOpen::new();
        let mut connections = JoinSet::new();
        let mut obstacle = AcceptObstacle::default();
        let mut refresh = interval(REFRESH);
        loop {
            tokio::select! {
                _ = self.signals.next() => return,
                _ = refresh.tick() => if let Some(gate) = &self.shared.gate {
                    gate.news().into_iter().for_each(|line| log.tell(line));
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let shared = Arc::clone(&self.shared);
                        if let Some(gate) = &shared.gate {
                            gate.news().into_iter().for_each(|line| log.tell(line));
                        }
                        half_open.spawn(&mut connections, peer.ip(), move |place| async move {
                            // Whatever a peer does wrong ends its connection, and that is all.
                            let _ = shared.receive(stream, peer.ip(), || drop(place)).await;
                        });
                    }
                    Err(error) => obstacle.met(&error, &mut |text| log.tell(Line::warning(text))).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

impl Shared {
    async fn receive(
        self: Arc<Self>,
        stream: TcpStream,
        from: IpAddr,
        proved: impl FnOnce(),
    ) -> io::Result<()> {
        let _ = stream.set_nodelay(true);
        let loopback = from.to_canonical().is_loopback();
        let this = Arc::clone(&self);
        let trust: Trust = Arc::new(move |key| {
            this.gate.as_ref().is_none_or(|gate| gate.admit(key, loopback).is_some())
        });
        let secured = tls::accept(stream, &self.key, |purpose| {
            (purpose == Purpose::Registry).then(|| Arc::clone(&trust))
        });
        let secured = secured.await.map_err(io::Error::other)?;
        proved();
        let (key, mut stream) = (secured.key, secured.stream);
        match Seat::take(&self, from) {
            Ok(seat) => {
                // Whom the gate no longer lets in is out, and its entry with it.
                let withdrawn = async {
                    match &self.gate {
                        Some(gate) => {
                            if let Some(peer) = gate.admit(&key, loopback) {
                                gate.revoked(&peer).await;
                            }
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    ended = seat.attend(stream, key) => ended,
                    () = withdrawn => Ok(()),
                }
            }
            Err(why) => {
                answer(&mut stream, &Answer::Refused { why }).await?;
                stream.shutdown().await
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place; when it is dropped its entry is gone.
struct Seat {
    shared: Arc<Shared>,
    host: IpAddr,
    id: ConnectionId,
}

impl Seat {
    fn take(shared: &Arc<Shared>, from: IpAddr) -> Result<Self, String> {
        let host = host(from);
        let mut hosts = shared.hosts();
        if hosts.values().sum::<usize>() >= CONNECTIONS_MAX {
            return Err(format!("there are {CONNECTIONS_MAX} connections already"));
        }
        let theirs = hosts.entry(host).or_default();
        if *theirs >= HOST_CONNECTIONS_MAX {
            return Err(format!("there are {HOST_CONNECTIONS_MAX} connections of {host} already"));
        }
        *theirs += 1;
        let id = ConnectionId(shared.connections.fetch_add(1, Ordering::Relaxed));
        Ok(Self { shared: Arc::clone(shared), host, id })
    }

    /// Answers until the peer goes, falls silent or talks nonsense.
    async fn attend<S>(self, mut stream: S, key: PublicKey) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let question = message::receive(&mut stream, QUESTION_BYTES_MAX);
            let said = match timeout(SILENT_MAX, question).await.map_err(io::Error::other)?? {
                Question::List {} => Answer::Listed { entries: self.shared.table().listed(&key) },
                Question::Register(registration) => {
                    let registered = registration
                        .check()
                        .and_then(|()| self.shared.table().register(self.id, key, registration));
                    match registered {
                        Ok(()) => Answer::Registered {},
                        Err(why) => Answer::Refused { why },
                    }
                }
            };
            answer(&mut stream, &said).await?;
            pace.tick().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.table().leave(self.id);
        let mut hosts = self.shared.hosts();
        if let Some(theirs) = hosts.get_mut(&self.host) {
            *theirs -= 1;
            if *theirs == 0 {
                hosts.remove(&self.host);
            }
        }
    }
}

/// Whom a connection counts for: with IPv6, the network of 64 bits, in which one host has as many
/// addresses as it likes.
fn host(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    let sent = timeout(TAKE_TIME, message::send(stream, answer)).await;
    sent.map_err(io::Error::other)?
}
