//! Commands about keys and workers.

use std::path::PathBuf;

use clap::Subcommand;

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
