//! Where workers register and clients ask, for networks without multicast.
//!
//! A registry supplies addresses and nothing else. It vouches for no key: a client dials only those
//! of the listed workers whose keys it knows already, and has them proved as ever. So a registry
//! that lies costs a client a few connections.
//!
//! Everybody proves a key to a registry ([`crate::tls`]). A worker says which keys it lets in, and
//! a client is shown the workers that let in the key that it has proved, nobody else's. An entry
//! belongs to the connection over which it was made: it goes when that ends, or when nothing was
//! said on it for [`SILENT_MAX`].

mod ask;
mod keep;
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::ask::{Announced, Asker, RegistryError, announce};
pub use self::keep::Registry;
use crate::identity::PublicKey;
use crate::protocol::Labels;

/// A connection on which nothing was said for this long is closed, and its entry goes.
pub const SILENT_MAX: Duration = Duration::from_secs(6);
/// Between two words of a worker.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Workers that a registry keeps.
pub const ENTRIES_MAX: usize = 1024;
/// Connections at once, and those of one host (of one network of 64 bits, with IPv6).
const CONNECTIONS_MAX: usize = 2048;
/// See [`CONNECTIONS_MAX`].
pub const HOST_CONNECTIONS_MAX: usize = 128;
/// Keys that a worker may name.
const KEYS_MAX: usize = 512;
/// Bytes of a worker's name, of its address, and of all its labels.
const NAME_BYTES_MAX: usize = 100;
const ADDRESS_BYTES_MAX: usize = 260;
const LABELS_BYTES_MAX: usize = 1024;
/// The most bytes of a question, and of an answer.
const QUESTION_BYTES_MAX: u32 = 48 * 1024;
const ANSWER_BYTES_MAX: u32 = 2 << 20;

/// Where a registry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegistryPlace {
    /// `HOST:PORT`.
    pub place: String,
    /// Its key, if it must be that one. Without one any will do: a registry vouches for nothing.
    pub key: Option<PublicKey>,
}

/// What a worker says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// What people call it.
    pub name: String,
    /// Where it listens: `HOST:PORT`.
    pub address: String,
    /// Its labels.
    pub labels: Labels,
    /// The keys that it lets in.
    pub lets_in: BTreeSet<PublicKey>,
}

/// A worker as a registry lists it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The key under which it registered.
    pub key: PublicKey,
    /// What it calls itself.
    pub name: String,
    /// Where it says that it listens: `HOST:PORT`.
    pub address: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

/// What is said to a registry.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// Keep this entry; in place of what this connection said before.
    Register(Registration),
    /// Which workers let in the key that asks?
    List {},
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Registered {},
    Listed { entries: Vec<Entry> },
    Refused { why: String },
}

impl Registration {
    /// Refuses what no worker would say.
    fn check(&self) -> Result<(), String> {
        let Self { name, address, labels, lets_in } = self;
        let plain = |text: &str| !text.is_empty() && !text.contains(char::is_control);
        let labels: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if !plain(name) || name.len() > NAME_BYTES_MAX {
            return Err(format!("a worker's name has 1 to {NAME_BYTES_MAX} bytes"));
        }
        if address.len() > ADDRESS_BYTES_MAX || !is_place(address) {
            return Err("a worker's address is written HOST:PORT".to_owned());
        }
        if labels > LABELS_BYTES_MAX {
            return Err(format!("a worker's labels have at most {LABELS_BYTES_MAX} bytes"));
        }
        if lets_in.len() > KEYS_MAX {
            return Err(format!("a worker names at most {KEYS_MAX} keys"));
        }
        Ok(())
    }
}

/// Whether a text is `HOST:PORT`.
fn is_place(text: &str) -> bool {
    place(text).is_some()
}

/// The host, without brackets, and the port of a text that is `HOST:PORT`.
pub fn place(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let odd = |c: char| c.is_control() || c.is_whitespace() || "/@#".contains(c);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty() && !host.contains(odd)).then(|| (host.to_owned(), port))
}

impl FromStr for RegistryPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("registry://").unwrap_or(text);
        let (place, key) = match rest.split_once('#') {
            Some((place, key)) => (place, Some(key.parse().map_err(|error| format!("{error}"))?)),
            None => (rest, None),
        };
        match is_place(place) {
            true => Ok(Self { place: place.to_owned(), key }),
            false => Err("expected HOST:PORT[#KEY] of a registry".to_owned()),
        }
    }
}

impl fmt::Display for RegistryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        self.key.iter().try_for_each(|key| write!(f, "#{key}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn places_are_read_as_they_are_written() {
        let key = PrivateKey::generate().unwrap().public();
        for text in ["h:7", "[::1]:65535", &format!("10.0.0.1:7#{key}")] {
            assert_eq!(text.parse::<RegistryPlace>().unwrap().to_string(), text);
            let whole = format!("registry://{text}");
            assert_eq!(whole.parse::<RegistryPlace>().unwrap().to_string(), text);
        }
        for text in ["h", ":7", "h:0", "h:7#x", "tcp://h:7", "h h:7", ""] {
            assert!(text.parse::<RegistryPlace>().is_err(), "{text}");
        }
    }

    #[test]
    fn odd_registrations_are_refused() {
        let good = Registration {
            name: "w".to_owned(),
            address: "h:1".to_owned(),
            ..Registration::default()
        };
        assert_eq!(good.check(), Ok(()));
        let long = |bytes: usize| "x".repeat(bytes);
        let odd = [
            Registration { name: String::new(), ..good.clone() },
            Registration { name: "a\nb".to_owned(), ..good.clone() },
            Registration { name: long(NAME_BYTES_MAX + 1), ..good.clone() },
            Registration { address: "h".to_owned(), ..good.clone() },
            Registration { address: format!("{}:1", long(ADDRESS_BYTES_MAX)), ..good.clone() },
            Registration {
                labels: Labels::from([(long(LABELS_BYTES_MAX), "x".to_owned())]),
                ..good.clone()
            },
        ];
        for registration in odd {
            assert!(registration.check().is_err(), "{registration:?}");
        }
    }
}
