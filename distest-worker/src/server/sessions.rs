//! Who has a session at a worker, and what goes on in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::protocol::SessionStatus;

/// A worker's sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    sessions: BTreeMap<u64, SessionStatus>,
}

/// One of them, for as long as it is open.
#[derive(Debug)]
pub(super) struct Listed {
    sessions: Sessions,
    number: u64,
}

impl Sessions {
    /// One begins.
    pub(super) fn begin(&self, client: String, run: String) -> Listed {
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.sessions.insert(number, SessionStatus { client, run, running: 0, queued: 0 });
        Listed { sessions: self.clone(), number }
    }

    /// All, in the order in which they began.
    pub(super) fn all(&self) -> Vec<SessionStatus> {
        self.open().sessions.values().cloned().collect()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    /// So many attempts run and wait now.
    pub(super) fn set(&self, running: u32, queued: u32) {
        if let Some(session) = self.sessions.open().sessions.get_mut(&self.number) {
            (session.running, session.queued) = (running, queued);
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.sessions.open().sessions.remove(&self.number);
    }
}
