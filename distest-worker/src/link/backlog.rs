//! How much waits to be sent to one peer over all its connections.
//!
//! A peer that doesn't read, or gives no credit, may be honest: it shows what it is sent to somebody
//! who reads slowly. So it is not cut for being slow, but only when all its connections together
//! leave more than is kept for it, and then the one that has more than its share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of memory for what waits, over all connections of a peer.
pub const BACKLOG_BYTES_MAX: usize = 256 << 20;
/// Of so many connections each may have its share, whatever the others leave.
const SHARES: usize = 128;

/// Counts what waits on the connections of a peer. Clones share it.
#[derive(Clone, Debug)]
pub struct Backlog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes_max: usize,
    bytes: AtomicUsize,
}

/// One connection's part of it. What is left is taken off when dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    of: Backlog,
    bytes: usize,
}

impl Backlog {
    /// One of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Inner { bytes_max, bytes: AtomicUsize::new(0) }))
    }

    /// Bytes that wait now.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether anybody else has it.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether both count the same connections.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Another connection's.
    pub(super) fn begin(&self) -> Waiting {
        Waiting { of: self.clone(), bytes: 0 }
    }
}

impl Default for Backlog {
    fn default() -> Self {
        Self::new(BACKLOG_BYTES_MAX)
    }
}

impl Waiting {
    /// Of this connection.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So much more waits. Answers whether that is still within what its peer may leave.
    pub(super) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let all = self.of.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let most = self.of.0.bytes_max;
        all <= most || self.bytes <= most / SHARES
    }

    /// So much no longer does.
    pub(super) fn take(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.of.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.take(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_of_a_peer_leave_no_more_than_is_kept_for_it() {
        let backlog = Backlog::new(100 * SHARES);
        let (mut large, mut small) = (backlog.begin(), backlog.begin());
        assert!(large.add(100 * SHARES - 100) && small.add(100));
        assert!(!large.add(1), "it has more than its share");
        small.take(100);
        assert!(small.add(100), "a share is everybody's");
        assert!(!small.add(1));
        drop(large);
        assert!(small.add(1));
        drop(small);
        assert_eq!(backlog.bytes(), 0);
    }
}
