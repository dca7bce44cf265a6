//! Finding workers in a local network: multicast DNS (RFC 6762) and service discovery (RFC 6763).
//!
//! A worker advertises an instance of `_distest._tcp` with its name and key; who looks for workers
//! gets names, keys and addresses. Anybody in the network can say anything here: what is found is
//! only where to look, and nothing is believed before a key that is known has been proved.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mdns_sd::{Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::time::{Instant, timeout, timeout_at};

use crate::digest::Digest;
use crate::identity::PublicKey;

/// The kind of service, as DNS knows it.
const SERVICE: &str = "_distest._tcp.local.";
/// Workers that are kept at once.
const FOUND_MAX: usize = 1024;
/// Bytes of a name that are advertised.
const NAME_BYTES_MAX: usize = 100;
/// How long saying goodbye may take.
const GOODBYE_TIME: Duration = Duration::from_millis(500);
/// What comes within this time of something is taken with it.
const GATHER: Duration = Duration::from_millis(20);

/// A worker that is advertised, until this is withdrawn or dropped.
pub struct Advertised {
    daemon: ServiceDaemon,
    fullname: String,
}

/// Looks for workers for as long as it is kept.
pub struct Browser {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    seen: Seen,
}

/// Tells whether a key is one that is looked for.
type Wanted = Box<dyn Fn(&PublicKey) -> bool + Send>;

/// What is announced, within bounds: whose key is looked for is not crowded out by others, nor by
/// many announcements under another key.
struct Seen {
    wanted: Wanted,
    found: BTreeMap<String, Found>,
    of_keys: BTreeMap<PublicKey, usize>,
}

/// A worker that says that it is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The key that it will have to prove.
    pub key: PublicKey,
    /// What it calls itself.
    pub name: String,
    /// Where it may be reached, the likeliest first.
    pub addresses: Vec<SocketAddr>,
}

/// Advertises a worker that listens there; at an unspecified address, with all that this machine
/// has, whatever becomes of them. `instance` is a name of this process, like no other's.
///
/// # Errors
/// In words.
pub fn advertise(
    name: &str,
    key: &PublicKey,
    listens: SocketAddr,
    instance: &str,
) -> Result<Advertised, String> {
    let failed = |error: mdns_sd::Error| format!("could not advertise this worker: {error}");
    let daemon = ServiceDaemon::new().map_err(failed)?;
    // Names of instances and hosts must be unique in the network, people's names aren't.
    let unique = Digest::of(format!("{key} {listens} {instance}").as_bytes());
    let unique: String = unique.to_string().chars().take(16).collect();
    let host = format!("distest-{unique}.local.");
    let end = name.floor_char_boundary(NAME_BYTES_MAX);
    let properties = [("key", key.to_string()), ("name", name[..end].to_owned())];
    let addresses: &[IpAddr] = match listens.ip() {
        ip if ip.is_unspecified() => &[],
        ip => &[ip],
    };
    let port = listens.port();
    let service = ServiceInfo::new(SERVICE, &unique, &host, addresses, port, &properties[..]);
    let mut service = service.map_err(failed)?;
    if addresses.is_empty() {
        service = service.enable_addr_auto();
    }
    let fullname = service.get_fullname().to_owned();
    daemon.register(service).map_err(failed)?;
    Ok(Advertised { daemon, fullname })
}

impl Advertised {
    /// Tells the network that the worker goes.
    pub async fn withdraw(self) {
        if let Ok(done) = self.daemon.unregister(&self.fullname) {
            let _ = timeout(GOODBYE_TIME, done.recv_async()).await;
        }
    }
}

impl Drop for Advertised {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.daemon.shutdown();
    }
}

impl Browser {
    /// Begins to look. Workers with keys that are `wanted` come before others where there are too
    /// many.
    ///
    /// # Errors
    /// In words.
    pub fn new(wanted: impl Fn(&PublicKey) -> bool + Send + 'static) -> Result<Self, String> {
        let failed = |error: mdns_sd::Error| format!("could not look for workers: {error}");
        let daemon = ServiceDaemon::new().map_err(failed)?;
        let events = daemon.browse(SERVICE).map_err(failed)?;
        Ok(Self { daemon, events, seen: Seen::new(wanted) })
    }

    /// All that are there now; after something has changed, but at most after `within`.
    pub async fn look(&mut self, within: Duration) -> Vec<Found> {
        let end = Instant::now() + within;
        let mut until = end;
        while let Ok(Ok(event)) = timeout_at(until, self.events.recv_async()).await {
            if self.seen.take(event) {
                until = end.min(Instant::now() + GATHER);
            }
        }
        if self.events.is_disconnected() {
            tokio::time::sleep_until(end).await;
        }
        self.seen.found.values().cloned().collect()
    }
}

impl Seen {
    fn new(wanted: impl Fn(&PublicKey) -> bool + Send + 'static) -> Self {
        Self { wanted: Box::new(wanted), found: BTreeMap::new(), of_keys: BTreeMap::new() }
    }

    /// Whether that changed anything.
    fn take(&mut self, event: ServiceEvent) -> bool {
        match event {
            ServiceEvent::ServiceResolved(service) => match found(&service) {
                Some(found) => self.add(service.fullname, found),
                None => false,
            },
            ServiceEvent::ServiceRemoved(_, fullname) => self.remove(&fullname),
            _ => false,
        }
    }

    fn add(&mut self, fullname: String, found: Found) -> bool {
        if self.found.get(&fullname) == Some(&found) {
            return false;
        }
        self.remove(&fullname);
        if self.found.len() >= FOUND_MAX && !self.make_room_for(&found.key) {
            return false;
        }
        *self.of_keys.entry(found.key).or_default() += 1;
        self.found.insert(fullname, found);
        true
    }

    /// Forgets somebody who is not looked for, or else one of the key that is announced most often,
    /// unless that is this one.
    fn make_room_for(&mut self, key: &PublicKey) -> bool {
        if !(self.wanted)(key) {
            return false;
        }
        let stranger = self.of_keys.keys().find(|key| !(self.wanted)(key));
        let most = self.of_keys.iter().max_by_key(|(_, count)| **count).map(|(key, _)| key);
        let Some(from) = stranger.or(most).filter(|from| *from != key) else { return false };
        let mut of_key = self.found.iter().filter(|(_, found)| found.key == *from);
        let Some(name) = of_key.next().map(|(name, _)| name.clone()) else { return false };
        self.remove(&name)
    }

    fn remove(&mut self, fullname: &str) -> bool {
        let Some(found) = self.found.remove(fullname) else { return false };
        if let Some(count) = self.of_keys.get_mut(&found.key) {
            *count -= 1;
        }
        self.of_keys.retain(|_, count| *count > 0);
        true
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.daemon.shutdown();
    }
}

/// Makes sense of what somebody advertises, if it has any.
fn found(service: &ResolvedService) -> Option<Found> {
    let key = service.get_property_val_str("key")?.parse().ok()?;
    let name = service.get_property_val_str("name").unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_BYTES_MAX).collect();
    let ips = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr);
    // A link-local address means nothing without the name of an interface.
    let usable = ips.filter(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_unicast_link_local(),
    });
    let mut addresses: Vec<_> = usable.map(|ip| SocketAddr::new(ip, service.port)).collect();
    addresses.sort();
    (service.port > 0 && !addresses.is_empty()).then_some(Found { key, name, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn neither_strangers_nor_one_keys_announcements_crowd_out_who_is_looked_for() {
        let [flooded, quiet] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let stranger = || PrivateKey::generate().unwrap().public();
        let mut seen = Seen::new(move |key| [flooded, quiet].contains(key));
        let found = |key| Found {
            key,
            name: "w".to_owned(),
            addresses: vec![SocketAddr::from(([10, 0, 0, 1], 7777))],
        };
        for number in 0..FOUND_MAX {
            assert!(seen.add(format!("stranger {number}"), found(stranger())));
        }
        assert!(!seen.add("one more".to_owned(), found(stranger())));
        for number in 0..2 * FOUND_MAX {
            seen.add(format!("flood {number}"), found(flooded));
        }
        assert!(seen.add("quiet".to_owned(), found(quiet)));
        assert!(!seen.add("quiet".to_owned(), found(quiet)), "that is no news");
        seen.add("flood again".to_owned(), found(flooded));
        assert!(seen.found.contains_key("quiet"));
        assert_eq!(seen.found.len(), FOUND_MAX);
        assert_eq!(seen.of_keys.values().sum::<usize>(), FOUND_MAX);
        assert!(seen.remove("quiet") && !seen.remove("quiet"));
        assert!(!seen.of_keys.contains_key(&quiet));
    }
}
