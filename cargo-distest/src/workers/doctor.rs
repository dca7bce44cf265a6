//! `cargo distest doctor`: looks for what would go wrong, and says what to do about each.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use distest_worker::identity::{Folder, KnownWorkers};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;

use super::fleet_settings;
use crate::cli::{DoctorArgs, WorkersFormat};
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Said, Trouble, Visited};
use crate::settings::{FleetSettings, KeySource};

/// Descriptors without which a run on many workers fails.
const DESCRIPTORS_MIN: u64 = 1024;
/// A worker's store is nearly full at this many percent.
const STORE_FULL_PERCENT: u64 = 90;

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
    let mut findings = tools();
    findings.extend(descriptors());
    match fleet_settings(worker, &cwd) {
        Err(Failure { what, hint, .. }) => {
            findings.push(Finding { hint, ..wrong("configuration", what) });
        }
        Ok(settings) => {
            findings.push(fine("configuration", "can be read".to_owned()));
            findings.extend(keys(&settings));
            findings.extend(workers(&settings).await);
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

/// cargo, rustc and git, as a run would call them.
fn tools() -> Vec<Finding> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let looked =
        [("cargo", cargo, true), ("rustc", "rustc".into(), true), ("git", "git".into(), false)];
    looked.map(|(name, program, needed)| tool(name, &program, needed)).to_vec()
}

fn tool(name: &str, program: &OsString, needed: bool) -> Finding {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let said = match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(format!("it ended with {}", output.status)),
        Err(error) => Err(error.to_string()),
    };
    match said {
        Ok(version) => fine(name, String::from_utf8_lossy(&version).trim().to_owned()),
        Err(why) if needed => {
            let hint = Some("install Rust, or put it into PATH".to_owned());
            let text = format!("could not run {}: {why}", Path::new(program).display());
            Finding { hint, ..wrong(name, text) }
        }
        Err(why) => could(
            name,
            format!("could not run it: {why}"),
            "install it: without it all files of a workspace travel, ignored ones too",
        ),
    }
}

fn descriptors() -> Option<Finding> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(match hard < DESCRIPTORS_MIN {
        true => could(
            "descriptors",
            format!("a process may open {hard} files"),
            "raise `ulimit -Hn`: each worker and each test take some",
        ),
        false => fine("descriptors", format!("a process may open {hard} files")),
    })
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
        findings.push(match fleet::own_key(&settings.identity) {
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

async fn workers(settings: &FleetSettings) -> Vec<Finding> {
    if settings.identity.key == KeySource::Nowhere {
        return Vec::new();
    }
    match fleet::visit(settings).await {
        // The key's finding says why.
        Err(_) => Vec::new(),
        Ok(visited) if visited.is_empty() => {
            vec![fine("workers", "none: tests run on this machine".to_owned())]
        }
        Ok(visited) => visited.iter().flat_map(worker).collect(),
    }
}

fn worker(visited: &Visited) -> Vec<Finding> {
    let name = if visited.name.is_empty() { &visited.address } else { &visited.name };
    let about = format!("worker {name}");
    let Said { hello, status } = match &visited.said {
        Ok(said) => said,
        Err(Trouble { reason, hint }) => {
            return vec![Finding { hint: hint.clone(), ..wrong(&about, reason.clone()) }];
        }
    };
    let mut findings = Vec::new();
    let ours = env!("CARGO_PKG_VERSION");
    if hello.software != ours {
        let text = format!("has version {}, and {ours} is here", hello.software);
        findings.push(could(&about, text, "upgrade the older one"));
    }
    match status {
        Err(Trouble { reason, hint }) => {
            let hint = hint.clone().unwrap_or_else(|| "upgrade it".to_owned());
            findings.push(could(&about, format!("doesn't tell how it is: {reason}"), hint));
        }
        Ok(status) => {
            if status.draining || !status.paused.is_empty() {
                let why = if status.draining { "it drains" } else { &status.paused };
                findings.push(could(
                    &about,
                    format!("takes no tests: {why}"),
                    "wait, or restart it",
                ));
            }
            if !status.sandbox_reason.is_empty() {
                let text = format!("has no better sandbox: {}", status.sandbox_reason);
                let hint = status.sandbox_hint.clone();
                let hint = hint.unwrap_or_else(|| "tests may find other paths there".to_owned());
                findings.push(could(&about, text, hint));
            }
            let full = status.store_bytes_max / 100 * STORE_FULL_PERCENT;
            if full > 0 && status.store_bytes > full {
                let text = format!(
                    "keeps {} of at most {} bytes",
                    status.store_bytes, status.store_bytes_max
                );
                findings.push(could(&about, text, "give it more with --store-max"));
            }
        }
    }
    if findings.is_empty() {
        let text = format!("{} slots for {}", hello.slots, hello.target);
        findings.push(fine(&about, text));
    }
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
        text += &format!("{mark}{}: {}\n", super::ls::plain(about), super::ls::plain(told));
        hint.iter().for_each(|hint| text += &format!("       hint: {}\n", super::ls::plain(hint)));
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
