//! Folders made at the client's own paths, on a machine where nothing lies there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::store::remove_all;

/// Folders that were made, with all that will be laid into them. Removed on drop.
pub(super) struct Made {
    folders: Vec<PathBuf>,
}

impl Made {
    /// Makes all of `roots`; none of them if one exists already, even as somebody's leftover, or
    /// can't be made.
    pub(super) fn make(roots: &[PathBuf]) -> Option<Self> {
        let mut made = Self { folders: Vec::new() };
        for root in roots {
            let missing = first_missing(root)?;
            if let Some(parent) = root.parent() {
                fs::create_dir_all(parent).ok()?;
            }
            // Whoever makes the root itself owns it.
            fs::create_dir(root).ok()?;
            made.folders.push(missing);
        }
        Some(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in self.folders.iter().rev() {
            let _ = remove_all(folder);
        }
    }
}

/// The outermost folder of a path that doesn't exist; none if all of it exists.
fn first_missing(path: &Path) -> Option<PathBuf> {
    let mut ancestors: Vec<&Path> = path.ancestors().collect();
    ancestors.reverse();
    let missing = ancestors.into_iter().find(|path| fs::symlink_metadata(path).is_err());
    missing.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_what_is_missing_and_takes_it_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str| dir.path().join(name);
        let roots = [root("a/b/proj"), root("a/c")];
        let made = Made::make(&roots).unwrap();
        assert!(roots.iter().all(|root| root.is_dir()));
        fs::write(root("a/b/proj/file"), "x").unwrap();
        assert!(Made::make(&roots).is_none(), "it is somebody's");
        drop(made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn touches_nothing_where_something_lies() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("kept"), "x").unwrap();
        assert!(Made::make(&[new.clone(), old.clone()]).is_none());
        assert!(!new.exists() && old.join("kept").exists());
    }
}
