//! Proving that a client holds blobs which its worker may have from others, see [`crate::proof`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The most proofs in one call.
pub const PROOFS_MAX: usize = 10_000;
/// The most bytes that the proofs in one call are of, the largest one's not counted.
pub const PROVED_BYTES_MAX: u64 = 256 << 20;

/// What a worker asks of a client that would prove that it holds something.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Challenge {
    /// The connection's [`Nonce`](crate::proof::Nonce); empty if there is nothing here that this
    /// client could gain by proving.
    pub nonce: Bytes,
}

/// That the client holds a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Which blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The [`Mac`](crate::proof::Mac) over it.
    pub mac: Bytes,
}
