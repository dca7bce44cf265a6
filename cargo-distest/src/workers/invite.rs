//! Inviting a worker that will dial us.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distest_worker::accept::listen_hint;
use distest_worker::identity::{
    KnownWorker, KnownWorkers, Permission, Permissions, PrivateKey, PublicKey,
};
use distest_worker::invitation::{self, Guest, Host, Invitation, Invitations};
use distest_worker::serve::HalfOpen;
use distest_worker::tls::{self, Purpose, Trust};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{ls, our_name};
use crate::failure::{ExitCode, Failure};

/// Which invitation.
pub(super) struct Wanted {
    /// What our key may do on the worker.
    pub(super) permissions: Permissions,
    pub(super) listen: SocketAddr,
    /// Where the worker dials, if not there.
    pub(super) address: Option<String>,
    /// For how long it is good.
    pub(super) minutes: u32,
}

/// Prints an invitation and waits until it is taken; `hint` gets what to do with it, and then what to
/// do with the worker.
pub(super) async fn invite(
    wanted: Wanted,
    key: &PrivateKey,
    known: &Path,
    print: impl FnOnce(&str),
    hint: impl Fn(&str),
) -> Result<(), Failure> {
    let Wanted { permissions, listen, address, minutes } = wanted;
    let failed = |why: String| {
        Failure::new(ExitCode::Setup, format!("could not invite a worker to {listen}")).because(why)
    };
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let hint = listen_hint(&error).map(str::to_owned);
        Failure { hint, ..failed(error.to_string()) }
    })?;
    let bound = listener.local_addr().map_err(|error| failed(error.to_string()))?;
    let address = match address {
        Some(address) => address,
        None => distest_worker::serve::reachable(bound).to_string(),
    };
    let valid = Duration::from_secs(u64::from(minutes) * 60);
    let invitations = Arc::new(Invitations::default());
    let now = Instant::now();
    let secret = invitations.open(permissions.clone(), now, now + valid);
    let secret = secret.ok_or_else(|| failed("the system has no random numbers".to_owned()))?;
    let (host, ours) = (Host::Client, key.public());
    let told = before(&permissions, minutes);
    let may_exec = permissions.allow(Permission::Exec);
    let invitation = Invitation { host, address, key: ours, secret, permissions };
    print(&format!("{invitation}\n"));
    hint(&told);
    let taken = tokio::time::timeout(valid, taken(listener, key, &invitations, known)).await;
    let (name, key) = taken.map_err(|_| failed("nobody took the invitation in time".to_owned()))?;
    hint(&after(&name, &key, bound, may_exec));
    Ok(())
}

/// What to do with an invitation.
fn before(permissions: &Permissions, minutes: u32) -> String {
    let permit = match Permissions::usual().include(permissions) {
        true => String::new(),
        false => format!(" --permit {permissions}"),
    };
    format!(
        "on the machine that is to join: distest-worker join{permit} INVITATION\n\
         it is good once, for {minutes} minutes; this user may then {} there ({permissions})",
        permissions.in_words(),
    )
}

/// How to use a worker that has taken one.
fn after(name: &str, key: &PublicKey, bound: SocketAddr, may_exec: bool) -> String {
    let listen = format!("listen://{bound}");
    let command = match may_exec {
        true => format!("\na command there: cargo distest exec --worker {listen} --all -- CMD"),
        false => String::new(),
    };
    format!(
        "added {} {key}\n\
         run tests there: cargo distest run --worker {listen}\n\
         in each run:     DISTEST_WORKERS={listen}, or the same under `[fleet] workers` in \
         ~/.config/distest/config.toml{command}",
        ls::plain(name)
    )
}

/// The name and key of who has taken an invitation.
async fn taken(
    listener: TcpListener,
    key: &PrivateKey,
    invitations: &Arc<Invitations>,
    known: &Path,
) -> (String, PublicKey) {
    let half_open = HalfOpen::new();
    let mut guests = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, peer)) = listener.accept() => {
                let (key, known) = (key.clone(), known.to_owned());
                let invitations = Arc::clone(invitations);
                half_open.spawn(&mut guests, peer.ip(), move |place| async move {
                    let guest = receive(stream, &key, &invitations, &known).await;
                    drop(place);
                    guest
                });
            }
            Some(guest) = guests.join_next() => if let Ok(Some(guest)) = guest {
                return guest;
            },
        }
    }
}

async fn receive(
    stream: TcpStream,
    key: &PrivateKey,
    invitations: &Invitations,
    known: &Path,
) -> Option<(String, PublicKey)> {
    let anyone: Trust = Arc::new(|_| true);
    let secured = tls::accept(stream, key, |purpose| {
        let open = purpose == Purpose::Invitation && invitations.any(Instant::now());
        open.then(|| Arc::clone(&anyone))
    });
    let secured = secured.await.ok()?;
    let theirs = secured.key;
    let store = |guest: &Guest| {
        let worker = KnownWorker { address: "-".to_owned(), name: guest.name.clone() };
        KnownWorkers::remember(known, &theirs, &worker).map_err(|error| error.to_string())
    };
    let guest = invitation::grant(secured.stream, invitations, &our_name(), store).await.ok()?;
    Some((guest.name, theirs))
}
