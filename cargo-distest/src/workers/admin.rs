//! `cargo distest workers upgrade` and `gc`: what is done to several workers, one after the other.

use std::path::Path;

use distest_worker::protocol::Freed;

use super::{exit_code, failed, fleet_settings, ls, meant};
use crate::cli::AdministeredArgs;
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Meant, Undone, Upgraded};
use crate::settings::FleetSettings;

/// Has workers go on as this program.
///
/// # Errors
/// [`ExitCode::NoWorker`] if one of them isn't there, [`ExitCode::Setup`] if it doesn't.
pub(super) async fn upgrade(
    args: &AdministeredArgs,
    cwd: &Path,
    mut print: impl FnMut(&str) -> bool,
) -> Result<ExitCode, Failure> {
    let (settings, mut workers) = workers(args, cwd, "upgrade").await?;
    // Another one is started when it is needed, as whatever is there then.
    workers.retain(|it| !args.all || it.listens());
    let mut failures = Vec::new();
    for worker in workers {
        let name = ls::plain(&worker.name);
        let mut began = false;
        let upgraded = fleet::upgrade(&settings, worker, || {
            began = true;
            print(&format!("{name} has it, and finishes what runs\n"));
        })
        .await;
        match upgraded {
            Ok(Upgraded::UpToDate) => _ = print(&format!("{name} is up to date\n")),
            Ok(Upgraded::To(version)) => {
                _ = print(&format!("{name} goes on as version {}\n", ls::plain(&version)));
            }
            Err(undone) => {
                failures.push((name, undone));
                // What took one worker away must not take all.
                if began {
                    break;
                }
            }
        }
    }
    ended("upgrade", failures)
}

/// Removes what no session uses.
///
/// # Errors
/// The same.
pub(super) async fn collect_garbage(
    args: &AdministeredArgs,
    cwd: &Path,
    mut print: impl FnMut(&str) -> bool,
) -> Result<ExitCode, Failure> {
    let (settings, workers) = workers(args, cwd, "clear").await?;
    let mut failures = Vec::new();
    for worker in workers {
        let name = ls::plain(&worker.name);
        match fleet::collect_garbage(&settings, worker).await {
            Ok(Freed { blobs, bytes }) => {
                print(&format!("{name} freed {bytes} bytes of {blobs} files\n"));
            }
            Err(undone) => failures.push((name, undone)),
        }
    }
    ended("clear", failures)
}

async fn workers(
    args: &AdministeredArgs,
    cwd: &Path,
    doing: &str,
) -> Result<(FleetSettings, Vec<Meant>), Failure> {
    let AdministeredArgs { names, all, worker } = args;
    let settings = fleet_settings(worker, cwd)?;
    let what =
        || format!("could not {doing} {}", if *all { "all".into() } else { names.join(", ") });
    let workers = meant(&settings, names, *all).await;
    let workers = workers.map_err(|undone| failed(ExitCode::Setup, what(), undone))?;
    Ok((settings, workers))
}

/// What is said of those that could not be served.
fn ended(doing: &str, failures: Vec<(String, Undone)>) -> Result<ExitCode, Failure> {
    let names: Vec<_> = failures.iter().map(|(name, _)| name.as_str()).collect();
    let what = format!("could not {doing} {}", names.join(", "));
    let codes = failures.iter().map(|(_, undone)| exit_code(ExitCode::Setup, undone));
    let code = codes.fold(ExitCode::Passed, ExitCode::or_worse);
    match <[_; 1]>::try_from(failures) {
        Ok([(_, undone)]) => Err(failed(ExitCode::Setup, what, undone)),
        Err(failures) if failures.is_empty() => Ok(code),
        Err(failures) => {
            let troubles = || failures.iter().map(|(name, undone)| (name, undone.trouble()));
            let each = troubles().map(|(name, trouble)| format!("{name}: {}", trouble.reason));
            let hint = troubles().find_map(|(_, trouble)| trouble.hint.clone());
            let reason = each.collect::<Vec<_>>().join("; ");
            Err(Failure { hint, ..Failure::new(code, what).because(reason) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Trouble;

    #[test]
    fn who_could_not_be_served_is_named_with_the_reason() {
        let trouble = |text: &str| Trouble { reason: text.to_owned(), hint: Some("do it".into()) };
        let (gone, old) = (Undone::NotThere(trouble("gone")), Undone::There(trouble("old")));
        assert!(matches!(ended("clear", vec![]), Ok(ExitCode::Passed)));
        for (undone, code) in [(&gone, ExitCode::NoWorker), (&old, ExitCode::Setup)] {
            let one = ended("clear", vec![("a".into(), undone.clone())]).unwrap_err();
            assert_eq!((one.code, one.hint.as_deref()), (code, Some("do it")));
        }
        let several = ended("clear", vec![("a".into(), gone), ("b".into(), old)]).unwrap_err();
        assert_eq!(several.code, ExitCode::Setup, "whatever is worse");
        let told = format!("{several:?}");
        assert!(told.contains("could not clear a, b") && told.contains("a: gone; b: old"));
    }
}
