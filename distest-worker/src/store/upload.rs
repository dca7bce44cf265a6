//! A blob on its way in: decoded and hashed piece by piece, never larger than it was declared.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::{Store, create_private, on_disk, storage_refusal};
use crate::digest::{Digest, Hasher};
use crate::protocol::{Encoding, Refusal, RefusalKind};

/// The largest window that a peer's frame may ask for, as a power of two: 128 MiB of memory.
const WINDOW_LOG_MAX: u32 = 27;
/// So much more room is made at a time at most, and no more than has come already.
const ROOM_BYTES_MAX: u64 = 8 << 20;
/// Bytes decoded at a time.
const DECODE_BYTES: usize = 128 * 1024;

/// A blob that is being taken in. See [`Store::begin`]; dropping it leaves nothing behind.
pub struct Upload {
    store: Store,
    digest: Digest,
    size: u64,
    pub(super) temp: PathBuf,
    decode: Decode,
    sink: Sink,
}

/// What is reserved in a store for an upload. Given back when it is dropped.
struct Room {
    store: Store,
    digest: Digest,
    size: u64,
    bytes: u64,
}

enum Decode {
    Raw,
    Zstd { decoder: Decoder<'static>, buffer: Vec<u8>, ended: bool },
}

/// Where decoded bytes go.
pub(super) struct Sink {
    pub(super) file: File,
    hasher: Hasher,
    /// Bytes that may still come.
    left: u64,
    room: Room,
}

/// Why an upload can't go on.
enum Obstacle {
    Corrupt(String),
    Io(io::Error),
    NoRoom(Refusal),
}

impl Upload {
    pub(super) fn create(
        store: Store,
        digest: Digest,
        size: u64,
        encoding: Encoding,
        temp: PathBuf,
    ) -> Result<Self, Refusal> {
        let created = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)
            .and_then(|file| Ok((file, Decode::new(encoding)?)));
        match created {
            Ok((file, decode)) => {
                let room = Room { store: store.clone(), digest, size, bytes: 0 };
                let sink = Sink { file, hasher: Hasher::default(), left: size, room };
                Ok(Self { store, digest, size, temp, decode, sink })
            }
            Err(error) => {
                let _ = fs::remove_file(&temp);
                Err(storage_refusal(format!("could not take in blob {digest}"), &error))
            }
        }
    }

    /// Takes the next encoded bytes.
    ///
    /// # Errors
    /// [`RefusalKind::Corrupt`] if they can't be decoded or make the blob longer than declared,
    /// [`RefusalKind::OutOfResources`] if there is no room for them, even after removing what nobody
    /// needs, or they can't be written. The upload is of no use then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.decode.push(bytes, &mut self.sink).map_err(|obstacle| match obstacle {
            Obstacle::Corrupt(why) => self.corrupt(&why),
            Obstacle::Io(error) => {
                storage_refusal(format!("could not store blob {}", self.digest), &error)
            }
            Obstacle::NoRoom(refusal) => refusal,
        })
    }

    /// Verifies what came and makes it a blob of the store.
    ///
    /// # Errors
    /// [`RefusalKind::Corrupt`] if something lacks or the bytes don't have the digest,
    /// [`RefusalKind::OutOfResources`] if the file can't be put into place.
    pub fn finish(mut self) -> Result<(), Refusal> {
        if matches!(self.decode, Decode::Zstd { ended: false, .. }) {
            return Err(self.corrupt("its zstd frame has no end"));
        }
        if self.sink.left != 0 {
            return Err(self.corrupt(&format!("{} bytes lack at its end", self.sink.left)));
        }
        let (found, _) = std::mem::take(&mut self.sink.hasher).finish();
        if found != self.digest {
            return Err(self.corrupt(&format!("its bytes have digest {found}")));
        }
        self.put_in_place().map_err(|error| {
            storage_refusal(format!("could not store blob {}", self.digest), &error)
        })
    }

    fn put_in_place(&self) -> io::Result<()> {
        let blob = self.store.blob(self.digest);
        if let Some(shelf) = blob.parent() {
            create_private(shelf)?;
        }
        // A blob that is here already, from another process, is replaced by its equal.
        let before = fs::symlink_metadata(&blob).map_or(0, |metadata| on_disk(metadata.len()));
        fs::rename(&self.temp, &blob)?;
        let mut usage = self.store.usage();
        usage.stored = usage.stored.saturating_sub(before) + on_disk(self.size);
        usage.unseen += on_disk(self.size);
        Ok(())
    }

    fn corrupt(&self, why: &str) -> Refusal {
        let (digest, size) = (self.digest, self.size);
        let message = format!("could not store blob {digest}, declared as {size} bytes: {why}");
        Refusal::new(RefusalKind::Corrupt, message)
    }

    #[cfg(test)]
    pub(super) fn sink(&mut self) -> &mut Sink {
        &mut self.sink
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Gone already if it became a blob; whoever opens the store next tries again otherwise.
        let _ = fs::remove_file(&self.temp);
    }
}

impl Room {
    /// Makes room for all that has come, if `written` bytes have, and a little more.
    fn hold(&mut self, written: u64) -> Result<(), Refusal> {
        if written <= self.bytes {
            return Ok(());
        }
        let ahead = written.min(ROOM_BYTES_MAX);
        let more = written.saturating_add(ahead).min(on_disk(self.size)) - self.bytes;
        self.store.reserve(self.digest, self.size, more)?;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut usage = self.store.usage();
        usage.reserved = usage.reserved.saturating_sub(self.bytes);
    }
}

impl Decode {
    fn new(encoding: Encoding) -> io::Result<Self> {
        match encoding {
            Encoding::Raw => Ok(Self::Raw),
            Encoding::Zstd => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Ok(Self::Zstd { decoder, buffer: vec![0; DECODE_BYTES], ended: false })
            }
        }
    }

    fn push(&mut self, bytes: &[u8], sink: &mut Sink) -> Result<(), Obstacle> {
        let Self::Zstd { decoder, buffer, ended } = self else {
            return sink.write(bytes);
        };
        let mut input = InBuffer::around(bytes);
        loop {
            if *ended {
                let rest = bytes.len() - input.pos();
                return match rest {
                    0 => Ok(()),
                    _ => Err(Obstacle::Corrupt(format!("{rest} bytes follow its zstd frame"))),
                };
            }
            let mut output = OutBuffer::around(buffer.as_mut_slice());
            let hint = decoder
                .run(&mut input, &mut output)
                .map_err(|error| Obstacle::Corrupt(format!("it is no zstd frame: {error}")))?;
            let (n, full) = (output.pos(), output.pos() == output.capacity());
            sink.write(&buffer[..n])?;
            *ended = hint == 0;
            // What is still inside the decoder comes out only into a buffer with room.
            if !*ended && !full && input.pos() == bytes.len() {
                return Ok(());
            }
        }
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Obstacle> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| Obstacle::Corrupt("it is longer than that".to_owned()))?;
        let written = self.room.size - self.left;
        self.room.hold(written).map_err(Obstacle::NoRoom)?;
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(Obstacle::Io)
    }
}
