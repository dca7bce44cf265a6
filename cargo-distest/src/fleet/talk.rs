//! Talking to workers without running tests there, whatever kind of address leads to them.
//!
//! A name means every worker that [may be called so](Names). A worker that listens is known by what
//! [`visit`] sees; one behind ssh by its host, or by its name once it is started; one that dials this
//! machine when it does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use distest_worker::accept::accept_again;
use distest_worker::hello::Hello;
use distest_worker::link::{self, Link};
use distest_worker::protocol::{ClientRequest, ClientResponse, Refusal, WorkerClient};
use distest_worker::serve::HalfOpen;
use tarpc::ServerError;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{self, GREETING_TIME};
use super::greeting::{Greeted, Names};
use super::keys::{Keys, Place};
use super::listen::could_not_listen;
use super::ssh::{self, Target};
use super::stopwatch::Stopwatch;
use super::visit::{Trouble, Visited, visit};
use super::{HEARTBEAT, LOST_AFTER, Unusable};
use crate::settings::{FleetSettings, WorkerAddress};

/// How long workers that dial are waited for where all are meant: each that is there dials at least
/// every 8 s.
const JOINERS_WITHIN: Duration = Duration::from_secs(9);
/// Joiners that have greeted us and wait to be taken.
const JOINERS_MAX: usize = 64;

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

/// A worker that is meant.
pub struct Meant {
    /// What to call it.
    pub name: String,
    way: Way,
}

/// How to get to it.
enum Way {
    At(WorkerAddress),
    /// It dialled us.
    Here(Box<Talk>),
    Nowhere(Trouble),
}

impl Talk {
    /// With one that has greeted us.
    pub(super) fn with(greeted: Greeted) -> Self {
        let Greeted { hello, names, stream } = greeted;
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
    async fn is_awake(&self) -> bool {
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
        Ok(Err(Refusal { message, hint, .. })) => Err(Trouble { reason: message, hint }),
        Err(error) => {
            Err(Unusable::new(format!("it did not answer: {}", link::why(&error))).into())
        }
    }
}

impl Meant {
    /// Greets it; it must know what the first version didn't.
    pub(super) async fn reach(self, settings: &FleetSettings) -> Result<Talk, Trouble> {
        let keys = Keys::load(&settings.identity)?;
        match self.way {
            Way::At(address) => at(settings, &keys, &address).await,
            Way::Here(talk) => Ok(*talk),
            Way::Nowhere(trouble) => Err(trouble),
        }
    }

    /// The one at this address.
    pub(super) fn at(address: WorkerAddress) -> Self {
        Self { name: address.to_string(), way: Way::At(address) }
    }

    /// Whether it waits for clients by itself.
    pub fn listens(&self) -> bool {
        matches!(self.way, Way::At(WorkerAddress::Tcp { .. }) | Way::Nowhere(_))
    }

    /// Where it is, if it can be dialled.
    pub(super) fn address(&self) -> Option<&WorkerAddress> {
        match &self.way {
            Way::At(address) => Some(address),
            Way::Here(_) | Way::Nowhere(_) => None,
        }
    }
}

/// All workers that are there: those that listen, those behind ssh, and those that dial soon. And
/// those that are given or known and can't be reached, with the reason.
///
/// # Errors
/// None is there.
pub async fn all(
    settings: &FleetSettings,
) -> Result<(Vec<Meant>, Vec<(String, Trouble)>), Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let (visited, joined) =
        tokio::join!(visit(settings), joiners(settings, &keys, JOINERS_WITHIN, |_| Take::Another));
    let (listening, others): (Vec<_>, Vec<_>) =
        visited?.into_iter().partition(|it| it.said.is_ok());
    let mut there: Vec<_> = listening.into_iter().map(Meant::from).collect();
    there.extend(behind_ssh(settings, None));
    there.extend(joined?.into_iter().map(Meant::from));
    // Whoever could not be asked is started, or dials, or nobody whom we know.
    let left_out = others.into_iter().filter(|it| it.asked).filter_map(|it| {
        let name = Some(it.names.shown()).filter(|name| !name.is_empty());
        Some((name.unwrap_or(&it.address).to_owned(), it.said.err()?))
    });
    let left_out: Vec<_> = left_out.collect();
    if there.is_empty() {
        return Err(Unusable::new("no worker is there")
            .hint("`cargo distest workers` shows which there are, and why one can't be used")
            .into());
    }
    Ok((there, left_out))
}

/// The workers that these names or addresses mean.
///
/// # Errors
/// One of them is nobody's.
pub async fn named(settings: &FleetSettings, names: &[String]) -> Result<Vec<Meant>, Trouble> {
    let mut meant = Vec::new();
    let mut unknown = Vec::new();
    let mut visited = None;
    let let_dial = settings.workers.iter().any(|it| matches!(it, WorkerAddress::Listen(_)));
    for name in names {
        if let Ok(address @ (WorkerAddress::Tcp { .. } | WorkerAddress::Ssh { .. })) = name.parse()
        {
            meant.push(Meant::at(address));
            continue;
        }
        let before = meant.len();
        meant.extend(behind_ssh(settings, Some(name)));
        if meant.len() > before {
            continue;
        }
        if visited.is_none() {
            visited = Some(visit(settings).await?);
        }
        let listening = visited.iter().flatten().filter(|it| it.names.include(name));
        // One that dials is waited for where it can.
        let listening = listening.filter(|it| !(let_dial && it.dials()));
        let mut told = BTreeSet::new();
        let once = listening.filter(|it| told.insert(&it.address)).cloned();
        meant.extend(once.map(Meant::from));
        if meant.len() == before {
            unknown.push(name.clone());
        }
    }
    if !unknown.is_empty() {
        meant.extend(unseen(settings, &unknown).await?);
    }
    Ok(meant)
}

/// The only worker that is called so.
///
/// # Errors
/// Nobody is, or several are.
pub async fn only(settings: &FleetSettings, name: &str) -> Result<Meant, Trouble> {
    let mut meant = named(settings, &[name.to_owned()]).await?;
    match (meant.pop(), meant.pop()) {
        (Some(it), None) => Ok(it),
        (Some(_), Some(_)) => Err(Unusable::new(format!("several workers are called {name}"))
            .hint("name it by its address: `cargo distest workers` shows it")
            .into()),
        (None, _) => Err(nobody(name, &[])),
    }
}

/// Workers that show who they are only when they are started, or when they dial.
async fn unseen(settings: &FleetSettings, names: &[String]) -> Result<Vec<Meant>, Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let started = async {
        let addresses = behind_ssh(settings, None).into_iter();
        let talks = addresses.map(|it| async move { (it.name.clone(), it.reach(settings).await) });
        futures::future::join_all(talks).await
    };
    let (started, joined) = tokio::join!(started, async {
        let mut wanted: BTreeSet<&String> = names.iter().collect();
        joiners(settings, &keys, settings.wait_for, move |it| {
            let is_new = names.iter().any(|name| it.include(name) && wanted.remove(&name));
            match (is_new, wanted.is_empty()) {
                (false, _) => Take::Nobody,
                (true, false) => Take::Another,
                (true, true) => Take::Last,
            }
        })
        .await
    });
    let (mut there, mut failed) = (joined?, Vec::new());
    for (host, talk) in started {
        match talk {
            Ok(talk) if names.iter().any(|name| talk.names.include(name)) => there.push(talk),
            Ok(_) => {}
            Err(trouble) => failed.push(format!("{host}: {}", trouble.reason)),
        }
    }
    if let Some(name) = names.iter().find(|it| !there.iter().any(|talk| talk.names.include(it))) {
        return Err(nobody(name, &failed));
    }
    Ok(there.into_iter().map(Meant::from).collect())
}

fn nobody(name: &str, failed: &[String]) -> Trouble {
    let hint = "`cargo distest workers` shows which there are".to_owned();
    let hint = match failed {
        [] => hint,
        failed => format!("{hint}; it may be behind ssh, where {}", failed.join(", ")),
    };
    Unusable::new(format!("no worker is called {name}")).hint(hint).into()
}

/// The workers behind ssh, or the one at this host.
fn behind_ssh(settings: &FleetSettings, named: Option<&str>) -> Vec<Meant> {
    let meant = settings.workers.iter().filter_map(|address| match address {
        WorkerAddress::Ssh { host, .. } if named.is_none_or(|name| name == host) => {
            Some(Meant { name: host.clone(), way: Way::At(address.clone()) })
        }
        _ => None,
    });
    meant.collect()
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

/// What to do about a worker that has dialled.
enum Take {
    /// It dials again later.
    Nobody,
    /// It is meant, and there may be more.
    Another,
    /// It is meant, and nobody else.
    Last,
}

/// Lets workers dial this machine, wherever the settings say so; ends after some time, or with the
/// last one that is meant. Each once.
async fn joiners(
    settings: &FleetSettings,
    keys: &Keys,
    within: Duration,
    mut take: impl FnMut(&Names) -> Take,
) -> Result<Vec<Talk>, Unusable> {
    let places = settings.workers.iter().filter_map(|address| match address {
        WorkerAddress::Listen(place) => Some(*place),
        _ => None,
    });
    let (greeted, mut greetings) = mpsc::channel(JOINERS_MAX);
    let mut listening = JoinSet::new();
    for place in places {
        let listener =
            TcpListener::bind(place).await.map_err(|error| could_not_listen(place, &error))?;
        listening.spawn(greet_all(listener, keys.clone(), greeted.clone()));
    }
    drop(greeted);
    let end = Instant::now() + within;
    let mut awake = tokio::time::interval(HEARTBEAT);
    let mut taken: Vec<Talk> = Vec::new();
    loop {
        tokio::select! {
            next = greetings.recv() => {
                // Nobody listens anywhere.
                let Some(talk) = next else { return Ok(taken) };
                let again = |it: &Talk| {
                    it.hello.instance == talk.hello.instance && !it.hello.instance.is_empty()
                };
                if taken.len() == JOINERS_MAX || taken.iter().any(again) {
                    continue;
                }
                match take(&talk.names) {
                    Take::Nobody => {}
                    Take::Another => taken.push(talk),
                    Take::Last => {
                        taken.push(talk);
                        return Ok(taken);
                    }
                }
            }
            _ = awake.tick() => {
                let awake = futures::future::join_all(taken.iter().map(Talk::is_awake)).await;
                let mut awake = awake.into_iter();
                taken.retain(|_| awake.next().unwrap_or_default());
            }
            () = sleep_until(end) => return Ok(taken),
        }
    }
}

/// Greets whoever dials and is known, several at once, for as long as somebody takes them.
async fn greet_all(listener: TcpListener, keys: Keys, greeted: mpsc::Sender<Talk>) {
    let (half_open, keys) = (HalfOpen::new(), Arc::new(keys));
    let mut greeting = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else {
                    accept_again().await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (keys, greeted) = (Arc::clone(&keys), greeted.clone());
                half_open.spawn(&mut greeting, peer.ip(), move |place| async move {
                    // One that says nothing keeps nobody out.
                    let talk = timeout(GREETING_TIME, joiner(&keys, stream, peer)).await;
                    drop(place);
                    if let Ok(Ok(talk)) = talk {
                        let _ = greeted.send(talk).await;
                    }
                });
            }
            Some(_) = greeting.join_next() => {}
        }
    }
}

async fn joiner(
    keys: &Keys,
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
) -> Result<Talk, Unusable> {
    let loopback = peer.ip().to_canonical().is_loopback();
    let place = Place { address: "-", pinned: None, loopback };
    let secured = keys.accept_joiner(stream, place).await?;
    Talk::with(Greeted::proved(keys, secured).await?).recent()
}

impl From<Visited> for Meant {
    fn from(visited: Visited) -> Self {
        let name = visited.names.shown().to_owned();
        let way = match (&visited.said, visited.address.parse()) {
            (Err(trouble), _) => Way::Nowhere(trouble.clone()),
            (Ok(_), Ok(address)) => Way::At(address),
            (Ok(_), Err(_)) => Way::Nowhere(Unusable::new("it can't be dialled").into()),
        };
        Self { name, way }
    }
}

impl From<Talk> for Meant {
    fn from(talk: Talk) -> Self {
        Self { name: talk.names.shown().to_owned(), way: Way::Here(Box::new(talk)) }
    }
}
