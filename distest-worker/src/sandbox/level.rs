//! By which means, and so how truly, a worker recreates the client's paths.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a worker can do, from least to most. On the wire a level is its [`number`](Level::number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// The client's files lie elsewhere, and paths in variables are translated. A path that is
    /// compiled into a binary leads nowhere.
    Variables,
    /// The client's files lie at their own paths in plain sight, because nothing was there.
    SamePath,
    /// User and mount namespaces: all but an own `/proc` and pid namespace, which containers with
    /// a masked `/proc` refuse.
    Mounts,
    /// Mount and pid namespaces that the program bubblewrap makes, which may do that where its user
    /// may not. What tests write into the client's files is not discarded.
    Bubblewrap,
    /// Mount and pid namespaces, entered as root without a user namespace.
    Root,
    /// User, mount, ipc and pid namespaces.
    Namespaces,
}

impl Level {
    /// All of them, the best first.
    pub const ALL: [Self; 6] = [
        Self::Namespaces,
        Self::Root,
        Self::Bubblewrap,
        Self::Mounts,
        Self::SamePath,
        Self::Variables,
    ];

    /// Its number on the wire. Between them is room for others.
    pub fn number(self) -> u32 {
        match self {
            Self::Variables => 0,
            Self::SamePath => 10,
            Self::Mounts => 20,
            Self::Bubblewrap => 30,
            Self::Root => 40,
            Self::Namespaces => 50,
        }
    }

    /// The best known level that is no better than a peer's number.
    pub fn from_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|level| level.number() <= number).unwrap_or(Self::Variables)
    }

    /// Whether files are found at the client's absolute paths.
    pub fn recreates_paths(self) -> bool {
        self >= Self::SamePath
    }

    /// Whether a zygote enters a sandbox.
    pub fn is_enclosed(self) -> bool {
        self >= Self::Mounts
    }

    /// Whether what tests write is discarded when others get the slot.
    pub fn discards_writes(self) -> bool {
        self.is_enclosed() && self != Self::Bubblewrap
    }

    pub(super) fn has_user_namespace(self) -> bool {
        matches!(self, Self::Mounts | Self::Namespaces)
    }

    /// Whether all processes of an attempt are in a pid namespace that nothing leaves.
    pub fn has_pid_namespace(self) -> bool {
        matches!(self, Self::Bubblewrap | Self::Root | Self::Namespaces)
    }

    /// What tests find there, and what of the worker's they can reach.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Variables => {
                "the client's files lie elsewhere, and a path that is compiled into a test leads \
                 nowhere; nothing of the worker's is hidden"
            }
            Self::SamePath => {
                "the client's files lie at their own paths, in plain sight; nothing of the \
                 worker's is hidden"
            }
            Self::Mounts => {
                "the client's files are at their own paths and the worker's are hidden, without a \
                 pid namespace"
            }
            Self::Bubblewrap => {
                "the client's files are at their own paths and the worker's are hidden; what tests \
                 write into the former is not discarded"
            }
            Self::Root | Self::Namespaces => {
                "the client's files are at their own paths and the worker's are hidden"
            }
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Variables => "variables",
            Self::SamePath => "same-path",
            Self::Mounts => "mounts",
            Self::Bubblewrap => "bubblewrap",
            Self::Root => "root",
            Self::Namespaces => "namespaces",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Variables => "run-time variables",
            Self::SamePath => "the client's paths in plain sight",
            Self::Mounts => "namespaces without pids and /proc",
            Self::Bubblewrap => "bubblewrap",
            Self::Root => "root's namespaces",
            Self::Namespaces => "namespaces",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_order_and_lead_back() {
        for level in Level::ALL {
            assert!(!level.to_string().ends_with("only"), "that is for the sentence to say");
            assert_eq!(Level::from_number(level.number()), level);
        }
        let numbers = Level::ALL.map(Level::number);
        assert!(numbers.is_sorted_by(|a, b| a > b) && Level::ALL.is_sorted_by(|a, b| a > b));
        assert_eq!(Level::from_number(25), Level::Mounts, "a level of another version");
        assert_eq!(Level::from_number(u32::MAX), Level::Namespaces);
    }
}
