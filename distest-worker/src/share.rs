//! Whose turn it is when a place on a worker comes free. Pure.
//!
//! A place goes to the client that holds the fewest of those that wait; of several, to the one that
//! has waited longest. What a client can gain by asking often, by several connections or by long
//! queues is nothing: it is counted by its key, and a place is for one attempt.

use std::collections::BTreeMap;

/// A client, however many connections it has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// Someone who waits for a place. Never used twice, and in the order of asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// A worker's places.
#[derive(Debug)]
pub struct Share {
    places: u32,
    held: BTreeMap<ClientId, u32>,
    waiting: BTreeMap<Ticket, ClientId>,
}

impl Share {
    /// So many places, all free.
    pub fn new(places: u32) -> Self {
        Self { places, held: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// A client wants one more place. Answers whose turn it is now.
    pub fn ask(&mut self, ticket: Ticket, client: ClientId) -> Option<Ticket> {
        self.waiting.insert(ticket, client);
        self.next()
    }

    /// Somebody doesn't want to wait any longer.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// A client gives a place back. Answers whose turn it is now.
    pub fn give_back(&mut self, client: ClientId) -> Option<Ticket> {
        if let Some(held) = self.held.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&client);
            }
        }
        self.next()
    }

    /// Places that are held.
    pub fn in_use(&self) -> u32 {
        self.held.values().sum()
    }

    /// Places that a client holds.
    pub fn held_by(&self, client: ClientId) -> u32 {
        self.held.get(&client).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Option<Ticket> {
        if self.in_use() >= self.places {
            return None;
        }
        let fewest = |(ticket, client): &(&Ticket, &ClientId)| (self.held_by(**client), **ticket);
        let (ticket, client) = self.waiting.iter().min_by_key(fewest)?;
        let (ticket, client) = (*ticket, *client);
        self.waiting.remove(&ticket);
        *self.held.entry(client).or_default() += 1;
        Some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    const A: ClientId = ClientId(0);
    const B: ClientId = ClientId(1);
    const C: ClientId = ClientId(2);

    #[test]
    fn a_free_place_goes_to_whoever_has_fewest() {
        let mut share = Share::new(2);
        assert_eq!(share.ask(Ticket(0), A), Some(Ticket(0)));
        assert_eq!(share.ask(Ticket(1), A), Some(Ticket(1)));
        // A came first, and has both.
        assert_eq!(share.ask(Ticket(2), A), None);
        assert_eq!(share.ask(Ticket(3), B), None);
        assert_eq!(share.give_back(A), Some(Ticket(3)));
        assert_eq!((share.held_by(A), share.held_by(B)), (1, 1));
        assert_eq!(share.give_back(A), Some(Ticket(2)));
        assert_eq!(share.in_use(), 2);
    }

    #[test]
    fn among_equals_it_goes_to_whoever_waits_longest() {
        let mut share = Share::new(1);
        assert_eq!(share.ask(Ticket(0), A), Some(Ticket(0)));
        assert_eq!(share.ask(Ticket(1), C), None);
        assert_eq!(share.ask(Ticket(2), B), None);
        assert_eq!(share.ask(Ticket(3), A), None);
        assert_eq!(share.give_back(A), Some(Ticket(1)));
        share.withdraw(Ticket(2));
        assert_eq!(share.give_back(C), Some(Ticket(3)));
        assert_eq!(share.give_back(A), None);
        assert_eq!(share.in_use(), 0);
    }

    /// A client's backlog: how long each of its attempts takes, how many it asks for at once.
    #[derive(Clone, Debug)]
    struct Backlog {
        client: ClientId,
        durations: Vec<u64>,
        asks: u32,
    }

    /// Runs all backlogs on so many places; answers what each client got while all were backlogged.
    fn simulate(places: u32, backlogs: &[Backlog]) -> BTreeMap<ClientId, u64> {
        let mut share = Share::new(places);
        let mut tickets = BTreeMap::new();
        let mut left: Vec<VecDeque<u64>> =
            backlogs.iter().map(|it| it.durations.iter().copied().collect()).collect();
        let mut asking = vec![0; backlogs.len()];
        let mut running: Vec<(u64, usize)> = Vec::new();
        let (mut now, mut next) = (0, 0);
        let mut got = BTreeMap::new();
        let mut granted: Vec<Ticket> = Vec::new();
        loop {
            loop {
                for (index, backlog) in backlogs.iter().enumerate() {
                    while asking[index] < backlog.asks.min(left[index].len() as u32) {
                        tickets.insert(Ticket(next), index);
                        asking[index] += 1;
                        granted.extend(share.ask(Ticket(next), backlog.client));
                        next += 1;
                    }
                }
                if granted.is_empty() {
                    break;
                }
                for ticket in granted.drain(..) {
                    let index = tickets.remove(&ticket).expect("somebody waited with it");
                    asking[index] -= 1;
                    let duration = left[index].pop_front().expect("it asked for something");
                    running.push((now + duration, index));
                }
                assert!(running.len() as u32 <= places, "more run than there are places");
            }
            let Some(at) = running.iter().map(|(end, _)| *end).min() else { return got };
            if left.iter().all(|left| !left.is_empty()) {
                for (_, index) in &running {
                    *got.entry(backlogs[*index].client).or_default() += at - now;
                }
            }
            now = at;
            let ended = running.iter().position(|(end, _)| *end == at).expect("the minimum");
            let (_, index) = running.swap_remove(ended);
            // Whoever has room asks again a moment after the place was given back.
            granted.extend(share.give_back(backlogs[index].client));
        }
    }

    #[test]
    fn connections_of_one_client_get_what_one_gets() {
        let of = |client| Backlog { client, durations: vec![10; 400], asks: 4 };
        let got = simulate(4, &[of(A), of(A), of(A), of(B)]);
        let (a, b) = (got[&A] as f64, got[&B] as f64);
        assert!((a / b - 1.0).abs() < 0.1, "{got:?}");
    }

    proptest! {
        /// Two clients with any mix of durations share an even number of places evenly.
        #[test]
        fn two_backlogged_clients_share_evenly(
            half in 1_u32..8,
            durations in proptest::collection::vec((1_u64..50, 1_u64..50), 400..500),
            asks in 1_u32..4,
        ) {
            let places = half * 2;
            let (a, b) = durations.into_iter().unzip();
            let backlogs = [
                Backlog { client: A, durations: a, asks: places },
                Backlog { client: B, durations: b, asks: places * asks },
            ];
            let got = simulate(places, &backlogs);
            let (a, b) = (got[&A] as f64, got[&B] as f64);
            prop_assert!((a / b - 1.0).abs() < 0.1, "{got:?} on {places} places");
        }
    }
}
