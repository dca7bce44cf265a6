//! How long tests take, as workers know it: they lend it to a client that has no history, and keep
//! what this run finds out. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use distest_worker::protocol::{TestTime, bounded_times};

use super::Planned;
use crate::model::{BinaryId, TestIndex, TestName, WorkerId};
use crate::plan::{Rank, Urgency};

/// A test's time has changed if it is this many times longer or shorter.
const CHANGED: f64 = 1.5;

/// What was lent, and what tests took here.
#[derive(Debug, Default)]
pub(super) struct Times {
    lent: BTreeMap<(BinaryId, TestName), Duration>,
    taken: BTreeMap<WorkerId, BTreeMap<TestIndex, Duration>>,
}

impl Times {
    /// A worker knows these. Where several know a test, the longest time is believed: what is
    /// begun too early costs least.
    pub(super) fn lend(&mut self, times: Vec<TestTime>) {
        for TestTime { binary, name, micros } in times {
            let key = (BinaryId::new(binary), TestName::new(name));
            let time = self.lent.entry(key).or_default();
            *time = (*time).max(Duration::from_micros(micros));
        }
    }

    /// Gives a test of which nothing is known its place by what was lent. True if that changed it.
    pub(super) fn apply(&self, planned: &mut Planned) -> bool {
        if planned.rank.urgency != Urgency::New || self.lent.is_empty() {
            return false;
        }
        let key = (planned.case.binary.clone(), planned.case.name.clone());
        let Some(time) = self.lent.get(&key) else { return false };
        planned.expected = Some(*time);
        planned.rank = Rank { urgency: Urgency::Known, expected: std::cmp::Reverse(*time) };
        true
    }

    /// A test has passed on a worker.
    pub(super) fn took(&mut self, worker: WorkerId, test: TestIndex, duration: Duration) {
        self.taken.entry(worker).or_default().insert(test, duration);
    }

    /// What a worker is to keep of what ran there, `speed` times as fast as on an ordinary one: all
    /// of it if it knows little, else what is new.
    pub(super) fn for_keeping(
        &mut self,
        worker: WorkerId,
        known: Option<u32>,
        speed: f64,
        tests: &[Planned],
    ) -> Vec<TestTime> {
        let taken = self.taken.remove(&worker).unwrap_or_default();
        let Some(known) = known else { return Vec::new() };
        let knows_little = (known as usize) < taken.len();
        let told = taken.into_iter().filter_map(|(test, took)| {
            let planned = tests.get(test.0 as usize)?;
            let took = took.mul_f64(speed);
            let is_news = planned.expected.is_none_or(|expected| {
                let ratio = took.as_secs_f64() / expected.as_secs_f64().max(1e-6);
                planned.rank.urgency == Urgency::New || !(1.0 / CHANGED..CHANGED).contains(&ratio)
            });
            (knows_little || is_news).then(|| TestTime {
                binary: planned.case.binary.to_string(),
                name: planned.case.name.to_string(),
                micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            })
        });
        bounded_times(told)
    }
}
