//! Workers that dial us: `--worker listen://IP:PORT`, `distest-worker join`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use distest_worker::accept::{accept_again, listen_hint};
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
                                fleet.say(FleetMessage::Joined(Box::new(connection))).await;
                                first.notify_one();
                            }
                            Err(unusable) => {
                                fleet.say(unusable.into_message(format!("from {peer}"))).await;
                            }
                        }
                    });
                }
                Err(_) => accept_again().await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
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
