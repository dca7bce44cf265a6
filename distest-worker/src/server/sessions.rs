//! Who has a session at a worker, and what goes on in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::identity::PublicKey;
use crate::protocol::{Refusal, RefusalKind, SessionStatus};

/// What may be kept in memory for one key, over all its sessions, in bytes: of how they were opened,
/// the binaries that are prepared in them and the attempts that wait.
pub(super) const KEY_BYTES_MAX: usize = 256 << 20;

/// A worker's sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    sessions: BTreeMap<u64, Session>,
}

#[derive(Debug)]
struct Session {
    key: Option<PublicKey>,
    status: SessionStatus,
    bytes: usize,
}

/// One of them, for as long as it is open.
#[derive(Debug)]
pub(super) struct Listed {
    sessions: Sessions,
    number: u64,
}

impl Sessions {
    /// One begins, for the client with this key, who said so much.
    pub(super) fn begin(
        &self,
        key: Option<PublicKey>,
        client: String,
        run: String,
        bytes: usize,
    ) -> Result<Listed, Refusal> {
        let mut open = self.open();
        open.room_for(key.as_ref(), bytes)?;
        let number = open.next;
        open.next += 1;
        let status = SessionStatus { client, run, running: 0, queued: 0 };
        open.sessions.insert(number, Session { key, status, bytes });
        Ok(Listed { sessions: self.clone(), number })
    }

    /// All, in the order in which they began.
    pub(super) fn all(&self) -> Vec<SessionStatus> {
        self.open().sessions.values().map(|session| session.status.clone()).collect()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn room_for(&self, key: Option<&PublicKey>, bytes: usize) -> Result<(), Refusal> {
        let of_key = self.sessions.values().filter(|session| session.key.as_ref() == key);
        let kept: usize = of_key.map(|session| session.bytes).sum();
        if kept + bytes <= KEY_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "could not take this: what the worker keeps in memory for this key's sessions would be \
             {} MiB, more than {}",
            (kept + bytes).div_ceil(1 << 20),
            KEY_BYTES_MAX >> 20
        );
        let hint = "end some of the runs that use this key here, or send them shorter environments";
        Err(Refusal::new(RefusalKind::OutOfResources, message).with_hint(hint))
    }
}

impl Listed {
    /// So many attempts run and wait now, and so much is kept.
    pub(super) fn set(&self, running: u32, queued: u32, bytes: usize) {
        if let Some(session) = self.sessions.open().sessions.get_mut(&self.number) {
            (session.status.running, session.status.queued) = (running, queued);
            session.bytes = bytes;
        }
    }

    /// Whether so much more may be kept.
    pub(super) fn room_for(&self, bytes: usize) -> Result<(), Refusal> {
        let open = self.sessions.open();
        let key = open.sessions.get(&self.number).and_then(|session| session.key.as_ref());
        open.room_for(key, bytes)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.sessions.open().sessions.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn what_is_kept_for_a_key_is_bounded_over_all_its_sessions() {
        let sessions = Sessions::default();
        let [greedy, other] = [(); 2].map(|()| Some(PrivateKey::generate().unwrap().public()));
        let begin = |key, bytes| sessions.begin(key, "c".to_owned(), "r".to_owned(), bytes);
        let first = begin(greedy, KEY_BYTES_MAX / 2).unwrap();
        let second = begin(greedy, 0).unwrap();
        second.room_for(KEY_BYTES_MAX / 2).unwrap();
        second.set(0, 1, KEY_BYTES_MAX / 2);
        for refused in [second.room_for(1), first.room_for(1), begin(greedy, 1).map(|_| ())] {
            assert_eq!(refused.unwrap_err().kind, RefusalKind::OutOfResources);
        }
        assert_eq!(sessions.all().len(), 2);
        let honest = begin(other, 0).unwrap();
        honest.room_for(KEY_BYTES_MAX).unwrap();
        drop(first);
        second.room_for(KEY_BYTES_MAX / 2).unwrap();
    }
}
