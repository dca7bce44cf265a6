//! The small helper process that starts attempts and clears up after them.
//!
//! One per slot, single-threaded, the same executable under a hidden word. It starts one attempt
//! at a time and adopts whatever that attempt leaves behind (it is a child subreaper), so that it
//! knows when all of it has ended and can end the rest. When its socket closes, because its worker
//! ended in whatever way, it kills everything it started and leaves.
//!
//! Being small and without threads is the point: starting a process costs the same however large
//! the worker is, and a [sandbox](crate::sandbox::enclosure) (namespaces, which need a single
//! thread) is entered once, by the first request, for many attempts. In a pid namespace the zygote
//! is pid 1, and what a test leaves behind has nowhere to go. Linux only.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::protocol::{AttemptId, AttemptSignal, Exit, LIMIT_MAX, Network, Usage};
use crate::sandbox::changes::{Stamp, is_nearly_full};
use crate::sandbox::enclosure::{self, Enclosure, Entered, Obstacle, bubblewrap};
use deadline::{Left, Seen};
use launch::Launcher;
use listen::Places;
use processes::{descendants, kill_all};
use template::Templates;
use wire::{Answer, Exited, Inbox, Received, Request, SpawnStep};

pub(crate) mod deadline;
mod launch;
mod listen;
pub(crate) mod processes;
mod reap;
#[cfg_attr(not(target_arch = "x86_64"), path = "zygote/no_template.rs")]
mod template;
pub(crate) mod wire;

/// The first argument that makes an executable of ours a zygote.
pub const ZYGOTE_WORD: &str = "--distest-zygote";
/// How long processes may take to vanish after SIGKILL before the zygote gives up on them and on
/// itself. Some can't be killed: those that became another user's, or hang in the kernel.
pub(crate) const CLEAR_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for killed processes before looking for ones that were forked meanwhile.
const KILL_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// How long an attempt may run before the deadline is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long an attempt must run before the worker is told that it has started: most have ended by
/// then, and the worker is woken once instead of twice.
const SAY_AFTER: Duration = Duration::from_millis(2);
/// A deadline that is seen to have passed this late says that this process stood still, and perhaps the
/// whole machine.
const STOOD_STILL: Duration = Duration::from_millis(500);
/// How long a worker may then take to say more.
const CATCH_UP: Duration = Duration::from_millis(300);
/// The most processes of a leak that are named.
const LEAK_NAMES_MAX: usize = 100;

/// How to start a zygote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZygoteProgram {
    /// An executable whose `main` calls [`enter_if_asked`] first.
    pub program: PathBuf,
    /// Its arguments, [`ZYGOTE_WORD`] first.
    pub args: Vec<OsString>,
}

impl ZygoteProgram {
    /// This process's own executable, even if its file has been replaced since.
    pub fn this_executable() -> Self {
        Self::new("/proc/self/exe")
    }

    /// Another executable whose `main` calls [`enter_if_asked`].
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: vec![ZYGOTE_WORD.into()] }
    }

    /// The command that starts it on `socket`, out of reach of the terminal's signals.
    pub(crate) fn command(&self, socket: OwnedFd) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).process_group(0).stdin(Stdio::from(socket)).stdout(Stdio::null());
        command
    }

    /// Starts it on `socket` in a sandbox, by another program that makes that, after a last word
    /// about the command. What comes with it is to be dropped when it has ended.
    ///
    /// # Errors
    /// The program can't be started, or a folder of this machine not be read.
    pub(crate) fn start_inside<T>(
        &self,
        socket: OwnedFd,
        enclosure: &Enclosure,
        spawn: impl FnOnce(std::process::Command) -> io::Result<T>,
    ) -> io::Result<(T, TempDir)> {
        let (arguments, own) = bubblewrap::prepare(enclosure)?;
        let executable = File::open(&self.program)?;
        // Its path means nothing inside. Who else inherits it is one of these and closes it.
        fcntl(&executable, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut command = std::process::Command::new(bubblewrap::PROGRAM);
        command
            .args(arguments)
            .arg(format!("/proc/self/fd/{}", executable.as_raw_fd()))
            .args(&self.args);
        command.process_group(0).stdin(Stdio::from(socket)).stdout(Stdio::null());
        let spawned = spawn(command)?;
        drop(executable);
        Ok((spawned, own))
    }
}

/// Becomes a zygote, and never returns, if this process was started as one. Must come first in the
/// `main` of every executable that runs a worker.
pub fn enter_if_asked() {
    if std::env::args_os().nth(1).is_none_or(|word| word != ZYGOTE_WORD) {
        return;
    }
    let code = match Zygote::settle().and_then(Zygote::serve) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "distest: the helper process gave up: {error}");
            1
        }
    };
    std::process::exit(code);
}

/// Where memory runs out, what the kernel ends is a test (they inherit this), not the worker. It is
/// the test and not this process, which is small. Where that can't be said, it isn't.
fn first_to_go() {
    const FILE: &str = "/proc/self/oom_score_adj";
    const SCORE: i32 = 500;
    let score = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse().ok());
    if score.is_some_and(|score: i32| score < SCORE) {
        let _ = std::fs::write(FILE, SCORE.to_string());
    }
}

struct Zygote {
    signals: SignalFd,
    inbox: Inbox,
    launcher: Launcher,
    /// The sandbox that it is in.
    entered: Option<Entered>,
    current: Option<Attempt>,
    /// How long attempts may run.
    deadline: Option<Seen>,
    /// It has ended long ago, but may be renewed until then.
    catching_up: Option<Instant>,
    /// The worker is gone: nothing is answered any more, and nothing may stay.
    closing: bool,
}

/// The attempt that runs, or of which something is left.
struct Attempt {
    id: AttemptId,
    pid: Pid,
    started: Instant,
    leak_timeout: Duration,
    usage: Usage,
    /// That it runs, which has not been said yet.
    unsaid: Option<Answer>,
    /// Set once the attempt's own process has ended.
    end: Option<(Exit, Duration)>,
    stage: Stage,
    left: Vec<String>,
    /// Its executable, as it was before, where only this sandbox sees what it writes.
    executable: Option<Executable>,
    /// Where it finds the client's services.
    _places: Places,
}

/// An executable in a sandbox whose writes are discarded.
struct Executable {
    path: CString,
    /// None: it can't be seen.
    stamp: Option<Stamp>,
}

/// How far clearing up is.
#[derive(Clone, Copy)]
enum Stage {
    /// The attempt's own process runs.
    Running,
    /// It has ended; others may until then.
    Leaving { until: Instant },
    /// SIGKILL has been sent; if something is still there at `next`, again, and at `until` not
    /// any more.
    Clearing { next: Instant, until: Instant },
}

impl Zygote {
    /// Makes this process a zygote.
    fn settle() -> io::Result<Self> {
        use nix::sys::socket::{SockType, getsockopt, sockopt::SockType as SockTypeOf};
        let kind = getsockopt(&socket(), SockTypeOf);
        if kind != Ok(SockType::SeqPacket) {
            let message = format!("{ZYGOTE_WORD} is for the worker's own use only");
            return Err(io::Error::other(message));
        }
        launch::forget_inherited();
        first_to_go();
        SigSet::all().thread_block()?;
        let signals = SignalFd::with_flags(
            &SigSet::from(Signal::SIGCHLD),
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )?;
        nix::sys::prctl::set_child_subreaper(true)?;
        nix::sys::prctl::set_name(c"distest-zygote")?;
        let (inbox, launcher) = (Inbox::new(), Launcher::new());
        Ok(Self {
            signals,
            inbox,
            launcher,
            entered: None,
            current: None,
            deadline: None,
            catching_up: None,
            closing: false,
        })
    }

    /// Serves requests until the worker is gone.
    fn serve(mut self) -> io::Result<()> {
        while !(self.closing && self.current.is_none()) {
            let (signalled, asked) = self.wait()?;
            if signalled {
                self.take_signal()?;
            }
            if asked && !self.closing {
                self.take_request()?;
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Waits for a child's end, for a request, or for the time to do something.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let left_until = |at: Instant| at.saturating_duration_since(Instant::now());
        let left = match self.current.as_ref().map(|attempt| attempt.stage) {
            None => None,
            Some(Stage::Running) => match self.catching_up {
                Some(until) => Some(left_until(until)),
                None => self.deadline.as_ref().map(|deadline| match deadline.left() {
                    Some(Left::Yet(left)) => left.min(LOOK_AGAIN),
                    Some(Left::EndedFor(_)) => Duration::ZERO,
                    // There may be one soon.
                    None => LOOK_AGAIN,
                }),
            },
            Some(Stage::Leaving { until: next } | Stage::Clearing { next, .. }) => {
                Some(left_until(next))
            }
        };
        let unsaid = self.current.as_ref().filter(|attempt| attempt.unsaid.is_some());
        let unsaid = unsaid.map(|attempt| left_until(attempt.started + SAY_AFTER));
        let left = left.into_iter().chain(unsaid).min();
        // Rounded up, so that the time has come when the poll ends.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let worker = socket();
        let mut watched = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(worker, PollFlags::POLLIN),
        ];
        // The socket of a vanished worker is always ready.
        let watched = if self.closing { &mut watched[..1] } else { &mut watched[..] };
        match poll(watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = |index: usize| watched.get(index).is_some_and(|one| one.any() == Some(true));
        Ok((ready(0), ready(1)))
    }

    fn take_request(&mut self) -> io::Result<()> {
        match self.inbox.receive(socket()) {
            Received::Nothing => {}
            Received::End => self.close(),
            Received::Broken(errno) => self
                .answer(&Answer::CouldNotSpawn { step: SpawnStep::Receive, errno: errno as i32 })?,
            Received::Request(Request::Spawn(_), _) if self.current.is_some() => {
                self.answer(&Answer::CouldNotSpawn {
                    step: SpawnStep::Receive,
                    errno: Errno::EBUSY as i32,
                })?;
            }
            Received::Request(Request::Spawn(spawn), descriptors) => {
                if spawn.network == Network::Private
                    && let Err(obstacle) = self.enter_private_network()
                {
                    let (step, errno) = (SpawnStep::Network, obstacle.errno);
                    return self.answer(&Answer::CouldNotSpawn { step, errno });
                }
                let (listeners, places) =
                    match listen::listen(&spawn.forwards, self.entered.as_ref()) {
                        Ok(listening) => listening,
                        Err(errno) => {
                            let (step, errno) = (SpawnStep::Forward, errno as i32);
                            return self.answer(&Answer::CouldNotSpawn { step, errno });
                        }
                    };
                let started = Instant::now();
                let writes_apart = self.entered.as_ref().is_some_and(|it| it.written.is_some());
                let executable = writes_apart.then(|| Executable::of(&spawn));
                let fenced = self.entered.as_ref().is_some_and(|entered| entered.fences);
                match self.launcher.launch(&spawn, descriptors, fenced) {
                    Ok(pid) => {
                        if spawn.patient {
                            launch::make_patient(pid);
                        }
                        let mut attempt = Attempt::new(&spawn, pid, started, executable, places);
                        let pid = (!is_first_process()).then_some(pid.as_raw());
                        let descriptors: Vec<RawFd> =
                            listeners.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
                        let forwards = listeners.iter().map(|(number, _)| *number).collect();
                        let spawned = Answer::Spawned { pid, forwards };
                        if descriptors.is_empty() {
                            attempt.unsaid = Some(spawned);
                        } else {
                            // Whoever connects waits for the worker.
                            self.answer_with(&spawned, &descriptors)?;
                        }
                        self.current = Some(attempt);
                    }
                    Err((step, errno)) => {
                        self.answer(&Answer::CouldNotSpawn { step, errno: errno as i32 })?;
                    }
                }
            }
            Received::Request(Request::Enter(enclosure), _) => self.enter(&enclosure)?,
            Received::Request(Request::TryNetwork, _) => match enclosure::enter_private_network() {
                Ok(()) => self.answer(&Answer::Entered)?,
                Err(obstacle) => self.refuse(obstacle)?,
            },
            Received::Request(Request::Terminate(id), _) => {
                self.signal(id, AttemptSignal::Terminate);
            }
            Received::Request(Request::Signal(id, signal), _) => self.signal(id, signal),
            Received::Request(Request::Deadline, memory) => {
                self.deadline = memory.into_iter().next().map(Seen::new);
            }
            Received::Request(Request::AreYouAlive, _) => self.answer(&Answer::Alive)?,
            Received::Request(Request::Kill(id), _) => {
                if let Some(attempt) = self.current.as_mut().filter(|attempt| attempt.id == id) {
                    attempt.kill(&self.launcher.templates);
                }
            }
        }
        Ok(())
    }

    fn signal(&mut self, id: AttemptId, signal: AttemptSignal) {
        let Some(attempt) = self.current.as_mut().filter(|attempt| attempt.id == id) else {
            return;
        };
        let signal = match signal {
            AttemptSignal::Hangup => Signal::SIGHUP,
            AttemptSignal::Interrupt => Signal::SIGINT,
            AttemptSignal::Quit => Signal::SIGQUIT,
            AttemptSignal::Terminate => Signal::SIGTERM,
            AttemptSignal::User1 => Signal::SIGUSR1,
            AttemptSignal::User2 => Signal::SIGUSR2,
            AttemptSignal::Kill => return attempt.kill(&self.launcher.templates),
        };
        // Only while its leader is unreaped is the group surely this attempt's.
        if attempt.end.is_none() {
            let _ = killpg(attempt.pid, signal);
        }
    }

    /// Enters a sandbox. Where that takes another process, only that one returns.
    fn enter(&mut self, enclosure: &Enclosure) -> io::Result<()> {
        // The worker must see the end of the process that serves it.
        let leave_socket = || {
            if let Ok(nothing) = std::fs::File::open("/dev/null") {
                let _ = nix::unistd::dup2_stdin(nothing);
            }
        };
        match enclosure::enter(enclosure, leave_socket) {
            Ok(entered) => {
                let descriptor = entered.written.as_ref().map(AsRawFd::as_raw_fd);
                self.entered = Some(entered);
                self.answer_with(&Answer::Entered, descriptor.as_slice())
            }
            Err(obstacle) => self.refuse(obstacle),
        }
    }

    /// Leaves this network for a new one.
    fn enter_private_network(&mut self) -> Result<(), Obstacle> {
        enclosure::enter_private_network()?;
        if let Some(entered) = self.entered.as_mut().filter(|entered| entered.written.is_some()) {
            // Where it can't be, `/sys` names the machine's interfaces as it did before.
            entered.shows_interfaces = enclosure::show_interfaces(entered.shows_interfaces).is_ok();
        }
        Ok(())
    }

    fn refuse(&mut self, obstacle: Obstacle) -> io::Result<()> {
        self.answer(&Answer::CouldNotEnter(obstacle))?;
        self.close();
        Ok(())
    }

    fn take_signal(&mut self) -> io::Result<()> {
        // One stands for all: the kernel keeps one SIGCHLD at most, and poll tells of the next.
        self.signals.read_signal()?;
        self.reap()
    }

    /// Takes in the ends of children, until none is left or those that are left still run.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            match reap::wait_any()? {
                reap::Waited::Ended { pid, exit, usage } => {
                    if !self.launcher.templates.take_end(pid)
                        && let Some(attempt) = self.current.as_mut()
                    {
                        attempt.take_end(pid, exit, usage);
                    }
                }
                reap::Waited::StillRunning if self.is_something_left() => return Ok(()),
                reap::Waited::StillRunning | reap::Waited::NoChildren => {
                    return match self.current.take() {
                        Some(Attempt {
                            end: Some(end), usage, left, executable, unsaid, ..
                        }) => {
                            self.say(unsaid)?;
                            self.answer_exit(end, usage, left, executable.as_ref())
                        }
                        Some(_) => Err(io::Error::other("a child vanished without a trace")),
                        None => Ok(()),
                    };
                }
            }
        }
    }

    /// Whether children that still run are an attempt's.
    fn is_something_left(&self) -> bool {
        let has_ended = self.current.as_ref().is_some_and(|attempt| attempt.end.is_some());
        !(has_ended && self.launcher.templates.are_all_children())
    }

    /// Does what the time asks for.
    fn advance(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let is_due = |attempt: &&mut Attempt| now >= attempt.started + SAY_AFTER;
        let unsaid = self.current.as_mut().filter(is_due).and_then(|it| it.unsaid.take());
        self.say(unsaid)?;
        let Some(attempt) = self.current.as_mut() else { return Ok(()) };
        match attempt.stage {
            Stage::Leaving { until } if now >= until => {
                let templates = &self.launcher.templates;
                attempt.left = templates
                    .all_but_them(descendants(own_pid()))
                    .into_iter()
                    .take(LEAK_NAMES_MAX)
                    .map(|process| format!("{} (pid {})", process.name, process.pid))
                    .collect();
                attempt.kill(&self.launcher.templates);
            }
            Stage::Clearing { until, .. } if now >= until => return self.give_up(),
            Stage::Clearing { next, .. } if now >= next => attempt.kill(&self.launcher.templates),
            Stage::Running => self.watch_deadline(now),
            Stage::Leaving { .. } | Stage::Clearing { .. } => {}
        }
        Ok(())
    }

    /// Leaves when the worker has let the deadline pass: whoever gave it the attempt has given it to
    /// others by now, or is about to.
    fn watch_deadline(&mut self, now: Instant) {
        match self.deadline.as_ref().and_then(Seen::left) {
            None | Some(Left::Yet(_)) => self.catching_up = None,
            Some(Left::EndedFor(late)) => match self.catching_up {
                None if late > STOOD_STILL => self.catching_up = Some(now + CATCH_UP),
                Some(until) if now < until => {}
                None | Some(_) => self.close(),
            },
        }
    }

    /// Leaves behind what can't be killed. The worker starts a zygote that doesn't know of it.
    fn give_up(&mut self) -> io::Result<()> {
        if let Some(Attempt { end: Some(end), usage, left, executable, .. }) = self.current.take() {
            self.answer_exit(end, usage, left, executable.as_ref())?;
        }
        self.current = None;
        self.closing = true;
        Ok(())
    }

    fn close(&mut self) {
        self.closing = true;
        if let Some(attempt) = self.current.as_mut() {
            attempt.kill(&self.launcher.templates);
        }
    }

    fn say(&mut self, unsaid: Option<Answer>) -> io::Result<()> {
        unsaid.map_or(Ok(()), |spawned| self.answer(&spawned))
    }

    fn answer_exit(
        &mut self,
        (exit, duration): (Exit, Duration),
        usage: Usage,
        left: Vec<String>,
        executable: Option<&Executable>,
    ) -> io::Result<()> {
        let written = self.entered.as_ref().and_then(|entered| entered.written.as_ref());
        let spent =
            written.is_some_and(is_nearly_full) || executable.is_some_and(Executable::has_changed);
        self.answer(&Answer::Exited(Exited { exit, duration, usage, left, spent }))
    }

    fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        self.answer_with(answer, &[])
    }

    fn answer_with(&mut self, answer: &Answer, descriptors: &[RawFd]) -> io::Result<()> {
        if self.closing {
            return Ok(());
        }
        if wire::send_answer(socket(), &wire::encode(answer)?, descriptors).is_err() {
            self.close();
        }
        Ok(())
    }
}

impl Executable {
    fn of(spawn: &wire::Spawn) -> Self {
        // One with a zero byte has been started by nobody.
        let path = CStr::from_bytes_with_nul(&spawn.program).unwrap_or_default().to_owned();
        Self { stamp: Stamp::at(&path), path }
    }

    /// Who comes next would run what the attempt left, or find nothing to run.
    fn has_changed(&self) -> bool {
        Stamp::at(&self.path) != self.stamp
    }
}

impl Attempt {
    fn new(
        spawn: &wire::Spawn,
        pid: Pid,
        started: Instant,
        executable: Option<Executable>,
        places: Places,
    ) -> Self {
        Self {
            executable,
            id: spawn.attempt,
            pid,
            started,
            leak_timeout: spawn.leak_timeout,
            usage: Usage::default(),
            unsaid: None,
            end: None,
            stage: Stage::Running,
            left: Vec::new(),
            _places: places,
        }
    }

    /// Takes in the end of one of its processes.
    fn take_end(&mut self, pid: Pid, exit: Exit, usage: Usage) {
        self.usage.user += usage.user;
        self.usage.system += usage.system;
        self.usage.memory_bytes = self.usage.memory_bytes.max(usage.memory_bytes);
        if pid == self.pid {
            let now = Instant::now();
            self.end = Some((exit, now - self.started));
            if let Stage::Running = self.stage {
                self.stage = Stage::Leaving { until: now + self.leak_timeout.min(LIMIT_MAX) };
            }
        }
    }

    /// Kills all there is of it now, and sets when to look again.
    fn kill(&mut self, templates: &Templates) {
        if self.end.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        if is_first_process() {
            // Everyone in the namespace but this process: nothing can fork itself out of reach.
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        } else {
            kill_all(&templates.all_but_them(descendants(own_pid())));
        }
        let now = Instant::now();
        let until = match self.stage {
            Stage::Clearing { until, .. } => until,
            Stage::Running | Stage::Leaving { .. } => now + CLEAR_PATIENCE,
        };
        self.stage = Stage::Clearing { next: now + KILL_AGAIN_AFTER, until };
    }
}

/// The worker's end is at the other end of standard input.
fn socket() -> BorrowedFd<'static> {
    static STDIN: std::sync::LazyLock<io::Stdin> = std::sync::LazyLock::new(io::stdin);
    STDIN.as_fd()
}

/// Whether this process is pid 1 of a namespace, which then is a sandbox's: no worker starts its
/// helper processes as such.
fn is_first_process() -> bool {
    own_pid() == 1
}

fn own_pid() -> i32 {
    Pid::this().as_raw()
}
