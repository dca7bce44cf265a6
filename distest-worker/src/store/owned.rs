//! Which blobs a client has uploaded itself, or proved to hold: only those it may use.
//!
//! Blobs are kept once, whoever sent them. What a client knows to be there is kept per key, in
//! `v1/owners/KEY`: digests of 32 bytes each, in the order in which they were added. Connections
//! and processes add to it at its end and read what others added; whatever is lost of it is proved
//! again. It names blobs that were evicted, too: their client had them, and may send them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::{Store, create_private, live};
use crate::digest::Digest;
use crate::proof::Nonce;
use crate::protocol::Proof;

const DIGEST_BYTES: usize = 32;
/// The most digests that are kept for a key: 8 MiB of them. The oldest go first.
const OWNED_MAX: usize = 256 * 1024;
/// The most keys for which digests are kept.
const KEYS_MAX: usize = 1024;
/// Stands for blobs that came from nobody with a key.
const NOBODY: &str = "nobody";

/// What one client may use of a store. Clones share everything.
#[derive(Clone)]
pub struct Owned {
    of: Option<Arc<OfKey>>,
    store: Store,
}

/// What is known of keys that are there.
pub(super) type Shared = Mutex<BTreeMap<String, Weak<OfKey>>>;

pub(super) struct OfKey {
    file: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    digests: BTreeSet<Digest>,
    /// Which file was read, and how far.
    read: (u64, u64),
}

/// Makes the folder. Blobs that are in a store that had none belong to nobody.
pub(super) fn begin(folder: &Path, has_blobs: bool) -> io::Result<()> {
    if !folder.exists() {
        create_private(folder)?;
        if has_blobs {
            File::create(folder.join(NOBODY))?.write_all(&[0; DIGEST_BYTES])?;
        }
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    if files.len() > KEYS_MAX {
        files.sort();
        let too_many = files.len() - KEYS_MAX;
        for (_, path) in &files[..too_many] {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

impl Owned {
    /// What the client with this key may use; without one it is somebody who could read the store
    /// anyway, and may use all.
    pub(super) fn of(store: &Store, key: Option<&str>) -> Self {
        let of = key.map(|key| {
            let mut shared = store.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(of) = shared.get(key).and_then(Weak::upgrade) {
                return of;
            }
            shared.retain(|_, of| of.strong_count() > 0);
            let file = store.inner.owners.join(key);
            let of = Arc::new(OfKey { file, known: Mutex::default() });
            shared.insert(key.to_owned(), Arc::downgrade(&of));
            of
        });
        Self { of, store: store.clone() }
    }

    /// Which of these blobs the client may not use, or that are not here. Of those that it may not
    /// use nothing is looked up, so how long this takes tells nothing of them.
    pub fn missing(&self, digests: &[Digest]) -> Vec<Digest> {
        let known = self.of.as_ref().map(|of| of.known());
        let there = |digest: &Digest| {
            known.as_ref().is_none_or(|known| known.digests.contains(digest))
                && self.store.contains(*digest)
        };
        digests.iter().copied().filter(|digest| !there(digest)).collect()
    }

    /// The first of these blobs that the client may not use.
    pub fn lacks<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Option<Digest> {
        let known = self.of.as_ref()?.known();
        digests.into_iter().find(|digest| !known.digests.contains(digest)).copied()
    }

    /// The client has shown that it holds these.
    pub fn add(&self, digests: &[Digest]) {
        let Some(of) = &self.of else { return self.store.note_nobodys() };
        if digests.is_empty() {
            return;
        }
        let mut known = of.known();
        known.digests.extend(digests);
        // What can't be written is proved again by the next connection.
        if of.append(digests).is_ok() && known.digests.len() > OWNED_MAX {
            let _ = of.shrink(&self.store);
        }
    }

    /// Takes proofs that the client holds blobs; answers those that are here and were proved.
    /// Comes to its end soon once the client is `gone`.
    ///
    /// How long that takes depends on the sizes that the proofs name, not on what is here.
    pub fn prove(&self, nonce: &Nonce, proofs: &[Proof], gone: &AtomicBool) -> Vec<Digest> {
        let proved = |proof: &&Proof| self.store.is_proved(nonce, proof, gone);
        let proved: Vec<Digest> = proofs.iter().filter(proved).map(|proof| proof.digest).collect();
        self.add(&proved);
        proved
    }

    /// Whether the store may hold anything that is not this client's. If not, it needs not try to
    /// prove anything.
    pub fn others_have_some(&self) -> bool {
        let Some(of) = &self.of else { return false };
        let others = fs::read_dir(&self.store.inner.owners).into_iter().flatten().flatten();
        let mut others = others.filter(|entry| entry.path() != of.file);
        others.any(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0))
    }
}

impl OfKey {
    /// What is known by now, here and in other processes.
    fn known(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // What can't be read is proved again.
        let _ = self.read(&mut known);
        known
    }

    fn read(&self, known: &mut Known) -> io::Result<()> {
        let about = fs::metadata(&self.file)?;
        if (about.ino(), about.len()) == known.read {
            return Ok(());
        }
        let mut file = File::open(&self.file)?;
        let about = file.metadata()?;
        if about.ino() != known.read.0 || about.len() < known.read.1 {
            *known = Known { digests: BTreeSet::new(), read: (about.ino(), 0) };
        }
        file.seek(SeekFrom::Start(known.read.1))?;
        let mut added = Vec::new();
        // Twice the bound: somebody may be about to shrink it.
        file.take((2 * OWNED_MAX * DIGEST_BYTES) as u64).read_to_end(&mut added)?;
        let (added, _) = added.as_chunks::<DIGEST_BYTES>();
        known.digests.extend(added.iter().map(|digest| Digest::from(*digest)));
        known.read.1 += (added.len() * DIGEST_BYTES) as u64;
        Ok(())
    }

    fn append(&self, digests: &[Digest]) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).mode(0o600).open(&self.file)?;
        // Whoever was killed while it wrote may have left a part of a digest.
        let torn = file.metadata()?.len() as usize % DIGEST_BYTES;
        let mut bytes = vec![0; (DIGEST_BYTES - torn) % DIGEST_BYTES];
        bytes.extend(digests.iter().flat_map(|digest| *digest.as_bytes()));
        // One write, so that those of others don't come between.
        file.write_all(&bytes)
    }

    /// Keeps the newer half of those that are in the store.
    fn shrink(&self, store: &Store) -> io::Result<()> {
        let _lock = live::lock_exclusive(&store.inner.lock)?;
        let (mut digests, mut seen) = (fs::read(&self.file)?, BTreeSet::new());
        let (records, _) = digests.as_chunks_mut::<DIGEST_BYTES>();
        // A digest that was added again counts from then on.
        records.reverse();
        let newest = records.iter().filter(|record| {
            let digest = Digest::from(**record);
            seen.insert(digest) && store.blob(digest).exists()
        });
        let mut kept: Vec<_> = newest.take(OWNED_MAX / 2).collect();
        kept.reverse();
        let bytes: Vec<u8> = kept.into_iter().flatten().copied().collect();
        let temp = tempfile::NamedTempFile::new_in(store.inner.live.dir())?;
        temp.as_file().write_all_at(&bytes, 0)?;
        temp.persist(&self.file)?;
        Ok(())
    }
}

/// Read only as long as somebody wants to know.
struct Wanted<'a, R> {
    content: R,
    gone: &'a AtomicBool,
}

impl<R: Read> Read for Wanted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.content.read(buffer)
    }
}

impl Store {
    /// The right to look at proofs, which one has at a time: it costs a core and the disk.
    pub(crate) async fn proving(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.inner.proving).lock_owned().await
    }

    fn is_proved(&self, nonce: &Nonce, proof: &Proof, gone: &AtomicBool) -> bool {
        if proof.size > self.inner.bytes_max {
            return false;
        }
        let blob = File::open(self.blob(proof.digest)).ok();
        let is_as_long = |blob: &File| blob.metadata().is_ok_and(|it| it.len() == proof.size);
        let proved = match blob.filter(is_as_long) {
            Some(blob) => nonce.prove(Wanted { content: blob.take(proof.size), gone }).ok(),
            None => {
                // Takes as long, so that nobody learns from the time whether there is one.
                let _ = nonce.prove(Wanted { content: io::repeat(0).take(proof.size), gone });
                None
            }
        };
        // It counts as used now.
        proved.is_some_and(|mac| mac.is(&proof.mac)) && self.contains(proof.digest)
    }

    /// Remembers that there are blobs that belong to nobody with a key.
    fn note_nobodys(&self) {
        let path = self.inner.owners.join(NOBODY);
        if !path.exists() {
            // Then others send what they could have proved to hold.
            let _ = fs::write(path, [0; DIGEST_BYTES]);
        }
    }
}
