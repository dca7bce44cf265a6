//! `authorized_keys`: a line each, `KEY PERMISSIONS NAME`.

use std::collections::BTreeMap;
use std::fmt;

use super::key::PublicKey;
use super::permission::Permissions;
use crate::shown;

/// Characters of a name.
const NAME_CHARS_MAX: usize = 100;

/// What is known of one authorized key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authorized {
    /// What it may do.
    pub permissions: Permissions,
    /// What people call its owner.
    pub name: String,
}

/// The keys that a worker lets in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuthorizedKeys {
    keys: BTreeMap<PublicKey, Authorized>,
}

impl AuthorizedKeys {
    /// Reads a file's text. Lines that say nothing are left out and told of: one of them must
    /// neither let anybody in nor lock everybody out.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let mut keys = BTreeMap::new();
        let mut wrong = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((key, authorized)) => _ = keys.insert(key, authorized),
                Err(error) => wrong.push(format!("line {}: {error}", index + 1)),
            }
        }
        (Self { keys }, wrong)
    }

    /// What is known of a key, if it is let in.
    pub fn get(&self, key: &PublicKey) -> Option<&Authorized> {
        self.keys.get(key)
    }

    /// Whether nobody is let in.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&PublicKey, &Authorized)> {
        self.keys.iter()
    }
}

impl Authorized {
    /// What a line says of a key, if it makes sense.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        parse_line(line.trim()).ok().map(|(_, authorized)| authorized)
    }

    /// The line of a file that says this of `key`.
    pub fn line(&self, key: &PublicKey) -> String {
        format!("{key} {} {}", self.permissions, one_line(&self.name))
    }
}

impl fmt::Display for Authorized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.permissions)
    }
}

/// A name from outside, fit for a line of a file: nothing in it can be read as a key, nor acts on a
/// terminal.
pub(super) fn one_line(name: &str) -> String {
    let name: String = name.chars().filter(|c| !shown::acts(*c)).take(NAME_CHARS_MAX).collect();
    let name = name.replace("ed25519:", "ed25519-");
    let name = name.trim();
    if name.is_empty() { "unnamed".to_owned() } else { name.to_owned() }
}

fn parse_line(line: &str) -> Result<(PublicKey, Authorized), String> {
    let mut words = line.splitn(3, char::is_whitespace);
    let mut next = || words.next().unwrap_or_default().trim();
    let key = next().parse().map_err(|error: super::KeyError| error.to_string())?;
    let permissions = next().parse()?;
    Ok((key, Authorized { permissions, name: one_line(next()) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Permission, PrivateKey};

    #[test]
    fn lines_are_read_as_they_are_written_and_wrong_ones_told() {
        let key = PrivateKey::generate().unwrap().public();
        let permissions = Permissions::from_iter([Permission::Run, Permission::View]);
        let authorized = Authorized { permissions, name: "a laptop".to_owned() };
        let text = format!(
            "# who may\n\n{}\ned25519:short run x\n{key} fly x\n  \n",
            authorized.line(&key)
        );
        let (keys, wrong) = AuthorizedKeys::parse(&text);
        assert_eq!(keys.get(&key), Some(&authorized));
        assert_eq!(keys.iter().count(), 1);
        assert_eq!(wrong.len(), 2);
        assert!(wrong[0].starts_with("line 4: ") && wrong[1].contains("fly"), "{wrong:?}");
    }

    #[test]
    fn a_name_cannot_add_a_line() {
        let key = PrivateKey::generate().unwrap().public();
        let other = PrivateKey::generate().unwrap().public();
        for between in ["\n", "\r", "\u{85}", "\u{2028}", " ", ","] {
            let name = format!("x{between}{other} admin y");
            let line = Authorized { permissions: Permissions::usual(), name }.line(&key);
            let (keys, wrong) = AuthorizedKeys::parse(&line);
            assert!(wrong.is_empty() && keys.iter().count() == 1, "{line}");
            assert_eq!(keys.get(&key).unwrap().permissions, Permissions::usual());
            assert!(!line.contains(&other.to_string()), "{line}");
        }
    }
}
