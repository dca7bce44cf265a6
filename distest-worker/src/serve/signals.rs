//! The signals that ask a process to end.

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{self, SignalKind};

use crate::server::WorkerShared;

/// The thread that took a signal has told the runtime by then, also on a busy machine.
const MOMENT: Duration = Duration::from_millis(50);

/// SIGINT and SIGTERM.
pub(crate) struct Signals([unix::Signal; 2]);

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// SIGINT: to end.
    End,
    /// SIGTERM: to finish what runs, and to end; the second time to end.
    Drain,
}

impl Asked {
    /// Asks a worker.
    pub(crate) fn of(self, worker: &WorkerShared) {
        match self {
            Self::End => worker.shut_down(),
            Self::Drain => worker.drain(),
        }
    }
}

impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        let listen = |kind| unix::signal(kind);
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?]))
    }

    pub(crate) async fn next(&mut self) -> Asked {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => Asked::End,
            _ = terminate.recv() => Asked::Drain,
        }
    }

    /// While what drains comes to its end, or until it is told to hurry.
    pub(crate) async fn hurry(&mut self, ended: impl Future<Output = ()>) {
        tokio::select! {
            () = ended => {}
            _ = self.next() => {}
        }
    }

    /// From now on they end this process, as they end others, and are heard of no more: for when it
    /// is about to execute something else, which begins like that. Answers whether one had come.
    pub(crate) async fn let_go(mut self) -> bool {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            #[expect(unsafe_code, reason = "nix says so of all that changes what a signal does")]
            // SAFETY: no handler is installed, one is taken out, which nothing else relies on.
            let changed = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
            // It is a signal that can be caught.
            debug_assert!(changed.is_ok());
        }
        // The runtime has looked at what came before by the time that any later moment has come.
        tokio::time::timeout(MOMENT, self.next()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Lines, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;

    /// Set for a process that is to be signalled.
    const SUBJECT: &str = "DISTEST_SIGNALS_SUBJECT";

    /// Says what it does, each time that it is told to go on.
    fn subject() {
        let step = |said: &str| {
            let mut stdout = std::io::stdout();
            writeln!(stdout, "it {said}").unwrap();
            stdout.flush().unwrap();
            std::io::stdin().read_line(&mut String::new()).unwrap();
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let signals = Signals::listen().unwrap();
            step("listens");
            let heard = signals.let_go().await;
            step(if heard { "has heard one" } else { "has heard none" });
        });
    }

    struct Subject {
        child: Child,
        lines: Lines<BufReader<ChildStdout>>,
    }

    impl Subject {
        fn start() -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "serve::signals::tests::none_is_lost"])
                .env(SUBJECT, "")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut this = Self { child, lines };
            this.says("it listens");
            this
        }

        #[track_caller]
        fn says(&mut self, expected: &str) {
            // Beside what the harness says.
            let said = self.lines.find(|line| line.as_ref().is_ok_and(|it| it.contains("it ")));
            let said = said.expect("it says something").unwrap();
            assert!(said.ends_with(expected), "{said}");
        }

        fn go_on(&mut self) {
            self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        }

        /// Sends a signal, and waits until one of the process's threads has taken it, or it has ended.
        fn signal(&self, signal: Signal) {
            let pid = self.child.id();
            kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
            let pending = || {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                if status.contains("\nState:\tZ") {
                    return None;
                }
                let mask = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"))?;
                let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
                Some(mask & (1 << (signal as i32 - 1)) != 0)
            };
            while pending() == Some(true) {
                std::thread::yield_now();
            }
        }

        fn end(mut self) -> ExitStatus {
            self.child.wait().unwrap()
        }
    }

    #[test]
    fn none_is_lost() {
        if std::env::var_os(SUBJECT).is_some() {
            return subject();
        }
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut before = Subject::start();
            before.signal(signal);
            before.go_on();
            before.says("it has heard one");
            before.go_on();
            assert!(before.end().success());
            let mut after = Subject::start();
            after.go_on();
            after.says("it has heard none");
            after.signal(signal);
            assert_eq!(after.end().signal(), Some(signal as i32));
        }
    }
}
