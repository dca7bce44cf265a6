//! Worker processes on loopback.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;

use crate::DEADLINE;
use crate::process::{Owned, lines};
use crate::product::product;
use crate::scratch::Scratch;

/// A worker that waits for clients, ended when this is dropped.
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Its address, as `--worker` takes it.
    pub address: String,
    /// The process.
    pub process: Owned,
    /// What it writes to stderr.
    pub log: PathBuf,
}

/// Which executable serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Executable {
    /// `distest-worker serve`.
    Worker,
    /// `cargo-distest worker serve`.
    Client,
}

/// A registry, ended when this is dropped.
pub struct Registry {
    /// Its address, as `--worker` takes it, without its key.
    pub address: String,
    /// The process.
    pub process: Owned,
}

impl Registry {
    /// Starts one and waits until it is ready.
    pub fn start(scratch: &Scratch, listen: &str, more: &[&str]) -> Self {
        let log = scratch.join("registry.log");
        let mut command = scratch.command(&product().worker);
        command.args(["registry", "--listen", listen]).args(more).stdin(Stdio::null());
        command.stdout(Stdio::piped());
        command.stderr(File::create(&log).expect("a folder of ours can be written"));
        let (process, address) = ready(&mut command, "registry", &log);
        let address = address.split('#').next().unwrap_or_default().to_owned();
        Self { address, process }
    }

    /// `HOST:PORT`.
    pub fn socket(&self) -> &str {
        self.address.trim_start_matches("registry://")
    }

    /// Its port.
    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap_or_default()
    }
}

/// Starts what says `ready NAME ADDR`; answers the process and the address.
fn ready(command: &mut Command, name: &str, log: &Path) -> (Owned, String) {
    let mut process = Owned::start(command).expect("a program of ours can be started");
    let stdout = process.streams().stdout.take().expect("it is a pipe");
    let address = address(&lines(stdout), name, log);
    (process, address)
}

/// The address in the next line, which must be `ready NAME ADDR`; `log` has what else was said.
pub(crate) fn address(lines: &Receiver<String>, name: &str, log: &Path) -> String {
    let line = lines.recv_timeout(DEADLINE).unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let ["ready", told, address] = words[..] else {
        let log = std::fs::read_to_string(log).unwrap_or_default();
        panic!("{name} said {line:?} instead of being ready, and on stderr:\n{log}");
    };
    assert_eq!(told, name, "it got a name");
    address.to_owned()
}

impl Worker {
    /// Starts a worker with a store of its own and waits until it is ready.
    pub fn start(scratch: &Scratch, name: &str, slots: u32) -> Self {
        let store = scratch.join(format!("store-{name}"));
        // Both executables serve in every run of the tests.
        let executable = if name.ends_with('1') { Executable::Worker } else { Executable::Client };
        Self::start_with(scratch, name, slots, &store, executable)
    }

    /// The same with everything chosen.
    pub fn start_with(
        scratch: &Scratch,
        name: &str,
        slots: u32,
        store: &Path,
        executable: Executable,
    ) -> Self {
        Self::start_changed(scratch, name, slots, store, executable, |_| {})
    }

    /// The same with a last word about the command.
    pub fn start_changed(
        scratch: &Scratch,
        name: &str,
        slots: u32,
        store: &Path,
        executable: Executable,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        Self::start_at("127.0.0.1:0", scratch, name, slots, store, executable, change)
    }

    /// Starts it again where it was, with the store it had. Its process must have ended.
    pub fn restart(&mut self, scratch: &Scratch, slots: u32, store: &Path) {
        let socket = self.socket().to_owned();
        let executable = Executable::Worker;
        *self = Self::start_at(&socket, scratch, &self.name, slots, store, executable, |_| {});
    }

    fn start_at(
        socket: &str,
        scratch: &Scratch,
        name: &str,
        slots: u32,
        store: &Path,
        executable: Executable,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let log = scratch.join(format!("worker-{name}.log"));
        let mut command = match executable {
            Executable::Worker => scratch.command(&product().worker),
            Executable::Client => {
                let mut command = scratch.command(&product().client);
                command.arg("worker");
                command
            }
        };
        command
            .args(["serve", "--listen", socket, "--name", name, "--slots", &slots.to_string()])
            .arg("--store")
            .arg(store)
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a folder of ours can be written"));
        change(&mut command);
        let (process, address) = ready(&mut command, name, &log);
        assert!(address.starts_with("tcp://127.0.0.1:"), "odd address: {address}");
        Self { name: name.to_owned(), address, process, log }
    }

    /// Starts `count` workers, called `w1`, `w2`…
    pub fn fleet(scratch: &Scratch, count: u32, slots: u32) -> Vec<Self> {
        (1..=count).map(|number| Self::start(scratch, &format!("w{number}"), slots)).collect()
    }

    /// `HOST:PORT` of its address.
    pub fn socket(&self) -> &str {
        let socket = self.address.trim_start_matches("tcp://");
        socket.split('#').next().unwrap_or(socket)
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
