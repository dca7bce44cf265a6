//! The folder that everything a test writes lies in, and the mark of everything it starts.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::DEADLINE;

/// Marks the processes of a test: set to its scratch folder.
const MARK: &str = "E2E_SCRATCH";
/// Variables of the developer's that reach the product: without them cargo finds no toolchain, no
/// registry or no network.
const PASSED_ON: [&str; 14] = [
    "PATH",
    "USER",
    "LANG",
    "TMPDIR",
    "RUSTUP_TOOLCHAIN",
    "RUSTUP_AUTO_INSTALL",
    "CARGO_NET_OFFLINE",
    "CARGO_HTTP_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
];
/// Between two looks at the process table: other people's processes send us no event.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A folder of a test's own with a home in it, removed when dropped.
pub struct Scratch {
    folder: TempDir,
}

/// A process that belongs to a test.
#[derive(Clone, Debug)]
pub struct Stray {
    /// Its number.
    pub pid: u32,
    /// What it executes.
    pub executable: PathBuf,
    /// How it was called.
    pub command_line: String,
}

/// A process, and what makes it a test's.
struct Seen {
    stray: Stray,
    parent: u32,
    is_ours: bool,
}

/// Looks again and again until nothing is `there`; what still is after `within`.
pub fn what_stays<T>(within: Duration, there: impl Fn() -> Vec<T>) -> Vec<T> {
    let end = Instant::now() + within;
    loop {
        let left = there();
        if left.is_empty() || Instant::now() >= end {
            return left;
        }
        thread::sleep(LOOK_EVERY);
    }
}

impl Scratch {
    /// A new one.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("distest-e2e-").tempdir();
        let scratch = Self { folder: folder.expect("a temporary folder can be made") };
        for name in ["home", "cache", "config", "data", "state"] {
            fs::create_dir(scratch.path().join(name)).expect("a new folder can be written");
        }
        scratch
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file in it, and returns its path.
    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.join(name);
        let parent = path.parent().expect("it lies in the folder");
        fs::create_dir_all(parent).expect("a folder of ours can be written");
        fs::write(&path, contents).expect("a folder of ours can be written");
        path
    }

    /// A command with this folder's home and mark, and nothing else of the developer's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        for name in PASSED_ON {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            if let Some(path) = tool_home(name, folder) {
                command.env(name, path);
            }
        }
        if let Some(cargo) = env::var_os("CARGO") {
            command.env("CARGO", cargo);
        }
        command
            .env("HOME", self.join("home"))
            .env("XDG_CACHE_HOME", self.join("cache"))
            .env("XDG_CONFIG_HOME", self.join("config"))
            .env("XDG_DATA_HOME", self.join("data"))
            .env("XDG_STATE_HOME", self.join("state"))
            .env(MARK, self.path());
        command
    }

    /// The processes that carry this folder's mark, or run or stand in it, and their descendants:
    /// a test in a sandbox has neither.
    pub fn processes(&self) -> Vec<Stray> {
        let entries = fs::read_dir("/proc").expect("/proc can be read");
        let numbers =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let all: Vec<Seen> = numbers.filter_map(|pid| self.look_at(pid)).collect();
        let mut ours: BTreeSet<u32> =
            all.iter().filter(|seen| seen.is_ours).map(|seen| seen.stray.pid).collect();
        loop {
            let before = ours.len();
            let children = all.iter().filter(|seen| ours.contains(&seen.parent));
            let children: Vec<u32> = children.map(|seen| seen.stray.pid).collect();
            ours.extend(children);
            if ours.len() == before {
                break;
            }
        }
        let strays = all.into_iter().map(|seen| seen.stray);
        strays.filter(|stray| ours.contains(&stray.pid)).collect()
    }

    /// Waits until no process is left that `counts`; those that still are after `within`.
    pub fn left_after(&self, within: Duration, counts: impl Fn(&Stray) -> bool) -> Vec<Stray> {
        what_stays(within, || self.processes().into_iter().filter(&counts).collect())
    }

    /// Waits until a process is there that `is_it`.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&Stray) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !self.processes().iter().any(&is_it) {
            assert!(Instant::now() < end, "no process for {DEADLINE:?}: {what}");
            thread::sleep(LOOK_EVERY);
        }
    }

    fn look_at(&self, pid: u32) -> Option<Seen> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        // A zombie has no executable any more, and runs nothing.
        let executable = fs::read_link(proc.join("exe")).ok()?;
        let command_line = fs::read(proc.join("cmdline")).ok()?;
        let status = fs::read_to_string(proc.join("status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        let mut mark = OsString::from(format!("{MARK}="));
        mark.push(self.path());
        let environment = fs::read(proc.join("environ")).unwrap_or_default();
        let marked = environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
        let here = fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.path()));
        let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
        Some(Seen {
            parent: parent.trim().parse().ok()?,
            is_ours: marked || here || executable.starts_with(self.path()),
            stray: Stray { pid, executable, command_line },
        })
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for stray in self.processes() {
            let _ = kill(Pid::from_raw(stray.pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

fn tool_home(variable: &str, folder: &str) -> Option<PathBuf> {
    let given = env::var_os(variable).map(PathBuf::from);
    given
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(folder)))
        .filter(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::process::Owned;

    #[test]
    fn finds_and_ends_what_carries_its_mark() {
        let scratch = Scratch::new();
        let mut command = scratch.command("sleep");
        command.arg("600").stdin(Stdio::null());
        let mut sleeper = Owned::start(&mut command).unwrap();
        scratch.wait_for("sleep", |stray| stray.pid == sleeper.pid());
        drop(scratch);
        assert!(!sleeper.wait(DEADLINE).unwrap().success());
    }

    #[test]
    fn knows_nothing_of_others() {
        assert!(Scratch::new().processes().is_empty());
    }
}
