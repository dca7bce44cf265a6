//! How long tests take, kept by workers for clients that have no history.

use serde::{Deserialize, Serialize};

/// The most tests of one project of which a worker keeps the times, and the most in one message.
pub const TIMES_MAX: usize = 20_000;
/// The most bytes of one test's texts; longer ones are not kept.
pub const TIME_TEXT_BYTES_MAX: usize = 1024;
/// The most bytes of all texts in one message.
pub const TIMES_BYTES_MAX: usize = 2 << 20;

/// How long a test takes.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TestTime {
    /// Its binary's id, as the client writes it.
    pub binary: String,
    /// Its name.
    pub name: String,
    /// In microseconds, on an ordinary worker.
    pub micros: u64,
}

/// As many of these, from the first, as a message takes.
pub fn bounded(times: impl IntoIterator<Item = TestTime>) -> Vec<TestTime> {
    let (mut kept, mut bytes) = (Vec::new(), 0);
    for time in times {
        let text = time.binary.len() + time.name.len();
        if text > TIME_TEXT_BYTES_MAX {
            continue;
        }
        bytes += text;
        if kept.len() >= TIMES_MAX || bytes > TIMES_BYTES_MAX {
            break;
        }
        kept.push(time);
    }
    kept
}
