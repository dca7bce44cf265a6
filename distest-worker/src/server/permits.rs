//! Who may run something now: as many attempts as the worker has slots, first come, first served.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::machine_slot::MachineSlot;

/// A worker's places, shared by its sessions.
#[derive(Debug)]
pub(super) struct Permits {
    /// Fair: whoever asked first gets the next place.
    places: Arc<Semaphore>,
    idle: Mutex<BTreeMap<u32, MachineSlot>>,
}

/// A place, held while an attempt runs. Its number is unique on this machine while it is held.
#[derive(Debug)]
pub(super) struct Permit {
    pool: Arc<Permits>,
    slot: Option<MachineSlot>,
    _place: OwnedSemaphorePermit,
}

impl Permits {
    /// So many places.
    pub(super) fn new(count: u32) -> Arc<Self> {
        let slots = (0..count).map(|_| MachineSlot::take());
        let idle = slots.map(|slot| (slot.number(), slot)).collect();
        Arc::new(Self { places: Arc::new(Semaphore::new(count as usize)), idle: Mutex::new(idle) })
    }

    /// A place, if one is free and nobody waits.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        Some(self.permit(Arc::clone(&self.places).try_acquire_owned().ok()?))
    }

    /// A place, when it is this caller's turn. None if there will be none: never closed, in fact.
    pub(super) async fn take(self: Arc<Self>) -> Option<Permit> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        Some(self.permit(place))
    }

    fn permit(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Permit {
        let slot = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
        Permit { pool: Arc::clone(self), slot: slot.map(|(_, slot)| slot), _place: place }
    }
}

impl Permit {
    /// Its number.
    pub(super) fn number(&self) -> u32 {
        // As many numbers as places: one was there.
        self.slot.as_ref().map_or(u32::MAX, MachineSlot::number)
    }
}

impl Drop for Permit {
    /// The number goes back before the place does.
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.insert(slot.number(), slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_go_to_whoever_asked_first() {
        let pool = Permits::new(1);
        let first = pool.try_take().unwrap();
        let mut second = Box::pin(Arc::clone(&pool).take());
        assert!(futures::poll!(&mut second).is_pending());
        let number = first.number();
        drop(first);
        assert!(pool.try_take().is_none(), "somebody waits");
        assert_eq!(second.await.unwrap().number(), number);
        assert!(pool.try_take().is_some());
    }
}
