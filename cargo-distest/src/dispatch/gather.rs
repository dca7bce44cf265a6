//! Gathers an attempt's output on the client: the beginning in memory, the rest in a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use distest_worker::output::OUTPUT_BYTES_MAX;
use distest_worker::protocol::{CHUNK_BYTES_MAX, Output, Stream};

use crate::event::CapturedOutput;

/// Bytes of one stream that are kept in memory, and shown; of more, this much from either end.
const SHOWN_BYTES_MAX: usize = 1 << 20;

/// Bytes of one stream that are kept at all: as many as an honest worker keeps, and what it may send
/// on top of them.
const KEPT_BYTES_MAX: u64 = OUTPUT_BYTES_MAX + CHUNK_BYTES_MAX as u64;

/// One stream of one attempt.
#[derive(Debug, Default)]
struct Gathered {
    head: Vec<u8>,
    spill: Option<(File, PathBuf)>,
    total: u64,
    /// Why the rest isn't kept.
    lost: Option<io::Error>,
}

/// Both streams of one attempt.
#[derive(Debug)]
pub(super) struct Gather {
    streams: [Gathered; 2],
    bytes_max: u64,
}

impl Default for Gather {
    fn default() -> Self {
        Self { streams: Default::default(), bytes_max: KEPT_BYTES_MAX }
    }
}

impl Gather {
    /// Takes the next piece. A file that can't be written costs the output beyond
    /// [`SHOWN_BYTES_MAX`], never the run. What is beyond the bound is counted and dropped, as an
    /// honest worker does.
    pub(super) fn push(&mut self, stream: Stream, data: &[u8], folder: &Path, name: &str) {
        let gathered = &mut self.streams[stream as usize];
        let room = self.bytes_max.saturating_sub(gathered.total);
        let kept = &data[..usize::try_from(room).map_or(data.len(), |room| room.min(data.len()))];
        gathered.total = gathered.total.saturating_add(data.len() as u64);
        if kept.is_empty() {
            return;
        }
        if gathered.lost.is_none()
            && let Err(error) = gathered.push(kept, folder, name)
        {
            gathered.lost = Some(error);
        }
    }

    /// The stream as events carry it. `output` is what the worker said at the end.
    pub(super) fn finish(&mut self, stream: Stream, output: &Output) -> CapturedOutput {
        let gathered = std::mem::take(&mut self.streams[stream as usize]);
        if gathered.total == 0 {
            let (head, total) = (output.inline.clone(), output.total);
            return CapturedOutput { head, total, ..CapturedOutput::default() };
        }
        let total = output.total.max(gathered.total);
        let (tail, spill) = match gathered.spill {
            Some((mut file, path)) => {
                let whole = gathered.lost.is_none();
                let tail = if whole { tail(&mut file) } else { Bytes::new() };
                (tail, Some(path))
            }
            None => (Bytes::new(), None),
        };
        CapturedOutput { head: gathered.head.into(), tail, total, spill }
    }
}

impl Gathered {
    fn push(&mut self, data: &[u8], folder: &Path, name: &str) -> io::Result<()> {
        let fits = self.spill.is_none() && self.head.len() + data.len() <= SHOWN_BYTES_MAX;
        if fits {
            self.head.extend_from_slice(data);
            return Ok(());
        }
        if self.spill.is_none() {
            std::fs::create_dir_all(folder)?;
            let path = folder.join(name);
            let mut file =
                File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
            file.write_all(&self.head)?;
            self.head.truncate(SHOWN_BYTES_MAX / 2);
            self.spill = Some((file, path));
        }
        match &mut self.spill {
            Some((file, _)) => file.write_all(data),
            None => Ok(()),
        }
    }
}

/// The last bytes of a file that is longer than [`SHOWN_BYTES_MAX`].
fn tail(file: &mut File) -> Bytes {
    let mut bytes = Vec::with_capacity(SHOWN_BYTES_MAX / 2);
    let read = file
        .seek(SeekFrom::End(-((SHOWN_BYTES_MAX / 2) as i64)))
        .and_then(|_| file.read_to_end(&mut bytes));
    // What can't be read back is still in the file that the report names.
    if read.is_ok() { bytes.into() } else { Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_stays_in_memory_and_much_goes_to_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut gather = Gather::default();
        gather.push(Stream::Stdout, b"abc", folder.path(), "out");
        let chunk = vec![b'x'; 300_000];
        for _ in 0..10 {
            gather.push(Stream::Stderr, &chunk, folder.path(), "err");
        }
        let out = gather.finish(Stream::Stdout, &Output { total: 3, ..Output::default() });
        assert_eq!((&out.head[..], out.total, out.spill), (&b"abc"[..], 3, None));
        let err = gather.finish(Stream::Stderr, &Output { total: 3_000_000, ..Output::default() });
        assert_eq!((err.head.len(), err.tail.len(), err.total), (1 << 19, 1 << 19, 3_000_000));
        assert_eq!(std::fs::metadata(err.spill.unwrap()).unwrap().len(), 3_000_000);
    }

    #[test]
    fn output_without_end_is_counted_and_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut gather = Gather { bytes_max: 2_000_000, ..Gather::default() };
        let chunk = vec![b'x'; 300_000];
        for _ in 0..100 {
            gather.push(Stream::Stdout, &chunk, folder.path(), "out");
        }
        let out = gather.finish(Stream::Stdout, &Output::default());
        assert_eq!((out.total, out.tail.len()), (30_000_000, 1 << 19));
        assert_eq!(std::fs::metadata(out.spill.unwrap()).unwrap().len(), 2_000_000);
        let honest = Gather::default().bytes_max;
        assert!(honest >= OUTPUT_BYTES_MAX, "an honest worker's output is kept whole");
    }
}
