//! What one client takes beside blobs: files that are laid out, lists of pins.
//!
//! All connections of a key count together. Who needs no key could fill the disk anyway.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Store, on_disk};
use crate::digest::Digest;
use crate::protocol::{Refusal, RefusalKind};

/// All that a client has laid out takes at most this many times what the store may keep: several
/// of its runs may be under way.
const TIMES_STORE_MAX: u64 = 4;

/// All lists of pins of a client take no more than this, in bytes of disk; in memory it is a few
/// times as much. Whoever makes room reads all of them.
const PINS_BYTES_MAX: u64 = 8 << 20;

/// Room for a list of pins. Given back when it is dropped.
pub struct PinRoom {
    claim: Arc<Claim>,
    bytes: u64,
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

    /// Takes room for a list of so many pins; none if the client has as many as it may have.
    pub fn pins(self: &Arc<Self>, digests: usize) -> Option<PinRoom> {
        let bytes = on_disk((digests * size_of::<Digest>()) as u64);
        let room = || PinRoom { claim: Arc::clone(self), bytes };
        let Some(key) = &self.key else { return Some(room()) };
        let mut pinned = self.store.inner.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let all = pinned.entry(key.clone()).or_default();
        let fits = *all + bytes <= PINS_BYTES_MAX;
        if fits {
            *all += bytes;
        }
        fits.then(room)
    }
}

impl Drop for PinRoom {
    fn drop(&mut self) {
        let Claim { store, key, .. } = &*self.claim;
        let Some(key) = key else { return };
        let mut pinned = store.inner.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = pinned.get_mut(key) {
            *all -= self.bytes;
            if *all == 0 {
                pinned.remove(key);
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(key) = &self.key else { return };
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut claims = self.store.inner.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = claims.get_mut(key) {
            *all = all.saturating_sub(held);
            if *all == 0 {
                claims.remove(key);
            }
        }
    }
}
