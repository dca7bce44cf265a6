//! What a run would take: the scheduler over known costs on workers that do as they are told. Pure.
//!
//! Answers `cargo distest plan` and the benchmark of large fleets. Unlike the simulation of faults
//! it knows neither sessions nor messages, only how long things take.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::{AttemptId, BinaryKey};

use crate::model::{AttemptResult, TestIndex, WorkerId};
use crate::pace::Pace;
use crate::scheduler::{
    Acquainted, Batch, Company, Effect, Group, InBatch, Input, Returned, Rules, Scheduler, Task,
    Traits,
};

/// From a worker's loss to its declaration.
const LOST_AFTER: Duration = Duration::from_millis(4500);

/// A worker of a forecast.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Attempts at once.
    pub slots: u32,
    /// Tests take their time divided by this.
    pub speed: f64,
    /// The scheduler is told speed and rate, as they were learnt in an earlier run.
    pub speed_known: bool,
    /// From a request to its answer.
    pub round_trip: Duration,
    /// Making a binary ready.
    pub prepare: Duration,
    /// Bytes of binaries that get there each second; none: all of them are there.
    pub rate: Option<f64>,
    /// When it is gone without a word.
    pub dies_at: Option<Duration>,
}

/// What a forecast is about.
#[derive(Clone, Debug)]
pub struct Question {
    /// As in a run.
    pub rules: Rules,
    /// As in a run.
    pub groups: Vec<Group>,
    /// Each with what it takes on an ordinary machine.
    pub tests: Vec<(Task, Duration)>,
    /// Tests that share a process.
    pub batches: Vec<Batch>,
    /// Tests that run alone instead.
    pub acquainted: Vec<Acquainted>,
    /// All of them are there from the start.
    pub machines: Vec<Machine>,
    /// What each process takes besides its tests.
    pub overhead: Duration,
    /// Bytes of binaries; of others nothing has to be sent.
    pub sizes: BTreeMap<BinaryKey, u64>,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// From the first lease to the last result.
    pub makespan: Duration,
    /// Processes that ran to their end.
    pub attempts: u64,
    /// Tests that did.
    pub tests: u64,
    /// Every test has been run.
    pub complete: bool,
    /// Bytes of binaries that were sent.
    pub shipped: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ready(usize, u32),
    Lacks(usize, u32, u64),
    Leased(usize, Duration, Vec<(AttemptId, Process)>),
    /// A process ends on a worker.
    Ends(usize, AttemptId, Duration, Process),
    Started(usize, AttemptId, Duration),
    Ended(usize, AttemptId, Duration, Process),
    Revoke(usize, Vec<AttemptId>),
    Revoked(usize, Vec<AttemptId>),
    Dies(usize),
    Cut(usize),
    Lost(usize),
}

/// What runs in one process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Process {
    Test(TestIndex),
    Batch(Arc<[TestIndex]>),
}

impl Process {
    fn tests(&self) -> &[TestIndex] {
        match self {
            Self::Test(test) => std::slice::from_ref(test),
            Self::Batch(tests) => tests,
        }
    }
}

#[derive(Default)]
struct Running {
    /// Each with when it was handed out.
    waiting: VecDeque<(AttemptId, Process, Duration)>,
    busy: u32,
    dead: bool,
    /// Until when binaries are under way to it.
    sent_at: Duration,
}

/// Plays a run through. `step` steps the scheduler: whoever asks may count or time it.
pub fn play(
    question: &Question,
    mut step: impl FnMut(&mut Scheduler, Input, &mut Vec<Effect>),
) -> Forecast {
    let mut play = Play {
        question,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        made: 0,
        workers: question.machines.iter().map(|_| Running::default()).collect(),
        done: false,
        forecast: Forecast::default(),
    };
    let mut scheduler = Scheduler::with_groups(question.rules, question.groups.clone());
    let tasks = question.tests.iter().map(|(task, _)| task.clone()).collect();
    let mut inputs = VecDeque::from([Input::Added(tasks), Input::AllAdded]);
    if !question.batches.is_empty() || !question.acquainted.is_empty() {
        let (batches, acquainted) = (question.batches.clone(), question.acquainted.clone());
        inputs.push_back(Input::Batched { batches, acquainted });
    }
    for (index, machine) in question.machines.iter().enumerate() {
        let pace = match machine.speed_known {
            true => Pace::remembered(machine.speed, None, machine.rate),
            false => Pace::default(),
        };
        inputs.push_back(Input::Joined {
            worker: WorkerId(index as u32),
            slots: machine.slots,
            round_trip: machine.round_trip,
            traits: Traits { pace, ..Traits::default() },
        });
        if let Some(at) = machine.dies_at {
            play.at(at, Event::Dies(index));
        }
    }
    inputs.extend([Input::NoMoreWorkers, Input::Open]);
    let mut effects = Vec::new();
    loop {
        while let Some(input) = inputs.pop_front() {
            step(&mut scheduler, input, &mut effects);
            for effect in effects.drain(..) {
                play.perform(effect, &mut inputs);
            }
        }
        if play.done {
            return play.forecast;
        }
        let Some((Reverse(now), _, Reverse(event))) = play.events.pop() else {
            return play.forecast;
        };
        play.now = now;
        play.happens(event, &mut inputs);
    }
}

struct Play<'a> {
    question: &'a Question,
    now: Duration,
    events: BinaryHeap<(Reverse<Duration>, Reverse<u64>, Reverse<Event>)>,
    made: u64,
    workers: Vec<Running>,
    done: bool,
    forecast: Forecast,
}

impl Play<'_> {
    fn at(&mut self, time: Duration, event: Event) {
        self.made += 1;
        self.events.push((Reverse(time), Reverse(self.made), Reverse(event)));
    }

    fn after_half_trip(&mut self, worker: usize, event: Event) {
        let half = self.question.machines[worker].round_trip / 2;
        self.at(self.now + half, event);
    }

    fn perform(&mut self, effect: Effect, inputs: &mut VecDeque<Input>) {
        match effect {
            Effect::Prepare { worker, binary, bytes_max } => {
                let index = worker.0 as usize;
                let machine = &self.question.machines[index];
                let size = self.question.sizes.get(&binary).copied().unwrap_or(0);
                let rate = machine.rate.filter(|_| size > 0);
                let takes = machine.round_trip + machine.prepare;
                if rate.is_some() && size > bytes_max {
                    return self
                        .at(self.now + machine.round_trip, Event::Lacks(index, binary.0, size));
                }
                let sent = &mut self.workers[index].sent_at;
                *sent = (*sent).max(self.now);
                if let Some(rate) = rate {
                    *sent += Duration::from_secs_f64(size as f64 / rate.max(1.0));
                    self.forecast.shipped += size;
                }
                let at = *sent + takes;
                self.at(at, Event::Ready(index, binary.0));
            }
            Effect::Lease { worker, grants } => {
                let processes = grants.into_iter().map(|grant| match grant.company {
                    Company::Batch(tests) => (grant.attempt, Process::Batch(tests)),
                    // Nobody fails, so nobody's witness is sought.
                    Company::Alone | Company::Witness(_) => {
                        (grant.attempt, Process::Test(grant.test))
                    }
                });
                let leased = Event::Leased(worker.0 as usize, self.now, processes.collect());
                self.after_half_trip(worker.0 as usize, leased);
            }
            Effect::Revoke { worker, attempts } => {
                let revoke = Event::Revoke(worker.0 as usize, attempts);
                self.after_half_trip(worker.0 as usize, revoke);
            }
            Effect::NeedWorker => inputs.push_back(Input::NoWorker),
            Effect::Verdict { .. } => self.forecast.makespan = self.now,
            Effect::Done => {
                self.done = true;
                self.forecast.complete = self.forecast.tests >= self.question.tests.len() as u64;
            }
            Effect::Stop { .. }
            | Effect::AttemptEnded { .. }
            | Effect::RunsAgainAlone { .. }
            | Effect::Cancelling { .. }
            | Effect::TookDown { .. }
            | Effect::Quarantined { .. }
            | Effect::Unplaceable { .. }
            | Effect::Watch { .. }
            | Effect::Kill { .. }
            | Effect::Hedged { .. }
            | Effect::GoesOn { .. }
            | Effect::Abandoned { .. } => {}
        }
    }

    fn happens(&mut self, event: Event, inputs: &mut VecDeque<Input>) {
        let id = |index: usize| WorkerId(index as u32);
        match event {
            Event::Ready(index, binary) => {
                let binary = BinaryKey(binary);
                inputs.push_back(Input::Ready { worker: id(index), binary });
            }
            Event::Lacks(index, binary, bytes) => {
                let binary = BinaryKey(binary);
                inputs.push_back(Input::Lacks { worker: id(index), binary, bytes });
            }
            Event::Leased(index, at, grants) => {
                let grants = grants.into_iter().map(|(attempt, process)| (attempt, process, at));
                self.workers[index].waiting.extend(grants);
                self.start(index);
            }
            Event::Ends(index, attempt, took, process) if !self.workers[index].dead => {
                self.workers[index].busy -= 1;
                self.after_half_trip(index, Event::Ended(index, attempt, took, process));
                self.start(index);
            }
            Event::Started(index, attempt, waited) => {
                inputs.push_back(Input::Started { worker: id(index), attempt, waited });
            }
            Event::Ended(index, attempt, duration, process) => {
                self.forecast.attempts += 1;
                self.forecast.tests += process.tests().len() as u64;
                let worker = id(index);
                inputs.push_back(match process {
                    Process::Test(_) => {
                        Input::Ended { worker, attempt, result: AttemptResult::Pass, duration }
                    }
                    Process::Batch(tests) => {
                        let passed = |_: &TestIndex| Returned {
                            outcome: InBatch::Passed,
                            duration: duration / tests.len() as u32,
                        };
                        let tests = tests.iter().map(passed).collect();
                        Input::BatchEnded { worker, attempt, tests, duration }
                    }
                });
            }
            Event::Revoke(index, mut attempts) => {
                let waiting = &mut self.workers[index].waiting;
                let held: BTreeSet<_> = waiting.iter().map(|(attempt, ..)| *attempt).collect();
                attempts.retain(|attempt| held.contains(attempt));
                waiting.retain(|(attempt, ..)| !attempts.contains(attempt));
                self.after_half_trip(index, Event::Revoked(index, attempts));
            }
            Event::Revoked(index, attempts) => {
                inputs.push_back(Input::Revoked { worker: id(index), attempts });
            }
            Event::Dies(index) => {
                self.workers[index].dead = true;
                self.workers[index].waiting.clear();
                self.after_half_trip(index, Event::Cut(index));
                self.at(self.now + LOST_AFTER, Event::Lost(index));
            }
            Event::Cut(index) => inputs.push_back(Input::Cut { worker: id(index) }),
            Event::Lost(index) => inputs.push_back(Input::Lost { worker: id(index) }),
            Event::Ends(..) => {}
        }
    }

    fn start(&mut self, index: usize) {
        let machine = &self.question.machines[index];
        while self.workers[index].busy < machine.slots && !self.workers[index].dead {
            let next = self.workers[index].waiting.pop_front();
            let Some((attempt, process, leased)) = next else { return };
            self.workers[index].busy += 1;
            let tests = process.tests().iter().map(|test| self.question.tests[test.0 as usize].1);
            let takes: Duration = tests.sum();
            let takes = takes.div_f64(machine.speed.max(0.01)) + self.question.overhead;
            let waited = self.now - leased + machine.round_trip / 2;
            self.after_half_trip(index, Event::Started(index, attempt, waited));
            self.at(self.now + takes, Event::Ends(index, attempt, takes, process));
        }
    }
}

#[cfg(test)]
mod tests;
