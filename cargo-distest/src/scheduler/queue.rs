//! Tests that wait, by binary and rank.

use std::collections::{BTreeMap, BTreeSet};

use distest_worker::protocol::BinaryKey;

use crate::model::TestIndex;
use crate::plan::Rank;

type Entry = (Rank, TestIndex);

/// Waiting tests. Popping the best one whose binary is acceptable costs a look at each binary that
/// is better and isn't, plus two logarithms.
#[derive(Debug, Default)]
pub(super) struct Queue {
    by_binary: BTreeMap<BinaryKey, BTreeSet<Entry>>,
    /// The best entry of each binary.
    best: BTreeSet<(Entry, BinaryKey)>,
    len: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, binary: BinaryKey, rank: Rank, test: TestIndex) {
        let entries = self.by_binary.entry(binary).or_default();
        let before = entries.first().copied();
        let added = entries.insert((rank, test));
        debug_assert!(added, "{test:?} is queued already");
        self.len += 1;
        self.note(binary, before);
    }

    /// Takes the best test whose binary is acceptable.
    pub(super) fn pop(&mut self, acceptable: impl Fn(BinaryKey) -> bool) -> Option<TestIndex> {
        let &(entry, binary) = self.best.iter().find(|(_, binary)| acceptable(*binary))?;
        let entries = self.by_binary.get_mut(&binary)?;
        entries.remove(&entry);
        self.len -= 1;
        self.note(binary, Some(entry));
        Some(entry.1)
    }

    /// Binaries that have waiting tests, the most urgent first.
    pub(super) fn binaries(&self) -> impl Iterator<Item = BinaryKey> {
        self.best.iter().map(|(_, binary)| *binary)
    }

    /// Empties the queue, in order of test numbers.
    pub(super) fn drain(&mut self) -> Vec<TestIndex> {
        self.best.clear();
        self.len = 0;
        let mut tests: Vec<_> = std::mem::take(&mut self.by_binary)
            .into_values()
            .flat_map(|entries| entries.into_iter().map(|(_, test)| test))
            .collect();
        tests.sort_unstable();
        tests
    }

    /// Brings `best` up to date after the first entry of a binary was `before`.
    fn note(&mut self, binary: BinaryKey, before: Option<Entry>) {
        let Some(entries) = self.by_binary.get(&binary) else { return };
        let now = entries.first().copied();
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
