//! Scripts of inputs and the effects they must have, and random sessions.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::protocol::{BinaryKey, Limits, Network, Streams};

fn at(seconds: f64) -> Tick {
    Tick(Duration::from_secs_f64(seconds))
}

fn spec(id: u64) -> AttemptSpec {
    AttemptSpec {
        id: AttemptId(id),
        binary: BinaryKey(0),
        args: Vec::new(),
        env: Vec::new(),
        limits: Limits {
            slow_after: Duration::from_secs(60),
            timeout: None,
            grace: Duration::from_secs(10),
            leak_timeout: Duration::ZERO,
        },
        streams: Streams::Capture,
        progress: false,
        unset: Vec::new(),
        network: Network::Host,
        places: 1,
        label: String::new(),
    }
}

fn exited(slot: u32, id: u64) -> Input {
    Input::Exited(Exited {
        slot: SlotId(slot),
        attempt: AttemptId(id),
        exit: Exit::Code(0),
        duration: Duration::from_secs(1),
        usage: Usage::default(),
        leak: None,
        out_of_memory: false,
    })
}

fn permit(number: u32) -> Input {
    Input::Permit { number, places: 1 }
}

fn spawned(slot: u32, id: u64) -> Input {
    Input::Spawned { slot: SlotId(slot), attempt: AttemptId(id) }
}

/// Effects in short: what a script is compared with.
fn short(effect: &Effect) -> String {
    match effect {
        Effect::Leased(Ok(())) => "leased".to_owned(),
        Effect::Leased(Err(refusal)) => format!("refused {:?}", refusal.kind),
        Effect::Revoked(attempts) => {
            format!("revoked {:?}", attempts.iter().map(|a| a.0).collect::<Vec<_>>())
        }
        Effect::AskPermit { places: 1 } => "ask".to_owned(),
        Effect::AskPermit { places } => format!("ask for {places}"),
        Effect::WithdrawPermit { places } => format!("withdraw {places}"),
        Effect::ReturnPermit(permit) => format!("return {permit}"),
        Effect::Spawn { slot, permit, attempt } => {
            format!("spawn {} in {} by {permit}", attempt.id.0, slot.0)
        }
        Effect::Terminate(slot) => format!("terminate {}", slot.0),
        Effect::Kill(slot) => format!("kill {}", slot.0),
        Effect::Report(Report::Started { attempt, .. }) => format!("started {}", attempt.0),
        Effect::Report(Report::Slow { attempt, elapsed }) => {
            format!("slow {} {}s", attempt.0, elapsed.as_secs_f64())
        }
        Effect::Report(Report::Finished(finished)) => {
            let timed_out = if finished.timed_out { " timed out" } else { "" };
            format!("finished {}{timed_out}", finished.attempt.0)
        }
        Effect::Report(Report::Lost { attempt, reason, .. }) => {
            format!("lost {} {reason:?}", attempt.0)
        }
        Effect::Report(Report::Progress { attempt, lines }) => {
            format!("progress {} by {}", attempt.0, lines.len())
        }
        Effect::Report(Report::Draining {}) => "draining".to_owned(),
        Effect::WakeAt(tick) => format!("wake {}s", tick.0.as_secs_f64()),
        Effect::End(reason) => format!("end {reason:?}"),
    }
}

fn check(slots: u32, script: &[(f64, Input, &str)]) {
    let mut session = Session::new(slots);
    for slot in 0..slots {
        session.step(at(0.0), Input::Ready(SlotId(slot)), &mut Vec::new());
    }
    for (seconds, input, expected) in script {
        let mut effects = Vec::new();
        session.step(at(*seconds), input.clone(), &mut effects);
        let effects: Vec<_> = effects.iter().map(short).collect();
        assert_eq!(effects.join(", "), *expected, "at {seconds} s after {input:?}");
    }
}

#[test]
fn attempts_run_in_order_as_far_as_there_are_slots_and_permits() {
    check(
        2,
        &[
            (0.0, Input::Lease(vec![spec(1), spec(2), spec(3)]), "leased, ask, ask"),
            (0.0, permit(7), "spawn 1 in 0 by 7"),
            (0.1, spawned(0, 1), "started 1, wake 60.1s"),
            (0.2, permit(4), "spawn 2 in 1 by 4"),
            (0.3, spawned(1, 2), "started 2"),
            (0.4, exited(1, 2), "return 4, finished 2, ask"),
            (0.5, Input::Revoke(vec![AttemptId(3), AttemptId(1)]), "revoked [3]"),
            (0.6, permit(4), "return 4"),
            (0.7, exited(0, 1), "return 7, finished 1"),
            (0.8, exited(0, 1), ""),
        ],
    );
}

#[test]
fn many_places_that_nothing_wants_any_more_are_not_waited_for() {
    let wide = |id| AttemptSpec { places: 4, ..spec(id) };
    let granted = Input::Permit { number: 3, places: 4 };
    check(
        1,
        &[
            (0.0, Input::Lease(vec![wide(1), spec(2)]), "leased, ask for 4"),
            (0.1, Input::Revoke(vec![AttemptId(1)]), "revoked [1], withdraw 4, ask"),
            // It was on its way.
            (0.2, granted.clone(), "return 3"),
            (0.3, Input::Revoke(vec![AttemptId(2)]), "revoked [2]"),
            (0.4, permit(2), "return 2"),
            (0.5, Input::Lease(vec![wide(3)]), "leased, ask for 4"),
            (0.6, Input::Drain, "draining, withdraw 4, wake 2.6s"),
            (0.7, granted, "return 3"),
        ],
    );
}

#[test]
fn no_more_waits_than_is_bounded() {
    let many = |from: u64, count: usize| (from..from + count as u64).map(spec).collect();
    let mut session = Session::new(1);
    let mut effects = Vec::new();
    session.step(at(0.0), Input::Lease(many(0, QUEUED_MAX)), &mut effects);
    session.step(at(0.0), Input::Lease(many(1 << 20, 1)), &mut effects);
    let effects: Vec<_> = effects.iter().map(short).collect();
    assert_eq!(effects.join(", "), "leased, refused OutOfResources");
    assert_eq!(session.queued() as usize, QUEUED_MAX);
}

#[test]
fn what_waits_is_bounded_in_bytes_too_and_weighs_nothing_once_it_has_gone() {
    let large = |id| AttemptSpec { args: vec!["x".repeat(7 << 20).into()], ..spec(id) };
    let mut session = Session::new(1);
    let mut effects = Vec::new();
    let mut lease = |session: &mut Session, id: u64| {
        effects.clear();
        session.step(at(0.0), Input::Lease(vec![large(id)]), &mut effects);
        short(&effects[0])
    };
    for id in 0..9 {
        assert_eq!(lease(&mut session, id), "leased");
    }
    assert_eq!(lease(&mut session, 9), "refused OutOfResources");
    assert!(session.queued_bytes() <= QUEUED_BYTES_MAX);
    let revoked = (0..9).map(AttemptId).collect();
    session.step(at(0.0), Input::Revoke(revoked), &mut Vec::new());
    assert_eq!(session.queued_bytes(), 0);
    assert_eq!(lease(&mut session, 9), "leased");
    session.step(at(0.0), Input::Ready(SlotId(0)), &mut Vec::new());
    session.step(at(0.0), permit(1), &mut Vec::new());
    assert_eq!((session.running(), session.queued_bytes()), (1, 0));
    assert_eq!(lease(&mut session, 10), "leased");
    session.step(at(0.0), Input::Stop(Stop::Kill), &mut Vec::new());
    assert_eq!(session.queued_bytes(), 0);
}

#[test]
fn a_worker_that_drains_finishes_what_runs_and_starts_nothing() {
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1), spec(2), spec(3)]), "leased, ask"),
            (0.0, permit(7), "spawn 1 in 0 by 7"),
            (0.0, spawned(0, 1), "started 1, wake 60s"),
            (1.0, Input::Drain, "draining, wake 3s"),
            (1.1, Input::Revoke(vec![AttemptId(1), AttemptId(2)]), "revoked [2]"),
            (1.2, Input::Drain, ""),
            // What the client doesn't take back waits no longer than that.
            (3.0, Input::Woken { crowded: false }, "lost 3 Dropped, wake 60s"),
            // What was on its way comes too late.
            (3.1, Input::Lease(vec![spec(4)]), "leased, lost 4 Dropped"),
            (9.0, exited(0, 1), "return 7, finished 1, end Drained"),
            (9.1, Input::Lease(vec![spec(5)]), "refused Closed"),
        ],
    );
}

#[test]
fn an_idle_session_of_a_worker_that_drains_is_over_at_once() {
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1)]), "leased, ask"),
            (0.1, Input::Revoke(vec![AttemptId(1)]), "revoked [1]"),
            (0.2, Input::Drain, "draining, end Drained"),
            (0.3, permit(7), "return 7"),
        ],
    );
}

#[test]
fn who_falls_silent_is_fenced_while_its_worker_drains() {
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1)]), "leased, ask"),
            (0.0, permit(7), "spawn 1 in 0 by 7"),
            (0.0, spawned(0, 1), "started 1, wake 60s"),
            (0.5, Input::Pinged, "wake 3.5s"),
            (1.0, Input::Drain, "draining"),
            (3.5, Input::Woken { crowded: false }, "kill 0"),
            (3.6, exited(0, 1), "return 7, lost 1 Stopped, end Silent"),
        ],
    );
}

#[test]
fn clocks_begin_anew_with_each_line_of_progress() {
    let mut spec = spec(1);
    spec.limits.slow_after = Duration::from_secs(2);
    spec.limits.timeout = Some(Duration::from_secs(5));
    let line = |text: &str| ProgressLine { text: text.to_owned(), at: Duration::ZERO };
    let progressed = |attempt| Input::Progressed {
        slot: SlotId(0),
        attempt: AttemptId(attempt),
        lines: vec![line("a"), line("b")],
    };
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec]), "leased, ask"),
            (0.0, permit(1), "spawn 1 in 0 by 1"),
            (1.0, spawned(0, 1), "started 1, wake 3s"),
            (2.5, progressed(1), "progress 1 by 2, wake 4.5s"),
            (2.5, progressed(9), ""),
            (4.5, Input::Woken { crowded: false }, "slow 1 2s, wake 6.5s"),
            (6.5, Input::Woken { crowded: false }, "slow 1 4s, wake 7.5s"),
            (7.5, Input::Woken { crowded: false }, "terminate 0, wake 17.5s"),
            (8.0, progressed(1), "progress 1 by 2"),
            (9.0, exited(0, 1), "return 1, finished 1 timed out"),
        ],
    );
}

#[test]
fn a_timeout_terminates_then_kills() {
    let mut slow = spec(1);
    slow.limits.slow_after = Duration::from_secs(2);
    slow.limits.timeout = Some(Duration::from_secs(5));
    check(
        1,
        &[
            (0.0, Input::Lease(vec![slow]), "leased, ask"),
            (0.0, permit(0), "spawn 1 in 0 by 0"),
            (1.0, spawned(0, 1), "started 1, wake 3s"),
            (3.0, Input::Woken { crowded: false }, "slow 1 2s, wake 5s"),
            // Late: one notice, and the next one where it belongs.
            (5.5, Input::Woken { crowded: false }, "slow 1 4.5s, wake 6s"),
            (6.0, Input::Woken { crowded: false }, "terminate 0, wake 16s"),
            (15.9, Input::Woken { crowded: false }, ""),
            (16.0, Input::Stop(Stop::Kill), "kill 0"),
            (16.1, exited(0, 1), "return 0, finished 1 timed out"),
        ],
    );
}

#[test]
fn without_grace_a_timeout_kills_at_once() {
    let mut hasty = spec(1);
    hasty.limits.timeout = Some(Duration::from_secs(5));
    hasty.limits.grace = Duration::ZERO;
    hasty.limits.slow_after = Duration::ZERO;
    check(
        1,
        &[
            (0.0, Input::Lease(vec![hasty]), "leased, ask"),
            (0.0, permit(0), "spawn 1 in 0 by 0"),
            (0.0, spawned(0, 1), "started 1, wake 5s"),
            (5.0, Input::Woken { crowded: false }, "kill 0"),
            (5.0, exited(0, 1), "return 0, finished 1 timed out"),
        ],
    );
}

#[test]
fn stops_end_what_runs_and_drop_what_waits() {
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1), spec(2)]), "leased, ask"),
            (0.0, permit(0), "spawn 1 in 0 by 0"),
            (1.0, Input::Stop(Stop::Drain), "lost 2 Dropped"),
            // Not started yet: the signal waits for the process.
            (1.0, Input::Stop(Stop::Terminate), ""),
            (2.0, spawned(0, 1), "started 1, terminate 0, wake 12s"),
            (3.0, Input::Stop(Stop::Kill), "kill 0"),
            (3.1, exited(0, 1), "return 0, lost 1 Stopped"),
            (4.0, Input::Lease(vec![spec(3)]), "leased, ask"),
        ],
    );
}

#[test]
fn a_lost_helper_is_our_loss_and_the_slot_waits_for_the_next() {
    let died = |attempt: Option<u64>| Input::HelperDied {
        slot: SlotId(0),
        attempt: attempt.map(AttemptId),
        detail: "killed".to_owned(),
    };
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1), spec(2)]), "leased, ask"),
            (0.0, permit(0), "spawn 1 in 0 by 0"),
            (0.1, died(None), ""),
            (0.2, Input::Ready(SlotId(0)), ""),
            (0.3, spawned(0, 1), "started 1, wake 60.3s"),
            (0.4, died(Some(1)), "return 0, lost 1 HelperDied"),
            (0.5, Input::Ready(SlotId(0)), "ask"),
            (0.6, Input::Gone { slot: SlotId(0), detail: String::new() }, "lost 2 HelperDied"),
            (0.7, Input::Lease(vec![spec(3)]), "leased, lost 3 HelperDied"),
        ],
    );
}

#[test]
fn words_prove_nothing_while_answers_are_not_heard() {
    check(
        1,
        &[
            (1.0, Input::Pinged, "wake 4s"),
            // Says only that the answer at 1 s was heard: the client's own clock runs since then.
            (3.9, Input::Pinged, "wake 5s"),
            (4.5, Input::Heard, ""),
            (5.0, Input::Woken { crowded: false }, "end Silent"),
        ],
    );
}

#[test]
fn silence_ends_a_session_that_was_pinged() {
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1), spec(2)]), "leased, ask"),
            (0.0, permit(0), "spawn 1 in 0 by 0"),
            (0.0, spawned(0, 1), "started 1, wake 60s"),
            (1.0, Input::Pinged, "wake 4s"),
            (2.0, Input::Pinged, "wake 5s"),
            (4.9, Input::Woken { crowded: false }, ""),
            (5.0, Input::Woken { crowded: false }, "lost 2 Dropped, kill 0"),
            (5.1, exited(0, 1), "return 0, lost 1 Stopped, end Silent"),
            (5.2, Input::Lease(vec![spec(3)]), "refused Closed"),
        ],
    );
}

#[test]
fn a_lost_peer_and_a_close_end_the_session_once() {
    check(1, &[(0.0, Input::PeerLost, "end PeerLost"), (0.0, Input::Close(Stop::Kill), "")]);
    check(
        1,
        &[
            (0.0, Input::Lease(vec![spec(1), spec(1)]), "refused Invalid"),
            (0.0, Input::Lease(vec![spec(1)]), "leased, ask"),
            (0.0, permit(0), "spawn 1 in 0 by 0"),
            (0.0, spawned(0, 1), "started 1, wake 60s"),
            (1.0, Input::Close(Stop::Terminate), "terminate 0, wake 11s"),
            (11.0, Input::Woken { crowded: false }, "kill 0"),
            (11.0, exited(0, 1), "return 0, lost 1 Stopped, end Closed"),
        ],
    );
}

/// What a random world does next; meaningless choices do nothing.
#[derive(Clone, Debug)]
enum Move {
    Lease(u8, Option<u8>, u8),
    Revoke(u8),
    Stop(u8),
    Grant,
    Start(u8),
    Fail(u8),
    Exit(u8),
    Die(u8, bool),
    Ready(u8),
    Pass(u16),
    Ping,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (1u8..4, proptest::option::of(0u8..20), 0u8..10).prop_map(|(n, t, g)| Move::Lease(n, t, g)),
        1 => any::<u8>().prop_map(Move::Revoke),
        1 => (0u8..30).prop_map(Move::Stop),
        6 => Just(Move::Grant),
        6 => any::<u8>().prop_map(Move::Start),
        1 => any::<u8>().prop_map(Move::Fail),
        4 => any::<u8>().prop_map(Move::Exit),
        1 => any::<(u8, bool)>().prop_map(|(slot, early)| Move::Die(slot, early)),
        3 => any::<u8>().prop_map(Move::Ready),
        3 => (0u16..4000).prop_map(Move::Pass),
        1 => Just(Move::Ping),
    ];
    proptest::collection::vec(one, 0..150)
}

const SLOTS: u32 = 3;

/// Plays the driver and the executor, and keeps the books.
struct World {
    session: Session,
    now: Tick,
    next_id: u64,
    leased: BTreeSet<u64>,
    answered: BTreeSet<u64>,
    /// Per slot: the attempt, whether it runs, and when it must have been told to end.
    slots: BTreeMap<u32, (u64, bool, Option<Tick>)>,
    limits: BTreeMap<u64, Limits>,
    asked: u32,
    permits: BTreeSet<u32>,
    over: bool,
}

impl World {
    fn new() -> Self {
        Self {
            session: Session::new(SLOTS),
            now: Tick::default(),
            next_id: 0,
            leased: BTreeSet::new(),
            answered: BTreeSet::new(),
            slots: BTreeMap::new(),
            limits: BTreeMap::new(),
            asked: 0,
            permits: BTreeSet::new(),
            over: false,
        }
    }

    fn step(&mut self, input: Input) {
        let leasing: Vec<u64> = match &input {
            Input::Lease(specs) => specs.iter().map(|spec| spec.id.0).collect(),
            _ => Vec::new(),
        };
        let mut effects = Vec::new();
        self.session.step(self.now, input, &mut effects);
        for effect in effects {
            assert!(!self.over, "{} after the end", short(&effect));
            match effect {
                Effect::Leased(Ok(())) => self.leased.extend(&leasing),
                Effect::Leased(Err(_)) => {}
                Effect::Revoked(attempts) => attempts.iter().for_each(|id| self.answer(id.0)),
                Effect::AskPermit { .. } => self.asked += 1,
                Effect::WithdrawPermit { .. } => self.asked -= 1,
                Effect::ReturnPermit(permit) => assert!(self.permits.remove(&permit)),
                Effect::Spawn { slot, attempt, .. } => {
                    let before = self.slots.insert(slot.0, (attempt.id.0, false, None));
                    assert_eq!(before, None, "two attempts in slot {}", slot.0);
                    self.limits.insert(attempt.id.0, attempt.limits);
                }
                Effect::Terminate(slot) | Effect::Kill(slot) => {
                    let (_, running, end_by) = self.slots.get_mut(&slot.0).expect("runs");
                    assert!(*running);
                    *end_by = None;
                }
                Effect::Report(Report::Finished(finished)) => self.answer(finished.attempt.0),
                Effect::Report(Report::Lost { attempt, .. }) => self.answer(attempt.0),
                Effect::Report(_) | Effect::WakeAt(_) => {}
                Effect::End(_) => {
                    assert!(self.slots.is_empty(), "something runs at the end");
                    self.over = true;
                }
            }
        }
        for (slot, (id, _, end_by)) in &self.slots {
            let late = end_by.is_some_and(|by| by <= self.now);
            assert!(!late, "attempt {id} in slot {slot} outlived its timeout");
        }
    }

    fn answer(&mut self, id: u64) {
        assert!(self.leased.contains(&id), "{id} was never leased");
        assert!(self.answered.insert(id), "{id} was answered twice");
    }

    /// The attempt in a slot, if it runs or not as asked.
    fn pick(&self, slot: u8, running: bool) -> Option<(SlotId, AttemptId)> {
        let slot = u32::from(slot) % SLOTS;
        let (id, runs, _) = self.slots.get(&slot)?;
        (*runs == running).then_some((SlotId(slot), AttemptId(*id)))
    }

    fn play(&mut self, choice: Move) {
        match choice {
            Move::Lease(count, timeout, grace) => {
                let specs = (0..count).map(|_| {
                    self.next_id += 1;
                    let mut spec = spec(self.next_id);
                    spec.limits.timeout = timeout.map(|t| Duration::from_secs(t.into()));
                    spec.limits.grace = Duration::from_secs(grace.into());
                    spec
                });
                let specs = specs.collect();
                self.step(Input::Lease(specs));
            }
            Move::Revoke(back) => {
                let id = self.next_id.saturating_sub(u64::from(back) % 8);
                self.step(Input::Revoke(vec![AttemptId(id)]));
            }
            Move::Stop(how) => self.step(match how {
                0 => Input::PeerLost,
                1 => Input::Close(Stop::Terminate),
                2 => Input::Drain,
                how if how % 3 == 0 => Input::Stop(Stop::Drain),
                how if how % 3 == 1 => Input::Stop(Stop::Terminate),
                _ => Input::Stop(Stop::Kill),
            }),
            Move::Grant if self.asked > 0 => {
                self.asked -= 1;
                let free = (0..).find(|permit| !self.permits.contains(permit)).expect("one");
                self.permits.insert(free);
                self.step(permit(free));
            }
            Move::Grant => {}
            Move::Start(slot) => {
                if let Some((slot, attempt)) = self.pick(slot, false) {
                    let timeout = self.limits[&attempt.0].timeout;
                    let end_by = timeout.map(|timeout| self.now.after(timeout));
                    self.slots.insert(slot.0, (attempt.0, true, end_by));
                    self.step(Input::Spawned { slot, attempt });
                }
            }
            Move::Fail(slot) => {
                if let Some((slot, attempt)) = self.pick(slot, false) {
                    self.slots.remove(&slot.0);
                    let (reason, detail) = (LossReason::CouldNotStart, String::new());
                    self.step(Input::CouldNotSpawn { slot, attempt, reason, detail });
                }
            }
            Move::Exit(slot) => {
                if let Some((slot, attempt)) = self.pick(slot, true) {
                    self.slots.remove(&slot.0);
                    self.step(exited(slot.0, attempt.0));
                }
            }
            Move::Die(slot, early) => {
                let held = self.pick(slot, true).or(self.pick(slot, false).filter(|_| !early));
                let slot = SlotId(u32::from(slot) % SLOTS);
                if held.is_some() {
                    self.slots.remove(&slot.0);
                }
                let attempt = held.map(|(_, attempt)| attempt);
                self.step(Input::HelperDied { slot, attempt, detail: String::new() });
            }
            Move::Ready(slot) => self.step(Input::Ready(SlotId(u32::from(slot) % SLOTS))),
            Move::Pass(milliseconds) => {
                let until = self.now.after(Duration::from_millis(milliseconds.into()));
                // A driver wakes when it was told to.
                while let Some(wake) = self.session.wake.filter(|wake| *wake <= until) {
                    self.now = wake.max(self.now);
                    self.step(Input::Woken { crowded: false });
                    assert!(self.session.wake != Some(wake), "woken for nothing, for ever");
                }
                self.now = until;
            }
            Move::Ping => self.step(Input::Pinged),
        }
    }

    /// The executor answers all that is open; then nothing may be.
    fn finish(mut self) {
        self.step(Input::PeerLost);
        for slot in 0..SLOTS as u8 {
            self.play(Move::Start(slot));
            self.play(Move::Exit(slot));
        }
        while self.asked > 0 {
            self.asked -= 1;
            let number = 1000 + self.asked;
            self.permits.insert(number);
            // Permits may still come after the end, and go back.
            let mut effects = Vec::new();
            self.session.step(self.now, permit(number), &mut effects);
            assert_eq!(effects, [Effect::ReturnPermit(number)]);
            self.permits.remove(&number);
        }
        assert!(self.over && self.permits.is_empty());
        assert_eq!(self.leased, self.answered);
    }
}

proptest! {
    #[test]
    fn every_attempt_is_answered_once_whatever_happens(moves in moves()) {
        let mut world = World::new();
        for slot in 0..SLOTS {
            world.step(Input::Ready(SlotId(slot)));
        }
        for choice in moves {
            if world.over {
                break;
            }
            world.play(choice);
        }
        if !world.over {
            world.finish();
        }
    }
}

fn several(id: u64) -> AttemptSpec {
    AttemptSpec { progress: true, ..spec(id) }
}

fn woken(crowded: bool) -> Input {
    Input::Woken { crowded }
}

#[test]
fn what_does_several_things_makes_room_once_others_wait() {
    check(
        2,
        &[
            (0.0, Input::Lease(vec![several(1), several(2), spec(3)]), "leased, ask, ask"),
            (0.0, permit(7), "spawn 1 in 0 by 7"),
            (0.0, permit(8), "spawn 2 in 1 by 8"),
            (0.0, spawned(0, 1), "started 1, wake 2s"),
            (0.5, spawned(1, 2), "started 2"),
            (2.0, woken(false), "wake 2.25s"),
            (2.25, woken(false), "wake 2.5s"),
            // Both are overdue: one place is wanted.
            (2.5, woken(true), "kill 0, wake 2.75s"),
            (2.6, exited(0, 1), "return 7, lost 1 Stopped, ask"),
            (2.75, woken(false), "wake 3s"),
            (2.8, exited(1, 2), "return 8, finished 2"),
            (2.8, permit(7), "spawn 3 in 0 by 7"),
            (2.8, spawned(0, 3), "started 3, wake 62.8s"),
            // One thing takes as long as it takes.
            (9.0, woken(true), ""),
        ],
    );
}

#[test]
fn an_attempt_waits_for_as_many_places_as_it_takes() {
    let wide = |id, places| AttemptSpec { places, ..spec(id) };
    check(
        2,
        &[
            (0.0, Input::Lease(vec![wide(1, 4), wide(2, 1)]), "leased, ask for 4, ask"),
            (0.0, permit(7), "spawn 2 in 0 by 7"),
            (0.0, Input::Permit { number: 8, places: 4 }, "spawn 1 in 1 by 8"),
            (0.1, spawned(1, 1), "started 1, wake 60.1s"),
            (0.2, Input::Lease(vec![wide(3, 2)]), "leased"),
            (0.2, exited(1, 1), "return 8, finished 1, ask for 2"),
            (0.2, Input::Revoke(vec![AttemptId(3)]), "revoked [3], withdraw 2"),
            (0.3, Input::Permit { number: 8, places: 2 }, "return 8"),
        ],
    );
}
