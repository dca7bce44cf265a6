//! What has passed over a link that outlives its connections. Pure.
//!
//! Each end counts the bytes that it has sent and those that it has received since the link began,
//! over all connections. What it has sent it keeps until the other end says how far it has got; so
//! a new connection goes on at the byte where the old one broke off. Acknowledgements are frames of
//! the link's own and travel beside others, so they cost next to nothing.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// Bytes that are kept for a peer that has not acknowledged them; beyond it nothing more is sent. As
/// much as the largest window of bulk, and as much again of all else.
pub(super) const KEPT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// So much more may be kept of acknowledgements, which are sent all the same: both ends could be
/// waiting for one.
const ACKNOWLEDGING_BYTES_MAX: u64 = 64 * 1024;
/// After so many bytes one is sent by itself.
const ALONE_AFTER: u64 = 128 * 1024;
/// After so many one travels with whatever else is sent.
const BESIDE_AFTER: u64 = 4 * 1024;

/// One end's view of both directions, in bytes since the link began.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// What was sent and not acknowledged, oldest first.
    kept: VecDeque<Bytes>,
    acknowledged: u64,
    sent: u64,
    received: u64,
    /// How much of that the peer was told.
    told: u64,
}

impl Record {
    /// Whether more may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.kept_bytes() < KEPT_BYTES_MAX
    }

    /// What is kept, in bytes.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.sent - self.acknowledged
    }

    /// These are about to be sent.
    pub(super) fn send(&mut self, bytes: Bytes) {
        self.sent += bytes.len() as u64;
        self.kept.push_back(bytes);
    }

    /// So many more arrived.
    pub(super) fn receive(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// How many arrived.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether the peer should be told now, by a frame that travels alone or beside others.
    pub(super) fn is_due(&self, beside: bool) -> bool {
        let after = if beside { BESIDE_AFTER } else { ALONE_AFTER };
        self.received - self.told >= after
            && self.kept_bytes() < KEPT_BYTES_MAX + ACKNOWLEDGING_BYTES_MAX
    }

    /// What to tell it.
    pub(super) fn tell(&mut self) -> u64 {
        self.told = self.received;
        self.received
    }

    /// The peer has got this far. Answers how many bytes are no longer kept; none if they were
    /// never sent. What it said before the last connection broke is old news by now.
    pub(super) fn acknowledge(&mut self, total: u64) -> Option<u64> {
        if total > self.sent {
            return None;
        }
        let fresh = total.saturating_sub(self.acknowledged);
        let mut left = fresh;
        while left > 0
            && let Some(oldest) = self.kept.front_mut()
        {
            let whole = oldest.len() as u64;
            if whole > left {
                oldest.advance(left as usize);
                break;
            }
            left -= whole;
            self.kept.pop_front();
        }
        self.acknowledged += fresh;
        Some(fresh)
    }

    /// On a new connection the peer says that it has got this far. Answers what to send again; none
    /// if that leaves a gap, or it names what was never sent.
    pub(super) fn since(&mut self, total: u64) -> Option<Vec<Bytes>> {
        if total < self.acknowledged {
            return None;
        }
        self.acknowledge(total)?;
        Some(self.kept.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One direction's worth of an end, with the connection's bytes that are on the way to the other.
    #[derive(Default)]
    struct End {
        record: Record,
        /// Numbered bytes that were given to it to send.
        given: u64,
        on_the_way: VecDeque<u8>,
        got: Vec<u8>,
    }

    fn pattern(at: u64) -> u8 {
        (at ^ (at >> 8) ^ (at >> 16)) as u8
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// This end sends so many bytes.
        Send(bool, u16),
        /// So many of those on the way arrive at this end.
        Arrive(bool, u16),
        /// This end tells how far it has got; heard at once, or lost.
        Tell(bool, bool),
        /// All on the way is lost, and both go on.
        Break,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (any::<bool>(), 0..700_u16).prop_map(|(end, bytes)| Step::Send(end, bytes)),
            4 => (any::<bool>(), 0..700_u16).prop_map(|(end, bytes)| Step::Arrive(end, bytes)),
            2 => (any::<bool>(), any::<bool>()).prop_map(|(end, heard)| Step::Tell(end, heard)),
            1 => Just(Step::Break),
        ];
        proptest::collection::vec(step, 1..200)
    }

    fn resume(ends: &mut [End; 2]) {
        let received = [ends[0].record.received(), ends[1].record.received()];
        for (end, peer_has) in ends.iter_mut().zip([received[1], received[0]]) {
            end.on_the_way.clear();
            let again = end.record.since(peer_has).expect("no gap, whatever was lost");
            end.on_the_way.extend(again.iter().flatten());
        }
    }

    proptest! {
        #[test]
        fn wherever_it_breaks_each_byte_arrives_once_and_in_order(steps in steps()) {
            let mut ends: [End; 2] = Default::default();
            for step in steps {
                match step {
                    Step::Send(end, bytes) => {
                        let end = &mut ends[usize::from(end)];
                        if !end.record.has_room() {
                            continue;
                        }
                        let new = end.given..end.given + u64::from(bytes);
                        end.given = new.end;
                        let new: Bytes = new.map(pattern).collect();
                        end.on_the_way.extend(&new);
                        end.record.send(new);
                    }
                    Step::Arrive(end, bytes) => {
                        let from = &mut ends[usize::from(!end)].on_the_way;
                        let bytes = usize::from(bytes).min(from.len());
                        let arrived: Vec<u8> = from.drain(..bytes).collect();
                        let end = &mut ends[usize::from(end)];
                        end.record.receive(bytes);
                        end.got.extend(arrived);
                    }
                    Step::Tell(end, heard) => {
                        let total = ends[usize::from(end)].record.tell();
                        if heard {
                            let peer = &mut ends[usize::from(!end)].record;
                            prop_assert!(peer.acknowledge(total).is_some());
                        }
                    }
                    Step::Break => resume(&mut ends),
                }
                for end in &ends {
                    let kept: usize = end.record.kept.iter().map(Bytes::len).sum();
                    prop_assert_eq!(kept as u64, end.record.kept_bytes());
                    prop_assert!(kept as u64 <= KEPT_BYTES_MAX + u64::from(u16::MAX));
                }
            }
            resume(&mut ends);
            let [a, b] = &ends;
            for (from, to) in [(a, b), (b, a)] {
                let all: Vec<u8> = to.got.iter().copied().chain(from.on_the_way.iter().copied()).collect();
                prop_assert_eq!(all.len() as u64, from.given);
                prop_assert!(all.iter().zip(0..).all(|(byte, at)| *byte == pattern(at)));
            }
        }
    }

    #[test]
    fn gaps_and_what_was_never_sent_are_errors() {
        let mut record = Record::default();
        record.send(Bytes::from_static(b"0123456789"));
        assert_eq!(record.acknowledge(4), Some(4));
        assert_eq!(record.acknowledge(3), Some(0), "said before it broke");
        assert_eq!(record.since(3), None, "that is gone");
        assert_eq!(record.since(11), None);
        assert_eq!(record.acknowledge(11), None);
        assert_eq!(record.since(6), Some(vec![Bytes::from_static(b"6789")]));
        assert_eq!(record.since(10), Some(vec![]));
    }

    #[test]
    fn who_acknowledges_nothing_is_sent_no_more_and_acknowledgements_least() {
        let mut record = Record::default();
        record.send(vec![0; KEPT_BYTES_MAX as usize].into());
        assert!(!record.has_room());
        record.receive(ALONE_AFTER as usize);
        assert!(record.is_due(false), "or both ends would wait for each other");
        record.send(vec![0; ACKNOWLEDGING_BYTES_MAX as usize].into());
        assert!(!record.is_due(false));
        record.acknowledge(record.sent);
        assert!(record.has_room() && record.is_due(false));
        assert_eq!(record.tell(), ALONE_AFTER);
        assert!(!record.is_due(true), "it is told once");
    }
}
