//! From paths that were found to entries with contents: leaves out what doesn't travel, adds
//! folders, hashes files on several threads.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use distest_worker::protocol::{OsText, TreeEntry, TreeNode};

use super::statcache::StatCache;
use super::{Found, Notices, TREE_FILES_MAX, Tree, TreeRoots, too_many};
use crate::failure::Failure;

/// More threads than this only wait for the disk.
const THREADS_MAX: usize = 8;
/// Files that a thread takes at a time.
const BATCH: usize = 32;

/// What is known of the folders on the way to what was found.
///
/// Paths are plain strings here: comparing their components takes longer than all else.
struct Folders {
    excluded: Vec<OsString>,
    /// None: it is no folder, or nothing in it travels.
    known: BTreeMap<OsString, Option<Folder>>,
    /// Of what was asked last: what was found comes sorted.
    last: Option<(OsString, Option<Folder>)>,
}

#[derive(Clone, Copy)]
struct Folder {
    mode: u32,
    /// It is, or lies in, a target directory: only what git tracks travels.
    built: bool,
}

/// What lies at a path.
pub(super) enum Looked {
    Node(TreeNode),
    /// Nothing any more, or still tracked although deleted.
    Gone,
    /// Something that can't travel, and why.
    Unusable(String),
}

pub(super) fn assemble(
    mut found: Vec<Found>,
    mut notices: Notices,
    roots: &TreeRoots,
    cache: &StatCache,
) -> Result<Tree, Failure> {
    let mut folders = Folders::new(roots);
    // What is both counts as tracked. In the order of bytes a folder comes before what is in it.
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path).then(b.tracked.cmp(&a.tracked)));
    found.dedup_by(|later, first| later.path == first.path);
    found.retain(|found| folders.travels(found));
    if found.len() > TREE_FILES_MAX {
        return Err(too_many(&roots.workspace));
    }
    let mut nodes = folders.nodes(&found);
    let paths: Vec<OsString> = found.into_iter().map(|found| found.path).collect();
    let mut tree = Tree::default();
    for (path, looked) in look_at_all(paths, cache) {
        match looked {
            Looked::Node(node) => {
                if let TreeNode::File { digest, size, .. } = &node {
                    tree.bytes += size;
                    tree.files.entry(*digest).or_insert_with(|| PathBuf::from(&path));
                }
                nodes.insert(path, node);
            }
            Looked::Gone => {}
            Looked::Unusable(why) => {
                notices.add(format!("{} does not travel: {why}", Path::new(&path).display()));
            }
        }
    }
    let entries = nodes.into_iter();
    tree.entries = entries.map(|(path, node)| TreeEntry { path: path.into(), node }).collect();
    tree.notices = notices.finish();
    Ok(tree)
}

impl Folders {
    fn new(roots: &TreeRoots) -> Self {
        let mut outer: Vec<&PathBuf> =
            [&roots.workspace].into_iter().chain(&roots.packages).collect();
        outer.sort_unstable();
        outer.dedup_by(|inner, outer| inner.starts_with(outer));
        let root = |path: &PathBuf| {
            // A root may be a link; on a worker it is the folder it leads to.
            let mode = fs::metadata(path).map_or(0o755, |metadata| metadata.mode() & 0o777);
            (path.clone().into(), Some(Folder { mode, built: false }))
        };
        // Without a slash at the end.
        let excluded = roots.excluded.iter().map(|path| path.components().as_path().into());
        let known = outer.into_iter().map(root).collect();
        Self { excluded: excluded.collect(), known, last: None }
    }

    fn travels(&mut self, found: &Found) -> bool {
        let path = Path::new(&found.path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        if name == ".git" || self.excluded.contains(&found.path) {
            return false;
        }
        let folder = match &self.last {
            Some((last, folder)) if last == parent.as_os_str() => *folder,
            _ => {
                let folder = self.folder(parent);
                self.last = Some((parent.into(), folder));
                folder
            }
        };
        folder.is_some_and(|folder| found.tracked || !folder.built)
    }

    fn folder(&mut self, path: &Path) -> Option<Folder> {
        if let Some(known) = self.known.get(path.as_os_str()) {
            return *known;
        }
        let folder = path.parent().and_then(|parent| self.folder(parent)).and_then(|parent| {
            // What lies behind a link is no part of the tree.
            let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_dir)?;
            let built = parent.built
                || self.excluded.iter().any(|excluded| excluded == path)
                || is_build_directory(path);
            let git = path.file_name().is_some_and(|name| name == ".git");
            (!git).then_some(Folder { mode: metadata.mode() & 0o777, built })
        });
        self.known.insert(path.into(), folder);
        folder
    }

    /// The folders that lead to what was found, and the roots.
    fn nodes(&self, found: &[Found]) -> BTreeMap<OsString, TreeNode> {
        let mut nodes = BTreeMap::new();
        let mut last = None;
        for parent in found.iter().map(|found| Path::new(&found.path).parent()) {
            let name = parent.map(Path::as_os_str);
            if name == last {
                continue;
            }
            last = name;
            for path in parent.into_iter().flat_map(Path::ancestors) {
                let Some(Some(folder)) = self.known.get(path.as_os_str()) else { break };
                if nodes.insert(path.into(), TreeNode::Folder { mode: folder.mode }).is_some() {
                    break;
                }
            }
        }
        nodes
    }
}

/// Whether cargo or a similar tool builds into this folder: a `target` with a cache directory's tag
/// (<https://bford.info/cachedir/>).
pub(super) fn is_build_directory(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "target") && path.join("CACHEDIR.TAG").exists()
}

/// Looks at each path, on several threads; answers in any order.
pub(super) fn look_at_all(paths: Vec<OsString>, cache: &StatCache) -> Vec<(OsString, Looked)> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut looked = Vec::new();
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = paths.get(start..paths.len().min(start + BATCH)) else { break };
            if batch.is_empty() {
                break;
            }
            looked.extend(batch.iter().map(|path| look(Path::new(path), cache)).zip(start..));
        }
        looked
    };
    let mut looked: Vec<(Looked, usize)> = thread::scope(|scope| {
        let others: Vec<_> =
            (1..threads.min(paths.len().div_ceil(BATCH))).map(|_| scope.spawn(work)).collect();
        let mut looked = work();
        for other in others {
            looked.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        looked
    });
    looked.sort_unstable_by_key(|(_, index)| *index);
    paths.into_iter().zip(looked.into_iter().map(|(looked, _)| looked)).collect()
}

fn look(path: &Path, cache: &StatCache) -> Looked {
    let node = fs::symlink_metadata(path).and_then(|metadata| {
        let (kind, mode) = (metadata.file_type(), metadata.mode() & 0o777);
        if kind.is_symlink() {
            let target: OsText = fs::read_link(path)?.into();
            Ok(Looked::Node(TreeNode::Link { target }))
        } else if kind.is_dir() {
            Ok(Looked::Node(TreeNode::Folder { mode }))
        } else if kind.is_file() {
            let (digest, size) = cache.digest_with(path, &metadata)?;
            Ok(Looked::Node(TreeNode::File { digest, size, mode }))
        } else if kind.is_fifo() {
            Ok(Looked::Unusable("it is a named pipe".to_owned()))
        } else if kind.is_socket() {
            Ok(Looked::Unusable("it is a socket".to_owned()))
        } else {
            Ok(Looked::Unusable("it is a device".to_owned()))
        }
    });
    match node {
        Ok(looked) => looked,
        // Also if what was a folder is none any more.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Looked::Gone
        }
        Err(error) => Looked::Unusable(error.to_string()),
    }
}
