//! An executable on its way in: bounded, in order, verified before it gets a name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::digest::{Digest, Hasher};
use crate::protocol::{
    CHUNK_BYTES_MAX, EXECUTABLE_BYTES_MAX, ExecutablePiece, Refusal, RefusalKind,
};
use crate::store::storage_refusal;

/// An executable, or the beginning of one. Dropped, it leaves nothing.
pub(crate) struct Incoming {
    digest: Digest,
    size: u64,
    file: NamedTempFile,
    hasher: Hasher,
    written: u64,
}

impl Incoming {
    /// Begins one in a folder.
    fn begin(folder: &Path, digest: Digest, size: u64) -> io::Result<Self> {
        let file = NamedTempFile::with_prefix_in("executable-", folder)?;
        Ok(Self { digest, size, file, hasher: Hasher::default(), written: 0 })
    }

    /// Takes the next piece into `arriving`, and answers all of it when it has come. After an error
    /// nothing of it is left.
    pub(crate) fn take(
        arriving: &mut Option<Self>,
        folder: &Path,
        piece: &ExecutablePiece,
    ) -> Result<Option<Self>, Refusal> {
        let invalid = |why: String| {
            let message = format!("could not take the executable {}: {why}", piece.digest);
            Refusal::new(RefusalKind::Invalid, message)
        };
        let full = |error: io::Error| {
            storage_refusal(format!("could not keep the executable {}", piece.digest), &error)
        };
        let before = arriving.take();
        if piece.size == 0 || piece.size > EXECUTABLE_BYTES_MAX {
            let bytes = piece.size;
            return Err(invalid(format!("it has {bytes} bytes, not 1 to {EXECUTABLE_BYTES_MAX}")));
        }
        if piece.data.len() > CHUNK_BYTES_MAX {
            return Err(invalid(format!("a piece has more than {CHUNK_BYTES_MAX} bytes")));
        }
        let mut this = match before {
            _ if piece.offset == 0 => {
                Self::begin(folder, piece.digest, piece.size).map_err(full)?
            }
            Some(begun)
                if (begun.digest, begun.size, begun.written)
                    == (piece.digest, piece.size, piece.offset) =>
            {
                begun
            }
            _ => return Err(invalid("its pieces don't come in order".to_owned())),
        };
        this.written += piece.data.len() as u64;
        if this.written > this.size {
            return Err(invalid(format!("it is longer than {} bytes", this.size)));
        }
        this.hasher.update(&piece.data);
        this.file.write_all(&piece.data).map_err(full)?;
        if this.written < this.size {
            *arriving = Some(this);
            return Ok(None);
        }
        let (found, _) = std::mem::take(&mut this.hasher).finish();
        if found != this.digest {
            return Err(invalid(format!("its bytes have digest {found}")));
        }
        Ok(Some(this))
    }

    /// Gives it its name in a folder, and locks it so that nobody removes it.
    pub(super) fn place(self, folder: &Path) -> io::Result<(PathBuf, File)> {
        // Other workers that share the store have their own.
        let path = folder.join(format!("{}-{}", self.digest, std::process::id()));
        self.file.as_file().set_permissions(fs::Permissions::from_mode(0o700))?;
        self.file.persist(&path).map_err(|error| error.error)?;
        // What is written can't be executed: this is another descriptor.
        let file = File::open(&path)?;
        file.lock_shared()?;
        Ok((path, file))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn piece(whole: &[u8], size: u64, from: usize, to: usize) -> ExecutablePiece {
        ExecutablePiece {
            digest: Digest::of(whole),
            size,
            offset: from as u64,
            data: Bytes::copy_from_slice(&whole[from..to]),
        }
    }

    #[test]
    fn it_gets_its_name_when_it_is_whole_and_has_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let mut arriving = None;
        let mut take = |piece| Incoming::take(&mut arriving, folder.path(), &piece);
        assert!(take(piece(b"onetwo", 6, 0, 3)).unwrap().is_none());
        let whole = take(piece(b"onetwo", 6, 3, 6)).unwrap().expect("it is whole");
        let (path, _lock) = whole.place(folder.path()).unwrap();
        assert!(path.to_str().unwrap().contains(&Digest::of(b"onetwo").to_string()));
        assert_eq!(fs::read(&path).unwrap(), b"onetwo");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_what_it_says_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut arriving = None;
        let mut take = |piece| Incoming::take(&mut arriving, folder.path(), &piece);
        let other = ExecutablePiece { digest: Digest::of(b"x"), ..piece(b"onetwo", 6, 0, 6) };
        let large = ExecutablePiece { size: EXECUTABLE_BYTES_MAX + 1, ..piece(b"a", 1, 0, 1) };
        let wide = vec![0; CHUNK_BYTES_MAX + 1];
        for odd in [
            other,
            large,
            piece(&wide, wide.len() as u64, 0, wide.len()),
            piece(b"onetwo", 0, 0, 0),
            piece(b"onetwo", 5, 0, 6),
            piece(b"onetwo", 6, 3, 6),
        ] {
            let offset = odd.offset;
            assert!(take(odd).is_err(), "from {offset}");
        }
        assert!(take(piece(b"onetwo", 6, 0, 3)).unwrap().is_none());
        // Of another one.
        assert!(take(piece(b"onesix", 6, 3, 6)).is_err());
        assert!(take(piece(b"onetwo", 6, 3, 6)).is_err(), "it is gone");
        drop(arriving);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
