//! Tests that wait, by binary and rank.

use std::cmp::Reverse;
use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use distest_worker::protocol::BinaryKey;

use super::company::Company;
use crate::model::TestIndex;
use crate::plan::{Rank, Urgency};

/// Tests that share a process wait under the first of them.
type Entry = (Rank, TestIndex);

/// What is taken out to be handed out.
#[derive(Debug)]
pub(super) struct Popped {
    pub(super) test: TestIndex,
    pub(super) company: Company,
    /// What it takes on an ordinary slot; zero if nobody knows.
    pub(super) expected: Duration,
}

/// Which of a binary's tests a worker takes, if how long it takes is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taste {
    /// The first.
    Any,
    /// Instead of the longest one that is tiny; else, if any is short, one of the shortest.
    Trial { tiny: Duration, short: Duration },
    /// The longest of those that take no longer. Others, what is urgent or else the shortest, only
    /// if that is worth it.
    Timely(Duration),
}

/// Waiting tests. Popping the best one whose binary is acceptable costs a look at each binary that
/// is better and isn't, plus two logarithms.
#[derive(Debug, Default)]
pub(super) struct Queue {
    by_binary: BTreeMap<BinaryKey, BTreeMap<Entry, Company>>,
    /// The best entry of each binary.
    best: BTreeSet<(Entry, BinaryKey)>,
    /// Tests, not entries.
    len: usize,
    /// What they will probably take together.
    work: Duration,
    /// The same for each binary, with how many of its tests nothing is known of.
    works: BTreeMap<BinaryKey, (Duration, usize)>,
}

impl Queue {
    /// Tests that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What waits of a binary, in time on one ordinary slot. None if that is unknown of a test.
    pub(super) fn work_of(&self, binary: BinaryKey) -> Option<Duration> {
        let (work, unknown) = self.works.get(&binary)?;
        (*unknown == 0).then_some(*work)
    }

    fn count(&mut self, binary: BinaryKey, expected: Duration, more: bool) {
        let (work, unknown) = self.works.entry(binary).or_default();
        let one = usize::from(expected.is_zero());
        if more {
            (*work, *unknown) = (*work + expected, *unknown + one);
            self.work = self.work.saturating_add(expected);
        } else {
            (*work, *unknown) = (work.saturating_sub(expected), unknown.saturating_sub(one));
            self.work = self.work.saturating_sub(expected);
        }
    }

    /// What waits, in time on one ordinary slot.
    pub(super) fn work(&self) -> Duration {
        self.work
    }

    pub(super) fn insert(
        &mut self,
        binary: BinaryKey,
        rank: Rank,
        test: TestIndex,
        company: Company,
    ) {
        let entries = self.by_binary.entry(binary).or_default();
        let before = entries.first_key_value().map(|(entry, _)| *entry);
        self.len += company.counted(&test).len();
        let added = entries.insert((rank, test), company).is_none();
        debug_assert!(added, "{test:?} is queued already");
        self.note(binary, before);
        self.count(binary, rank.expected.0, true);
    }

    /// Takes a test out that waits by itself. False if it doesn't.
    pub(super) fn remove(&mut self, binary: BinaryKey, rank: Rank, test: TestIndex) -> bool {
        let Some(entries) = self.by_binary.get_mut(&binary) else { return false };
        let before = entries.first_key_value().map(|(entry, _)| *entry);
        match entries.entry((rank, test)) {
            Occupied(entry) if *entry.get() == Company::Alone => _ = entry.remove(),
            Occupied(_) | Vacant(_) => return false,
        }
        self.len -= 1;
        self.count(binary, rank.expected.0, false);
        self.note(binary, before);
        true
    }

    /// The longest of the tests of whose place only their length speaks, as far as they are the
    /// best of their binaries.
    pub(super) fn longest(&self) -> Duration {
        let (urgency, expected) = (Urgency::Known, Reverse(Duration::MAX));
        let first = ((Rank { urgency, expected }, TestIndex(0)), BinaryKey(0));
        self.best.range(first..).next().map_or(Duration::ZERO, |((rank, _), _)| rank.expected.0)
    }

    /// Takes the best test whose binary is acceptable and that is to the worker's `taste`, if one
    /// that is not timely is `worth` it.
    pub(super) fn pop(
        &mut self,
        acceptable: impl Fn(BinaryKey) -> bool,
        taste: Taste,
        mut worth: impl FnMut(BinaryKey, Duration) -> bool,
    ) -> Option<Popped> {
        let &(best, binary) = self.best.iter().find(|(_, binary)| acceptable(*binary))?;
        let entries = self.by_binary.get_mut(&binary)?;
        let known = |most| {
            let from = Rank { urgency: Urgency::Known, expected: Reverse(most) };
            entries.range((from, TestIndex(0))..).next().map(|(entry, _)| *entry)
        };
        let shortest = *entries.last_key_value()?.0;
        let expected = |entry: Entry| entry.0.expected.0;
        let is_known = best.0.urgency == Urgency::Known;
        let entry = match taste {
            Taste::Trial { tiny, .. } if is_known && expected(shortest) <= tiny => known(tiny)?,
            Taste::Trial { short, .. } if is_known && expected(shortest) <= short => {
                known(expected(shortest) * 2)?
            }
            Taste::Timely(most) if expected(best) > most => match known(most) {
                _ if !is_known && worth(binary, expected(best)) => best,
                Some(entry) => entry,
                None if worth(binary, expected(shortest)) => shortest,
                None => return None,
            },
            Taste::Any | Taste::Trial { .. } | Taste::Timely(_) => best,
        };
        let company = entries.remove(&entry)?;
        let (test, expected) = (entry.1, entry.0.expected.0);
        self.len -= company.counted(&test).len();
        self.count(binary, expected, false);
        self.note(binary, Some(best));
        Some(Popped { test, company, expected })
    }

    /// Binaries that have waiting tests, the most urgent first.
    pub(super) fn binaries(&self) -> impl Iterator<Item = BinaryKey> {
        self.best.iter().map(|(_, binary)| *binary)
    }

    /// Whether tests of this binary wait.
    pub(super) fn has(&self, binary: BinaryKey) -> bool {
        self.by_binary.contains_key(&binary)
    }

    /// Empties the queue, in order of test numbers.
    pub(super) fn drain(&mut self) -> Vec<TestIndex> {
        self.best.clear();
        self.len = 0;
        self.work = Duration::ZERO;
        self.works.clear();
        let mut tests: Vec<_> = std::mem::take(&mut self.by_binary)
            .into_values()
            .flatten()
            .flat_map(|((_, test), company)| company.counted(&test).to_vec())
            .collect();
        tests.sort_unstable();
        tests
    }

    /// Brings `best` up to date after the first entry of a binary was `before`.
    fn note(&mut self, binary: BinaryKey, before: Option<Entry>) {
        let Some(entries) = self.by_binary.get(&binary) else { return };
        let now = entries.first_key_value().map(|(entry, _)| *entry);
        if now == before {
            return;
        }
        if let Some(before) = before {
            self.best.remove(&(before, binary));
        }
        match now {
            Some(now) => {
                self.best.insert((now, binary));
            }
            None => {
                self.by_binary.remove(&binary);
            }
        }
    }
}
