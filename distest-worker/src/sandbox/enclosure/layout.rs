//! What goes where in a sandbox: looks at this machine, whose root is found at a path of its own
//! (`machine`), and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::Enclosure;
use super::plan::Found;

/// Folders that every sandbox has to itself: path and permissions.
const PRIVATE: [(&str, u32); 3] = [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/dev/shm", 0o1777)];

/// What is mounted at a path of the new root.
pub(super) enum Point<'a> {
    /// A folder of the sandbox's own, empty at first, that can be written.
    Private { name: String, mode: u32 },
    /// One that hides what is there.
    Hidden { name: String },
    /// The client's.
    Root,
    /// This machine's, read-only.
    Shown(&'a Path),
}

/// Where what goes, in the order of paths, so that folders come before what is in them.
pub(super) fn points<'a>(enclosure: &'a Enclosure, machine: &Path) -> Vec<(PathBuf, Point<'a>)> {
    let Enclosure { roots, hidden, shown, home, .. } = enclosure;
    let mut points: Vec<(PathBuf, Point<'a>)> = Vec::new();
    // The client's files stand for everything that lies where they are.
    let mut add = |path: &Path, point| {
        let new = points.iter().all(|(known, _): &(PathBuf, _)| known != path);
        if new && !roots.iter().any(|root| path.starts_with(root)) {
            points.push((path.to_owned(), point));
        }
    };
    let name = |path: &Path| path.to_string_lossy().replace('/', "-");
    for (path, mode) in PRIVATE {
        let path = Path::new(path);
        add(path, Point::Private { name: name(path), mode });
    }
    add(home, Point::Private { name: "home".into(), mode: 0o700 });
    for (index, path) in hidden.iter().enumerate() {
        let in_private = PRIVATE.iter().any(|(private, _)| path.starts_with(private))
            || (path.starts_with(home) && path != home)
            || hidden.iter().any(|other| path.starts_with(other) && path != other);
        // What doesn't exist can't be seen either.
        if !in_private && below(machine, path).is_dir() {
            add(path, Point::Hidden { name: format!("hidden-{index}") });
        }
    }
    for path in shown {
        let in_hidden = path.starts_with(home) || hidden.iter().any(|it| path.starts_with(it));
        if in_hidden && fs::read_dir(below(machine, path)).is_ok() {
            add(path, Point::Shown(path));
        }
    }
    points.extend(roots.iter().map(|root| (root.clone(), Point::Root)));
    points.sort_by(|(a, _), (b, _)| a.cmp(b));
    points
}

/// What lies at a path of this machine.
pub(super) fn look(machine: &Path, path: &Path) -> Found {
    match fs::symlink_metadata(below(machine, path)) {
        Ok(metadata) if metadata.is_dir() => Found::Folder,
        Ok(metadata) if metadata.is_symlink() => {
            resolve(machine, path).map_or(Found::Other, Found::LinkTo)
        }
        _ => Found::Other,
    }
}

/// The folder that a link of this machine leads to.
fn resolve(machine: &Path, link: &Path) -> Option<PathBuf> {
    /// As the kernel's.
    const LINKS_MAX: usize = 40;
    let mut left = LINKS_MAX;
    let mut pending: Vec<_> = link.iter().skip(1).map(PathBuf::from).collect();
    pending.reverse();
    let mut at = PathBuf::from("/");
    while let Some(name) = pending.pop() {
        if name == Path::new("..") {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Ok(target) = fs::read_link(below(machine, &next)) else {
            at = next;
            continue;
        };
        left = left.checked_sub(1)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        let names = target.components().filter_map(|component| match component {
            std::path::Component::Normal(name) => Some(PathBuf::from(name)),
            std::path::Component::ParentDir => Some(PathBuf::from("..")),
            _ => None,
        });
        let names: Vec<_> = names.collect();
        pending.extend(names.into_iter().rev());
    }
    fs::symlink_metadata(below(machine, &at)).is_ok_and(|metadata| metadata.is_dir()).then_some(at)
}

/// A path of another root's.
pub(super) fn below(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("/").unwrap_or(path))
}
