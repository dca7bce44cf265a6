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

use super::our_name;
use crate::failure::{ExitCode, Failure};

/// Prints an invitation and waits until it is taken; answers what to say then.
pub(super) async fn invite(
    listen: SocketAddr,
    address: Option<String>,
    valid: u32,
    key: PrivateKey,
    known: &Path,
    print: &mut impl FnMut(&str),
) -> Result<String, Failure> {
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
    let valid = Duration::from_secs(u64::from(valid) * 60);
    let invitations = Arc::new(Invitations::default());
    // Our key, on the worker: it may run tests there and see what goes on.
    let permissions = Permissions::from_iter([Permission::Run, Permission::View]);
    let now = Instant::now();
    let secret = invitations.open(permissions.clone(), now, now + valid);
    let secret = secret.ok_or_else(|| failed("the system has no random numbers".to_owned()))?;
    let host = Host::Client;
    let invitation = Invitation { host, address, key: key.public(), secret, permissions };
    print(&format!("{invitation}\n"));
    let taken = tokio::time::timeout(valid, taken(listener, &key, &invitations, known)).await;
    taken.map_err(|_| failed("nobody took the invitation in time".to_owned()))
}

async fn taken(
    listener: TcpListener,
    key: &PrivateKey,
    invitations: &Arc<Invitations>,
    known: &Path,
) -> String {
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
            Some(guest) = guests.join_next() => if let Ok(Some((guest, key))) = guest {
                return format!("added {guest} {key}\n");
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
