//! Paths as workers take them: absolute, and without `.` and `..`.

use std::path::{Component, Path, PathBuf};

/// The same place without `.` and `..`: cargo keeps them where a user moves its folders by a
/// relative path. A link before a `..` is followed, as the system does; other links stay.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                // Of what isn't there, only the words can be known.
                if let Ok(real) = plain.canonicalize() {
                    plain = real;
                }
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_followed_and_what_is_not_is_taken_by_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/deep")).unwrap();
        std::os::unix::fs::symlink("a/deep", root.join("link")).unwrap();
        let check = |path: &str, expected: &str| {
            assert_eq!(plain(&root.join(path)), root.join(expected), "{path}");
        };
        check("a/../t/debug", "t/debug");
        check("a/./deep//x", "a/deep/x");
        check("no/../t", "t");
        check("link/../t", "a/t");
        check("link/x", "link/x");
        assert_eq!(plain(Path::new("/../x")), Path::new("/x"));
    }
}
