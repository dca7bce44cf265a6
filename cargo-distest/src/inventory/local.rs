//! Lists binaries by running them on this machine.

use std::future::Future;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::protocol::Exit;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{LIST_BYTES_MAX, LIST_STDERR_BYTES_MAX, Lister, RawListing, failed};
use crate::compile::SECRET_VARIABLE;
use crate::failure::Failure;
use crate::model::TestBinary;

/// How long a list may take. A harness that ignores `--list` and waits for something would hang
/// the run forever.
const LIST_TIME_MAX: Duration = Duration::from_secs(300);
/// How long output may stay open when the binary and all of its process group are gone.
const OUTPUT_TIME_MAX: Duration = Duration::from_secs(5);

/// Runs a binary here, with the client's environment and the binary's own over it.
///
/// Whatever it starts is killed when it has ended, or when the future is dropped.
#[derive(Clone, Copy, Debug)]
pub struct LocalLister {
    /// How long one run may take.
    pub time_max: Duration,
}

impl Default for LocalLister {
    fn default() -> Self {
        Self { time_max: LIST_TIME_MAX }
    }
}

impl Lister for LocalLister {
    async fn run(&self, binary: &TestBinary, args: &[&str]) -> Result<RawListing, Failure> {
        let mut command = Command::new(&binary.executable);
        command
            .args(args)
            .current_dir(&binary.cwd)
            .envs(&binary.env)
            .env_remove(SECRET_VARIABLE)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let cannot = |error: io::Error| failed(binary, args).because(error);
        let child = command.spawn().map_err(cannot)?;
        match timeout(self.time_max, follow(child)).await {
            Ok(done) => done.map_err(cannot),
            Err(_) => Err(failed(binary, args)
                .because(format!("it did not end within {} s", self.time_max.as_secs()))),
        }
    }
}

async fn follow(mut child: Child) -> io::Result<RawListing> {
    let group = Group::of(&child);
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("its output is missing"));
    };
    let output = async {
        tokio::try_join!(
            read(stdout, LIST_BYTES_MAX, Overflow::Fails),
            read(stderr, LIST_STDERR_BYTES_MAX, Overflow::IsDropped),
        )
    };
    let mut output = std::pin::pin!(output);
    // Output must be read while the binary runs, and may stay open when it has ended.
    let (status, read) = tokio::select! {
        read = &mut output => {
            let read = read?;
            (child.wait().await?, Some(read))
        }
        status = child.wait() => (status?, None),
    };
    drop(group);
    let (stdout, stderr) = match read {
        Some(read) => read,
        None => output_after_exit(output).await?,
    };
    Ok(RawListing { exit: exit_of(status), stdout, stderr })
}

/// What is left in the pipes; nobody writes to them any more, unless a process got away.
async fn output_after_exit<T>(output: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(OUTPUT_TIME_MAX, output).await.unwrap_or_else(|_| {
        Err(io::Error::other("it ended, but a process that it started keeps its output open"))
    })
}

enum Overflow {
    Fails,
    IsDropped,
}

async fn read(
    mut stream: impl AsyncRead + Unpin,
    max: u64,
    overflow: Overflow,
) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    (&mut stream).take(max).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == max {
        match overflow {
            Overflow::Fails => {
                return Err(io::Error::other(format!("its list has {max} bytes or more")));
            }
            Overflow::IsDropped => {
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            }
        }
    }
    Ok(bytes.into())
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return Exit::Signal(signal);
    }
    Exit::Code(status.code().unwrap_or(-1))
}

/// A process group, killed on drop.
struct Group {
    #[cfg(unix)]
    leader: Option<nix::unistd::Pid>,
}

impl Group {
    #[cfg(unix)]
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok());
        Self { leader: leader.map(nix::unistd::Pid::from_raw) }
    }

    #[cfg(not(unix))]
    fn of(_: &Child) -> Self {
        Self {}
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // Usually there is nobody left to kill.
            nix::sys::signal::killpg(leader, nix::sys::signal::Signal::SIGKILL).ok();
        }
    }
}
