//! Takes shims' calls at a socket.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::unistd::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, watch};

use super::call;
use super::site::{Place, Site, Surroundings};
use super::wire::{Call, FromShim, GREETING, Refused, ToShim};
use crate::collect::Collector;
use crate::compile::Workspace;
use crate::failure::Failure;
use crate::settings::{FleetSettings, Settings, TravelSettings};
use crate::travel::Travel;
use crate::tree::copies::Copies;

/// Serves calls from any workspace, or from one.
pub struct Server {
    settings: FleetSettings,
    sites: Sites,
    /// Calls under way.
    busy: watch::Sender<usize>,
    losses: AtomicU64,
}

enum Sites {
    /// Found as calls come in.
    Found(Box<Common>, Mutex<BTreeMap<Place, Arc<OnceCell<Arc<Site>>>>>),
    /// The only one.
    One(Arc<Site>),
}

/// What all sites have in common that are found.
struct Common {
    travel: TravelSettings,
    surroundings: Surroundings,
}

impl Server {
    /// Serves calls from wherever they come.
    pub fn new(settings: Settings) -> Self {
        let Settings { fleet, travel, constraints, .. } = settings;
        let common = Common { travel, surroundings: Surroundings::of_runner(&constraints) };
        Self::with(fleet, Sites::Found(Box::new(common), Mutex::default()))
    }

    /// Serves calls from one workspace.
    ///
    /// # Errors
    /// The store in its target folder can't be opened.
    pub fn of(
        settings: FleetSettings,
        workspace: &Workspace,
        travel: Travel,
        collector: Arc<Collector>,
        copies: Arc<Copies>,
        surroundings: Surroundings,
    ) -> Result<Self, Failure> {
        let site = Site::of(workspace, travel, collector, copies, surroundings)?;
        Ok(Self::with(settings, Sites::One(Arc::new(site))))
    }

    fn with(settings: FleetSettings, sites: Sites) -> Self {
        Self { settings, sites, busy: watch::Sender::new(0), losses: AtomicU64::new(0) }
    }

    /// Calls so far that came to no end because of a worker.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Calls under way, as they come and go.
    pub fn busy(&self) -> watch::Receiver<usize> {
        self.busy.subscribe()
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// It is another user's, breaks, or makes no sense.
    pub async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        if stream.peer_cred()?.uid() != geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.busy.send_modify(|busy| *busy += 1);
        let _busy = Busy(&self.busy);
        let (from, mut to) = stream.into_split();
        to.write_all(GREETING).await?;
        let (mut frames, reading) = call::listen(from);
        let Some(FromShim::Call(call)) = frames.recv().await else {
            return reading.await.map_err(io::Error::other)?;
        };
        match self.site(&call).await {
            Ok(site) => {
                let lost = call::serve(&call, &site, &self.settings, frames, to).await;
                self.losses.fetch_add(u64::from(lost), Ordering::Relaxed);
            }
            Err(failure) => {
                let (code, what, hint) = (failure.code.number(), failure.to_string(), failure.hint);
                to.write_all(&ToShim::Failed(Refused { code, what, hint }).frame()?).await?;
            }
        }
        reading.abort();
        Ok(())
    }

    async fn site(&self, call: &Call) -> Result<Arc<Site>, Failure> {
        let (common, found) = match &self.sites {
            Sites::One(site) => return Ok(Arc::clone(site)),
            Sites::Found(common, found) => (common, found),
        };
        let Common { travel, surroundings } = &**common;
        let place = Place::of(call);
        let cargo = call.variable("CARGO").unwrap_or_else(|| "cargo".into());
        let sites = || found.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = Arc::clone(sites().entry(place.clone()).or_default());
        let find = || async {
            let site = Site::find(&place, cargo, travel, surroundings).await?;
            // Packages of one workspace share what it has.
            let same = sites()
                .values()
                .filter_map(|cell| cell.get())
                .find(|it| it.roots() == site.roots())
                .cloned();
            Ok(same.unwrap_or_else(|| Arc::new(site)))
        };
        cell.get_or_try_init(find).await.cloned()
    }
}

struct Busy<'a>(&'a watch::Sender<usize>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|busy| *busy -= 1);
    }
}
