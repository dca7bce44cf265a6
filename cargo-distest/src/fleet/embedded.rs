//! The worker in this process: the same code as everywhere, over an in-memory pipe, with the
//! client's files where they lie.

use std::collections::BTreeMap;

use distest_worker::serve::{self, WorkerConfig};

use super::connection::{self, Connection, Open};
use super::{Fleet, Unusable};
use crate::model::WorkerId;

/// What reports call it.
pub(super) const NAME: &str = "local";
/// Bytes in the pipe, either way.
const PIPE_BYTES: usize = 256 * 1024;

/// Starts it and opens its session.
pub(super) async fn start(
    fleet: &Fleet,
    id: WorkerId,
    slots: u32,
    base: u32,
) -> Result<Connection, Unusable> {
    let could_not = |error| Unusable::new(format!("could not start the embedded worker: {error}"));
    let config = WorkerConfig {
        name: NAME.to_owned(),
        slots,
        store: None,
        in_place: true,
        labels: BTreeMap::new(),
    };
    let shared = serve::share(config).map_err(could_not)?;
    let (mut ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let server = tokio::spawn(serve::serve_connection(theirs, shared));
    let hello = connection::greet(&mut ours).await?;
    let open = Open { id, address: String::new(), slots, base };
    open.session(fleet, ours, hello).await
}
