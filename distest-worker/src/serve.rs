//! Listening for clients, until told to end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::server::{ConnectionEnd, WorkerShared, serve_connection};

/// Connections at once, greeted or not.
pub const CONNECTIONS_MAX: usize = 1024;

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
        // Dropping a connection kills what it runs; slots do so before their tasks are gone.
        connections.shutdown().await;
    }
}

/// Serves one client over a process's own streams.
pub async fn serve_stream<S>(stream: S, worker: Arc<WorkerShared>) -> ConnectionEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve_connection(stream, worker).await
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
