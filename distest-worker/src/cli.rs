//! The worker's command line, and running it. Also `cargo distest worker …`.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::protocol::Labels;
use crate::serve::{self, ConnectionEnd, Listening, WorkerConfig, WorkerShared, serve_connection};
use crate::store::Store;

/// Blobs that a worker keeps by default.
const STORE_BYTES: u64 = 10 << 30;
/// Exit code of a set-up that doesn't work, as in `cargo distest`.
const SETUP: u8 = 96;

/// What a worker can be told to do.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkerCommand {
    /// Waits for clients; prints `ready NAME ADDR` on stdout when it does.
    Serve(ServeArgs),
    /// Serves one client on stdin and stdout.
    Stdio(StdioArgs),
}

/// `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 picks a free one. Loopback only: workers don't check keys yet
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// What the worker is.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `stdio`.
#[derive(Clone, Debug, Args)]
pub struct StdioArgs {
    /// What the worker is.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What a worker is.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Tests at once [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub slots: Option<u32>,
    /// What reports call this worker [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Where received files are kept [default: in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Bytes of received files that are kept; what was used longest ago goes first
    #[arg(long, value_name = "BYTES", default_value_t = STORE_BYTES)]
    pub store_max: u64,
    /// Something that clients can ask for
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

/// Does it, and says how it went: 0, or 96 with an explanation on stderr.
pub fn run(command: WorkerCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(perform(command)),
        Err(error) => Err(format!("could not start the runtime: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            say(&format!("error: {text}"));
            ExitCode::from(SETUP)
        }
    }
}

async fn perform(command: WorkerCommand) -> Result<(), String> {
    raise_descriptor_limit();
    match command {
        WorkerCommand::Serve(ServeArgs { listen, common }) => {
            if !is_loopback(listen.ip()) {
                return Err(format!(
                    "could not listen at {listen}: this version doesn't check who connects, so it \
                     serves this machine only\nhint: listen at 127.0.0.1:{}, and forward the port \
                     through ssh: ssh -L {0}:127.0.0.1:{0} HOST",
                    listen.port()
                ));
            }
            let worker = worker(common)?;
            let name = worker.config().name.clone();
            let could_not = |error| format!("could not listen at {listen}: {error}");
            let listening = Listening::at(listen, worker).await.map_err(could_not)?;
            let address = listening.address().map_err(could_not)?;
            ready(&format!("ready {name} tcp://{address}"))?;
            listening.serve(|text| say(&text)).await;
            Ok(())
        }
        WorkerCommand::Stdio(StdioArgs { common }) => {
            let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
            let end = serve_connection(stream, worker(common)?).await;
            match end {
                ConnectionEnd::NoHello(error) => Err(format!("no client on stdin: {error}")),
                ConnectionEnd::Link(_) => Ok(()),
            }
        }
    }
}

fn worker(args: CommonArgs) -> Result<std::sync::Arc<WorkerShared>, String> {
    let CommonArgs { slots, name, store, store_max, labels } = args;
    let folder = store.or_else(default_store).ok_or(
        "could not find a folder for received files: this user has no home\nhint: name one with --store",
    )?;
    let store = Store::open(&folder, store_max)
        .map_err(|error| format!("{error}\nhint: name another folder with --store"))?;
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    serve::share(WorkerConfig {
        name: name.unwrap_or_else(host_name),
        slots: slots.unwrap_or_else(cores),
        store: Some(store),
        in_place: false,
        labels: Labels::from_iter(labels),
    })
    .map_err(|error| format!("could not find this program's own executable: {error}"))
}

/// `$XDG_CACHE_HOME`, else `~/.cache`.
fn default_store() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    Some(cache.join("cargo-distest").join("worker"))
}

fn host_name() -> String {
    let name = nix::sys::utsname::uname().ok();
    let name = name.and_then(|uname| uname.nodename().to_str().map(str::to_owned));
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "worker".to_owned())
}

/// Each slot takes a few descriptors; the usual soft limit of 1,024 is for programs that use
/// `select`.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // A limit that can't be raised is told when it is met.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written K=V".to_owned()),
    }
}

fn ready(line: &str) -> Result<(), String> {
    let mut stdout = io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|error| format!("could not write to stdout: {error}"))
}

fn say(text: &str) {
    // A worker whose stderr is closed has nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}
