//! One call of `cargo distest`, from its arguments to all it said.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::DEADLINE;
use crate::fixture::Fixture;
use crate::process::Owned;
use crate::product::product;
use crate::scratch::Scratch;
use crate::transcript::{Line, Transcript};
use crate::worker::Worker;

/// A call to be made.
pub struct Client {
    command: Command,
    stdin: Option<Vec<u8>>,
    json: bool,
    stderr: PathBuf,
}

/// A call under way; killed when dropped.
pub struct Running {
    process: Owned,
    stdout: Receiver<String>,
    said: Said,
    json: bool,
    stderr: PathBuf,
}

/// What has been read of its stdout.
#[derive(Default)]
struct Said {
    text: String,
    lines: Vec<Line>,
}

/// A call that came to its end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its stdout.
    pub stdout: String,
    /// The lines on it, under `--message-format json`.
    pub lines: Vec<Line>,
    /// All of its stderr.
    pub stderr: String,
}

impl Client {
    /// `cargo distest run --message-format json` in a fixture's folder.
    pub fn run(scratch: &Scratch, fixture: &Fixture) -> Self {
        Self::run_human(scratch, fixture).json()
    }

    /// `cargo distest run` in a fixture's folder.
    pub fn run_human(scratch: &Scratch, fixture: &Fixture) -> Self {
        Self::call(scratch, &fixture.root, &["run"]).env("CARGO_TARGET_DIR", &fixture.target_dir)
    }

    /// `cargo distest ARGS…` in some folder.
    pub fn call(scratch: &Scratch, folder: &Path, args: &[&str]) -> Self {
        Self::call_through(scratch, &[], folder, args)
    }

    /// The same as arguments of another program, such as a tracer.
    pub fn call_through(
        scratch: &Scratch,
        program: &[&OsStr],
        folder: &Path,
        args: &[&str],
    ) -> Self {
        let client = product().client.as_os_str();
        let whole: Vec<&OsStr> =
            program.iter().copied().chain([client, OsStr::new("distest")]).collect();
        let mut command = scratch.command(whole[0]);
        command.args(&whole[1..]).args(args).current_dir(folder);
        // Several calls of one test each have a file of their own.
        let stderr = tempfile::Builder::new().prefix("stderr-").tempfile_in(scratch.path());
        let stderr = stderr.expect("a folder of ours can be written").into_temp_path();
        let stderr = stderr.keep().expect("a file of ours can be kept");
        Self { command, stdin: None, json: false, stderr }
    }

    /// Adds `--message-format json`.
    #[must_use]
    pub fn json(mut self) -> Self {
        self.json = true;
        self.args(["--message-format", "json"])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds workers, and leaves the embedded one out.
    #[must_use]
    pub fn only_on(mut self, workers: &[Worker]) -> Self {
        self.command.args(["--local-slots", "0"]);
        for worker in workers {
            self = self.worker(&worker.address);
        }
        // All of them, before the first test: a case is about them and not about who is first.
        let count = workers.len().to_string();
        self.args(["--wait-workers", &count])
    }

    /// Adds a worker's address.
    #[must_use]
    pub fn worker(self, address: &str) -> Self {
        self.args(["--worker", address])
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads.
    #[must_use]
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = Some(bytes.to_owned());
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let stderr = File::create(&self.stderr).expect("a folder of ours can be written");
        let stdin = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(stderr);
        let mut process = Owned::start(&mut self.command).expect("cargo-distest can be started");
        if let (Some(mut pipe), Some(bytes)) = (process.streams().stdin.take(), self.stdin) {
            thread::spawn(move || pipe.write_all(&bytes));
        }
        let pipe = process.streams().stdout.take().expect("it is a pipe");
        let (sender, stdout) = channel();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut bytes = Vec::new();
            while pipe.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
                bytes.clear();
            }
        });
        Running { process, stdout, said: Said::default(), json: self.json, stderr: self.stderr }
    }

    /// Runs it to its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }
}

impl Running {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// The next line on its stdout.
    pub fn line(&mut self) -> String {
        let Some(text) = self.next() else {
            panic!("it ended before it said anything\n{}", self.stderr());
        };
        self.take(text.clone());
        text
    }

    /// Reads on until `wanted` holds for a line.
    pub fn until(&mut self, mut wanted: impl FnMut(&Line) -> bool) {
        loop {
            let Some(text) = self.next() else {
                panic!("the run ended before what was waited for\n{}", self.stderr());
            };
            if self.take(text) && wanted(&self.said.lines[self.said.lines.len() - 1]) {
                return;
            }
        }
    }

    /// Reads on until `count` attempts have ended.
    pub fn until_attempts(&mut self, count: usize) {
        let mut seen = 0;
        self.until(|line| {
            seen += usize::from(matches!(line, Line::Test(_)));
            seen >= count
        });
    }

    /// Reads on to its end.
    pub fn finish(mut self) -> Finished {
        while let Some(text) = self.next() {
            self.take(text);
        }
        let Some(status) = self.process.wait(DEADLINE) else {
            panic!("it closed its stdout and did not end\n{}", self.stderr());
        };
        let Said { text: stdout, lines } = std::mem::take(&mut self.said);
        let finished = Finished { status, stdout, lines, stderr: self.stderr() };
        finished.check_no_panic();
        finished
    }

    /// What it has said on its stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    fn next(&self) -> Option<String> {
        let started = Instant::now();
        match self.stdout.recv_timeout(DEADLINE) {
            Ok(text) => Some(text),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("nothing for {:?}: it hangs\n{}", started.elapsed(), self.stderr())
            }
        }
    }

    fn take(&mut self, text: String) -> bool {
        self.said.text.push_str(&text);
        if self.json {
            let line = Line::parse(text.trim_end()).unwrap_or_else(|error| panic!("{error}"));
            self.said.lines.push(line);
        }
        self.json
    }
}

impl Finished {
    /// The exit code; a panic if it was killed.
    pub fn code(&self) -> i32 {
        let Some(code) = self.status.code() else {
            panic!("killed by signal {:?}\n{}", self.status.signal(), self.stderr);
        };
        code
    }

    /// Checks the exit code, and the transcript against everything that holds of every run.
    #[track_caller]
    pub fn transcript(&self, exit_code: i32) -> Transcript {
        assert_eq!(self.code(), exit_code, "exit code; stderr:\n{}", self.stderr);
        let transcript = Transcript::check(&self.lines)
            .unwrap_or_else(|error| panic!("{error}\nstderr:\n{}", self.stderr));
        assert_eq!(transcript.summary.exit_code, exit_code, "exit code in the summary");
        transcript
    }

    /// Checks that it ended with this code and that each of these texts stands on stderr.
    #[track_caller]
    pub fn complains(&self, exit_code: i32, texts: &[&str]) {
        assert_eq!(self.code(), exit_code, "exit code; stderr:\n{}", self.stderr);
        let told = self.stderr.to_lowercase();
        for text in texts {
            let text = text.to_lowercase();
            assert!(told.contains(&text), "nothing about {text:?} on stderr:\n{}", self.stderr);
        }
    }

    fn check_no_panic(&self) {
        for source in ["cargo-distest/src", "distest-worker/src"] {
            let panicked = format!("panicked at {source}");
            assert!(!self.stderr.contains(&panicked), "the product panicked:\n{}", self.stderr);
        }
    }
}
