//! Connections whose peer has not proved its key: few, and the newest first.
//!
//! When too many are half open one is dropped: the oldest of the host that holds most. Somebody who
//! opens connections and says nothing thereby displaces their own; who has something to prove does
//! so within a few round trips, however many of others come meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{AbortHandle, JoinSet};

/// Connections at once whose peer has not proved its key. Each costs some 20 KiB.
pub(super) const HALF_OPEN_MAX: usize = 256;
/// Bits of an IPv6 address that a host can choose by itself.
const OWN_BITS: u32 = 64;

/// The connections that are half open.
#[derive(Clone, Default)]
pub struct HalfOpen {
    waiting: Arc<Mutex<Waiting<AbortHandle>>>,
}

/// A connection's place among those that are half open; given up when dropped.
pub struct Place {
    half_open: HalfOpen,
    host: Source,
    number: u64,
}

/// Whoever holds an address: of IPv6 its network, in which one host has as many as it likes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Source(Ipv6Addr);

/// Who waits, by host and in the order of arrival.
struct Waiting<T> {
    arrived: u64,
    count: usize,
    hosts: BTreeMap<Source, BTreeMap<u64, T>>,
}

impl HalfOpen {
    /// None are.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task for a connection from an address, which drops its place when its peer has
    /// proved its key. May end another that hasn't.
    pub fn spawn<F>(
        &self,
        tasks: &mut JoinSet<F::Output>,
        from: IpAddr,
        task: impl FnOnce(Place) -> F,
    ) where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let host = Source::of(from);
        let number = self.waiting().arrives();
        let handle = tasks.spawn(task(Place { half_open: self.clone(), host, number }));
        let mut waiting = self.waiting();
        // It can't have given its place up: it starts when this task waits.
        waiting.add(host, number, handle);
        if waiting.count > HALF_OPEN_MAX
            && let Some(dropped) = waiting.drop_one()
        {
            dropped.abort();
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting<AbortHandle>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.half_open.waiting().remove(self.host, self.number);
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> OWN_BITS << OWN_BITS),
        })
    }
}

impl<T> Waiting<T> {
    /// The number of the next.
    fn arrives(&mut self) -> u64 {
        self.arrived += 1;
        self.arrived
    }

    fn add(&mut self, host: Source, number: u64, what: T) {
        let before = self.hosts.entry(host).or_default().insert(number, what);
        self.count += usize::from(before.is_none());
    }

    fn remove(&mut self, host: Source, number: u64) -> Option<T> {
        let of_host = self.hosts.get_mut(&host)?;
        let removed = of_host.remove(&number)?;
        if of_host.is_empty() {
            self.hosts.remove(&host);
        }
        self.count -= 1;
        Some(removed)
    }

    /// Takes out the oldest of the host that has most; of several, the oldest of all.
    fn drop_one(&mut self) -> Option<T> {
        let oldest = self.hosts.iter().filter_map(|(host, of_host)| {
            let (number, _) = of_host.first_key_value()?;
            Some((of_host.len(), std::cmp::Reverse(*number), *host))
        });
        let (_, std::cmp::Reverse(number), host) = oldest.max()?;
        self.remove(host, number)
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { arrived: 0, count: 0, hosts: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is dropped, one after the other, of those that arrived in this order.
    fn check(arrivals: &[&str], dropped: &[u64]) {
        let mut waiting = Waiting::default();
        for from in arrivals {
            let number = waiting.arrives();
            waiting.add(Source::of(from.parse().unwrap()), number, number);
        }
        let found: Vec<u64> = dropped.iter().map_while(|_| waiting.drop_one()).collect();
        assert_eq!(found, dropped, "{arrivals:?}");
        assert_eq!(waiting.count, arrivals.len() - dropped.len());
        let left: usize = waiting.hosts.values().map(BTreeMap::len).sum();
        assert_eq!(waiting.count, left);
    }

    #[test]
    fn a_host_displaces_its_own_and_nobody_elses() {
        let many = "192.0.2.1";
        check(&["192.0.2.2", many, many, "192.0.2.3", many], &[2, 3, 1, 4, 5]);
        // Hosts with as many each: the oldest of all.
        check(&["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2"], &[1, 2, 3, 4]);
        check(&[], &[]);
    }

    #[test]
    fn a_host_is_an_ipv4_address_or_an_ipv6_network() {
        check(&["2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:1:9::2"], &[2]);
        check(&["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.2"], &[2]);
        check(&["::ffff:192.0.2.1", "::ffff:192.0.2.2", "192.0.2.3", "192.0.2.3"], &[3]);
    }

    #[test]
    fn thousands_from_one_host_leave_another_all_the_time_it_needs() {
        let [slow, hasty] = ["192.0.2.1", "192.0.2.2"].map(|it| Source::of(it.parse().unwrap()));
        let mut waiting = Waiting::default();
        let first = waiting.arrives();
        waiting.add(slow, first, "slow");
        for _ in 0..10_000 {
            let number = waiting.arrives();
            waiting.add(hasty, number, "hasty");
            if waiting.count > HALF_OPEN_MAX {
                assert_eq!(waiting.drop_one(), Some("hasty"));
            }
        }
        assert_eq!(waiting.count, HALF_OPEN_MAX);
        assert_eq!(waiting.remove(slow, first), Some("slow"));
        assert_eq!(waiting.remove(slow, first), None);
    }

    #[tokio::test]
    async fn the_oldest_goes_and_who_has_proved_their_key_stays() {
        let from = IpAddr::from([192, 0, 2, 1]);
        let half_open = HalfOpen::new();
        let mut tasks = JoinSet::new();
        let (release, proved) = tokio::sync::oneshot::channel::<()>();
        half_open.spawn(&mut tasks, from, |place| async move {
            drop(place);
            let _ = proved.await;
            0
        });
        tokio::task::yield_now().await;
        for number in 1..=HALF_OPEN_MAX + 10 {
            half_open.spawn(&mut tasks, from, |place| async move {
                let _place = place;
                std::future::pending::<()>().await;
                number
            });
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        }
        let of_host = half_open.waiting().hosts.remove(&Source::of(from)).unwrap();
        assert_eq!(of_host.len(), HALF_OPEN_MAX);
        assert_eq!(of_host.first_key_value().unwrap().0, &12);
        release.send(()).unwrap();
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), 0);
    }
}
