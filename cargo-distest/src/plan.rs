//! In which order test cases should start: what is likely to fail, then what is new, then the
//! longest. Pure.
//!
//! The longest first keeps the end of a run short (LPT, Graham 1969); what failed last time comes
//! before that because people wait for it.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use nextest_metadata::RustBinaryId;

use crate::cost::Timings;
use crate::model::TestCase;

/// A test's place in the queue: smaller is sooner. Ties are broken by whoever queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    /// Whether something speaks for running it early.
    pub urgency: Urgency,
    /// Longest first.
    pub expected: Reverse<Duration>,
}

/// Why a test goes before others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// It has been handed out before in this run: its verdict is late already.
    Again,
    /// It failed last time.
    Failed,
    /// Nothing is known of it.
    New,
    /// Nothing in particular.
    Known,
}

/// Where a test case stands in the order, and what it will probably take: what it took, else the
/// mean of its binary.
pub fn outlook(case: &TestCase, timings: &Timings) -> (Rank, Option<Duration>) {
    let past = timings.get(&case.binary, &case.name);
    let urgency = match past {
        Some(past) if past.failed_last_time() => Urgency::Failed,
        Some(past) if past.runs > 0 => Urgency::Known,
        _ => Urgency::New,
    };
    let timed = past.filter(|past| past.runs > 0).map(|past| past.mean);
    let expected = timed.or_else(|| timings.binary_mean(&case.binary));
    (Rank { urgency, expected: Reverse(expected.unwrap_or_default()) }, expected)
}

/// What a test case will probably take.
pub fn expected(case: &TestCase, timings: &Timings) -> Option<Duration> {
    outlook(case, timings).1
}

/// The order in which cargo-nextest lists test cases: a package's library, its integration tests,
/// its other binaries; within each by name.
pub fn listing_order(a: &TestCase, b: &TestCase) -> Ordering {
    // Parsed ids are compared only where the texts differ: most neighbours share their binary.
    let binaries = match a.binary == b.binary {
        true => Ordering::Equal,
        false => RustBinaryId::new(&a.binary.0).cmp(&RustBinaryId::new(&b.binary.0)),
    };
    binaries.then_with(|| a.name.cmp(&b.name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cost::Past;
    use crate::model::{BinaryId, TestName, Verdict};

    fn case(binary: &str, name: &str) -> TestCase {
        TestCase { binary: BinaryId::new(binary), name: TestName::new(name) }
    }

    fn timings(known: &[(&str, &str, u64, Verdict)]) -> Timings {
        let known = known.iter().map(|(binary, name, millis, verdict)| {
            let past = Past::after(None, Duration::from_millis(*millis), *verdict);
            ((BinaryId::new(*binary), TestName::new(*name)), past)
        });
        known.collect()
    }

    #[test]
    fn failed_then_new_then_longest() {
        let timings = timings(&[
            ("a", "long", 900, Verdict::Pass),
            ("a", "short", 10, Verdict::Pass),
            ("a", "failed", 1, Verdict::Fail),
            ("b", "flaky", 5, Verdict::Flaky),
            ("b", "tie", 10, Verdict::Pass),
        ]);
        let mut cases = [
            case("a", "short"),
            case("c", "new"),
            case("a", "new"),
            case("b", "tie"),
            case("a", "long"),
            case("a", "failed"),
            case("b", "flaky"),
        ];
        cases.sort_by_key(|case| (outlook(case, &timings).0, case.clone()));
        let names: Vec<String> = cases.iter().map(ToString::to_string).collect();
        let expected = ["b flaky", "a failed", "a new", "c new", "a long", "a short", "b tie"];
        assert_eq!(names, expected);
    }

    #[test]
    fn an_unknown_test_is_expected_to_be_like_its_neighbours() {
        let timings = timings(&[("a", "x", 10, Verdict::Pass), ("a", "y", 30, Verdict::Pass)]);
        assert_eq!(expected(&case("a", "x"), &timings), Some(Duration::from_millis(10)));
        assert_eq!(expected(&case("a", "new"), &timings), Some(Duration::from_millis(20)));
        assert_eq!(expected(&case("b", "new"), &timings), None);
    }

    #[test]
    fn lists_as_nextest_does() {
        let mut cases = [
            case("b", "x"),
            case("a::bin/tool", "x"),
            case("a::zeta", "x"),
            case("a", "y"),
            case("a-b", "x"),
            case("a", "x"),
        ];
        cases.sort_by(listing_order);
        let names: Vec<String> = cases.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a x", "a y", "a::zeta x", "a::bin/tool x", "a-b x", "b x"]);
    }

    proptest! {
        /// Whatever is known: who failed is before who is new, who is new before the others, and
        /// those are the longest first.
        #[test]
        fn every_order_is_by_urgency_and_then_by_length(
            pasts in prop::collection::vec(prop::option::of((0..5_000u64, any::<bool>())), 1..40),
        ) {
            let names: Vec<String> = (0..pasts.len()).map(|n| format!("t{n}")).collect();
            let known: Vec<_> = pasts.iter().zip(&names).filter_map(|(past, name)| {
                let (millis, passed) = (*past)?;
                let verdict = if passed { Verdict::Pass } else { Verdict::Fail };
                Some(("a", name.as_str(), millis, verdict))
            }).collect();
            let timings = timings(&known);
            let mut order: Vec<usize> = (0..pasts.len()).collect();
            order.sort_by_key(|n| outlook(&case("a", &names[*n]), &timings).0);
            let place = |n: &usize| match pasts[*n] {
                Some((millis, false)) => (0, Reverse(millis)),
                None => (1, Reverse(0)),
                Some((millis, true)) => (2, Reverse(millis)),
            };
            prop_assert!(order.is_sorted_by_key(place), "{pasts:?}: {order:?}");
        }

        /// It is one order: neither a pair nor a triple contradicts itself.
        #[test]
        fn the_listing_order_is_total(
            ids in prop::array::uniform3(("[ab-]{1,2}(::(bin/|test/)?[ab]{1,2})?", "[xy:]{1,2}")),
        ) {
            let [a, b, c] = ids.map(|(binary, name)| case(&binary, &name));
            prop_assert_eq!(listing_order(&a, &b), listing_order(&b, &a).reverse());
            prop_assert_eq!(listing_order(&a, &b) == Ordering::Equal, a == b);
            if listing_order(&a, &b).is_le() && listing_order(&b, &c).is_le() {
                prop_assert!(listing_order(&a, &c).is_le());
            }
        }
    }
}
