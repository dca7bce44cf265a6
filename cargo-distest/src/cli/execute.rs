//! Flags that say how and where tests run.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::settings::{
    Isolation, LocalSlots, MaxFail, TestThreads, WaitWorkers, WorkerAddress,
    parse_positive_duration,
};

/// How tests run.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Runner options")]
pub struct ExecuteArgs {
    /// Build, but do not run.
    #[arg(long)]
    pub no_run: bool,
    /// Tests at once over the whole run: a number, a negative number (cores less that many) or
    /// `num-cpus` (as many as there are slots) [env: DISTEST_TEST_THREADS]
    #[arg(short = 'j', long, visible_alias = "jobs", value_name = "N", allow_hyphen_values = true)]
    pub test_threads: Option<TestThreads>,
    /// Which tests share a process [env: DISTEST_ISOLATION] [default: auto, or process with a
    /// nextest configuration]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub isolation: Option<Isolation>,
    /// Decides which tests share a process [env: DISTEST_SEED] [default: another in each run]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Attempts beyond the first that a failing test gets [env: DISTEST_RETRIES] [default: 0]
    #[arg(long, value_name = "N")]
    pub retries: Option<u32>,
    /// What a test counts as that failed and then passed [env: DISTEST_FLAKY_RESULT]
    /// [default: pass]
    #[arg(long, value_name = "RESULT", value_enum)]
    pub flaky_result: Option<FlakyResult>,
    /// Start no more tests after the first failure (the default).
    #[arg(long, visible_alias = "ff", conflicts_with_all = ["no_fail_fast", "max_fail"])]
    pub fail_fast: bool,
    /// Run all tests, whatever fails.
    #[arg(long, visible_alias = "nff", conflicts_with = "max_fail")]
    pub no_fail_fast: bool,
    /// Failures after which no more tests are started: `N`, `N:wait`, `N:immediate` (ends what
    /// runs, too) or `all` [env: DISTEST_MAX_FAIL]
    #[arg(long, value_name = "N[:MODE]")]
    pub max_fail: Option<MaxFail>,
    /// Give a notice each time a test has run this long [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub slow_timeout: Option<Duration>,
    /// End a test that has run this long.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub test_timeout: Option<Duration>,
    /// Cancel the run after this long.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub global_timeout: Option<Duration>,
    /// One test at a time, output as it is written; standard input too, if exactly one test is
    /// selected.
    ///
    /// Nothing is changed in that output: what controls a terminal gets there, also from a worker.
    #[arg(long, alias = "nocapture")]
    pub no_capture: bool,
}

/// `--flaky-result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlakyResult {
    /// As a pass.
    Pass,
    /// As a failure.
    Fail,
}

/// Where tests run.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Fleet options")]
pub struct FleetArgs {
    /// A worker: `tcp://HOST:PORT[#KEY]`, `ssh://[USER@]HOST[:PORT]` (started there for this
    /// run), `listen://IP:PORT` (workers dial here), `registry://HOST:PORT` (those that registered
    /// there) or `mdns` (those in the local network); may be repeated [env: DISTEST_WORKERS]
    #[arg(long, value_name = "ADDR")]
    pub worker: Vec<WorkerAddress>,
    /// Workers to wait for before the first test, and for how long [default: 1:30s, and no longer than
    /// the run takes here]; if given, also for those that aren't there yet, and for another one when
    /// the last is gone
    #[arg(long, value_name = "N[:DURATION]")]
    pub wait_workers: Option<WaitWorkers>,
    /// Use at most this many workers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_workers: Option<u32>,
    /// Use only the worker of this name or key: one of those given, or one that is known from an
    /// invitation. Without it nothing runs.
    #[arg(long, value_name = "NAME")]
    pub on: Option<String>,
    /// Slots of this machine: a number, 0 for none, or `auto` (all cores, one fewer beside
    /// workers) [env: DISTEST_LOCAL_SLOTS] [default: auto]
    #[arg(long, value_name = "N|auto")]
    pub local_slots: Option<LocalSlots>,
}
