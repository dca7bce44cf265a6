//! Paths by their words alone: nothing on the disk is looked at.

use std::path::{Component, Path, PathBuf};

/// Without `.` and `..`, which are taken for what they say, links or not.
pub fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = plain.pop(),
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
    fn words_are_taken_for_what_they_say() {
        for (path, expected) in
            [("/a/../b/./c", "/b/c"), ("/../x", "/x"), ("./a/..", ""), ("a//b", "a/b")]
        {
            assert_eq!(plain(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
