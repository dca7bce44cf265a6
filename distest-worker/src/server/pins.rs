//! What keeps a session's blobs from eviction until they are laid out.
//!
//! A client asks what is missing, sends that, and has all of it laid out; from then on the sandbox
//! has files of its own, and the store may use the room for what is to come. So a run needs no
//! larger store than its largest binary, or its tree, does. Where nobody needs the room, what a
//! session has used stays: the next one will use it again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::digest::Digest;
use crate::store::{Claim, Pin, PinRoom};

/// What a session waits for, and what it has.
#[derive(Default)]
pub(super) struct Pins {
    waiting: Vec<Pinned>,
    /// All of these is laid out.
    used: VecDeque<Pinned>,
}

/// Blobs that are kept, of one question for what is missing.
struct Pinned {
    awaited: BTreeSet<Digest>,
    pin: Pin,
    _room: PinRoom,
}

impl Pins {
    /// Keeps these blobs from now on, if they are here or when they come. Of a client that counts on
    /// too many those stay unprotected that it asks for last: what is evicted of them is sent again.
    pub(super) fn add(&mut self, claim: &Arc<Claim>, digests: &[Digest]) {
        let awaited = BTreeSet::from_iter(digests.iter().copied());
        if awaited.is_empty() {
            return;
        }
        let room = loop {
            match claim.pins(awaited.len()) {
                Some(room) => break room,
                // What was used is worth less than what will be.
                None if self.used.pop_front().is_some() => {}
                None => return,
            }
        };
        let pin = claim.store().pin(&awaited);
        self.waiting.push(Pinned { awaited, pin, _room: room });
    }

    /// These lie where tests will find them.
    pub(super) fn laid(&mut self, digests: &BTreeSet<Digest>) {
        for list in &mut self.waiting {
            list.awaited.retain(|digest| !digests.contains(digest));
        }
        for mut list in self.waiting.extract_if(.., |list| list.awaited.is_empty()) {
            list.pin.loosen();
            self.used.push_back(list);
        }
    }

    /// There was no room for this blob: nothing else is kept but what is waited for together with
    /// it. Whoever waits for the rest sends again what of it is gone.
    pub(super) fn yield_to(&mut self, digest: Digest) {
        self.waiting.retain(|list| list.awaited.contains(&digest));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::protocol::{Encoding, Freed};
    use crate::store::Store;

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
        pins.add(&claim, &[]);
        pins.add(&claim, &blobs[..2]);
        pins.add(&claim, &blobs[1..]);

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

    /// The room that lists of pins take on the disk.
    fn pinned(folder: &Path) -> u64 {
        let live = fs::read_dir(folder.join("v1/live")).unwrap().next().unwrap().unwrap().path();
        let files = fs::read_dir(live).unwrap().map(|file| file.unwrap());
        let lists = files.filter(|file| file.path().extension().is_none() && is_list(&file.path()));
        lists.map(|file| file.metadata().unwrap().len()).sum()
    }

    fn is_list(path: &Path) -> bool {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("pin-") || name.starts_with("loose-")
    }

    #[test]
    fn a_client_pins_so_much_over_all_its_connections_and_each_digest_once() {
        const LIST: usize = 100_000;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1 << 20).unwrap();
        let claims = ["greedy", "greedy", "greedy", "honest"].map(|key| store.claim(Some(key)));
        let claims = claims.map(Arc::new);
        let digests = |of: u8| -> Vec<Digest> {
            let digest = |number: u32| {
                let mut bytes = [of; 32];
                bytes[..4].copy_from_slice(&number.to_be_bytes());
                Digest::from(bytes)
            };
            (0..LIST as u32).map(digest).collect()
        };
        let mut pins = claims.each_ref().map(|_| Pins::default());
        pins[0].add(&claims[0], &vec![digests(0)[0]; LIST]);
        assert_eq!(pinned(folder.path()), 32);
        for (number, (pins, claim)) in pins.iter_mut().zip(&claims).enumerate() {
            pins.add(claim, &digests(number as u8));
        }
        assert_eq!(pinned(folder.path()), 32 + 3 * 32 * LIST as u64, "one too many of three");

        // What was used makes room for what will be.
        pins[1].laid(&digests(1).into_iter().collect());
        pins[1].add(&claims[1], &digests(4));
        assert_eq!(pins[1].used.len(), 0);
        assert_eq!(pins[1].waiting.len(), 1);
        drop(pins);
        assert_eq!(pinned(folder.path()), 0);
    }
}
