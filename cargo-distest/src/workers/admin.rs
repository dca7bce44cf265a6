//! `cargo distest workers upgrade` and `gc`: what is done to several workers, one after the other.

use std::path::Path;

use distest_worker::protocol::Freed;

use super::{failed, fleet_settings, ls, meant};
use crate::cli::AdministeredArgs;
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Meant, Trouble, Upgraded};
use crate::settings::FleetSettings;

/// Has workers go on as this program.
///
/// # Errors
/// [`ExitCode::Setup`] if one of them doesn't.
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
            Err(trouble) => {
                failures.push((name, trouble));
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
/// [`ExitCode::Setup`] if one of them doesn't.
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
            Err(trouble) => failures.push((name, trouble)),
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
    let workers = workers.map_err(|trouble| failed(ExitCode::Setup, what(), trouble))?;
    Ok((settings, workers))
}

/// What is said of those that could not be served.
fn ended(doing: &str, failures: Vec<(String, Trouble)>) -> Result<ExitCode, Failure> {
    let names: Vec<_> = failures.iter().map(|(name, _)| name.as_str()).collect();
    let what = format!("could not {doing} {}", names.join(", "));
    match <[_; 1]>::try_from(failures) {
        Ok([(_, trouble)]) => Err(failed(ExitCode::Setup, what, trouble)),
        Err(failures) if failures.is_empty() => Ok(ExitCode::Passed),
        Err(failures) => {
            let each = failures.iter().map(|(name, trouble)| format!("{name}: {}", trouble.reason));
            let reason = each.collect::<Vec<_>>().join("; ");
            let hint = failures.into_iter().find_map(|(_, trouble)| trouble.hint);
            Err(failed(ExitCode::Setup, what, Trouble { reason, hint }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_not_be_served_is_named_with_the_reason() {
        let trouble = |text: &str| Trouble { reason: text.to_owned(), hint: Some("do it".into()) };
        assert!(matches!(ended("clear", vec![]), Ok(ExitCode::Passed)));
        let one = ended("clear", vec![("a".into(), trouble("gone"))]).unwrap_err();
        assert_eq!(one.hint.as_deref(), Some("do it"));
        let several = vec![("a".into(), trouble("gone")), ("b".into(), trouble("old"))];
        let told = format!("{:?}", ended("clear", several).unwrap_err());
        assert!(told.contains("could not clear a, b") && told.contains("a: gone; b: old"));
    }
}
