use proptest::prelude::*;

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
        batches: Vec::new(),
        acquainted: Vec::new(),
        tests: tests.collect(),
        machines: speeds.iter().map(machine).collect(),
        overhead: Duration::ZERO,
        sizes: BTreeMap::new(),
    }
}

fn makespan(question: &Question) -> u128 {
    forecast(question).makespan.as_millis()
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
fn shipping(binaries: u32, tests_of_each: usize, known: bool) -> Question {
    let millis = vec![1000; binaries as usize * tests_of_each];
    let mut question = question(&millis, &[1.0; 5], known);
    for (index, (task, _)) in question.tests.iter_mut().enumerate() {
        task.binary = BinaryKey(index as u32 % binaries);
    }
    question.sizes = (0..binaries).map(|binary| (BinaryKey(binary), 100_000_000)).collect();
    for machine in &mut question.machines[1..] {
        machine.rate = Some(1e7);
    }
    question
}

fn forecast(question: &Question) -> Forecast {
    let forecast = play(question, |scheduler, input, effects| scheduler.step(input, effects));
    assert!(forecast.complete);
    forecast
}

/// The same where rates are known, and where everything is sent to everybody: seconds and binaries
/// that are sent.
fn told(what: &str, binaries: u32, tests_of_each: usize) -> [(f64, u64); 2] {
    let both = [true, false].map(|known| {
        let Forecast { makespan, shipped, .. } =
            forecast(&shipping(binaries, tests_of_each, known));
        (makespan.as_secs_f64(), shipped / 100_000_000)
    });
    let [(now, sent), (before, all)] = both;
    println!("{what}: {now:.1} s, {sent} binaries sent; to everybody: {before:.1} s, {all} sent");
    both
}

#[test]
fn tests_that_share_a_process_start_one() {
    let mut question = question(&[1; 100], &[1.0], true);
    question.overhead = Duration::from_millis(10);
    question.machines[0].round_trip = Duration::ZERO;
    let apart = makespan(&question);
    let first: Arc<[TestIndex]> = (0..50).map(TestIndex).collect();
    let (binary, expected) = (BinaryKey(0), Duration::from_millis(50));
    question.batches = vec![Batch { binary, tests: first, expected }];
    question.acquainted = vec![Acquainted { test: TestIndex(50), company: [TestIndex(50)].into() }];
    let together = makespan(&question);
    assert_eq!(apart - together, 49 * 10, "{apart} {together}");
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What is handed out ends as list schedules do (Graham 1966): after the mean load and the
    /// longest test, at the latest, and what it takes to tell.
    #[test]
    fn equal_workers_end_within_grahams_bound(
        millis in prop::collection::vec(1..3_000u64, 1..60),
        workers in 1..6usize,
        slots in 1..4u32,
    ) {
        let mut question = question(&millis, &vec![1.0; workers], true);
        for machine in &mut question.machines {
            machine.slots = slots;
        }
        let took = makespan(&question) as u64;
        let (work, longest) = (millis.iter().sum::<u64>(), millis.iter().max().unwrap());
        let round_trips = 2 * (millis.len() as u64 + 4);
        let bound = work / (workers as u64 * u64::from(slots)) + longest + round_trips;
        prop_assert!(took <= bound, "{took} > {bound}");
        prop_assert!(took >= *longest);
    }

    /// Whatever workers are like, and whether that is known or not, each test is run once, and no
    /// later than the slowest of them could have done them all.
    #[test]
    fn unequal_workers_lose_and_repeat_nothing(
        millis in prop::collection::vec(1..3_000u64, 1..60),
        speeds in prop::collection::vec(0.1..8.0f64, 1..6),
        known: bool,
    ) {
        let question = question(&millis, &speeds, known);
        let forecast = play(&question, |scheduler, input, effects| {
            scheduler.step(input, effects);
        });
        prop_assert!(forecast.complete);
        prop_assert_eq!(forecast.attempts, millis.len() as u64);
        let slowest = speeds.iter().copied().fold(f64::MAX, f64::min);
        let work = millis.iter().sum::<u64>() as f64 / 1000.0;
        let round_trips = 0.002 * (millis.len() + 4) as f64;
        prop_assert!(forecast.makespan.as_secs_f64() <= work / slowest + round_trips);
    }
}
