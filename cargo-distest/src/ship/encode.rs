//! A file on its way out: read, hashed and compressed on a thread of its own, a few pieces ahead.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distest_worker::digest::{Digest, Hasher};
use distest_worker::protocol::{CHUNK_BYTES_MAX, Encoding};
use tokio::sync::{mpsc, oneshot};

/// Pieces that may wait to be sent.
const PIECES_AHEAD: usize = 2;
/// Smaller files are sent as they are.
const COMPRESS_BYTES_MIN: u64 = 256;
/// Bytes read at a time.
const READ_BYTES: usize = 128 * 1024;

/// A piece of an encoded file.
pub(super) struct Piece {
    pub(super) data: Bytes,
    /// None follows.
    pub(super) last: bool,
}

/// Why there is no next piece.
#[derive(Debug)]
pub(super) enum EncodeError {
    /// The file is not as long as it was when it was opened.
    Changed,
    Read(io::Error),
}

/// A file that is being encoded. Dropping it ends the work.
pub(super) struct Encoded {
    size: u64,
    encoding: Encoding,
    pieces: mpsc::Receiver<Result<Piece, EncodeError>>,
    /// Whether its bytes have the digest.
    verified: oneshot::Receiver<bool>,
}

/// Opens a file and starts to encode it.
pub(super) async fn start(path: PathBuf, digest: Digest, level: i32) -> io::Result<Encoded> {
    let (opened_tx, opened) = oneshot::channel();
    let (pieces_tx, pieces) = mpsc::channel(PIECES_AHEAD);
    let (verified_tx, verified) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let (file, size) = match open(&path) {
            Ok(opened) => opened,
            // Whoever no longer waits needn't know.
            Err(error) => return drop(opened_tx.send(Err(error))),
        };
        let encoding = if size < COMPRESS_BYTES_MIN { Encoding::Raw } else { Encoding::Zstd };
        if opened_tx.send(Ok((size, encoding))).is_err() {
            return;
        }
        let sink = Sink { pieces: pieces_tx.clone(), buffer: Vec::new() };
        match encode(file, size, encoding, level, sink) {
            Ok(found) => drop(verified_tx.send(found == digest)),
            Err(error) => drop(pieces_tx.blocking_send(Err(error))),
        }
    });
    let (size, encoding) = opened.await.map_err(ended)??;
    Ok(Encoded { size, encoding, pieces, verified })
}

impl Encoded {
    /// Uncompressed bytes, when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The next piece; there is one until the last.
    pub(super) async fn next(&mut self) -> Result<Piece, EncodeError> {
        self.pieces.recv().await.unwrap_or_else(|| Err(EncodeError::Read(ended(()))))
    }

    /// Whether the file is not what its digest says. Reads it to its end.
    pub(super) async fn changed(mut self) -> bool {
        while self.pieces.recv().await.is_some_and(|piece| piece.is_ok()) {}
        !self.verified.await.unwrap_or(true)
    }
}

fn ended<T>(_: T) -> io::Error {
    io::Error::other("the thread that reads it has ended")
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// Encodes a file to its end; answers the digest of what was read. Nothing is the last piece of a
/// file that has another size than when it was opened.
fn encode(
    mut file: File,
    size: u64,
    encoding: Encoding,
    level: i32,
    mut sink: Sink,
) -> Result<Digest, EncodeError> {
    let mut hasher = Hasher::default();
    let read = match encoding {
        Encoding::Raw => {
            let read = pump(&mut file, &mut hasher, &mut sink, size)?;
            (read == size).then_some(sink)
        }
        Encoding::Zstd => {
            let mut encoder = zstd::Encoder::new(sink, level)?;
            // Small files need small tables only.
            encoder.set_pledged_src_size(Some(size))?;
            let read = pump(&mut file, &mut hasher, &mut encoder, size)?;
            if read == size { Some(encoder.finish()?) } else { None }
        }
    };
    read.ok_or(EncodeError::Changed)?.finish()?;
    Ok(hasher.finish().0)
}

/// Copies a file unless it is longer than `size`; answers how many bytes there were, at least.
fn pump(file: &mut File, hasher: &mut Hasher, to: &mut impl Write, size: u64) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    while total <= size {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                total += n as u64;
                if total <= size {
                    hasher.update(&buffer[..n]);
                    to.write_all(&buffer[..n])?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

impl From<io::Error> for EncodeError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Cuts what is written into pieces. Waits while too many are on their way.
struct Sink {
    pieces: mpsc::Sender<Result<Piece, EncodeError>>,
    /// Not yet sent: never more than a piece, and not empty before the last.
    buffer: Vec<u8>,
}

impl Sink {
    fn send(&mut self, last: bool) -> io::Result<()> {
        let data = std::mem::take(&mut self.buffer).into();
        let sent = self.pieces.blocking_send(Ok(Piece { data, last }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody waits for it"))
    }

    fn finish(mut self) -> io::Result<()> {
        self.send(true)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == CHUNK_BYTES_MAX {
            self.send(false)?;
        }
        let n = bytes.len().min(CHUNK_BYTES_MAX - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
