//! Looking at workers, and telling them something, without running anything there.

use std::collections::BTreeSet;
use std::time::Duration;

use distest_worker::hello::{self, Hello, HelloError};
use distest_worker::identity::PublicKey;
use distest_worker::link::{self, Link};
use distest_worker::protocol::{
    ClientRequest, ClientResponse, Refusal, WorkerClient, WorkerStatus,
};
use distest_worker::registry::{Asker, RegistryPlace};
use distest_worker::tls;
use tarpc::ServerError;
use tarpc::context::Context;

use super::connection::{self, format_place, ours};
use super::discover::{self, Found};
use super::keys::Keys;
use super::{CONNECT_TIMEOUT, Unusable};
use crate::settings::{FleetSettings, WorkerAddress};

/// How long to look around in the local network.
#[cfg(feature = "mdns")]
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// An answer to a question.
const ANSWER: Duration = Duration::from_secs(5);
/// Workers that are visited at a time.
const VISITED_MAX: usize = 256;

/// A worker, as far as it can be seen from here.
#[derive(Clone, Debug)]
pub struct Visited {
    /// What it calls itself, or what we know it as.
    pub name: String,
    /// Where it is, as `--worker` takes it.
    pub address: String,
    /// Who named it.
    pub source: Source,
    /// What it says.
    pub said: Result<Said, Trouble>,
}

/// What a worker says.
#[derive(Clone, Debug)]
pub struct Said {
    /// What it is.
    pub hello: Hello,
    /// What goes on there, or why it doesn't tell.
    pub status: Result<WorkerStatus, Trouble>,
}

/// Why something could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In words.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Who named a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// Its address, on the command line, in the environment or in a configuration.
    Address,
    /// A registry.
    Registry,
    /// It says itself that it is there, in the local network.
    Mdns,
    /// This user's known workers.
    Known,
}

impl Source {
    /// As shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Registry => "registry",
            Self::Mdns => "mdns",
            Self::Known => "known",
        }
    }
}

/// Looks at every worker that the settings name or this user knows.
///
/// # Errors
/// There is no key to look with.
pub async fn visit(settings: &FleetSettings) -> Result<Vec<Visited>, Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let named = settings.workers.iter().map(|address| at_address(&keys, address));
    let mut visited: Vec<Visited> =
        futures::future::join_all(named).await.into_iter().flatten().collect();
    let known = keys.known().iter().take(VISITED_MAX).map(|(key, known)| {
        let (keys, name) = (&keys, known.name.clone());
        let address = known.address.clone();
        async move {
            let source = Source::Known;
            match address.parse::<RegistryPlace>().ok().and_then(|at| split(&at.place)) {
                Some((host, port)) => {
                    let said = ask(keys, &host, port, Some(*key)).await;
                    let address = format!("tcp://{address}#{key}");
                    Visited { name, address, source, said }.named()
                }
                None => {
                    let trouble = Trouble {
                        reason: "it dials this machine".to_owned(),
                        hint: Some("give runs --worker listen://IP:PORT".to_owned()),
                    };
                    Visited { name, address: "-".to_owned(), source, said: Err(trouble) }
                }
            }
        }
    });
    visited.extend(futures::future::join_all(known).await);
    // Once each, as what it was first: named, if it was.
    let mut told = BTreeSet::new();
    visited.retain(|it| it.instance().is_none_or(|instance| told.insert(instance)));
    Ok(visited)
}

/// Tells a worker to finish what runs and to take nothing more. It is named by its address, or by
/// the name or key by which it is known or calls itself.
///
/// # Errors
/// It can't be found, or doesn't do it.
pub async fn drain(settings: &FleetSettings, name: &str) -> Result<String, Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let address = match name.parse::<WorkerAddress>() {
        Ok(address @ WorkerAddress::Tcp { .. }) => address,
        _ => find(settings, name).await?,
    };
    let talk = reach(&keys, &address).await?;
    answered(talk.worker.drain(link::context(ANSWER)).await)?;
    Ok(talk.hello.name.clone())
}

/// Greets a worker that must know what the first version didn't.
pub(super) async fn reach(keys: &Keys, address: &WorkerAddress) -> Result<Talk, Trouble> {
    let WorkerAddress::Tcp { host, port, key } = address else {
        return Err(Unusable::new(format!("{address} can't be dialled")).into());
    };
    Ok(Talk::begin(keys, host, *port, *key).await?.recent()?)
}

pub(super) fn answered<T>(
    answer: Result<Result<T, Refusal>, tarpc::client::RpcError>,
) -> Result<T, Trouble> {
    match answer {
        Ok(Ok(it)) => Ok(it),
        Ok(Err(Refusal { message, hint, .. })) => Err(Trouble { reason: message, hint }),
        Err(error) => Err(Unusable::new(format!("it did not answer: {error}")).into()),
    }
}

pub(super) async fn find(settings: &FleetSettings, name: &str) -> Result<WorkerAddress, Trouble> {
    let visited = visit(settings).await?;
    let meant = |it: &&Visited| it.name == name || it.address.ends_with(&format!("#{name}"));
    let addresses: BTreeSet<_> = visited.iter().filter(meant).map(|it| &it.address).collect();
    let mut addresses = addresses.into_iter().filter_map(|it| it.parse().ok());
    match (addresses.next(), addresses.next()) {
        (Some(address), None) => Ok(address),
        (Some(_), Some(_)) => Err(Unusable::new(format!("several workers are called {name}"))
            .hint("name it by its address: `cargo distest workers` shows it")
            .into()),
        (None, _) => Err(Unusable::new(format!("no worker is called {name}"))
            .hint("`cargo distest workers` shows which there are")
            .into()),
    }
}

async fn at_address(keys: &Keys, address: &WorkerAddress) -> Vec<Visited> {
    let here = |said| {
        let (name, source) = (String::new(), Source::Address);
        vec![Visited { name, address: address.to_string(), source, said }.named()]
    };
    let only = |text: &str| here(Err(Unusable::new(text).into()));
    match address {
        WorkerAddress::Tcp { host, port, key } => here(ask(keys, host, *port, *key).await),
        WorkerAddress::Ssh { .. } => only("not asked: it is started for each run"),
        WorkerAddress::Listen(_) => only("workers dial this address while a run lasts"),
        WorkerAddress::Registry { host, port, key } => {
            let at = RegistryPlace { place: format_place(host, *port), key: *key };
            let listed = async { Asker::dial(&at, keys.ours()).await?.list().await };
            match listed.await {
                Ok(entries) => all(keys, discover::of_entries(entries), Source::Registry).await,
                Err(error) => here(Err(discover::explain(&error).into())),
            }
        }
        #[cfg(feature = "mdns")]
        WorkerAddress::Mdns => match distest_worker::mdns::Browser::new() {
            Ok(mut browser) => {
                let end = tokio::time::Instant::now() + LOOK_AROUND;
                let mut found = Vec::new();
                while tokio::time::Instant::now() < end {
                    let left = end.saturating_duration_since(tokio::time::Instant::now());
                    found = browser.look(left).await;
                }
                all(keys, discover::of_mdns(found), Source::Mdns).await
            }
            Err(why) => only(&why),
        },
        #[cfg(not(feature = "mdns"))]
        WorkerAddress::Mdns => only("this program was built without mDNS"),
    }
}

async fn all(keys: &Keys, found: BTreeSet<Found>, source: Source) -> Vec<Visited> {
    let visits = found.into_iter().take(VISITED_MAX).map(|found| async move {
        let Found { key, name, addresses } = &found;
        let mut visited = Visited {
            name: name.clone(),
            address: "-".to_owned(),
            source,
            said: Err(Unusable::new("its key is not known here")
                .hint(format!(
                    "{key}: run `distest-worker invite` there and `cargo distest workers add \
                     INVITATION` here"
                ))
                .into()),
        };
        for (host, port) in addresses {
            visited.address = format!("tcp://{}#{key}", format_place(host, *port));
            if keys.may_be(&found) {
                visited.said = ask(keys, host, *port, Some(*key)).await;
            }
            if visited.said.is_ok() {
                break;
            }
        }
        visited.named()
    });
    futures::future::join_all(visits).await
}

impl Visited {
    /// Under the name that it gives itself, if it says it.
    fn named(mut self) -> Self {
        if let Ok(said) = &self.said {
            self.name.clone_from(&said.hello.name);
        }
        self
    }

    fn instance(&self) -> Option<String> {
        let said = self.said.as_ref().ok()?;
        Some(said.hello.instance.clone()).filter(|instance| !instance.is_empty())
    }
}

/// A worker that has greeted us.
pub(super) struct Talk {
    pub(super) hello: Hello,
    pub(super) worker: WorkerClient,
    /// It ends with this.
    pub(super) link: Link,
}

impl Talk {
    pub(super) async fn begin(
        keys: &Keys,
        host: &str,
        port: u16,
        key: Option<PublicKey>,
    ) -> Result<Self, Unusable> {
        // It has nothing to ask us: there is no session.
        let nothing = |_, _| async {
            let (kind, why) = (std::io::ErrorKind::Unsupported, "there is no session");
            Err(ServerError::new(kind, why.to_owned()))
        };
        Self::serving(keys, host, port, key, nothing).await
    }

    /// The same with somebody who answers what the worker asks, as in [`link::client_end`].
    pub(super) async fn serving<H, F>(
        keys: &Keys,
        host: &str,
        port: u16,
        key: Option<PublicKey>,
        callbacks: H,
    ) -> Result<Self, Unusable>
    where
        H: Fn(Context, ClientRequest) -> F + Clone + Send + 'static,
        F: Future<Output = Result<ClientResponse, ServerError>> + Send + 'static,
    {
        let mut stream = connection::reach(keys, host, port, key).await?;
        let hello = match hello::exchange(&mut stream, &ours(), CONNECT_TIMEOUT).await {
            Err(HelloError::Io(error)) if tls::refusal(&error) => return Err(keys.refused()),
            answer => answer.map_err(connection::not_greeted)?,
        };
        let (worker, link) = link::client_end(stream, callbacks);
        Ok(Self { hello, worker, link })
    }

    /// The same, if it knows what the first version didn't: asked for that, it would end the
    /// connection, or take it for something else.
    pub(super) fn recent(self) -> Result<Self, Unusable> {
        match self.hello.protocol.minor {
            0 => Err(Unusable::new("it is too old for that").hint("upgrade it")),
            _ => Ok(self),
        }
    }
}

async fn ask(keys: &Keys, host: &str, port: u16, key: Option<PublicKey>) -> Result<Said, Trouble> {
    let talk = Talk::begin(keys, host, port, key).await?;
    // What an older worker doesn't know would end the connection.
    let status = match talk.hello.protocol.minor {
        0 => Err(Unusable::new("it is too old to tell what goes on there").into()),
        _ => answered(talk.worker.status(link::context(ANSWER)).await),
    };
    Ok(Said { hello: talk.hello.clone(), status })
}

fn split(place: &str) -> Option<(String, u16)> {
    let (host, port) = place.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), port.parse().ok()?))
}

impl From<Unusable> for Trouble {
    fn from(unusable: Unusable) -> Self {
        Self { reason: unusable.reason, hint: unusable.hint }
    }
}
