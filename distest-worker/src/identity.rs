//! Who is who: keys, whom a worker lets in and which workers a client knows.
//!
//! Both ends have an Ed25519 key and know the other's beforehand, as with ssh: a worker reads
//! `authorized_keys` ([`Gate`]), a client its `known_workers` ([`KnownWorkers`]). Nobody is trusted
//! on first use. The one thing that needs no telling: on loopback, the keys in one user's own
//! configuration folder trust each other.
//!
//! An Ed25519 public key is as short as a digest of it, so a key is its own fingerprint.

mod authorized;
mod files;
mod gate;
mod key;
mod known;
mod permission;

pub use self::authorized::{Authorized, AuthorizedKeys};
pub use self::files::{Folder, IdentityError};
pub use self::gate::{Gate, Peer};
pub use self::key::{KeyError, PrivateKey, PublicKey};
pub use self::known::{KnownWorker, KnownWorkers};
pub use self::permission::{Permission, Permissions};
