//! What one client takes beside blobs: files that are laid out, lists of pins.
//!
//! All connections of a key count together. Who needs no key could fill the disk anyway.

use std::collections::BTreeMap;
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

/// Bytes that clients have, by their keys.
#[derive(Default)]
pub(super) struct ByKey(Mutex<BTreeMap<String, u64>>);

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
        self.store.inner.claims.change(key, more, less, max).map_err(|all| {
            let message = format!(
                "could not make room for a file of {size} bytes: this client has laid out {all} \
                 bytes, and may {max}, {TIMES_STORE_MAX} times what the store keeps"
            );
            Refusal::new(RefusalKind::OutOfResources, message).with_hint(
                "let fewer of its runs be here at once, or give the worker a larger --store-max",
            )
        })?;
        *held = held.saturating_sub(less).saturating_add(more);
        Ok(())
    }

    /// Takes room for a list of so many pins; none if the client has as many as it may have.
    pub fn pins(self: &Arc<Self>, digests: usize) -> Option<PinRoom> {
        let bytes = on_disk((digests * size_of::<Digest>()) as u64);
        let room = || PinRoom { claim: Arc::clone(self), bytes };
        let Some(key) = &self.key else { return Some(room()) };
        let taken = self.store.inner.pinned.change(key, bytes, 0, PINS_BYTES_MAX);
        taken.is_ok().then(room)
    }
}

impl ByKey {
    /// Gives back `less` and takes `more`, unless it is more than before and all would be beyond
    /// `max`: then answers what the client has.
    fn change(&self, key: &str, more: u64, less: u64, max: u64) -> Result<(), u64> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = taken.get(key).copied().unwrap_or_default();
        let after = all.saturating_sub(less).saturating_add(more);
        if after > max && more > less {
            return Err(all);
        }
        match after {
            0 => _ = taken.remove(key),
            _ => _ = taken.insert(key.to_owned(), after),
        }
        Ok(())
    }

    fn give_back(&self, key: &str, bytes: u64) {
        // Less is never too much.
        let _ = self.change(key, 0, bytes, u64::MAX);
    }
}

impl Drop for PinRoom {
    fn drop(&mut self) {
        let Claim { store, key, .. } = &*self.claim;
        if let Some(key) = key {
            store.inner.pinned.give_back(key, self.bytes);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(key) = &self.key else { return };
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.inner.claims.give_back(key, held);
    }
}
