use std::sync::Arc;

use super::*;
use crate::cost::Past;
use crate::model::{BinaryId, TestName, Verdict};

const SECOND: Duration = Duration::from_secs(1);

/// So many tests of a second each, of one binary of 100 MB.
fn basis(tests: u32) -> Basis {
    let task = |index| {
        let rank = Rank { urgency: Urgency::Known, expected: Reverse(SECOND) };
        (Task { test: TestIndex(index), binary: BinaryKey(0), rank, needs: None }, SECOND)
    };
    Basis {
        tests: (0..tests).map(task).collect(),
        unknown: 0,
        groups: Vec::new(),
        batches: Vec::new(),
        acquainted: Vec::new(),
        sizes: BTreeMap::from([(BinaryKey(0), 100_000_000)]),
        rate: None,
        threads: None,
        slots: 1,
        doctests: DoctestTimes::of(&[], &Timings::default()),
    }
}

fn doctest(name: &str) -> TestCase {
    TestCase { binary: BinaryId::new("a::doc/a"), name: TestName::new(name) }
}

#[test]
fn doctests_come_after_the_tests_and_limit_a_run_in_which_they_take_longer() {
    let mut basis = basis(8);
    let predict = |basis: &Basis, workers| {
        let Prediction { takes, limit, without_sending } = basis.predict(workers);
        assert_eq!(without_sending, None);
        (takes, limit)
    };
    let (alone, limit) = predict(&basis, 1);
    assert_eq!(limit, "all slots are busy");
    basis.doctests.take = Some(SECOND * 5);
    assert_eq!(predict(&basis, 1), (alone + SECOND * 5, "all slots are busy".to_owned()));
    let (together, limit) = predict(&basis, 8);
    assert_eq!((together.as_secs(), limit.as_str()), (6, "the doctests"));
    basis.tests.clear();
    assert_eq!(predict(&basis, 3), (SECOND * 5, "the doctests".to_owned()));
}

#[test]
fn doctests_that_never_passed_are_like_the_others() {
    let passed = |seconds| Past::after(None, SECOND * seconds, Verdict::Pass);
    let of = |case: TestCase| (case.binary, case.name);
    let known = [(of(doctest("x")), passed(1)), (of(doctest("y")), passed(3))];
    let timings: Timings = known.into_iter().collect();
    let times = |names: &[&str]| {
        let cases: Vec<_> = names.iter().map(|name| doctest(name)).collect();
        let DoctestTimes { count, unknown, take } = DoctestTimes::of(&cases, &timings);
        (count, unknown, take)
    };
    assert_eq!(times(&["x", "y"]), (2, 0, Some(SECOND * 4)));
    assert_eq!(times(&["x", "new", "y"]), (3, 1, Some(SECOND * 6)));
    assert_eq!(times(&[]), (0, 0, Some(Duration::ZERO)));
    let unheard_of = DoctestTimes::of(&[doctest("x")], &Timings::default());
    assert_eq!((unheard_of.unknown, unheard_of.take), (1, None));
    // Of another library nothing but its neighbours say anything.
    let other = TestCase { binary: BinaryId::new("b::doc/b"), ..doctest("z") };
    let both = DoctestTimes::of(&[doctest("x"), doctest("y"), other], &timings);
    assert_eq!((both.unknown, both.take), (1, Some(SECOND * 6)));
}

#[test]
fn sending_limits_a_run_that_would_be_much_quicker_without() {
    let predict = |tests, workers, rate, threads| {
        let basis = Basis { rate, threads, ..basis(tests) };
        let Prediction { takes, limit, without_sending } = basis.predict(workers);
        (limit, without_sending.map(|without| (takes.as_secs(), without.as_secs())))
    };
    let check = |tests, workers, rate, threads, limit: &str| {
        assert_eq!(predict(tests, workers, rate, threads), (limit.to_owned(), None));
    };
    let slow = Some(1e7);
    let sending = |takes, without| ("sending executables".to_owned(), Some((takes, without)));
    assert_eq!(predict(24, 5, slow, None), sending(15, 5));
    // It is not even sent, as it would come when all is over here.
    assert_eq!(predict(8, 5, slow, None), sending(8, 2));
    check(8, 5, None, None, "all slots are busy");
    check(8, 5, Some(1e10), None, "all slots are busy");
    check(500, 5, slow, None, "all slots are busy");
    // Whoever is idle anyway waits for nothing.
    check(8, 5, slow, Some(1), "the number of test threads");
    check(1, 5, slow, None, "the longest test");
}

#[test]
fn a_batch_is_not_parted_among_workers() {
    let tests: Arc<[TestIndex]> = (0..6).map(TestIndex).collect();
    let batch = Batch { binary: BinaryKey(0), tests, expected: SECOND * 6 };
    let basis = Basis { batches: vec![batch], rate: Some(1e8), ..basis(10) };
    let predict = |workers| {
        let Prediction { takes, limit, .. } = basis.predict(workers);
        (takes.as_secs(), limit)
    };
    assert_eq!(predict(1), (10, "all slots are busy".to_owned()));
    let longest = "the longest batch of tests in one process";
    assert_eq!(predict(5), (6, longest.to_owned()));
    // However many workers wait for the executable meanwhile: that keeps nobody.
    assert_eq!(predict(64), (6, longest.to_owned()));
}
