//! Which of a call's variables go where. Pure.

use std::ffi::OsStr;

use distest_worker::protocol::OsText;

use super::wire::Variable;
use crate::testenv::{self, OF_A_MACHINE, OF_CARGO, OURS, Pass};

/// The variables that an executable gets: everything where it uses the client's files in place;
/// elsewhere what is meant for tests or named by the user, and what whoever called us has set for it.
pub(super) fn of_call(env: &[Variable], embedded: bool, pass: &Pass) -> Vec<(OsText, OsText)> {
    let passed = env.iter().filter(|variable| {
        let name = variable.name.as_os_str();
        if matches(OURS, name) {
            return false;
        }
        embedded
            || matches(OF_CARGO, name)
            || testenv::travels(name, pass)
            || !(variable.inherited || matches(OF_A_MACHINE, name))
    });
    passed.map(|variable| (variable.name.clone(), variable.value.clone())).collect()
}

fn matches(patterns: &[&str], name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    testenv::any_matches(patterns, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_gets_what_cargo_set_and_nothing_that_only_the_user_has() {
        let env = [
            ("PATH", false),
            ("SECRET", true),
            ("FROM_A_BUILD_SCRIPT", false),
            ("CARGO_PKG_NAME", true),
            ("OUT_DIR", false),
            ("RUST_LOG", true),
            ("DISTEST_KEY", false),
            ("CARGO_REGISTRY_TOKEN", true),
        ];
        let env = env.map(|(name, inherited)| Variable {
            name: name.into(),
            value: "x".into(),
            inherited,
        });
        let names = |embedded| -> Vec<String> {
            let passed = of_call(&env, embedded, &Pass::default()).into_iter();
            passed.map(|(name, _)| name.as_os_str().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(false), ["FROM_A_BUILD_SCRIPT", "CARGO_PKG_NAME", "OUT_DIR", "RUST_LOG"]);
        assert_eq!(names(true).len(), env.len() - 1, "all but ours");
    }
}
