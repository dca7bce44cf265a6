//! Remote hands: files and folders to a worker, or from it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use distest_worker::copying::{self, Builder};
use distest_worker::link;
use distest_worker::protocol::{
    CHUNK_BYTES_MAX, FilePiece, FolderNode, FolderPage, PieceNode, TreePiece,
};
use nix::fcntl::OFlag;

use super::meant::Meant;
use super::talk::{Talk, answered};
use super::{Trouble, Undone, Unusable};
use crate::settings::FleetSettings;

/// How long one piece may take.
const PIECE: Duration = Duration::from_secs(60);
/// Files, folders and links of one folder.
const ENTRIES_MAX: usize = 1_000_000;
/// Bytes of their paths and of what links name.
const ENTRIES_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// Copies a file, or a folder with all that is in it, to a worker, with permission bits: as what
/// `to` names or, where that is a folder, under its own name into it. Files appear there when they
/// are whole; folders that are there keep their permissions.
///
/// # Errors
/// In words. Of a folder, what was copied before stays.
pub async fn put(
    settings: &FleetSettings,
    worker: Meant,
    from: &Path,
    to: &Path,
) -> Result<(), Undone> {
    let about = std::fs::metadata(from).map_err(|error| here("read", from, &error))?;
    // Read before anything is sent, so that what can't be copied is told before.
    let whole = match about.is_dir() {
        true => Some(walk(from, async |path, after| local_page(&path, &after)).await?),
        false => None,
    };
    let talk = worker.reach(settings).await?;
    let is_folder = names_folder(to) || {
        let asked = talk.worker.list_folder(link::context(PIECE), to.into(), "".into()).await;
        // What can't be looked at shows when it is written.
        answered(asked).is_ok_and(|page| page.is_folder)
    };
    let to = &into(to, is_folder, from);
    match whole {
        Some(whole) => put_folder(&talk, from, to, &whole).await?,
        None => {
            let mode = about.permissions().mode() & 0o777;
            each_piece(from, async |offset, data, last| {
                let piece = FilePiece { path: to.as_path().into(), mode, offset, data, last };
                answered(talk.worker.write_file(link::context(PIECE), piece).await)
            })
            .await?;
        }
    }
    Ok(())
}

/// The same from a worker.
///
/// # Errors
/// In words. Of a folder, what was copied before stays.
pub async fn get(
    settings: &FleetSettings,
    worker: Meant,
    from: &Path,
    to: &Path,
) -> Result<(), Undone> {
    let talk = worker.reach(settings).await?;
    let to = &into(to, names_folder(to) || to.is_dir(), from);
    let page =
        answered(talk.worker.list_folder(link::context(PIECE), from.into(), "".into()).await)?;
    if !page.is_folder {
        return Ok(get_file(&talk, from, to).await?);
    }
    let whole = walk(from, async |path, after| {
        let page = talk.worker.list_folder(link::context(PIECE), path.into(), after.into());
        answered(page.await)
    })
    .await?;
    Ok(get_folder(&talk, from, to, &whole).await?)
}

/// A path that can only be a folder's.
fn names_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Under its own name, if it goes into a folder.
fn into(to: &Path, is_folder: bool, from: &Path) -> PathBuf {
    match from.file_name() {
        Some(name) if is_folder => to.join(name),
        _ => to.to_owned(),
    }
}

/// All that lies below a folder, itself first under the empty path, each folder before what is in
/// it. `list` tells a page of a folder.
async fn walk(
    root: &Path,
    list: impl AsyncFn(PathBuf, OsString) -> Result<FolderPage, Trouble>,
) -> Result<Vec<(PathBuf, FolderNode)>, Trouble> {
    let odd = || Trouble::from(Unusable::new("it answers what was not asked"));
    let mut all = vec![(PathBuf::new(), FolderNode::Folder { mode: 0o755 })];
    let (mut at, mut bytes) = (0, 0);
    while at < all.len() {
        let (path, node) = all[at].clone();
        at += 1;
        if !matches!(node, FolderNode::Folder { .. }) {
            continue;
        }
        if path.components().count() >= copying::DEPTH_MAX {
            let what = format!("{} lies too deep", root.join(path).display());
            return Err(Unusable::new(what).into());
        }
        let mut after = OsString::new();
        loop {
            let page = list(below(root, &path), after.clone()).await?;
            all[at - 1].1 = FolderNode::Folder { mode: page.mode };
            // Without progress it would never end.
            if !page.is_folder || page.more && page.entries.is_empty() {
                return Err(odd());
            }
            for entry in page.entries {
                let name = entry.name.as_os_str();
                if !copying::is_name(name) || name <= after.as_os_str() {
                    return Err(odd());
                }
                let inner = path.join(name);
                if matches!(entry.node, FolderNode::Other {}) {
                    let inner = root.join(inner);
                    let what = format!("{} is no file, folder or link", inner.display());
                    return Err(Unusable::new(what).into());
                }
                after = name.to_owned();
                bytes += inner.as_os_str().len();
                if let FolderNode::Link { target } = &entry.node {
                    bytes += target.as_bytes().len();
                }
                all.push((inner, entry.node));
            }
            let many = match (all.len() > ENTRIES_MAX, bytes > ENTRIES_BYTES_MAX) {
                (true, _) => Some(format!("{ENTRIES_MAX} entries")),
                (_, true) => Some(format!("{ENTRIES_BYTES_MAX} bytes of names")),
                _ => None,
            };
            if let Some(many) = many {
                let what = format!("{} has more than {many}", root.display());
                return Err(Unusable::new(what).into());
            }
            if !page.more {
                break;
            }
        }
    }
    Ok(all)
}

/// What has to be made of all that [`walk`] found, in order: folders get their own permissions
/// when they have everything, the innermost first. None for a file, which comes in pieces.
fn steps(whole: &[(PathBuf, FolderNode)]) -> impl Iterator<Item = (&Path, Result<PieceNode, u32>)> {
    let making = whole.iter().map(|(path, node)| {
        let node = match node {
            FolderNode::Folder { mode } => Ok(PieceNode::Folder { mode: *mode, done: false }),
            FolderNode::File { mode, .. } => Err(*mode),
            FolderNode::Link { target } => Ok(PieceNode::Link { target: target.clone() }),
            FolderNode::Other {} => unreachable!("walk refuses it"),
        };
        (path.as_path(), node)
    });
    let done = whole.iter().rev().filter_map(|(path, node)| match node {
        FolderNode::Folder { mode } => {
            Some((path.as_path(), Ok(PieceNode::Folder { mode: *mode, done: true })))
        }
        _ => None,
    });
    making.chain(done)
}

async fn put_folder(
    talk: &Talk,
    from: &Path,
    to: &Path,
    whole: &[(PathBuf, FolderNode)],
) -> Result<(), Trouble> {
    let write = async |path: &Path, node| {
        let piece = TreePiece { root: to.into(), path: path.into(), node };
        answered(talk.worker.write_tree(link::context(PIECE), piece).await)
    };
    for (path, node) in steps(whole) {
        match node {
            Ok(node) => write(path, node).await?,
            Err(mode) => {
                each_piece(&from.join(path), async |offset, data, last| {
                    write(path, PieceNode::File { mode, offset, data, last }).await
                })
                .await?;
            }
        }
    }
    Ok(())
}

async fn get_folder(
    talk: &Talk,
    from: &Path,
    to: &Path,
    whole: &[(PathBuf, FolderNode)],
) -> Result<(), Trouble> {
    let mut builder = Builder::below(to).map_err(|error| here("write", to, &error))?;
    let mut take = |path: &Path, node: &PieceNode| {
        builder.take(path, node).map_err(|error| here("write", &below(to, path), &error))
    };
    for (path, node) in steps(whole) {
        match node {
            Ok(node) => take(path, &node)?,
            Err(mode) => {
                let remote = from.join(path);
                each_piece_there(talk, &remote, |piece| {
                    let FilePiece { offset, data, last, .. } = piece;
                    take(path, &PieceNode::File { mode, offset, data, last })
                })
                .await?;
            }
        }
    }
    Ok(())
}

async fn get_file(talk: &Talk, from: &Path, to: &Path) -> Result<(), Trouble> {
    let could_not = |error| here("write", to, &error);
    let folder = to.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".distest-").tempfile_in(folder);
    let mut file = file.map_err(could_not)?;
    let mut mode = 0;
    each_piece_there(talk, from, |piece| {
        mode = piece.mode & 0o777;
        file.write_all(&piece.data).map_err(could_not)
    })
    .await?;
    let mode = std::fs::Permissions::from_mode(mode);
    file.as_file().set_permissions(mode).map_err(could_not)?;
    file.persist(to).map_err(|error| here("write", to, &error.error))?;
    Ok(())
}

/// Hands on the pieces of a file here; the last is shorter than any other, perhaps empty.
async fn each_piece(
    from: &Path,
    send: impl AsyncFn(u64, Bytes, bool) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let could_not = |error| here("read", from, &error);
    // Opening a pipe may never end, nor may reading it or a device.
    let no_wait = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(no_wait).open(from);
    let mut file = file.map_err(could_not)?;
    if !file.metadata().map_err(could_not)?.is_file() {
        return Err(Unusable::new(format!("{} is no file", from.display())).into());
    }
    let mut offset = 0;
    loop {
        let mut data = Vec::new();
        let read = Read::by_ref(&mut file).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut data);
        let read = read.map_err(could_not)?;
        let last = read < CHUNK_BYTES_MAX;
        send(offset, data.into(), last).await?;
        offset += read as u64;
        if last {
            return Ok(());
        }
    }
}

/// Hands on the pieces of a file of the worker's, in order.
async fn each_piece_there(
    talk: &Talk,
    from: &Path,
    mut take: impl FnMut(FilePiece) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut offset = 0;
    loop {
        let piece = talk.worker.read_file(link::context(PIECE), from.into(), offset).await;
        let piece = answered(piece)?;
        // An empty piece that isn't the last would never end.
        if piece.data.is_empty() && !piece.last || piece.offset != offset {
            return Err(Unusable::new("it answers what was not asked").into());
        }
        offset += piece.data.len() as u64;
        let last = piece.last;
        take(piece)?;
        if last {
            return Ok(());
        }
    }
}

/// Without a slash behind the folder itself.
fn below(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

fn local_page(path: &Path, after: &std::ffi::OsStr) -> Result<FolderPage, Trouble> {
    copying::page(path, after).map_err(|error| here("read", path, &error))
}

fn here(what: &str, path: &Path, error: &io::Error) -> Trouble {
    Unusable::new(format!("could not {what} {} here: {error}", path.display())).into()
}

#[cfg(test)]
mod tests {
    use distest_worker::protocol::FolderEntry;

    use super::*;

    fn page(names: &[&str], node: FolderNode, more: bool) -> FolderPage {
        let entries =
            names.iter().map(|name| FolderEntry { name: (*name).into(), node: node.clone() });
        FolderPage { is_folder: true, mode: 0o700, entries: entries.collect(), more }
    }

    fn file() -> FolderNode {
        FolderNode::File { mode: 0o644, size: 1 }
    }

    #[tokio::test]
    async fn a_worker_that_names_what_is_elsewhere_is_not_believed() {
        let folder = FolderNode::Folder { mode: 0o755 };
        for odd in [
            page(&["../x"], file(), false),
            page(&[".."], folder.clone(), false),
            page(&["/etc"], file(), false),
            page(&["a/b"], file(), false),
            page(&["b", "a"], file(), false),
            page(&["a", "a"], file(), false),
            page(&["a"], FolderNode::Other {}, false),
            page(&[], file(), true),
            FolderPage::default(),
            // Folders within folders without end.
            page(&["a"], folder, false),
            // More than anybody has.
            page(&["a"], FolderNode::Link { target: "x".repeat(ENTRIES_BYTES_MAX).into() }, false),
        ] {
            let told = walk(Path::new("/there"), async |_, _| Ok(odd.clone())).await;
            assert!(told.is_err(), "{odd:?}: {told:?}");
        }
    }

    #[test]
    fn what_goes_into_a_folder_keeps_its_name() {
        let check = |to: &str, is_folder, from: &str, expected: &str| {
            assert_eq!(into(Path::new(to), is_folder, Path::new(from)), Path::new(expected));
        };
        check("/d", true, "x/f", "/d/f");
        check("/d", false, "x/f", "/d");
        check("/d", true, "x/f/", "/d/f");
        check("/d", true, ".", "/d");
        assert!(names_folder(Path::new("/d/")) && !names_folder(Path::new("/d")));
    }

    #[tokio::test]
    async fn folders_come_before_what_is_in_them_and_get_their_permissions_last() {
        let whole = walk(Path::new("/there"), async |path, after| {
            Ok(match (path.to_str().unwrap(), after.to_str().unwrap()) {
                ("/there", "") => page(&["a", "b"], file(), true),
                ("/there", "b") => page(&["d"], FolderNode::Folder { mode: 0 }, false),
                ("/there/d", "") => page(&["l"], FolderNode::Link { target: "x".into() }, false),
                other => panic!("{other:?} was asked"),
            })
        });
        let whole = whole.await.unwrap();
        let made: Vec<_> =
            steps(&whole).map(|(path, node)| (path.to_str().unwrap().to_owned(), node)).collect();
        let folder = |done| Ok(PieceNode::Folder { mode: 0o700, done });
        let link = Ok(PieceNode::Link { target: "x".into() });
        let expected = [
            ("", folder(false)),
            ("a", Err(0o644)),
            ("b", Err(0o644)),
            ("d", folder(false)),
            ("d/l", link),
            ("d", folder(true)),
            ("", folder(true)),
        ];
        assert_eq!(made, expected.map(|(path, node)| (path.to_owned(), node)));
    }
}
