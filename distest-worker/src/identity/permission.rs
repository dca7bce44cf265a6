//! What a key may do on a worker.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One thing that a key may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Permission {
    /// Run tests, and send what they need.
    Run,
    /// Run any command.
    Exec,
    /// Read and write files.
    Copy,
    /// See who uses the worker for what.
    View,
    /// Drain and upgrade the worker.
    Admin,
}

/// What a key may do. Written `run,copy`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Permissions(BTreeSet<Permission>);

impl Permission {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Run, Self::Exec, Self::Copy, Self::View, Self::Admin];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Exec => "exec",
            Self::Copy => "copy",
            Self::View => "view",
            Self::Admin => "admin",
        }
    }

    /// What somebody who has it may do on a worker.
    pub fn allows(self) -> &'static str {
        match self {
            Self::Run => "run tests",
            Self::Exec => "run any command as the worker's user",
            Self::Copy => "read and write any file of that user's",
            Self::View => "see what goes on",
            Self::Admin => "replace, drain and empty the worker",
        }
    }
}

impl Permissions {
    /// What an invitation permits if nothing else is said: to run tests, and to see what goes on.
    pub fn usual() -> Self {
        Self::from_iter([Permission::Run, Permission::View])
    }

    /// Everything.
    pub fn all() -> Self {
        Self(Permission::ALL.into_iter().collect())
    }

    /// Whether this is among them.
    pub fn allow(&self, permission: Permission) -> bool {
        self.0.contains(&permission)
    }

    /// What somebody who has them may do on a worker, in words.
    pub fn in_words(&self) -> String {
        self.0.iter().map(|one| one.allows()).collect::<Vec<_>>().join(", ")
    }

    /// These and those.
    #[must_use]
    pub fn with(&self, those: &Self) -> Self {
        Self(&self.0 | &those.0)
    }

    /// Whether all those are among these.
    pub fn include(&self, those: &Self) -> bool {
        self.0.is_superset(&those.0)
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().collect())
    }
}

impl FromStr for Permissions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |word: &str| {
            let found = Permission::ALL.into_iter().find(|permission| permission.word() == word);
            found.ok_or_else(|| {
                let words = Permission::ALL.map(Permission::word).join(", ");
                format!("there is no permission `{word}`; there are {words}")
            })
        };
        text.split(',').map(known).collect()
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, permission) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "," })?;
            f.write_str(permission.word())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_read_as_they_are_written() {
        for text in ["run", "run,exec,copy,view,admin", "copy,view"] {
            assert_eq!(text.parse::<Permissions>().unwrap().to_string(), text);
        }
        assert_eq!(Permissions::all().to_string().parse(), Ok(Permissions::all()));
        assert_eq!(Permissions::usual().to_string(), "run,view");
        for text in ["", "Run", "run,", "all"] {
            assert!(text.parse::<Permissions>().unwrap_err().contains("exec"), "{text}");
        }
    }
}
