//! How a worker that listens lets itself be found.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use tokio::task::JoinSet;

use crate::log::{Complaint, Log};
use crate::registry::{self, Announced, Registration, RegistryPlace};
use crate::serve::Reception;

fn no_mdns() -> Complaint {
    Complaint::from("this program was built without mDNS")
        .hint("use --register, or build it with the feature `mdns`")
}

/// How a worker lets itself be found.
#[derive(Clone, Debug, Args)]
pub struct FoundArgs {
    /// Advertise this worker in the local network, for `--worker mdns`
    #[arg(long)]
    pub mdns: bool,
    /// Register with a registry, for `--worker registry://HOST:PORT`; may be repeated
    #[arg(long, value_name = "HOST:PORT[#KEY]")]
    pub register: Vec<RegistryPlace>,
}

/// A worker that can be found until it drains, or this is dropped.
pub(super) struct Findable(JoinSet<()>);

impl FoundArgs {
    /// Whether this program can do that.
    pub(super) fn possible(&self) -> Result<(), Complaint> {
        match self.mdns && cfg!(not(feature = "mdns")) {
            true => Err(no_mdns()),
            false => Ok(()),
        }
    }

    /// Begins to let the worker be found that listens there.
    pub(super) fn begin(
        self,
        reception: &Arc<Reception>,
        listens: SocketAddr,
    ) -> Result<Findable, Complaint> {
        let Self { mdns, register } = self;
        let mut findable = JoinSet::new();
        for at in register {
            let (key, changes) = (reception.private_key().clone(), reception.gate().changes());
            let reception = Arc::clone(reception);
            let announced = Announced { at, key, listens, changes };
            findable.spawn(async move {
                let describe = |reached| describe(&reception, reached);
                let log = Log::stderr();
                let announcing = registry::announce(announced, describe, &log);
                tokio::select! {
                    () = announcing => {}
                    () = reception.worker().draining() => {}
                }
            });
        }
        if mdns {
            findable.spawn(advertise(reception, listens)?);
        }
        Ok(Findable(findable))
    }
}

impl Findable {
    /// Waits until nobody finds the worker any more, which drains.
    pub(super) async fn gone(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

#[cfg(feature = "mdns")]
fn advertise(
    reception: &Arc<Reception>,
    listens: SocketAddr,
) -> Result<impl Future<Output = ()> + use<>, Complaint> {
    let worker = Arc::clone(reception.worker());
    let (name, instance) = (&worker.config().name, worker.instance());
    let advertised = crate::mdns::advertise(name, &reception.key(), listens, instance)?;
    Ok(async move {
        worker.draining().await;
        advertised.withdraw().await;
    })
}

#[cfg(not(feature = "mdns"))]
fn advertise(_: &Arc<Reception>, _: SocketAddr) -> Result<std::future::Ready<()>, Complaint> {
    Err(no_mdns())
}

/// What a registry gets to know of the worker.
fn describe(reception: &Reception, reached: SocketAddr) -> Registration {
    let config = reception.worker().config();
    let loopback = reached.ip().to_canonical().is_loopback();
    Registration {
        name: config.name.clone(),
        address: reached.to_string(),
        labels: config.labels.clone(),
        lets_in: reception.gate().keys(loopback).into_iter().collect(),
    }
}
