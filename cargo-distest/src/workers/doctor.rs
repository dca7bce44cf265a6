//! `cargo distest doctor`: looks for what would go wrong, and says what to do about each.

mod built;
mod fleet;
mod machine;

use distest_worker::identity::{Folder, KnownWorkers};
use serde_json::json;

use super::{all_settings, ls};
use crate::cli::{DoctorArgs, WorkersFormat};
use crate::failure::{ExitCode, Failure};
use crate::fleet::own_key;
use crate::settings::{FleetSettings, KeySource};

/// Descriptors without which a run on many workers fails, or a worker that runs many tests.
const DESCRIPTORS_MIN: u64 = 1024;
/// Bytes that a disk should have left for what travels.
const DISK_FREE_MIN: u64 = 1 << 30;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Grade {
    Fine,
    /// It works, and could be better.
    Could,
    /// It doesn't work.
    Wrong,
}

/// What was looked at, and what was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    grade: Grade,
    /// `cargo`, `key`, `worker big`.
    about: String,
    text: String,
    hint: Option<String>,
}

/// Looks at everything; `print` gets what goes to stdout.
///
/// # Errors
/// Never: what is wrong is a finding, and ends with [`ExitCode::Setup`].
pub async fn doctor(args: &DoctorArgs, mut print: impl FnMut(&str)) -> Result<ExitCode, Failure> {
    let DoctorArgs { worker, format } = args;
    let cwd = std::env::current_dir().unwrap_or_default();
    let mut findings = vec![fine("version", env!("CARGO_PKG_VERSION").to_owned())];
    findings.extend(machine::tools());
    findings.extend(machine::descriptors());
    findings.extend(machine::disk());
    match all_settings(worker, &cwd) {
        Err(Failure { what, hint, .. }) => {
            findings.push(Finding { hint, ..wrong("configuration", what) });
        }
        Ok(settings) => {
            findings.push(fine("configuration", "can be read".to_owned()));
            findings.extend(keys(&settings.fleet));
            let (built, finding) = built::look(&machine::cargo());
            findings.extend(finding);
            super::tell_of_waiting(&settings.fleet);
            let visited = fleet::visited(&settings.fleet, &built).await;
            match visited {
                Ok(visited) => {
                    let elsewhere = !settings.fleet.workers.is_empty() || !visited.is_empty();
                    findings.extend(match elsewhere {
                        true => machine::variables(&settings.travel.pass, std::env::vars_os()),
                        false => {
                            Some(fine("variables", "tests run here, with all of them".to_owned()))
                        }
                    });
                    findings.extend(fleet::workers(&settings.fleet, &visited, &built));
                }
                // Why is said where the key is, and whom we know.
                Err(_) => findings.push(could(
                    "workers",
                    "were not looked at: no worker can be used until the keys can be".to_owned(),
                    "mend what is wrong above, and look again",
                )),
            }
        }
    }
    match format {
        WorkersFormat::Human => print(&human(&findings)),
        WorkersFormat::Json => print(&in_json(&findings)),
    }
    let worst = findings.iter().map(|finding| finding.grade).max();
    Ok(if worst == Some(Grade::Wrong) { ExitCode::Setup } else { ExitCode::Passed })
}

fn fine(about: &str, text: String) -> Finding {
    Finding { grade: Grade::Fine, about: about.to_owned(), text, hint: None }
}

fn could(about: &str, text: String, hint: impl Into<String>) -> Finding {
    let hint = Some(hint.into());
    Finding { grade: Grade::Could, about: about.to_owned(), text, hint }
}

fn wrong(about: &str, text: String) -> Finding {
    Finding { grade: Grade::Wrong, about: about.to_owned(), text, hint: None }
}

/// Who we are, and whom we know.
fn keys(settings: &FleetSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.identity.key == KeySource::Nowhere {
        findings.push(could(
            "key",
            "DISTEST_KEY is empty: no worker can be used".to_owned(),
            "unset it to use this user's own key",
        ));
    } else {
        findings.push(match own_key(&settings.identity) {
            Ok(key) => fine("key", key.public().to_string()),
            Err((text, hint)) => Finding { hint, ..wrong("key", text) },
        });
    }
    let Some(folder) = Folder::of_user() else { return findings };
    findings.push(match KnownWorkers::load(&folder.known_workers()) {
        Ok((known, told)) if told.is_empty() => {
            fine("known workers", known.iter().count().to_string())
        }
        Ok((_, told)) => Finding {
            hint: Some("correct the line, or remove it".to_owned()),
            ..wrong("known workers", told.join("; "))
        },
        Err(error) => {
            let hint = Some(error.hint());
            Finding { hint, ..wrong("known workers", error.to_string()) }
        }
    });
    findings
}

fn human(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { grade, about, text: told, hint } in findings {
        let mark = match grade {
            Grade::Fine => "ok     ",
            Grade::Could => "could  ",
            Grade::Wrong => "WRONG  ",
        };
        text += &format!("{mark}{}: {}\n", ls::plain(about), ls::sentence(told));
        hint.iter().for_each(|hint| text += &format!("       hint: {}\n", ls::sentence(hint)));
    }
    text
}

fn in_json(findings: &[Finding]) -> String {
    let findings = findings.iter().map(|Finding { grade, about, text, hint }| {
        let grade = match grade {
            Grade::Fine => "ok",
            Grade::Could => "could",
            Grade::Wrong => "wrong",
        };
        json!({ "grade": grade, "about": about, "text": text, "hint": hint })
    });
    format!("{}\n", json!({ "findings": findings.collect::<Vec<_>>() }))
}
