//! Many tests in one process, without ever turning a red test green. Pure.
//!
//! What a process costs is a noticeable share of a quick test's time, so quick tests that passed
//! before run one after the other in one process of their binary. [`select`] says which, and with
//! whom; [`Acceptance`] says what may be believed of such a process: a test keeps its pass only if
//! nothing went wrong before it ended, and everything else runs again in a process of its own.
//! [`Standing`] is what history remembers of a test for this.
//!
//! Two things are read. libtest's log, one line per test in the order in which they end, comes on
//! a pipe of its own, so that nothing that a test prints can pass for a verdict. The counts that
//! libtest prints last must agree with it.

mod accept;
mod recall;
mod select;
mod standing;
mod stdout;

pub use accept::{Acceptance, End};
pub use recall::{Members, Recalled};
pub use select::{Candidate, Mode, Selected, select};
pub use standing::{CLEAN_RUNS_TO_RETURN, Ran, Standing, Standings};
pub use stdout::{Closing, closing, failure_begins, failure_ends, failures_begin};

use distest_worker::protocol::{OsText, PROGRESS_DESCRIPTOR};

use crate::model::TestName;

/// The most tests in one process. More would save little, and cost much where the first of them
/// fails: all that come after it run again.
pub const BATCH_TESTS_MAX: usize = 512;
/// The most bytes of their names, which are arguments.
pub const BATCH_NAME_BYTES_MAX: usize = 60 * 1024;

/// Variables that say something of a single test or of how libtest is to run: none holds for a
/// batch. Left unset even if the client has them.
pub const UNSET: &[&str] = &[
    "DISTEST_TEST_ATTEMPT",
    "NEXTEST_ATTEMPT",
    "NEXTEST_ATTEMPT_ID",
    "NEXTEST_BINARY_ID",
    "NEXTEST_EXECUTION_MODE",
    "NEXTEST_TEST_NAME",
    "RUST_TEST_NOCAPTURE",
    "RUST_TEST_SHUFFLE",
    "RUST_TEST_SHUFFLE_SEED",
    "RUST_TEST_THREADS",
    "RUST_TEST_TIME_INTEGRATION",
    "RUST_TEST_TIME_UNIT",
];

/// What makes a libtest binary run these tests, in its own order, and log to the progress pipe. On
/// standard output there is a dot for each, for which nobody waits.
pub fn arguments<'a>(names: impl Iterator<Item = &'a TestName>) -> Vec<OsText> {
    let mut arguments = vec![OsText::from("--exact")];
    arguments.extend(names.map(|name| OsText::from(&*name.0)));
    let log = format!("/dev/fd/{PROGRESS_DESCRIPTOR}");
    let rest = ["--test-threads=1", "--quiet", "--logfile", &log].map(OsText::from);
    arguments.extend(rest);
    arguments
}
