//! Whether several tests of a binary may run in one process, found out once per binary.
//!
//! The binary is started without a test to run, which shows whether libtest's log file works and
//! what a start costs; after an edit, what is known of its libtest stays. A binary that knows
//! cargo-nextest's variables, or ours, may rely on a process per test: the bytes of such names in
//! what is loaded of it are enough to leave it alone.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::iter;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use distest_worker::protocol::Exit;
use memchr::memmem;
use object::elf::{FileHeader32, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind, ReadCache};
use serde::{Deserialize, Serialize};

use super::Lister;
use crate::model::{Sharing, TestBinary};

/// Texts in what is loaded of an executable that speak of a process per test.
const TELLING: [&[u8]; 2] = [b"NEXTEST_", b"DISTEST_"];
/// What they all end in: one search finds them.
const TELLING_END: &[u8] = b"TEST_";
/// Bytes of an executable that are looked at at a time.
const SCAN_BYTES: usize = 256 << 10;
/// A name that no test has.
const NO_TEST: &str = "cargo distest asks for no test";

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Probe {
    /// Its tests may share a process.
    Shares {
        /// What a start costs.
        start_us: u64,
    },
    /// They may not.
    Alone,
}

impl Probe {
    pub(super) fn sharing(self) -> Option<Sharing> {
        match self {
            Self::Shares { start_us } => {
                Some(Sharing { start_cost: Duration::from_micros(start_us) })
            }
            Self::Alone => None,
        }
    }
}

/// Finds out. What goes wrong here only costs time later: each test then has its own process.
///
/// `known` was found out of another binary with the same libtest, and of much the same start.
pub(super) async fn probe(
    lister: &impl Lister,
    binary: &TestBinary,
    known: Option<Sharing>,
) -> Probe {
    let executable = binary.executable.clone();
    let scan = tokio::task::spawn_blocking(move || speaks_of_it(&executable)).await;
    if !matches!(scan, Ok(Ok(false))) {
        return Probe::Alone;
    }
    let start = match known {
        Some(Sharing { start_cost }) => Some(start_cost),
        None => start(lister, binary).await,
    };
    start.map_or(Probe::Alone, |start| {
        let start_us = u64::try_from(start.as_micros()).unwrap_or(u64::MAX);
        Probe::Shares { start_us }
    })
}

/// What a start without a test costs; none if libtest's log file doesn't work.
async fn start(lister: &impl Lister, binary: &TestBinary) -> Option<Duration> {
    let folder = tempfile::tempdir().ok()?;
    let log = folder.path().join("log");
    let args = ["--exact", NO_TEST, "--test-threads=1", "--quiet", "--logfile", log.to_str()?];
    let began = Instant::now();
    let raw = lister.run(binary, &args).await.ok()?;
    let took = began.elapsed();
    (raw.exit == Exit::Code(0) && log.exists()).then_some(took)
}

/// Whether what is loaded of an executable holds one of the texts. The rest, most of it debug
/// information, is nothing that the program could go by.
fn speaks_of_it(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    for Range { start, end } in loaded(&file) {
        file.seek(SeekFrom::Start(start))?;
        if holds((&file).take(end - start))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which bytes of an executable are loaded; all, if it is none that is known here.
fn loaded(file: &File) -> Vec<Range<u64>> {
    let cache = ReadCache::new(file);
    let segments = match FileKind::parse(&cache) {
        Ok(FileKind::Elf64) => segments::<FileHeader64<Endianness>>(&cache),
        Ok(FileKind::Elf32) => segments::<FileHeader32<Endianness>>(&cache),
        _ => None,
    };
    segments.unwrap_or_else(|| iter::once(0..u64::MAX).collect())
}

fn segments<H: FileHeader<Endian = Endianness>>(
    data: &ReadCache<&File>,
) -> Option<Vec<Range<u64>>> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?.iter();
    let loaded = segments.filter(|segment| segment.p_type(endian) == PT_LOAD);
    let ranges = loaded.map(|segment| segment.file_range(endian));
    Some(ranges.map(|(start, length)| start..start.saturating_add(length)).collect())
}

/// Whether a stream holds one of the texts.
fn holds(mut stream: impl Read) -> io::Result<bool> {
    let finder = memmem::Finder::new(TELLING_END);
    let overlap = TELLING.iter().map(|text| text.len()).max().unwrap_or(1) - 1;
    let mut buffer = vec![0; SCAN_BYTES + overlap];
    let mut kept = 0;
    loop {
        let length = stream.read(&mut buffer[kept..])?;
        if length == 0 {
            return Ok(false);
        }
        let filled = kept + length;
        let mut ends = finder.find_iter(&buffer[..filled]).map(|at| at + TELLING_END.len());
        if ends.any(|end| TELLING.iter().any(|text| buffer[..end].ends_with(text))) {
            return Ok(true);
        }
        // A text may begin in this piece and end in the next.
        let next = filled.min(overlap);
        buffer.copy_within(filled - next..filled, 0);
        kept = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let found = |at: usize, text: &[u8]| {
            let mut bytes = vec![b'x'; at];
            bytes.extend_from_slice(text);
            bytes.extend_from_slice(b"yyy");
            std::fs::write(&path, bytes).unwrap();
            speaks_of_it(&path).unwrap()
        };
        for at in [0, 5, SCAN_BYTES - 4, SCAN_BYTES, SCAN_BYTES + 3, 3 * SCAN_BYTES - 1] {
            assert!(found(at, b"NEXTEST_RUN_ID") && found(at, b"DISTEST_"), "at {at}");
            assert!(!found(at, b"NEXTEST-") && !found(at, b"THE_TEST_"), "at {at}");
        }
        assert!(!found(0, b""));
    }
    #[test]
    fn what_is_loaded_is_looked_at() {
        let own = std::env::current_exe().unwrap();
        assert!(speaks_of_it(&own).unwrap(), "it names TELLING");
        let ranges = loaded(&File::open(&own).unwrap());
        let length = std::fs::metadata(&own).unwrap().len();
        assert!(ranges.len() > 1 && ranges.iter().all(|range| range.end <= length), "{ranges:?}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("executable");
        std::fs::copy("/bin/true", &path).unwrap();
        assert!(!speaks_of_it(&path).unwrap());
        // Behind all segments, as debug information lies.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"NEXTEST_");
        std::fs::write(&path, &bytes).unwrap();
        assert!(!speaks_of_it(&path).unwrap());
        // At the end of the last one.
        let end = loaded(&File::open(&path).unwrap()).iter().map(|it| it.end).max().unwrap();
        let end = usize::try_from(end).unwrap();
        bytes[end - 8..end].copy_from_slice(b"NEXTEST_");
        std::fs::write(&path, &bytes).unwrap();
        assert!(speaks_of_it(&path).unwrap());
    }
}
