//! Whom a name means, or all of them, whatever kind of address leads to them.
//!
//! A name means every worker that [may be called so](super::Names). A worker that listens is known
//! by what [`visit`] sees; one behind ssh by its host, or by its name once it is started; one that
//! dials this machine when it does.

use std::collections::BTreeSet;
use std::time::Duration;

use super::joiners::{JOINERS_WITHIN, START_JOINER, Take, joiners};
use super::keys::Keys;
use super::talk::{Talk, at};
use super::visit::{Source, Visited, Wanted, visit};
use super::{Trouble, Undone, Unusable};
use crate::settings::{FleetSettings, WorkerAddress};

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

impl Meant {
    /// Greets it; it must know what the first version didn't.
    ///
    /// # Errors
    /// [`Undone::NotThere`].
    pub(super) async fn reach(self, settings: &FleetSettings) -> Result<Talk, Undone> {
        let reached = async {
            let keys = Keys::load(&settings.identity)?;
            match self.way {
                Way::At(address) => at(settings, &keys, &address).await,
                Way::Here(talk) => Ok(*talk),
                Way::Nowhere(trouble) => Err(trouble),
            }
        };
        reached.await.map_err(Undone::NotThere)
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
    let (keys, quick) = (Keys::load(&settings.identity)?, Wanted::default());
    let places: Vec<_> = settings.dialled_at().collect();
    let (visited, joined) = tokio::join!(
        visit(settings, &quick),
        joiners(&places, &keys, JOINERS_WITHIN, |_| Take::Another)
    );
    let (listening, others): (Vec<_>, Vec<_>) =
        visited?.into_iter().partition(|it| it.said.is_ok());
    let mut there: Vec<_> = listening.into_iter().map(Meant::from).collect();
    there.extend(behind_ssh(settings, None));
    there.extend(joined?.came.into_iter().map(Meant::from));
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
    let (mut unknown, mut dial) = (Vec::new(), BTreeSet::new());
    let mut visited = None;
    let let_dial = settings.dialled_at().next().is_some();
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
            visited = Some(visit(settings, &Wanted::default()).await?);
        }
        let listening = visited.iter().flatten().filter(|it| it.names.include(name));
        // One that dials is waited for where it can.
        let listening = listening.filter(|it| !(let_dial && it.dials()));
        let mut told = BTreeSet::new();
        let once = listening.filter(|it| told.insert(&it.address)).cloned();
        meant.extend(once.map(Meant::from));
        if meant.len() == before {
            unknown.push(name.clone());
            let known = |it: &&Visited| it.source == Source::Known && it.names.include(name);
            dial.extend(visited.iter().flatten().find(known).map(|_| name.clone()));
        }
    }
    if !unknown.is_empty() {
        meant.extend(unseen(settings, &unknown, &dial).await?);
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

/// Workers that show who they are only when they are started, or when they dial; those that are known
/// to do so are in `dial`.
async fn unseen(
    settings: &FleetSettings,
    names: &[String],
    dial: &BTreeSet<String>,
) -> Result<Vec<Meant>, Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let started = async {
        let addresses = behind_ssh(settings, None).into_iter();
        let talks = addresses.map(|it| async move { (it.name.clone(), it.reach(settings).await) });
        futures::future::join_all(talks).await
    };
    let (started, joined) = tokio::join!(started, async {
        let mut wanted: BTreeSet<&String> = names.iter().collect();
        let places: Vec<_> = settings.dialled_at().collect();
        joiners(&places, &keys, settings.wait_for, move |it| {
            let is_new = names.iter().any(|name| it.include(name) && wanted.remove(&name));
            match (is_new, wanted.is_empty()) {
                (false, _) => Take::Nobody,
                (true, false) => Take::Another,
                (true, true) => Take::Last,
            }
        })
        .await
    });
    let (mut there, mut failed) = (joined?.came, Vec::new());
    for (host, talk) in started {
        match talk {
            Ok(talk) if names.iter().any(|name| talk.names.include(name)) => there.push(talk),
            Ok(_) => {}
            Err(undone) => failed.push(format!("{host}: {}", undone.trouble().reason)),
        }
    }
    if let Some(name) = names.iter().find(|it| !there.iter().any(|talk| talk.names.include(it))) {
        return Err(match dial.contains(name) {
            true => silent(name, settings.wait_for),
            false => nobody(name, &failed),
        });
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

/// A known worker that has not dialled. Whether it runs can't be known here.
fn silent(name: &str, waited: Duration) -> Trouble {
    let waited = waited.as_secs_f64();
    let why = format!("{name} is known here, and has not dialled this machine within {waited} s");
    Unusable::new(why)
        .hint(format!("one that was drained has ended, or ends soon; {START_JOINER}"))
        .into()
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
