//! How many connections there are of each key: no key keeps the others out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::identity::PublicKey;
use crate::protocol::{Refusal, RefusalKind};

/// Connections at once whose peer has proved its key.
pub(super) const SEATS_MAX: usize = 1024;
/// Those of one key: as many as a large company's CI jobs that share one, and an eighth of all.
pub(super) const KEY_SEATS_MAX: usize = SEATS_MAX / 8;

/// Connections whose peer has proved its key.
#[derive(Clone, Default)]
pub(super) struct Seats {
    taken: Arc<Mutex<BTreeMap<Option<PublicKey>, usize>>>,
}

/// A connection's place among them; given up when dropped.
pub(super) struct Seat {
    seats: Seats,
    key: Option<PublicKey>,
}

/// Why there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Full {
    /// The worker has as many as it takes.
    Worker,
    /// This key does.
    Key,
}

impl Seats {
    /// One for a key.
    pub(super) fn take(&self, key: Option<PublicKey>) -> Result<Seat, Full> {
        let mut taken = self.taken();
        let (all, of_key) = (taken.values().sum::<usize>(), taken.get(&key).copied());
        let of_key = of_key.unwrap_or_default();
        if of_key >= KEY_SEATS_MAX {
            return Err(Full::Key);
        }
        if all >= SEATS_MAX {
            return Err(Full::Worker);
        }
        taken.insert(key, of_key + 1);
        Ok(Seat { seats: self.clone(), key })
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<Option<PublicKey>, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        if let Some(of_key) = taken.get_mut(&self.key) {
            *of_key -= 1;
            if *of_key == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

impl Full {
    /// What the peer is told.
    pub(super) fn refusal(self) -> Refusal {
        let (message, hint) = match self {
            Self::Worker => (
                format!("the worker has {SEATS_MAX} connections, as many as it takes"),
                "use another worker, or come again when others have ended",
            ),
            Self::Key => (
                format!(
                    "the worker has {KEY_SEATS_MAX} connections of this key, as many as one gets"
                ),
                "end some of them, use another worker, or give those who share this key their own",
            ),
        };
        Refusal::new(RefusalKind::OutOfResources, message).with_hint(hint)
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker => write!(f, "there are {SEATS_MAX} connections already"),
            Self::Key => write!(f, "there are {KEY_SEATS_MAX} connections of this key already"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    fn new_key() -> PublicKey {
        PrivateKey::generate().unwrap().public()
    }

    #[test]
    fn no_key_takes_all_and_what_is_given_up_is_the_next_ones() {
        let seats = Seats::default();
        let mut held = Vec::new();
        for _ in 0..SEATS_MAX / KEY_SEATS_MAX {
            let key = Some(new_key());
            held.extend((0..KEY_SEATS_MAX).map(|_| seats.take(key).ok().unwrap()));
            assert_eq!(seats.take(key).err(), Some(Full::Key));
        }
        let late = Some(new_key());
        assert_eq!(seats.take(late).err(), Some(Full::Worker));
        held.pop();
        let seat = seats.take(late).ok().unwrap();
        assert_eq!(seats.take(late).err(), Some(Full::Worker));
        drop((seat, held));
        assert!(seats.taken().is_empty());
    }
}
