//! What may be believed of a batch.

use std::time::Duration;

use distest_worker::protocol::Exit;

use super::stdout::Closing;
use crate::model::TestName;
use crate::scheduler::{InBatch, Returned};

/// A batch while it runs: the tests that were asked for, against the lines of its log.
#[derive(Debug)]
pub struct Acceptance {
    names: Vec<TestName>,
    ended: Vec<Ended>,
    /// The message of the last failure goes on in the next line.
    unfinished: bool,
    /// The log said something that was not asked for: nothing after it is believed.
    broken: bool,
}

/// How a batch's process ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// How; none if it was lost or stopped.
    pub exit: Option<Exit>,
    /// It left something behind.
    pub leaked: bool,
    /// What libtest printed last.
    pub closing: Option<Closing>,
    /// How long it ran.
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    word: Word,
    /// Since the batch was about to start.
    at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Ok,
    Failed,
    Ignored,
}

/// libtest's exit code when a test failed.
const TESTS_FAILED: Exit = Exit::Code(101);

impl Acceptance {
    /// A batch that is asked for these tests, in the order in which its binary runs them.
    pub fn new(names: Vec<TestName>) -> Self {
        Self { names, ended: Vec::new(), unfinished: false, broken: false }
    }

    /// Takes in the next line of the log.
    pub fn line(&mut self, line: &str, at: Duration) {
        if self.broken {
            return;
        }
        if self.unfinished {
            let last = self.names.get(self.ended.len() - 1);
            self.unfinished = !last.is_some_and(|name| ends_with_name(line, &name.0));
            return;
        }
        let expected = self.names.get(self.ended.len());
        match expected.and_then(|name| word(line, &name.0)) {
            Some(Told { word, whole }) => {
                self.ended.push(Ended { word, at });
                self.unfinished = !whole;
            }
            None => self.broken = true,
        }
    }

    /// Whether a test of this name was asked for.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| *known.0 == *name)
    }

    /// Tests that have ended, in their order.
    pub fn finished(&self) -> u32 {
        self.ended.len() as u32
    }

    /// When a test ended, since the batch was about to start.
    pub fn ended_at(&self, index: usize) -> Option<Duration> {
        self.ended.get(index).map(|ended| ended.at)
    }

    /// What becomes of each test, now that the batch has ended.
    ///
    /// All keep their pass if all ended well, in order, and nothing else was said or left behind.
    /// If a test failed and the process still ended as it must, those before it keep theirs. If
    /// the process ended otherwise, it may be the doing of any of them, and none does.
    pub fn close(&self, end: &End) -> Vec<Returned> {
        let complete = self.ended.len() == self.names.len();
        let keep = match self.ended.iter().position(|ended| ended.word != Word::Ok) {
            _ if complete && (self.broken || !self.ends_well(end)) => 0,
            // What fails only when its process ends, as tests do that spoil the exit code, would
            // otherwise hide behind a neighbour's crash.
            _ if !complete && end.exit.is_some() => 0,
            Some(first) => first,
            None => self.ended.len(),
        };
        let durations = self.durations(end.duration);
        let outcome = |index: usize| match self.ended.get(index).map(|ended| ended.word) {
            Some(Word::Ok) if index < keep => InBatch::Passed,
            Some(Word::Failed) => InBatch::Failed,
            Some(Word::Ok | Word::Ignored) => InBatch::Unsure,
            None if index == self.ended.len() => InBatch::Interrupted,
            None => InBatch::NotReached,
        };
        (0..self.names.len())
            .zip(durations)
            .map(|(index, duration)| Returned { outcome: outcome(index), duration })
            .collect()
    }

    /// Whether the process ended as it must after what its log says.
    fn ends_well(&self, end: &End) -> bool {
        let count = |word| self.ended.iter().filter(|ended| ended.word == word).count() as u32;
        let (passed, failed) = (count(Word::Ok), count(Word::Failed));
        let exit = if failed == 0 { Exit::Code(0) } else { TESTS_FAILED };
        let closing = Closing { passed, failed, ignored: count(Word::Ignored), measured: 0 };
        end.exit == Some(exit) && end.closing == Some(closing) && !end.leaked
    }

    /// From line to line; lines that were read together share the time. The test that ran at the
    /// end ran until then.
    fn durations(&self, total: Duration) -> Vec<Duration> {
        let mut durations = Vec::with_capacity(self.names.len());
        let (mut before, mut rest) = (Duration::ZERO, &self.ended[..]);
        while let Some(first) = rest.first() {
            let together = rest.iter().take_while(|ended| ended.at == first.at).count();
            let share = first.at.saturating_sub(before) / together as u32;
            durations.extend(std::iter::repeat_n(share, together));
            (before, rest) = (first.at, &rest[together..]);
        }
        if durations.len() < self.names.len() {
            durations.push(total.saturating_sub(before));
        }
        durations.resize(self.names.len(), Duration::ZERO);
        durations
    }
}

/// What a line says of the test that must be next.
struct Told {
    word: Word,
    /// The line ends where it must. A failure's message may have more lines.
    whole: bool,
}

/// Reads `ok NAME`, `failed NAME`, `failed: why NAME`, `failed (time limit exceeded) NAME`,
/// `ignored NAME` or `ignored: why NAME`. None if it is about another test.
fn word(line: &str, name: &str) -> Option<Told> {
    let whole = ends_with_name(line, name);
    let start = line.strip_suffix(name).map_or(line, str::trim_end);
    match start {
        "ok" => whole.then_some(Told { word: Word::Ok, whole }),
        "failed" | "failed (time limit exceeded)" => {
            whole.then_some(Told { word: Word::Failed, whole })
        }
        _ if start.starts_with("failed: ") => Some(Told { word: Word::Failed, whole }),
        _ if whole && (start == "ignored" || start.starts_with("ignored: ")) => {
            Some(Told { word: Word::Ignored, whole })
        }
        _ => None,
    }
}

fn ends_with_name(line: &str, name: &str) -> bool {
    line.strip_suffix(name).is_some_and(|start| start.ends_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use InBatch::{Failed, Interrupted, NotReached, Passed, Unsure};

    const MS: Duration = Duration::from_millis(1);

    fn closing(passed: u32, failed: u32) -> Option<Closing> {
        Some(Closing { passed, failed, ignored: 0, measured: 0 })
    }

    fn end(code: i32, closing: Option<Closing>) -> End {
        End { exit: Some(Exit::Code(code)), leaked: false, closing, duration: MS * 9 }
    }

    fn crashed() -> End {
        End { exit: Some(Exit::Signal(6)), ..end(0, None) }
    }

    /// A batch of a, b and c that logs `lines`.
    fn check(lines: &[&str], end: &End, expected: [InBatch; 3]) {
        let mut batch = Acceptance::new(["a", "b", "c"].map(TestName::new).into());
        lines.iter().for_each(|line| batch.line(line, MS));
        let outcomes: Vec<_> = batch.close(end).iter().map(|returned| returned.outcome).collect();
        assert_eq!(outcomes, expected, "{lines:?} and {end:?}");
    }

    #[test]
    fn all_pass_only_if_nothing_speaks_against_it() {
        let all = ["ok a", "ok b", "ok c"];
        check(&all, &end(0, closing(3, 0)), [Passed; 3]);
        check(&all, &end(3, closing(3, 0)), [Unsure; 3]);
        check(&all, &end(0, closing(2, 0)), [Unsure; 3]);
        check(&all, &end(0, None), [Unsure; 3]);
        check(&all, &crashed(), [Unsure; 3]);
        check(&all, &End { leaked: true, ..end(0, closing(3, 0)) }, [Unsure; 3]);
        check(&all, &End { exit: None, ..end(0, closing(3, 0)) }, [Unsure; 3]);
    }

    #[test]
    fn a_line_too_many_is_a_line_too_many() {
        let said = ["ok a", "ok b", "ok c", "ok c"];
        check(&said, &end(0, closing(3, 0)), [Unsure; 3]);
    }

    #[test]
    fn what_comes_before_a_failure_keeps_its_pass() {
        let lines = ["ok a", "failed b", "ok c"];
        check(&lines, &end(101, closing(2, 1)), [Passed, Failed, Unsure]);
        check(&lines, &end(3, closing(2, 1)), [Unsure, Failed, Unsure]);
        check(&lines, &end(101, None), [Unsure, Failed, Unsure]);
        check(&lines, &end(0, closing(3, 0)), [Unsure, Failed, Unsure]);
        let lines = ["ok a", "failed: it did not panic b", "failed c"];
        check(&lines, &end(101, closing(1, 2)), [Passed, Failed, Failed]);
        let lines = ["ok a", "failed: first line", "second line b", "ok c"];
        check(&lines, &end(101, closing(2, 1)), [Passed, Failed, Unsure]);
        check(&lines[..2], &crashed(), [Unsure, Failed, Interrupted]);
        let lines = ["ok a", "ignored b", "ok c"];
        let ignored = Closing { passed: 2, failed: 0, ignored: 1, measured: 0 };
        check(&lines, &end(0, Some(ignored)), [Passed, Unsure, Unsure]);
    }

    #[test]
    fn an_early_end_leaves_no_pass_unless_it_was_ours() {
        check(&["ok a"], &crashed(), [Unsure, Interrupted, NotReached]);
        check(&["ok a"], &end(0, None), [Unsure, Interrupted, NotReached]);
        check(&["ok a"], &End { exit: None, ..End::default() }, [Passed, Interrupted, NotReached]);
        check(&[], &end(101, None), [Interrupted, NotReached, NotReached]);
        check(&["failed a", "ok b"], &crashed(), [Failed, Unsure, Interrupted]);
    }

    #[test]
    fn only_what_was_asked_for_is_believed_in_the_order_in_which_it_was() {
        let e = end(0, closing(3, 0));
        check(&["ok b", "ok a", "ok c"], &e, [Interrupted, NotReached, NotReached]);
        check(&["ok a", "ok a", "ok b"], &e, [Unsure, Interrupted, NotReached]);
        check(&["ok a", "ok x", "ok b", "ok c"], &e, [Unsure, Interrupted, NotReached]);
        check(&["ok a", "", "ok b"], &e, [Unsure, Interrupted, NotReached]);
        check(&["ok", "oka", " ok a"], &e, [Interrupted, NotReached, NotReached]);
        check(&["okay a"], &e, [Interrupted, NotReached, NotReached]);
    }

    #[test]
    fn time_is_the_gap_between_lines() {
        let names = ["a", "b", "c", "d", "e"].map(TestName::new);
        let mut batch = Acceptance::new(names.into());
        for (line, at) in [("ok a", 4), ("ok b", 10), ("ok c", 10)] {
            batch.line(line, MS * at);
        }
        let returned = batch.close(&End { duration: MS * 15, ..crashed() });
        let durations: Vec<_> = returned.iter().map(|returned| returned.duration).collect();
        assert_eq!(durations, [4, 3, 3, 5, 0].map(|ms| MS * ms));
        assert_eq!((batch.finished(), batch.ended_at(1)), (3, Some(MS * 10)));
    }
}
