//! The environment of an attempt: later parts win.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::digest::Digest;
use crate::executor::{Environment, Variables};
use crate::protocol::{AttemptId, OsText};
use crate::sandbox::Sandbox;
use crate::tools;

/// Variables of the worker's own environment that tests of a remote client get.
pub const FROM_WORKER: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG"];

/// Hexadecimal digits that tell one run from another.
const RUN_DIGITS: usize = 8;

/// What every process of a session starts from: nothing of ours for an embedded worker, whose
/// client sends all of its own.
pub(super) fn base(in_place: bool, sandbox: &Sandbox) -> Environment {
    if in_place {
        return Environment::new();
    }
    let from_worker = FROM_WORKER
        .iter()
        .filter_map(|name| std::env::var_os(name).map(|value| (OsString::from(name), value)));
    let mut base: Environment = from_worker.collect();
    if let Some(enclosure) = sandbox.enclosure() {
        base.insert("HOME".into(), enclosure.home.into());
        // A sandbox has its own `/tmp`, and perhaps no other.
        base.remove(OsStr::new("TMPDIR"));
    }
    base
}

/// What is over `base` for one binary: its own variables, paths translated. Tests that call cargo
/// find the one that is here, if the client's path of it leads nowhere.
pub(super) fn of_binary(
    base: &Environment,
    own: &[(OsText, OsText)],
    sandbox: &Sandbox,
) -> Environment {
    const CARGO: &str = "CARGO";
    let mut own: Environment = translated(own, sandbox).collect();
    let cargo = OsStr::new(CARGO);
    if let Some(given) = own.get(cargo).or_else(|| base.get(cargo))
        && !tools::is_executable(Path::new(given))
        && let Some(here) = tools::find("cargo")
    {
        own.insert(CARGO.into(), here.into());
    }
    own
}

/// Where instrumented programs write their profiles (`-C instrument-coverage`).
const PROFILE: &str = "LLVM_PROFILE_FILE";

/// Gives the profiles of one attempt names that no other of the run has: where `%p` stands for a
/// process's number, which a sandbox gives out again and again, `run` and the attempt's come before it.
pub(super) fn with_own_profiles(environment: &mut Variables, run: &str, attempt: AttemptId) {
    let Some(pattern) = environment.get(OsStr::new(PROFILE)) else { return };
    let run = &Digest::of(run.as_bytes()).to_string()[..RUN_DIGITS];
    let own = format!("{run}-{}-", attempt.0);
    let mut named = Vec::with_capacity(pattern.len() + own.len());
    let mut rest = pattern.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        // What a `%` stands for depends on what follows it, another one included.
        let end = rest.len().min(at + 2);
        named.extend_from_slice(&rest[..at]);
        if rest[at..end] == *b"%p" {
            named.extend_from_slice(own.as_bytes());
        }
        named.extend_from_slice(&rest[at..end]);
        rest = &rest[end..];
    }
    named.extend_from_slice(rest);
    environment.set(PROFILE, OsString::from_vec(named));
}

/// Variables as the client says them, paths translated.
pub(super) fn translated(
    variables: &[(OsText, OsText)],
    sandbox: &Sandbox,
) -> impl Iterator<Item = (OsString, OsString)> {
    let translated = |(name, value): &(OsText, OsText)| {
        (name.as_os_str().to_owned(), sandbox.value(value.as_os_str()))
    };
    variables.iter().map(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_two_attempts_have_names_of_their_own() {
        let named = |pattern: &str, run: &str, attempt| {
            let mut environment = Variables::default();
            environment.set(PROFILE, pattern);
            with_own_profiles(&mut environment, run, AttemptId(attempt));
            environment.get(OsStr::new(PROFILE)).unwrap().to_str().unwrap().to_owned()
        };
        let first = named("/t/x-%p-%2m.profraw", "run", 7);
        let (run, rest) = first.strip_prefix("/t/x-").unwrap().split_at(RUN_DIGITS);
        assert_eq!(rest, "-7-%p-%2m.profraw", "and a child still has its own");
        assert!(run.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(named("/t/x-%p-%2m.profraw", "other run", 7), first);
        for unchanged in ["/t/x-%m.profraw", "", "%", "%%p"] {
            assert_eq!(named(unchanged, "run", 7), unchanged);
        }
    }
}
