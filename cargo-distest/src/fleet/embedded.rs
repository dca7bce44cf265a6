//! The worker in this process: the same code as everywhere, without a stream in between, with the
//! client's files where they lie.

use distest_worker::probe;
use distest_worker::protocol::Labels;
use distest_worker::sandbox::host::Host;
use distest_worker::server::{WorkerConfig, WorkerShared, serve_near};
use distest_worker::zygote::ZygoteProgram;

use super::connection::{Connection, Open};
use super::{Fleet, Unusable};
use crate::model::WorkerId;
use crate::settings::EMBEDDED_NAME;

/// Starts it and opens its session.
pub(super) async fn start(
    fleet: &Fleet,
    id: WorkerId,
    slots: u32,
    base: u32,
) -> Result<Connection, Unusable> {
    let config = WorkerConfig {
        name: EMBEDDED_NAME.to_owned(),
        slots,
        store: None,
        in_place: true,
        labels: Labels::new(),
    };
    let zygote = ZygoteProgram::this_executable();
    let mut host = Host::plain();
    if fleet.shared.facts.private_networks {
        let tried = zygote.clone();
        host.private_network = tokio::task::spawn_blocking(move || probe::private_network(&tried))
            .await
            .map_err(|error| Unusable::new(format!("could not try its network: {error}")))?;
    }
    let worker = WorkerShared::on(host, config, zygote);
    let (hello, side, serving) = serve_near(worker);
    tokio::spawn(serving);
    let open = Open { id, address: String::new(), slots, base, member: None };
    open.session(fleet, hello, side).await
}
