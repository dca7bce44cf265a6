//! `cargo distest workers`: which workers there are, and getting to know more.

mod admin;
mod cp;
mod doctor;
mod exec;
mod invite;
mod ls;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distest_worker::identity::{Folder, IdentityError, KnownWorker, KnownWorkers, PublicKey};
use distest_worker::invitation::{self, Granted, Host, Invitation};

use crate::cli::{ListWorkersArgs, RunArgs, WorkersArgs, WorkersCommand, WorkersFormat};
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Meant, Trouble, Undone, Wanted};
use crate::settings::{
    self, Color, ConfigFiles, Facts, FleetSettings, IdentitySettings, Settings, ShowProgress,
    WorkerAddress, user_config_path,
};
use crate::ui::{Ui, report_warning};

pub use self::cp::cp;
pub use self::doctor::doctor;
pub use self::exec::{Terminals, exec};

/// Between two looks of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Does it; `print` gets what goes to stdout, at once, and answers whether anybody reads it.
///
/// # Errors
/// [`ExitCode::Setup`] with what to do.
pub async fn workers(
    args: &WorkersArgs,
    mut print: impl FnMut(&str) -> bool,
) -> Result<ExitCode, Failure> {
    let cwd = std::env::current_dir().unwrap_or_default();
    let environment = |name: &str| std::env::var(name).ok();
    let identity = &IdentitySettings::of_environment(&environment, &cwd)?;
    identity.check()?;
    let command = match &args.command {
        None => return list(&args.list, &cwd, print).await,
        Some(command) => command,
    };
    match command {
        WorkersCommand::Ls(args) => return list(args, &cwd, print).await,
        WorkersCommand::Upgrade(args) => return admin::upgrade(args, &cwd, print).await,
        WorkersCommand::Gc(args) => return admin::collect_garbage(args, &cwd, print).await,
        WorkersCommand::Drain { worker, addresses } => {
            let settings = fleet_settings(addresses, &cwd)?;
            let drained = fleet::drain(&settings, worker).await;
            let what = || format!("could not drain {worker}");
            let name = drained.map_err(|undone| failed(ExitCode::Setup, what(), undone))?;
            print(&format!("{name} finishes what runs, takes nothing more, and ends\n"));
        }
        WorkersCommand::Add { invitation, name } => {
            print(&add(invitation, name.as_deref(), identity).await?);
        }
        WorkersCommand::Invite { permit, listen, address, valid } => {
            let known = known_workers()?;
            let key = fleet::own_key(identity).map_err(setup)?;
            let wanted = invite::Wanted {
                permissions: permit.clone(),
                listen: *listen,
                address: address.clone(),
                minutes: *valid,
            };
            let ui = Ui::new(Color::Auto, ShowProgress::None);
            let hint = |text: &str| ui.line(text);
            invite::invite(wanted, &key, &known, |text| _ = print(text), hint).await?;
        }
        WorkersCommand::Rm { worker } => _ = print(&remove(worker)?),
    }
    Ok(ExitCode::Passed)
}

async fn list(
    args: &ListWorkersArgs,
    cwd: &Path,
    mut print: impl FnMut(&str) -> bool,
) -> Result<ExitCode, Failure> {
    let ListWorkersArgs { worker, on, labels, watch, format } = args;
    let settings = fleet_settings(worker, cwd)?;
    let wanted = Wanted { joiners: true, ..Wanted::default() };
    tell_of_waiting(&settings);
    let clears = *watch && *format == WorkersFormat::Human && std::io::stdout().is_terminal();
    loop {
        let mut visited = fleet::visit(&settings, &wanted)
            .await
            .map_err(|Trouble { reason, hint }| setup((reason, hint)))?;
        let all = visited.len();
        visited.retain(|it| ls::is_meant(it, on, labels));
        let text = match format {
            WorkersFormat::Human => ls::human(&visited, all - visited.len()),
            WorkersFormat::Json => ls::json(&visited),
        };
        let read = print(&format!("{}{text}", if clears { CLEAR } else { "" }));
        if !*watch || !read {
            return Ok(ExitCode::Passed);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// The fleet that a run in this folder would use.
fn fleet_settings(workers: &[WorkerAddress], cwd: &Path) -> Result<FleetSettings, Failure> {
    Ok(all_settings(workers, cwd)?.fleet)
}

/// The settings of a run in this folder.
fn all_settings(workers: &[WorkerAddress], cwd: &Path) -> Result<Settings, Failure> {
    let root = cwd.ancestors().find(|folder| folder.join(".config/distest.toml").is_file());
    let workspace_root = root.unwrap_or(cwd).to_owned();
    let files = ConfigFiles::read(&workspace_root, None, user_config_path().as_deref())?;
    let mut args = RunArgs::default();
    args.fleet.worker = workers.to_owned();
    let environment = |name: &str| std::env::var(name).ok();
    let facts = Facts { cores: 1, workspace_root, cwd: cwd.to_owned() };
    let settings = settings::resolve(&args, &environment, &files, &facts)?.settings;
    settings.fleet.identity.check()?;
    Ok(settings)
}

/// Says that it takes a while, where workers dial this machine.
fn tell_of_waiting(settings: &FleetSettings) {
    let places = settings.dialled_at().map(|place| WorkerAddress::Listen(place).to_string());
    let places: Vec<_> = places.collect();
    if !places.is_empty() {
        let (places, seconds) = (places.join(", "), fleet::JOINERS_WITHIN.as_secs());
        let ui = Ui::new(Color::Auto, ShowProgress::None);
        ui.line(&format!("waiting {seconds} s for workers that dial {places}"));
        ui.flush();
    }
}

/// The workers of these names, or all that are there: then whoever can't be reached is told of.
async fn meant(
    settings: &FleetSettings,
    names: &[String],
    all: bool,
) -> Result<Vec<Meant>, Undone> {
    if !all {
        return fleet::named(settings, names).await.map_err(Undone::NotThere);
    }
    tell_of_waiting(settings);
    let (there, left_out) = fleet::all(settings).await.map_err(Undone::NotThere)?;
    let ui = Ui::new(Color::Auto, ShowProgress::None);
    for (name, Trouble { reason, hint }) in left_out {
        let text = format!("left out {}: {}", ls::plain(&name), ls::plain(&reason));
        report_warning(&ui, &text, hint.as_deref());
    }
    ui.flush();
    Ok(there)
}

async fn add(
    invitation: &Invitation,
    name: Option<&str>,
    identity: &IdentitySettings,
) -> Result<String, Failure> {
    let failed = |why: String| {
        Failure::new(ExitCode::Setup, "could not use the invitation")
            .because(why)
            .hint("run `distest-worker invite` again: each is good once, for minutes")
    };
    if invitation.host == Host::Client {
        let why = "it is a client's, for `distest-worker join INVITATION`".to_owned();
        return Err(failed(why));
    }
    let known = known_workers()?;
    let key = fleet::own_key(identity).map_err(setup)?;
    let Invitation { address, key: theirs, .. } = invitation;
    let store = |granted: &Granted| {
        let name = name.unwrap_or(&granted.name).to_owned();
        let worker = KnownWorker { address: address.clone(), name };
        KnownWorkers::remember(&known, theirs, &worker).map_err(|error| error.to_string())
    };
    let granted = invitation::take(invitation, &key, &our_name(), store).await;
    let granted = granted.map_err(|error| failed(error.to_string()))?;
    let name = name.unwrap_or(&granted.name);
    let worker = KnownWorker { address: address.clone(), name: name.to_owned() };
    Ok(told_of(theirs, &worker))
}

/// That a worker is known now, and how to use it.
fn told_of(key: &PublicKey, KnownWorker { address, name }: &KnownWorker) -> String {
    let pinned = format!("tcp://{address}#{key}");
    // The name stands for one word of a command line.
    let on = match name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        true if !name.is_empty() && !name.starts_with('-') => name.clone(),
        _ => key.to_string(),
    };
    format!(
        "added {} {pinned}\n\
         run tests there: cargo distest run --on {on}\n\
         in each run:     DISTEST_WORKERS={pinned}, or the same under `[fleet] workers` in \
         ~/.config/distest/config.toml\n",
        ls::plain(name),
    )
}

fn remove(worker: &str) -> Result<String, Failure> {
    let path = known_workers()?;
    let (known, _) = KnownWorkers::load(&path).map_err(identity_failure)?;
    let worker = worker.strip_prefix("tcp://").unwrap_or(worker);
    let (worker, key) = worker.split_once('#').unwrap_or((worker, worker));
    let meant: Vec<PublicKey> = known
        .iter()
        .filter(|(known, about)| {
            known.to_string() == key || about.name == worker || about.address == worker
        })
        .map(|(key, _)| *key)
        .collect();
    if meant.is_empty() {
        let what = format!("could not forget {worker}: no worker of that key, name or address");
        let hint = format!("the known ones are in {}", path.display());
        return Err(Failure::new(ExitCode::Setup, what).hint(hint));
    }
    let mut told = String::new();
    for key in meant {
        KnownWorkers::forget(&path, &key).map_err(identity_failure)?;
        told.push_str(&format!("removed {key}\n"));
    }
    Ok(told)
}

fn known_workers() -> Result<PathBuf, Failure> {
    let folder = Folder::of_user().ok_or(IdentityError::NoFolder).map_err(identity_failure)?;
    Ok(folder.known_workers())
}

/// What workers call this user.
fn our_name() -> String {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let host = nix::sys::utsname::uname().ok();
    let host = host.and_then(|uname| uname.nodename().to_str().map(str::to_owned));
    format!("{}@{}", user.as_deref().unwrap_or("user"), host.as_deref().unwrap_or("host"))
}

/// What a command ends with that was to do something at a worker and didn't. One rule for `exec`,
/// `cp`, `workers drain`, `gc` and `upgrade`: 97 if the worker isn't there, whether nobody is called
/// so or it can't be reached. If it is, `there`: 1 for what failed as it may on any machine (`exec`,
/// `cp`), 96 for what an administrator has to put right.
fn exit_code(there: ExitCode, undone: &Undone) -> ExitCode {
    match undone {
        Undone::NotThere(_) => ExitCode::NoWorker,
        Undone::There(_) => there,
    }
}

fn failed(there: ExitCode, what: impl Into<String>, undone: Undone) -> Failure {
    let code = exit_code(there, &undone);
    let (Undone::NotThere(trouble) | Undone::There(trouble)) = undone;
    let Trouble { reason, hint } = trouble;
    Failure { hint, ..Failure::new(code, what).because(reason) }
}

fn setup((reason, hint): (String, Option<String>)) -> Failure {
    let failure = Failure::new(ExitCode::Setup, reason);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn identity_failure(error: IdentityError) -> Failure {
    let hint = error.hint();
    Failure::new(ExitCode::Setup, error.to_string()).hint(hint)
}
