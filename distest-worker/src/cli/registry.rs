//! `registry`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{could_not_listen, ready, say, told};
use crate::identity::{Folder, Gate, PrivateKey};
use crate::log::{Complaint, Log};
use crate::registry::Registry;
use crate::serve;

/// `registry`.
#[derive(Clone, Debug, Args)]
pub struct RegistryArgs {
    /// Where to listen; port 0 picks a free one
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// What the registry is called
    #[arg(long, default_value = "registry")]
    pub name: String,
    /// Its private key, made on first use [default: registry-key in the folder ~/.config/distest]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Only these keys may register and ask, a line each: KEY PERMISSIONS NAME [default: anybody
    /// registers, and is shown the workers that let them in]
    #[arg(long, value_name = "FILE")]
    pub authorized_keys: Option<PathBuf>,
}

/// Serves until a signal ends it.
pub(super) async fn registry(args: RegistryArgs) -> Result<(), Complaint> {
    let RegistryArgs { listen, name, key, authorized_keys } = args;
    let path = key.or_else(|| Folder::of_user().map(|folder| folder.registry_key()));
    let path = path.ok_or_else(|| {
        Complaint::from("could not find a folder for this registry's key: this user has no home")
            .hint("name a file with --key")
    })?;
    let key = PrivateKey::load_or_make(&path).map_err(told)?;
    let gate = authorized_keys.map(|path| Gate::open(Some(path), None));
    let gate = gate.transpose().map_err(told)?;
    gate.iter().flat_map(Gate::news).for_each(say);
    let could_not = |error| could_not_listen(&format!("at {listen}"), &error);
    let registry = Registry::at(listen, key, gate).await.map_err(could_not)?;
    let address = serve::reachable(registry.address().map_err(could_not)?);
    ready(&format!("ready {name} registry://{address}#{}", registry.key()))?;
    registry.serve(Log::stderr()).await;
    Ok(())
}
