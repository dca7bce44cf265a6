use super::*;
use crate::plan::{Rank, Urgency};

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
        rate: None,
        dies_at: None,
    };
    Question {
        rules: Rules::default(),
        groups: Vec::new(),
        tests: tests.collect(),
        machines: speeds.iter().map(machine).collect(),
        overhead: Duration::ZERO,
        sizes: BTreeMap::new(),
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

/// Workers on links of 10 MB/s beside one here, and binaries of 100 MB: each with so many tests of
/// a second.
fn shipping(binaries: u32, tests_of_each: usize, known: bool) -> (f64, u64) {
    let millis = vec![1000; binaries as usize * tests_of_each];
    let mut question = question(&millis, &[1.0; 5], known);
    for (index, (task, _)) in question.tests.iter_mut().enumerate() {
        task.binary = BinaryKey(index as u32 % binaries);
    }
    question.sizes = (0..binaries).map(|binary| (BinaryKey(binary), 100_000_000)).collect();
    for machine in &mut question.machines[1..] {
        machine.rate = Some(1e7);
    }
    let forecast = play(&question, |scheduler, input, effects| scheduler.step(input, effects));
    assert!(forecast.complete);
    (forecast.makespan.as_secs_f64(), forecast.shipped / 100_000_000)
}

/// The same where rates are known, and where everything is sent to everybody.
fn told(what: &str, binaries: u32, tests_of_each: usize) -> [(f64, u64); 2] {
    let both = [true, false].map(|known| shipping(binaries, tests_of_each, known));
    let [(now, sent), (before, all)] = both;
    println!("{what}: {now:.1} s, {sent} binaries sent; to everybody: {before:.1} s, {all} sent");
    both
}

#[test]
fn binaries_stay_where_they_are_if_sending_them_takes_longer_than_their_tests() {
    // 8 s of tests here; sending takes 10 s.
    let [(makespan, sent), _] = told("sending dominates", 1, 8);
    assert_eq!(sent, 0);
    assert!(makespan < 8.5, "{makespan}");
}

#[test]
fn binaries_go_everywhere_if_there_is_much_to_do() {
    let [(makespan, sent), (before, _)] = told("work dominates", 1, 500);
    assert_eq!(sent, 4);
    assert!(makespan < before * 1.01, "{makespan}");
}

#[test]
fn each_of_many_binaries_goes_to_some() {
    // 20 s of tests each, 10 s to send.
    let [(makespan, sent), (before, all)] = told("many binaries", 10, 20);
    assert!(sent < all, "{sent} of {all}");
    assert!(makespan < before * 1.05, "{makespan} {before}");
}
