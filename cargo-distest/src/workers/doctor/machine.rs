//! What the doctor sees of this machine.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use etcetera::BaseStrategy;
use nix::sys::resource::{Resource, getrlimit};

use super::{DESCRIPTORS_MIN, DISK_FREE_MIN, Finding, could, fine, wrong};
use crate::testenv::Pass;
use crate::{clues, testenv};

/// Variables that are named of those that don't travel.
const NAMED_MAX: usize = 12;
/// Beginnings of names that belong to a login, a desktop, a terminal or cargo, which no test is about.
const OF_THE_SESSION: &[&str] = &[
    "_",
    "BASH_",
    "CARGO_",
    "COLOR",
    "COMP_",
    "DBUS_",
    "DESKTOP_",
    "DISTEST_",
    "GDM",
    "GNOME_",
    "GPG_",
    "GTK_",
    "HIST",
    "KDE_",
    "LESS",
    "LS_",
    "PAGER",
    "PROMPT",
    "PS1",
    "PS2",
    "PYENV_",
    "QT_",
    "RUSTUP_",
    "SESSION_",
    "SSH_",
    "SUDO_",
    "SYSTEMD_",
    "TERM_",
    "TMUX",
    "WAYLAND_",
    "WINDOWID",
    "XAUTHORITY",
    "XDG_",
    "XMODIFIERS",
    "ZSH",
];

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// As a run would call it.
pub(super) fn cargo() -> OsString {
    variable("CARGO").unwrap_or_else(|| "cargo".into())
}

/// cargo, rustc and git, as a run would call them.
pub(super) fn tools() -> Vec<Finding> {
    let cargo = cargo();
    // As cargo chooses it.
    let rustc = variable("RUSTC").or_else(|| variable("CARGO_BUILD_RUSTC"));
    let rustc = rustc.unwrap_or_else(|| "rustc".into());
    let looked = [("cargo", cargo, true), ("rustc", rustc, true), ("git", "git".into(), false)];
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
            let hint = match program == name {
                true => "install Rust, or put it into PATH".to_owned(),
                false => format!("correct the variable that names it, or unset it ({name})"),
            };
            let text = format!("could not run {}: {why}", Path::new(program).display());
            Finding { hint: Some(hint), ..wrong(name, text) }
        }
        Err(why) => could(
            name,
            format!("could not run it: {why}"),
            "install it: without it all files of a workspace travel, ignored ones too",
        ),
    }
}

/// Files that may be open.
pub(super) fn descriptors() -> Option<Finding> {
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

/// Room for what is kept of the files that travel.
pub(super) fn disk() -> Option<Finding> {
    let cache = etcetera::choose_base_strategy().ok()?.cache_dir();
    // The folder may be made by the first run.
    let there = cache.ancestors().find(|path| path.is_dir())?;
    let free = distest_worker::store::disk_free(there)?;
    let text = format!("{} MiB are free at {}", free >> 20, cache.display());
    Some(match free < DISK_FREE_MIN {
        true => could("disk", text, "make room, or set XDG_CACHE_HOME: copies of files lie there"),
        false => fine("disk", text),
    })
}

/// What is set here and workers' tests don't get.
pub(super) fn variables(
    pass: &[String],
    set: impl Iterator<Item = (OsString, OsString)>,
) -> Option<Finding> {
    let pass = Pass::new(pass).ok()?;
    let of_session = |name: &str| {
        // What a worker has of its own.
        testenv::is_workers_own(name)
            || OF_THE_SESSION.iter().any(|start| name.starts_with(start))
            || clues::is_common(name)
    };
    let mut names: Vec<String> = set
        .filter(|(name, _)| !testenv::travels(name, &pass) && !testenv::is_kept_back(name))
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| !of_session(name))
        .collect();
    names.sort();
    if names.is_empty() {
        return Some(fine("variables", "all that tests could want travel".to_owned()));
    }
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(could(
        "variables",
        format!("set here and not passed to tests on workers: {}{and_more}", names.join(", ")),
        format!(
            "if tests read them, put `env.pass = [{}]` below [profile.default] in \
             .config/distest.toml",
            quoted.join(", ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn variables_that_tests_could_want_are_named_with_what_passes_them() {
        let set = ["DATABASE_URL", "HOME", "PATH", "RUST_LOG", "SSH_AUTH_SOCK", "APP_X", "TERM"];
        let found = |pass: &[&str]| {
            let pass: Vec<String> = pass.iter().map(ToString::to_string).collect();
            variables(&pass, set.iter().map(|name| (name.into(), "x".into()))).unwrap()
        };
        let some = found(&["APP_*"]);
        assert_eq!(some.grade, Grade::Could);
        assert!(some.text.ends_with(": DATABASE_URL"), "{}", some.text);
        assert!(some.hint.unwrap().contains("env.pass = [\"DATABASE_URL\"]"));
        assert_eq!(found(&["APP_*", "DATABASE_*"]).grade, Grade::Fine);
    }

    #[test]
    fn a_compiler_that_is_not_there_is_told_with_the_variable() {
        let missing = tool("rustc", &"/no/such/rustc".into(), true);
        assert_eq!(missing.grade, Grade::Wrong);
        assert!(missing.hint.unwrap().contains("variable"));
    }
}
