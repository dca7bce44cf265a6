//! Which attempts share what they write.

use std::collections::BTreeMap;

use crate::protocol::{AttemptId, AttemptSpec, Writes};

/// Numbers the written layers of a session's sandboxes.
#[derive(Debug)]
pub(super) struct Layers {
    writes: Writes,
    leases: u64,
    /// The leases of attempts that wait, if it matters.
    leased: BTreeMap<AttemptId, u64>,
}

impl Layers {
    pub(super) fn new(writes: Writes) -> Self {
        Self { writes, leases: 0, leased: BTreeMap::new() }
    }

    /// Takes note of a lease that was taken.
    pub(super) fn lease(&mut self, attempts: &[AttemptId]) {
        if self.writes == Writes::Lease {
            self.leases += 1;
            self.leased.extend(attempts.iter().map(|attempt| (*attempt, self.leases)));
        }
    }

    /// An attempt won't start any more.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        self.leased.remove(&attempt);
    }

    /// The layer of an attempt that is about to start. Attempts of different binaries never share
    /// one: what each needs has been laid out when its own first attempt starts.
    pub(super) fn of(&mut self, attempt: &AttemptSpec) -> u64 {
        let binary = u64::from(attempt.binary.0);
        match self.writes {
            Writes::Binary => binary,
            // Both numbers are small, and a chance equality costs nothing but cleanliness.
            Writes::Lease => {
                let lease = self.leased.remove(&attempt.id).unwrap_or_default();
                lease << 32 | binary
            }
            Writes::Test => attempt.id.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{BinaryKey, Limits, Network, Streams};

    fn attempt(id: u64, binary: u32) -> AttemptSpec {
        AttemptSpec {
            id: AttemptId(id),
            binary: BinaryKey(binary),
            args: Vec::new(),
            env: Vec::new(),
            limits: Limits::default(),
            streams: Streams::Capture,
            progress: false,
            unset: Vec::new(),
            network: Network::Host,
            places: 1,
            label: String::new(),
        }
    }

    /// Which of three attempts share a layer: the first two of one binary and lease, the third of
    /// the same binary in another lease; and a fourth of another binary in that.
    fn check(writes: Writes, expected: [bool; 3]) {
        let attempts = [attempt(1, 0), attempt(2, 0), attempt(3, 0), attempt(4, 1)];
        let mut layers = Layers::new(writes);
        layers.lease(&[AttemptId(1), AttemptId(2)]);
        layers.lease(&[AttemptId(3), AttemptId(4)]);
        let of: Vec<u64> = attempts.iter().map(|attempt| layers.of(attempt)).collect();
        assert_eq!(
            [of[0] == of[1], of[1] == of[2], of[2] == of[3]],
            expected,
            "{writes:?}: {of:?}"
        );
    }

    #[test]
    fn nothing_is_kept_of_what_does_not_wait() {
        let mut layers = Layers::new(Writes::Lease);
        layers.lease(&[AttemptId(1), AttemptId(2)]);
        layers.forget(AttemptId(1));
        layers.of(&attempt(2, 0));
        assert!(layers.leased.is_empty());
    }

    #[test]
    fn each_setting_shares_as_it_says() {
        check(Writes::Binary, [true, true, false]);
        check(Writes::Lease, [true, false, false]);
        check(Writes::Test, [false, false, false]);
    }
}
