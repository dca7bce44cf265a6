//! Another executable for a worker that listens: taken in, tried, and become.
//!
//! Who may do that (`admin`) may run anything as the worker's user. So what matters here is that a
//! worker never ends for it: what doesn't have its digest, can't be started, doesn't understand the
//! worker's own arguments or would make worse sandboxes is refused while the old one goes on, and
//! what can't be executed in the end has the old one executed anew.
//!
//! Executables lie in the store, which tests don't see, as `v1/executables/DIGEST-PID`. Each is
//! locked by whoever means to execute it or does; all others go when a worker starts, ends or is
//! given another one, and with what else its store has that nobody uses.

mod incoming;
mod trial;

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

pub(crate) use self::incoming::Incoming;
pub(crate) use self::trial::CHECKED;
use self::trial::try_out;
use crate::digest::Digest;
use crate::protocol::{Freed, Refusal, RefusalKind};
use crate::sandbox::level::Level;
use crate::store::{self, Store};

/// What the listening socket is called that one executable leaves to the next, in `LISTEN_FDNAMES`
/// (`sd_listen_fds(3)`).
pub const LEFT_SOCKET: &str = "distest-worker-upgrade";
/// The descriptor of the first socket that is handed over, as systemd does it.
pub const HANDED_SOCKET: i32 = 3;
/// Below the store's folder.
const FOLDER: &str = "v1/executables";

/// The word before a worker's arguments where it is `cargo-distest`.
const CLIENT_WORD: &str = "worker";

/// Whether a worker can be given another executable, and which one that is.
pub struct Upgrades {
    /// This process's, from the worker's own first word on: `serve …`.
    arguments: Vec<OsString>,
    store: Store,
    /// How well it recreates clients' paths: another one must do as well.
    level: Level,
    own: OnceLock<Digest>,
    /// This process's executable, locked, so that nobody removes it.
    running: Mutex<Option<File>>,
    /// One is tried at a time.
    trying: tokio::sync::Mutex<()>,
    chosen: Mutex<Option<Chosen>>,
}

/// An executable that was tried.
struct Chosen {
    path: PathBuf,
    is_client: bool,
    /// Locked, so that nobody removes it.
    _file: File,
}

/// What a worker becomes.
pub struct Successor {
    chosen: Chosen,
    arguments: Vec<OsString>,
    socket: OwnedFd,
}

impl Upgrades {
    /// For this process, which is a worker by its own arguments and has this store.
    pub fn new(store: Store, level: Level) -> Self {
        Self {
            arguments: own_arguments(std::env::args_os()),
            store,
            level,
            own: OnceLock::new(),
            running: Mutex::default(),
            trying: tokio::sync::Mutex::default(),
            chosen: Mutex::default(),
        }
    }

    /// This worker begins: keeps what it runs, and removes what nobody does.
    pub fn begin(&self) {
        // Where it can't be locked, as its file is gone or on a strange disk, it runs all the same.
        let own = File::open("/proc/self/exe").and_then(|own| own.lock_shared().map(|()| own));
        *self.running() = own.ok();
        prune(&self.store);
    }

    /// This worker ends, and becomes no other: nothing of it stays.
    pub fn end(&self) {
        let ours = (self.running().take(), self.chosen().take());
        drop(ours);
        prune(&self.store);
    }

    /// Whether this process runs that executable. Reads all of it once.
    pub(crate) fn is_own(&self, digest: Digest) -> io::Result<bool> {
        if let Some(own) = self.own.get() {
            return Ok(*own == digest);
        }
        let (own, _) = Digest::of_reader(File::open("/proc/self/exe")?)?;
        Ok(*self.own.get_or_init(|| own) == digest)
    }

    /// Takes an executable that has come, if it is of use: this worker becomes it once it drains.
    pub(crate) async fn choose(&self, incoming: Incoming) -> Result<(), Refusal> {
        let Ok(_turn) = self.trying.try_lock() else { return Err(busy()) };
        if self.is_chosen() {
            return Err(busy());
        }
        let store = self.store.clone();
        let (path, file) = tokio::task::spawn_blocking(move || {
            let folder = store.folder().join(FOLDER);
            store::create_private(&folder)?;
            let placed = incoming.place(&folder)?;
            prune(&store);
            io::Result::Ok(placed)
        })
        .await
        .map_err(|error| unfit(&error.to_string()))?
        .map_err(|error| store::storage_refusal("could not keep it there".to_owned(), &error))?;
        match try_out(&path, &self.arguments, self.level).await {
            Ok(is_client) => {
                *self.chosen() = Some(Chosen { path, is_client, _file: file });
                Ok(())
            }
            Err(why) => {
                let _ = fs::remove_file(&path);
                Err(unfit(&why))
            }
        }
    }

    /// Whether this worker is to become another one.
    pub fn is_chosen(&self) -> bool {
        self.chosen().is_some()
    }

    /// What it becomes, with the socket at which it listens.
    pub fn successor(&self, socket: impl Into<OwnedFd>) -> Option<Successor> {
        let chosen = self.chosen().take()?;
        Some(Successor { chosen, arguments: self.arguments.clone(), socket: socket.into() })
    }

    /// Where pieces are kept that are on their way in.
    pub(crate) fn scratch(&self) -> &Path {
        self.store.scratch()
    }

    fn running(&self) -> MutexGuard<'_, Option<File>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chosen(&self) -> MutexGuard<'_, Option<Chosen>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Successor {
    /// Becomes it: the same process, with the same arguments, environment and socket. If that fails
    /// the old executable goes on in the same way. Returns only if that fails, too.
    pub fn become_it(self, say: impl Fn(String)) -> io::Error {
        let Self { chosen: Chosen { path, is_client, _file }, arguments, socket } = self;
        reap();
        if let Err(error) = hand_over(socket) {
            return error;
        }
        let error = execute(&path, is_client, &arguments);
        say(format!("could not execute {}, so the old one goes on: {error}", path.display()));
        let words: Vec<_> = std::env::args_os().skip(1).collect();
        execute(Path::new("/proc/self/exe"), false, &words)
    }
}

/// Executes it in place of this process; answers only if that fails.
fn execute(path: &Path, is_client: bool, arguments: &[OsString]) -> io::Error {
    let mut command = Command::new(path);
    // Processes are listed by this word, and files of ours have names that nobody knows.
    command.arg0(std::env::args_os().next().unwrap_or_default());
    command.args(is_client.then_some(CLIENT_WORD)).args(arguments);
    command
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", LEFT_SOCKET);
    command.exec()
}

/// Has the system call this process what it was called before it was executed anew, which its first
/// word says still.
pub(crate) fn keep_name() {
    let first = std::env::args_os().next().map(PathBuf::from);
    let name = first.as_deref().and_then(Path::file_name).map(|name| name.as_bytes());
    // Without one it is called as its file is.
    let name = name.and_then(|name| CString::new(name).ok());
    let _ = name.map(|name| nix::sys::prctl::set_name(&name));
}

/// Makes the socket what systemd would have handed over. Nothing else here is used any more.
fn hand_over(socket: OwnedFd) -> io::Result<()> {
    if socket.as_raw_fd() == HANDED_SOCKET {
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
        // Goes on.
        std::mem::forget(socket);
        return Ok(());
    }
    #[expect(unsafe_code, reason = "nix wants an owner for what is closed here, and there is none")]
    // SAFETY: takes numbers only. Whatever had that one is not used again: this process executes
    // something else, or ends.
    let done = unsafe { libc::dup2(socket.as_raw_fd(), HANDED_SOCKET) };
    nix::errno::Errno::result(done)?;
    Ok(())
}

/// Takes leave of processes that have ended: whoever comes knows nothing of them.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// A worker's own arguments, from its first word on, of a process that is `distest-worker`, or
/// `cargo-distest [distest] worker`.
fn own_arguments(all: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut rest = all.skip(1).peekable();
    for word in ["distest", CLIENT_WORD] {
        let _ = rest.next_if(|it| it == word);
    }
    rest.collect()
}

/// Removes all executables of a store but those that somebody executes or means to; answers what.
pub(crate) fn prune(store: &Store) -> Freed {
    let mut freed = Freed::default();
    for entry in fs::read_dir(store.folder().join(FOLDER)).into_iter().flatten().flatten() {
        let Ok(file) = File::open(entry.path()) else { continue };
        let bytes = file.metadata().map_or(0, |about| about.len());
        if file.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok() {
            freed.blobs += 1;
            freed.bytes += bytes;
        }
    }
    freed
}

fn busy() -> Refusal {
    let message = "could not upgrade it: somebody else does so at the moment";
    Refusal::new(RefusalKind::Invalid, message)
}

fn unfit(why: &str) -> Refusal {
    let message = format!("could not use this executable there, so the old one goes on: {why}");
    Refusal::new(RefusalKind::Incompatible, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_one_by_the_same_words_in_either_program() {
        for words in [
            &["distest-worker", "serve", "--name", "worker"][..],
            &["cargo-distest", "worker", "serve", "--name", "worker"],
            &["cargo-distest", "distest", "worker", "serve", "--name", "worker"],
        ] {
            let own = own_arguments(words.iter().map(OsString::from));
            assert_eq!(own, ["serve", "--name", "worker"], "{words:?}");
        }
    }

    #[test]
    fn all_go_but_those_that_somebody_executes_or_means_to() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1 << 20).unwrap();
        assert_eq!(prune(&store), Freed::default());
        let executables = store.folder().join(FOLDER);
        store::create_private(&executables).unwrap();
        let [old, wanted] = ["old", "wanted"].map(|name| executables.join(name));
        for path in [&old, &wanted] {
            fs::write(path, "four").unwrap();
        }
        let lock = File::open(&wanted).unwrap();
        lock.lock_shared().unwrap();
        assert_eq!(prune(&store), Freed { blobs: 1, bytes: 4 });
        assert!(!old.exists() && wanted.exists());
        drop(lock);
        assert_eq!(prune(&store), Freed { blobs: 1, bytes: 4 });
        assert!(!wanted.exists());
    }
}
