//! Places at which one can listen although their folders can't be written.
//!
//! What lies in a private folder or in the client's tree can simply be created there. Elsewhere a
//! link takes the socket's place, which leads into a private folder made for that.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::layout::Point;
use super::{Doing, Obstacle, Step};

/// Where the links lead.
const FOLDER: &str = "/.distest-sockets";

/// The sockets that need a link, and where it leads; adds the folder for that to what is mounted.
pub(super) fn linked(
    sockets: &[PathBuf],
    points: &mut Vec<(PathBuf, Point<'_>)>,
) -> BTreeMap<PathBuf, PathBuf> {
    let is_writable = |socket: &Path| {
        let around = points.iter().filter(|(path, _)| socket.starts_with(path));
        let innermost = around.max_by_key(|(path, _)| path.as_os_str().len());
        innermost.is_some_and(|(_, point)| matches!(point, Point::Private { .. } | Point::Root))
    };
    let elsewhere = sockets.iter().filter(|socket| !is_writable(socket));
    let linked: BTreeMap<PathBuf, PathBuf> = elsewhere
        .zip(0..)
        .map(|(socket, number)| (socket.clone(), Path::new(FOLDER).join(format!("{number}"))))
        .collect();
    if !linked.is_empty() {
        let point = Point::Private { name: "sockets".into(), mode: 0o755 };
        points.insert(0, (FOLDER.into(), point));
    }
    linked
}

/// Makes the links, in folders that are covered and can still be changed.
pub(super) fn link(linked: &BTreeMap<PathBuf, PathBuf>) -> Result<(), Obstacle> {
    for (socket, place) in linked {
        let folder = socket.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)
            .and_then(|()| symlink(place, socket))
            .doing(Step::Socket, socket.display())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_no_writable_folder_is_linked() {
        let shown = PathBuf::from("/home/me/bin");
        let private = || Point::Private { name: String::new(), mode: 0o700 };
        let mut points = vec![
            (PathBuf::from("/home/me"), private()),
            (shown.clone(), Point::Shown(&shown)),
            (PathBuf::from("/tmp"), private()),
            (PathBuf::from("/var/keys"), Point::Hidden { name: String::new() }),
            (PathBuf::from("/code"), Point::Root),
        ];
        let writable = ["/home/me/s", "/tmp/a/b", "/code/s"];
        let others = ["/home/me/bin/s", "/run/x/s", "/tmpx", "/var/keys/s"];
        let paths: Vec<PathBuf> = writable.iter().chain(&others).map(PathBuf::from).collect();
        let linked = linked(&paths, &mut points);
        let linked: Vec<_> = linked.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(linked, others);
        assert_eq!(points[0].0, Path::new(FOLDER));
    }
}
