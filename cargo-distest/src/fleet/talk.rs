//! Talking to workers without running tests there.

use std::sync::{Arc, OnceLock};

use distest_worker::hello::Hello;
use distest_worker::link::{self, Link};
use distest_worker::protocol::{ClientRequest, ClientResponse, Refusal, WorkerClient};
use tarpc::ServerError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection;
use super::greeting::{Greeted, Names};
use super::keys::Keys;
use super::ssh::{self, Target};
use super::stopwatch::Stopwatch;
use super::{HEARTBEAT, LOST_AFTER, Trouble, Unusable};
use crate::settings::{FleetSettings, WorkerAddress};
use crate::wary;

/// What a worker calls while somebody talks to it.
pub(super) type Asked = (ClientRequest, Answer);
/// Takes the answer to that.
pub(super) type Answer = tokio::sync::oneshot::Sender<Result<ClientResponse, ServerError>>;

/// A worker that has greeted us.
pub(super) struct Talk {
    pub(super) hello: Hello,
    pub(super) names: Names,
    pub(super) worker: WorkerClient,
    /// It ends with this.
    pub(super) link: Link,
    listens: Arc<OnceLock<mpsc::Sender<Asked>>>,
}

impl Talk {
    /// With one that has greeted us.
    pub(super) fn with(greeted: Greeted) -> Self {
        let Greeted { hello, names, stream, comeback: _ } = greeted;
        let listens: Arc<OnceLock<mpsc::Sender<Asked>>> = Arc::default();
        let listening = Arc::clone(&listens);
        let (worker, link) =
            link::client_end(stream, move |_, request| called(listening.get().cloned(), request));
        Self { hello, names, worker, link, listens }
    }

    /// The same, if it knows what the first version didn't: asked for that, it would end the
    /// connection, or take it for something else.
    pub(super) fn recent(self) -> Result<Self, Unusable> {
        match self.hello.protocol.minor {
            0 => Err(Unusable::new("it is too old for that").hint("upgrade it")),
            _ => Ok(self),
        }
    }

    /// Has what the worker calls from now on.
    pub(super) fn listen(&self, at: mpsc::Sender<Asked>) {
        // Once.
        let _ = self.listens.set(at);
    }

    /// Does something that takes a while, and keeps the worker from taking us for gone meanwhile.
    pub(super) async fn awake_during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = timeout(HEARTBEAT, &mut work).await {
                return done;
            }
            // Whether it is still there shows when it is asked for something.
            self.is_awake().await;
        }
    }

    /// Keeps it from taking us for gone.
    pub(super) async fn is_awake(&self) -> bool {
        self.worker.ping(link::context(LOST_AFTER)).await.is_ok()
    }
}

/// Hands on what a worker calls. Without a session it has nothing to ask us.
async fn called(
    listens: Option<mpsc::Sender<Asked>>,
    request: ClientRequest,
) -> Result<ClientResponse, ServerError> {
    let nobody = || ServerError::new(std::io::ErrorKind::Unsupported, "there is no session".into());
    let (answer, answered) = tokio::sync::oneshot::channel();
    let heard = listens.ok_or_else(nobody)?.send((request, answer)).await;
    heard.map_err(|_| nobody())?;
    answered.await.unwrap_or_else(|_| Err(nobody()))
}

pub(super) fn answered<T>(
    answer: Result<Result<T, Refusal>, tarpc::client::RpcError>,
) -> Result<T, Trouble> {
    match answer {
        Ok(Ok(it)) => Ok(it),
        Ok(Err(refusal)) => {
            let Refusal { message, hint, .. } = wary::refusal(refusal);
            Err(Trouble { reason: message, hint })
        }
        Err(error) => {
            let why = wary::sentence(&link::why(&error));
            Err(Unusable::new(format!("it did not answer: {why}")).into())
        }
    }
}

/// Greets a worker that must know what the first version didn't.
pub(super) async fn at(
    settings: &FleetSettings,
    keys: &Keys,
    address: &WorkerAddress,
) -> Result<Talk, Trouble> {
    match address {
        WorkerAddress::Tcp { host, port, key } => {
            let secured = connection::reach(keys, host, *port, *key).await?;
            Ok(Talk::with(Greeted::proved(keys, secured).await?).recent()?)
        }
        WorkerAddress::Ssh { user, host, port } => {
            let target = Target { user: user.as_deref(), host, port: *port };
            let program = &settings.ssh_program;
            let (stream, stderr) = ssh::start(program, &target, &mut Stopwatch::start()).await?;
            let greeted = Greeted::behind(host, stream).await;
            Ok(Talk::with(greeted.map_err(|unusable| stderr.explain(unusable))?).recent()?)
        }
        _ => Err(Unusable::new(format!("{address} can't be dialled")).into()),
    }
}
