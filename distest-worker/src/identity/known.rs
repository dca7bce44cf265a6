//! `known_workers`: a line each, `KEY ADDRESS NAME`.

use std::collections::BTreeMap;
use std::path::Path;

use super::authorized::one_line;
use super::files::{self, Exposure, IdentityError};
use super::key::{KeyError, PublicKey};
use crate::shown;

/// What stands between words.
const SEPARATORS: [char; 4] = [' ', '\t', ',', '\r'];
/// Characters that are shown of what should be a key: less than would tell anything of a private one
/// that is there by mistake.
const SHOWN_CHARS_MAX: usize = 16;

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
    ///
    /// Only keys at the beginning of a line are any: behind an address all is a name, whatever it
    /// looks like, because others choose names.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let mut workers = BTreeMap::new();
        let mut wrong = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let Line { keys, rest } = Line::of(line);
            for key in &keys {
                workers.insert(*key, KnownWorker { address: "-".to_owned(), name: String::new() });
            }
            match keys.last() {
                _ if rest.is_empty() => {}
                Some(key) => _ = workers.insert(*key, KnownWorker::of_words(rest)),
                None => {
                    let word = rest.split(SEPARATORS).next().unwrap_or_default();
                    let beginning: String = word.chars().take(SHOWN_CHARS_MAX).collect();
                    let (line, shown) = (index + 1, shown::word(&beginning));
                    wrong.push(format!("line {line}: `{shown}`: {}", KeyError::Public));
                }
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
        let without = |line: &str| Line::of(line).without(key);
        files::rewrite(path, without, Some(it.line(key))).map(|_| ())
    }

    /// Removes a key from a file; answers whether it was there.
    ///
    /// # Errors
    /// The file can't be written, or still names the key.
    pub fn forget(path: &Path, key: &PublicKey) -> Result<bool, IdentityError> {
        let there = files::rewrite(path, |line| Line::of(line).without(key), None)?;
        match Self::load(path)?.0.knows(key) {
            true => Err(IdentityError::StillThere { path: path.to_owned(), key: *key }),
            false => Ok(there),
        }
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
        // What isn't one word would be read as something else.
        let address = Some(self.address.as_str()).filter(|it| Line::words(it).eq([*it]));
        let address = address.filter(|it| it.parse::<PublicKey>().is_err()).unwrap_or("-");
        format!("{key} {address} {}", one_line(&self.name))
    }

    /// What a line says behind its key.
    fn of_words(rest: &str) -> Self {
        let address = Line::words(rest).next().unwrap_or("-");
        let name = rest[address.len()..].trim_matches(SEPARATORS);
        // Whose name isn't told is called nothing.
        let name = if name.is_empty() { String::new() } else { one_line(name) };
        Self { address: address.to_owned(), name }
    }
}

/// A line of the file: keys, and what is known of the last of them.
struct Line<'a> {
    keys: Vec<PublicKey>,
    /// The address and the name; empty if there is nothing but keys.
    rest: &'a str,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let mut rest = line.trim_matches(SEPARATORS);
        let mut keys = Vec::new();
        if rest.starts_with('#') {
            return Self { keys, rest: "" };
        }
        while let Some(word) = Self::words(rest).next()
            && let Ok(key) = word.parse()
        {
            keys.push(key);
            rest = rest[word.len()..].trim_start_matches(SEPARATORS);
        }
        Self { keys, rest }
    }

    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split(SEPARATORS).filter(|word| !word.is_empty())
    }

    /// What is left of the line without a key, if it names it.
    fn without(&self, key: &PublicKey) -> Option<String> {
        if !self.keys.contains(key) {
            return None;
        }
        let others = self.keys.iter().filter(|it| *it != key).map(PublicKey::to_string);
        let rest = self.rest.to_owned();
        // What is known is known of the last key.
        let kept = self.keys.last() != Some(key) && !rest.is_empty();
        Some(others.chain(kept.then_some(rest)).collect::<Vec<_>>().join(" "))
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
        let (workers, wrong) = KnownWorkers::parse(&format!("{a} {b}\nnon\u{1b}sense of mine"));
        assert_eq!((workers.iter().count(), wrong.len()), (2, 1));
        assert!(wrong[0].starts_with("line 2: `non\\u{1b}sense`"), "{wrong:?}");
        let (workers, wrong) = KnownWorkers::parse(&format!(" {a}, {b}  h:1\tmine, too \r\n\n"));
        assert!(wrong.is_empty() && workers.get(&a).unwrap().name.is_empty());
        let known = KnownWorker { address: "h:1".to_owned(), name: "mine, too".to_owned() };
        assert_eq!(workers.get(&b), Some(&known));
    }

    #[test]
    fn a_name_introduces_and_redirects_no_key() {
        let [victim, own, new] = [(); 3].map(|()| PrivateKey::generate().unwrap().public());
        let victims = KnownWorker { address: "h:1".to_owned(), name: "victim".to_owned() };
        let names = [
            format!("x {victim} 127.0.0.1:1 victim"),
            format!("{new}"),
            format!("{new} 127.0.0.1:1 x"),
            format!("x,{new},{victim}"),
            format!("x\n{new} 127.0.0.1:1 x"),
            format!("\r{new} h:2\u{2028}{new}\u{85}{victim}"),
            format!("# {victim}"),
            format!("{}{victim} -", "x".repeat(90)),
            " , ".to_owned(),
            String::new(),
        ];
        for (name, address) in names.iter().flat_map(|it| {
            ["-", "h:2", "", "h:2 x", it.as_str()].map(|address| (it.clone(), address))
        }) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("known_workers");
            KnownWorkers::remember(&path, &victim, &victims).unwrap();
            let it = KnownWorker { address: address.to_owned(), name: name.clone() };
            KnownWorkers::remember(&path, &own, &it).unwrap();
            let (known, wrong) = KnownWorkers::load(&path).unwrap();
            assert_eq!((known.iter().count(), wrong.len()), (2, 0), "{name:?} at {address:?}");
            assert_eq!(known.get(&victim), Some(&victims), "{name:?} at {address:?}");
            let line = std::fs::read_to_string(&path).unwrap();
            let line = line.lines().last().unwrap();
            let keys = line.split([' ', ',']).filter(|it| it.parse::<PublicKey>().is_ok());
            assert_eq!(keys.count(), 1, "nor is anything else to be taken for a key: {line}");
            assert!(KnownWorkers::forget(&path, &own).unwrap());
            let (known, _) = KnownWorkers::load(&path).unwrap();
            assert!(!known.knows(&own) && known.iter().count() == 1, "{name:?} at {address:?}");
        }
    }

    #[test]
    fn a_key_is_forgotten_wherever_it_stands() {
        let [a, b, c] = [(); 3].map(|()| PrivateKey::generate().unwrap().public());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("known_workers");
        for (key, left) in [
            (a, format!("# {a} mine\n{b} {c} h:1 x\n{c}\n")),
            (b, format!("# {a} mine\n{a} {c} h:1 x\n{a} {c}\n")),
            (c, format!("# {a} mine\n{a} {b}\n{a}\n")),
        ] {
            std::fs::write(&path, format!("# {a} mine\n{a},{b} {c} h:1 x\n{a} {c}\n{key}\n"))
                .unwrap();
            assert!(KnownWorkers::forget(&path, &key).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), left);
            assert!(!KnownWorkers::forget(&path, &key).unwrap());
        }
    }
}
