//! Services of the client's that attempts reach at the same place: what travels.
//!
//! The worker asks for everything, the client serves: it opens a connection to its own service,
//! takes what an attempt wrote, and hands out what the service answered when it is asked for it.
//! So each direction has its window, and nothing waits in memory but what was asked for.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::OsText;

/// The most forwards of one session.
pub const FORWARDS_MAX: usize = 32;
/// The most connections through the forwards of one session that are open at once.
pub const FORWARDED_MAX: usize = 100;
/// The most pieces of one connection that are on their way to the client, unanswered.
pub const FORWARD_PIECES_MAX: usize = 2;
/// The longest path of a Unix socket, in bytes: as unix(7) has it.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A service of the client's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Forward {
    /// A TCP port of its loopback interface.
    Port(u16),
    /// A Unix socket, by its absolute path.
    Socket(OsText),
}

/// A connection through a forward: a number that the worker chooses, unique in its session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ForwardedId(pub u64);

/// What an attempt wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardedPiece {
    /// Through which connection.
    pub connection: ForwardedId,
    /// At most [`super::CHUNK_BYTES_MAX`]; empty: it writes no more.
    pub data: Bytes,
}

impl Forward {
    /// Whether it can be meant: a port other than 0, a plain absolute path that a socket can have.
    ///
    /// # Errors
    /// What it must be instead.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Port(0) => Err("expected a port from 1 to 65535"),
            Self::Port(_) => Ok(()),
            Self::Socket(path) => check_path(path.as_path()),
        }
    }
}

fn check_path(path: &Path) -> Result<(), &'static str> {
    let mut components = path.components();
    let is_absolute = components.next() == Some(Component::RootDir);
    let mut is_plain = true;
    let mut plain = String::new();
    for component in components {
        is_plain &= matches!(component, Component::Normal(_));
        plain.push('/');
        plain.push_str(&component.as_os_str().to_string_lossy());
    }
    match path.to_str() {
        Some(text) if !is_absolute || plain.is_empty() || text.contains('\0') => {
            Err("expected a port from 1 to 65535 or the absolute path of a Unix socket")
        }
        Some(text) if !is_plain || text != plain => {
            Err("expected a path without `.`, `..` and doubled slashes")
        }
        Some(text) if text.len() > SOCKET_PATH_BYTES_MAX => {
            Err("a Unix socket's path has at most 107 bytes")
        }
        Some(_) => Ok(()),
        None => Err("expected a path in UTF-8"),
    }
}

impl FromStr for Forward {
    type Err = String;

    /// `5432` or `/run/postgresql/.s.PGSQL.5432`.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let forward = match is_number {
            // One that is too large is none.
            true => Self::Port(text.parse().unwrap_or(0)),
            false => Self::Socket(text.into()),
        };
        forward.check().map(|()| forward).map_err(str::to_owned)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Socket(path) => write!(f, "{}", path.as_path().display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_paths_are_told_apart_and_nothing_else_is_taken() {
        assert_eq!("5432".parse(), Ok(Forward::Port(5432)));
        assert_eq!("05432".parse(), Ok(Forward::Port(5432)));
        let path = "/run/postgresql/.s.PGSQL.5432";
        assert_eq!(path.parse(), Ok(Forward::Socket(path.into())));
        assert_eq!(Forward::Socket(path.into()).to_string(), path);
        let long = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
        for (text, why) in [
            ("0", "from 1 to 65535"),
            ("65536", "from 1 to 65535"),
            ("99999999999999999999", "from 1 to 65535"),
            ("", "absolute path"),
            ("-1", "absolute path"),
            ("db.sock", "absolute path"),
            ("localhost:5432", "absolute path"),
            ("/", "absolute path"),
            ("/run/../etc/x", "without"),
            ("/run//x", "without"),
            ("/run/x/", "without"),
            (&long, "107"),
        ] {
            let told = text.parse::<Forward>().expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
        }
        assert!(Forward::Port(0).check().is_err());
    }
}
