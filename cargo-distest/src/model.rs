//! The nouns of the client. No behaviour beyond their own consistency.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A test binary as people name it, as cargo-nextest writes it: `pkg` for the library or procedural
/// macro, `pkg::bin/name`, `pkg::test_name`, `pkg::example/name`, `pkg::bench/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BinaryId(pub Arc<str>);

/// A test's name within its binary: `module::tests::name`, or anything a custom harness prints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TestName(pub Arc<str>);

/// A target triple: `x86_64-unknown-linux-gnu`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Triple(pub Arc<str>);

/// A test case: what gets exactly one verdict.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TestCase {
    /// Its binary.
    pub binary: BinaryId,
    /// Its name there.
    pub name: TestName,
}

/// A test case's number within a run, from 0 in the order in which they became known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TestIndex(pub u32);

/// A worker's number within a run, from 0 in the order in which they joined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerId(pub u32);

/// The kind of cargo target that a test binary was built from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BinaryKind {
    /// Unit tests of a library.
    Lib,
    /// Unit tests of an executable.
    Bin,
    /// An integration test.
    Test,
    /// An example with `test = true`, or selected by flag.
    Example,
    /// A benchmark with `test = true`, or selected by flag.
    Bench,
    /// Unit tests of a procedural macro: always built for the host.
    ProcMacro,
}

/// Who decides what a test binary understands on its command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harness {
    /// rustc's own: `--list`, `--exact` and the rest are known to work.
    Libtest,
    /// `harness = false`: whatever the package made of it.
    Custom,
}

/// A linked test binary and what its tests need at run time.
#[derive(Clone, Debug)]
pub struct TestBinary {
    /// Its name.
    pub id: BinaryId,
    /// Package name.
    pub package: String,
    /// Package id, in cargo metadata's spelling.
    pub package_id: String,
    /// Name of the cargo target.
    pub target_name: String,
    /// Kind of the cargo target.
    pub kind: BinaryKind,
    /// Who parses its command line.
    pub harness: Harness,
    /// What it was built for. Procedural macros: the host.
    pub triple: Triple,
    /// Whether it was built for the host as a build dependency is (procedural macros).
    pub for_host: bool,
    /// Absolute path of the executable, in cargo's output folder.
    pub executable: PathBuf,
    /// Working directory of its tests: the package's root.
    pub cwd: PathBuf,
    /// What cargo would set for it beyond the client's own environment: `CARGO_*`, `OUT_DIR`, build
    /// scripts' `rustc-env`, `[env]`, the dynamic loader's path.
    pub env: BTreeMap<OsString, OsString>,
    /// Files that travel with it: built programs of its package, dynamic libraries, examples.
    pub companions: Vec<PathBuf>,
    /// Folders whose files travel with it: `OUT_DIR` of its package.
    pub companion_dirs: Vec<PathBuf>,
    /// Folders that must exist and be writable: `CARGO_TARGET_TMPDIR`.
    pub writable_dirs: Vec<PathBuf>,
    /// What not every machine has.
    pub needs: BinaryNeeds,
}

/// What a test binary needs of a machine beyond its target triple.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BinaryNeeds {
    /// The oldest glibc that it runs with.
    pub glibc: Option<(u32, u32)>,
    /// Processor features that the user's flags put in force, the baseline's included.
    pub cpu_features: Vec<String>,
    /// The library that calls cargo when its tests run, if it is linked with one.
    pub cargo_for: Option<String>,
}

/// What a test binary says it contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedCase {
    /// The test's name.
    pub name: TestName,
    /// Marked `#[ignore]`.
    pub ignored: bool,
}

/// A listed test binary.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The binary.
    pub binary: Arc<TestBinary>,
    /// Its test cases, in the order in which it lists them, each name once.
    pub cases: Vec<ListedCase>,
    /// It doesn't understand `--list` and is run as one test case, without arguments
    /// (`list = "whole"`).
    pub whole: bool,
    /// Several of its tests may run in one process, one after the other; none: they may not, or
    /// nobody asked.
    pub sharing: Option<Sharing>,
}

/// What is known of a binary of which several tests may run in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// What starting its process and running no test took.
    pub start_cost: Duration,
}

/// The end of a test case's story. Every known test case gets exactly one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Its first attempt passed.
    Pass,
    /// All its attempts failed by themselves.
    Fail,
    /// It failed, and passed when it was tried again.
    Flaky,
    /// Its last attempt was ended because it took too long.
    Timeout,
    /// Its last attempt died by a signal.
    Crashed,
    /// It was not selected, or is ignored.
    Skipped,
    /// It came to no end that says anything about it.
    Lost,
}

/// How one attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttemptResult {
    /// Exit code 0, nothing left behind.
    Pass,
    /// Another exit code.
    Fail,
    /// Ended by us, because it took too long.
    Timeout,
    /// Died by a signal.
    Crashed,
    /// Passed, but left processes or an open output behind. Counts as a pass.
    Leak,
    /// The worker's or our fault, or stopped by the user.
    Lost,
}

impl AttemptResult {
    /// Whether the test did what it should.
    pub fn passed(self) -> bool {
        matches!(self, Self::Pass | Self::Leak)
    }
}

impl Verdict {
    /// As scripts read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Flaky => "flaky",
            Self::Timeout => "timeout",
            Self::Crashed => "crashed",
            Self::Skipped => "skipped",
            Self::Lost => "lost",
        }
    }
}

/// A step on the way from being told of a worker to its first result there, in order. Not every way
/// has all of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// The executable that is to run there is read, for its digest.
    Read,
    /// Until the other side answers: ssh has logged in, or both keys are proved.
    Connect,
    /// What is there already.
    Probe,
    /// The worker's executable is sent, with a connection of its own.
    Copy,
    /// Until the worker speaks.
    Start,
    /// Both have greeted each other.
    Hello,
    /// The session is open.
    Session,
    /// Everything is built, and enough workers are there.
    Build,
    /// Until a first test's process runs: what it needs is sent and laid out.
    Files,
    /// Until its end.
    Test,
}

impl Step {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Connect => "connect",
            Self::Probe => "probe",
            Self::Copy => "copy",
            Self::Start => "start",
            Self::Hello => "hello",
            Self::Session => "session",
            Self::Build => "build",
            Self::Files => "files",
            Self::Test => "test",
        }
    }
}

#[cfg(test)]
impl TestBinary {
    /// One that needs nothing, for tests.
    pub(crate) fn sample() -> Self {
        Self {
            id: BinaryId::new("a::b"),
            package: "a".into(),
            package_id: "a".into(),
            target_name: "b".into(),
            kind: BinaryKind::Test,
            harness: Harness::Libtest,
            triple: Triple::new("x"),
            for_host: false,
            executable: "/target/a".into(),
            cwd: "/".into(),
            env: BTreeMap::new(),
            companions: vec![],
            companion_dirs: vec![],
            writable_dirs: vec![],
            needs: BinaryNeeds::default(),
        }
    }
}

impl BinaryId {
    /// From its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }
}

impl TestName {
    /// From its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }
}

impl Triple {
    /// From its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for BinaryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for TestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Triple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for TestCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.binary, self.name)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
