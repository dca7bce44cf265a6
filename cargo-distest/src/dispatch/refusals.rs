//! Which other binaries workers would not take, told when a run ends because one has no place: all
//! reasons at once, so that they can be mended at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use distest_worker::protocol::BinaryKey;

use super::Dispatch;
use crate::event::RunEvent;
use crate::model::WorkerId;

/// Reasons that are told.
const REASONS_MAX: usize = 10;
/// Binaries that are named with each.
const NAMES_MAX: usize = 5;

/// Who has refused which binary.
pub(super) type Refused = BTreeSet<(WorkerId, BinaryKey)>;

/// A worker, why it takes no tests, and what to do about that.
type Reason = (String, String, Option<String>);

impl Dispatch {
    /// Tells of the binaries that would be refused for what is known here.
    pub(super) async fn tell_other_refusals(&self) {
        let mut reasons: BTreeMap<Reason, Vec<String>> = BTreeMap::new();
        for (id, worker) in &self.workers {
            for (key, runnable) in &self.runnables {
                if worker.embedded() || self.refused.contains(&(*id, *key)) {
                    continue;
                }
                let refusal = worker.obstacle_to(Arc::clone(&runnable.binary)).await;
                if let Some((reason, hint)) = refusal {
                    let reason = (worker.name().to_owned(), reason, hint);
                    reasons.entry(reason).or_default().push(self.label(*key));
                }
            }
        }
        let untold = reasons.len().saturating_sub(REASONS_MAX);
        for ((worker, reason, hint), binaries) in reasons.into_iter().take(REASONS_MAX) {
            let binaries = names(&binaries);
            let text = format!("worker {worker} takes no tests of {binaries} either: {reason}");
            self.tell(RunEvent::Warning { text, hint }).await;
        }
        if untold > 0 {
            let text = format!("and there are {untold} more reasons why workers take no tests");
            self.tell(RunEvent::Warning { text, hint: None }).await;
        }
    }
}

fn names(binaries: &[String]) -> String {
    let named = binaries.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match binaries.len().saturating_sub(NAMES_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_named_and_the_others_counted() {
        let binaries: Vec<String> = (0..7).map(|number| format!("b{number}")).collect();
        assert_eq!(names(&binaries[..2]), "b0, b1");
        assert_eq!(names(&binaries), "b0, b1, b2, b3, b4 and 2 more");
    }
}
