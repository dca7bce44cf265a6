//! Which tests share a process, and with whom: the same history and seed give the same answer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::BinaryKey;

use super::{BATCH_NAME_BYTES_MAX, BATCH_TESTS_MAX, Members, Recalled, Standing};
use crate::model::{Sharing, TestCase, TestIndex};
use crate::scheduler::{Acquainted, Batch};

/// A test shares a process if it takes less than this many times what starting one costs.
const QUICK_FACTOR: u32 = 10;
/// One that takes longer is tried in a batch, up to this many times the same: what a process does
/// once, such as to read what backtraces need, may be most of its time.
const TRIAL_FACTOR: u32 = 200;
/// One that prints so many bytes is tried however long it takes, if need be in a batch of its own:
/// libtest only remembers what it captures, and writes line by line what it doesn't.
const LOUD: u64 = 64 * 1024;
/// A batch's tests together take at most about this many times what starting its process costs:
/// the start is then a small share.
const LENGTH_FACTOR: u32 = 50;
/// Less where there are few tests, so that each slot gets this many batches and the end of a run
/// waits for no long one.
const BATCHES_PER_SLOT: u32 = 8;
/// Who did not gain has another trial in one of so many runs: its batch may have been too small.
const TRIAL_AGAIN: u64 = 16;
/// And about this many times what is saved for each test that takes long to start.
const SAVED_FACTOR: u32 = 5;
/// Bounds of what starting a process may be measured to cost: a machine that is busy just then
/// must not make all tests look quick, nor must a fluke forbid batches.
const START_COST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(8));
/// What a test costs in a batch at least.
const LEAST: Duration = Duration::from_micros(50);
/// One in this many of the tests that could share a process runs alone in each run.
const ROTATION: usize = 50;

/// A test that will run, as far as this choice needs to know it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its number.
    pub test: TestIndex,
    /// What it is.
    pub case: TestCase,
    /// Its binary.
    pub binary: BinaryKey,
    /// Its place in its binary's list, which is the order in which libtest runs tests.
    pub place: u32,
    /// What its binary can do; none if it must not run several tests in one process.
    pub sharing: Option<Sharing>,
    /// It is marked `#[ignore]`.
    pub ignored: bool,
    /// What it takes, as far as it is known.
    pub expected: Option<Duration>,
    /// What is known of it.
    pub standing: Standing,
    /// What there is to recall if it fails by itself.
    pub recalled: Option<Recalled>,
}

/// Who may share a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Quick tests that passed before.
    Auto,
    /// All that their binaries allow.
    All {
        /// Nothing runs beside a batch, so a binary's tests are parted only where they must be.
        whole: bool,
    },
}

/// The choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Tests that share a process.
    pub batches: Vec<Batch>,
    /// Who is known to pass in company, or would have it and runs alone this time.
    pub acquainted: Vec<Acquainted>,
}

/// Chooses, for a run with about so many slots. The order of the candidates doesn't matter.
pub fn select(mode: Mode, seed: u64, slots: u32, candidates: &[Candidate]) -> Selected {
    let acquaintances = Acquaintances::of(candidates);
    let mut by_binary: BTreeMap<BinaryKey, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| may_share(mode, seed, candidate)) {
        by_binary.entry(candidate.binary).or_default().push(candidate);
    }
    by_binary.retain(|_, tests| tests.len() > 1 || tests.iter().any(|it| is_loud(it)));
    let rotation = rotation(mode, seed, &by_binary);
    let total: Duration = by_binary.values().flatten().map(|it| cost(it)).sum();
    let even = total / slots.max(1).saturating_mul(BATCHES_PER_SLOT);
    let share =
        by_binary.values().flatten().map(|it| at_worst(it)).sum::<Duration>() / slots.max(1);
    let mut selected = Selected::default();
    for (binary, tests) in by_binary {
        let long = length(&tests, even);
        for group in groups(mode, seed, Bounds { long, share }, tests) {
            let company: Arc<[TestIndex]> = group.iter().map(|it| it.test).collect();
            let (alone, together): (Vec<&Candidate>, Vec<_>) =
                group.into_iter().partition(|it| rotation.contains(&it.test));
            // Those with whom it passed show more than those whom it would have met.
            let strangers = alone.iter().filter(|it| !acquaintances.0.contains_key(&it.test));
            let rotated = strangers.map(|it| (it.test, Arc::clone(&company)));
            selected.acquainted.extend(rotated.map(|(test, company)| Acquainted { test, company }));
            // One by itself gains nothing, unless by being captured.
            let batches = alone.into_iter().map(|it| vec![it]).chain([together]);
            let batches =
                batches.filter(|tests| tests.len() > 1 || tests.iter().any(|it| is_loud(it)));
            selected.batches.extend(batches.map(|tests| Batch {
                binary,
                expected: tests.iter().map(|it| at_worst(it)).sum(),
                tests: tests.iter().map(|it| it.test).collect(),
            }));
        }
    }
    let known = acquaintances.0.into_iter();
    selected.acquainted.extend(known.map(|(test, company)| Acquainted { test, company }));
    selected.acquainted.sort_unstable_by_key(|it| it.test);
    selected
}

/// The tests that passed in company last, each with those of its batch that run now, too. Whom a
/// run leaves out nobody runs, not even to see whether another passes with it.
struct Acquaintances(BTreeMap<TestIndex, Arc<[TestIndex]>>);

impl Acquaintances {
    fn of(candidates: &[Candidate]) -> Self {
        let passed = |it: &&Candidate| can_share(it) && it.standing.passes_in_company() > 0;
        let members = |it: &Candidate| it.recalled.as_ref()?.members.clone();
        let known: Vec<(&Candidate, Members)> =
            candidates.iter().filter(passed).filter_map(|it| Some((it, members(it)?))).collect();
        if known.is_empty() {
            return Self(BTreeMap::new());
        }
        let present: HashMap<(BinaryKey, &str), &Candidate> = candidates
            .iter()
            .filter(|it| can_share(it))
            .map(|it| ((it.binary, &*it.case.name.0), it))
            .collect();
        let mut companies: BTreeMap<(BinaryKey, usize), Arc<[TestIndex]>> = BTreeMap::new();
        let known = known.iter().map(|(it, members)| {
            let company = companies.entry((it.binary, members.address())).or_insert_with(|| {
                let there = members.names().filter_map(|name| present.get(&(it.binary, name)));
                let mut there: Vec<_> = there.collect();
                there.sort_unstable_by_key(|it| it.place);
                there.into_iter().map(|it| it.test).collect()
            });
            (it.test, Arc::clone(company))
        });
        Self(known.filter(|(test, company)| company.len() > 1 && company.contains(test)).collect())
    }
}

/// Whether it could run in company at all.
fn can_share(candidate: &Candidate) -> bool {
    let short = candidate.case.name.0.len() < BATCH_NAME_BYTES_MAX;
    short && candidate.sharing.is_some() && !candidate.ignored
}

fn may_share(mode: Mode, seed: u64, candidate: &Candidate) -> bool {
    let Some(sharing) = candidate.sharing.filter(|_| can_share(candidate)) else { return false };
    match mode {
        // Whatever is asked for: this would turn a red test green.
        Mode::All { .. } => !candidate.standing.only_in_company,
        Mode::Auto => {
            candidate.standing.may_have_company() && gains(candidate, seed, start_cost(sharing))
        }
    }
}

/// Whether a batch is, or may prove to be, a noticeably quicker place for a test.
fn gains(candidate: &Candidate, seed: u64, start: Duration) -> bool {
    let Standing { alone, batched, gains, .. } = candidate.standing;
    let within = |factor: u32| move |takes: Duration| takes <= start * factor;
    let quick = batched.or(candidate.expected).is_some_and(within(QUICK_FACTOR));
    let trial = || alone.is_some_and(within(TRIAL_FACTOR)) || is_loud(candidate);
    let again = || mix(seed, &candidate.case).is_multiple_of(TRIAL_AGAIN) && trial();
    quick || gains.map_or_else(trial, |gains| gains || again())
}

fn is_loud(candidate: &Candidate) -> bool {
    candidate.standing.printed >= LOUD
}

/// The tests whose turn it is to run alone: those that were longest in company.
fn rotation(
    mode: Mode,
    seed: u64,
    by_binary: &BTreeMap<BinaryKey, Vec<&Candidate>>,
) -> BTreeSet<TestIndex> {
    if mode != Mode::Auto {
        return BTreeSet::new();
    }
    let mut all: Vec<_> = by_binary.values().flatten().collect();
    all.sort_by_cached_key(|it| (Reverse(it.standing.in_company), mix(seed, &it.case), it.test));
    let turn = (all.len() / ROTATION).max(1);
    all.into_iter().take(turn).map(|it| it.test).collect()
}

/// Of a batch.
struct Bounds {
    /// What it should take at most.
    long: Duration,
    /// What it may take at most if no trial in it gains anything: a slot's share of the run. The
    /// end of the run must not wait for one batch. Two tests fit into any, or there were no trials.
    share: Duration,
}

/// Deals a binary's tests into batches: at random by the seed, so that in time everyone meets
/// everyone, and within a batch in the binary's own order.
fn groups(
    mode: Mode,
    seed: u64,
    Bounds { long, share }: Bounds,
    mut tests: Vec<&Candidate>,
) -> Vec<Vec<&Candidate>> {
    let whole = matches!(mode, Mode::All { whole: true });
    if !whole {
        tests.sort_by_cached_key(|it| (mix(seed, &it.case), it.place));
    }
    // Dealt evenly where their number is the bound: nobody waits for a last, longer batch.
    let most = tests.len().div_ceil(tests.len().div_ceil(BATCH_TESTS_MAX).max(1));
    let mut groups: Vec<Vec<&Candidate>> = Vec::new();
    let (mut length, mut worst, mut name_bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for test in tests {
        let (then, then_worst) = (length + cost(test), worst + at_worst(test));
        let full = |group: &Vec<&Candidate>| {
            let has_trials = then_worst > then;
            group.len() >= most
                || name_bytes + test.case.name.0.len() + 1 > BATCH_NAME_BYTES_MAX
                || (!whole && then > long)
                || (!whole && has_trials && group.len() > 1 && then_worst > share)
        };
        if groups.last().is_none_or(full) {
            groups.push(Vec::new());
            (length, worst, name_bytes) = (Duration::ZERO, Duration::ZERO, 0);
        }
        length += cost(test);
        worst += at_worst(test);
        name_bytes += test.case.name.0.len() + 1;
        if let Some(group) = groups.last_mut() {
            group.push(test);
        }
    }
    for group in &mut groups {
        group.sort_unstable_by_key(|it| it.place);
    }
    groups
}

/// What a binary's batch should take at most: an even share of the run, but so much that what its
/// process does once is a small share of it.
fn length(tests: &[&Candidate], even: Duration) -> Duration {
    let start = tests.iter().filter_map(|it| it.sharing).map(start_cost).max().unwrap_or_default();
    let saved = |it: &&&Candidate| {
        let (alone, batched) = it.standing.alone.zip(it.standing.batched)?;
        (alone > start * QUICK_FACTOR && !is_loud(it)).then(|| alone.saturating_sub(batched))
    };
    let mut saved: Vec<_> = tests.iter().filter_map(|it| saved(&it)).collect();
    saved.sort_unstable();
    let usual = saved.get(saved.len() / 2).copied().unwrap_or_default();
    // At least two of those that are tried fit into one.
    let least = start * QUICK_FACTOR * 2;
    even.clamp(least, start * LENGTH_FACTOR).max(usual * SAVED_FACTOR)
}

/// What a test will probably add to its batch.
fn cost(candidate: &Candidate) -> Duration {
    let start = candidate.sharing.map_or(Duration::ZERO, start_cost);
    let alone = candidate.standing.alone.or(candidate.expected).unwrap_or_default();
    // A trial's outcome is hoped for: else nobody would have company there who takes long alone.
    let hoped = || alone.saturating_sub(start).min(start * QUICK_FACTOR);
    let known = candidate.standing.batched.filter(|_| candidate.standing.gains != Some(false));
    known.unwrap_or_else(hoped).max(LEAST)
}

/// The same if its trial, should this be one, gains nothing.
fn at_worst(candidate: &Candidate) -> Duration {
    let Standing { alone, batched, gains, .. } = candidate.standing;
    let quick = candidate.sharing.map_or(Duration::ZERO, start_cost) * (QUICK_FACTOR + 1);
    let alone = alone.or(candidate.expected).unwrap_or_default();
    let is_trial = alone > quick && (batched.is_none() || gains == Some(false));
    if is_trial { alone } else { cost(candidate) }
}

fn start_cost(sharing: Sharing) -> Duration {
    sharing.start_cost.clamp(START_COST.0, START_COST.1)
}

/// A number that depends on all of a test case's name and on the seed: FNV-1a, then the finalizer
/// of SplitMix64.
fn mix(seed: u64, case: &TestCase) -> u64 {
    let bytes = case.binary.0.bytes().chain([0]).chain(case.name.0.bytes());
    let start = seed.to_le_bytes().into_iter().chain(bytes);
    let hash = start.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Ran;
    use crate::model::{AttemptResult, BinaryId, TestName, Verdict};

    const MS: Duration = Duration::from_millis(1);
    const PASSED: Standing = Standing {
        streak: 1,
        failed_before: false,
        kept_out: None,
        only_in_company: false,
        in_company: 0,
        alone: None,
        batched: None,
        gains: None,
        printed: 100,
    };

    fn select(mode: Mode, seed: u64, candidates: &[Candidate]) -> Selected {
        super::select(mode, seed, 1, candidates)
    }

    fn candidate(test: u32, binary: u32) -> Candidate {
        Candidate {
            test: TestIndex(test),
            case: TestCase {
                binary: BinaryId::new(format!("b{binary}")),
                name: TestName::new(format!("t{test}")),
            },
            binary: BinaryKey(binary),
            place: test,
            sharing: Some(Sharing { start_cost: MS * 2 }),
            ignored: false,
            expected: Some(MS / 10),
            standing: PASSED,
            recalled: None,
        }
    }

    fn many(count: u32) -> Vec<Candidate> {
        (0..count).map(|n| candidate(n, 0)).collect()
    }

    fn tests(selected: &Selected) -> Vec<TestIndex> {
        let mut all: Vec<_> = selected.batches.iter().flat_map(|b| b.tests.to_vec()).collect();
        all.sort_unstable();
        all
    }

    /// Nobody is remembered to have passed in company, unless a test says so.
    fn rotated(selected: &Selected) -> Vec<TestIndex> {
        selected.acquainted.iter().map(|it| it.test).collect()
    }

    #[test]
    fn the_seed_and_history_decide_and_nothing_else() {
        let mut candidates = many(500);
        let selected = select(Mode::Auto, 7, &candidates);
        candidates.reverse();
        assert_eq!(select(Mode::Auto, 7, &candidates), selected);
        assert_ne!(select(Mode::Auto, 8, &candidates), selected);
    }

    #[test]
    fn batches_hold_to_their_bounds_and_their_binarys_order() {
        let mut candidates = many(1000);
        candidates.extend((1000..1600).map(|n| candidate(n, 1)));
        let selected = select(Mode::Auto, 1, &candidates);
        for batch in &selected.batches {
            assert!((2..=BATCH_TESTS_MAX).contains(&batch.tests.len()));
            assert!(batch.tests.is_sorted());
            assert!(batch.tests.iter().all(|test| (test.0 >= 1000) == (batch.binary.0 == 1)));
        }
        assert_eq!(tests(&selected).len() + selected.acquainted.len(), 1600);
        for binary in [BinaryKey(0), BinaryKey(1)] {
            let of_it = selected.batches.iter().filter(|batch| batch.binary == binary);
            let sizes: Vec<_> = of_it.map(|batch| batch.tests.len()).collect();
            let spread = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
            assert!(sizes.len() == 2 && spread <= selected.acquainted.len(), "evenly: {sizes:?}");
        }
        let long = many(100).into_iter().map(|it| Candidate { expected: Some(MS * 12), ..it });
        let long: Vec<_> = long.collect();
        let selected = select(Mode::Auto, 1, &long);
        assert!(selected.batches.iter().all(|batch| batch.expected <= MS * 100));
        assert_eq!(selected.batches.len(), 10);
        let batches = |slots| super::select(Mode::Auto, 1, slots, &long).batches.len();
        assert_eq!([1, 2, 100].map(batches), [10, 17, 25], "an even share for each slot");
    }

    #[test]
    fn one_in_fifty_and_at_least_one_runs_alone_in_rotation() {
        let mut candidates = many(100);
        let mut seen = BTreeSet::new();
        for run in 0..50 {
            let alone = rotated(&select(Mode::Auto, run, &candidates));
            assert_eq!(alone.len(), 2);
            for candidate in &mut candidates {
                let was_alone = alone.contains(&candidate.test);
                let count = &mut candidate.standing.in_company;
                *count = if was_alone { 0 } else { *count + 1 };
            }
            seen.extend(alone);
        }
        assert_eq!(seen.len(), 100, "everyone had a turn in 50 runs");
        assert_eq!(rotated(&select(Mode::Auto, 0, &many(3))).len(), 1);
    }

    #[test]
    fn a_rotated_test_knows_its_company() {
        let selected = select(Mode::Auto, 3, &many(60));
        let Acquainted { test, company } = &selected.acquainted[0];
        assert!(company.contains(test) && company.is_sorted() && company.len() == 60);
        assert!(!tests(&selected).contains(test));
    }

    #[test]
    fn who_passed_in_company_is_known_with_those_of_it_that_run_now() {
        let recall = |it: &mut Candidate, lines: &str| {
            it.standing.in_company = 3;
            it.standing.streak = 4;
            let members = Some(Members::from_lines(lines));
            it.recalled = Some(Recalled { passes: 3, found: false, members });
        };
        let company = |candidates: &[Candidate], test: u32| {
            let acquainted = select(Mode::Auto, 1, candidates).acquainted;
            let own = acquainted.into_iter().filter(|it| it.test == TestIndex(test));
            let own: Vec<_> = own.map(|it| it.company.iter().map(|it| it.0).collect()).collect();
            assert!(own.len() < 2, "{own:?}");
            own.into_iter().next().unwrap_or_else(Vec::new)
        };
        let mut candidates = many(6);
        candidates[5].standing.in_company = 9;
        recall(&mut candidates[2], "t4\nt2\nt0\nt3");
        assert_eq!(company(&candidates, 2), [0, 2, 3, 4], "in the binary's order");
        candidates[3].ignored = true;
        candidates[4].sharing = None;
        assert_eq!(company(&candidates, 2), [0, 2]);
        candidates[0].binary = BinaryKey(1);
        assert_eq!(company(&candidates, 2), [0; 0], "nobody else is there");
        assert_eq!(company(&candidates, 5), [1, 2, 5], "whom it would have met");
        recall(&mut candidates[5], "t1\nt5");
        candidates[5].standing.in_company = 9;
        assert_eq!(company(&candidates, 5), [1, 5], "who was there when it passed");
        candidates[5].standing.streak = 0;
        assert_eq!(company(&candidates, 5), [0; 0], "it failed since");
    }

    #[test]
    fn what_passes_only_in_company_is_never_batched_again() {
        const RUNS: u64 = 100;
        let pass = |alone: bool| Ran {
            verdict: Verdict::Pass,
            last: AttemptResult::Pass,
            orderly: true,
            duration: MS,
            batched: !alone,
            in_company: !alone,
            batch_mean: MS,
            printed: 0,
            had_trouble_in_company: false,
            only_in_company: false,
        };
        let mut candidates = many(4);
        let (verdict, last) = (Verdict::Fail, AttemptResult::Fail);
        let found = Ran { verdict, last, only_in_company: true, ..pass(true) };
        candidates[2].standing = candidates[2].standing.after(&found);
        for mode in [Mode::Auto, Mode::All { whole: false }, Mode::All { whole: true }] {
            for seed in 0..RUNS {
                let selected = select(mode, seed, &candidates);
                let batched = tests(&selected);
                assert!(batched.len() > 1, "others are");
                assert!(!batched.contains(&TestIndex(2)), "after {seed} clean runs, {mode:?}");
                assert!(!rotated(&selected).contains(&TestIndex(2)));
                for candidate in &mut candidates {
                    let ran = pass(!batched.contains(&candidate.test));
                    candidate.standing = candidate.standing.after(&ran);
                }
            }
        }
    }

    #[test]
    fn whoever_must_be_alone_is() {
        let check = |change: &dyn Fn(&mut Candidate), auto: bool, all: bool| {
            let mut candidates = many(4);
            change(&mut candidates[2]);
            for (mode, expected) in [(Mode::Auto, auto), (Mode::All { whole: true }, all)] {
                let selected = select(mode, 1, &candidates);
                let shares = tests(&selected).contains(&TestIndex(2))
                    || rotated(&selected).contains(&TestIndex(2));
                assert_eq!(shares, expected, "{:?} under {mode:?}", candidates[2]);
            }
        };
        check(&|_| {}, true, true);
        check(&|it| it.sharing = None, false, false);
        check(&|it| it.ignored = true, false, false);
        check(&|it| it.standing = Standing::default(), false, true);
        check(&|it| it.standing.kept_out = Some(3), false, true);
        check(&|it| it.standing.only_in_company = true, false, false);
        check(&|it| it.expected = Some(MS * 20), true, true);
        check(&|it| it.expected = Some(MS * 21), false, true);
        check(&|it| it.expected = None, false, true);
        check(&|it| it.binary = BinaryKey(9), false, false);
    }

    #[test]
    fn who_may_gain_from_a_batch_is_tried_and_who_gains_stays() {
        let shares_in = |seed, alone: Duration, standing: Standing| {
            let mut candidates = many(4);
            candidates[2].expected = Some(alone);
            candidates[2].standing = Standing { alone: Some(alone), ..standing };
            let selected = select(Mode::Auto, seed, &candidates);
            selected.batches.iter().any(|batch| batch.tests.contains(&TestIndex(2)))
                || rotated(&selected).contains(&TestIndex(2))
        };
        let shares = |alone, standing| shares_in(1, alone, standing);
        let tried =
            |batched, gains| Standing { batched: Some(batched), gains: Some(gains), ..PASSED };
        let loud = Standing { printed: LOUD, ..PASSED };
        assert!(shares(MS * 400, PASSED) && !shares(MS * 401, PASSED) && shares(MS * 60_000, loud));
        assert!(!shares(MS * 100, tried(MS * 40, false)) && shares(MS * 100, tried(MS * 40, true)));
        assert!(shares(MS * 100, tried(MS * 20, false)), "quick in company");
        assert!(!shares(MS * 60_000, Standing { printed: LOUD, ..tried(MS * 60_000, false) }));
        let again = (0..160).filter(|seed| shares_in(*seed, MS * 100, tried(MS * 90, false)));
        assert!((2..40).contains(&again.count()), "now and then");
    }

    #[test]
    fn batches_are_longer_where_processes_do_much_before_their_first_test() {
        let slow_starter = |it: Candidate| {
            let (alone, batched, gains) = (Some(MS * 100), Some(MS * 5), Some(true));
            Candidate { standing: Standing { alone, batched, gains, ..PASSED }, ..it }
        };
        let candidates: Vec<_> = many(200).into_iter().map(slow_starter).collect();
        let selected = select(Mode::Auto, 1, &candidates);
        let most = selected.batches.iter().map(|batch| batch.expected).max();
        assert!(
            most > Some(MS * 400) && most <= Some(MS * 475),
            "five times what is saved: {most:?}"
        );
    }

    #[test]
    fn no_batch_of_trials_is_longer_than_a_slots_share_should_they_fail() {
        // They gain so much that long batches are worth it, and the others are tried there, too.
        let gains = |it: Candidate| {
            let (alone, batched, gains) = (Some(MS * 100), Some(MS * 5), Some(true));
            Candidate { standing: Standing { alone, batched, gains, ..PASSED }, ..it }
        };
        let slow = |it: Candidate| {
            let standing = Standing { alone: Some(MS * 400), ..PASSED };
            Candidate { standing, ..it }
        };
        let mut candidates: Vec<_> = many(60).into_iter().map(gains).collect();
        candidates.extend(many(100).into_iter().skip(60).map(slow));
        let most = |slots| {
            let batches = super::select(Mode::Auto, 1, slots, &candidates).batches;
            batches.iter().map(|batch| batch.expected).max().unwrap()
        };
        assert!(most(12) > MS * 1_000 && most(12) <= MS * 16_300 / 12, "{:?}", most(12));
        assert!(most(1_000) <= MS * 800, "two at least: {:?}", most(1_000));
        assert!(most(1) > MS * 4_000, "where there is one slot nothing waits: {:?}", most(1));
    }

    #[test]
    fn a_loud_test_is_captured_even_by_itself_and_in_its_turn_alone() {
        let loud = |it: Candidate| {
            let standing = Standing { printed: LOUD, alone: Some(MS * 9_000), ..PASSED };
            Candidate { standing, ..it }
        };
        let selected = select(Mode::Auto, 1, &[loud(candidate(0, 0)), candidate(1, 1)]);
        assert_eq!(tests(&selected), [TestIndex(0)]);
        assert_eq!(rotated(&selected), [TestIndex(0)], "its company is itself");
        let mut candidates: Vec<_> = many(20).into_iter().map(loud).collect();
        candidates[7].standing.in_company = 9;
        let selected = select(Mode::Auto, 1, &candidates);
        assert_eq!(rotated(&selected), [TestIndex(7)]);
        let own = selected.batches.iter().find(|batch| batch.tests.contains(&TestIndex(7)));
        assert_eq!(own.map(|batch| batch.tests.len()), Some(1));
        assert_eq!(tests(&selected).len(), 20);
    }

    #[test]
    fn a_chosen_set_is_one_batch_without_rotation() {
        let selected = select(Mode::All { whole: true }, 5, &many(100));
        assert_eq!((selected.batches.len(), selected.acquainted.len()), (1, 0));
        assert!(selected.batches[0].tests.is_sorted());
    }
}
