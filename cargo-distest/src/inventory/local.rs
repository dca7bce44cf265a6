//! Lists binaries by running them on this machine.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use distest_worker::pipes;
use distest_worker::protocol::Exit;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{LIST_BYTES_MAX, LIST_STDERR_BYTES_MAX, Lister, RawListing, failed};
use crate::compile::SECRET_VARIABLE;
use crate::failure::Failure;
use crate::model::TestBinary;

/// How long a list may take. A harness that ignores `--list` and waits for something would hang
/// the run forever.
const LIST_TIME_MAX: Duration = Duration::from_secs(300);
/// How long what is printed lies in its pipe before it is read.
const REST: Duration = Duration::from_millis(1);
/// The most bytes read at once: what a pipe holds.
const READ_BYTES_MAX: usize = 64 * 1024;
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
            .process_group(0)
            .kill_on_drop(true);
        match timeout(self.time_max, follow(command)).await {
            Ok(done) => done.map_err(|error| failed(binary, args).because(error)),
            Err(_) => Err(failed(binary, args)
                .because(format!("it did not end within {} s", self.time_max.as_secs()))),
        }
    }
}

async fn follow(mut command: Command) -> io::Result<RawListing> {
    let ((stdout, its_stdout), (stderr, its_stderr)) = (pipes::output()?, pipes::output()?);
    let mut child = command.stdout(its_stdout).stderr(its_stderr).spawn()?;
    // Ours of its ends would keep the pipes open.
    drop(command);
    let group = Group::of(&child);
    let ended = watch::Sender::new(false);
    let output = async {
        tokio::try_join!(
            read(stdout, LIST_BYTES_MAX, Overflow::Fails, ended.subscribe()),
            read(stderr, LIST_STDERR_BYTES_MAX, Overflow::IsDropped, ended.subscribe()),
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
    ended.send_replace(true);
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

/// Reads a pipe to its end. Lines come one by one and each would wake the client, so they lie there
/// for a while, unless the process has `ended`.
async fn read(
    pipe: OwnedFd,
    max: u64,
    overflow: Overflow,
    mut ended: watch::Receiver<bool>,
) -> io::Result<Bytes> {
    let mut buffer = vec![0; READ_BYTES_MAX];
    let mut bytes = Vec::new();
    let mut rests = true;
    loop {
        pipes::readable(&pipe).await?;
        if rests {
            let _ = timeout(REST, ended.wait_for(|ended| *ended)).await;
        }
        let length = match nix::unistd::read(&pipe, &mut buffer) {
            Ok(0) => return Ok(bytes.into()),
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let room = usize::try_from(max).unwrap_or(usize::MAX) - bytes.len();
        bytes.extend_from_slice(&buffer[..length.min(room)]);
        if length >= room && matches!(overflow, Overflow::Fails) {
            return Err(io::Error::other(format!("its list has {max} bytes or more")));
        }
        // Whoever fills half of the pipe in a rest would soon have to wait for its reader.
        rests = length * 2 < READ_BYTES_MAX;
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match status.signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.code().unwrap_or(-1)),
    }
}

/// A process group, killed on drop.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Usually there is nobody left to kill.
            killpg(leader, Signal::SIGKILL).ok();
        }
    }
}
