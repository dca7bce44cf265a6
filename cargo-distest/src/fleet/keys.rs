//! Who we are to workers, and which of them we trust.

use std::path::PathBuf;
use std::sync::Arc;

use distest_worker::identity::{Folder, IdentityError, KnownWorkers, PrivateKey, PublicKey};
use distest_worker::tls::{self, Purpose, Secured, TlsError, Trust};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Unusable;
use super::discover::Found;
use super::greeting::Names;
use crate::settings::{IdentitySettings, KeySource, KnownSource};

/// What to do where `DISTEST_KEY` is of no use.
const NAME_A_KEY: &str = "set it to the path or to the text (`-----BEGIN PRIVATE KEY-----`…) of a key: \
                          `cargo distest key new --out FILE` makes one; or unset it";

/// Our key and the keys that we know.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    ours: PrivateKey,
    known: KnownWorkers,
    /// Whose public half is the key of this user's workers on this machine.
    own_worker: Option<PathBuf>,
}

/// Where a worker was dialled, and what its key must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// `HOST:PORT`, as in `known_workers`.
    pub(super) address: &'a str,
    /// The address names the key.
    pub(super) pinned: Option<PublicKey>,
    /// It is on this machine.
    pub(super) loopback: bool,
}

impl Keys {
    /// Reads what the settings name; makes our key on first use.
    pub(super) fn load(settings: &IdentitySettings) -> Result<Self, Unusable> {
        let ours = Self::ours_of(settings)?;
        let folder = Folder::of_user();
        let mut known = KnownWorkers::default();
        if let Some(folder) = &folder {
            known = read_known(&folder.known_workers())?;
        }
        match &settings.known_workers {
            None => {}
            Some(KnownSource::Keys(keys)) => known = known.with(keys.clone()),
            Some(KnownSource::File(path)) => known = known.with(read_known(path)?),
        }
        Ok(Self { ours, known, own_worker: folder.as_ref().map(Folder::worker_key) })
    }

    /// Reads our key alone; makes it on first use.
    pub(super) fn ours_of(settings: &IdentitySettings) -> Result<PrivateKey, Unusable> {
        Ok(match &settings.key {
            KeySource::Nowhere => return Err(Unusable::new("DISTEST_KEY is empty")),
            KeySource::Text(text) => text.parse().map_err(|error| {
                Unusable::new(format!("could not read DISTEST_KEY: {error}")).hint(NAME_A_KEY)
            })?,
            KeySource::File(path) => {
                let loaded = PrivateKey::load(path).map_err(|error| match error {
                    // None is made there.
                    IdentityError::Malformed { .. } => unusable(error).hint(NAME_A_KEY),
                    other => unusable(other),
                });
                loaded?.ok_or_else(|| {
                    // What it says may be a key after all, so it is not repeated.
                    Unusable::new(
                        "DISTEST_KEY is neither the path of a file that is there nor the text of \
                         a private key",
                    )
                    .hint(NAME_A_KEY)
                })?
            }
            KeySource::User => {
                let path = Folder::of_user().map(|folder| folder.client_key());
                let path = path.ok_or(IdentityError::NoFolder).map_err(unusable)?;
                PrivateKey::load_or_make(&path).map_err(unusable)?
            }
        })
    }

    pub(super) fn known(&self) -> &KnownWorkers {
        &self.known
    }

    /// What the worker with this key may be called, as far as is known here.
    pub(super) fn names(&self, key: PublicKey) -> Names {
        let alias = self.known.get(&key).map(|known| known.name.clone());
        let alias = alias.filter(|alias| !alias.is_empty());
        Names { alias, key: Some(key), ..Names::default() }
    }

    pub(super) fn ours(&self) -> &PrivateKey {
        &self.ours
    }

    /// Whether a worker that is said to be there could be one that we trust.
    pub(super) fn may_be(&self, found: &Found) -> bool {
        self.known.knows(&found.key) || (found.is_here() && self.is_own(&found.key))
    }

    /// Whether a worker with this key may be one that we trust, depending on where it is.
    pub(super) fn may_know(&self, key: &PublicKey) -> bool {
        self.known.knows(key) || self.is_own(key)
    }

    fn is_own(&self, key: &PublicKey) -> bool {
        self.own_worker.as_deref().and_then(PublicKey::load).as_ref() == Some(key)
    }

    /// Secures a stream to a worker that we trust.
    pub(super) async fn secure<S>(
        &self,
        stream: S,
        place: Place<'_>,
    ) -> Result<Secured<S>, Unusable>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let secured = tls::connect(stream, &self.ours, Purpose::Session, self.trust(place)).await;
        secured.map_err(|error| self.explain(&error, place))
    }

    /// Secures a stream from a worker that dialled us and that we trust.
    pub(super) async fn accept_joiner<S>(
        &self,
        stream: S,
        place: Place<'_>,
    ) -> Result<Secured<S>, Unusable>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let trust = self.trust(place);
        let secured = tls::accept(stream, &self.ours, |purpose| {
            (purpose == Purpose::Join).then(|| Arc::clone(&trust))
        });
        match secured.await {
            Ok(secured) => Ok(secured),
            Err(TlsError::UnknownKey(key)) => {
                Err(Unusable::new(TlsError::UnknownKey(key).to_string()).hint(format!(
                    "take it in with `cargo distest workers invite`, or name its key in \
                     DISTEST_KNOWN_WORKERS: {key}"
                )))
            }
            Err(TlsError::Refused) => {
                let ours = self.ours.public();
                Err(Unusable::new("the worker that dialled does not let this key in").hint(
                    format!(
                        "take it in with `cargo distest workers invite`, or add this line to its \
                     authorized_keys: {ours} run,view NAME"
                    ),
                ))
            }
            Err(error) => Err(Unusable::new(error.to_string())),
        }
    }

    /// That the worker doesn't let us in shows only once we talk.
    pub(super) fn refused(&self) -> Unusable {
        let error = TlsError::Refused;
        let unusable = Unusable::new("the worker does not let this key in");
        match error.hint(&self.ours.public()) {
            Some(hint) => unusable.hint(hint),
            None => unusable,
        }
    }

    fn trust(&self, place: Place<'_>) -> Trust {
        if let Some(pinned) = place.pinned {
            return Arc::new(move |key| *key == pinned);
        }
        let own = self.own_worker.as_deref().filter(|_| place.loopback).and_then(PublicKey::load);
        let (known, address) = (self.known.clone(), place.address.to_owned());
        Arc::new(move |key| known.trust(key, &address) || own.as_ref() == Some(key))
    }

    fn explain(&self, error: &TlsError, place: Place<'_>) -> Unusable {
        let mut reason = error.to_string();
        let mut hint = error.hint(&self.ours.public());
        if let TlsError::UnknownKey(key) = error {
            let expected = place.pinned.or_else(|| self.known.of_address(place.address).copied());
            if let Some(expected) = expected {
                reason = format!("its key is {key}, and {expected} is expected there");
                hint = Some(
                    "somebody else may answer there; if the worker has got a new key, take a new \
                     invitation: run `distest-worker invite` there"
                        .to_owned(),
                );
            }
        }
        Unusable { reason, hint, spare: None }
    }
}

fn read_known(path: &std::path::Path) -> Result<KnownWorkers, Unusable> {
    let (known, wrong) = KnownWorkers::load(path).map_err(unusable)?;
    match wrong.first() {
        Some(wrong) => Err(Unusable::new(format!("{}, {wrong}", path.display()))
            .hint("correct the line, or remove it")),
        None => Ok(known),
    }
}

fn unusable(error: IdentityError) -> Unusable {
    Unusable::new(error.to_string()).hint(error.hint())
}
