//! `cargo distest cp`: files and folders to a worker, or from it.

use std::path::Path;

use super::{failed, fleet_settings};
use crate::cli::CpArgs;
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Undone};

/// Copies it.
///
/// # Errors
/// [`ExitCode::Usage`] if not exactly one end is a worker's, [`ExitCode::NoWorker`] if that worker
/// isn't there, [`ExitCode::CommandFailed`] if it can't be copied.
pub async fn cp(args: &CpArgs) -> Result<ExitCode, Failure> {
    let CpArgs { worker, from, to } = args;
    let cwd = std::env::current_dir().unwrap_or_default();
    let settings = fleet_settings(worker, &cwd)?;
    let ends = (there(from), there(to));
    let ((None, Some((name, _))) | (Some((name, _)), None)) = ends else {
        let what = format!("could not copy {from} to {to}: one of them must be a worker's");
        let hint = "write NAME:/PATH for a file of a worker's, and ./a:b for one here";
        return Err(Failure::new(ExitCode::Usage, what).hint(hint));
    };
    let what = || format!("could not copy {from} to {to}");
    let failed = |undone| failed(ExitCode::CommandFailed, what(), undone);
    let worker = fleet::only(&settings, name).await.map_err(Undone::NotThere).map_err(failed)?;
    let copied = match ends {
        (_, Some((_, path))) => {
            fleet::put(&settings, worker, Path::new(from), Path::new(path)).await
        }
        (from, None) => {
            let path = from.map_or("", |(_, path)| path);
            fleet::get(&settings, worker, Path::new(path), Path::new(to)).await
        }
    };
    copied.map(|()| ExitCode::Passed).map_err(failed)
}

/// `NAME:PATH`.
fn there(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(name, _)| !name.is_empty() && !name.contains('/'))
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
    }
}
