//! What a seed's run consists of: tests and what their processes do, workers, rules.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use distest_worker::protocol::{BinaryKey, Labels};

use super::random::Random;
use crate::model::TestIndex;
use crate::pace::Pace;
use crate::plan::{Rank, Urgency};
use crate::scheduler::{Acquainted, Batch, Group, GroupIndex, Needs, Place, Rules, Task};

/// A second, in the unit of simulated time.
pub(super) const SECOND: u64 = 1_000_000;
/// A millisecond.
pub(super) const MILLI: u64 = 1_000;

/// What a test's processes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    Passes,
    Fails,
    Crashes,
    /// Fails one time in three.
    Flaky,
    /// Never ends by itself.
    Hangs,
    /// Takes its worker down, four times in five.
    Kills,
    /// Kills its worker each time, before that can say that it started.
    KillsAtOnce,
}

pub(super) struct Test {
    pub(super) nature: Nature,
    /// What it takes on an ordinary worker.
    pub(super) takes: u64,
    pub(super) task: Task,
}

/// What a worker is.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) slots: u32,
    pub(super) labels: Labels,
    /// It takes this many times as long, in percent.
    pub(super) slowness: u64,
    /// What the client believes of that from the start, rightly or not.
    pub(super) pace: Pace,
    /// Whatever runs there fails.
    pub(super) fails_all: bool,
    /// It says more than is true: of other attempts, and of its own again.
    pub(super) lies: bool,
    pub(super) embedded: bool,
    /// Its clock's rate, in parts per million of ours.
    pub(super) rate: u64,
}

pub(super) struct Scenario {
    pub(super) tests: Vec<Test>,
    pub(super) groups: Vec<Group>,
    pub(super) rules: Rules,
    pub(super) machines: Vec<Machine>,
    pub(super) batches: Vec<Batch>,
    pub(super) acquainted: Vec<Acquainted>,
    pub(super) falls_back: bool,
    /// Faults happen until then.
    pub(super) peace_at: u64,
    /// Between faults, on average.
    pub(super) fault_every: u64,
}

impl Scenario {
    pub(super) fn new(random: &mut Random) -> Self {
        let groups = groups(random);
        let binaries = random.between(1, 3) as u32;
        let count = random.below(36) as u32;
        let kills = random.one_in(3);
        let needy = [2, 4, 8][random.below(3) as usize];
        let mut tests: Vec<_> = (0..count)
            .map(|index| test(random, index, binaries, (kills, needy), &groups))
            .collect();
        let machines = machines(random);
        // What nobody can take is another matter than what this is about.
        if random.below(10) > 0 {
            for test in &mut tests {
                soften(test, &machines);
            }
        }
        let (batches, acquainted) = batches(random, &tests, binaries);
        Self {
            rules: Rules {
                retries: random.below(3) as u32,
                failures_max: random.one_in(6).then_some(2),
                failures_end_running: random.one_in(2),
                flaky_fails: random.one_in(2),
                threads: random.one_in(5).then(|| random.between(1, 4) as u32),
                hedge: random.one_in(2),
            },
            falls_back: random.one_in(2),
            peace_at: random.between(5, 40) * SECOND,
            fault_every: [500, 1_500, 5_000, 20_000][random.below(4) as usize] * MILLI,
            tests,
            groups,
            machines,
            batches,
            acquainted,
        }
    }
}

fn groups(random: &mut Random) -> Vec<Group> {
    let mutex = Group { name: "mutex".to_owned(), threads_max: Some(1), per_worker: None };
    let pair = Group { name: "pair".to_owned(), threads_max: Some(2), per_worker: Some(1) };
    let spread = Group { name: "spread".to_owned(), threads_max: None, per_worker: Some(1) };
    let mut groups = vec![mutex, pair, spread];
    groups.truncate(random.below(4) as usize);
    groups
}

/// `kills`: some may take their worker down; one in `needy` asks something of its surroundings.
fn test(
    random: &mut Random,
    index: u32,
    binaries: u32,
    (kills, needy): (bool, u64),
    groups: &[Group],
) -> Test {
    let nature = match random.below(40) {
        0..4 => Nature::Fails,
        4..6 => Nature::Crashes,
        6..11 => Nature::Flaky,
        11 => Nature::Hangs,
        12 if kills => Nature::Kills,
        13 if kills => Nature::KillsAtOnce,
        _ => Nature::Passes,
    };
    let takes = match random.below(10) {
        0..5 => random.between(1, 50) * MILLI,
        5..9 => random.between(50, 1_500) * MILLI,
        _ => random.between(2, 6) * SECOND,
    };
    let urgency = [Urgency::Failed, Urgency::New, Urgency::Known][random.below(3) as usize];
    let expected = Reverse(Duration::from_micros(takes));
    let needs = random.one_in(needy).then(|| Arc::new(needs(random, groups)));
    Test {
        nature,
        takes,
        task: Task {
            test: TestIndex(index),
            binary: BinaryKey(random.below(u64::from(binaries)) as u32),
            rank: Rank { urgency, expected },
            needs,
        },
    }
}

fn needs(random: &mut Random, groups: &[Group]) -> Needs {
    let grouped = !groups.is_empty() && random.below(3) > 0;
    Needs {
        group: grouped.then(|| GroupIndex(random.below(groups.len() as u64) as u16)),
        threads: if random.one_in(4) { random.between(1, 6) as u32 } else { 1 },
        exclusive: random.one_in(5),
        requires: match random.one_in(6) {
            true => BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]),
            false => BTreeMap::new(),
        },
        place: match random.below(20) {
            0 => Place::Local,
            1 => Place::Remote,
            _ => Place::Any,
        },
        private_network: false,
        forwards: false,
        priority: random.below(5) as i8 - 2,
    }
}

fn machines(random: &mut Random) -> Vec<Machine> {
    let mut machines: Vec<_> = (0..random.between(1, 4))
        .map(|_| Machine {
            slots: random.between(1, 3) as u32,
            labels: match random.one_in(3) {
                true => Labels::from([("gpu".to_owned(), "yes".to_owned())]),
                false => Labels::new(),
            },
            slowness: [50, 100, 100, 200, 1_000][random.below(5) as usize],
            pace: match random.below(6) {
                0 => Pace::remembered(0.25, Some(Duration::from_millis(50)), Some(1e6)),
                1 => Pace::remembered(2.0, Some(Duration::ZERO), Some(1e8)),
                _ => Pace::default(),
            },
            fails_all: random.one_in(12),
            lies: random.one_in(8),
            embedded: false,
            rate: random.between(999_800, 1_000_200),
        })
        .collect();
    // The client's own, which comes when it is asked for or from the start.
    machines.push(Machine {
        slots: random.between(1, 2) as u32,
        labels: Labels::new(),
        slowness: 100,
        pace: Pace::default(),
        fails_all: false,
        lies: false,
        embedded: true,
        rate: 1_000_000,
    });
    machines
}

/// Takes needs away that no machine meets.
fn soften(test: &mut Test, machines: &[Machine]) {
    let Some(needs) = &test.task.needs else { return };
    let remote = machines.iter().filter(|machine| !machine.embedded);
    let labels: Vec<_> = remote.map(|machine| &machine.labels).collect();
    let met = labels
        .iter()
        .any(|labels| needs.requires.iter().all(|(label, value)| labels.get(label) == Some(value)));
    let mut needs = Needs::clone(needs);
    if !met {
        needs.requires.clear();
    }
    if needs.place == Place::Local {
        needs.place = Place::Any;
    }
    test.task.needs = Some(Arc::new(needs));
}

/// Batches of neighbours of one binary that pass or nearly so, with gaps, and tests that run
/// alone instead.
fn batches(random: &mut Random, tests: &[Test], binaries: u32) -> (Vec<Batch>, Vec<Acquainted>) {
    let (mut batches, mut acquainted) = (Vec::new(), Vec::new());
    if random.one_in(2) {
        return (batches, acquainted);
    }
    for binary in (0..binaries).map(BinaryKey) {
        let theirs = tests.iter().filter(|test| test.task.binary == binary);
        let quick = theirs.filter(|test| test.takes < SECOND && test.task.needs.is_none());
        let theirs: Vec<_> = quick.map(|test| test.task.test).collect();
        for chunk in theirs.chunks(1 + random.below(10) as usize) {
            let chunk: Arc<[TestIndex]> = chunk.into();
            let expected = Duration::from_millis(20 * chunk.len() as u64);
            match random.below(4) {
                0 => {}
                1 => acquainted.push(Acquainted { test: chunk[0], company: chunk }),
                _ if chunk.len() > 1 => {
                    // Some of them passed together before.
                    let together = chunk.iter().filter(|test| test.0 % 3 == 0);
                    let known = together.map(|test| (*test, Arc::clone(&chunk)));
                    acquainted.extend(known.map(|(test, company)| Acquainted { test, company }));
                    batches.push(Batch { binary, tests: chunk, expected });
                }
                _ => {}
            }
        }
    }
    (batches, acquainted)
}
