//! Folders that are this user's alone, also where anybody may make some.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use nix::unistd::geteuid;

use crate::failure::{ExitCode, Failure};

/// `cargo-distest-UID` in the folder for temporary files.
pub(super) fn temporary() -> PathBuf {
    std::env::temp_dir().join(format!("cargo-distest-{}", geteuid()))
}

/// Makes a folder that nobody else can enter, unless it is there as such: what others have put
/// there first, a link too, is not taken. `otherwise` says how to have another one.
///
/// # Errors
/// [`ExitCode::Setup`]: it can't be made, or others have it.
pub(super) fn private(folder: PathBuf, otherwise: &str) -> Result<PathBuf, Failure> {
    let fail = |error: io::Error| {
        let what = format!("could not use the folder {}", folder.display());
        Failure::new(ExitCode::Setup, what).because(error)
    };
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    let about = fs::symlink_metadata(&folder).map_err(fail)?;
    if !about.is_dir() || about.uid() != geteuid().as_raw() || about.mode() & 0o077 != 0 {
        let why = "others can enter it, or it is another user's";
        let failure = fail(io::Error::new(io::ErrorKind::PermissionDenied, why));
        return Err(failure.hint(format!("remove it, or {otherwise}")));
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_others_could_have_made_is_not_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let ours = scratch.path().join("new/ours");
        for _ in 0..2 {
            assert_eq!(private(ours.clone(), "x").unwrap(), ours);
            assert_eq!(ours.metadata().unwrap().mode() & 0o777, 0o700);
        }
        let link = scratch.path().join("link");
        symlink(&ours, &link).unwrap();
        let open = scratch.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o750)).unwrap();
        for path in [link, open] {
            let refused = private(path, "set TMPDIR").unwrap_err();
            assert_eq!(refused.code, ExitCode::Setup);
            assert!(refused.hint.unwrap().contains("set TMPDIR"));
        }
        let theirs = scratch.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        if std::os::unix::fs::chown(&theirs, Some(65534), None).is_ok() {
            fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
            assert!(private(theirs, "x").is_err());
        }
    }
}
