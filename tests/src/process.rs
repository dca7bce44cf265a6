//! Processes that end with their owner.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A process of ours, killed and reaped when this is dropped.
pub struct Owned {
    child: Child,
    exited: Receiver<()>,
    status: Option<ExitStatus>,
}

impl Owned {
    /// Starts it.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let (sender, exited) = channel();
        let pid = Pid::from_raw(child.id().cast_signed());
        thread::spawn(move || {
            // Not reaped here: until its owner does so, nobody else can get its number.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
            let _ = sender.send(());
        });
        Ok(Self { child, exited, status: None })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard streams, as far as they are pipes that nobody took yet.
    pub fn streams(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal, unless its end is known already.
    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        }
    }

    /// Waits for its end; none if it doesn't come.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        if self.status.is_none()
            && self.exited.recv_timeout(within) != Err(RecvTimeoutError::Timeout)
        {
            self.status = Some(self.child.wait().expect("a child of ours can be reaped"));
        }
        self.status
    }
}

/// The lines of a process's output. Read whether anybody wants them or not, so that it never waits for
/// a reader.
pub fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        BufReader::new(output).lines().map_while(Result::ok).for_each(|line| {
            let _ = sender.send(line);
        });
    });
    lines
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if self.status.is_none() {
            let _ = self.child.wait();
        }
    }
}
