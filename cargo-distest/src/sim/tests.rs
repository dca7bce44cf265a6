//! Seeds, and bugs that seeds must find.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::FAULTS;
use super::{Coverage, Outcome, run};
use crate::scheduler::Mutation;

/// Seeds that every `cargo test` runs.
const SEEDS: u64 = 300;
/// Seeds within which every bug must be found.
const SEEDS_FOR_A_BUG: u64 = 1_000;

/// Broken seeds that one thread tells of.
const BROKEN_MAX: usize = 5;

/// Runs a seed; a panic in what is simulated is a broken invariant too.
fn check(seed: u64, mutation: Option<Mutation>) -> Result<Outcome, String> {
    let run = catch_unwind(AssertUnwindSafe(|| run(seed, mutation, false)));
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

fn replay(seed: u64, why: &str) -> String {
    let why: String = why.chars().take(3000).collect();
    format!(
        "seed {seed}: {why}\nreplay it with: DISTEST_SIM_SEED={seed} cargo test -p cargo-distest \
         --lib sim::tests::seeds -- --nocapture"
    )
}

/// Runs seeds on all cores; answers what they met, or the smallest that breaks an invariant.
fn many(seeds: std::ops::Range<u64>) -> Result<(Coverage, Outcome), String> {
    let next = AtomicU64::new(seeds.start);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let work = || {
        let (mut total, mut broken) = (Outcome::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (total, broken);
            }
            match check(seed, None) {
                Ok(outcome) => total.add(outcome),
                Err(why) => {
                    broken.push((seed, why));
                    if broken.len() >= BROKEN_MAX {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let mut total = Outcome::default();
    let mut broken: BTreeMap<u64, String> = BTreeMap::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (outcome, bad) = worker.join().unwrap();
            total.add(outcome);
            broken.extend(bad);
        }
    });
    if broken.is_empty() {
        return Ok((std::mem::take(&mut total.coverage), total));
    }
    Err(broken.iter().map(|(seed, why)| replay(*seed, why)).collect::<Vec<_>>().join("\n\n"))
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.steps += other.steps;
        self.hedges += other.hedges;
        self.made_room += other.made_room;
        self.unsaid += other.unsaid;
        for (key, count) in other.coverage {
            *self.coverage.entry(key).or_default() += count;
        }
        for (key, count) in other.verdicts {
            *self.verdicts.entry(key).or_default() += count;
        }
    }
}

/// Fault × state, as text; an empty cell was never reached.
fn table(coverage: &Coverage) -> String {
    let states: std::collections::BTreeSet<_> = coverage.keys().map(|(_, doing)| *doing).collect();
    let mut text = format!("{:<18}", "");
    for state in &states {
        text += &format!("{:>12}", format!("{state:?}"));
    }
    for fault in FAULTS {
        text += &format!("\n{:<18}", format!("{fault:?}"));
        for state in &states {
            let count = coverage.get(&(fault, *state));
            text += &format!("{:>12}", count.map_or(String::new(), u64::to_string));
        }
    }
    text
}

/// Some hundred seeds; or `DISTEST_SIM_SEEDS=FROM..TO` or `=COUNT`, as many as that says; or
/// `DISTEST_SIM_SEED=N`, with `DISTEST_SIM_BUG=NAME` if it is to be buggy: one, with all that
/// happens in it.
#[test]
fn seeds_break_no_invariant() {
    let env = |name: &str| std::env::var(name).ok();
    if let Some(seed) = env("DISTEST_SIM_SEED") {
        let bug = env("DISTEST_SIM_BUG").unwrap_or_default();
        let bug = Mutation::ALL.into_iter().find(|mutation| format!("{mutation:?}") == bug);
        run(seed.parse().unwrap(), bug, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let seeds = env("DISTEST_SIM_SEEDS").unwrap_or_else(|| SEEDS.to_string());
    let (from, to) = seeds.split_once("..").unwrap_or(("0", &seeds));
    let seeds: std::ops::Range<u64> = from.parse().unwrap()..to.parse().unwrap();
    let (began, count) = (std::time::Instant::now(), seeds.end - seeds.start);
    let (coverage, outcome) = many(seeds).unwrap_or_else(|why| panic!("{why}"));
    let took = began.elapsed().as_secs_f64();
    println!("{count} seeds, {} steps, {took:.1} s: no broken invariant", outcome.steps);
    let Outcome { verdicts, hedges, made_room, unsaid, .. } = &outcome;
    println!("verdicts: {verdicts:?}, {hedges} hedges, {made_room} batches ended for others");
    println!("{unsaid} workers killed by what they had not said to have started");
    println!("{}", table(&coverage));
    if count < SEEDS {
        return;
    }
    assert!(outcome.hedges > 0, "no seed hedges");
    assert!(outcome.unsaid > 0, "no test kills its worker at once");
    assert!(outcome.made_room > 0, "no worker makes room for another client");
    for fault in FAULTS {
        let met = coverage.keys().filter(|(met, _)| *met == fault).count();
        assert!(met >= 3, "{fault:?} meets too few states");
    }
    for verdict in ["pass", "fail", "flaky", "crashed", "timeout", "skipped", "lost"] {
        assert!(outcome.verdicts.contains_key(verdict), "no seed ends in {verdict}");
    }
}

/// A worker invents an end of what it is given only before the word of it arrives: nobody could tell.
#[test]
fn seed_4563_lies_of_what_has_not_been_handed_out() {
    check(4563, None).unwrap_or_else(|why| panic!("{}", replay(4563, &why)));
}

/// A test that failed on the only worker that it may run on, which is quarantined meanwhile, waits for
/// no other try while others of its binary wait.
#[test]
fn seed_46116_has_a_test_without_a_place_that_comes_back() {
    check(46116, None).unwrap_or_else(|why| panic!("{}", replay(46116, &why)));
}

/// Each bug and the first seed that finds it.
#[test]
fn every_bug_is_found() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = Mutation::ALL.map(|mutation| {
        let seeds = 0..SEEDS_FOR_A_BUG;
        let first =
            seeds.into_iter().find_map(|seed| Some((seed, check(seed, Some(mutation)).err()?)));
        (mutation, first)
    });
    std::panic::set_hook(quiet);
    for (mutation, first) in &found {
        let first = first.as_ref().map(|(seed, why)| {
            let why: String = why.chars().take(90).collect();
            format!("seed {seed:>4}: {why}")
        });
        let first = first.unwrap_or_else(|| "not found".to_owned());
        println!("{:<20} {first}", format!("{mutation:?}"));
    }
    for (mutation, first) in &found {
        assert!(first.is_some(), "{mutation:?} is not found within {SEEDS_FOR_A_BUG} seeds");
    }
}
