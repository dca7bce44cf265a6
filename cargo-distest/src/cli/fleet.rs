//! Commands about keys and workers.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Subcommand;
use distest_worker::invitation::Invitation;

/// `cargo distest key`.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key: this user's own, or one for a CI service.
    New {
        /// Write the private key to this file, for DISTEST_KEY.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print the public key, which a worker's authorized_keys needs.
    Show,
}

/// `cargo distest workers`.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkersCommand {
    /// Take the invitation of a worker: both sides then know each other's key.
    Add {
        /// What `distest-worker invite` printed
        invitation: Invitation,
        /// What to call the worker [default: what it calls itself]
        #[arg(long)]
        name: Option<String>,
    },
    /// Invite a worker that will dial this machine: prints an invitation for `distest-worker join`
    /// and waits until it is taken.
    Invite {
        /// Where to listen, as later in `--worker listen://IP:PORT`
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Where the worker dials [default: where this listens]
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Minutes for which the invitation is good
        #[arg(long, value_name = "MINUTES", default_value_t = 15)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1440))]
        valid: u32,
    },
    /// Forget a worker.
    Rm {
        /// Its key, name or address
        worker: String,
    },
}
