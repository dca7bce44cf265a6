//! What keeps a session's blobs from eviction until they are laid out.
//!
//! A client asks what is missing, sends that, and has all of it laid out; from then on the sandbox
//! has files of its own, and the store may use the room for what is to come. So a run needs no
//! larger store than its largest binary, or its tree, does. Where nobody needs the room, what a
//! session has used stays: the next one will use it again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::digest::Digest;
use crate::protocol::Refusal;
use crate::store::{Claim, Hold, Pin};

/// Digests of all lists: 8 MiB of them. Beyond that the oldest list goes, and what is evicted of it
/// is sent again.
const DIGESTS_MAX: usize = 256 * 1024;
/// Lists at a time.
const LISTS_MAX: usize = 1024;

/// What a session waits for.
#[derive(Default)]
pub(super) struct Pins {
    lists: VecDeque<Pinned>,
    /// All of these is laid out.
    used: VecDeque<Pinned>,
}

/// Blobs that are kept, of one question for what is missing.
pub(super) struct Pinned {
    awaited: BTreeSet<Digest>,
    pin: Pin,
    _hold: Hold,
}

impl Pinned {
    /// Keeps these blobs from now on, if they are here or when they come.
    ///
    /// # Errors
    /// As [`Claim::hold`].
    pub(super) fn new(claim: &Arc<Claim>, digests: &[Digest]) -> Result<Self, Refusal> {
        let hold = claim.hold(size_of_val(digests) as u64)?;
        let pin = claim.store().pin(digests);
        Ok(Self { awaited: digests.iter().copied().collect(), pin, _hold: hold })
    }
}

impl Pins {
    pub(super) fn add(&mut self, pinned: Pinned) {
        if pinned.awaited.is_empty() {
            return;
        }
        self.lists.push_back(pinned);
        while self.lists.len() > LISTS_MAX || self.lists.len() > 1 && self.len() > DIGESTS_MAX {
            self.lists.pop_front();
        }
    }

    /// These lie where tests will find them.
    pub(super) fn laid(&mut self, digests: &BTreeSet<Digest>) {
        for list in &mut self.lists {
            list.awaited.retain(|digest| !digests.contains(digest));
        }
        let lists = std::mem::take(&mut self.lists).into_iter();
        let (mut done, waiting): (VecDeque<_>, _) = lists.partition(|list| list.awaited.is_empty());
        self.lists = waiting;
        done.iter_mut().for_each(|list| list.pin.loosen());
        self.used.extend(done);
        let too_many = self.used.len().saturating_sub(LISTS_MAX);
        self.used.drain(..too_many);
    }

    /// There was no room for this blob: nothing else is kept but what is waited for together with
    /// it. Whoever waits for the rest sends again what of it is gone.
    pub(super) fn yield_to(&mut self, digest: Digest) {
        self.lists.retain(|list| list.awaited.contains(&digest));
    }

    fn len(&self) -> usize {
        self.lists.iter().map(|list| list.awaited.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Encoding, Freed};
    use crate::store::Store;

    fn list(claim: &Arc<Claim>, digests: &[Digest]) -> Pinned {
        Pinned::new(claim, digests).unwrap()
    }

    #[test]
    fn blobs_are_kept_until_all_that_was_asked_for_with_them_is_laid_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 4 * 4096).unwrap();
        let blobs = [b"one", b"two", b"six"].map(|data| {
            let digest = Digest::of(data);
            let mut upload = store.begin(digest, 3, Encoding::Raw).unwrap();
            upload.push(data).unwrap();
            upload.finish().unwrap();
            digest
        });
        let claim = Arc::new(store.claim(Some("key")));
        let mut pins = Pins::default();
        pins.add(list(&claim, &[]));
        pins.add(list(&claim, &blobs[..2]));
        pins.add(list(&claim, &blobs[1..]));
        assert_eq!((pins.lists.len(), pins.len()), (2, 4));

        let here = |blobs: &[Digest]| blobs.iter().filter(|it| store.contains(**it)).count();
        // One block is free.
        let crowd = |data: &[u8]| {
            let upload = store.begin(Digest::of(data), data.len() as u64, Encoding::Raw);
            upload.unwrap().push(data).is_ok()
        };
        pins.laid(&[blobs[1]].into());
        assert!(!crowd(&[7; 2 * 4096]));
        pins.laid(&[blobs[0]].into());
        assert_eq!(store.evict_unused().unwrap(), Freed::default(), "nobody needs the room");
        assert_eq!(here(&blobs), 3);
        assert!(crowd(&[8; 2 * 4096]));
        assert_eq!((here(&blobs[..1]), here(&blobs[1..])), (0, 2));

        pins.yield_to(blobs[2]);
        assert!(!crowd(&[7; 3 * 4096]));
        pins.yield_to(blobs[0]);
        assert!(crowd(&[7; 3 * 4096]));
    }

    #[test]
    fn so_many_digests_are_kept_in_mind_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1 << 20).unwrap();
        let claim = Arc::new(store.claim(None));
        let mut pins = Pins::default();
        for number in 0..=LISTS_MAX as u64 {
            pins.add(list(&claim, &[Digest::of(&number.to_le_bytes())]));
        }
        assert_eq!(pins.lists.len(), LISTS_MAX);
        let many: Vec<_> =
            (0..DIGESTS_MAX as u64).map(|number| Digest::of(&number.to_le_bytes())).collect();
        pins.add(list(&claim, &many));
        assert_eq!((pins.lists.len(), pins.len()), (1, DIGESTS_MAX));
    }
}
