//! A link within one process: messages are handed over as they are, neither encoded nor copied.
//!
//! Callers may rely on the same as with a stream, but for what keeps a peer from hurting: the other
//! end is this process.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::half::{AskingHalf, ServingHalf, Way};
use super::pump::Shared;
use super::{Backlog, ClientSide, Link, LinkEnd, WorkerSide};

/// Both sides of a link within this process.
///
/// Must be called within a tokio runtime.
pub fn near() -> (ClientSide, WorkerSide) {
    let [client, worker] = [(); 2].map(|()| Shared::new(&Backlog::default(), false));
    let (asked, requests) = mpsc::unbounded_channel();
    let (answered, answers) = mpsc::unbounded_channel();
    let (called, calls) = mpsc::unbounded_channel();
    let (returned, returns) = mpsc::unbounded_channel();
    let client_side = ClientSide {
        link: beside(&client, &worker),
        asking: AskingHalf::new(Arc::clone(&client), Way::Near(asked), answers),
        serving: ServingHalf::new(Arc::clone(&client), calls, Way::Near(returned)),
    };
    let worker_side = WorkerSide {
        link: beside(&worker, &client),
        asking: AskingHalf::new(Arc::clone(&worker), Way::Near(called), returns),
        serving: ServingHalf::new(worker, requests, Way::Near(answered)),
    };
    (client_side, worker_side)
}

fn beside(own: &Arc<Shared>, other: &Arc<Shared>) -> Link {
    let mut tasks = JoinSet::new();
    tasks.spawn(part(Arc::clone(own), Parting(Arc::clone(other))));
    Link { shared: Arc::clone(own), tasks }
}

/// Ends the other end when this one is dropped, as the end of a stream would.
struct Parting(Arc<Shared>);

impl Drop for Parting {
    fn drop(&mut self) {
        self.0.finish(LinkEnd::PeerClosed);
    }
}

/// Tells the other end that this one ends, and why if that was said.
async fn part(own: Arc<Shared>, other: Parting) {
    tokio::select! {
        biased;
        why = own.goodbye() => {
            other.0.finish(LinkEnd::Goodbye(why));
            own.finish(LinkEnd::Closed);
        }
        _ = own.ended() => {}
    }
}
