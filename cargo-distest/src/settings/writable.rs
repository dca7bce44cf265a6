//! Whether a report can be written, found out before anything is built.

use std::path::Path;

use crate::failure::{ExitCode, Failure};

/// Checks that a file can be put at `path`, and makes its folder if there is none.
///
/// An existing file stays as it is: reports are written beside their place and renamed, so what
/// counts is whether the folder takes a new file.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    let refuse = |what: String| {
        Failure::new(ExitCode::Setup, what).hint("give another path, or make the folder writable")
    };
    if path.is_dir() {
        return Err(refuse(format!("could not write {}: it is a folder", path.display())));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(|error| {
        let (path, folder) = (path.display(), folder.display());
        refuse(format!("could not write {path}: no folder {folder} can be made")).because(error)
    })?;
    tempfile::Builder::new()
        .prefix(".distest-check-")
        .tempfile_in(folder)
        .map(drop)
        .map_err(|error| refuse(format!("could not write {}", path.display())).because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_folders_and_leaves_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/junit.xml");
        check_writable(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_folders_and_paths_below_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [folder.path().to_owned(), file.join("junit.xml")] {
            let failure = check_writable(&path).unwrap_err();
            assert_eq!(failure.code, ExitCode::Setup);
            assert!(failure.hint.is_some());
            assert!(failure.what.contains(&path.display().to_string()), "{}", failure.what);
        }
    }
}
