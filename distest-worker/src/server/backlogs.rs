//! What waits to be sent to each client, over all its connections.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::identity::PublicKey;
use crate::link::Backlog;

/// The clients' that have any. A key is one client, and so are all who need none.
#[derive(Default)]
pub(super) struct Backlogs(Mutex<BTreeMap<Option<PublicKey>, Backlog>>);

impl Backlogs {
    /// The one of all connections of this key.
    pub(super) fn of(&self, key: Option<&PublicKey>) -> Backlog {
        let mut of_keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        of_keys.retain(|_, backlog| backlog.is_used());
        of_keys.entry(key.copied()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn connections_of_a_key_have_one_and_no_other_keys() {
        let backlogs = Backlogs::default();
        let [one, other] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let first = backlogs.of(Some(&one));
        assert!(first.is_same(&backlogs.of(Some(&one))));
        assert!(!first.is_same(&backlogs.of(Some(&other))));
        assert!(!first.is_same(&backlogs.of(None)));
        drop(first);
        backlogs.of(None);
        assert_eq!(backlogs.0.lock().unwrap().len(), 1, "those of who has gone are forgotten");
    }
}
