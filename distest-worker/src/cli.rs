//! The worker's command line, and running it. Also `cargo distest worker …`.

mod found;
mod listen;
mod polite;
mod registry;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};

pub use self::found::FoundArgs;
pub use self::listen::ListenAt;
pub use self::polite::PoliteArgs;
pub use self::registry::RegistryArgs;
use crate::accept::listen_hint;
use crate::identity::{Folder, Gate, IdentityError, Permission, Permissions, PrivateKey};
use crate::invitation::{Host, Invitation, InvitationError};
use crate::log::{Complaint, Format, Level as Weight, Line, Log};
use crate::metrics::Metrics;
use crate::protocol::Labels;
use crate::sandbox::enclosure::hide_from_others;
use crate::sandbox::host::{Shortfall, WRITES_BYTES_MAX};
use crate::sandbox::level::Level;
use crate::serve::control::{self, Answer, Ask, At, Which};
use crate::serve::join::{JoinAddress, join};
use crate::serve::{
    self, ConnectionEnd, Listening, Reception, SandboxWish, WorkerConfig, WorkerShared,
    serve_connection,
};
use crate::server::SLOTS_MAX;
use crate::store::Store;
use crate::upgrade::{self, CHECKED, Successor, Upgrades};

/// Blobs that a worker keeps by default.
const STORE_BYTES: u64 = 10 << 30;
/// Told when nobody may use a worker that others could reach.
const NOBODY: &str = "nobody is let in yet, except this user on this machine";
const INVITE: &str = "`distest-worker invite` prints an invitation for another machine";
/// Exit code of a set-up that doesn't work, as in `cargo distest`.
const SETUP: u8 = 96;

/// What a worker can be told to do.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkerCommand {
    /// Waits for clients; prints `ready NAME ADDR` on stdout when it does.
    Serve(ServeArgs),
    /// Dials clients that were given `--worker listen://IP:PORT`, again and again.
    Join(JoinArgs),
    /// Serves one client on stdin and stdout.
    Stdio(StdioArgs),
    /// Prints a one-time invitation for one client, from the worker that runs here.
    Invite(InviteArgs),
    /// Keeps a list of workers for networks without multicast; prints `ready NAME ADDR` on stdout.
    ///
    /// Workers register with `serve --register`, clients ask with `--worker registry://HOST:PORT`.
    /// A registry supplies addresses only: who asks must know a worker's key, and be let in there.
    Registry(RegistryArgs),
}

/// `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 picks a free one, `systemd` takes the socket that it hands over
    #[arg(long, value_name = "IP:PORT")]
    pub listen: ListenAt,
    /// Answer requests for /metrics there, in the text of OpenMetrics, whoever asks
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// How what happens is written to stderr: for people, or as a JSON object a line
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Look whether this could serve, say `checked LEVEL`, the number of its sandboxes' level, and end
    #[arg(long)]
    pub check: bool,
    /// How it is found.
    #[command(flatten)]
    pub found: FoundArgs,
    /// Whom it lets in.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// What the worker is.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// Clients: HOST:PORT[#KEY], or an invitation of `cargo distest workers invite`
    #[arg(required = true, value_name = "ADDR")]
    pub addresses: Vec<JoinTarget>,
    /// The most that an invitation may let its client do here: run, exec, copy, view, admin
    #[arg(long, value_name = "LIST", default_value_t = Permissions::usual())]
    pub permit: Permissions,
    /// How what happens is written to stderr: for people, or as a JSON object a line
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Whom it serves.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// What the worker is.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Whom to join.
#[derive(Clone, Debug)]
pub enum JoinTarget {
    /// A client that we know.
    Known(JoinAddress),
    /// A client that invites us.
    Invited(Box<Invitation>),
}

/// `invite`.
#[derive(Clone, Debug, Args)]
pub struct InviteArgs {
    /// What the client may do, beside what it may already: run, exec, copy, view, admin
    #[arg(long, value_name = "LIST", default_value_t = Permissions::usual())]
    pub permit: Permissions,
    /// Minutes for which the invitation is good
    #[arg(long, value_name = "MINUTES", default_value_t = 15)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub valid: u32,
    /// Where the client dials [default: where the worker listens]
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub address: Option<String>,
    /// Which worker of this user on this machine: by its name
    #[arg(long)]
    pub name: Option<String>,
    /// By where it listens, as it printed when it was ready, or by its port
    #[arg(long, value_name = "HOST:PORT|PORT")]
    pub at: Option<At>,
    /// By its process
    #[arg(long, value_name = "NUMBER")]
    pub process: Option<u32>,
}

/// `stdio`.
#[derive(Clone, Debug, Args)]
pub struct StdioArgs {
    /// Check no key: whoever started this process could do everything anyway
    #[arg(long)]
    pub trusted: bool,
    /// Whom it lets in.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// What the worker is.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Whom a worker lets in, and how it proves who it is.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// This worker's private key, made on first use [default: worker-key in the folder
    /// ~/.config/distest]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The keys that are let in, a line each: KEY PERMISSIONS NAME [default: authorized_keys in
    /// the folder ~/.config/distest]
    #[arg(long, value_name = "FILE")]
    pub authorized_keys: Option<PathBuf>,
}

/// What a worker is.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Tests at once [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
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
    /// The most that is tried to recreate clients' paths; `variables` runs tests in no sandbox
    #[arg(long, value_name = "LEVEL", default_value = "namespaces", value_parser = level)]
    pub sandbox: Level,
    /// Serve several clients also where no sandbox hides their files from each other's tests
    #[arg(long)]
    pub trust_clients: bool,
    /// Bytes that tests may write into one sandbox, in memory; and a file or folder for each 8 KiB
    /// of that
    #[arg(long, value_name = "BYTES", default_value_t = WRITES_BYTES_MAX)]
    pub writes_max: u64,
    /// Something that clients can ask for
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// What it leaves to others.
    #[command(flatten)]
    pub polite: PoliteArgs,
}

/// Does it, and says how it went: 0, or 96 with an explanation on stderr. A worker that is given
/// another executable becomes that: then this doesn't return.
pub fn run(command: WorkerCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(perform(command));
            // A thread that still reads our stdin must not hold us up.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(format!("could not start the runtime: {error}").into()),
    };
    match result {
        Ok(After::Nothing) => ExitCode::SUCCESS,
        Ok(After::Upgrade(successor)) => {
            let error = successor.become_it(|why| say(Line::warning(why)));
            fail(format!("could not execute this program anew: {error}").into())
        }
        Err(complaint) => fail(complaint),
    }
}

fn fail(complaint: Complaint) -> ExitCode {
    say(Line { level: Weight::Error, ..complaint.into() });
    ExitCode::from(SETUP)
}

/// What comes after a command.
enum After {
    Nothing,
    Upgrade(Box<Successor>),
}

async fn perform(command: WorkerCommand) -> Result<After, Complaint> {
    raise_descriptor_limit();
    hide_from_others();
    match command {
        WorkerCommand::Serve(ServeArgs {
            log_format, found, keys, common, check: true, ..
        }) => {
            log_format.begin();
            found.possible()?;
            let reception = reception(keys.clone(), worker(common, &keys)?)?;
            let level = reception.worker().host().level.number();
            ready(&format!("{CHECKED} {level}"))?;
        }
        WorkerCommand::Serve(args) => return serve(args).await,
        WorkerCommand::Join(JoinArgs { addresses, permit, log_format, keys, common }) => {
            log_format.begin();
            addresses.iter().try_for_each(|target| target.gives_at_most(&permit))?;
            let worker = worker(common, &keys)?;
            worker.serves_one_client().then(|| say(one_client()));
            let reception = reception(keys, worker)?;
            join_all(reception, addresses).await?;
        }
        WorkerCommand::Invite(InviteArgs { permit, valid, address, name, at, process }) => {
            let permissions = Permission::ALL.into_iter().filter(|one| permit.allow(*one));
            let valid_s = u64::from(valid) * 60;
            let ask = Ask::Invite { permissions: permissions.collect(), valid_s, address };
            match control::ask(&Which { name, at, process }, &ask).await? {
                Answer::Invitation(text) => ready(&text)?,
                Answer::Refused(why) => {
                    return Err(format!("could not make an invitation: {why}").into());
                }
                Answer::Name(_) | Answer::Address(_) => {
                    return Err("the worker answers what was not asked".into());
                }
            }
        }
        WorkerCommand::Registry(args) => registry::registry(args).await?,
        WorkerCommand::Stdio(StdioArgs { trusted, keys, common }) => {
            let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
            let end = if trusted {
                not_the_internet()?;
                serve_connection(stream, worker(common, &keys)?).await
            } else {
                let worker = worker(common, &keys)?;
                let (reception, log) = (reception(keys, worker)?, Log::stderr());
                let served = tokio::select! {
                    served = reception.serve_stream(stream, false) => served,
                    never = reception.watch(&log) => match never {},
                };
                served.map_err(|error| format!("no client on stdin is let in: {error}"))?
            };
            if let ConnectionEnd::NoHello(error) = end {
                return Err(format!("no client on stdin: {error}").into());
            }
        }
    }
    Ok(After::Nothing)
}

async fn serve(args: ServeArgs) -> Result<After, Complaint> {
    let ServeArgs { listen, metrics, log_format, check: _, found, keys, common } = args;
    // Before anything is opened or started that could have or inherit this descriptor.
    let left = listen::left()?;
    let goes_on = left.is_some();
    if goes_on {
        upgrade::keep_name();
    }
    let place = match (left, listen) {
        (Some(socket), _) => Place::Handed(socket),
        (None, ListenAt::Address(address)) => Place::At(address),
        (None, ListenAt::Handed) => Place::Handed(listen::handed()?),
    };
    log_format.begin();
    let worker = worker(common, &keys)?;
    worker.serves_one_client().then(|| say(one_client()));
    let reception = reception(keys, worker)?;
    if let Some(store) = reception.worker().config().store.clone() {
        let level = reception.worker().host().level;
        reception.worker().can_upgrade(Upgrades::new(store, level));
    }
    let name = reception.worker().config().name.clone();
    let listening = listening(place, Arc::clone(&reception)).await?;
    reception.worker().upgrades().into_iter().for_each(Upgrades::begin);
    let bound = listening.address();
    let bound = bound.map_err(|error| format!("could not listen: {error}"))?;
    let address = serve::reachable(bound);
    reception.gate().news().into_iter().for_each(say);
    reception.listens_at(address.to_string());
    // For as long as the worker.
    let mut answering = tokio::task::JoinSet::new();
    if let Some(at) = metrics {
        let could_not = |error| could_not_listen(&format!("at {at} for metrics"), &error);
        let metrics = Metrics::at(at, Arc::clone(reception.worker())).await;
        let metrics = metrics.map_err(could_not)?;
        let bound = metrics.address().map_err(could_not)?;
        say(format!("metrics are at http://{bound}/metrics"));
        answering.spawn(metrics.serve());
    }
    let findable = found.begin(&reception, bound)?;
    let told = ready(&format!("ready {name} tcp://{address}#{}", reception.key()));
    match goes_on {
        // Whoever waited for this line has heard it from the old one, and may be gone.
        true => say(format!("goes on as version {}", env!("CARGO_PKG_VERSION"))),
        false => told?,
    }
    if reception.gate().is_empty() && !address.ip().is_loopback() {
        say(Line::from(NOBODY).hint(INVITE));
    }
    let successor = listening.serve(&Log::stderr()).await;
    findable.gone().await;
    if successor.is_none() {
        reception.worker().upgrades().into_iter().for_each(Upgrades::end);
    }
    Ok(successor.map_or(After::Nothing, |successor| After::Upgrade(Box::new(successor))))
}

/// With what to do where that is known.
fn could_not_listen(place: &str, error: &io::Error) -> Complaint {
    let why = format!("could not listen {place}: {error}");
    Complaint { why, hint: listen_hint(error).map(str::to_owned) }
}

/// What to listen with.
enum Place {
    At(SocketAddr),
    Handed(std::net::TcpListener),
}

async fn listening(place: Place, reception: Arc<Reception>) -> Result<Listening, Complaint> {
    match place {
        Place::At(address) => Listening::at(address, reception)
            .await
            .map_err(|error| could_not_listen(&format!("at {address}"), &error)),
        Place::Handed(listener) => Listening::on(listener, reception)
            .map_err(|error| format!("could not listen: {error}").into()),
    }
}

async fn join_all(reception: Arc<Reception>, targets: Vec<JoinTarget>) -> Result<(), Complaint> {
    let mut addresses = Vec::new();
    for target in targets {
        addresses.push(match target {
            JoinTarget::Known(address) => address,
            JoinTarget::Invited(invitation) => {
                let Invitation { address, key, permissions, .. } = &*invitation;
                say(format!(
                    "this invitation lets {key} at {address} do so much here: {} ({permissions})",
                    permissions.in_words()
                ));
                let told = reception.accept_invitation(&invitation).await;
                say(told.map_err(|error| unused(&error))?);
                let Invitation { address, key, .. } = *invitation;
                say(format!("it is known from now on: `distest-worker join {address}` will do"));
                JoinAddress { place: address, key: Some(key) }
            }
        });
    }
    reception.gate().news().into_iter().for_each(say);
    let name = reception.worker().config().name.clone();
    let places: Vec<_> = addresses.iter().map(|it| format!("listen://{}", it.place)).collect();
    ready(&format!("ready {name} {}", places.join(" ")))?;
    let joined = join(reception, addresses, &Log::stderr()).await;
    joined.map_err(|error| format!("could not catch signals: {error}").into())
}

/// That an invitation of a client's came to nothing.
fn unused(error: &InvitationError) -> Complaint {
    let complaint = Complaint::from(format!("could not use the invitation: {error}"));
    match error {
        InvitationError::NoConnection(_) | InvitationError::NotOpen | InvitationError::Silent => {
            complaint.hint(
                "`cargo distest workers invite` must be running there: it waits until its \
                 invitation has been taken, which is good once",
            )
        }
        _ => complaint,
    }
}

impl JoinTarget {
    /// Whether it lets its client do no more here than that.
    fn gives_at_most(&self, permit: &Permissions) -> Result<(), Complaint> {
        let Self::Invited(invitation) = self else { return Ok(()) };
        let Invitation { address, permissions, .. } = &**invitation;
        if permit.include(permissions) {
            return Ok(());
        }
        let what = "could not use the invitation: it lets its client do more here than --permit";
        let allows = permissions.in_words();
        Err(Complaint::from(format!("{what} {permit}"))
            .hint(format!("with --permit {permissions} the client at {address} may {allows}")))
    }
}

impl std::str::FromStr for JoinTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with("invite+") {
            return text.parse().map(Self::Known);
        }
        let invitation: Invitation = text.parse()?;
        match invitation.host {
            Host::Client => Ok(Self::Invited(Box::new(invitation))),
            Host::Worker => Err("this is a worker's invitation, for \
                                 `cargo distest workers add INVITATION`"
                .to_owned()),
        }
    }
}

fn reception(args: KeyArgs, worker: Arc<WorkerShared>) -> Result<Arc<Reception>, Complaint> {
    let KeyArgs { key, authorized_keys } = args;
    let folder = Folder::of_user();
    let of_folder = |path: fn(&Folder) -> PathBuf| folder.as_ref().map(path);
    let path = key.or_else(|| of_folder(Folder::worker_key)).ok_or_else(|| {
        Complaint::from("could not find a folder for this worker's key: this user has no home")
            .hint("name a file with --key")
    })?;
    let key = PrivateKey::load_or_make(&path).map_err(told)?;
    let authorized_keys = authorized_keys.or_else(|| of_folder(Folder::authorized_keys));
    let gate = Gate::open(authorized_keys, of_folder(Folder::client_key)).map_err(told)?;
    Ok(Reception::new(key, gate, worker))
}

/// `--trusted` is for a process that ssh started, never for a port that inetd opened. Whichever of the
/// three is a network's, somebody there would be trusted, or told what we say.
fn not_the_internet() -> Result<(), Complaint> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for (name, descriptor) in [
        ("stdin", stdin.as_raw_fd()),
        ("stdout", stdout.as_raw_fd()),
        ("stderr", stderr.as_raw_fd()),
    ] {
        let address = getsockname::<SockaddrStorage>(descriptor);
        let family = address.ok().and_then(|address| address.family());
        if !matches!(family, None | Some(AddressFamily::Unix)) {
            let why =
                format!("{name} is a network socket, and with --trusted no key would be checked");
            return Err(Complaint::from(why).hint("leave out --trusted"));
        }
    }
    Ok(())
}

fn worker(args: CommonArgs, keys: &KeyArgs) -> Result<Arc<WorkerShared>, Complaint> {
    let CommonArgs {
        slots,
        name,
        store,
        store_max,
        sandbox,
        trust_clients,
        writes_max,
        labels,
        polite,
    } = args;
    polite.obey()?;
    let folder = store.or_else(default_store).ok_or_else(|| {
        Complaint::from("could not find a folder for received files: this user has no home")
            .hint("name one with --store")
    })?;
    let store = Store::open(&folder, store_max).map_err(|error| {
        Complaint::from(error.to_string()).hint("name another folder with --store")
    })?;
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let config = WorkerConfig {
        name: name.unwrap_or_else(host_name),
        slots: slots.unwrap_or_else(cores),
        store: Some(store),
        in_place: false,
        labels: Labels::from_iter(labels),
    };
    let files = [&keys.key, &keys.authorized_keys].into_iter().flatten();
    let wish = SandboxWish {
        most: sandbox,
        writes_bytes_max: writes_max,
        hidden: files.filter_map(|file| folder_of(file)).collect(),
        trust_clients,
    };
    let worker = serve::share(config, wish)
        .map_err(|error| format!("could not find this program's own executable: {error}"))?;
    if let Some(shortfall) = &worker.host().shortfall {
        warn(&format!("clients' paths are recreated by {} only", worker.host().level), shortfall);
    }
    if let Err(lack) = &worker.host().private_network {
        warn("tests that are to have a network of their own are not taken", lack);
    }
    if is_root() {
        say(of_root(worker.host().level.is_enclosed()));
    }
    polite.keep(&worker);
    Ok(worker)
}

/// Whether this is the machine's own root, or a container's that is the same: not one of a user
/// namespace, who is an ordinary user outside.
fn is_root() -> bool {
    const ALL: [&str; 3] = ["0", "0", "4294967295"];
    let map = std::fs::read_to_string("/proc/self/uid_map");
    let is_ours = map.is_ok_and(|map| map.split_whitespace().eq(ALL));
    nix::unistd::geteuid().is_root() && is_ours
}

/// Said where tests are root's.
fn of_root(enclosed: bool) -> Line {
    let what = match enclosed {
        true => {
            "this worker is root's: tests can read all files of this machine but this user's own, \
             the worker's and other clients' (/etc/shadow, too), and `exec` can do everything"
        }
        false => {
            "this worker is root's, and has no sandbox: whoever may run tests here can do \
             everything with this machine"
        }
    };
    Line::warning(what).hint("run it as an ordinary user; a unit of systemd's is in deploy/")
}

/// Said where no sandbox hides anything from tests.
fn one_client() -> Line {
    let what = "tests can read this worker's key and what it keeps, so it serves one client only";
    Line::warning(what).hint("with --trust-clients it serves all that it lets in")
}

/// What this worker can't do, why, and what helps.
fn warn(what: &str, Shortfall { reason, hint }: &Shortfall) {
    say(Line { hint: hint.clone(), ..Line::warning(format!("{what}\n{reason}")) });
}

/// The folder that a file of ours lies in, unless it is one that tests can't do without (`/etc`):
/// then there is a warning.
fn folder_of(file: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(file).ok()?.parent()?.to_owned();
    if folder.components().count() > 2 {
        return Some(folder);
    }
    say(Line::warning(format!("tests can see {}", file.display()))
        .hint("move it into a folder of its own"));
    None
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

fn level(text: &str) -> Result<Level, String> {
    let found = Level::ALL.into_iter().find(|level| level.name() == text);
    found.ok_or_else(|| format!("expected one of {}", Level::ALL.map(Level::name).join(", ")))
}

/// A place as it stands in an invitation.
///
/// # Errors
/// In words: it is none.
pub fn host_and_port(text: &str) -> Result<String, String> {
    match crate::registry::place(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("expected HOST:PORT, such as build-1:7777 or [::1]:7777".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written K=V".to_owned()),
    }
}

fn told(error: IdentityError) -> Complaint {
    Complaint::from(error.to_string()).hint(error.hint())
}

fn ready(line: &str) -> Result<(), String> {
    let mut stdout = io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|error| format!("could not write to stdout: {error}"))
}

fn say(line: impl Into<Line>) {
    line.into().tell();
}
