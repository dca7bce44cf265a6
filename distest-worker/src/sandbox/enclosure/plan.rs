//! Which folders have to be remade, so that something can be mounted at paths that don't exist.
//!
//! Nothing may be created on this machine's disks. Where a name is missing in one of its folders,
//! that folder is covered by a fresh one in memory, into which everything that was there is brought
//! back. Pure: looks at the machine through a closure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What lies at a path, the path's last component not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A folder.
    Folder,
    /// A link that leads to this folder, itself without links on the way.
    LinkTo(PathBuf),
    /// Nothing, or something that is no folder.
    Other,
}

/// A folder to be covered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cover {
    /// The folder of this machine whose entries it gets.
    pub(super) source: PathBuf,
    /// Names that it does not get, because something else will be there.
    pub(super) without: BTreeSet<OsString>,
}

/// Folders to be covered, parents first. `/` is always among them.
pub(super) type Covers = BTreeMap<PathBuf, Cover>;

/// What must be covered so that each of `points`, absolute and plain paths, can be made a folder.
pub(super) fn covers<'a>(
    points: impl IntoIterator<Item = &'a Path>,
    look: impl Fn(&Path) -> Found,
) -> Covers {
    let root = PathBuf::from("/");
    let mut covers =
        Covers::from([(root.clone(), Cover { source: root, without: BTreeSet::new() })]);
    let mut points: Vec<&Path> = points.into_iter().collect();
    points.sort_unstable();
    // What lies below another point is made in what is mounted there.
    points.dedup_by(|inner, outer| inner.starts_with(outer));
    for point in points {
        cover_for(point, &look, &mut covers);
    }
    covers
}

fn cover_for(point: &Path, look: &impl Fn(&Path) -> Found, covers: &mut Covers) {
    // The same folder, as it will be and as it is on this machine.
    let (mut at, mut here) = (PathBuf::from("/"), PathBuf::from("/"));
    let names: Vec<_> = point.iter().skip(1).collect();
    for (index, name) in names.iter().enumerate() {
        let is_last = index + 1 == names.len();
        let found = look(&here.join(name));
        if found == Found::Folder {
            at.push(name);
            here.push(name);
            continue;
        }
        let cover = covers
            .entry(at.clone())
            .or_insert_with(|| Cover { source: here.clone(), without: BTreeSet::new() });
        cover.without.insert((*name).to_owned());
        at.push(name);
        match found {
            Found::LinkTo(target) if !is_last => {
                // A folder takes the link's place, so that links don't lead out of what is made.
                let cover = Cover { source: target.clone(), without: BTreeSet::new() };
                covers.entry(at.clone()).or_insert(cover);
                here = target;
            }
            // The rest can simply be created in the covered folder.
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders and links of a machine: `/a` or `/a > /b`.
    fn check(machine: &[&str], points: &[&str], expected: &[(&str, &str, &[&str])]) {
        let look = |path: &Path| {
            let path = path.to_str().unwrap();
            if machine.contains(&path) {
                return Found::Folder;
            }
            let link = machine.iter().find_map(|line| line.strip_prefix(&format!("{path} > ")));
            link.map_or(Found::Other, |target| Found::LinkTo(target.into()))
        };
        let found = covers(points.iter().map(Path::new), look);
        let expected: Covers = expected
            .iter()
            .map(|(at, source, without)| {
                let without = without.iter().map(OsString::from).collect();
                (PathBuf::from(at), Cover { source: source.into(), without })
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_exists_is_not_covered() {
        check(&["/usr", "/usr/lib", "/tmp"], &["/usr/lib", "/tmp"], &[("/", "/", &[])]);
    }

    #[test]
    fn a_folder_is_covered_where_the_first_name_is_missing() {
        check(&["/home"], &["/code/a/b", "/code/c"], &[("/", "/", &["code"])]);
        check(
            &["/home", "/home/me"],
            &["/home/you/proj", "/home/me/x"],
            &[("/", "/", &[]), ("/home", "/home", &["you"]), ("/home/me", "/home/me", &["x"])],
        );
    }

    #[test]
    fn what_lies_in_another_point_needs_nothing() {
        check(&["/tmp"], &["/tmp", "/tmp/x/proj"], &[("/", "/", &[])]);
    }

    #[test]
    fn a_link_on_the_way_becomes_a_folder() {
        check(
            &["/code > /data/code", "/data", "/data/code", "/data/code/here"],
            &["/code/proj"],
            &[("/", "/", &["code"]), ("/code", "/data/code", &["proj"])],
        );
        check(
            &["/code > /data/code", "/data/code", "/data/code/here"],
            &["/code/here"],
            &[("/", "/", &["code"]), ("/code", "/data/code", &[])],
        );
        check(&["/code > /data"], &["/code"], &[("/", "/", &["code"])]);
    }
}
