//! Which of the things that others cause are told, and when those are summed up that are not. Pure.
//!
//! The first of a kind is told at once, or the first few. What is like it within a minute is counted,
//! and the count is told when that minute is over. Kinds are bounded, too, as a stranger can make up
//! new ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What comes again within this long is counted.
const WITHIN: Duration = Duration::from_secs(60);
/// Kinds that are told within [`WITHIN`], where nothing else is said.
const KINDS_MAX: usize = 20;
/// What others cause, as often as they like, by its kind.
#[derive(Debug)]
pub struct Repeats<K> {
    /// How many of a kind are told within [`WITHIN`].
    each: u64,
    /// How many kinds are.
    kinds_max: usize,
    told: BTreeMap<K, Told>,
    /// What came when there were too many kinds.
    rest: Option<Told>,
}

/// What came again in the last minute, and how often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Again<K> {
    /// This.
    Of(K, u64),
    /// Kinds of which none was told.
    OfOthers(u64),
}

#[derive(Debug)]
struct Told {
    since: Instant,
    count: u64,
    more: u64,
}

impl<K: Ord + Clone> Repeats<K> {
    /// Tells so many of each of so many kinds.
    pub fn new(each: u64, kinds_max: usize) -> Self {
        Self { each, kinds_max, told: BTreeMap::new(), rest: None }
    }

    /// Something of this kind has happened; answers whether it is to be told now.
    pub fn happens(&mut self, now: Instant, kind: K) -> bool {
        if let Some(told) = self.told.get_mut(&kind) {
            let is_told = told.count < self.each;
            *(if is_told { &mut told.count } else { &mut told.more }) += 1;
            return is_told;
        }
        let first = Told { since: now, count: 1, more: 0 };
        if self.told.len() >= self.kinds_max {
            self.rest.get_or_insert(first).more += 1;
            return false;
        }
        self.told.insert(kind, first);
        true
    }

    /// What is to be told of what was counted, where a minute is over.
    pub fn due(&mut self, now: Instant) -> Vec<Again<K>> {
        let mut due = Vec::new();
        self.told.retain(|kind, told| match told.over(now) {
            None => true,
            Some(0) => false,
            Some(more) => {
                due.push(Again::Of(kind.clone(), more));
                true
            }
        });
        if let Some(more) = self.rest.as_mut().and_then(|rest| rest.over(now)) {
            self.rest = None;
            due.push(Again::OfOthers(more));
        }
        due
    }
}

impl<K: Ord + Clone> Default for Repeats<K> {
    /// Tells the first of each of [`KINDS_MAX`] kinds.
    fn default() -> Self {
        Self::new(1, KINDS_MAX)
    }
}

impl Told {
    /// How many more there were, if its minute is over; then the next one begins.
    fn over(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) < WITHIN {
            return None;
        }
        self.since = now;
        // What is told of it now.
        self.count = 1;
        Some(std::mem::take(&mut self.more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_what_is_like_it_is_summed_up() {
        let (mut repeats, start) = (Repeats::new(1, 20), Instant::now());
        assert!(repeats.happens(start, "a"));
        assert_eq!((0..127).filter(|_| repeats.happens(start, "a")).count(), 0);
        assert!(repeats.happens(start, "b"));
        assert_eq!(repeats.due(start + WITHIN / 2), []);
        assert_eq!(repeats.due(start + WITHIN), [Again::Of("a", 127)]);
        // It has been told of, so what comes now is counted; and after a quiet minute it is new.
        assert!(!repeats.happens(start + WITHIN, "a"));
        assert_eq!(repeats.due(start + WITHIN * 2), [Again::Of("a", 1)]);
        assert_eq!(repeats.due(start + WITHIN * 3), []);
        assert!(repeats.happens(start + WITHIN * 3, "a"));
    }

    #[test]
    fn of_some_kinds_several_are_told_before_the_rest_is_summed_up() {
        let (mut repeats, start) = (Repeats::new(3, 20), Instant::now());
        assert_eq!((0..10).filter(|_| repeats.happens(start, "a")).count(), 3);
        assert_eq!(repeats.due(start + WITHIN), [Again::Of("a", 7)]);
        assert_eq!((0..10).filter(|_| repeats.happens(start + WITHIN, "a")).count(), 2);
        assert_eq!(repeats.due(start + WITHIN * 2), [Again::Of("a", 8)]);
        assert_eq!((0..3).filter(|_| repeats.happens(start + WITHIN * 2, "a")).count(), 2);
    }

    #[test]
    fn who_makes_up_kinds_fills_no_log() {
        let (mut repeats, start) = (Repeats::new(1, 20), Instant::now());
        assert_eq!((0..1000).filter(|kind| repeats.happens(start, *kind)).count(), 20);
        assert_eq!(repeats.due(start + WITHIN), [Again::OfOthers(980)]);
        assert!(repeats.happens(start + WITHIN, 1000), "those are forgotten");
    }
}
