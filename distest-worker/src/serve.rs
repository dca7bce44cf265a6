//! Listening for clients, until told to end.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub mod control;
mod half_open;
pub mod join;
mod reception;
mod seats;
mod signals;

use self::control::Control;
pub use self::half_open::{HalfOpen, Place};
pub use self::reception::Reception;
use self::seats::Full;
pub(crate) use self::signals::{Asked, Signals};
use crate::accept::{AcceptObstacle, accept_again};
use crate::invitation::InvitationError;
use crate::link::LinkEnd;
use crate::log::{self, Complaint, Line, Log};
use crate::probe::probe;
use crate::sandbox::host::Host;
use crate::sandbox::level::Level;
pub use crate::server::{Begins, ConnectionEnd, WorkerConfig, WorkerShared, serve_connection};
use crate::tls::TlsError;
use crate::upgrade::Successor;
use crate::zygote::ZygoteProgram;

/// How long sessions may take to end when the worker shuts down, before they are dropped.
const SHUT_DOWN_TIME: Duration = Duration::from_secs(5);
/// Between two looks at whether `authorized_keys` has changed.
pub(crate) const REFRESH: Duration = Duration::from_millis(500);

/// What an operator wants of a worker's sandboxes.
#[derive(Clone, Debug)]
pub struct SandboxWish {
    /// Nothing better is tried.
    pub most: Level,
    /// What tests may write into one, in bytes.
    pub writes_bytes_max: u64,
    /// Folders that no test may see, beside the store and the user's own.
    pub hidden: Vec<PathBuf>,
    /// Clients may see each other's files, where sandboxes can't hide them.
    pub trust_clients: bool,
}

/// A worker that has no connection yet. It starts attempts through this process's own executable,
/// whose `main` must call [`crate::zygote::enter_if_asked`] first, and in the best sandboxes that
/// this machine allows: which those are is tried here.
///
/// # Errors
/// This process's own executable can't be found.
pub fn share(config: WorkerConfig, wish: SandboxWish) -> io::Result<Arc<WorkerShared>> {
    let zygote = ZygoteProgram::this_executable();
    std::fs::metadata(&zygote.program)?;
    let Some(store) = &config.store else { return Ok(WorkerShared::new(config, zygote)) };
    let mut own = wish.hidden;
    own.push(store.folder().to_owned());
    let mut host = Host::of_this_process(&own);
    host.writes_bytes_max = wish.writes_bytes_max;
    probe(&mut host, &zygote, store.scratch(), wish.most);
    let worker = WorkerShared::on(host, config, zygote);
    if !worker.host().level.is_enclosed() && !wish.trust_clients {
        worker.serve_one_client();
    }
    Ok(worker)
}

/// An address that others can dial, for one that means all of this machine's.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let ours = getifaddrs().into_iter().flatten().filter_map(|interface| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    });
    // Link-local addresses mean nothing without the name of an interface.
    let usable = ours.filter(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => address.is_ipv6() && !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    let ip = usable.min_by_key(IpAddr::is_ipv6);
    SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), address.port())
}

/// A worker that waits for clients.
pub struct Listening {
    listener: TcpListener,
    reception: Arc<Reception>,
    control: Result<Control, Complaint>,
    signals: Signals,
}

/// How a connection ended.
enum End {
    /// Before its peer had proved a key that is let in.
    Refused(TlsError),
    /// Later.
    Served(ConnectionEnd),
    /// With a guest who came with an invitation; what came of it.
    Invited(Result<String, InvitationError>),
    /// There were too many connections, and it was told so.
    Full(Full),
    /// Its session goes on here, whose client this is.
    CameBack(String),
    /// It came back to nothing.
    NothingLeft(String),
}

impl Listening {
    /// Listens at an address; port 0 picks a free one. Signals that end a process end it in order
    /// from now on.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn at(address: SocketAddr, reception: Arc<Reception>) -> io::Result<Self> {
        Self::begin(TcpListener::bind(address).await?, reception)
    }

    /// Listens at a socket that does so already, and doesn't block.
    ///
    /// # Errors
    /// It is of no use.
    pub fn on(listener: std::net::TcpListener, reception: Arc<Reception>) -> io::Result<Self> {
        Self::begin(TcpListener::from_std(listener)?, reception)
    }

    fn begin(listener: TcpListener, reception: Arc<Reception>) -> io::Result<Self> {
        // Before anybody is told that the worker is there.
        let control = Control::open(&reception);
        Ok(Self { listener, reception, control, signals: Signals::listen()? })
    }

    /// Where.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves every client that is let in until SIGINT, which ends all sessions; SIGTERM or a client
    /// that may do lets what runs come to its end. `log` gets what an operator should know.
    /// Answers what this process is to become, if it was given another executable.
    pub async fn serve(mut self, log: &Log) -> Option<Successor> {
        let mut connections: JoinSet<(Telling, End)> = JoinSet::new();
        let mut refresh = tokio::time::interval(REFRESH);
        let half_open = HalfOpen::new();
        if let Err(error) = &self.control {
            let lost = error.clone().after("`distest-worker invite` won't find this worker");
            log.tell(Line { level: log::Level::Warning, ..lost.into() });
        }
        let worker = Arc::clone(self.reception.worker());
        let mut draining = pin!(worker.draining());
        let mut obstacle = AcceptObstacle::default();
        let mut stopped = false;
        loop {
            tokio::select! {
                // Who comes when others were told that it drains is not let in any more.
                biased;
                asked = self.signals.next() => {
                    asked.of(&worker);
                    stopped = true;
                    break;
                }
                () = &mut draining => break,
                _ = refresh.tick() => {
                    self.reception.gate().news().into_iter().for_each(|line| log.tell(line));
                    log.catch_up();
                }
                () = Control::serve(self.control.as_ref().ok()) => {}
                Some(ended) = connections.join_next() => if let Ok((telling, end)) = ended {
                    if !matches!(end, End::Served(_) | End::Invited(Ok(_)) | End::CameBack(_)) {
                        worker.count_refused();
                    }
                    telling.end(end);
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        // Answers are small and awaited: they must not wait for company.
                        let _ = stream.set_nodelay(true);
                        let reception = Arc::clone(&self.reception);
                        let telling = Telling::new(log.clone(), peer.to_string());
                        half_open.spawn(&mut connections, peer.ip(), move |place| async move {
                            let loopback = peer.ip().to_canonical().is_loopback();
                            let begins = telling.begins();
                            (telling, reception.receive(stream, loopback, place, begins).await)
                        });
                    }
                    Err(error) => obstacle.met(&error, &mut |text| log.tell(Line::warning(text))).await,
                },
            }
        }
        // Whoever comes meanwhile is sent away, and finds the new one at the same address later.
        let mut listener = (worker.is_upgraded() && !stopped).then_some(self.listener);
        if !worker.shuts_down() && !connections.is_empty() {
            log.tell("finishing what runs; a second signal ends it");
            let mut ended = pin!(async {
                loop {
                    tokio::select! {
                        ended = connections.join_next() => match ended {
                            Some(Ok((telling, end))) => telling.end(end),
                            Some(Err(_)) => {}
                            None => return,
                        },
                        // Who is removed now is out now.
                        _ = refresh.tick() => {
                            let news = self.reception.gate().news();
                            news.into_iter().for_each(|line| log.tell(line));
                            log.catch_up();
                        }
                    }
                }
            });
            loop {
                tokio::select! {
                    () = &mut ended => break,
                    asked = self.signals.next() => {
                        let first = listener.take().is_some() && asked == Asked::Drain;
                        // It ends for good, when what runs has.
                        if !first {
                            break;
                        }
                    }
                    () = turn_away(listener.as_ref()) => {}
                }
            }
        }
        worker.shut_down();
        let ended = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUT_DOWN_TIME, ended).await;
        // Dropping a connection kills what it runs.
        connections.shutdown().await;
        let (socket, upgrades) = (listener?.into_std().ok()?, worker.upgrades()?);
        // One may have come with the last of them; one that comes later finds nothing to finish.
        if self.signals.let_go().await {
            return None;
        }
        upgrades.successor(socket)
    }
}

/// Closes the next connection at once; never ends where nobody listens.
async fn turn_away(listener: Option<&TcpListener>) {
    match listener {
        Some(listener) => match listener.accept().await {
            Ok(_) => {}
            Err(_) => accept_again().await,
        },
        None => std::future::pending().await,
    }
}

/// Tells of one connection. Of a run whose beginning was told the end is told, too; whatever else
/// somebody can do again and again must not fill the log.
struct Telling {
    log: Log,
    peer: String,
    is_told: Arc<AtomicBool>,
}

impl Telling {
    /// Of one with this peer.
    fn new(log: Log, peer: String) -> Self {
        Self { log, peer, is_told: Arc::default() }
    }

    /// Tells that a run begins.
    fn begins(&self) -> Begins {
        let (log, peer, is_told) = (self.log.clone(), self.peer.clone(), Arc::clone(&self.is_told));
        Box::new(move |client, run| {
            let run = Some(run.to_owned());
            let peer = Some(peer.clone());
            let line = Line { client: Some(client.to_owned()), run, peer, ..Line::from("begins") };
            is_told.store(log.begins(client, line), Ordering::Relaxed);
        })
    }

    /// Tells that a run has ended here, and how.
    fn ended(&self, client: String, run: String, end: &LinkEnd) {
        if self.is_told.load(Ordering::Relaxed) {
            let ended = Line::from(format!("ended: {}", log::brief(&end.to_string())));
            let (client, run, peer) = (Some(client), Some(run), Some(self.peer.clone()));
            self.log.tell(Line { client, run, peer, ..ended });
        }
    }

    /// Tells of the connection's end.
    fn end(&self, end: End) {
        let peer = Some(self.peer.clone());
        let refused = |why: &dyn fmt::Display| {
            let about = Line { level: log::Level::Warning, peer: peer.clone(), ..Line::default() };
            self.log.often("refused: ", &why.to_string(), about);
        };
        match end {
            End::Served(ConnectionEnd::Session { end, client, run }) => {
                self.ended(client, run, &end);
            }
            End::Invited(Ok(what)) => self.log.tell(Line { peer, ..what.into() }),
            End::Served(ConnectionEnd::Link(end)) => {
                self.log.often("", &end.to_string(), Line { peer, ..Line::default() });
            }
            End::Served(ConnectionEnd::NoHello(error)) => refused(&error),
            End::Invited(Err(error)) => refused(&error),
            End::Full(full) => refused(&full),
            End::CameBack(client) => {
                let about = Line { client: Some(client), peer, ..Line::default() };
                self.log.often("", "resumed: its connection had broken", about);
            }
            End::NothingLeft(client) => {
                let about = Line { client: Some(client), peer, ..Line::default() };
                self.log.often("", "came back to a session that is over here, or never was", about);
            }
            End::Refused(TlsError::Refused) => {
                let why = "a client that does not know this worker's key went away: to it, \
                           somebody else might answer here";
                let hint = "run `distest-worker invite` here, and `cargo distest workers add \
                            INVITATION` there";
                let about = Line::warning(String::new()).hint(hint);
                self.log.often("", why, Line { peer, ..about });
            }
            End::Refused(error) => refused(&error),
        }
    }
}
