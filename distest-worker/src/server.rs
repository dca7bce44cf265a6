//! The worker's side of a connection: a thin implementation of [`protocol::Worker`].
//!
//! Three parts, one way: [`handler`] takes the client's calls in the order in which they arrive and
//! hands them on; [`driver`] owns the session and performs its effects on slots; [`outbox`] brings
//! reports and output to the client. What only concerns files ([`files`]) never passes the driver.
//!
//! [`protocol::Worker`]: crate::protocol::Worker

mod driver;
mod environment;
mod files;
mod handler;
mod machine_slot;
mod outbox;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

use crate::hello::{self, HELLO_TIMEOUT, Hello, HelloError, Role};
use crate::link::{self, LinkEnd};
use crate::protocol::Labels;
use crate::store::Store;
use crate::zygote::ZygoteProgram;
use driver::Driver;
use files::Files;
use handler::Handler;

/// What a worker is.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// What people call it.
    pub name: String,
    /// Attempts that it runs at once, over all its sessions; at least 1.
    pub slots: u32,
    /// Where blobs are kept. None for an embedded worker: it uses the client's files where they
    /// lie, and so serves only the process that it is part of.
    pub store: Option<Store>,
    /// Where output goes that is too long for memory.
    pub scratch: PathBuf,
    /// What it says of itself.
    pub labels: Labels,
    /// What starts attempts.
    pub zygote: ZygoteProgram,
}

/// A worker, shared by its connections.
#[derive(Debug)]
pub struct WorkerShared {
    config: WorkerConfig,
    /// One for each attempt that may run: first come, first served.
    permits: Arc<Semaphore>,
}

/// How a connection ended.
#[derive(Debug)]
pub enum ConnectionEnd {
    /// The peer was no client that we understand.
    NoHello(HelloError),
    /// There was a session, or could have been one.
    Link(LinkEnd),
}

impl WorkerShared {
    /// A worker that has no connection yet.
    pub fn new(config: WorkerConfig) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(config.slots.max(1) as usize));
        Arc::new(Self { config, permits })
    }

    /// What it is.
    pub fn config(&self) -> &WorkerConfig {
        &self.config
    }

    fn hello(&self) -> Hello {
        Hello {
            slots: self.config.slots.max(1),
            labels: self.config.labels.clone(),
            ..Hello::new(Role::Worker, &*self.config.name)
        }
    }
}

/// Greets a client and serves it until the connection ends; then everything that it started has
/// ended, and its files are gone.
pub async fn serve_connection<S>(mut stream: S, worker: Arc<WorkerShared>) -> ConnectionEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let greeting = async {
        let theirs = hello::exchange(&mut stream, &worker.hello(), HELLO_TIMEOUT).await?;
        hello::accept(&mut stream).await?;
        Ok(theirs)
    };
    if let Err(error) = greeting.await {
        return ConnectionEnd::NoHello(error);
    }
    let (requests, requests_in) = mpsc::unbounded_channel();
    let files = Arc::new(Files::new(worker.config.store.clone()));
    let mut client = None;
    let link = link::worker_end(stream, |caller| {
        client = Some(caller);
        let handler = Handler::new(requests, Arc::clone(&files));
        move |context, request| handler.clone().answer(context, request)
    });
    let end = match client {
        Some(client) => {
            let (driver, incoming) = Driver::new(worker, Arc::clone(&files), client);
            driver.run(requests_in, incoming, &link).await
        }
        None => link.ended().await,
    };
    // Removing a sandbox takes time; handlers that still hold it end with the link.
    drop(link);
    let _ = tokio::task::spawn_blocking(move || drop(files)).await;
    ConnectionEnd::Link(end)
}
