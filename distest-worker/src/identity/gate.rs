//! Whom a worker lets in now: `authorized_keys`, read again whenever it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::authorized::{Authorized, AuthorizedKeys};
use super::files::{self, Exposure, IdentityError};
use super::key::PublicKey;
use super::permission::Permissions;
use crate::log::Line;

/// Someone at the other end of a connection, proved by their key or by how they got here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Their key; none where the connection itself is the proof: the embedded worker's pipe, or a
    /// process that ssh started.
    pub key: Option<PublicKey>,
    /// What people call them.
    pub name: String,
    /// What they may do.
    pub permissions: Permissions,
    /// They are on this machine.
    pub loopback: bool,
}

impl Peer {
    /// Someone who could do everything without us: our own process, or who started it.
    pub fn ourselves() -> Self {
        let permissions = Permissions::all();
        Self { key: None, name: "this user".to_owned(), permissions, loopback: true }
    }
}

/// Lets clients in by their keys.
#[derive(Debug)]
pub struct Gate {
    authorized_keys: Option<PathBuf>,
    /// The private key of the same user's client, whose public half is trusted on loopback.
    own_client: Option<PathBuf>,
    state: Mutex<State>,
    /// Counts changes.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    keys: AuthorizedKeys,
    stamp: Option<Stamp>,
    /// What is wrong with the file as it is, until somebody has been told.
    news: Vec<Line>,
}

/// Tells whether a file may have changed.
type Stamp = (u64, u64, i64, i64, i64, i64, u64, u32);

impl Gate {
    /// A gate that reads `authorized_keys` and trusts the public half of `own_client` on loopback.
    pub fn new(authorized_keys: Option<PathBuf>, own_client: Option<PathBuf>) -> Self {
        let (state, changes) = (Mutex::default(), watch::Sender::new(0));
        Self { authorized_keys, own_client, state, changes }
    }

    /// The same at somebody's start, who is told if the list can't be one.
    ///
    /// # Errors
    /// There is something else than a file. What is wrong with a file is told by [`Gate::news`],
    /// since it can be put right while somebody waits.
    pub fn open(
        authorized_keys: Option<PathBuf>,
        own_client: Option<PathBuf>,
    ) -> Result<Self, IdentityError> {
        let read = authorized_keys.as_deref().map(|path| files::read(path, Exposure::Public));
        if let Some(Err(error @ IdentityError::NoFile { .. })) = read {
            return Err(error);
        }
        Ok(Self::new(authorized_keys, own_client))
    }

    /// Who this is, if they are let in. Never reads the disk for a key that it knows.
    pub fn admit(&self, key: &PublicKey, loopback: bool) -> Option<Peer> {
        let known = self.state().keys.get(key).cloned();
        let known = known.or_else(|| {
            let own = self.own_client.as_deref().filter(|_| loopback).and_then(PublicKey::load)?;
            let name = "this user".to_owned();
            (own == *key).then_some(Authorized { permissions: Permissions::all(), name })
        });
        let Authorized { permissions, name } = known?;
        Some(Peer { key: Some(*key), name, permissions, loopback })
    }

    /// All keys that are let in, in their order; from this machine, with this user's own.
    pub fn keys(&self, loopback: bool) -> Vec<PublicKey> {
        let own = self.own_client.as_deref().filter(|_| loopback).and_then(PublicKey::load);
        self.state().keys.iter().map(|(key, _)| *key).chain(own).collect()
    }

    /// Tells of each change of who is let in.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether `authorized_keys` names nobody.
    pub fn is_empty(&self) -> bool {
        self.state().keys.is_empty()
    }

    /// Reads `authorized_keys` if it may have changed. If it can't be read, or others could have
    /// written it, nobody in it is let in.
    pub fn refresh(&self) {
        let Some(path) = &self.authorized_keys else { return };
        let stamp = stamp(path);
        if self.state().stamp == stamp {
            return;
        }
        let (keys, news) = match files::read(path, Exposure::Public) {
            Ok(text) => {
                let (keys, wrong) = AuthorizedKeys::parse(&text.unwrap_or_default());
                let told = wrong.into_iter().map(|wrong| format!("{}: {wrong}", path.display()));
                (keys, told.map(Line::warning).collect())
            }
            Err(error) => {
                let told = Line::warning(format!("nobody in it is let in: {error}"));
                (AuthorizedKeys::default(), vec![told.hint(error.hint())])
            }
        };
        *self.state() = State { keys, stamp, news };
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The same. Answers what its owner should be told of the file as it is now, once, whoever's
    /// connection had it read.
    pub fn news(&self) -> Vec<Line> {
        self.refresh();
        std::mem::take(&mut self.state().news)
    }

    /// Lets a key in from now on, and remembers it. Nothing is taken from what it may do already;
    /// answers what it may do now.
    ///
    /// # Errors
    /// `authorized_keys` can't be written.
    pub fn authorize(
        &self,
        key: &PublicKey,
        authorized: &Authorized,
    ) -> Result<Permissions, IdentityError> {
        let path = self.authorized_keys.as_deref().ok_or(IdentityError::NoFolder)?;
        let mut permissions = authorized.permissions.clone();
        files::add_line(path, key, |before| {
            if let Some(before) = before.and_then(Authorized::of_line) {
                permissions = permissions.with(&before.permissions);
            }
            let name = authorized.name.clone();
            Authorized { permissions: permissions.clone(), name }.line(key)
        })?;
        self.refresh();
        Ok(permissions)
    }

    /// When something that this peer might do is no longer allowed.
    pub async fn revoked(&self, peer: &Peer) {
        let Some(key) = &peer.key else { return std::future::pending().await };
        let mut changes = self.changes.subscribe();
        loop {
            let still = self.admit(key, peer.loopback);
            if !still.is_some_and(|now| now.permissions.include(&peer.permissions)) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(path).ok()?;
    Some((
        about.dev(),
        about.ino(),
        about.mtime(),
        about.mtime_nsec(),
        about.ctime(),
        about.ctime_nsec(),
        about.size(),
        about.mode(),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::PrivateKey;

    fn new_key() -> PublicKey {
        PrivateKey::generate().unwrap().public()
    }

    #[tokio::test]
    async fn a_removed_key_is_no_longer_let_in_and_its_sessions_learn_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        let gate = Gate::new(Some(path.clone()), None);
        let (stays, goes) = (new_key(), new_key());
        fs::write(&path, format!("{stays} run a\n{goes} run b\n")).unwrap();
        assert!(gate.admit(&goes, false).is_none(), "not read yet");
        assert_eq!(gate.news(), []);
        let (first, second) =
            (gate.admit(&stays, false).unwrap(), gate.admit(&goes, false).unwrap());
        assert_eq!((first.name.as_str(), second.name.as_str()), ("a", "b"));
        let mut stays_in = Box::pin(gate.revoked(&first));
        let mut thrown_out = Box::pin(gate.revoked(&second));
        assert!(futures::poll!(&mut thrown_out).is_pending());

        fs::write(&path, format!("{stays} run,view a\n")).unwrap();
        gate.refresh();
        thrown_out.await;
        assert!(gate.admit(&goes, false).is_none());
        assert!(futures::poll!(&mut stays_in).is_pending());
        fs::write(&path, format!("{stays} view a\n")).unwrap();
        gate.refresh();
        stays_in.await;
    }

    #[test]
    fn a_list_that_others_can_write_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        let gate = Gate::new(Some(path.clone()), None);
        let key = new_key();
        fs::write(&path, format!("{key} run a\nnonsense\n")).unwrap();
        // A connection has it read first.
        gate.refresh();
        let told = gate.news();
        assert!(told.len() == 1 && told[0].message.contains("line 2"), "{told:?}");
        assert_eq!(gate.news(), [], "told once");
        assert!(gate.admit(&key, false).is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let told = gate.news();
        assert!(
            matches!(&told[..], [one] if one.hint.as_ref().unwrap().contains("chmod 644")),
            "{told:?}"
        );
        assert!(gate.admit(&key, false).is_none());
        assert!(gate.is_empty());
    }

    #[test]
    fn this_users_key_needs_no_telling_but_only_on_loopback() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let gate = Gate::new(None, Some(path.clone()));
        let key = PrivateKey::load_or_make(&path).unwrap().public();
        assert!(gate.admit(&key, true).is_some_and(|peer| peer.permissions == Permissions::all()));
        assert!(gate.admit(&key, false).is_none());
        assert!(gate.admit(&new_key(), true).is_none());
    }

    #[test]
    fn authorizing_adds_and_takes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authorized_keys");
        let gate = Gate::new(Some(path.clone()), None);
        let key = new_key();
        for (added, name, now) in [
            ("run,view", "n", "run,view"),
            ("run", "m", "run,view"),
            ("copy", "m", "run,copy,view"),
        ] {
            let authorized = Authorized { permissions: added.parse().unwrap(), name: name.into() };
            let permissions = gate.authorize(&key, &authorized).unwrap();
            assert_eq!(permissions.to_string(), now);
            assert_eq!(gate.admit(&key, false).unwrap().permissions, permissions);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{key} {now} {name}\n"));
        }
        // What makes no sense gives nothing.
        fs::write(&path, format!("{key} fly n\n")).unwrap();
        let authorized = Authorized { permissions: "run".parse().unwrap(), name: "n".into() };
        assert_eq!(gate.authorize(&key, &authorized).unwrap().to_string(), "run");
    }
}
