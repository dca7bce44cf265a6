//! Who may run something now: as many attempts as the worker has slots, shared among clients.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::machine_slot::MachineSlot;
use crate::identity::PublicKey;
use crate::share::{ClientId, Share, Ticket};

/// A worker's places, shared by its sessions as [`Share`] says.
#[derive(Debug)]
pub(super) struct Permits {
    state: Mutex<State>,
    began: Instant,
}

#[derive(Debug)]
struct State {
    share: Share,
    idle: BTreeMap<u32, MachineSlot>,
    waiting: BTreeMap<Ticket, Wanted>,
    tickets: u64,
    clients: u64,
    /// A key's number, and how many connections it has. Keys stay as long as any client is here, so
    /// that nobody is counted anew by connecting again.
    keys: BTreeMap<PublicKey, (ClientId, u32)>,
    /// Connections of all.
    connections: u32,
}

#[derive(Debug)]
struct Wanted {
    client: ClientId,
    places: u32,
    permit: oneshot::Sender<Permit>,
}

/// Places, held while an attempt runs. Their number is unique on this machine while they are held.
#[derive(Debug)]
pub(super) struct Permit {
    pool: Arc<Permits>,
    client: ClientId,
    places: u32,
    slot: Option<MachineSlot>,
}

/// Waits for a place; gives its turn up when dropped. None if there will be none: never, in fact.
#[derive(Debug)]
pub(super) struct Waiting {
    pool: Arc<Permits>,
    ticket: Ticket,
    permit: oneshot::Receiver<Permit>,
}

/// One connection's client, for as long as it lasts.
#[derive(Debug)]
pub(super) struct Sharer {
    pool: Arc<Permits>,
    key: Option<PublicKey>,
    id: ClientId,
}

impl Permits {
    /// So many places.
    pub(super) fn new(count: u32) -> Arc<Self> {
        let slots = (0..count).map(|_| MachineSlot::take());
        let idle = slots.map(|slot| (slot.number(), slot)).collect();
        let state = State {
            share: Share::new(count),
            idle,
            waiting: BTreeMap::new(),
            tickets: 0,
            clients: 0,
            keys: BTreeMap::new(),
            connections: 0,
        };
        Arc::new(Self { state: Mutex::new(state), began: Instant::now() })
    }

    /// A connection of a client's: connections of one key are one client.
    pub(super) fn sharer(self: &Arc<Self>, key: Option<PublicKey>) -> Sharer {
        let mut state = self.state();
        let fresh = ClientId(state.clients);
        let id = match key {
            Some(key) => {
                let (id, connections) = state.keys.entry(key).or_insert((fresh, 0));
                *connections += 1;
                *id
            }
            None => fresh,
        };
        state.clients += u64::from(id == fresh);
        state.connections += 1;
        drop(state);
        Sharer { pool: Arc::clone(self), key, id }
    }

    /// Nothing is to be started beside what runs, or that is over.
    pub(super) fn alone(self: &Arc<Self>, alone: bool) {
        let (mut state, now) = (self.state(), self.now());
        let turns = state.share.alone(now, alone);
        let granted = state.grant(turns, self);
        drop(state);
        send(granted);
    }

    /// Whether nothing is to be started beside what runs.
    pub(super) fn is_alone(&self) -> bool {
        self.state().share.is_alone()
    }

    /// Places that are held.
    pub(super) fn in_use(&self) -> u32 {
        self.state().share.in_use()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sharer {
    /// So many places at once, when it is this client's turn.
    pub(super) fn ask(&self, places: u32) -> Waiting {
        let (sender, permit) = oneshot::channel();
        let (mut state, now) = (self.pool.state(), self.pool.now());
        let ticket = Ticket(state.tickets);
        state.tickets += 1;
        let wanted = Wanted { client: self.id, places, permit: sender };
        state.waiting.insert(ticket, wanted);
        let turns = state.share.ask(now, ticket, self.id, places);
        let granted = state.grant(turns, &self.pool);
        drop(state);
        send(granted);
        Waiting { pool: Arc::clone(&self.pool), ticket, permit }
    }

    /// Whether other clients wait for places.
    pub(super) fn others_wait(&self) -> bool {
        self.pool.state().share.others_wait(self.id)
    }
}

impl Waiting {
    /// The place, if it is there at once.
    pub(super) fn now(mut self) -> Result<Permit, Self> {
        self.permit.try_recv().map_err(|_| self)
    }
}

/// Permits on their way.
type Granted = Vec<(oneshot::Sender<Permit>, Permit)>;

impl State {
    fn grant(&mut self, turns: Vec<Ticket>, pool: &Arc<Permits>) -> Granted {
        let granted = turns.into_iter().filter_map(|turn| {
            let Wanted { client, places, permit } = self.waiting.remove(&turn)?;
            let slot = self.idle.pop_first().map(|(_, slot)| slot);
            Some((permit, Permit { pool: Arc::clone(pool), client, places, slot }))
        });
        granted.collect()
    }
}

/// Without the lock: who has gone gives the place back by dropping it.
fn send(granted: Granted) {
    for (sender, permit) in granted {
        let _ = sender.send(permit);
    }
}

impl Future for Waiting {
    type Output = Option<Permit>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Permit>> {
        Pin::new(&mut self.permit).poll(context).map(Result::ok)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (mut state, now) = (self.pool.state(), self.pool.now());
        let wanted = state.waiting.remove(&self.ticket);
        let turns = match wanted {
            Some(_) => state.share.withdraw(now, self.ticket),
            None => Vec::new(),
        };
        let granted = state.grant(turns, &self.pool);
        drop((state, wanted));
        send(granted);
    }
}

impl Permit {
    /// Its number.
    pub(super) fn number(&self) -> u32 {
        // As many numbers as places: one was there.
        self.slot.as_ref().map_or(u32::MAX, MachineSlot::number)
    }

    /// So many.
    pub(super) fn places(&self) -> u32 {
        self.places
    }
}

impl Drop for Permit {
    /// The number goes back before the place does.
    fn drop(&mut self) {
        let (mut state, now) = (self.pool.state(), self.pool.now());
        if let Some(slot) = self.slot.take() {
            state.idle.insert(slot.number(), slot);
        }
        let turns = state.share.give_back(now, self.client, self.places);
        let granted = state.grant(turns, &self.pool);
        drop(state);
        send(granted);
    }
}

impl Drop for Sharer {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if let Some((_, connections)) = self.key.and_then(|key| state.keys.get_mut(&key)) {
            *connections -= 1;
        }
        state.connections -= 1;
        if state.connections == 0 {
            state.keys.clear();
            state.share.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[tokio::test]
    async fn places_go_in_turn_and_come_back_with_their_numbers() {
        let pool = Permits::new(1);
        let [a, b] = [(); 2].map(|()| pool.sharer(None));
        let first = a.ask(1).now().unwrap();
        let (second, third) = (a.ask(1), b.ask(1));
        let number = first.number();
        drop(first);
        let third = third.now().unwrap();
        assert_eq!(third.number(), number, "both have none, and it was served less");
        drop(second);
        drop(third);
        assert!(pool.state().waiting.is_empty() && pool.in_use() == 0);
        assert!(b.ask(1).now().is_ok());
        assert_eq!(pool.in_use(), 0, "a place that nobody keeps is free again");
    }

    #[tokio::test]
    async fn a_turn_that_nobody_waits_for_is_the_next_ones() {
        let pool = Permits::new(1);
        let client = pool.sharer(None);
        let held = client.ask(1).now().unwrap();
        let (gone, waits) = (client.ask(1), client.ask(1));
        drop(held);
        // It was its turn, and it goes without having looked.
        drop(gone);
        assert!(waits.await.is_some());
    }

    #[test]
    fn connections_of_one_key_are_one_client() {
        let pool = Permits::new(2);
        let [alice, bob] = [(); 2].map(|()| Some(PrivateKey::generate().unwrap().public()));
        let connections = [(); 3].map(|()| pool.sharer(alice));
        let other = pool.sharer(bob);
        let held = [&connections[0], &connections[1]].map(|it| it.ask(1).now().unwrap());
        let (hers, his) = (connections[2].ask(1), other.ask(1));
        drop(held);
        // Both places came back; she has three connections and asked first.
        let (hers, his) = (hers.now().unwrap(), his.now().unwrap());
        drop((hers, his));
        drop(connections);
        drop(other);
        assert!(pool.state().keys.is_empty());
    }
}
