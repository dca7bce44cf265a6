use super::*;
use crate::plan::{Rank, Urgency};
use distest_worker::protocol::BinaryKey;

fn question(millis: &[u64], speeds: &[f64], speed_known: bool) -> Question {
    let tests = millis.iter().enumerate().map(|(index, millis)| {
        let takes = Duration::from_millis(*millis);
        let rank = Rank { urgency: Urgency::Known, expected: Reverse(takes) };
        let test = TestIndex(index as u32);
        (Task { test, binary: BinaryKey(0), rank, needs: None }, takes)
    });
    let machine = |speed: &f64| Machine {
        slots: 1,
        speed: *speed,
        speed_known,
        round_trip: Duration::from_millis(2),
        prepare: Duration::ZERO,
        dies_at: None,
    };
    Question {
        rules: Rules {
            retries: 0,
            failures_max: None,
            failures_end_running: false,
            flaky_fails: false,
            threads: None,
            hedge: false,
        },
        groups: Vec::new(),
        tests: tests.collect(),
        machines: speeds.iter().map(machine).collect(),
        overhead: Duration::ZERO,
    }
}

fn makespan(question: &Question) -> u128 {
    let forecast = play(question, |scheduler, input, effects| scheduler.step(input, effects));
    assert!(forecast.complete);
    forecast.makespan.as_millis()
}

#[test]
fn a_slow_worker_that_is_known_gets_nothing_that_would_make_the_run_longer() {
    let of = |tests: &[u64], known| makespan(&question(tests, &[1.0, 0.25], known));
    // Alone, the fast one takes 4 s; the second test on the slow one takes 8 s.
    assert_eq!(of(&[2000, 2000], true) / 100, 40);
    assert_eq!(of(&[2000, 2000], false) / 100, 80);
    // The bound is 8.0 s.
    let mut tests = vec![2000, 2000, 1000, 1000];
    tests.extend([400; 10]);
    let (known, unknown) = (of(&tests, true), of(&tests, false));
    println!("known {known} ms, unknown {unknown} ms");
    assert!(known <= 8_800, "{known}");
    assert!(known <= unknown, "{known} {unknown}");
}
