//! Whether a run is over here before workers would be there. Pure.
//!
//! Nobody knows how long a worker takes to answer. Whoever waits for it as long as the whole run
//! takes here, and then begins, never needs more than twice what is best: the rule for renting skis
//! (Karlin, Manasse, Rudolph and Sleator, "Competitive snoopy caching", 1988).

use std::time::Duration;

use super::Planned;
use crate::plan::Urgency;
use crate::scheduler::Traits;

/// How long all tests take on the embedded worker at most, by history. None if some test's time is
/// not known from its own past, or one may not run there.
pub(super) fn time_here(tests: &[Planned], slots: u32, traits: &Traits) -> Option<Duration> {
    let mut needed = tests.iter().map(|test| test.needs.as_deref());
    if !needed.all(|needs| needs.is_none_or(|needs| needs.met_by(traits))) {
        return None;
    }
    bound(
        tests.iter().map(|test| (test.rank.urgency != Urgency::New).then_some(test.expected?)),
        slots,
    )
}

/// No order of the tests takes longer than this if no slot idles while one waits (Graham 1966).
fn bound(times: impl Iterator<Item = Option<Duration>>, slots: u32) -> Option<Duration> {
    let (mut sum, mut longest) = (Duration::ZERO, Duration::ZERO);
    for time in times {
        let time = time?;
        sum = sum.saturating_add(time);
        longest = longest.max(time);
    }
    sum.checked_div(slots)?.checked_add(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_its_work_by_slots_and_the_longest_test_if_all_times_are_known() {
        let check = |times: &[u64], slots, expected: Option<u64>| {
            let times = times.iter().map(|ms| (*ms > 0).then_some(Duration::from_millis(*ms)));
            assert_eq!(bound(times, slots), expected.map(Duration::from_millis));
        };
        check(&[100, 200, 300], 2, Some(600));
        check(&[100, 200, 300], 1, Some(900));
        check(&[100, 0], 2, None);
        check(&[], 2, Some(0));
        check(&[100], 0, None);
    }
}
