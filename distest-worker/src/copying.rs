//! Copying folders of a user's between machines: reading them page by page, and building them
//! below a folder that nothing leads out of.
//!
//! Both ends use both: who copies to a worker reads here and builds there, and the other way
//! round. Links are copied as links and never followed, not even those that are at the target
//! already.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::protocol::{CHUNK_BYTES_MAX, FolderEntry, FolderNode, FolderPage, PieceNode};
use crate::sandbox::beneath::Beneath;

/// Entries of one page: with long names and links' texts it is still a message of some MiB.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// Folders within each other.
pub const DEPTH_MAX: usize = 64;
/// Folders that are made and have not got all yet.
const FOLDERS_MAX: usize = 1_000_000;
/// Bytes of a link's text, as Linux bounds it.
const TARGET_BYTES_MAX: usize = 4096;

/// The next page of what lies in a folder, in order of name, after the name `after`. A path that
/// leads to something else yields a page that says so.
///
/// # Errors
/// It can't be read.
pub fn page(path: &Path, after: &OsStr) -> io::Result<FolderPage> {
    let about = fs::metadata(path)?;
    if !about.is_dir() {
        return Ok(FolderPage::default());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name.as_os_str() > after {
            names.push(name);
        }
    }
    names.sort();
    let more = names.len() > PAGE_ENTRIES_MAX;
    names.truncate(PAGE_ENTRIES_MAX);
    let mut entries = Vec::new();
    for name in names {
        let at = path.join(&name);
        let node = match fs::symlink_metadata(&at) {
            Ok(about) => node(&at, &about)?,
            // Gone since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        entries.push(FolderEntry { name: name.into(), node });
    }
    Ok(FolderPage { is_folder: true, mode: mode(&about), entries, more })
}

fn node(at: &Path, about: &Metadata) -> io::Result<FolderNode> {
    let kind: FileType = about.file_type();
    Ok(if kind.is_dir() {
        FolderNode::Folder { mode: mode(about) }
    } else if kind.is_file() {
        FolderNode::File { mode: mode(about), size: about.len() }
    } else if kind.is_symlink() {
        FolderNode::Link { target: fs::read_link(at)?.into() }
    } else {
        FolderNode::Other {}
    })
}

fn mode(about: &Metadata) -> u32 {
    about.permissions().mode() & 0o777
}

/// Builds what arrives, below one folder. Folders that are there already keep their permissions.
pub struct Builder {
    beneath: Beneath,
    folder: PathBuf,
    /// Folders that were made here and have not got all yet.
    made: BTreeSet<PathBuf>,
    incoming: Option<Incoming>,
}

/// A file on its way in. Its bytes have no name until it has all.
struct Incoming {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Builder {
    /// Below this folder, which is made if it isn't there; its parent must be. A link to a folder
    /// is followed: this one was named.
    ///
    /// # Errors
    /// It can't be made, or isn't a folder.
    pub fn below(folder: &Path) -> io::Result<Self> {
        let mut made = BTreeSet::new();
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) => _ = made.insert(PathBuf::new()),
            Err(_) => {}
        }
        let folder = fs::canonicalize(folder)?;
        Ok(Self { beneath: Beneath::among_others(&folder)?, folder, made, incoming: None })
    }

    /// Takes the next piece, of what lies at a path below the folder; the folder itself is the
    /// empty one. Folders are made first and get their own permissions last.
    ///
    /// # Errors
    /// The path leads elsewhere, a folder is where something else is to be or the other way round,
    /// pieces don't come in order, or writing failed.
    pub fn take(&mut self, path: &Path, node: &PieceNode) -> io::Result<()> {
        check(path)?;
        if !matches!(node, PieceNode::File { .. }) {
            self.incoming = None;
        }
        if path.as_os_str().is_empty() {
            return match node {
                PieceNode::Folder { mode, done: true } if self.made.remove(path) => {
                    self.beneath.own_mode(*mode)
                }
                PieceNode::Folder { .. } => Ok(()),
                _ => Err(io::Error::other("it is a folder")),
            };
        }
        let at = Path::new("/").join(path);
        match node {
            PieceNode::Folder { mode, done: false } => {
                if self.made.len() >= FOLDERS_MAX {
                    return Err(io::Error::other("there are too many folders"));
                }
                if self.beneath.slot(&at)?.new_folder(*mode & 0o777)? {
                    self.made.insert(path.to_owned());
                }
                Ok(())
            }
            PieceNode::Folder { mode, done: true } => match self.made.remove(path) {
                true => self.beneath.slot(&at)?.folder_mode(*mode & 0o777),
                false => Ok(()),
            },
            PieceNode::Link { target } if target.as_os_str().len() > TARGET_BYTES_MAX => {
                Err(io::ErrorKind::InvalidFilename.into())
            }
            PieceNode::Link { target } => self.beneath.slot(&at)?.link(target.as_path()),
            PieceNode::File { mode, offset, data, last } => {
                if data.len() > CHUNK_BYTES_MAX {
                    return Err(io::Error::other("a piece is too large"));
                }
                if *offset == 0 {
                    let file = tempfile::tempfile_in(&self.folder)?;
                    self.incoming = Some(Incoming { path: path.to_owned(), file, written: 0 });
                }
                // Taken out: after an error it is gone.
                let begun = self.incoming.take();
                let begun = begun.filter(|it| it.path == path && it.written == *offset);
                let mut begun =
                    begun.ok_or_else(|| io::Error::other("its pieces don't come in order"))?;
                begun.file.write_all(data)?;
                begun.written += data.len() as u64;
                if !last {
                    self.incoming = Some(begun);
                    return Ok(());
                }
                begun.file.rewind()?;
                self.beneath
                    .slot(&at)?
                    .file(*mode, |mut to| io::copy(&mut begun.file, &mut to).map(|_| ()))
            }
        }
    }
}

/// Only names of files and folders, and not too many.
fn check(path: &Path) -> io::Result<()> {
    let plain = path.components().all(|it| matches!(it, Component::Normal(_)));
    if !plain || path.components().count() > DEPTH_MAX {
        let what = format!("{} does not lie in the folder", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// Whether this is the name of something in a folder, and nothing that leads elsewhere.
pub fn is_name(name: &OsStr) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(it)), None) if it == name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use bytes::Bytes;

    use super::*;

    fn file(offset: u64, data: &'static [u8], last: bool) -> PieceNode {
        PieceNode::File { mode: 0o640, offset, data: Bytes::from_static(data), last }
    }

    fn link(target: &str) -> PieceNode {
        PieceNode::Link { target: target.into() }
    }

    const FOLDER: PieceNode = PieceNode::Folder { mode: 0o755, done: false };

    #[test]
    fn a_folder_is_built_with_its_links_and_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t");
        let mut builder = Builder::below(&target).unwrap();
        for (path, node) in [
            ("", FOLDER),
            ("d", PieceNode::Folder { mode: 0o555, done: false }),
            ("d/f", file(0, b"one", false)),
            ("d/f", file(3, b"two", true)),
            ("l", link("/etc/passwd")),
            ("d", PieceNode::Folder { mode: 0o555, done: true }),
        ] {
            builder.take(Path::new(path), &node).unwrap();
        }
        let page = page(&target, OsStr::new("")).unwrap();
        let d = FolderNode::Folder { mode: 0o555 };
        let l = FolderNode::Link { target: "/etc/passwd".into() };
        let entry = |name: &str, node| FolderEntry { name: name.into(), node };
        assert_eq!(page.entries, [entry("d", d), entry("l", l)]);
        assert_eq!(fs::read(target.join("d/f")).unwrap(), b"onetwo");
        assert_eq!(mode(&fs::metadata(target.join("d/f")).unwrap()), 0o640);
        fs::set_permissions(target.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn folders_that_are_there_keep_their_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (target, inner) = (dir.path().join("t"), dir.path().join("t/d"));
        for (path, mode) in [(&target, 0o751), (&inner, 0o710)] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut builder = Builder::below(&target).unwrap();
        let done = |mode| PieceNode::Folder { mode, done: true };
        for (path, node) in [
            ("", FOLDER),
            ("d", FOLDER),
            ("d/new", FOLDER),
            ("d/new", done(0o700)),
            ("d", done(0o777)),
            ("", done(0o777)),
        ] {
            builder.take(Path::new(path), &node).unwrap();
        }
        for (path, expected) in
            [(target, 0o751), (inner.clone(), 0o710), (inner.join("new"), 0o700)]
        {
            assert_eq!(mode(&fs::metadata(&path).unwrap()), expected, "{path:?}");
        }
    }

    #[test]
    fn nothing_leads_out_of_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let (target, outside) = (dir.path().join("t"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&target).unwrap();
        let before = mode(&fs::metadata(&outside).unwrap());
        symlink(&outside, target.join("there")).unwrap();
        symlink(outside.join("new"), target.join("f")).unwrap();
        let mut builder = Builder::below(&target).unwrap();
        let mut take = |path: &str, node| builder.take(Path::new(path), &node);
        take("sent", link(outside.to_str().unwrap())).unwrap();
        for path in ["there/x", "sent/x", "../outside/x", "/x", "a/../../outside/x"] {
            take(path, file(0, b"x", true)).unwrap_err();
            take(path, link("y")).unwrap_err();
        }
        for path in ["there", "sent"] {
            take(path, FOLDER).unwrap_err();
            take(path, PieceNode::Folder { mode: 0o777, done: true }).unwrap();
        }
        assert_eq!(mode(&fs::metadata(&outside).unwrap()), before, "nobody made it");
        take(&"a/".repeat(DEPTH_MAX + 1), FOLDER).unwrap_err();
        // A link that is in the way of a file goes; what it names stays.
        take("f", file(0, b"x", true)).unwrap();
        assert!(fs::symlink_metadata(target.join("f")).unwrap().is_file());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn pieces_come_in_order_and_leave_nothing_if_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = Builder::below(dir.path()).unwrap();
        let mut take = |path: &str, node| builder.take(Path::new(path), &node);
        take("a", file(0, b"one", false)).unwrap();
        take("a", file(7, b"x", true)).unwrap_err();
        take("a", file(3, b"x", true)).unwrap_err();
        take("a", file(0, b"one", false)).unwrap();
        take("b", file(3, b"x", true)).unwrap_err();
        take("a", file(0, b"one", false)).unwrap();
        take("d", FOLDER).unwrap();
        take("a", file(3, b"x", true)).unwrap_err();
        take("d", file(0, b"x", true)).unwrap_err();
        drop(builder);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().path()).collect();
        assert_eq!(left, [dir.path().join("d")]);
    }

    #[test]
    fn pages_are_bounded_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..PAGE_ENTRIES_MAX + 5 {
            File::create(dir.path().join(format!("{number:05}"))).unwrap();
        }
        let first = page(dir.path(), OsStr::new("")).unwrap();
        assert!(first.more && first.entries.len() == PAGE_ENTRIES_MAX);
        let last = &first.entries[PAGE_ENTRIES_MAX - 1].name;
        let second = page(dir.path(), last.as_os_str()).unwrap();
        assert!(!second.more && second.entries.len() == 5);
        assert!(!page(&dir.path().join("00001"), OsStr::new("")).unwrap().is_folder);
    }

    #[test]
    fn names_are_names() {
        for name in ["a", ".a", "a b", "..."] {
            assert!(is_name(OsStr::new(name)), "{name}");
        }
        for name in ["", ".", "..", "a/", "/a", "a/b", "a/."] {
            assert!(!is_name(OsStr::new(name)), "{name}");
        }
    }
}
