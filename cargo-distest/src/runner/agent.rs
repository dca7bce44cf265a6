//! The short-lived process that keeps workers' connections between calls.
//!
//! Started by a shim that finds none; ends when nobody has called for a while, or when its socket
//! is not its own any more.

use std::fs;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep_until};

use super::server::Server;
use super::{IDLE_VARIABLE, site};
use crate::failure::{ExitCode, Failure};
use crate::settings::Settings;

/// How long nobody may call before an agent ends.
const IDLE: Duration = Duration::from_secs(60);

/// Listens at `socket` and serves calls until nobody calls any more. Says `ready` on stdout when it
/// listens, or why it can't, and then closes it.
///
/// # Errors
/// It can't listen.
pub async fn run(socket: &Path) -> Result<ExitCode, Failure> {
    let listening = listen(socket).await;
    let said = match &listening {
        Ok(_) => "ready".to_owned(),
        Err(failure) => failure.to_string(),
    };
    let mut stdout = io::stdout();
    // Whoever started it may have gone.
    let _ = stdout.write_all(said.as_bytes()).and_then(|()| stdout.flush());
    close_stdout();
    let Listening { listener, own, settings } = listening?;
    let server = Arc::new(Server::new(settings));
    let idle = std::env::var(IDLE_VARIABLE).ok().and_then(|text| text.parse().ok());
    let idle = idle.map_or(IDLE, Duration::from_secs);
    let mut busy = server.busy();
    let mut until = Instant::now() + idle;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that fails before it is one is its caller's to tell.
                if let Ok((stream, _)) = accepted {
                    let server = Arc::clone(&server);
                    tokio::spawn(async move { server.serve(stream).await });
                }
            }
            _ = busy.changed() => until = Instant::now() + idle,
            () = sleep_until(until), if *busy.borrow() == 0 => break,
        }
    }
    // Nobody finds it any more; who has found it already learns from the closed connection.
    if fs::metadata(socket).is_ok_and(|metadata| metadata.ino() == own) {
        let _ = fs::remove_file(socket);
    }
    Ok(ExitCode::Passed)
}

struct Listening {
    listener: UnixListener,
    /// The socket's inode.
    own: u64,
    settings: Settings,
}

async fn listen(socket: &Path) -> Result<Listening, Failure> {
    let fail = |error: io::Error| {
        let what = format!("could not listen at {}", socket.display());
        Failure::new(ExitCode::Setup, what).because(error)
    };
    let settings = site::settings_here()?.settings;
    umask(Mode::from_bits_truncate(0o077));
    // Under its name there is always a socket that somebody listens at, or none.
    let new = PathBuf::from(format!("{}.new", socket.display()));
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(fail)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    fs::rename(&new, socket).map_err(fail)?;
    let own = fs::metadata(socket).map_err(fail)?.ino();
    Ok(Listening { listener, own, settings })
}

/// Gives up what a shim's own parents left open (cargo's job server, pipes of a test runner), so
/// that nobody waits for their end as long as the agent lives. Must come before anything is opened.
pub fn forget_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inherited: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
    for number in inherited {
        // The folder's own descriptor is among them, and closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Points standard output at nothing, so that its reader sees the end.
fn close_stdout() {
    if let Ok(null) = fs::File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}
