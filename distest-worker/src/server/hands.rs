//! Remote hands: files and folders of the worker's user to the client, or from it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::NamedTempFile;

use super::files::blocking;
use crate::copying::{self, Builder};
use crate::protocol::{
    CHUNK_BYTES_MAX, FilePiece, FolderPage, OsText, Refusal, RefusalKind, TreePiece,
};

/// A connection's file on its way in; what is unfinished goes with the connection.
#[derive(Clone, Default)]
pub(super) struct Hands {
    incoming: Arc<Mutex<Option<Incoming>>>,
    tree: Arc<Mutex<Option<(PathBuf, Builder)>>>,
}

struct Incoming {
    path: PathBuf,
    file: NamedTempFile,
    written: u64,
}

impl Hands {
    /// A piece of a file.
    pub(super) async fn read(&self, path: OsText, offset: u64) -> Result<FilePiece, Refusal> {
        blocking(move || {
            let at = absolute(&path)?;
            read(&at, path, offset).map_err(|error| refusal("read", &at, &error))
        })
        .await
    }

    /// The next piece; the file is there under its name when it has all.
    pub(super) async fn write(&self, piece: FilePiece) -> Result<(), Refusal> {
        let incoming = Arc::clone(&self.incoming);
        blocking(move || {
            let path = absolute(&piece.path)?;
            if piece.data.len() > CHUNK_BYTES_MAX {
                let message = format!("a piece has more than {CHUNK_BYTES_MAX} bytes");
                return Err(Refusal::new(RefusalKind::Invalid, message));
            }
            let mut incoming = incoming.lock().unwrap_or_else(PoisonError::into_inner);
            write(&mut incoming, &path, &piece).map_err(|error| refusal("write", &path, &error))
        })
        .await
    }

    /// The next page of a folder.
    pub(super) async fn list(&self, path: OsText, after: OsText) -> Result<FolderPage, Refusal> {
        blocking(move || {
            let at = absolute(&path)?;
            let page = copying::page(&at, after.as_os_str());
            page.map_err(|error| refusal("read", &at, &error))
        })
        .await
    }

    /// The next piece of a folder.
    pub(super) async fn write_tree(&self, piece: TreePiece) -> Result<(), Refusal> {
        // What replaces something has the same name for a moment, whoever copies.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let tree = Arc::clone(&self.tree);
        blocking(move || {
            let root = absolute(&piece.root)?;
            let at = root.join(piece.path.as_path());
            let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
            let mut taken = || {
                let (_, builder) = match tree.as_mut() {
                    Some(begun) if begun.0 == root => begun,
                    _ => tree.insert((root.clone(), Builder::below(&root)?)),
                };
                builder.take(piece.path.as_path(), &piece.node)
            };
            taken().map_err(|error| refusal("write", &at, &error))
        })
        .await
    }
}

fn absolute(path: &OsText) -> Result<PathBuf, Refusal> {
    let path = path.as_path();
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let message = format!("could not find {}: it is no absolute path", path.display());
    Err(Refusal::new(RefusalKind::Invalid, message).with_hint("write it as NAME:/PATH"))
}

fn read(at: &Path, path: OsText, offset: u64) -> io::Result<FilePiece> {
    let about = fs::metadata(at)?;
    // Reading a pipe or a device may never end.
    if !about.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut file = File::open(at)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(CHUNK_BYTES_MAX as u64).read_to_end(&mut data)?;
    let last = data.len() < CHUNK_BYTES_MAX;
    let mode = about.permissions().mode() & 0o777;
    Ok(FilePiece { path, mode, offset, data: data.into(), last })
}

fn write(incoming: &mut Option<Incoming>, path: &Path, piece: &FilePiece) -> io::Result<()> {
    if piece.offset == 0 {
        let folder = path.parent().ok_or_else(|| io::Error::other("it is a folder"))?;
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let file = tempfile::Builder::new().prefix(".distest-").tempfile_in(folder)?;
        *incoming = Some(Incoming { path: path.to_owned(), file, written: 0 });
    }
    // Taken out: after an error it is gone.
    let Some(mut begun) = incoming.take_if(|it| it.path == path && it.written == piece.offset)
    else {
        *incoming = None;
        return Err(io::Error::other("its pieces don't come in order"));
    };
    begun.file.write_all(&piece.data)?;
    begun.written += piece.data.len() as u64;
    if piece.last {
        let mode = fs::Permissions::from_mode(piece.mode & 0o777);
        begun.file.as_file().set_permissions(mode)?;
        begun.file.persist(path).map_err(|error| error.error)?;
        return Ok(());
    }
    *incoming = Some(begun);
    Ok(())
}

fn refusal(what: &str, path: &Path, error: &io::Error) -> Refusal {
    let message = format!("could not {what} {} there: {error}", path.display());
    Refusal::new(RefusalKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(path: &Path, offset: u64, data: &[u8], last: bool) -> FilePiece {
        let data = bytes::Bytes::copy_from_slice(data);
        FilePiece { path: path.into(), mode: 0o4751, offset, data, last }
    }

    #[tokio::test]
    async fn a_file_is_there_when_all_of_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let hands = Hands::default();
        hands.write(piece(&path, 0, b"one", false)).await.unwrap();
        assert!(!path.exists());
        hands.write(piece(&path, 3, b"two", true)).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"onetwo");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o751);
        let read = hands.read(path.as_path().into(), 3).await.unwrap();
        assert_eq!((&read.data[..], read.mode, read.last), (&b"two"[..], 0o751, true));
    }

    #[tokio::test]
    async fn what_is_unfinished_or_odd_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let hands = Hands::default();
        hands.write(piece(&path, 0, b"one", false)).await.unwrap();
        assert!(hands.write(piece(&path, 9, b"x", true)).await.is_err(), "out of order");
        assert!(hands.write(piece(&path, 3, b"x", true)).await.is_err(), "it is gone");
        hands.write(piece(&path, 0, b"one", false)).await.unwrap();
        drop(hands);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let hands = Hands::default();
        for odd in [folder.path(), Path::new("a"), Path::new("/dev/zero"), Path::new("/")] {
            assert!(hands.read(odd.into(), 0).await.is_err(), "{odd:?}");
        }
        for odd in [folder.path(), Path::new("a"), Path::new("/")] {
            assert!(hands.write(piece(odd, 0, b"x", true)).await.is_err(), "{odd:?}");
        }
        let long = vec![0; CHUNK_BYTES_MAX + 1];
        assert!(hands.write(piece(&path, 0, &long, true)).await.is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
