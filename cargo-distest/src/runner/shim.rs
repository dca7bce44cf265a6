//! What cargo starts: stands for the executable that runs elsewhere.
//!
//! Synchronous and without a runtime, because it is started once for each executable. Signals are
//! blocked in all its threads and taken by one of them, which passes them on; how the executable
//! ended is how this process ends, by a signal too.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use distest_worker::protocol::{AttemptSignal, Exit};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::unistd::getppid;

use super::SOCKET_VARIABLE;
use super::connect::{self, Server};
use super::wire::{Call, FromShim, Refused, STDIN_BYTES_MAX, ToShim, Variable};
use crate::compile::SECRET_VARIABLE;
use crate::failure::{ExitCode, Failure};
use distest_worker::shown;

/// Signals that are passed on, by what they mean.
const PASSED_ON: [(Signal, AttemptSignal); 6] = [
    (Signal::SIGHUP, AttemptSignal::Hangup),
    (Signal::SIGINT, AttemptSignal::Interrupt),
    (Signal::SIGQUIT, AttemptSignal::Quit),
    (Signal::SIGTERM, AttemptSignal::Terminate),
    (Signal::SIGUSR1, AttemptSignal::User1),
    (Signal::SIGUSR2, AttemptSignal::User2),
];

/// Tells a merged doctest where its own executable lies, so that it gives each case a process of
/// its own. rustdoc itself says so only where no runner is in the way; without it, one case that
/// exits with 0 hides all that fail.
pub const DOCTEST_PATH_VARIABLE: &str = "RUSTDOC_DOCTEST_BIN_PATH";

/// Runs an executable on the fleet, or here if there is none, and ends as it ended.
///
/// # Errors
/// It could not be run, or came to no end.
pub fn run(program: &OsStr, args: &[OsString]) -> Result<ExitCode, Failure> {
    let program = absolute(program)?;
    let server = match std::env::var_os(SOCKET_VARIABLE) {
        Some(path) => Ok(Server::At(PathBuf::from(path))),
        None => connect::agent()?,
    };
    let server = match server {
        Ok(server) => server,
        Err(why) => {
            tell_run_here(why, &program);
            return Err(run_here(&program, args));
        }
    };
    let call = call(&program, args)?;
    // Before any thread is there, so that all of them block these signals.
    let blocked = passed_on();
    blocked.thread_block().map_err(|error| failed("could not block signals", error.into()))?;
    let stream = server.call(&FromShim::Call(Box::new(call)))?;
    match follow(stream)? {
        End::Exited(Exit::Code(code)) => std::process::exit(code),
        End::Exited(Exit::Signal(signal)) => Err(die_by(signal)),
        End::RunHere(why) => {
            tell_run_here(why.as_deref(), &program);
            let _ = blocked.thread_unblock();
            Err(run_here(&program, args))
        }
        End::Failed(Refused { code, what, hint }) => {
            say(&format!("error: {what}"));
            if let Some(hint) = hint {
                say(&format!("hint: {hint}"));
            }
            std::process::exit(i32::from(code))
        }
    }
}

enum End {
    Exited(Exit),
    RunHere(Option<String>),
    Failed(Refused),
}

/// Stands for the executable until its end.
fn follow(mut stream: UnixStream) -> Result<End, Failure> {
    let lost = |error| {
        failed("could not follow the executable: the agent is gone", error)
            .hint("run it again; the executable may have run")
    };
    let writer = stream.try_clone().map_err(lost)?;
    let writer = Arc::new(Mutex::new(writer));
    let (wanted, asked) = sync_channel(1);
    let (for_signals, for_stdin) = (Arc::clone(&writer), Arc::clone(&writer));
    thread::spawn(move || pass_signals(&for_signals));
    thread::spawn(move || pass_stdin(&for_stdin, &asked));
    loop {
        let frame = ToShim::read(&mut stream).map_err(lost)?;
        let end = match frame {
            None => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Some(ToShim::WantsStdin) => {
                // The thread takes one at a time, and is asked for one at a time.
                let _ = wanted.try_send(());
                continue;
            }
            Some(ToShim::Stdout(data)) => {
                show(&data, &mut io::stdout().lock());
                continue;
            }
            Some(ToShim::Stderr(data)) => {
                show(&data, &mut io::stderr().lock());
                continue;
            }
            Some(ToShim::Exited(exit)) => End::Exited(exit),
            Some(ToShim::RunHere(why)) => End::RunHere(why),
            Some(ToShim::Failed(refused)) => End::Failed(refused),
        };
        return Ok(end);
    }
}

/// Writes what the executable wrote. Where its reader is gone the executable would have died by
/// SIGPIPE or met an error; so this process dies, and with it its call.
fn show(data: &[u8], to: &mut impl Write) {
    if let Err(error) = to.write_all(data).and_then(|()| to.flush())
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        die_by(Signal::SIGPIPE as i32);
    }
}

fn pass_signals(writer: &Mutex<UnixStream>) {
    let signals = passed_on();
    while let Ok(signal) = signals.wait() {
        let Some((_, meaning)) = PASSED_ON.iter().find(|(one, _)| *one == signal) else { continue };
        send(writer, &FromShim::Signal(*meaning));
    }
}

/// Reads standard input, a piece each time one is wanted.
fn pass_stdin(writer: &Mutex<UnixStream>, asked: &Receiver<()>) {
    // In the background of a terminal reading stops a process; blocked, it fails instead.
    let _ = SigSet::from(Signal::SIGTTIN).thread_block();
    let mut buffer = vec![0; STDIN_BYTES_MAX];
    while asked.recv().is_ok() {
        // What can't be read has ended.
        let read = io::stdin().lock().read(&mut buffer).unwrap_or(0);
        send(writer, &FromShim::Stdin(Bytes::copy_from_slice(&buffer[..read])));
        if read == 0 {
            return;
        }
    }
}

/// If the other end is gone, the main thread finds out.
fn send(writer: &Mutex<UnixStream>, frame: &FromShim) {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = frame.write(&mut *writer);
}

fn passed_on() -> SigSet {
    PASSED_ON.iter().map(|(signal, _)| *signal).collect()
}

/// All that is to be known of this call.
fn call(program: &Path, args: &[OsString]) -> Result<Call, Failure> {
    let cwd = std::env::current_dir()
        .map_err(|error| failed("could not find the current directory", error))?;
    let parents = environment_of_parent();
    let env = std::env::vars_os().filter(|(name, _)| name != SECRET_VARIABLE);
    let doctest = is_doctest().then(|| (DOCTEST_PATH_VARIABLE.into(), program.into()));
    let env = env.chain(doctest).map(|(name, value): (OsString, OsString)| {
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        let inherited = parents.split(|byte| *byte == 0).any(|parents| parents == entry);
        Variable { name: name.into(), value: value.into(), inherited }
    });
    Ok(Call {
        // Workers take no other; a local run keeps what the caller gave.
        program: crate::compile::plain(program).into(),
        args: args.iter().map(|arg| arg.as_os_str().into()).collect(),
        cwd: cwd.into(),
        env: env.collect(),
        caller: caller(),
    })
}

/// What the process that called us was started with. Nothing where that can't be known: then
/// everything counts as set by it.
fn environment_of_parent() -> Vec<u8> {
    std::fs::read(format!("/proc/{}/environ", getppid())).unwrap_or_default()
}

/// The tool that called us: its number, and when it was started. None for anything but a tool that
/// runs what it has built (a shell, or `cargo run`, which doesn't start us but becomes us): what it
/// does between two calls nobody knows.
fn caller() -> Option<String> {
    let name = parents_name();
    if !(name.starts_with("cargo") || name == "rustdoc") {
        return None;
    }
    let parent = getppid();
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything; the start is the 22nd.
    let started = stat.rsplit(')').next()?.split_whitespace().nth(19)?;
    Some(format!("{parent}-{started}"))
}

fn parents_name() -> String {
    let name = std::fs::read_to_string(format!("/proc/{}/comm", getppid())).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Whether rustdoc called us.
fn is_doctest() -> bool {
    parents_name() == "rustdoc"
}

/// Becomes the executable. Returns only if that fails.
fn run_here(program: &Path, args: &[OsString]) -> Failure {
    let mut command = Command::new(program);
    command.args(args).env_remove(SECRET_VARIABLE);
    if is_doctest() {
        command.env(DOCTEST_PATH_VARIABLE, program);
    }
    let error = command.exec();
    failed(&format!("could not run {}", program.display()), error)
}

/// The executable's path, found as a shell would.
fn absolute(program: &OsStr) -> Result<PathBuf, Failure> {
    let path = Path::new(program);
    if path.components().count() > 1 || path.is_absolute() {
        return std::path::absolute(path)
            .map_err(|error| failed(&format!("could not find {}", path.display()), error));
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(path))
        .find(|it| it.is_file())
        .ok_or_else(|| {
            failed(&format!("could not find {}", path.display()), io::ErrorKind::NotFound.into())
                .hint("give a path, or the name of a program in PATH")
        })
}

/// Ends this process by a signal, as the executable ended.
fn die_by(number: i32) -> Failure {
    // One core dump is enough, where the executable ran.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Ok(signal) = Signal::try_from(number) {
        restore_default(signal);
        let only = SigSet::from(signal);
        let _ = only.thread_swap_mask(SigmaskHow::SIG_UNBLOCK);
        let _ = raise(signal);
    }
    // It ends no process, or has no name: as a shell tells of it.
    std::process::exit(128 + number)
}

/// Undoes what Rust's runtime does about it, and that a shell ignores some for what it runs in the
/// background.
#[expect(unsafe_code, reason = "nothing safe restores the default disposition")]
fn restore_default(of: Signal) {
    use nix::sys::signal::{SigHandler, signal};
    // SAFETY: the default disposition runs no code of ours.
    let _ = unsafe { signal(of, SigHandler::SigDfl) };
}

fn failed(what: &str, error: io::Error) -> Failure {
    Failure::new(ExitCode::Setup, what).because(error)
}

/// Words of our own go to stderr, marked, because the executable's go there too.
fn tell_run_here(why: Option<&str>, program: &Path) {
    if let Some(why) = why {
        say(&format!("warning: {why}: {} runs on this machine", program.display()));
    }
}

fn say(text: &str) {
    let mut stderr = io::stderr().lock();
    let text = shown::lines(text);
    let line = if stderr.is_terminal() { format!("{text}\r\n") } else { format!("{text}\n") };
    // A closed stderr has nobody to tell.
    let _ = stderr.write_all(format!("cargo distest runner: {line}").as_bytes());
}
