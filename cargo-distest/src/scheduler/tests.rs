//! Scripts of inputs and expected effects, and seeded random runs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::*;

mod batches;
mod comes_back;
mod hedge;
mod illegal;
mod pace;
mod special;
mod unsaid;

const RULES: Rules = Rules {
    retries: 0,
    failures_max: None,
    failures_end_running: false,
    flaky_fails: false,
    threads: None,
    hedge: false,
};
const W0: WorkerId = WorkerId(0);
const W1: WorkerId = WorkerId(1);
const B0: BinaryKey = BinaryKey(0);
const B1: BinaryKey = BinaryKey(1);
const MS: Duration = Duration::from_millis(1);

/// A scheduler and what it said last.
struct Script {
    scheduler: Scheduler,
    said: Vec<Effect>,
}

impl Script {
    fn new(rules: Rules) -> Self {
        Self { scheduler: Scheduler::new(rules), said: Vec::new() }
    }

    /// An opened run of `tests` known tests of equal length in binary 0 and one worker that is
    /// ready for it.
    fn running(rules: Rules, tests: u32, slots: u32) -> Self {
        let mut script = Self::new(rules);
        script.say(Input::Added((0..tests).map(|n| task(n, B0, Urgency::Known, 50)).collect()));
        script.say(Input::AllAdded);
        script.say(Input::Open);
        script.join(W0, slots, B0);
        script
    }

    fn say(&mut self, input: Input) -> &mut Self {
        self.said.clear();
        self.scheduler.step(input, &mut self.said);
        self
    }

    fn join(&mut self, worker: WorkerId, slots: u32, binary: BinaryKey) -> &mut Self {
        self.say(joined(worker, slots));
        self.say(Input::Ready { worker, binary })
    }

    fn ended(&mut self, worker: WorkerId, attempt: u64, result: AttemptResult) -> &mut Self {
        self.lasted(worker, attempt, result, 50)
    }

    fn lasted(&mut self, worker: WorkerId, id: u64, result: AttemptResult, ms: u32) -> &mut Self {
        self.say(Input::Ended { worker, attempt: AttemptId(id), result, duration: MS * ms })
    }

    fn illegal(&mut self, worker: WorkerId, id: u64) -> &mut Self {
        self.say(Input::IllegalInstruction { worker, attempt: AttemptId(id), duration: MS })
    }

    fn started(&mut self, worker: WorkerId, attempt: u64) -> &mut Self {
        let attempt = AttemptId(attempt);
        self.say(Input::Started { worker, attempt, waited: MS })
    }

    /// Tests granted by what was said last: (worker, test).
    fn granted(&self) -> Vec<(u32, u32)> {
        let leases = self.said.iter().filter_map(|effect| match effect {
            Effect::Lease { worker, grants } => Some((worker, grants)),
            _ => None,
        });
        leases.flat_map(|(w, grants)| grants.iter().map(|grant| (w.0, grant.test.0))).collect()
    }

    fn verdicts(&self) -> Vec<(u32, Verdict)> {
        let verdicts = self.said.iter().filter_map(|effect| match effect {
            Effect::Verdict { test, verdict } => Some((test.0, *verdict)),
            _ => None,
        });
        verdicts.collect()
    }
}

fn task(test: u32, binary: BinaryKey, urgency: Urgency, ms: u32) -> Task {
    let rank = Rank { urgency, expected: Reverse(MS * ms) };
    Task { test: TestIndex(test), binary, rank, needs: None }
}

fn joined(worker: WorkerId, slots: u32) -> Input {
    Input::Joined { worker, slots, round_trip: MS, traits: Traits::default() }
}

#[test]
fn the_most_that_workers_may_say_breaks_nothing() {
    // The bounds of `wary`.
    let (slots, long) = (16_384, Duration::from_secs(366 * 24 * 60 * 60));
    let mut script = Script::running(RULES, 400, slots);
    for number in 1..50 {
        script.join(WorkerId(number), slots, B0);
    }
    let mut ends = 0;
    for attempt in 0..1000 {
        let workers = &script.scheduler.workers;
        let holder = (0..50).map(WorkerId);
        let holder = holder.filter(|it| workers.test_of(*it, AttemptId(attempt)).is_some());
        for worker in holder.collect::<Vec<_>>() {
            script.started(worker, attempt);
            let (attempt, result) = (AttemptId(attempt), AttemptResult::Pass);
            script.say(Input::Arrived { worker, bytes: 1 << 50, took: Duration::ZERO });
            script.say(Input::Ended { worker, attempt, result, duration: long });
            ends += script.verdicts().len();
        }
    }
    assert_eq!(ends, 400);
}

#[test]
fn hands_out_failed_then_new_then_longest_first() {
    let mut script = Script::new(RULES);
    script.say(Input::Added(vec![
        task(0, B0, Urgency::Known, 10),
        task(1, B0, Urgency::Known, 90),
        task(2, B0, Urgency::New, 0),
        task(3, B0, Urgency::Failed, 1),
    ]));
    script.say(Input::Open);
    script.join(W0, 4, B0);
    assert_eq!(script.granted(), [(0, 3), (0, 2), (0, 1), (0, 0)]);
}

#[test]
fn nothing_starts_before_everything_is_built_but_binaries_are_made_ready() {
    let mut script = Script::new(RULES);
    script.say(joined(W0, 1));
    script.say(Input::Added(vec![task(0, B1, Urgency::New, 0)]));
    assert_eq!(script.said, [Effect::Prepare { worker: W0, binary: B1, bytes_max: u64::MAX }]);
    script.say(Input::Ready { worker: W0, binary: B1 });
    assert_eq!(script.said, []);
    script.say(Input::Open);
    assert_eq!(script.granted(), [(0, 0)]);
}

#[test]
fn a_run_ends_when_all_tests_are_known_and_judged() {
    let mut script = Script::running(RULES, 1, 1);
    script.ended(W0, 0, AttemptResult::Leak);
    assert_eq!(script.verdicts(), [(0, Verdict::Pass)]);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn an_empty_run_is_done_at_once() {
    let mut script = Script::new(RULES);
    assert_eq!(script.say(Input::AllAdded).said, [Effect::Done]);
}

#[test]
fn a_failed_test_is_tried_again_at_once_and_is_flaky_if_it_passes() {
    let mut script = Script::running(Rules { retries: 1, ..RULES }, 3, 1);
    assert_eq!(script.ended(W0, 0, AttemptResult::Crashed).granted(), [(0, 0)]);
    assert_eq!(script.verdicts(), []);
    script.ended(W0, 1, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(0, Verdict::Flaky)]);
}

#[test]
fn a_test_that_keeps_failing_gets_its_last_attempts_verdict() {
    let mut script = Script::running(Rules { retries: 2, ..RULES }, 1, 1);
    script.ended(W0, 0, AttemptResult::Fail).ended(W0, 1, AttemptResult::Crashed);
    assert_eq!(script.ended(W0, 2, AttemptResult::Timeout).verdicts(), [(0, Verdict::Timeout)]);
}

#[test]
fn a_lost_workers_tests_go_elsewhere_and_its_late_results_have_no_say() {
    let mut script = Script::running(RULES, 2, 2);
    script.join(W1, 2, B0).started(W0, 0);
    script.say(Input::Lost { worker: W0 });
    assert!(script.said.contains(&Effect::Prepare { worker: W1, binary: B0, bytes_max: u64::MAX }));
    script.say(Input::Ready { worker: W1, binary: B0 });
    // It ran when the worker was lost, so it may be why: nothing runs beside it.
    assert_eq!(script.granted(), [(1, 0)]);
    assert_eq!(script.ended(W0, 0, AttemptResult::Fail).said, []);
    assert_eq!(script.ended(W1, 2, AttemptResult::Pass).granted(), [(1, 1)]);
    script.ended(W1, 3, AttemptResult::Pass);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn a_result_for_another_workers_attempt_is_a_lie_and_changes_nothing() {
    let mut script = Script::running(RULES, 1, 1);
    script.join(W1, 1, B0);
    assert_eq!(script.ended(W1, 0, AttemptResult::Pass).said, []);
}

#[test]
fn a_test_that_is_lost_too_often_is_given_up() {
    let mut script = Script::running(RULES, 1, 1);
    for loss in 0..u64::from(LOSSES_MAX) - 1 {
        assert_eq!(script.ended(W0, loss, AttemptResult::Lost).granted(), [(0, 0)]);
    }
    let last = u64::from(LOSSES_MAX) - 1;
    assert_eq!(script.ended(W0, last, AttemptResult::Lost).verdicts(), [(0, Verdict::Lost)]);
}

#[test]
fn fail_fast_lets_what_runs_finish_and_skips_the_rest() {
    let rules = Rules { failures_max: Some(1), ..RULES };
    let mut script = Script::running(rules, 5, 2);
    script.started(W0, 0).started(W0, 1).ended(W0, 0, AttemptResult::Fail);
    assert!(script.said.contains(&Effect::Stop { worker: W0, how: Stop::Drain }));
    let skipped = |n| (n, Verdict::Skipped);
    assert_eq!(script.verdicts(), [(0, Verdict::Fail), skipped(2), skipped(3), skipped(4)]);
    script.ended(W0, 1, AttemptResult::Pass);
    assert_eq!(script.verdicts(), [(1, Verdict::Pass)]);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn max_fail_counts_failed_tests_not_attempts() {
    let rules = Rules { failures_max: Some(2), retries: 1, ..RULES };
    let mut script = Script::running(rules, 4, 1);
    script.ended(W0, 0, AttemptResult::Fail).ended(W0, 1, AttemptResult::Fail);
    assert_eq!(script.scheduler.cancelled(), None);
    script.ended(W0, 2, AttemptResult::Fail).ended(W0, 3, AttemptResult::Fail);
    assert_eq!(script.scheduler.cancelled(), Some(CancelReason::TestFailure));
}

#[test]
fn interrupted_tests_are_lost_if_they_ran_and_skipped_if_not() {
    let mut script = Script::running(Rules { retries: 3, ..RULES }, 3, 2);
    script.started(W0, 0);
    script.say(Input::Cancel { reason: CancelReason::Interrupt, how: Stop::Terminate });
    assert_eq!(script.verdicts(), [(2, Verdict::Skipped)]);
    script.ended(W0, 0, AttemptResult::Lost).ended(W0, 1, AttemptResult::Lost);
    assert_eq!(script.verdicts(), [(1, Verdict::Skipped)]);
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn threads_bound_the_whole_run() {
    let mut script = Script::running(Rules { threads: Some(1), ..RULES }, 3, 4);
    script.join(W1, 4, B0);
    assert_eq!(script.granted(), []);
    assert_eq!(script.ended(W0, 0, AttemptResult::Pass).granted().len(), 1);
}

/// Attempts that were handed out by the last step, or taken back.
fn moved(said: &[Effect]) -> (Vec<u64>, Vec<u64>) {
    let (mut leased, mut revoked) = (Vec::new(), Vec::new());
    for effect in said {
        match effect {
            Effect::Lease { grants, .. } => leased.extend(grants.iter().map(|it| it.attempt.0)),
            Effect::Revoke { attempts, .. } => revoked.extend(attempts.iter().map(|it| it.0)),
            _ => {}
        }
    }
    (leased, revoked)
}

#[test]
fn a_worker_that_is_short_of_memory_runs_one_test_after_another() {
    let mut script = Script::running(RULES, 6, 2);
    assert_eq!(moved(&script.said), (vec![0, 1], vec![]));
    script.started(W0, 0);
    let short = |short| Input::Memory { worker: W0, short };
    // What runs stays, what doesn't is taken back.
    assert_eq!(moved(&script.say(short(true)).said), (vec![], vec![1]));
    let back = Input::Revoked { worker: W0, attempts: vec![AttemptId(1)] };
    assert_eq!(moved(&script.say(back).said), (vec![], vec![]));
    // One by one, without a word from the worker in between.
    assert_eq!(moved(&script.ended(W0, 0, AttemptResult::Pass).said), (vec![2], vec![]));
    assert_eq!(moved(&script.ended(W0, 2, AttemptResult::Pass).said), (vec![3], vec![]));
    // The only one that it has stays also if it has not begun.
    assert_eq!(moved(&script.say(short(true)).said), (vec![], vec![]));
    assert_eq!(moved(&script.say(short(false)).said), (vec![4], vec![]));
}

#[test]
fn short_tests_are_prefetched_once_their_cost_is_known() {
    let mut script = Script::running(RULES, 9, 2);
    assert_eq!(
        script.lasted(W0, 0, AttemptResult::Pass, 2).granted(),
        [(0, 2), (0, 3), (0, 4), (0, 5)]
    );
}

#[test]
fn prefetched_tests_are_taken_back_for_a_slot_that_is_free_elsewhere() {
    let mut script = Script::running(RULES, 4, 1);
    script.lasted(W0, 0, AttemptResult::Pass, 10);
    assert_eq!(script.granted(), [(0, 1), (0, 2), (0, 3)]);
    script.started(W0, 1).join(W1, 1, B0);
    let attempts = vec![AttemptId(3)];
    assert_eq!(script.said, [Effect::Revoke { worker: W0, attempts: attempts.clone() }]);
    script.say(Input::Revoked { worker: W0, attempts });
    assert_eq!(script.granted(), [(1, 3)]);
}

#[test]
fn a_test_that_no_worker_takes_asks_for_one_and_is_told_if_none_comes() {
    let mut script = Script::new(RULES);
    script.say(Input::Added(vec![task(0, B0, Urgency::New, 0)]));
    script.say(Input::AllAdded).say(Input::Open);
    script.say(joined(W0, 1));
    script.say(Input::Refused { worker: W0, binary: B0 });
    assert_eq!(script.said, []);
    assert_eq!(script.say(Input::NoMoreWorkers).said, [Effect::NeedWorker]);
    script.say(Input::NoWorker);
    assert_eq!(script.verdicts(), [(0, Verdict::Skipped)]);
    assert_eq!(script.scheduler.cancelled(), Some(CancelReason::FleetLost));
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn what_no_worker_takes_is_given_up_when_all_else_is_done() {
    let mut script = Script::new(Rules { retries: 1, ..RULES });
    let tasks = [(0, B0), (1, B0), (2, B1)];
    let tasks = tasks.map(|(test, binary)| task(test, binary, Urgency::New, 0));
    script.say(Input::Added(tasks.to_vec()));
    script.say(Input::AllAdded).say(Input::Open);
    script.join(W0, 1, B0);
    script.say(Input::Refused { worker: W0, binary: B1 }).say(Input::NoMoreWorkers);
    assert!(script.said.contains(&Effect::NeedWorker));
    script.say(Input::NoWorker);
    assert_eq!(script.verdicts(), []);
    assert_eq!(script.ended(W0, 0, AttemptResult::Pass).verdicts(), [(0, Verdict::Pass)]);
    script.ended(W0, 1, AttemptResult::Fail);
    assert_eq!(script.granted(), [(0, 1)], "it has another try");
    script.ended(W0, 2, AttemptResult::Fail);
    assert_eq!(script.verdicts(), [(1, Verdict::Fail), (2, Verdict::Skipped)]);
    assert_eq!(script.scheduler.cancelled(), Some(CancelReason::FleetLost));
    assert_eq!(script.said.last(), Some(&Effect::Done));
}

#[test]
fn who_failed_and_gets_no_other_try_has_failed() {
    let mut script = Script::new(Rules { retries: 1, ..RULES });
    script.say(Input::Added(vec![task(0, B0, Urgency::New, 0)]));
    script.say(Input::AllAdded).say(Input::Open).join(W0, 1, B0);
    script.say(Input::Leaving { worker: W0 }).say(Input::NoMoreWorkers);
    script.ended(W0, 0, AttemptResult::Crashed);
    assert!(script.said.contains(&Effect::NeedWorker));
    script.say(Input::NoWorker);
    assert_eq!(script.verdicts(), [(0, Verdict::Crashed)]);
}

/// Random numbers from a seed: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A fleet that does what workers may do, driven by a seed until the run is done.
struct Fleet {
    random: Random,
    inbox: Vec<Input>,
    live: BTreeMap<AttemptId, (WorkerId, Grant)>,
    workers: BTreeSet<WorkerId>,
    verdicts: BTreeMap<TestIndex, Verdict>,
    passed: BTreeSet<TestIndex>,
    watched: Vec<(WorkerId, AttemptId)>,
    joined: u32,
    done: bool,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            inbox: Vec::new(),
            live: BTreeMap::new(),
            workers: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            passed: BTreeSet::new(),
            watched: Vec::new(),
            joined: 0,
            done: false,
        }
    }

    fn join(&mut self) {
        let (worker, slots) = (WorkerId(self.joined), 1 + self.random.below(4) as u32);
        self.joined += 1;
        self.workers.insert(worker);
        self.inbox.push(joined(worker, slots));
    }

    fn obey(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare { worker, binary, .. } => {
                let refuses = self.random.below(20) == 0;
                self.inbox.push(if refuses {
                    Input::Refused { worker, binary }
                } else {
                    Input::Ready { worker, binary }
                });
            }
            Effect::Lease { worker, grants } => {
                for grant in grants {
                    for test in counted(&grant) {
                        assert!(!self.verdicts.contains_key(test), "a judged test runs again");
                        let twin = self.live.values().any(|(_, live)| counted(live).contains(test));
                        assert!(!twin, "{test:?} runs twice at once");
                    }
                    self.live.insert(grant.attempt, (worker, grant));
                }
            }
            Effect::Revoke { worker, attempts } => {
                let mut attempts = attempts;
                attempts
                    .retain(|attempt| self.live.contains_key(attempt) && self.random.below(2) == 0);
                for attempt in &attempts {
                    self.live.remove(attempt);
                }
                self.inbox.push(Input::Revoked { worker, attempts });
            }
            Effect::Stop { .. }
            | Effect::Cancelling { .. }
            | Effect::RunsAgainAlone { .. }
            | Effect::TookDown { .. } => {}
            Effect::Quarantined { .. } | Effect::Unplaceable { .. } => {}
            // Somebody waits for it, and nobody may have to wait forever.
            Effect::Watch { worker, attempt, .. } => self.watched.push((worker, attempt)),
            Effect::Kill { .. }
            | Effect::Hedged { .. }
            | Effect::GoesOn { .. }
            | Effect::Abandoned { .. } => {
                panic!("{effect:?}, and nobody wants hedges")
            }
            Effect::AttemptEnded { test, result, .. } => {
                if result.passed() {
                    self.passed.insert(test);
                }
            }
            Effect::Verdict { test, verdict } => {
                let before = self.verdicts.insert(test, verdict);
                assert_eq!(before, None, "{test:?} is judged twice");
                let passed = matches!(verdict, Verdict::Pass | Verdict::Flaky);
                assert_eq!(passed, self.passed.contains(&test), "{test:?} is judged wrongly");
            }
            Effect::NeedWorker => self.join(),
            Effect::Done => self.done = true,
        }
    }

    /// Something happens in the fleet.
    fn happen(&mut self) {
        let worker = WorkerId(self.random.below(u64::from(self.joined) + 1) as u32);
        match self.random.below(40) {
            0 => self.join(),
            2..4 if !self.watched.is_empty() => {
                let (worker, attempt) = self.watched.remove(0);
                self.inbox.push(Input::Overdue { worker, attempt });
            }
            1 if self.workers.remove(&worker) => {
                self.live.retain(|_, (on, _)| *on != worker);
                self.inbox.push(Input::Lost { worker });
            }
            _ => {
                let nth = self.random.below(self.live.len().max(1) as u64) as usize;
                let Some((&attempt, (worker, grant))) = self.live.iter().nth(nth) else { return };
                let (worker, grant) = (*worker, grant.clone());
                if self.random.below(3) == 0 {
                    let waited = MS * self.random.below(90) as u32;
                    self.inbox.push(Input::Started { worker, attempt, waited });
                    let finished = self.random.below(counted(&grant).len() as u64) as u32;
                    if grant.company != Company::Alone {
                        self.inbox.push(Input::Progressed { worker, attempt, finished });
                    }
                    return;
                }
                self.live.remove(&attempt);
                if grant.company != Company::Alone {
                    let tests = counted(&grant).iter().map(|_| self.returned()).collect();
                    let duration = MS * self.random.below(60) as u32;
                    self.inbox.push(Input::BatchEnded { worker, attempt, tests, duration });
                    return;
                }
                let results = [AttemptResult::Pass, AttemptResult::Fail, AttemptResult::Lost];
                let result = results[(self.random.below(8) as usize).min(7) / 3];
                let duration = MS * self.random.below(60) as u32;
                self.inbox.push(match self.random.below(20) {
                    0 => Input::IllegalInstruction { worker, attempt, duration },
                    _ => Input::Ended { worker, attempt, result, duration },
                });
            }
        }
    }

    fn returned(&mut self) -> Returned {
        let outcome = match self.random.below(20) {
            0 => InBatch::Failed,
            1 => InBatch::Interrupted,
            2 => InBatch::Unsure,
            3 => InBatch::NotReached,
            _ => InBatch::Passed,
        };
        Returned { outcome, duration: MS }
    }
}

/// The tests of which an attempt decides.
fn counted(grant: &Grant) -> &[TestIndex] {
    grant.company.counted(&grant.test)
}

/// Batches of neighbours of one binary, with gaps, and tests that run alone instead.
fn random_batches(random: &mut Random, tests: u32) -> Input {
    let (mut batches, mut acquainted) = (Vec::new(), Vec::new());
    for binary in 0..3 {
        let theirs: Vec<_> = (0..tests).filter(|n| n % 3 == binary).map(TestIndex).collect();
        for tests in theirs.chunks(1 + random.below(9) as usize) {
            let (binary, expected) = (BinaryKey(binary), MS * tests.len() as u32);
            match random.below(4) {
                0 => {}
                1 => acquainted.push(Acquainted { test: tests[0], company: tests.into() }),
                _ => batches.push(Batch { binary, tests: tests.into(), expected }),
            }
        }
    }
    Input::Batched { batches, acquainted }
}

fn simulate(seed: u64) {
    let mut fleet = Fleet::new(seed);
    let tests = fleet.random.below(60) as u32;
    let failures_max = (fleet.random.below(4) == 0).then_some(3);
    let threads = (fleet.random.below(4) == 0).then_some(2);
    let retries = fleet.random.below(3) as u32;
    let mut scheduler = Scheduler::new(Rules { retries, failures_max, threads, ..RULES });
    let task = |n| task(n, BinaryKey(n % 3), Urgency::Known, n % 7);
    let (early, late) =
        ((0..tests / 2).map(task).collect(), (tests / 2..tests).map(task).collect());
    let batched = match fleet.random.below(2) {
        0 => random_batches(&mut fleet.random, tests),
        _ => Input::Batched { batches: Vec::new(), acquainted: Vec::new() },
    };
    let (early, late) = (Input::Added(early), Input::Added(late));
    fleet.inbox.extend([early, late, batched, Input::Open, Input::AllAdded]);
    fleet.join();
    fleet.inbox.push(Input::NoMoreWorkers);
    let mut steps = 0;
    while !fleet.done {
        steps += 1;
        assert!(steps < 100_000, "the run doesn't end");
        if fleet.inbox.is_empty() {
            fleet.happen();
            continue;
        }
        let mut effects = Vec::new();
        scheduler.step(fleet.inbox.remove(0), &mut effects);
        assert_eq!(scheduler.check(), Ok(()));
        effects.into_iter().for_each(|effect| fleet.obey(effect));
    }
    assert_eq!(fleet.verdicts.len(), tests as usize, "each test has a verdict");
}

#[test]
fn random_fleets_give_each_test_one_verdict() {
    for seed in 0..500 {
        let run = std::panic::catch_unwind(|| simulate(seed));
        assert!(run.is_ok(), "seed {seed} breaks an invariant: add it as a test of its own");
    }
}
