//! Giving a worker another executable, and room.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The most bytes of an executable.
pub const EXECUTABLE_BYTES_MAX: u64 = 1 << 30;

/// A piece of an executable that a worker is to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutablePiece {
    /// Of all of it.
    pub digest: Digest,
    /// All of its bytes, at most [`EXECUTABLE_BYTES_MAX`].
    pub size: u64,
    /// Bytes of it in earlier pieces.
    pub offset: u64,
    /// The next bytes, at most [`CHUNK_BYTES_MAX`](super::CHUNK_BYTES_MAX); none only asks.
    pub data: Bytes,
}

/// What a worker makes of an [`ExecutablePiece`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpgradeReply {
    /// Go on.
    More {},
    /// It is that executable already: nothing more is taken.
    Same {},
    /// It has all of it, has tried it, and becomes it when what runs has ended.
    Begun {},
}

/// What was removed from a worker's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Freed {
    /// Received files, executables of a worker among them.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}
