//! Getting to one worker by its name, whatever kind of address leads to it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use distest_worker::accept::accept_again;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};

use super::keys::{Keys, Place};
use super::ssh::{self, Target};
use super::visit::{Talk, Trouble, Visited, nothing, visit};
use super::{Unusable, connection};
use crate::settings::{FleetSettings, WorkerAddress};

/// The worker that is called so. One behind ssh is also called as its host is, and one that dials
/// this machine is waited for.
///
/// # Errors
/// Nobody is, several are, or it doesn't answer.
pub(super) async fn to(settings: &FleetSettings, name: &str) -> Result<Talk, Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let behind = settings
        .workers
        .iter()
        .find(|address| matches!(address, WorkerAddress::Ssh { host, .. } if host == name));
    if let Some(address) = behind {
        return at(settings, &keys, address).await;
    }
    let visited = visit(settings).await?;
    let meant = |it: &&Visited| it.is_called(name);
    let addresses: BTreeSet<_> = visited.iter().filter(meant).map(|it| &it.address).collect();
    let mut addresses = addresses.into_iter().filter_map(|it| it.parse().ok());
    match (addresses.next(), addresses.next()) {
        (Some(address), None) => return at(settings, &keys, &address).await,
        (Some(_), Some(_)) => {
            return Err(Unusable::new(format!("several workers are called {name}"))
                .hint("name it by its address: `cargo distest workers` shows it")
                .into());
        }
        (None, _) => {}
    }
    for address in &settings.workers {
        match address {
            // What it calls itself shows when it has been started.
            WorkerAddress::Ssh { .. } => {
                if let Ok(talk) = at(settings, &keys, address).await
                    && talk.hello.name == name
                {
                    return Ok(talk);
                }
            }
            WorkerAddress::Listen(place) => {
                return joiner(settings, &keys, *place, name).await.map_err(Trouble::from);
            }
            _ => {}
        }
    }
    Err(Unusable::new(format!("no worker is called {name}"))
        .hint("`cargo distest workers` shows which there are")
        .into())
}

/// Greets a worker that must know what the first version didn't.
pub(super) async fn at(
    settings: &FleetSettings,
    keys: &Keys,
    address: &WorkerAddress,
) -> Result<Talk, Trouble> {
    match address {
        WorkerAddress::Tcp { host, port, key } => {
            Ok(Talk::begin(keys, host, *port, *key).await?.recent()?)
        }
        WorkerAddress::Ssh { user, host, port } => {
            let target = Target { user: user.as_deref(), host, port: *port };
            let (stream, stderr) = ssh::start(&settings.ssh_program, &target).await?;
            let talk = Talk::over(keys, stream, nothing).await;
            Ok(talk.map_err(|unusable| stderr.explain(unusable))?.recent()?)
        }
        _ => Err(Unusable::new(format!("{address} can't be dialled")).into()),
    }
}

/// Waits for a worker of this name to dial; others are sent away, and dial again later.
async fn joiner(
    settings: &FleetSettings,
    keys: &Keys,
    place: SocketAddr,
    name: &str,
) -> Result<Talk, Unusable> {
    let listener = TcpListener::bind(place)
        .await
        .map_err(|error| Unusable::new(format!("could not listen at {place}: {error}")))?;
    let end = Instant::now() + settings.wait_for;
    let nobody = || {
        let seconds = settings.wait_for.as_secs_f64();
        Unusable::new(format!("no worker that is called {name} has joined within {seconds} s"))
            .hint("start it with: distest-worker join HOST:PORT, with this machine's address")
    };
    loop {
        let accepted = timeout_at(end, listener.accept()).await.map_err(|_| nobody())?;
        let Ok((stream, peer)) = accepted else {
            accept_again().await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let loopback = peer.ip().to_canonical().is_loopback();
        let place = Place { address: "-", pinned: None, loopback };
        let greeted = async {
            let stream = keys.accept_joiner(stream, place).await?;
            Talk::over(keys, stream, nothing).await?.recent()
        };
        // One that says nothing must not keep the others out for long.
        let within = end.min(Instant::now() + connection::GREETING_TIME);
        if let Ok(Ok(talk)) = timeout_at(within, greeted).await
            && talk.hello.name == name
        {
            return Ok(talk);
        }
    }
}
