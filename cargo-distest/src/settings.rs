//! What a command was asked to do, parsed and complete: flags > environment > profile > defaults.
//!
//! Plain data that the stages read; [`crate::cli`] holds what was typed. [`compile_settings`] needs
//! the command line only; [`resolve`] also needs what `cargo metadata` knows, because the
//! configuration lies in the workspace's root. The spellings of an enum's values, on the command
//! line as in files, are those that [`clap::ValueEnum`] derives here.

mod address;
mod cargo_args;
mod config;
mod constraints;
mod identity;
mod layer;
mod reader;
mod resolve;
mod travel;
mod values;
mod writable;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use distest_worker::identity::PublicKey;

pub use config::{ConfigFiles, ConfigText, Dialect, user_config_path};
pub use constraints::{ConstraintSettings, GLOBAL, Network, Override, TestGroup, check_services};
pub use identity::{EMPTY_KEY, IdentitySettings, KeySource, KnownSource};
pub use resolve::{Environment, Facts, Resolved, Warning, compile_settings, resolve};
pub use travel::TravelSettings;
pub(crate) use travel::parse_pattern;
pub use values::{TestThreads, WaitWorkers, parse_duration};
pub(crate) use values::{parse_positive_duration, parse_shard};
pub use writable::{check_writable, is_replaced, open_in_place};

/// Everything that `run` and `list` need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the profile in force.
    pub profile: String,
    /// Building.
    pub compile: CompileSettings,
    /// Which tests.
    pub select: SelectSettings,
    /// Whether doctests run.
    pub doctests: Doctests,
    /// How they run.
    pub execute: ExecuteSettings,
    /// Where and beside whom some of them may run.
    pub constraints: ConstraintSettings,
    /// Where they run.
    pub fleet: FleetSettings,
    /// What goes there and what comes back.
    pub travel: TravelSettings,
    /// What is shown and written.
    pub report: ReportSettings,
    /// What is remembered.
    pub history: HistorySettings,
}

/// Whether doctests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doctests {
    /// They don't.
    No,
    /// After the other tests.
    After,
    /// And nothing else.
    Only,
}

/// How cargo is called.
#[derive(Clone, Debug)]
pub struct CompileSettings {
    /// The cargo to run: `$CARGO`, else `cargo`.
    pub cargo: PathBuf,
    /// `--manifest-path`, as given.
    pub manifest_path: Option<PathBuf>,
    /// Build flags for `cargo test --no-run`, as given: packages, targets, features, profile…
    /// Includes `--manifest-path`, `--config` and `--target`. Values are glued: `--package=a`.
    pub build_args: Vec<OsString>,
    /// The subset that `cargo metadata` understands: features, `--locked`, `--offline`,
    /// `--frozen`, `--config`, `--manifest-path`, `-Z`; and `--target-dir` as a `--config`, which
    /// holds only if `CARGO_TARGET_DIR` is taken out of the environment of cargo metadata.
    pub metadata_args: Vec<OsString>,
    /// `--config` values, for reading `[env]`.
    pub config: Vec<String>,
    /// `--target` values; empty for the host.
    pub targets: Vec<String>,
    /// Name of the cargo profile: `dev`, `release`, …
    pub cargo_profile: String,
    /// `--no-run`: stop when everything is built.
    pub no_run: bool,
}

/// Which tests are selected.
#[derive(Clone, Debug, Default)]
pub struct SelectSettings {
    /// Positional name filters: a test whose name contains one of them; all if empty.
    pub filters: Vec<String>,
    /// `-E` expressions: a test that matches one of them; all if empty.
    pub filtersets: Vec<String>,
    /// The profile's `default-filter`.
    pub default_filter: Option<String>,
    /// `--ignore-default-filter`.
    pub ignore_default_filter: bool,
    /// `-- --skip`: a test whose name contains one of them is left out.
    pub skip: Vec<String>,
    /// `-- --exact`: filters and skips are whole names.
    pub exact: bool,
    /// `--run-ignored`.
    pub run_ignored: RunIgnored,
    /// `--no-tests`.
    pub no_tests: NoTests,
    /// `--partition` or `--shard`.
    pub partition: Option<Partition>,
    /// Binary ids declared with `list = "whole"`: run as one test case, never listed.
    pub whole: Vec<String>,
}

/// Which of the tests that are marked `#[ignore]` run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RunIgnored {
    /// Only tests that are not ignored.
    #[default]
    Default,
    /// Only ignored ones.
    #[value(alias = "ignored-only")]
    Only,
    /// Both.
    All,
}

/// What happens if no test is left to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NoTests {
    /// Exit 0.
    Pass,
    /// A warning, exit 0.
    Warn,
    /// Exit 4.
    #[default]
    #[value(alias = "auto")]
    Fail,
}

/// A static share of the tests; `index` counts from 1 to `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// By what.
    pub by: PartitionBy,
    /// Which share.
    pub index: u32,
    /// Of how many.
    pub count: u32,
}

/// How tests are dealt to shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionBy {
    /// By a hash of the test's name: stable when tests come and go.
    Hash,
    /// In turn over all tests that are left by the filters, ordered by binary id and name.
    Slice,
    /// By past timings, longest first to the lightest share.
    Timed,
}

/// How tests run.
#[derive(Clone, Debug)]
pub struct ExecuteSettings {
    /// `--isolation`.
    pub isolation: Isolation,
    /// The profile's `isolation.writes`.
    pub writes: Writes,
    /// `--seed`: decides who shares a process; none: another one in each run.
    pub seed: Option<u64>,
    /// Attempts beyond the first that a failing test gets.
    pub retries: u32,
    /// A flaky test counts as a failure.
    pub flaky_fails: bool,
    /// The profile's `hedge`.
    pub hedge: Hedge,
    /// When to stop starting tests.
    pub max_fail: MaxFail,
    /// Tests at once over the whole run; none (also `num-cpus`): as many as there are slots.
    pub test_threads: Option<u32>,
    /// A notice each time this long has passed.
    pub slow_timeout: Duration,
    /// A test is ended after this long.
    pub test_timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How long left-over processes may take to end by themselves.
    pub leak_timeout: Duration,
    /// The run is cancelled after this long.
    pub global_timeout: Option<Duration>,
    /// `--no-capture`.
    pub no_capture: bool,
}

/// Processes per test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    /// Quick tests that passed before share one; what doesn't clearly pass there runs again alone,
    /// and each runs alone when it is its turn.
    #[default]
    Auto,
    /// Each test in its own.
    Process,
    /// All that can share one do, their first run included, and nobody has a turn alone: hides what
    /// passes only in company. For running a batch again, and for those who know their tests.
    Batch,
}

/// Whether overdue attempts are started once more on a worker that is idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hedge {
    /// Never.
    #[default]
    Off,
    /// At the end of a run, when nothing else waits.
    Tail,
}

/// Which tests of a slot see what others wrote, where that is discarded in the end: on workers with
/// a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Writes {
    /// Those of one binary that follow each other.
    #[default]
    Binary,
    /// Those of one binary that were handed out together.
    Lease,
    /// None.
    Test,
}

/// When failures end a run early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxFail {
    /// Never: `--no-fail-fast`, `--max-fail all`.
    All,
    /// After this many failed tests.
    Count {
        /// How many.
        failures: u32,
        /// End what runs too (`:immediate`), instead of letting it finish (`:wait`).
        immediate: bool,
    },
}

/// Where tests run.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// `--worker`, `DISTEST_WORKERS` or the user's configuration; empty: embedded only.
    pub workers: Vec<WorkerAddress>,
    /// Workers to wait for before the first test.
    pub wait_workers: u32,
    /// For how long.
    pub wait_for: Duration,
    /// The user asked to wait.
    pub wait_given: bool,
    /// Use at most this many.
    pub max_workers: Option<u32>,
    /// `--on NAME`: only this worker.
    pub on: Option<String>,
    /// Slots of the embedded worker.
    pub local_slots: LocalSlots,
    /// What happens if no given worker is usable.
    pub fallback: Fallback,
    /// Who we are to workers, and which of them we know.
    pub identity: IdentitySettings,
    /// `DISTEST_SSH`: what `ssh://` addresses are dialled with.
    pub ssh_program: String,
}

/// What the embedded worker is called.
pub const EMBEDDED_NAME: &str = "local";

impl FleetSettings {
    /// Where workers may dial this machine.
    pub fn dialled_at(&self) -> impl Iterator<Item = SocketAddr> {
        self.workers.iter().filter_map(|address| match address {
            WorkerAddress::Listen(place) => Some(*place),
            _ => None,
        })
    }

    /// Whether `--on` names another worker than the embedded one: only that will do.
    pub fn is_on_another(&self) -> bool {
        self.on.as_deref().is_some_and(|on| on != EMBEDDED_NAME)
    }
}

/// Where a worker is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerAddress {
    /// `tcp://HOST:PORT[#FINGERPRINT]`.
    Tcp {
        /// Name or IP address (an IPv6 address without brackets).
        host: String,
        /// Port.
        port: u16,
        /// The worker's key, if pinned in the address.
        key: Option<PublicKey>,
    },
    /// `ssh://[USER@]HOST[:PORT]`: a worker is started there.
    Ssh {
        /// As whom, if not as ssh's configuration says.
        user: Option<String>,
        /// Name, alias or IP address (an IPv6 address without brackets).
        host: String,
        /// Port, if not as ssh's configuration says.
        port: Option<u16>,
    },
    /// `listen://IP:PORT`: workers dial here.
    Listen(SocketAddr),
    /// `registry://HOST:PORT[#KEY]`: workers that registered there.
    Registry {
        /// Name or IP address (an IPv6 address without brackets).
        host: String,
        /// Port.
        port: u16,
        /// The registry's key, if it must be that one.
        key: Option<PublicKey>,
    },
    /// `mdns`: workers in the local network.
    Mdns,
}

/// Slots of the embedded worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalSlots {
    /// All cores when no worker is given, cores − 1 (at least one) beside workers.
    #[default]
    Auto,
    /// This many; 0: no embedded worker.
    Count(u32),
}

/// What happens if no given worker is usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Fallback {
    /// A warning, and the embedded worker.
    #[default]
    Embedded,
    /// Exit 97.
    Fail,
}

/// What is shown and written.
#[derive(Clone, Debug)]
pub struct ReportSettings {
    /// What goes to stdout.
    pub format: MessageFormat,
    /// Colours on the terminal.
    pub color: Color,
    /// The progress display.
    pub progress: ShowProgress,
    /// `-v`: what each worker's start took is shown.
    pub verbose: bool,
    /// Which results are shown as they come.
    pub status_level: StatusLevel,
    /// Which results are shown again at the end.
    pub final_status_level: StatusLevel,
    /// When a passing test's output is shown.
    pub success_output: OutputWhen,
    /// When a failing test's output is shown.
    pub failure_output: OutputWhen,
    /// Absolute path of the JUnit file.
    pub junit: Option<PathBuf>,
    /// Name of the JUnit report.
    pub junit_name: String,
    /// Put the output of passing tests into JUnit.
    pub junit_success_output: bool,
    /// Put the output of failing tests into JUnit.
    pub junit_failure_output: bool,
}

/// `--message-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MessageFormat {
    /// For people, on stderr.
    #[default]
    Human,
    /// One JSON object a line on stdout, human lines on stderr left out.
    Json,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// If the terminal can.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `--show-progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShowProgress {
    /// A bar on a terminal, nothing elsewhere.
    #[default]
    Auto,
    /// Nothing.
    None,
    /// A bar.
    Bar,
    /// A counter on each line.
    Counter,
}

/// Which results are shown: each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum StatusLevel {
    /// None.
    None,
    /// Failures.
    Fail,
    /// And attempts that are retried.
    Retry,
    /// And flaky tests.
    Flaky,
    /// And slow tests.
    Slow,
    /// And leaks.
    Leak,
    /// And passes.
    Pass,
    /// And skipped tests.
    Skip,
    /// Everything.
    All,
}

/// When a test's output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputWhen {
    /// As soon as the test has ended.
    Immediate,
    /// At the end of the run.
    Final,
    /// Both.
    ImmediateFinal,
    /// Never.
    Never,
}

/// What is remembered from run to run.
#[derive(Clone, Debug)]
pub struct HistorySettings {
    /// `--history`; none: one database per workspace in the user's cache folder.
    pub path: Option<PathBuf>,
    /// Not `--no-history`.
    pub enabled: bool,
}
