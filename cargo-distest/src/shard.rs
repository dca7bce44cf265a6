//! Static shares of the tests, for machines that can't talk to each other. Pure.
//!
//! Every machine computes the same deal from the same tests (and, for [`PartitionBy::Timed`], the
//! same timings), so that each test is in exactly one share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use twox_hash::XxHash64;

use crate::model::{TestCase, TestName};
use crate::plan::listing_order;
use crate::settings::{Partition, PartitionBy};

/// A test that is left by the filters.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What it is.
    pub case: &'a TestCase,
    /// What it will probably take ([`crate::plan::expected`]).
    pub expected: Option<Duration>,
}

/// Whether a test's share depends on which other tests there are, so that all must be known before
/// the first can run.
pub fn needs_all(by: PartitionBy) -> bool {
    match by {
        PartitionBy::Hash => false,
        PartitionBy::Slice | PartitionBy::Timed => true,
    }
}

/// Which of the tests belong to this share; one answer per test, in the order given.
pub fn select(partition: Partition, tests: &[Candidate<'_>]) -> Vec<bool> {
    let shares = deal(partition.by, partition.count, tests);
    shares.into_iter().map(|share| share == partition.index).collect()
}

/// The share, from 1 to `count`, of each test.
///
/// # Panics
///
/// If `count` is 0.
pub fn deal(by: PartitionBy, count: u32, tests: &[Candidate<'_>]) -> Vec<u32> {
    assert!(count > 0, "a deal has at least one share");
    match by {
        PartitionBy::Hash => tests.iter().map(|test| by_hash(&test.case.name, count)).collect(),
        PartitionBy::Slice => by_turn(count, tests),
        PartitionBy::Timed => by_time(count, tests),
    }
}

/// As cargo-nextest: the name's XXH64 with seed 0, modulo the shares.
fn by_hash(name: &TestName, count: u32) -> u32 {
    let share = XxHash64::oneshot(0, name.0.as_bytes()) % u64::from(count);
    // A remainder of a u32 fits.
    share as u32 + 1
}

/// As cargo-nextest's `slice`: over all binaries in the order of the list.
fn by_turn(count: u32, tests: &[Candidate<'_>]) -> Vec<u32> {
    let mut shares = vec![0; tests.len()];
    for (share, index) in (1..=count).cycle().zip(listed(tests)) {
        shares[index] = share;
    }
    shares
}

/// The longest test goes to the lightest share, and so on (LPT, Graham 1969). A test without past
/// counts as the mean of those with one.
fn by_time(count: u32, tests: &[Candidate<'_>]) -> Vec<u32> {
    let known: Vec<u128> =
        tests.iter().filter_map(|test| test.expected).map(|it| it.as_nanos()).collect();
    let typical = known.iter().sum::<u128>().checked_div(known.len() as u128).unwrap_or(1);
    // Even a test that took no measurable time is one more process.
    let weight = |index: usize| tests[index].expected.map_or(typical, |it| it.as_nanos()).max(1);

    let mut longest_first = listed(tests);
    longest_first.sort_by_key(|index| Reverse(weight(*index)));

    let mut shares = vec![0; tests.len()];
    let mut lightest: BinaryHeap<Reverse<(u128, u32)>> =
        (1..=count).map(|share| Reverse((0, share))).collect();
    for index in longest_first {
        if let Some(mut share) = lightest.peek_mut() {
            shares[index] = share.0.1;
            share.0.0 += weight(index);
        }
    }
    shares
}

/// The tests' positions, in the order of the list.
fn listed(tests: &[Candidate<'_>]) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..tests.len()).collect();
    positions.sort_by(|a, b| listing_order(tests[*a].case, tests[*b].case));
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BinaryId;
    use proptest::prelude::*;

    const ALL: [PartitionBy; 3] = [PartitionBy::Hash, PartitionBy::Slice, PartitionBy::Timed];

    fn case(binary: &str, name: &str) -> TestCase {
        TestCase { binary: BinaryId::new(binary), name: TestName::new(name) }
    }

    fn candidates(tests: &[(TestCase, Option<u64>)]) -> Vec<Candidate<'_>> {
        tests
            .iter()
            .map(|(case, millis)| Candidate { case, expected: millis.map(Duration::from_millis) })
            .collect()
    }

    /// Shares as `cargo nextest list --partition` deals them.
    #[test]
    fn hash_and_slice_deal_as_nextest() {
        let tests: Vec<_> = ["a", "b"]
            .into_iter()
            .flat_map(|binary| ["t::t1", "t::t2", "t::t3"].map(|name| (case(binary, name), None)))
            .collect();
        let tests = candidates(&tests);
        assert_eq!(deal(PartitionBy::Hash, 2, &tests), [1, 1, 1, 1, 1, 1]);
        assert_eq!(deal(PartitionBy::Hash, 3, &tests), [3, 2, 1, 3, 2, 1]);
        assert_eq!(deal(PartitionBy::Slice, 2, &tests), [1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn timed_shares_weigh_the_same() {
        let tests: Vec<_> = [700, 600, 500, 400, 300, 200, 100, 100, 100]
            .into_iter()
            .enumerate()
            .map(|(index, millis)| (case("a", &format!("t{index}")), Some(millis)))
            .collect();
        let candidates = candidates(&tests);
        let shares = deal(PartitionBy::Timed, 3, &candidates);
        let mut loads = [0; 3];
        for (share, (_, millis)) in shares.iter().zip(&tests) {
            loads[*share as usize - 1] += millis.unwrap_or_default();
        }
        assert_eq!(loads, [1000, 1000, 1000]);
    }

    #[test]
    fn without_timings_shares_differ_by_one_test_at_most() {
        let tests: Vec<_> = (0..10).map(|index| (case("a", &index.to_string()), None)).collect();
        let shares = deal(PartitionBy::Timed, 4, &candidates(&tests));
        let mut sizes = [0; 4];
        for share in shares {
            sizes[share as usize - 1] += 1;
        }
        assert_eq!(sizes, [3, 3, 2, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_test_is_in_exactly_one_share_whatever_the_order(
            tests in proptest::collection::btree_map(
                ("[ab](::[xy])?", "[a-c]{1,3}"), proptest::option::of(0..1000_u64), 0..60),
            count in 1..8_u32,
            rotation in 0..60_usize,
        ) {
            let tests: Vec<_> = tests
                .into_iter()
                .map(|((binary, name), millis)| (case(&binary, &name), millis))
                .collect();
            let mut rotated = tests.clone();
            rotated.rotate_left(rotation % tests.len().max(1));
            let find = |case: &TestCase| rotated.iter().position(|(other, _)| other == case);
            for by in ALL {
                let shares = deal(by, count, &candidates(&tests));
                let elsewhere = deal(by, count, &candidates(&rotated));
                for (position, (case, _)) in tests.iter().enumerate() {
                    prop_assert!((1..=count).contains(&shares[position]));
                    let found = find(case).expect("rotated has all tests");
                    prop_assert_eq!(shares[position], elsewhere[found]);
                    let holders = (1..=count)
                        .filter(|&index| select(Partition { by, index, count }, &candidates(&tests))[position])
                        .count();
                    prop_assert_eq!(holders, 1);
                }
            }
        }
    }
}
