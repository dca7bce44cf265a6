//! Whose turn it is when places on a worker come free. Pure.
//!
//! A place goes to the client that would hold the fewest of those that wait; of several, to the one
//! that was served least; of those, to the one that has waited longest. Served is what a client held,
//! in places times time by the worker's own clock, so nobody gains by saying little of what it wants
//! or by long attempts; who lags by more than [`LAG`] comes first whatever it holds. What a client can
//! gain by asking often, by several connections or by long queues is nothing.
//!
//! An attempt may want several places. When it is its turn, nobody else gets any until there are
//! enough, and those that stand empty meanwhile count as its client's.

use std::collections::BTreeMap;
use std::time::Duration;

/// A client, however many connections it has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// Someone who waits for places. Never used twice, and in the order of asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Who was served so much less than another comes first.
pub const LAG: Duration = Duration::from_secs(1);
/// Who wanted nothing for a while is owed no more than this, and owes no more: places times time.
const OWED_MAX: Duration = Duration::from_secs(10);

/// A worker's places.
#[derive(Debug)]
pub struct Share {
    places: u32,
    /// No place is given beside another for now.
    alone: bool,
    clients: BTreeMap<ClientId, Account>,
    waiting: BTreeMap<Ticket, Wish>,
    /// Whose turn it is, though there are not enough places yet.
    kept_for: Option<ClientId>,
    now: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    held: u32,
    served: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    client: ClientId,
    places: u32,
}

impl Share {
    /// So many places, all free.
    pub fn new(places: u32) -> Self {
        let (clients, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self { places, alone: false, clients, waiting, kept_for: None, now: Duration::ZERO }
    }

    /// A client wants so many places at once: one at least, all there are at most. Answers whose
    /// turn it is now. `now` is any clock that never goes back.
    pub fn ask(
        &mut self,
        now: Duration,
        ticket: Ticket,
        client: ClientId,
        places: u32,
    ) -> Vec<Ticket> {
        self.charge(now);
        if !self.waiting.values().any(|wish| wish.client == client) {
            self.begin(client);
        }
        let places = self.width(places);
        self.waiting.insert(ticket, Wish { client, places });
        self.turns()
    }

    /// Somebody doesn't want to wait any longer. Answers whose turn it is now.
    pub fn withdraw(&mut self, now: Duration, ticket: Ticket) -> Vec<Ticket> {
        self.charge(now);
        self.waiting.remove(&ticket);
        self.turns()
    }

    /// A client gives places back, as many as it asked for. Answers whose turn it is now.
    pub fn give_back(&mut self, now: Duration, client: ClientId, places: u32) -> Vec<Ticket> {
        self.charge(now);
        let places = self.width(places);
        if let Some(account) = self.clients.get_mut(&client) {
            account.held = account.held.saturating_sub(places);
        }
        self.turns()
    }

    /// Nothing is given beside what is held, or that is over. Answers whose turn it is now.
    pub fn alone(&mut self, now: Duration, alone: bool) -> Vec<Ticket> {
        self.charge(now);
        self.alone = alone;
        self.turns()
    }

    /// Whether nothing is given beside what is held.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Nobody is known any more who neither holds nor wants anything.
    pub fn forget(&mut self) {
        let waits = |client: &ClientId| self.waiting.values().any(|wish| wish.client == *client);
        let kept = self.clients.iter().filter(|(client, it)| it.held > 0 || waits(client));
        self.clients = kept.map(|(client, account)| (*client, *account)).collect();
    }

    /// Places that are held.
    pub fn in_use(&self) -> u32 {
        self.clients.values().map(|account| account.held).sum()
    }

    /// Whether others wait.
    pub fn others_wait(&self, client: ClientId) -> bool {
        self.waiting.values().any(|wish| wish.client != client)
    }

    fn width(&self, places: u32) -> u32 {
        places.clamp(1, self.places.max(1))
    }

    /// Time has passed.
    fn charge(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        let free = self.places.saturating_sub(self.in_use());
        for (client, account) in &mut self.clients {
            let kept = if self.kept_for == Some(*client) { free } else { 0 };
            account.served += passed.saturating_mul(account.held + kept);
        }
    }

    /// A client that wanted nothing wants something: it is owed what it did not get from others
    /// that are here, and owes what it had before them, but neither for long. Who is new is owed
    /// nothing.
    fn begin(&mut self, client: ClientId) {
        let level = self.level(client);
        let account = self.clients.entry(client).or_insert(Account { held: 0, served: level });
        account.served = account.served.max(level.saturating_sub(OWED_MAX));
        // Who still holds places has not been away: long attempts would rid it of what it owes.
        if account.held == 0 {
            account.served = account.served.min(level.saturating_add(OWED_MAX));
        }
    }

    /// Where a client begins that is as well off as the others.
    fn level(&self, client: ClientId) -> Duration {
        let waits = |id: &ClientId| self.waiting.values().any(|wish| wish.client == *id);
        let others = || self.clients.iter().filter(|(id, _)| **id != client);
        let waiting = others().filter(|(id, _)| waits(id)).map(|(_, account)| account.served);
        // Who wants no more than it holds may have been served little without lacking anything.
        let holding = others().filter(|(_, account)| account.held > 0);
        let holding = holding.map(|(_, account)| account.served);
        // With nobody here, time has come as far as it has for anyone: whoever had it for itself
        // once does not owe it to who comes later.
        let known = self.clients.values().map(|account| account.served);
        waiting.min().or(holding.max()).or(known.max()).unwrap_or_default()
    }

    /// Hands out what is free.
    fn turns(&mut self) -> Vec<Ticket> {
        let mut turns = Vec::new();
        self.kept_for = None;
        while let Some((ticket, wish)) = self.next() {
            if self.alone && self.in_use() > 0 {
                break;
            }
            let free = self.places.saturating_sub(self.in_use());
            if free == 0 {
                break;
            }
            if wish.places > free {
                self.kept_for = Some(wish.client);
                break;
            }
            self.waiting.remove(&ticket);
            if let Some(account) = self.clients.get_mut(&wish.client) {
                account.held += wish.places;
            }
            turns.push(ticket);
        }
        turns
    }

    fn next(&self) -> Option<(Ticket, Wish)> {
        let account = |wish: &Wish| self.clients.get(&wish.client).copied().unwrap_or_default();
        let mut firsts: BTreeMap<ClientId, (Ticket, Wish)> = BTreeMap::new();
        for (ticket, wish) in &self.waiting {
            firsts.entry(wish.client).or_insert((*ticket, *wish));
        }
        let least = firsts.values().min_by_key(|(ticket, wish)| (account(wish).served, *ticket))?;
        let fewest = firsts.values().min_by_key(|(ticket, wish)| {
            let Account { held, served } = account(wish);
            (held.saturating_add(wish.places), served, *ticket)
        })?;
        let lag = account(&fewest.1).served.saturating_sub(account(&least.1).served);
        Some(if lag > LAG { *least } else { *fewest })
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

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn alone_one_is_enough_and_what_is_held_comes_to_its_end() {
        let mut share = Share::new(3);
        assert_eq!(share.ask(at(0), Ticket(0), A, 1), [Ticket(0)]);
        assert_eq!(share.ask(at(0), Ticket(1), B, 1), [Ticket(1)]);
        assert_eq!(share.alone(at(0), true), []);
        assert_eq!(share.ask(at(0), Ticket(2), C, 1), []);
        assert_eq!(share.ask(at(0), Ticket(3), A, 1), []);
        assert_eq!(share.give_back(at(0), A, 1), []);
        assert_eq!(share.give_back(at(0), B, 1), [Ticket(2)]);
        assert_eq!(share.alone(at(0), true), []);
        assert_eq!(share.alone(at(0), false), [Ticket(3)]);
    }

    #[test]
    fn a_free_place_goes_to_whoever_has_fewest() {
        let mut share = Share::new(2);
        assert_eq!(share.ask(at(0), Ticket(0), A, 1), [Ticket(0)]);
        assert_eq!(share.ask(at(0), Ticket(1), A, 1), [Ticket(1)]);
        // A came first, and has both.
        assert_eq!(share.ask(at(0), Ticket(2), A, 1), []);
        assert!(!share.others_wait(A));
        assert_eq!(share.ask(at(0), Ticket(3), B, 1), []);
        assert!(share.others_wait(A) && share.others_wait(B));
        assert_eq!(share.give_back(at(0), A, 1), [Ticket(3)]);
        assert_eq!((share.clients[&A].held, share.clients[&B].held), (1, 1));
        assert_eq!(share.give_back(at(0), A, 1), [Ticket(2)]);
        assert_eq!(share.in_use(), 2);
    }

    #[test]
    fn among_equals_it_goes_to_whoever_waits_longest() {
        let mut share = Share::new(1);
        assert_eq!(share.ask(at(0), Ticket(0), A, 1), [Ticket(0)]);
        assert_eq!(share.ask(at(0), Ticket(1), C, 1), []);
        assert_eq!(share.ask(at(0), Ticket(2), B, 1), []);
        assert_eq!(share.ask(at(0), Ticket(3), A, 1), []);
        assert_eq!(share.give_back(at(0), A, 1), [Ticket(1)]);
        assert_eq!(share.withdraw(at(0), Ticket(2)), []);
        assert_eq!(share.give_back(at(0), C, 1), [Ticket(3)]);
        assert_eq!(share.give_back(at(0), A, 1), []);
        assert_eq!(share.in_use(), 0);
    }

    #[test]
    fn an_attempt_that_wants_all_places_gets_its_turn_and_pays_for_what_stands_empty() {
        let mut share = Share::new(4);
        for number in 0..4 {
            assert_eq!(share.ask(at(0), Ticket(number), B, 1), [Ticket(number)]);
        }
        // More than there are: all.
        assert_eq!(share.ask(at(0), Ticket(4), A, u32::MAX), []);
        assert_eq!(share.ask(at(0), Ticket(5), B, 1), []);
        assert_eq!(share.give_back(at(1000), B, 1), [], "A was served less, and waits for all");
        assert_eq!(share.give_back(at(1000), B, 1), []);
        assert_eq!(share.give_back(at(2000), B, 1), []);
        assert_eq!(share.give_back(at(2000), B, 1), [Ticket(4)]);
        assert_eq!(share.clients[&A].held, 4);
        assert_eq!(share.clients[&A].served, at(2000), "two stood empty for a second");
        // Whoever does not wait any longer keeps nothing.
        assert_eq!(share.give_back(at(2000), A, u32::MAX), [Ticket(5)]);
        assert_eq!(share.ask(at(2000), Ticket(7), A, 4), []);
        assert_eq!(share.ask(at(2000), Ticket(8), C, 4), []);
        assert_eq!(share.withdraw(at(2000), Ticket(7)), []);
        assert_eq!(share.give_back(at(2000), B, 1), [Ticket(8)]);
    }

    #[test]
    fn who_comes_new_or_comes_back_does_not_keep_others_waiting() {
        let mut share = Share::new(1);
        assert_eq!(share.ask(at(0), Ticket(0), A, 1), [Ticket(0)]);
        assert_eq!(share.give_back(at(100_000), A, 1), []);
        // A had all for long, with nobody else there.
        assert_eq!(share.ask(at(100_000), Ticket(1), A, 1), [Ticket(1)]);
        assert_eq!(share.ask(at(100_000), Ticket(2), B, 1), []);
        assert_eq!(share.clients[&B].served, share.clients[&A].served);
        assert_eq!(share.withdraw(at(100_000), Ticket(2)), []);
        // B wanted nothing for as long.
        assert_eq!(share.ask(at(200_000), Ticket(3), B, 1), []);
        assert_eq!(share.clients[&A].served - share.clients[&B].served, OWED_MAX);
        assert_eq!(share.withdraw(at(200_000), Ticket(3)), []);
        share.forget();
        assert_eq!(share.clients.len(), 1);
    }

    /// Has `client` all places for an hour with nobody else here, on 16 of them.
    fn an_hour_alone(share: &mut Share, client: ClientId, from: u64) {
        let ticket = |number| Ticket(from + number);
        for number in 0..16 {
            assert_eq!(share.ask(at(from), ticket(number), client, 1), [ticket(number)]);
        }
        for _ in 0..16 {
            assert_eq!(share.give_back(at(from + 3_600_000), client, 1), []);
        }
    }

    #[test]
    fn who_had_all_with_nobody_there_owes_nothing_to_who_comes_later() {
        for known in [false, true] {
            let mut share = Share::new(16);
            if known {
                assert_eq!(share.ask(at(0), Ticket(0), B, 1), [Ticket(0)]);
                assert_eq!(share.give_back(at(0), B, 1), []);
            }
            an_hour_alone(&mut share, A, 1);
            let now = at(10_000_000);
            for number in 0..32 {
                share.ask(now, Ticket(10_000_000 + number), B, 1);
            }
            assert_eq!(share.clients[&B].held, 16);
            let later = at(10_001_000);
            assert_eq!(share.ask(later, Ticket(20_000_000), A, 1), []);
            assert_eq!(share.give_back(later, B, 1), [Ticket(20_000_000)], "known: {known}");
        }
    }

    #[test]
    fn who_wants_few_places_does_not_hold_the_level_down() {
        let mut share = Share::new(16);
        assert_eq!(share.ask(at(0), Ticket(0), C, 1), [Ticket(0)]);
        for number in 1..17 {
            share.ask(at(0), Ticket(number), A, 1);
        }
        assert_eq!((share.clients[&A].held, share.clients[&C].held), (15, 1));
        // A could have no more; C wanted none.
        share.ask(at(3_600_000), Ticket(17), B, 1);
        assert_eq!(share.clients[&B].served, share.clients[&A].served);
        // A goes; who comes is as well off as C, whoever that makes A owe.
        for number in [16, 17] {
            share.withdraw(at(3_600_000), Ticket(number));
        }
        for _ in 0..15 {
            share.give_back(at(3_600_000), A, 1);
        }
        share.forget();
        share.ask(at(3_600_000), Ticket(18), B, 1);
        assert_eq!(share.clients[&B].served, share.clients[&C].served);
    }

    #[test]
    fn who_was_away_owes_little_and_who_is_here_owes_all() {
        let mut share = Share::new(2);
        assert_eq!(share.ask(at(0), Ticket(0), A, 1), [Ticket(0)]);
        assert_eq!(share.ask(at(0), Ticket(1), A, 1), [Ticket(1)]);
        assert_eq!(share.ask(at(0), Ticket(2), B, 2), []);
        let now = at(100_000);
        assert_eq!(share.give_back(now, A, 1), []);
        // It has one still, so it was not away.
        assert_eq!(share.ask(now, Ticket(3), A, 1), []);
        assert_eq!(share.clients[&A].served - share.clients[&B].served, at(200_000));
        assert_eq!(share.withdraw(now, Ticket(3)), []);
        assert_eq!(share.give_back(now, A, 1), [Ticket(2)]);
        assert_eq!(share.ask(now, Ticket(4), A, 1), []);
        assert_eq!(share.clients[&A].served - share.clients[&B].served, OWED_MAX);
    }

    /// A client's backlog: how many milliseconds each of its attempts takes, how many it asks for at
    /// once.
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
                        granted.extend(share.ask(at(now), Ticket(next), backlog.client, 1));
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
            let Some(next_end) = running.iter().map(|(end, _)| *end).min() else { return got };
            if left.iter().all(|left| !left.is_empty()) {
                for (_, index) in &running {
                    *got.entry(backlogs[*index].client).or_default() += next_end - now;
                }
            }
            now = next_end;
            let ended = running.iter().position(|(end, _)| *end == now).expect("the minimum");
            let (_, index) = running.swap_remove(ended);
            // Whoever has more to do asks for it before the place is given back.
            if asking[index] < left[index].len() as u32 {
                tickets.insert(Ticket(next), index);
                asking[index] += 1;
                granted.extend(share.ask(at(now), Ticket(next), backlogs[index].client, 1));
                next += 1;
            }
            granted.extend(share.give_back(at(now), backlogs[index].client, 1));
        }
    }

    /// Who runs attempts of seconds beside somebody's of milliseconds gets no more.
    #[test]
    fn long_attempts_gain_nothing() {
        for places in [1, 2, 3] {
            let long = Backlog { client: A, durations: vec![2_000; 100], asks: places };
            let short = Backlog { client: B, durations: vec![10; 20_000], asks: places };
            let got = simulate(places, &[long, short]);
            let (a, b) = (got[&A] as f64, got[&B] as f64);
            assert!((a / b - 1.0).abs() < 0.1, "{got:?} on {places} places");
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
        /// Two clients with any mix of durations share any number of places evenly.
        #[test]
        fn two_backlogged_clients_share_evenly(
            places in 1_u32..16,
            durations in proptest::collection::vec((1_u64..50, 1_u64..50), 400..500),
            asks in 1_u32..4,
        ) {
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
