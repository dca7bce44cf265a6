//! Whose turn it is to be dialled, of all that are said to be there. Pure.
//!
//! Anybody in a local network can announce as many workers as they like, under any key. Known keys
//! take turns, and under one key whoever was tried least comes first, so that whoever is there has
//! a turn, however many others are announced.

use std::collections::{BTreeMap, BTreeSet};

use distest_worker::identity::PublicKey;

use super::discover::Found;

/// What was tried, and what is under way.
#[derive(Debug, Default)]
pub(super) struct Turns {
    tries: BTreeMap<Found, u32>,
    busy: BTreeMap<PublicKey, BTreeSet<Found>>,
}

impl Turns {
    /// Those that come next, in order, so that no more than `max` are under way at once. Each is
    /// under way until it is [`over`](Self::over).
    pub(super) fn next(&mut self, sight: &BTreeSet<Found>, max: usize) -> Vec<Found> {
        self.tries.retain(|found, _| sight.contains(found));
        let under_way = self.busy.values().map(BTreeSet::len).sum();
        let mut of_keys: BTreeMap<PublicKey, Vec<(u32, &Found)>> = BTreeMap::new();
        for found in sight.iter().filter(|found| !self.is_busy(found)) {
            let tries = self.tries.get(found).copied().unwrap_or(0);
            of_keys.entry(found.key).or_default().push((tries, found));
        }
        let mut turns = Vec::new();
        for (key, mut waiting) in of_keys {
            waiting.sort();
            let before = self.busy.get(&key).map_or(0, BTreeSet::len);
            turns.extend(waiting.into_iter().enumerate().map(|(at, it)| (before + at, it)));
        }
        turns.sort();
        let room = max.saturating_sub(under_way);
        let next: Vec<_> = turns.into_iter().take(room).map(|(_, (_, it))| it.clone()).collect();
        for found in &next {
            *self.tries.entry(found.clone()).or_default() += 1;
            self.busy.entry(found.key).or_default().insert(found.clone());
        }
        next
    }

    /// It has had its turn.
    pub(super) fn over(&mut self, found: &Found) {
        if let Some(busy) = self.busy.get_mut(&found.key) {
            busy.remove(found);
        }
        self.busy.retain(|_, busy| !busy.is_empty());
    }

    fn is_busy(&self, found: &Found) -> bool {
        self.busy.get(&found.key).is_some_and(|busy| busy.contains(found))
    }
}

#[cfg(test)]
mod tests {
    use distest_worker::identity::PrivateKey;

    use super::*;

    fn found(key: PublicKey, port: u16) -> Found {
        Found { key, name: "w".to_owned(), addresses: vec![("h".to_owned(), port)] }
    }

    #[test]
    fn a_flood_under_one_key_hides_neither_other_keys_nor_the_one_that_is_there() {
        let [flooded, quiet] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let mut sight: BTreeSet<_> = (1..=700).map(|port| found(flooded, port)).collect();
        let (honest, other) = (found(flooded, 700), found(quiet, 1));
        sight.insert(other.clone());
        let mut turns = Turns::default();
        let mut had = BTreeSet::new();
        for round in 0..70 {
            let next = turns.next(&sight, 11);
            assert!(turns.next(&sight, 11).is_empty(), "as many as may be are under way");
            assert!(round > 0 || next.contains(&other), "another key has its turn at once");
            had.extend(next.clone());
            if had.contains(&honest) {
                return;
            }
            // Whoever can be used stays.
            next.iter().filter(|it| **it != other).for_each(|it| turns.over(it));
        }
        panic!("it never had a turn among {}", had.len());
    }

    #[test]
    fn who_is_out_of_sight_is_forgotten() {
        let key = PrivateKey::generate().unwrap().public();
        let mut turns = Turns::default();
        for port in 1..100 {
            let one = found(key, port);
            assert_eq!(turns.next(&BTreeSet::from([one.clone()]), 1), std::slice::from_ref(&one));
            turns.over(&one);
            assert!(turns.tries.len() <= 1 && turns.busy.is_empty());
        }
    }
}
