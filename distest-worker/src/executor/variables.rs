//! The environment of an attempt: what all of a session and all of a binary have, and its own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// Variables by name.
pub type Environment = BTreeMap<OsString, OsString>;

/// Variables by name, most of which many attempts share.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// The second's are over the first's.
    shared: [Arc<Environment>; 2],
    /// Over those; none: not set.
    own: BTreeMap<OsString, Option<OsString>>,
}

impl Variables {
    /// The shared ones and no others; the second's are over the first's.
    pub fn new(shared: [Arc<Environment>; 2]) -> Self {
        Self { shared, own: BTreeMap::new() }
    }

    /// Sets a variable, whatever it was.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.own.insert(name.into(), Some(value.into()));
    }

    /// Leaves a variable unset.
    pub fn unset(&mut self, name: impl Into<OsString>) {
        self.own.insert(name.into(), None);
    }

    /// What a variable is set to.
    pub fn get(&self, name: &OsStr) -> Option<&OsStr> {
        match self.own.get(name) {
            Some(own) => own.as_deref(),
            None => self.shared.iter().rev().find_map(|it| it.get(name)).map(OsString::as_os_str),
        }
    }

    /// All that are set: each once, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        let [all, binarys] = &self.shared;
        let all = all.iter().filter(|(name, _)| !binarys.contains_key(*name));
        let shared = all.chain(&**binarys).filter(|(name, _)| !self.own.contains_key(*name));
        let own = self.own.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        shared.chain(own).map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

impl FromIterator<(OsString, OsString)> for Variables {
    fn from_iter<I: IntoIterator<Item = (OsString, OsString)>>(all: I) -> Self {
        Self::new([Arc::new(all.into_iter().collect()), Arc::default()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_are_over_the_binarys_and_those_over_all_others() {
        let shared = |names: &[&str], value: &str| {
            Arc::new(names.iter().map(|name| (name.into(), value.into())).collect())
        };
        let all = shared(&["a", "b", "c", "f"], "shared");
        let mut variables = Variables::new([all, shared(&["b", "c", "f"], "binary's")]);
        variables.set("b", "own");
        variables.set("d", "own");
        variables.unset("c");
        variables.unset("e");
        let told = variables.iter().map(|(name, value)| format!("{name:?}={value:?}"));
        let mut told: Vec<_> = told.collect();
        told.sort();
        let expected = [r#""a"="shared""#, r#""b"="own""#, r#""d"="own""#, r#""f"="binary's""#];
        assert_eq!(told, expected);
        let get = |name: &str| variables.get(OsStr::new(name)).and_then(OsStr::to_str);
        let expected = [Some("shared"), Some("own"), None, Some("binary's")];
        assert_eq!(["a", "b", "c", "f"].map(get), expected);
    }
}
