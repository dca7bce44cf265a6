//! Who is registered. Pure.

use std::collections::BTreeMap;

use super::{ENTRIES_MAX, Entry, Registration};
use crate::identity::PublicKey;

/// A connection's number, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ConnectionId(pub(super) u64);

/// The entries, by the connections that made them.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<ConnectionId, (PublicKey, Registration)>,
}

impl Table {
    /// Keeps a worker's entry, in place of what the connection had, and of what the same worker
    /// left on an older connection: then that one is broken and doesn't know yet.
    ///
    /// # Errors
    /// In words: there are too many.
    pub(super) fn register(
        &mut self,
        connection: ConnectionId,
        key: PublicKey,
        registration: Registration,
    ) -> Result<(), String> {
        self.entries.retain(|other, (theirs, known)| {
            let same = *theirs == key && known.address == registration.address;
            !same || *other >= connection
        });
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&connection) {
            return Err(format!("there are {ENTRIES_MAX} workers already"));
        }
        self.entries.insert(connection, (key, registration));
        Ok(())
    }

    /// A connection is gone, and its entry with it.
    pub(super) fn leave(&mut self, connection: ConnectionId) {
        self.entries.remove(&connection);
    }

    /// The workers that let in a key, by name.
    pub(super) fn listed(&self, key: &PublicKey) -> Vec<Entry> {
        let theirs = self.entries.values().filter(|(_, it)| it.lets_in.contains(key));
        let entries = theirs.map(|(key, it)| {
            let Registration { name, address, labels, lets_in: _ } = it.clone();
            Entry { key: *key, name, address, labels }
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by(|a, b| (&a.name, &a.address, a.key).cmp(&(&b.name, &b.address, b.key)));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    fn key() -> PublicKey {
        PrivateKey::generate().unwrap().public()
    }

    fn worker(name: &str, address: &str, lets_in: &[PublicKey]) -> Registration {
        Registration {
            name: name.to_owned(),
            address: address.to_owned(),
            lets_in: lets_in.iter().copied().collect(),
            ..Registration::default()
        }
    }

    #[track_caller]
    fn check(table: &Table, asks: &PublicKey, expected: &[(&str, &PublicKey)]) {
        let listed = table.listed(asks);
        let listed: Vec<_> = listed.iter().map(|it| (it.address.as_str(), &it.key)).collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn each_key_is_shown_what_lets_it_in() {
        let [a, b, alice, bob] = [(); 4].map(|()| key());
        let mut table = Table::default();
        table.register(ConnectionId(1), a, worker("w", "h:1", &[alice])).unwrap();
        table.register(ConnectionId(2), b, worker("w", "h:2", &[alice, bob])).unwrap();
        check(&table, &alice, &[("h:1", &a), ("h:2", &b)]);
        check(&table, &bob, &[("h:2", &b)]);
        check(&table, &a, &[]);
        table.leave(ConnectionId(2));
        check(&table, &bob, &[]);
    }

    #[test]
    fn nobody_takes_anothers_entry_by_its_name_or_address() {
        let [honest, evil, alice] = [(); 3].map(|()| key());
        let mut table = Table::default();
        table.register(ConnectionId(1), honest, worker("w", "h:1", &[alice])).unwrap();
        table.register(ConnectionId(2), evil, worker("w", "h:1", &[alice])).unwrap();
        let mut both = [("h:1", &honest), ("h:1", &evil)];
        both.sort_by_key(|(_, key)| **key);
        check(&table, &alice, &both);
        table.leave(ConnectionId(2));
        check(&table, &alice, &[("h:1", &honest)]);
    }

    #[test]
    fn a_worker_that_comes_again_replaces_itself() {
        let [w, alice] = [(); 2].map(|()| key());
        let mut table = Table::default();
        table.register(ConnectionId(1), w, worker("old", "h:1", &[alice])).unwrap();
        table.register(ConnectionId(2), w, worker("new", "h:1", &[alice])).unwrap();
        assert_eq!(table.listed(&alice).len(), 1);
        assert_eq!(table.listed(&alice)[0].name, "new");
        // The broken connection's end takes nothing away.
        table.leave(ConnectionId(1));
        check(&table, &alice, &[("h:1", &w)]);
        // One user's workers on several machines have one key.
        table.register(ConnectionId(3), w, worker("other", "h:2", &[alice])).unwrap();
        check(&table, &alice, &[("h:1", &w), ("h:2", &w)]);
    }

    #[test]
    fn a_full_table_keeps_what_it_has() {
        let [w, alice] = [(); 2].map(|()| key());
        let mut table = Table::default();
        let register = |table: &mut Table, number: usize| {
            let address = format!("h:{}", number + 1);
            table.register(ConnectionId(number as u64), w, worker("w", &address, &[alice]))
        };
        for number in 0..ENTRIES_MAX {
            register(&mut table, number).unwrap();
        }
        assert!(register(&mut table, ENTRIES_MAX).is_err());
        register(&mut table, 0).unwrap();
        table.leave(ConnectionId(7));
        register(&mut table, ENTRIES_MAX).unwrap();
        assert_eq!(table.listed(&alice).len(), ENTRIES_MAX);
    }
}
