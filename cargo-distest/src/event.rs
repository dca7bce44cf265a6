//! All that can be said of a run. Stages emit these; [`crate::results`] folds them and reporters
//! show them. A reporter that lacks information gets a field here, never an import of a stage.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use distest_worker::protocol::{Exit, Leak, Stream, Usage};

use crate::model::{AttemptResult, Step, TestCase, TestIndex, Triple, Verdict, WorkerId};

/// Something that happened in a run. `at` fields are measured from the run's start.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// First of all.
    Started(Box<RunStarted>),
    /// cargo has linked everything. Until now cargo owned the terminal.
    Built {
        /// How long cargo took.
        elapsed: Duration,
    },
    /// A test case became known and will run.
    Planned {
        /// Its number, used from now on.
        test: TestIndex,
        /// What it is.
        case: TestCase,
        /// What it was built for.
        triple: Triple,
        /// What it will probably take, if history knows it.
        expected: Option<Duration>,
    },
    /// A test case became known and will not run; its verdict is [`Verdict::Skipped`].
    Skipped {
        /// What it is.
        case: TestCase,
        /// What it was built for.
        triple: Triple,
        /// Why.
        reason: SkipReason,
    },
    /// All test cases are known.
    PlanComplete(PlanComplete),
    /// A worker can be used.
    WorkerJoined(Arc<WorkerInfo>),
    /// A worker that isn't embedded came closer to its first result.
    Step {
        /// Which one.
        worker: WorkerId,
        /// What is done.
        step: Step,
        /// How long that took.
        took: Duration,
    },
    /// Nobody waits for workers any longer: the run is as quick here. Who joins later is used.
    StaysLocal,
    /// An address that was given yields no usable worker.
    WorkerUnusable {
        /// As it was given.
        address: String,
        /// Why not.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A worker's connection broke, and its session goes on over another one. Nothing was lost.
    WorkerResumed {
        /// Which one.
        worker: WorkerId,
        /// What became of the first, as far as we know.
        reason: String,
        /// How long it took.
        after: Duration,
    },
    /// A worker is gone; what it had goes elsewhere.
    WorkerLost {
        /// Which one.
        worker: WorkerId,
        /// Why, as far as we know.
        reason: String,
        /// Attempts that ran there, as far as was told.
        running: u32,
        /// Attempts that had been handed to it beside those.
        waiting: u32,
    },
    /// Bytes went to a worker, counted on its socket.
    Shipped {
        /// To which one.
        worker: WorkerId,
        /// Bytes of blobs, as encoded.
        bytes: u64,
        /// Blobs that these bytes complete.
        blobs: u32,
    },
    /// An attempt's process runs.
    AttemptStarted {
        /// Of which test.
        test: TestIndex,
        /// From 1.
        attempt: u32,
        /// Where.
        worker: WorkerId,
    },
    /// An attempt is slow.
    AttemptSlow {
        /// Of which test.
        test: TestIndex,
        /// From 1.
        attempt: u32,
        /// Where.
        worker: WorkerId,
        /// Since it started.
        elapsed: Duration,
    },
    /// An attempt runs far longer than expected, and is started once more elsewhere: the first of
    /// the two that ends decides.
    Hedged {
        /// Of which test.
        test: TestIndex,
        /// From 1; both have it.
        attempt: u32,
        /// Where it is overdue.
        overdue: WorkerId,
        /// Where else it runs now.
        worker: WorkerId,
    },
    /// The other attempt of a hedged test was lost, or failed and counts as a try of its own: this one goes on as
    /// the only one.
    AttemptGoesOn {
        /// Of which test.
        test: TestIndex,
        /// From 1; what it has from now on.
        attempt: u32,
        /// Where.
        worker: WorkerId,
    },
    /// A piece of output of an attempt that is shown as it is written (`--no-capture`).
    LiveOutput {
        /// Of which test.
        test: TestIndex,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Bytes,
    },
    /// An attempt ended, or was lost.
    AttemptEnded(Arc<AttemptEnded>),
    /// Tests that shared a process have ended, or their process has.
    BatchEnded(Arc<BatchEnded>),
    /// A test that was in a batch runs again in a process of its own.
    RunsAgainAlone {
        /// Which.
        test: TestIndex,
    },
    /// A test case's story ended. Exactly one for each [`RunEvent::Planned`].
    Verdict {
        /// Of which test.
        test: TestIndex,
        /// Which.
        verdict: Verdict,
    },
    /// No more tests are started.
    Cancelling {
        /// Why.
        reason: CancelReason,
        /// Attempts that still run.
        running: u32,
    },
    /// Something that a user should know and that doesn't end the run.
    Warning {
        /// What, and why.
        text: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Tests created or changed files on workers, and they are here now.
    Collected {
        /// Which, by the client's paths.
        files: Vec<PathBuf>,
    },
    /// Last of all, if the run got beyond its start: build errors included.
    Finished(Box<RunFinished>),
}

/// Who runs what.
#[derive(Clone, Debug)]
pub struct RunStarted {
    /// The run's name, unique.
    pub run: String,
    /// Version of `cargo distest`.
    pub version: &'static str,
    /// Wall clock, for reports only.
    pub at: SystemTime,
    /// The workspace's root.
    pub workspace: PathBuf,
    /// Name of the profile in use.
    pub profile: String,
}

/// What will be done.
#[derive(Clone, Debug, Default)]
pub struct PlanComplete {
    /// Test cases that will run.
    pub tests: u32,
    /// Test cases that will not.
    pub skipped: u32,
    /// Test binaries.
    pub binaries: u32,
    /// Binaries whose listing was executed, not taken from the cache.
    pub listed: u32,
}

/// A worker as reports name it.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    /// Its number in this run.
    pub id: WorkerId,
    /// Its name: `local` for the embedded one.
    pub name: String,
    /// Address as given; empty for the embedded one.
    pub address: String,
    /// Slots that this run may use.
    pub slots: u32,
    /// It lives in this process.
    pub embedded: bool,
}

/// Why a test case doesn't run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// `#[ignore]`, and ignored tests were not asked for; or the reverse.
    Ignored,
    /// Name filters leave it out.
    Filter,
    /// The profile's default filter leaves it out.
    DefaultFilter,
    /// It belongs to another shard.
    Partition,
}

/// Why no more tests are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// `--fail-fast` or `--max-fail`.
    TestFailure,
    /// Ctrl-C or SIGTERM.
    Interrupt,
    /// `--global-timeout`.
    GlobalTimeout,
    /// No worker is left, or none that takes what remains.
    FleetLost,
    /// No worker meets a test's needs.
    Unplaceable,
    /// Something else failed: told at the end.
    Failure,
}

/// One attempt, from start to end.
#[derive(Clone, Debug)]
pub struct AttemptEnded {
    /// Of which test.
    pub test: TestIndex,
    /// From 1, one more for each of the test's attempts that is told. What the test itself sees are its tries
    /// in a process of its own that were not lost.
    pub attempt: u32,
    /// Another attempt follows because of `--retries`.
    pub will_retry: bool,
    /// Where.
    pub worker: WorkerId,
    /// How it ended.
    pub result: AttemptResult,
    /// In words: `exited with code 101`, `signal 11 (SIGSEGV)`, `timed out after 60s`, a loss's
    /// cause. Empty for a plain pass.
    pub reason: String,
    /// How its process ended; none if it was lost.
    pub exit: Option<Exit>,
    /// When it started, since the run's start.
    pub started: Duration,
    /// How long it ran.
    pub duration: Duration,
    /// What it left behind.
    pub leak: Option<Leak>,
    /// Processor time and memory.
    pub usage: Usage,
    /// Standard output.
    pub stdout: CapturedOutput,
    /// Standard error.
    pub stderr: CapturedOutput,
    /// What a shell needs to run this again by hand, in the client's paths.
    pub reproduce: String,
    /// What may have made it fail there and not here, for people.
    pub hints: Vec<String>,
    /// The number of the batch that it was part of; none if it had a process of its own.
    pub batch: Option<u32>,
    /// What a shell needs to run that batch again, or the batch in which the test passes.
    pub reproduce_batch: Option<String>,
    /// It failed alone, and passes in the batch into which it belongs.
    pub only_in_company: bool,
    /// Its process said last what libtest says last, as far as anybody looked.
    pub orderly: bool,
}

/// Tests that shared a process.
#[derive(Clone, Debug)]
pub struct BatchEnded {
    /// From 1 within the run.
    pub number: u32,
    /// Its tests, in the order in which they were to run.
    pub tests: Vec<TestIndex>,
    /// Those of them that failed, or have no verdict because the batch ended too early, or may be
    /// why it did.
    pub trouble: Vec<TestIndex>,
    /// Where.
    pub worker: WorkerId,
    /// How long it ran.
    pub duration: Duration,
}

/// What an attempt wrote to one stream.
#[derive(Clone, Debug, Default)]
pub struct CapturedOutput {
    /// The beginning; everything if `spill` is none.
    pub head: Bytes,
    /// The end, if not all is in `head`; never overlaps it.
    pub tail: Bytes,
    /// Bytes written by the test.
    pub total: u64,
    /// Where all of it lies, if it is not all in `head`. Kept after the run.
    pub spill: Option<PathBuf>,
}

/// The run's end.
#[derive(Clone, Debug)]
pub struct RunFinished {
    /// What the process will exit with.
    pub exit_code: u8,
    /// Since the run's start.
    pub elapsed: Duration,
    /// How long cargo took.
    pub build: Duration,
    /// From the build's end to the first attempt's start, as far as something was shipped.
    pub ship: Duration,
    /// From the run's start to the first attempt's end.
    pub first_result: Option<Duration>,
    /// From the first attempt's start to the last one's end.
    pub testing: Duration,
    /// max(total work / slots, longest test), from what was measured in this run.
    pub bound: Duration,
    /// The longest test and how long it took.
    pub longest: Option<(TestCase, Duration)>,
    /// Binaries whose listing was executed.
    pub listed: u32,
    /// An earlier error ended the run: told elsewhere.
    pub failed_early: bool,
    /// Per worker: what it did.
    pub workers: Vec<WorkerDone>,
}

/// What a worker did in a run.
#[derive(Clone, Debug)]
pub struct WorkerDone {
    /// Which one.
    pub info: Arc<WorkerInfo>,
    /// Attempts that ended there.
    pub tests: u32,
    /// Sum of their durations.
    pub busy: Duration,
    /// Bytes of blobs that were sent there, as encoded.
    pub shipped_bytes: u64,
    /// How long it took to its first result, by step.
    pub steps: Vec<(Step, Duration)>,
}
