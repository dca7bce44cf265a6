//! `cargo distest workers`: which workers this user knows, and getting to know more.

mod invite;

use std::path::PathBuf;

use distest_worker::identity::{Folder, IdentityError, KnownWorker, KnownWorkers, PublicKey};
use distest_worker::invitation::{self, Granted, Host, Invitation};

use crate::cli::WorkersCommand;
use crate::failure::{ExitCode, Failure};
use crate::fleet;
use crate::settings::IdentitySettings;

/// Does it; `print` gets what goes to stdout, at once.
///
/// # Errors
/// [`ExitCode::Setup`] with what to do.
pub async fn workers(
    command: &WorkersCommand,
    identity: &IdentitySettings,
    mut print: impl FnMut(&str),
) -> Result<ExitCode, Failure> {
    match command {
        WorkersCommand::Add { invitation, name } => {
            print(&add(invitation, name.as_deref(), identity).await?);
        }
        WorkersCommand::Invite { listen, address, valid } => {
            let known = known_workers()?;
            let key = fleet::own_key(identity).map_err(setup)?;
            let address = address.clone();
            let told = invite::invite(*listen, address, *valid, key, &known, &mut print).await?;
            print(&told);
        }
        WorkersCommand::Rm { worker } => print(&remove(worker)?),
    }
    Ok(ExitCode::Passed)
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
    let granted = invitation::take(invitation, &key, &our_name(), store).await.map_err(failed)?;
    let name = name.unwrap_or(&granted.name);
    Ok(format!("added {name} tcp://{address}#{theirs}\n"))
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
