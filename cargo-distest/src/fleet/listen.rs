//! Workers that dial us: `--worker listen://IP:PORT`, `distest-worker join`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distest_worker::accept::{accept_again, listen_hint};
use distest_worker::repeats::{Again, Repeats};
use distest_worker::serve::HalfOpen;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection;
use super::greeting::Greeted;
use super::joiners::START_JOINER;
use super::keys::Place;
use super::stopwatch::Stopwatch;
use super::{Fleet, FleetMessage, Unusable};
use crate::model::Step;

/// Between looks at who was turned away again.
const SUM_UP: Duration = Duration::from_secs(1);

/// Listens, and goes on when the first worker has joined or too much time has passed; workers may
/// join as long as the run lasts.
pub(super) async fn listen(fleet: &Fleet, address: SocketAddr) -> Result<(), Unusable> {
    fleet.keys().await?;
    let listener =
        TcpListener::bind(address).await.map_err(|error| could_not_listen(address, &error))?;
    let first = Arc::new(Notify::new());
    // Goes on as long as the run.
    tokio::spawn(accept(fleet.clone(), listener, Arc::clone(&first)));
    let wait = fleet.shared.settings.wait_for;
    timeout(wait, first.notified()).await.map_err(|_| {
        Unusable::new(format!("no worker has joined within {} s", wait.as_secs_f64()))
            .hint(START_JOINER)
    })
}

pub(super) fn could_not_listen(place: SocketAddr, error: &io::Error) -> Unusable {
    let hint = listen_hint(error).map(str::to_owned);
    Unusable { hint, ..Unusable::new(format!("could not listen at {place}: {error}")) }
}

async fn accept(fleet: Fleet, listener: TcpListener, first: Arc<Notify>) {
    let half_open = HalfOpen::new();
    let mut connections = JoinSet::new();
    // Whoever isn't let in dials again and again.
    let mut refused = Repeats::default();
    let mut look = tokio::time::interval(SUM_UP);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let (fleet, first) = (fleet.clone(), Arc::clone(&first));
                    half_open.spawn(&mut connections, peer.ip(), move |place| async move {
                        let joined = join(&fleet, stream, peer).await;
                        drop(place);
                        match joined {
                            Ok(connection) => {
                                fleet.joined(connection).await;
                                first.notify_one();
                                None
                            }
                            Err(unusable) => Some((peer.ip(), unusable)),
                        }
                    });
                }
                Err(_) => accept_again().await,
            },
            Some(ended) = connections.join_next() => if let Ok(Some((from, unusable))) = ended {
                let Unusable { reason, hint, .. } = unusable;
                let kind = (from, reason.clone());
                if refused.happens(Instant::now(), kind) {
                    say_refused(&fleet, Some(from), reason, hint).await;
                }
            },
            _ = look.tick() => for again in refused.due(Instant::now()) {
                let (from, reason) = match again {
                    Again::Of((from, why), more) => {
                        (Some(from), format!("{why}; {more} more in the last minute"))
                    }
                    Again::OfOthers(more) => {
                        (None, format!("{more} more were turned away in the last minute"))
                    }
                };
                say_refused(&fleet, from, reason, None).await;
            },
        }
    }
}

async fn say_refused(fleet: &Fleet, from: Option<IpAddr>, reason: String, hint: Option<String>) {
    let from = from.map_or("elsewhere".to_owned(), |ip| ip.to_string());
    fleet.say(FleetMessage::Unusable { address: format!("from {from}"), reason, hint }).await;
}

async fn join(
    fleet: &Fleet,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<connection::Connection, Unusable> {
    let keys = fleet.keys().await?;
    let mut watch = Stopwatch::start();
    let _ = stream.set_nodelay(true);
    let address = peer.to_string();
    let loopback = peer.ip().to_canonical().is_loopback();
    // A worker that dials has no address that it would be known by.
    let place = Place { address: "-", pinned: None, loopback };
    let secured = keys.accept_joiner(stream, place).await?;
    watch.done(Step::Connect);
    let greeted = Greeted::proved(keys, secured).await?;
    watch.done(Step::Hello);
    connection::over(fleet, greeted, address, watch).await
}
