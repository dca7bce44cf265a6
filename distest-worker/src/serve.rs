//! Listening for clients, until told to end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

pub use crate::server::{ConnectionEnd, WorkerConfig, WorkerShared, serve_connection};
use crate::zygote::ZygoteProgram;

/// Connections at once, greeted or not.
pub const CONNECTIONS_MAX: usize = 1024;

/// How long sessions may take to end when the worker shuts down, before they are dropped.
const SHUT_DOWN_TIME: Duration = Duration::from_secs(5);

/// A worker that has no connection yet. It starts attempts through this process's own executable,
/// whose `main` must call [`crate::zygote::enter_if_asked`] first.
///
/// # Errors
/// This process's own executable can't be found.
pub fn share(config: WorkerConfig) -> io::Result<Arc<WorkerShared>> {
    let zygote = ZygoteProgram::this_executable();
    std::fs::metadata(&zygote.program)?;
    Ok(WorkerShared::new(config, zygote))
}

/// A worker that waits for clients.
pub struct Listening {
    listener: TcpListener,
    worker: Arc<WorkerShared>,
    signals: Signals,
}

impl Listening {
    /// Listens at an address; port 0 picks a free one. Signals that end a process end it in order
    /// from now on.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn at(address: SocketAddr, worker: Arc<WorkerShared>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, worker, signals: Signals::listen()? })
    }

    /// Where.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves every client until SIGINT or SIGTERM; then ends all sessions. `tell` gets what an
    /// operator should know.
    pub async fn serve(mut self, mut tell: impl FnMut(String)) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = self.signals.next() => break,
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, peer)) => {
                            // Answers are small and awaited: they must not wait for company.
                            let _ = stream.set_nodelay(true);
                            let worker = Arc::clone(&self.worker);
                            connections.spawn(async move {
                                (peer, serve_connection(stream, worker).await)
                            });
                        }
                        Err(error) => {
                            tell(format!("could not accept a connection: {error}"));
                            // Out of descriptors: one must come free first.
                            if connections.join_next().await.is_none() {
                                tokio::task::yield_now().await;
                            }
                        }
                    }
                }
                Some(ended) = connections.join_next() => if let Ok((peer, end)) = ended {
                    told(&mut tell, peer, &end);
                },
            }
        }
        drop(self.listener);
        self.worker.shut_down();
        let ended = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUT_DOWN_TIME, ended).await;
        // Dropping a connection kills what it runs.
        connections.shutdown().await;
    }
}

fn told(tell: &mut impl FnMut(String), peer: SocketAddr, end: &ConnectionEnd) {
    match end {
        ConnectionEnd::NoHello(error) => tell(format!("{peer}: refused: {error}")),
        ConnectionEnd::Link(end) => tell(format!("{peer}: {end}")),
    }
}

/// SIGINT and SIGTERM.
struct Signals([Signal; 2]);

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
