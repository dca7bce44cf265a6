//! `cargo distest cp`: files and folders to a worker, or from it.

use std::path::{Path, PathBuf};

use super::{failed, fleet_settings};
use crate::cli::CpArgs;
use crate::failure::{ExitCode, Failure};
use crate::fleet;

/// Copies it.
///
/// # Errors
/// [`ExitCode::Usage`] if not exactly one end is a worker's, [`ExitCode::CommandFailed`] if it
/// can't be copied.
pub async fn cp(args: &CpArgs) -> Result<ExitCode, Failure> {
    let CpArgs { worker, from, to } = args;
    let cwd = std::env::current_dir().unwrap_or_default();
    let settings = fleet_settings(worker, &cwd)?;
    let copied = match (there(from), there(to)) {
        (None, Some((name, path))) => {
            let from = PathBuf::from(from);
            fleet::put(&settings, name, &from, &into(Path::new(path), path.ends_with('/'), &from))
                .await
        }
        (Some((name, path)), None) => {
            let (path, to) = (Path::new(path), Path::new(to));
            fleet::get(&settings, name, path, &into(to, to.is_dir(), path)).await
        }
        _ => {
            let what = format!("could not copy {from} to {to}: one of them must be a worker's");
            let hint = "write NAME:/PATH for a file of a worker's, and ./a:b for one here";
            return Err(Failure::new(ExitCode::Usage, what).hint(hint));
        }
    };
    copied.map(|()| ExitCode::Passed).map_err(|trouble| {
        failed(ExitCode::CommandFailed, format!("could not copy {from} to {to}"), trouble)
    })
}

/// `NAME:PATH`.
fn there(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
}

/// Under its own name, if it goes into a folder.
fn into(to: &Path, is_folder: bool, from: &Path) -> PathBuf {
    match from.file_name() {
        Some(name) if is_folder => to.join(name),
        _ => to.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_files_have_a_name_before_them() {
        assert_eq!(there("w1:/etc/passwd"), Some(("w1", "/etc/passwd")));
        for local in ["a", "./a:b", "/a:b", ":a"] {
            assert_eq!(there(local), None, "{local}");
        }
        assert_eq!(into(Path::new("/d/"), true, Path::new("x/f")), Path::new("/d/f"));
        assert_eq!(into(Path::new("/d"), false, Path::new("x/f")), Path::new("/d"));
    }
}
