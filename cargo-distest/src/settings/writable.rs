//! Whether a report can be written, found out before anything is built.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::failure::{ExitCode, Failure};

/// Whether a report is put at `path` in one step, in place of a file that may be there. A link, a
/// device or a pipe stays and is written to.
pub fn is_replaced(path: &Path) -> bool {
    fs::symlink_metadata(path).map_or(true, |metadata| metadata.is_file())
}

/// Opens what is no file to be replaced. A pipe that nobody reads is an error and not waited for.
pub fn open_in_place(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().write(true).custom_flags(flags.bits()).open(path)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

/// Checks that a report can be put at `path`, and makes its folder if there is none.
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
    if !is_replaced(path) {
        return match open_in_place(path) {
            // Its reader may come while tests run.
            Err(error) if error.raw_os_error() != Some(Errno::ENXIO as i32) => {
                Err(refuse(format!("could not write {}", path.display())).because(error))
            }
            _ => Ok(()),
        };
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(|error| {
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
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

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
    fn what_is_no_file_of_its_own_is_opened_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, pipe, lost] =
            ["file", "link", "pipe", "lost"].map(|name| folder.path().join(name));
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        symlink(folder.path().join("nowhere"), &lost).unwrap();
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(is_replaced(&file) && is_replaced(&folder.path().join("new")));
        for path in [&link, &pipe] {
            assert!(!is_replaced(path));
            check_writable(path).unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        let failure = check_writable(&lost).unwrap_err();
        assert!(failure.to_string().contains("lost: No such file"), "{failure}");
        assert!(open_in_place(&pipe).is_err(), "nobody reads it");
        let reader =
            File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&pipe).unwrap();
        open_in_place(&pipe).unwrap();
        drop(reader);
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
