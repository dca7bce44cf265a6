//! Which blobs go when the store is full. Pure: least recently used first, by bytes, pinned ones never.

use std::time::SystemTime;

use crate::digest::Digest;

/// A blob in the store, as far as eviction is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its name.
    pub digest: Digest,
    /// Bytes that it takes.
    pub size: u64,
    /// When it was last asked for, used or stored.
    pub last_use: SystemTime,
    /// Someone needs it now.
    pub pinned: bool,
}

/// The blobs to remove, oldest use first, so that at most `bytes_max` remain.
///
/// Blobs used at the same instant go in the order of their digests. When everything that may go is
/// gone and what is pinned is still too much, that is how it stays: the caller refuses what it
/// wanted to add.
pub fn choose(mut residents: Vec<Resident>, bytes_max: u64) -> Vec<Digest> {
    let mut total: u64 = residents.iter().map(|resident| resident.size).sum();
    residents.retain(|resident| !resident.pinned);
    residents.sort_by_key(|resident| (resident.last_use, resident.digest));
    let goes = residents.into_iter().take_while(|resident| {
        let over = total > bytes_max;
        total -= if over { resident.size } else { 0 };
        over
    });
    goes.map(|resident| resident.digest).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Residents are (name, size, seconds of last use, pinned).
    fn check(residents: &[(&str, u64, u64, bool)], bytes_max: u64, goes: &[&str]) {
        let residents = residents.iter().map(|&(name, size, second, pinned)| Resident {
            digest: Digest::of(name.as_bytes()),
            size,
            last_use: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
            pinned,
        });
        let goes: Vec<_> = goes.iter().map(|name| Digest::of(name.as_bytes())).collect();
        assert_eq!(choose(residents.collect(), bytes_max), goes, "bound {bytes_max}");
    }

    #[test]
    fn the_least_recently_used_go_until_the_rest_fits() {
        let residents = [("new", 10, 9, false), ("old", 10, 1, false), ("mid", 30, 5, false)];
        check(&residents, 50, &[]);
        check(&residents, 49, &["old"]);
        check(&residents, 40, &["old"]);
        check(&residents, 39, &["old", "mid"]);
        check(&residents, 0, &["old", "mid", "new"]);
        check(&[], 0, &[]);
    }

    #[test]
    fn pinned_ones_stay_even_if_they_are_too_much() {
        let residents = [("old", 10, 1, true), ("mid", 30, 5, false), ("new", 10, 9, false)];
        check(&residents, 20, &["mid"]);
        check(&residents, 5, &["mid", "new"]);
    }
}
