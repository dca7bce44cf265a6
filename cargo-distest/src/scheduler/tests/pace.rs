//! Unequal workers: who gets what, and how much of it ahead of time.

use super::*;

const SLOW: f64 = 0.25;

fn paced(worker: WorkerId, speed: f64, round_trip: Duration, overhead: Option<Duration>) -> Input {
    let traits = Traits { pace: Pace::remembered(speed, overhead, None), ..Traits::default() };
    Input::Joined { worker, slots: 1, round_trip, traits }
}

/// Two tests of 2 s, an ordinary worker, and one that takes four times as long.
fn unequal() -> Script {
    let mut script = Script::new(RULES);
    script.say(paced(W0, 1.0, MS, None)).say(paced(W1, SLOW, MS, None));
    script.say(Input::Added((0..2).map(|n| task(n, B0, Urgency::Known, 2000)).collect()));
    script.say(Input::AllAdded);
    for worker in [W0, W1] {
        script.say(Input::Ready { worker, binary: B0 });
    }
    script.say(Input::Open);
    script
}

#[test]
fn a_test_that_would_end_later_on_a_slow_worker_waits_for_the_fast_one() {
    let mut script = unequal();
    assert_eq!(script.granted(), [(0, 0)]);
    let watches = script.said.iter().filter(|it| matches!(it, Effect::Watch { worker: W0, .. }));
    assert_eq!(watches.count(), 1, "{:?}", script.said);
    script.started(W0, 0).lasted(W0, 0, AttemptResult::Pass, 2000);
    assert_eq!(script.granted(), [(0, 1)]);
}

#[test]
fn nobody_waits_for_a_worker_that_comes_to_no_end_or_is_gone() {
    let overdue = Input::Overdue { worker: W0, attempt: AttemptId(0) };
    for input in [overdue, Input::Cut { worker: W0 }, Input::Leaving { worker: W0 }] {
        let mut script = unequal();
        script.started(W0, 0).say(input.clone());
        assert_eq!(script.granted(), [(1, 1)], "{input:?}");
    }
}

#[test]
fn what_is_prefetched_is_not_taken_back_for_a_slow_worker() {
    let mut script = Script::new(RULES);
    script.say(paced(W0, 1.0, MS * 500, None)).say(paced(W1, SLOW, MS, None));
    script.say(Input::Added((0..2).map(|n| task(n, B0, Urgency::Known, 2000)).collect()));
    script.say(Input::AllAdded).say(Input::Open);
    script.say(Input::Ready { worker: W0, binary: B0 });
    assert_eq!(script.granted(), [(0, 0), (0, 1)]);
    script.started(W0, 0).say(Input::Ready { worker: W1, binary: B0 });
    assert_eq!(script.said, []);
}

#[test]
fn what_a_start_costs_is_learnt_and_sizes_what_is_handed_out_ahead() {
    let ahead = |overhead: Option<Duration>| {
        let mut script = Script::new(RULES);
        script.say(Input::Added((0..9).map(|n| task(n, B0, Urgency::Known, 100)).collect()));
        script.say(Input::AllAdded).say(Input::Open);
        script.say(paced(W0, 1.0, MS * 9, overhead));
        script.say(Input::Ready { worker: W0, binary: B0 });
        (script.granted().len(), script)
    };
    // A round trip of 9 ms is not worth it for tests of 100 ms; a start that takes 40 ms is.
    assert_eq!(ahead(None).0, 1);
    assert_eq!(ahead(Some(MS * 40)).0, 2);
    let (_, mut script) = ahead(None);
    let attempt = AttemptId(0);
    script.say(Input::Started { worker: W0, attempt, waited: MS * 40 });
    assert_eq!(script.scheduler.paces()[&W0].overhead(), Some(MS * 40));
    assert_eq!(script.granted(), [(0, 1)]);
    // It waited behind another one: that says nothing.
    let attempt = AttemptId(1);
    script.say(Input::Started { worker: W0, attempt, waited: MS * 100 });
    assert_eq!(script.scheduler.paces()[&W0].overhead(), Some(MS * 40));
}

#[test]
fn what_becomes_known_of_tests_that_wait_gives_them_their_places() {
    let mut script = Script::new(RULES);
    let group = Some(Arc::new(Needs { threads: 2, ..Needs::default() }));
    let new = |n| task(n, B0, Urgency::New, 0);
    let special = |n| Task { needs: group.clone(), ..new(n) };
    script.say(Input::Added(vec![new(0), new(1), new(2), special(3), special(4)]));
    let millis = [(0, 10), (2, 30), (3, 10), (4, 20)];
    let times = millis.map(|(test, millis)| (TestIndex(test), MS * millis));
    script.say(Input::Timed(times.to_vec())).say(Input::AllAdded).say(Input::Open);
    script.join(W0, 8, B0);
    assert_eq!(script.granted(), [(0, 4), (0, 3), (0, 1), (0, 2), (0, 0)]);
    // Who has been handed out stays where it is, and what was known stays known.
    assert_eq!(script.say(Input::Timed(vec![(TestIndex(1), MS), (TestIndex(0), MS)])).said, []);
}

/// Tests that take so many seconds, and four workers of one slot that nobody knows.
fn unknown(seconds: &[u32]) -> Script {
    let mut script = Script::new(RULES);
    let tests = seconds.iter().enumerate();
    let tests = tests.map(|(n, seconds)| task(n as u32, B0, Urgency::Known, seconds * 1000));
    script.say(Input::Added(tests.collect())).say(Input::AllAdded);
    for worker in (0..4).map(WorkerId) {
        script.say(joined(worker, 1)).say(Input::Ready { worker, binary: B0 });
    }
    script.say(Input::Open);
    script
}

#[test]
fn who_nobody_knows_begins_with_something_tiny_while_something_long_waits() {
    let mut script = unknown(&[100, 40, 40, 5, 4, 3, 2, 1]);
    assert_eq!(script.granted(), [(0, 3), (1, 4), (2, 5), (3, 6)]);
    // Who is first was fast, and gets the longest; who was slow does not.
    script.lasted(W1, 1, AttemptResult::Pass, 2000);
    assert_eq!(script.granted(), [(1, 0)]);
    script.lasted(W0, 0, AttemptResult::Pass, 25_000);
    assert_eq!(script.granted(), [(0, 7)]);
}

#[test]
fn the_longest_goes_first_where_nothing_shorter_would_show_much() {
    // Nothing is tiny: the shortest ones will do, unless they would cost much.
    assert_eq!(unknown(&[100, 40, 40, 12, 11]).granted(), [(0, 3), (1, 4), (2, 0), (3, 1)]);
    assert_eq!(unknown(&[100, 40, 40, 30, 30]).granted(), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    // And nothing is long.
    let many = [[8; 40].as_slice(), &[1; 4]].concat();
    assert_eq!(unknown(&many).granted(), [(0, 0), (1, 1), (2, 2), (3, 3)]);
}

#[test]
fn what_runs_again_waits_for_a_fast_worker_near_the_end() {
    let mut script = unequal();
    let lost = WorkerId(2);
    script.say(paced(lost, 1.0, MS, None)).say(Input::Ready { worker: lost, binary: B0 });
    assert_eq!(script.granted(), [(2, 1)]);
    script.say(Input::Lost { worker: lost });
    assert_eq!(script.granted(), []);
    script.lasted(W0, 0, AttemptResult::Pass, 2000);
    assert_eq!(script.granted(), [(0, 1)]);
}

#[test]
fn of_those_who_found_nothing_all_are_looked_at_again_in_turn() {
    let mut script = unequal();
    for worker in (2..20).map(WorkerId) {
        script.say(paced(worker, SLOW, MS, None)).say(Input::Ready { worker, binary: B0 });
        assert_eq!(script.granted(), []);
    }
    // A test that is short even there.
    script.say(Input::Added(vec![task(2, B0, Urgency::Known, 1)]));
    assert_eq!(script.granted(), [(1, 2)]);
}
