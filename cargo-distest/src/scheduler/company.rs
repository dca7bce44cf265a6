//! Tests that share a process: what is queued, handed out and answered as one.

use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::BinaryKey;

use crate::model::TestIndex;

/// With whom a test runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Company {
    /// In a process of its own.
    #[default]
    Alone,
    /// With these, itself included, one after the other in one process.
    Batch(Arc<[TestIndex]>),
    /// As [`Company::Batch`], but what the others do is known already: it failed alone, and this
    /// shows whether it passes in company.
    Witness(Arc<[TestIndex]>),
}

/// Tests of one binary that are to run in one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Their binary.
    pub binary: BinaryKey,
    /// At least two, in the order in which the binary runs them.
    pub tests: Arc<[TestIndex]>,
    /// What they will probably take together.
    pub expected: Duration,
}

/// A test of which it is known with whom it passes, or should: if it fails alone, that shows
/// whether it passes only in company.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquainted {
    /// Which.
    pub test: TestIndex,
    /// The batch in which it passed last, or into which it belongs, itself included, in order.
    pub company: Arc<[TestIndex]>,
}

/// How a test of a batch came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InBatch {
    /// It passed, and nothing says otherwise.
    Passed,
    /// It failed: whether it does so alone is to be seen.
    Failed,
    /// It ran when the batch came to its end, which says nothing about it.
    Interrupted,
    /// It ran, but something was wrong before it ended.
    Unsure,
    /// It was not begun.
    NotReached,
}

/// A test that comes back from a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// How it came out.
    pub outcome: InBatch,
    /// How long it ran.
    pub duration: Duration,
}

impl Company {
    /// The tests that are answered together with `test`.
    pub(super) fn counted<'a>(&'a self, test: &'a TestIndex) -> &'a [TestIndex] {
        match self {
            Self::Batch(tests) => tests,
            Self::Alone | Self::Witness(_) => std::slice::from_ref(test),
        }
    }
}
