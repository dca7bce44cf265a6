//! What one client takes of the disk beside blobs: files that are laid out, lists of pins.
//!
//! All connections of a key count together. Who needs no key could fill the disk anyway.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Store, on_disk};
use crate::protocol::{Refusal, RefusalKind};

/// All that a client has laid out takes at most this many times what the store may keep: several
/// of its runs may be under way.
const TIMES_STORE_MAX: u64 = 4;

/// Room for a file that comes and goes. Given back when it is dropped.
pub struct Hold {
    claim: Arc<Claim>,
    size: u64,
}

/// Room on the disk for one connection. Given back when it is dropped.
pub struct Claim {
    store: Store,
    key: Option<String>,
    held: Mutex<u64>,
}

impl Claim {
    pub(super) fn of(store: &Store, key: Option<&str>) -> Self {
        Self { store: store.clone(), key: key.map(str::to_owned), held: Mutex::default() }
    }

    /// Where blobs are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes room for a file of so many bytes, in place of one that had `before`.
    ///
    /// # Errors
    /// [`RefusalKind::OutOfResources`] if the client has as much as it may have.
    pub fn file(&self, size: u64, before: Option<u64>) -> Result<(), Refusal> {
        let Some(key) = &self.key else { return Ok(()) };
        let (more, less) = (on_disk(size), before.map_or(0, on_disk));
        let max = self.store.inner.bytes_max.saturating_mul(TIMES_STORE_MAX);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut claims = self.store.inner.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let all = claims.entry(key.clone()).or_default();
        let after = all.saturating_sub(less).saturating_add(more);
        if after > max && more > less {
            let message = format!(
                "could not make room for a file of {size} bytes: this client has laid out {all} \
                 bytes, and may {max}, {TIMES_STORE_MAX} times what the store keeps"
            );
            return Err(Refusal::new(RefusalKind::OutOfResources, message).with_hint(
                "let fewer of its runs be here at once, or give the worker a larger --store-max",
            ));
        }
        *all = after;
        *held = held.saturating_sub(less).saturating_add(more);
        Ok(())
    }

    /// Gives back so much of the room that this connection has.
    fn give_back(&self, bytes: u64) {
        let Some(key) = &self.key else { return };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.min(*held);
        *held -= bytes;
        let mut claims = self.store.inner.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = claims.get_mut(key) {
            *all = all.saturating_sub(bytes);
            if *all == 0 {
                claims.remove(key);
            }
        }
    }

    /// Takes room for a file of so many bytes until what is returned is dropped.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn hold(self: &Arc<Self>, size: u64) -> Result<Hold, Refusal> {
        self.file(size, None)?;
        Ok(Hold { claim: Arc::clone(self), size })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.claim.give_back(on_disk(self.size));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_back(u64::MAX);
    }
}
