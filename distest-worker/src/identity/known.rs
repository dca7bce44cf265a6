//! `known_workers`: a line each, `KEY ADDRESS NAME`.

use std::collections::BTreeMap;
use std::path::Path;

use super::authorized::one_line;
use super::files::{self, Exposure, IdentityError};
use super::key::PublicKey;

/// What a client knows of one worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownWorker {
    /// Where it was when it became known: `HOST:PORT`, or `-`.
    pub address: String,
    /// What people call it; empty if only its key is known.
    pub name: String,
}

/// The workers that a client trusts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KnownWorkers {
    workers: BTreeMap<PublicKey, KnownWorker>,
}

impl KnownWorkers {
    /// Reads a file's text; keys alone, in one line or several, will do too. What makes no sense
    /// is left out and told of.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let mut workers = BTreeMap::new();
        let mut wrong = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with('#') {
                continue;
            }
            let mut words = line.split([' ', '\t', ',']).filter(|word| !word.is_empty()).peekable();
            while let Some(word) = words.next() {
                let key = match word.parse::<PublicKey>() {
                    Ok(key) => key,
                    Err(error) => {
                        wrong.push(format!("line {}: {error}", index + 1));
                        break;
                    }
                };
                let mut next = || words.next_if(|word| word.parse::<PublicKey>().is_err());
                let address = next().unwrap_or("-").to_owned();
                let mut name = Vec::new();
                while let Some(word) = next() {
                    name.push(word);
                }
                // Whose key alone is known is called nothing.
                let name = if name.is_empty() { String::new() } else { one_line(&name.join(" ")) };
                workers.insert(key, KnownWorker { address, name });
            }
        }
        (Self { workers }, wrong)
    }

    /// Reads a file, if it is there.
    ///
    /// # Errors
    /// It can't be read, or others could have written it.
    pub fn load(path: &Path) -> Result<(Self, Vec<String>), IdentityError> {
        let text = files::read(path, Exposure::Public)?.unwrap_or_default();
        Ok(Self::parse(&text))
    }

    /// Remembers a worker in a file, in place of what it said of the key.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn remember(path: &Path, key: &PublicKey, it: &KnownWorker) -> Result<(), IdentityError> {
        files::add_line(path, key, |_| it.line(key))
    }

    /// Removes a key from a file; answers whether it was there.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn forget(path: &Path, key: &PublicKey) -> Result<bool, IdentityError> {
        files::remove_lines(path, key)
    }

    /// Whether a worker at `address` (`HOST:PORT`) with this key is known. Where an address became
    /// known with a key, only that key will do; addresses change, so elsewhere any known key does.
    pub fn trust(&self, key: &PublicKey, address: &str) -> bool {
        let mut of_address = self.workers.iter().filter(|(_, known)| known.address == address);
        match of_address.next() {
            Some((first, _)) => first == key || of_address.any(|(other, _)| other == key),
            None => self.knows(key),
        }
    }

    /// Whether a key is known at all.
    pub fn knows(&self, key: &PublicKey) -> bool {
        self.workers.contains_key(key)
    }

    /// The key that is known for an address.
    pub fn of_address(&self, address: &str) -> Option<&PublicKey> {
        self.workers.iter().find(|(_, known)| known.address == address).map(|(key, _)| key)
    }

    /// What is known of a key.
    pub fn get(&self, key: &PublicKey) -> Option<&KnownWorker> {
        self.workers.get(key)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&PublicKey, &KnownWorker)> {
        self.workers.iter()
    }

    /// These and those.
    #[must_use]
    pub fn with(mut self, others: Self) -> Self {
        self.workers.extend(others.workers);
        self
    }
}

impl KnownWorker {
    /// The line of a file that says this of `key`.
    pub fn line(&self, key: &PublicKey) -> String {
        format!("{key} {} {}", self.address, one_line(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    #[test]
    fn another_key_behind_a_known_address_is_not_trusted_even_if_known_elsewhere() {
        let [a, b, c] = [(); 3].map(|()| PrivateKey::generate().unwrap().public());
        let known = |address: &str| KnownWorker { address: address.to_owned(), name: "x y".into() };
        let text = format!("# mine\n{}\n{}\n", known("h:1").line(&a), known("h:2").line(&b));
        let (workers, wrong) = KnownWorkers::parse(&text);
        assert_eq!((workers.iter().count(), wrong.len()), (2, 0));
        assert_eq!(workers.iter().find(|(key, _)| **key == a).unwrap().1, &known("h:1"));
        assert!(workers.trust(&a, "h:1") && workers.trust(&b, "h:2"));
        assert!(!workers.trust(&b, "h:1") && !workers.trust(&a, "h:2"));
        assert!(workers.trust(&a, "elsewhere:1"));
        assert!(!workers.trust(&c, "elsewhere:1") && !workers.trust(&c, "h:1"));
    }

    #[test]
    fn keys_alone_will_do() {
        let [a, b] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let (workers, wrong) = KnownWorkers::parse(&format!("{a},{b}"));
        assert!(wrong.is_empty() && workers.trust(&a, "h:1") && workers.trust(&b, "h:1"));
        assert_eq!(workers.get(&a).unwrap().name, "");
        let (workers, wrong) = KnownWorkers::parse(&format!("{a} {b}\nnonsense"));
        assert_eq!((workers.iter().count(), wrong.len()), (2, 1));
    }
}
