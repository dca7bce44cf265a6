//! Commands about keys and workers.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use distest_worker::cli::host_and_port;
use distest_worker::identity::Permissions;
use distest_worker::invitation::Invitation;

use crate::settings::WorkerAddress;

/// `cargo distest key`.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key: this user's own, or one for a CI service.
    New {
        /// Write the private key to this file, for DISTEST_KEY.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print the public key, which a worker's authorized_keys needs: this user's own, or that of
    /// DISTEST_KEY.
    Show,
}

/// `cargo distest workers`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct WorkersArgs {
    /// What to do; without it, `ls`.
    #[command(subcommand)]
    pub command: Option<WorkersCommand>,
    /// Which workers to show.
    #[command(flatten)]
    pub list: ListWorkersArgs,
}

/// `cargo distest workers ls`.
#[derive(Clone, Debug, Default, Args)]
pub struct ListWorkersArgs {
    /// Workers to look for beside those that are known, as for `run`; may be repeated
    /// [env: DISTEST_WORKERS]
    #[arg(long, value_name = "ADDR")]
    pub worker: Vec<WorkerAddress>,
    /// Only workers of this name, alias or key; may be repeated
    #[arg(long, value_name = "NAME")]
    pub on: Vec<String>,
    /// Only workers with this label, and with this value if one is given; may be repeated
    #[arg(long = "label", value_name = "K[=V]")]
    pub labels: Vec<String>,
    /// Look again and again.
    #[arg(long)]
    pub watch: bool,
    /// How they are shown.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: WorkersFormat,
}

/// Workers that something is done to: `workers upgrade`, `workers gc`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["names", "all"]))]
pub struct AdministeredArgs {
    /// Their names, keys or addresses
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// All workers that are there.
    #[arg(long)]
    pub all: bool,
    /// Workers to look for beside those that are known, as for `run`; may be repeated
    /// [env: DISTEST_WORKERS]
    #[arg(long, value_name = "ADDR")]
    pub worker: Vec<WorkerAddress>,
}

/// `workers --format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WorkersFormat {
    /// A table.
    #[default]
    Human,
    /// One JSON object a look, in a line.
    Json,
}

/// `cargo distest exec`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["on", "all"]))]
pub struct ExecArgs {
    /// The workers to run it on; may be repeated
    #[arg(long, value_name = "NAME")]
    pub on: Vec<String>,
    /// Run it on all workers that are there.
    #[arg(long)]
    pub all: bool,
    /// Workers to look for beside those that are known, as for `run`; may be repeated
    /// [env: DISTEST_WORKERS]
    #[arg(long, value_name = "ADDR")]
    pub worker: Vec<WorkerAddress>,
    /// The command and its arguments.
    #[arg(value_name = "CMD", last = true, required = true)]
    pub command: Vec<OsString>,
}

/// `cargo distest cp`.
#[derive(Clone, Debug, Args)]
pub struct CpArgs {
    /// Workers to look for beside those that are known, as for `run`; may be repeated
    /// [env: DISTEST_WORKERS]
    #[arg(long, value_name = "ADDR")]
    pub worker: Vec<WorkerAddress>,
    /// The file or folder: PATH here, or NAME:/PATH on a worker
    #[arg(value_name = "SRC")]
    pub from: String,
    /// Where it goes: PATH here, or NAME:/PATH on a worker
    #[arg(value_name = "DST")]
    pub to: String,
}

/// `cargo distest doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Workers to look at beside those that are known, as for `run`; may be repeated
    /// [env: DISTEST_WORKERS]
    #[arg(long, value_name = "ADDR")]
    pub worker: Vec<WorkerAddress>,
    /// How findings are shown.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: WorkersFormat,
}

/// What `cargo distest workers` does.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkersCommand {
    /// Show which workers there are, what they do, and why one can't be used.
    Ls(ListWorkersArgs),
    /// Let a worker finish what runs and take nothing more; it ends then. Needs the permission
    /// `admin` there.
    Drain {
        /// Its name, key or address
        worker: String,
        /// Where to look for it beside those that are known, as for `run`; may be repeated
        /// [env: DISTEST_WORKERS]
        #[arg(long = "worker", value_name = "ADDR", id = "addresses")]
        addresses: Vec<WorkerAddress>,
    },
    /// Have workers go on as this program, or as a static build of the worker beside it where this
    /// one doesn't run.
    ///
    /// Each gets it, tries it, finishes what runs, and goes on as the new one at the same address
    /// with the same arguments; one after the other, so that runs go on elsewhere. Needs the
    /// permission `admin` there.
    Upgrade(AdministeredArgs),
    /// Remove what no session uses from what workers keep. Needs the permission `admin` there.
    Gc(AdministeredArgs),
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
    ///
    /// On stdout there is nothing but the invitation; what to do with it is on stderr.
    Invite {
        /// What this user may do there, beside what it may already: run, exec, copy, view, admin.
        /// More than run and view must be agreed to there, with `join --permit LIST`
        #[arg(long, value_name = "LIST", default_value_t = Permissions::usual())]
        permit: Permissions,
        /// Where to listen, as later in `--worker listen://IP:PORT`
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Where the worker dials [default: where this listens]
        #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
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
