//! `--list` → test cases, cached as long as the executable is the same file.
//!
//! A binary is run twice, without and with `--ignored`, by a [`Lister`]: [`LocalLister`] on this
//! machine, or whatever can run binaries of another triple. What a libtest binary lists depends on
//! nothing but the binary, so its listing is remembered; a custom harness may read its tests off
//! data files and is asked every time.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use distest_worker::protocol::Exit;
use tokio::sync::Semaphore;

use crate::failure::{ExitCode, Failure};
use crate::model::{BinaryId, Harness, ListedCase, Listing, TestBinary, TestName, Triple};
use crate::parse;
use crate::stamp::Stamp;

mod cache;
mod local;
mod probe;

use cache::{Cache, Known};
pub use local::LocalLister;
use probe::Probe;

/// The most bytes of a list that are taken.
pub const LIST_BYTES_MAX: u64 = 64 << 20;
/// The most bytes of a listing's stderr that are kept.
pub const LIST_STDERR_BYTES_MAX: u64 = 16 << 10;

/// Runs test binaries to hear what they contain.
pub trait Lister {
    /// Runs `binary` with `args`, in its directory and environment.
    ///
    /// # Errors
    /// It could not be run, or did not end.
    fn run(
        &self,
        binary: &TestBinary,
        args: &[&str],
    ) -> impl Future<Output = Result<RawListing, Failure>>;
}

/// What came of one run of a test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawListing {
    /// How it ended.
    pub exit: Exit,
    /// At most [`LIST_BYTES_MAX`].
    pub stdout: Bytes,
    /// The first [`LIST_STDERR_BYTES_MAX`].
    pub stderr: Bytes,
}

/// Binaries of the host's triple go to one lister, all others to another.
#[derive(Clone, Debug)]
pub struct ByTriple<L, F> {
    /// The triple of binaries that run on this machine.
    pub host: Triple,
    /// For these.
    pub local: L,
    /// For all others.
    pub foreign: F,
}

/// Refuses every binary: there is no machine for its triple.
#[derive(Clone, Copy, Debug)]
pub struct NoLister;

/// Where test cases come from.
#[derive(Debug)]
pub struct Inventory<L> {
    lister: L,
    cache: Option<Arc<Cache>>,
    whole: BTreeSet<BinaryId>,
    probes: bool,
    runs: Semaphore,
    executed: AtomicU32,
}

/// Where a workspace's listings are remembered.
pub fn cache_folder(target_dir: &Path) -> PathBuf {
    target_dir.join("distest/listings")
}

impl<L: Lister> Inventory<L> {
    /// An inventory that asks `lister` for at most `parallel` runs at a time.
    ///
    /// `cache` is the folder for remembered listings, made when needed; `whole` has the ids of
    /// binaries that are declared `list = "whole"`.
    pub fn new(lister: L, parallel: usize, cache: Option<PathBuf>, whole: &[String]) -> Self {
        Self {
            lister,
            cache: cache.map(|folder| Arc::new(Cache::new(folder))),
            whole: whole.iter().map(|id| BinaryId::new(id.as_str())).collect(),
            probes: false,
            runs: Semaphore::new(parallel.max(1)),
            executed: AtomicU32::new(0),
        }
    }

    /// Also finds out which binaries' tests may share a process.
    #[must_use]
    pub fn with_probes(self, probes: bool) -> Self {
        Self { probes, ..self }
    }

    /// The test cases of a binary.
    ///
    /// # Errors
    /// It could not be listed: [`ExitCode::ListFailed`], with its id, executable, exit status and
    /// stderr.
    pub async fn list(&self, binary: Arc<TestBinary>) -> Result<Listing, Failure> {
        if self.whole.contains(&binary.id) {
            let name = TestName::new(binary.target_name.as_str());
            let cases = vec![ListedCase { name, ignored: false }];
            return Ok(Listing { binary, cases, whole: true, sharing: None });
        }
        let known = match self.cache.as_ref().filter(|_| binary.harness == Harness::Libtest) {
            Some(cache) => self.remembered(cache, &binary).await?,
            None => Known { stamp: None, cases: self.execute(&binary).await?, probe: None },
        };
        let sharing = known.probe.filter(|_| self.probes).and_then(Probe::sharing);
        Ok(Listing { binary, cases: known.cases, whole: false, sharing })
    }

    /// What is known of a libtest binary, asked only for what is not.
    async fn remembered(&self, cache: &Arc<Cache>, binary: &TestBinary) -> Result<Known, Failure> {
        let (executable, triple) = (&binary.executable, &binary.triple);
        let asked = SystemTime::now();
        let look = || fs::metadata(executable).ok();
        let stamp = look().as_ref().map(Stamp::of);
        let earlier = cache.clone().load(executable.clone(), triple.clone()).await;
        let same = |known: &Known| stamp.is_some() && known.stamp == stamp;
        // Of the same name, it was linked by the same compiler with the same libtest.
        let shared = earlier.as_ref().and_then(|known| known.probe?.sharing());
        let (fresh, mut known) = match earlier {
            Some(known) if same(&known) => (false, known),
            _ => {
                let cases = self.execute(binary).await?;
                (true, Known { stamp: None, cases, probe: None })
            }
        };
        let asks = self.probes && known.probe.is_none() && known.cases.len() > 1;
        if asks {
            let permit = self.runs.acquire().await;
            known.probe = Some(probe::probe(&self.lister, binary, shared).await);
            drop(permit);
        }
        if fresh || asks {
            let unchanged = look().filter(|after| Some(Stamp::of(after)) == stamp);
            known.stamp =
                unchanged.and_then(|metadata| Stamp::lasting(executable, &metadata, asked));
            cache.clone().save(executable.clone(), triple.clone(), known.clone()).await;
        }
        Ok(known)
    }

    /// How many binaries were run to be listed.
    pub fn executed(&self) -> u32 {
        self.executed.load(Ordering::Relaxed)
    }

    async fn execute(&self, binary: &TestBinary) -> Result<Vec<ListedCase>, Failure> {
        self.executed.fetch_add(1, Ordering::Relaxed);
        let (all, ignored) = tokio::join!(
            self.run(binary, &["--list", "--format", "terse"]),
            self.run(binary, &["--list", "--format", "terse", "--ignored"]),
        );
        let (all, ignored) = (all?, ignored?);
        parse::cases(&all.stdout, &ignored.stdout)
            .map_err(|error| failed(binary, &["--list", "--format", "terse"]).because(error))
    }

    async fn run(&self, binary: &TestBinary, args: &[&str]) -> Result<RawListing, Failure> {
        let permit = self.runs.acquire().await;
        let raw = self.lister.run(binary, args).await?;
        drop(permit);
        let how = match raw.exit {
            Exit::Code(0) => return Ok(raw),
            Exit::Code(code) => format!("exited with {code}"),
            Exit::Signal(signal) => format!("was ended by signal {signal}"),
        };
        let stderr = String::from_utf8_lossy(&raw.stderr);
        let stderr = stderr.trim_end();
        Err(failed(binary, args).because(if stderr.is_empty() {
            format!("it {how} and wrote nothing to stderr")
        } else {
            format!("it {how} and wrote to stderr:\n{stderr}")
        }))
    }
}

impl<L: Lister, F: Lister> Lister for ByTriple<L, F> {
    async fn run(&self, binary: &TestBinary, args: &[&str]) -> Result<RawListing, Failure> {
        if binary.triple == self.host {
            self.local.run(binary, args).await
        } else {
            self.foreign.run(binary, args).await
        }
    }
}

impl Lister for NoLister {
    async fn run(&self, binary: &TestBinary, args: &[&str]) -> Result<RawListing, Failure> {
        Err(Failure {
            hint: Some(format!("add a worker for {}, or leave that target out", binary.triple)),
            ..failed(binary, args).because(format!(
                "it was built for {}, for which no worker is there",
                binary.triple
            ))
        })
    }
}

/// The error for a binary that can't be listed, without its cause.
fn failed(binary: &TestBinary, args: &[&str]) -> Failure {
    let executable = binary.executable.display();
    let by_hand = format!("cd {} && {executable} {}", binary.cwd.display(), args.join(" "));
    let hint = match binary.harness {
        Harness::Libtest => format!("run it by hand: {by_hand}"),
        Harness::Custom => format!(
            "run it by hand: {by_hand}\n\
             if its harness doesn't understand `--list`, declare it one test case in \
             .config/distest.toml, under a heading of its own:\n\
             [binary.\"{}\"]\n\
             list = \"whole\"",
            binary.id
        ),
    };
    let what = format!("could not list the tests of {} ({executable})", binary.id);
    Failure::new(ExitCode::ListFailed, what).hint(hint)
}

#[cfg(test)]
mod tests;
