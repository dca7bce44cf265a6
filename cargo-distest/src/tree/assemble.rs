//! From paths that were found to entries with contents: leaves out what doesn't travel, adds
//! folders, hashes files on several threads.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use distest_worker::digest::Digest;
use distest_worker::lexical::plain;
use distest_worker::protocol::{FOLDER_MODE, TreeEntry, TreeNode};

use super::copies::{Copies, Taken};
use super::include::is_system;
use super::{Collector, Found, Tree, TreeRoots, TreeRules, too_many, unlisted};
use crate::failure::Failure;
use crate::stamp::Stamp;

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
    /// A file, and what it was when it was read. `restless`: it was being written to.
    File {
        digest: Digest,
        size: u64,
        mode: u32,
        stamp: Stamp,
        restless: bool,
    },
    /// Nothing any more, or still tracked although deleted.
    Gone,
    /// Something that can't travel, and why.
    Unusable(String),
}

pub(super) fn assemble(
    collector: Collector,
    roots: &TreeRoots,
    rules: &TreeRules,
    copies: &Copies,
) -> Result<Tree, Failure> {
    let Collector { found, asked, mut notices, .. } = collector;
    let mut folders = Folders::new(roots);
    let found = travelling(found, &mut folders, roots, rules);
    if found.len() > rules.files_max {
        return Err(too_many(&roots.workspace, rules.files_max));
    }
    let mut nodes = folders.nodes(&found);
    let unlisted = unlisted::look(&folders.open(&nodes), &found, &asked, &roots.excluded);
    let wanted = |path: &Path| !excluded(path.as_os_str(), roots, rules);
    for (path, mode) in unlisted.folders.into_iter().filter(|(path, _)| wanted(path)) {
        nodes.insert(path.into(), TreeNode::Folder { mode });
    }
    let mut seen_things: Vec<_> = parallel(&found, |found| fs::symlink_metadata(&found.path));
    for left_out in beyond(&seen_things, rules.bytes_max) {
        let size = seen_things[left_out].as_ref().map_or(0, fs::Metadata::len);
        let why = format!(
            "it has {}, and all workspace files may have {} (`tree-bytes-max` in the profile)",
            in_units(size),
            in_units(rules.bytes_max)
        );
        seen_things[left_out] = Err(io::Error::other(why));
    }
    let things: Vec<_> = found.into_iter().map(|found| found.path).zip(seen_things).collect();
    let looked = parallel(&things, |(path, seen)| look(Path::new(path), seen, copies));
    let mut tree = Tree::default();
    for ((path, _), looked) in things.into_iter().zip(looked) {
        let shown = Path::new(&path).display();
        match looked {
            Looked::File { digest, size, mode, stamp, restless } => {
                if restless {
                    let text = "is being written to, and travels as it was read last";
                    notices.add(format!("{shown} {text}"));
                }
                tree.bytes += size;
                tree.files.entry(digest).or_insert_with(|| copies.path(digest));
                tree.seen.push((path.clone().into(), stamp));
                nodes.insert(path, TreeNode::File { digest, size, mode });
            }
            Looked::Node(node) => {
                if let TreeNode::Link { target } = &node
                    && let Some(outside) = leads_out(Path::new(&path), target.as_path(), roots)
                {
                    let text = "does not travel; `include` in the profile can name it";
                    notices
                        .add(format!("{shown} is a link to {}, which {text}", outside.display()));
                }
                nodes.insert(path, node);
            }
            Looked::Gone => {}
            Looked::Unusable(why) => {
                notices.add(format!("{shown} does not travel: {why}"));
                tree.left_out.insert(path.into(), why);
            }
        }
    }
    for (path, why) in unlisted.special.into_iter().filter(|(path, _)| wanted(path)) {
        notices.add(format!("{} does not travel: {why}", path.display()));
        tree.left_out.insert(path, why.to_owned());
    }
    let entries = nodes.into_iter();
    tree.entries = entries.map(|(path, node)| TreeEntry { path: path.into(), node }).collect();
    tree.notices = notices.finish();
    Ok(tree)
}

/// What of it travels, in the order of bytes, each once.
fn travelling(
    mut found: Vec<Found>,
    folders: &mut Folders,
    roots: &TreeRoots,
    rules: &TreeRules,
) -> Vec<Found> {
    // What is both counts as tracked. In the order of bytes a folder comes before what is in it.
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path).then(b.tracked.cmp(&a.tracked)));
    found.dedup_by(|later, first| later.path == first.path);
    found.retain(|found| folders.travels(found) && !excluded(&found.path, roots, rules));
    found
}

/// What is there now and was not there when a tree was made.
pub(super) fn appeared(
    found: Vec<Found>,
    tree: &Tree,
    roots: &TreeRoots,
    rules: &TreeRules,
) -> Vec<PathBuf> {
    let found = travelling(found, &mut Folders::new(roots), roots, rules);
    let paths = found.into_iter().map(|found| PathBuf::from(found.path));
    let new = paths.filter(|path| tree.entry(path).is_none() && tree.left_out(path).is_none());
    // A folder is told by what is in it.
    new.filter(|path| path.symlink_metadata().is_ok_and(|it| !it.is_dir())).collect()
}

/// Files that are no longer what they were.
pub(super) fn changed(seen: &[(PathBuf, Stamp)]) -> Vec<&Path> {
    let same = parallel(seen, |(path, stamp)| {
        fs::symlink_metadata(path).is_ok_and(|metadata| Stamp::of(&metadata) == *stamp)
    });
    let changed = seen.iter().zip(same).filter(|(_, same)| !same);
    changed.map(|((path, _), _)| path.as_path()).collect()
}

/// Whether the user wants it to stay here.
fn excluded(path: &OsStr, roots: &TreeRoots, rules: &TreeRules) -> bool {
    let path = Path::new(path);
    let relative = || path.strip_prefix(&roots.workspace).ok();
    !rules.exclude.is_empty() && rules.exclude.matches(path, relative())
}

/// The largest files, until the others have at most `bytes_max` bytes.
fn beyond(seen: &[io::Result<fs::Metadata>], bytes_max: u64) -> Vec<usize> {
    let size = |seen: &io::Result<fs::Metadata>| match seen {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    };
    let mut total: u64 = seen.iter().map(size).fold(0, u64::saturating_add);
    if total <= bytes_max {
        return Vec::new();
    }
    let mut sizes: Vec<_> = seen.iter().map(size).enumerate().collect();
    sizes.sort_by_key(|(index, size)| (std::cmp::Reverse(*size), *index));
    let mut left_out = Vec::new();
    for (index, size) in sizes {
        if total <= bytes_max {
            break;
        }
        total -= size;
        left_out.push(index);
    }
    left_out
}

/// Where a link leads, if that is something here that workers won't have.
fn leads_out(link: &Path, target: &Path, roots: &TreeRoots) -> Option<PathBuf> {
    let target = plain(&link.parent()?.join(target));
    let mut inside = [&roots.workspace]
        .into_iter()
        .chain(&roots.packages)
        .chain(&roots.included)
        .chain(&roots.excluded);
    let stays = inside.any(|root| target.starts_with(root)) || is_system(&target);
    (!stays && target.exists()).then_some(target)
}

/// `3.0 GiB`.
fn in_units(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

impl Folders {
    fn new(roots: &TreeRoots) -> Self {
        let mut outer: Vec<&PathBuf> =
            [&roots.workspace].into_iter().chain(&roots.packages).chain(&roots.included).collect();
        outer.sort_unstable();
        outer.dedup_by(|inner, outer| inner.starts_with(outer));
        let root = |path: &PathBuf| {
            // A root may be a link; on a worker it is the folder it leads to.
            let mode = fs::metadata(path).map_or(0o755, |it| it.mode() & FOLDER_MODE);
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
            (!git).then_some(Folder { mode: metadata.mode() & FOLDER_MODE, built })
        });
        self.known.insert(path.into(), folder);
        folder
    }

    /// Those that travel with all that is in them, of those that travel.
    fn open<'a>(&self, nodes: &'a BTreeMap<OsString, TreeNode>) -> Vec<&'a Path> {
        let built =
            |path: &OsString| self.known.get(path).is_some_and(|it| it.is_some_and(|it| it.built));
        nodes.keys().filter(|path| !built(path)).map(Path::new).collect()
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

/// Looks at each path, on several threads.
pub(super) fn look_at_all(paths: &[PathBuf], copies: &Copies) -> Vec<Looked> {
    parallel(paths, |path| look(path, &fs::symlink_metadata(path), copies))
}

/// Does `work` for each item, on several threads; answers in the items' order.
pub(super) fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = items.get(start..items.len().min(start + BATCH)) else { break };
            if batch.is_empty() {
                break;
            }
            done.extend((start..).zip(batch.iter().map(&work)));
        }
        done
    };
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let others: Vec<_> =
            (1..threads.min(items.len().div_ceil(BATCH))).map(|_| scope.spawn(take)).collect();
        let mut done = take();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn look(path: &Path, seen: &io::Result<fs::Metadata>, copies: &Copies) -> Looked {
    let metadata = match seen {
        Ok(metadata) => metadata,
        Err(error) => return unusable(error),
    };
    let kind = metadata.file_type();
    let looked = if kind.is_symlink() {
        fs::read_link(path).map(|target| Looked::Node(TreeNode::Link { target: target.into() }))
    } else if kind.is_dir() {
        Ok(Looked::Node(TreeNode::Folder { mode: metadata.mode() & FOLDER_MODE }))
    } else if kind.is_file() {
        copies.take(path, metadata).map(|taken| {
            let Taken { digest, size, stamp, restless } = taken;
            Looked::File { digest, size, mode: metadata.mode() & 0o777, stamp, restless }
        })
    } else if let Some(why) = special(kind) {
        Ok(Looked::Unusable(why.to_owned()))
    } else {
        Ok(Looked::Unusable("it is a device".to_owned()))
    };
    looked.unwrap_or_else(|error| unusable(&error))
}

/// What a thing is that has no content.
pub(super) fn special(kind: fs::FileType) -> Option<&'static str> {
    if kind.is_fifo() {
        Some("it is a named pipe")
    } else if kind.is_socket() {
        Some("it is a socket")
    } else {
        None
    }
}

fn unusable(error: &io::Error) -> Looked {
    match error.kind() {
        // Also if what was a folder is none any more.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Looked::Gone,
        _ => Looked::Unusable(error.to_string()),
    }
}
