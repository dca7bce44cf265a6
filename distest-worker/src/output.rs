//! Bounded capture of an attempt's output, spilling to disk.
//!
//! A [`Capture`] keeps the beginning of one stream: a little of it in memory, more in a file
//! without a name (gone with the process, even one killed), and no more than [`OUTPUT_BYTES_MAX`].
//! What is beyond that, or doesn't fit the disk any more, is counted and dropped, because a test
//! that prints too much has still passed or failed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::{CHUNK_BYTES_MAX, INLINE_OUTPUT_BYTES_MAX, Output};

/// The most bytes of one stream that are kept.
pub const OUTPUT_BYTES_MAX: u64 = 1 << 30;
/// The most bytes of one stream that stay in memory; a single [`Capture::push`] may exceed it by its
/// length until [`Capture::spill`].
pub const MEMORY_BYTES_MAX: usize = 1 << 20;

/// The beginning of one output stream, and how much there was of it.
#[derive(Debug)]
pub struct Capture {
    scratch: Arc<Path>,
    /// The first `filed` bytes of what is kept.
    file: Option<File>,
    filed: u64,
    /// What is kept after them.
    memory: Vec<u8>,
    total: u64,
    dropped: u64,
    bytes_max: u64,
}

/// What a [`Capture`] kept, piece by piece.
#[derive(Debug)]
pub struct Chunks {
    capture: Arc<Capture>,
    offset: u64,
}

impl Capture {
    /// An empty capture whose file, should it need one, lies in the folder `scratch`.
    pub fn new(scratch: Arc<Path>) -> Self {
        Self {
            scratch,
            file: None,
            filed: 0,
            memory: Vec::new(),
            total: 0,
            dropped: 0,
            bytes_max: OUTPUT_BYTES_MAX,
        }
    }

    /// The folder it was given.
    pub(crate) fn scratch(&self) -> Arc<Path> {
        Arc::clone(&self.scratch)
    }

    /// Bytes that were written.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that were written but not kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Bytes that can be read back.
    pub fn kept(&self) -> u64 {
        self.filed + self.memory.len() as u64
    }

    /// Takes in the next bytes. Never touches the disk; see [`Capture::wants_spill`].
    pub fn push(&mut self, data: &[u8]) {
        self.total += data.len() as u64;
        // Once something was dropped, so is all that follows: what is kept is a beginning.
        let room = if self.dropped > 0 { 0 } else { self.bytes_max - self.kept() };
        let taken = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.memory.extend_from_slice(&data[..taken]);
        self.dropped += (data.len() - taken) as u64;
    }

    /// Counts bytes that went elsewhere and are not for this capture to keep.
    pub fn pass(&mut self, bytes: usize) {
        self.total += bytes as u64;
    }

    /// Whether so much is in memory that [`Capture::spill`] should be called.
    pub fn wants_spill(&self) -> bool {
        self.memory.len() >= MEMORY_BYTES_MAX
    }

    /// Moves what is in memory to the disk. Blocks. What can't be written counts as dropped.
    pub fn spill(&mut self) {
        let mut rest = self.memory.as_slice();
        if self.file.is_none() {
            self.file = tempfile::tempfile_in(&self.scratch).ok();
        }
        if let Some(file) = &self.file {
            while !rest.is_empty() {
                match file.write_at(rest, self.filed) {
                    Ok(0) => break,
                    Ok(written) => {
                        self.filed += written as u64;
                        rest = &rest[written..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.dropped += rest.len() as u64;
        self.memory.clear();
    }

    /// The same for reports: all bytes if they are few, else only their number.
    pub fn to_output(&self) -> Output {
        let inline = if self.total <= INLINE_OUTPUT_BYTES_MAX as u64 && self.filed == 0 {
            Bytes::copy_from_slice(&self.memory)
        } else {
            Bytes::new()
        };
        Output { inline, total: self.total, dropped: self.dropped }
    }

    /// Reads back at most `bytes_max` bytes from `offset` on; none at the end. Blocks if they are
    /// on the disk. An error says that the disk failed.
    pub fn read_at(&self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        if let (Some(file), true) = (&self.file, offset < self.filed) {
            let wanted = (self.filed - offset).min(bytes_max as u64) as usize;
            let mut data = vec![0; wanted];
            file.read_exact_at(&mut data, offset)?;
            return Ok(data.into());
        }
        let start = usize::try_from(offset - self.filed).unwrap_or(usize::MAX);
        let rest = self.memory.get(start..).unwrap_or_default();
        Ok(Bytes::copy_from_slice(&rest[..rest.len().min(bytes_max)]))
    }

    /// What is kept, in pieces of at most [`CHUNK_BYTES_MAX`].
    pub fn into_chunks(self) -> Chunks {
        Chunks { capture: Arc::new(self), offset: 0 }
    }
}

impl Chunks {
    /// The next piece; `None` after the last. An error says that the disk failed.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let offset = self.offset;
        let data = if offset < self.capture.filed {
            let capture = Arc::clone(&self.capture);
            tokio::task::spawn_blocking(move || capture.read_at(offset, CHUNK_BYTES_MAX))
                .await
                .map_err(io::Error::other)??
        } else {
            self.capture.read_at(offset, CHUNK_BYTES_MAX)?
        };
        self.offset += data.len() as u64;
        Ok(if data.is_empty() { None } else { Some(data) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(scratch: &Path) -> Capture {
        Capture::new(scratch.into())
    }

    fn read_all(capture: Capture) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut chunks, mut all) = (capture.into_chunks(), Vec::new());
            while let Some(chunk) = chunks.next().await.unwrap() {
                assert!(chunk.len() <= CHUNK_BYTES_MAX);
                all.extend_from_slice(&chunk);
            }
            all
        })
    }

    #[test]
    fn little_output_is_inline_and_needs_no_disk() {
        let mut capture = capture(Path::new("/nonexistent"));
        capture.push(b"one ");
        capture.push(b"two");
        let output = capture.to_output();
        assert_eq!((&*output.inline, output.total, output.dropped), (&b"one two"[..], 7, 0));
        assert_eq!(read_all(capture), b"one two");
    }

    #[test]
    fn much_output_goes_through_the_disk_and_comes_back_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let mut capture = capture(scratch.path());
        let block: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut expected = Vec::new();
        for _ in 0..35 {
            capture.push(&block);
            expected.extend_from_slice(&block);
            if capture.wants_spill() {
                capture.spill();
            }
        }
        assert!(capture.filed > 0 && capture.memory.len() < MEMORY_BYTES_MAX);
        assert_eq!(capture.to_output().inline, Bytes::new());
        assert_eq!(read_all(capture), expected);
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn beyond_the_bound_bytes_are_counted_only() {
        let mut capture = capture(Path::new("/nonexistent"));
        capture.bytes_max = 10;
        capture.push(b"12345678");
        capture.push(b"90abc");
        capture.push(b"def");
        assert_eq!((capture.total(), capture.kept(), capture.dropped()), (16, 10, 6));
        assert_eq!(read_all(capture), b"1234567890");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_no_error() {
        let mut capture = capture(Path::new("/nonexistent"));
        capture.push(&vec![1; MEMORY_BYTES_MAX]);
        capture.spill();
        capture.push(b"later");
        let total = MEMORY_BYTES_MAX as u64 + 5;
        assert_eq!((capture.total(), capture.kept(), capture.dropped()), (total, 0, total));
        assert_eq!(read_all(capture), b"");
    }
}
