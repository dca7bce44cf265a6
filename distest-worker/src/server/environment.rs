//! The environment of an attempt: later parts win.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::protocol::OsText;
use crate::sandbox::Sandbox;
use crate::tools;

/// Variables of the worker's own environment that tests of a remote client get.
pub const FROM_WORKER: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG"];

/// Variables by name.
pub(super) type Environment = BTreeMap<OsString, OsString>;

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

/// Lets tests that call cargo find the one that is here, if the client's path of it leads nowhere.
pub(super) fn with_own_cargo(mut environment: Environment) -> Environment {
    if let Some(cargo) = environment.get_mut(OsStr::new("CARGO"))
        && !tools::is_executable(Path::new(&*cargo))
        && let Some(own) = tools::find("cargo")
    {
        *cargo = own.into();
    }
    environment
}

/// `base` with `more` over it, its paths translated.
pub(super) fn with(
    base: &Environment,
    more: &[(OsText, OsText)],
    sandbox: &Sandbox,
) -> Environment {
    let mut environment = base.clone();
    for (name, value) in more {
        environment.insert(name.as_os_str().to_owned(), sandbox.value(value.as_os_str()));
    }
    environment
}
