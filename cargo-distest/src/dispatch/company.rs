//! Tests that share a process: the attempt that a worker is handed, and its end told test by test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distest_worker::protocol::{
    AttemptId, AttemptSpec, Exit, Finished, Network, OsText, ProgressLine, Streams, Usage,
};

use super::{Dispatch, Ending, InFlight, Planned, judge};
use crate::batch::{self, Acceptance, Closing, End, Recalled};
use crate::event::{AttemptEnded, BatchEnded, CapturedOutput, RunEvent};
use crate::model::{AttemptResult, TestCase, TestIndex, WorkerId};
use crate::scheduler::{Company, Grant, InBatch, Input, Returned};
use crate::testenv;

/// A batch that is with a worker.
pub(super) struct Batch {
    /// From 1 within the run.
    number: u32,
    tests: Arc<[TestIndex]>,
    acceptance: Acceptance,
    /// It shows only whether the attempt's own test passes in company.
    witness: bool,
}

impl Batch {
    /// The test that runs now.
    pub(super) fn running(&self) -> Option<TestIndex> {
        self.tests.get(self.acceptance.finished() as usize).copied()
    }
}

impl Dispatch {
    /// What a worker is to do for a grant that is no single test.
    pub(super) fn batch_spec(&mut self, grant: &Grant) -> Option<(AttemptSpec, Batch)> {
        let (tests, witness) = match &grant.company {
            Company::Alone => return None,
            Company::Batch(tests) => (Arc::clone(tests), false),
            Company::Witness(tests) => (Arc::clone(tests), true),
        };
        let names: Vec<_> =
            tests.iter().map(|test| self.planned(*test).case.name.clone()).collect();
        let unset = testenv::unset(&self.planned(grant.test).runnable.binary.package);
        let spec = AttemptSpec {
            id: grant.attempt,
            binary: self.planned(grant.test).runnable.key,
            args: batch::arguments(names.iter()),
            env: Vec::new(),
            limits: self.settings.limits,
            streams: Streams::Capture,
            progress: true,
            unset: batch::UNSET.iter().copied().map(OsText::from).chain(unset).collect(),
            // Tests with networks of their own have no company.
            network: Network::Host,
            places: 1,
            label: self.label_of(&tests),
        };
        self.batches += 1;
        let acceptance = Acceptance::new(names);
        Some((spec, Batch { number: self.batches, tests, acceptance, witness }))
    }

    /// Who is meant by a batch.
    fn label_of(&self, tests: &[TestIndex]) -> String {
        match tests {
            [] => String::new(),
            [one] => self.planned(*one).case.to_string(),
            [first, others @ ..] => {
                let case = &self.planned(*first).case;
                format!("{case} or {} more in its process", others.len())
            }
        }
    }

    pub(super) fn planned(&self, test: TestIndex) -> &Planned {
        &self.tests[test.0 as usize]
    }

    pub(super) fn on_progress(
        &mut self,
        worker: WorkerId,
        attempt: AttemptId,
        lines: &[ProgressLine],
        inputs: &mut Vec<Input>,
    ) {
        let flight = self.flight(worker, attempt);
        let Some(batch) = flight.and_then(|flight| flight.batch.as_mut()) else { return };
        lines.iter().for_each(|line| batch.acceptance.line(&line.text, line.at));
        let finished = batch.acceptance.finished();
        inputs.push(Input::Progressed { worker, attempt, finished });
    }

    /// Whether a test alone leaves its process as it must for others: libtest still has the last
    /// word.
    pub(super) fn is_orderly(&self, flight: &InFlight, stdout: &CapturedOutput) -> bool {
        let judged = self.planned(flight.test).runnable.sharing.is_some();
        let kept = self.settings.streams == Streams::Capture;
        !judged || !kept || last_word(stdout) == Some(Closing { passed: 1, ..Closing::default() })
    }

    /// A batch's process has ended.
    pub(super) async fn batch_finished(
        &mut self,
        mut flight: InFlight,
        batch: Batch,
        finished: Finished,
        inputs: &mut Vec<Input>,
    ) {
        let outputs = flight.outputs(&finished);
        let end = End {
            exit: Some(finished.exit),
            leaked: finished.leak.is_some(),
            closing: last_word(&outputs[0]),
            duration: finished.duration,
        };
        let how = match (finished.timed_out, finished.exit) {
            (true, _) => "it took too long".to_owned(),
            (false, Exit::Code(code)) => format!("exited with code {code}"),
            (false, Exit::Signal(number)) => judge::signal(number),
        };
        let manner = match finished.timed_out {
            true => Manner::TimedOut,
            false => Manner::Ended,
        };
        self.end_batch(finished.attempt, flight, batch, &end, manner, &how, outputs, inputs).await;
    }

    /// A batch came to no end of its own.
    pub(super) async fn batch_lost(
        &mut self,
        attempt: AttemptId,
        flight: InFlight,
        batch: Batch,
        reason: &str,
        inputs: &mut Vec<Input>,
    ) {
        let end = End { duration: flight.elapsed(), ..End::default() };
        let outputs = Default::default();
        self.end_batch(attempt, flight, batch, &end, Manner::Lost, reason, outputs, inputs).await;
    }

    #[expect(clippy::too_many_arguments, reason = "they are what an end consists of")]
    async fn end_batch(
        &mut self,
        attempt: AttemptId,
        flight: InFlight,
        batch: Batch,
        end: &End,
        manner: Manner,
        how: &str,
        outputs: [CapturedOutput; 2],
        inputs: &mut Vec<Input>,
    ) {
        let returned = batch.acceptance.close(end);
        let tests = Arc::clone(&batch.tests);
        if batch.witness {
            let position = tests.iter().position(|test| *test == flight.test);
            let own = position.and_then(|at| returned.get(at).copied());
            self.heard_witness(flight.test, &tests, own.map(|own| own.outcome));
            inputs.push(Input::BatchEnded {
                worker: flight.worker,
                attempt,
                tests: own.into_iter().collect(),
                duration: end.duration,
            });
            return;
        }
        let mut story = Story { flight: &flight, batch: &batch, how, outputs };
        for (index, (test, returned)) in tests.iter().zip(&returned).enumerate() {
            let name = &self.planned(*test).case.name.0;
            if let Some(ending) = story.ending(index, returned, name) {
                self.keep_ending(attempt, *test, false, ending);
            }
        }
        let trouble = manner.trouble(&returned);
        self.tell(RunEvent::BatchEnded(Arc::new(BatchEnded {
            number: batch.number,
            trouble: trouble.map(|index| tests[index]).collect(),
            tests: tests.to_vec(),
            worker: flight.worker,
            duration: end.duration,
        })))
        .await;
        inputs.push(Input::BatchEnded {
            worker: flight.worker,
            attempt,
            tests: returned,
            duration: end.duration,
        });
    }

    fn heard_witness(&mut self, test: TestIndex, tests: &Arc<[TestIndex]>, own: Option<InBatch>) {
        if own == Some(InBatch::Passed) {
            self.witnessed.insert(test, Arc::clone(tests));
        } else if own == Some(InBatch::Failed) {
            // In the very company in which it passed it doesn't any more: it has changed.
            let members = self.recalled(test).and_then(|it| it.members);
            if members.is_some_and(|members| members.names().count() == tests.len()) {
                self.changed.insert(test);
            }
        }
    }

    /// How a test passed before, unless it is known that it doesn't any more.
    fn recalled(&self, test: TestIndex) -> Option<Recalled> {
        let TestCase { binary, name } = &self.planned(test).case;
        self.standings.get(binary, name).1.filter(|_| !self.changed.contains(&test))
    }

    /// A test failed alone and passes in company.
    pub(super) fn only_in_company(&self, ended: &mut AttemptEnded) {
        ended.only_in_company = true;
        ended.reason = match ended.reason.is_empty() {
            true => "passes only in company".to_owned(),
            false => format!("passes only in company; alone: {}", ended.reason),
        };
        let company = self.witnessed.get(&ended.test);
        ended.reproduce_batch = company.map(|tests| self.reproduce_batch(tests));
    }

    /// A test failed alone and may pass in company, which nobody could see in this run.
    pub(super) fn recall(&self, ended: &mut AttemptEnded) {
        let counts = !ended.result.passed() && ended.result != AttemptResult::Lost;
        if !counts || ended.will_retry || ended.batch.is_some() {
            return;
        }
        let Some(recalled) = self.recalled(ended.test) else { return };
        let words = recalled.words();
        ended.reason = match ended.reason.is_empty() {
            true => words,
            false => format!("{}; {words}", ended.reason),
        };
        let binary = &self.planned(ended.test).runnable.binary;
        ended.reproduce_batch = recalled.members.as_ref().map(|members| {
            testenv::reproduce_batch(&self.settings.build_args, binary, members.names())
        });
    }

    /// The command that runs exactly these tests in one process again.
    pub(super) fn reproduce_batch(&self, tests: &[TestIndex]) -> String {
        let Some(first) = tests.first() else { return String::new() };
        let names = tests.iter().map(|test| &*self.planned(*test).case.name.0);
        let binary = &self.planned(*first).runnable.binary;
        testenv::reproduce_batch(&self.settings.build_args, binary, names)
    }
}

fn last_word(stdout: &CapturedOutput) -> Option<Closing> {
    batch::closing(if stdout.tail.is_empty() { &stdout.head } else { &stdout.tail })
}

/// In what manner a batch ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Ended,
    TimedOut,
    Lost,
}

impl Manner {
    /// The tests that had trouble in company: they failed, ran when the batch ended too early, or
    /// would have come after that. The last that passed before may have left behind what ended it.
    fn trouble(self, returned: &[Returned]) -> impl Iterator<Item = usize> {
        let early = returned.iter().position(|it| it.outcome == InBatch::Interrupted);
        let troubled = move |index: usize, outcome: InBatch| match (self, outcome) {
            (Self::Lost, _) => false,
            (_, InBatch::Failed | InBatch::Interrupted) => true,
            (Self::TimedOut, _) => false,
            (Self::Ended, InBatch::NotReached) => true,
            (Self::Ended, _) => early == Some(index + 1),
        };
        let indexed = returned.iter().enumerate();
        let found: Vec<_> = indexed
            .filter(|(index, it)| troubled(*index, it.outcome))
            .map(|(index, _)| index)
            .collect();
        found.into_iter()
    }
}

/// A batch's end, on its way to becoming its tests' ends.
struct Story<'a> {
    flight: &'a InFlight,
    batch: &'a Batch,
    how: &'a str,
    outputs: [CapturedOutput; 2],
}

impl Story<'_> {
    /// What there is to say of one test; nothing if it was not begun.
    fn ending(&mut self, index: usize, returned: &Returned, name: &str) -> Option<Ending> {
        let tests = self.batch.tests.len();
        let mut ending = Ending {
            worker: self.flight.worker,
            started: self.flight.started.map(|started| {
                let ended = self.batch.acceptance.ended_at(index);
                let before = index.checked_sub(1).and_then(|i| self.batch.acceptance.ended_at(i));
                let begun = ended.map(|ended| ended.saturating_sub(returned.duration));
                started + begun.or(before).unwrap_or_default()
            }),
            reason: String::new(),
            exit: None,
            duration: returned.duration,
            leak: None,
            orderly: true,
            usage: Usage::default(),
            outputs: Default::default(),
            batch: Some(self.batch.number),
            batch_tests: None,
            notes: Vec::new(),
        };
        match returned.outcome {
            InBatch::Passed => ending.exit = Some(Exit::Code(0)),
            InBatch::Failed => {
                ending.exit = Some(Exit::Code(101));
                ending.reason = format!("failed in a batch of {tests} tests");
                ending.outputs[0] = self.failure(name);
                ending.batch_tests = Some(Arc::clone(&self.batch.tests));
            }
            InBatch::Interrupted => {
                ending.reason =
                    format!("the batch of {tests} tests ended while it ran: {}", self.how);
                ending.outputs = std::mem::take(&mut self.outputs);
                ending.batch_tests = Some(Arc::clone(&self.batch.tests));
            }
            InBatch::Unsure => {
                ending.reason = format!("the batch of {tests} tests is not to be trusted");
            }
            InBatch::NotReached => return None,
        }
        Some(ending)
    }

    /// A failed test's own output, or all there is if it can't be told apart.
    fn failure(&self, name: &str) -> CapturedOutput {
        let stdout = &self.outputs[0];
        let ends = |rest: &[u8]| batch::failure_ends(rest, |name| self.batch.acceptance.has(name));
        let (in_head, in_tail) =
            (batch::failures_begin(&stdout.head), batch::failures_begin(&stdout.tail));
        let has_more = stdout.spill.is_some();
        let places = [
            (&stdout.tail, in_tail, false),
            (&stdout.head, in_head, has_more),
            (&stdout.tail, in_head.map(|_| 0), false),
        ];
        for (part, failures, goes_on) in places {
            let begin = failures.and_then(|from| batch::failure_begins(part, from, name));
            let Some(begin) = begin else { continue };
            let own = part.slice(begin..);
            let (head, tail) = match ends(&own) {
                Some(end) => (own.slice(..end), Bytes::new()),
                None if goes_on => {
                    let end = ends(&stdout.tail).unwrap_or(stdout.tail.len());
                    (own, stdout.tail.slice(..end))
                }
                None => (own, Bytes::new()),
            };
            let kept = (head.len() + tail.len()) as u64;
            // What is in neither lies between them.
            let between = stdout.total - (stdout.head.len() + stdout.tail.len()) as u64;
            return match tail.is_empty() {
                true => CapturedOutput { head, total: kept, ..Default::default() },
                false => {
                    let (total, spill) = (kept + between, stdout.spill.clone());
                    CapturedOutput { head, tail, total, spill }
                }
            };
        }
        stdout.clone()
    }
}

impl InFlight {
    fn elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| Instant::now() - started)
    }
}
