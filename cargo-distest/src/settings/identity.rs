//! Who we are to workers: `DISTEST_KEY` and `DISTEST_KNOWN_WORKERS`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::resolve::{Environment, Warning};
use super::{Fallback, FleetSettings, LocalSlots};

/// Who we are to workers, and which of them we know.
#[derive(Clone, Debug, Default)]
pub struct IdentitySettings {
    /// `DISTEST_KEY`.
    pub key: KeySource,
    /// `DISTEST_KNOWN_WORKERS`: keys, or the path of a file with keys. Beside the user's file.
    pub known_workers: Option<String>,
}

/// Where our private key is.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum KeySource {
    /// In the user's configuration; made on first use.
    #[default]
    User,
    /// In this file.
    File(PathBuf),
    /// Here.
    Text(String),
    /// Nowhere: `DISTEST_KEY` is empty, as in a CI job that gets no secrets.
    Nowhere,
}

impl IdentitySettings {
    /// What the environment says. Relative paths start from `cwd`.
    pub fn of_environment(env: &Environment<'_>, cwd: &Path) -> Self {
        let key = match env("DISTEST_KEY") {
            None => KeySource::User,
            Some(text) if text.trim().is_empty() => KeySource::Nowhere,
            Some(text) if text.contains("PRIVATE KEY") => KeySource::Text(text),
            Some(path) => KeySource::File(cwd.join(path)),
        };
        let known_workers = env("DISTEST_KNOWN_WORKERS").filter(|text| !text.trim().is_empty());
        Self { key, known_workers }
    }
}

/// Why workers are left out that are configured.
pub const EMPTY_KEY: &str = "DISTEST_KEY is empty, so no worker can be used";

/// Without a key no worker lets us in. In a job of CI that gets no secrets that is nobody's fault:
/// one notice, and the tests run here.
pub(super) fn without_key(fleet: &mut FleetSettings) -> Option<Warning> {
    let may_run_here =
        fleet.fallback == Fallback::Embedded && fleet.local_slots != LocalSlots::Count(0);
    let wants_others = !fleet.workers.is_empty() || fleet.is_on_another();
    if fleet.identity.key != KeySource::Nowhere || !wants_others || !may_run_here {
        return None;
    }
    fleet.workers.clear();
    fleet.on = None;
    let text = format!("{EMPTY_KEY}: the tests run on this machine");
    let hint = "CI services give no secrets to jobs of forks";
    Some(Warning { text, hint: Some(hint.to_owned()) })
}

impl fmt::Debug for KeySource {
    /// Never the key itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("User"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::Nowhere => f.write_str("Nowhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_a_path_a_key_or_empty() {
        let source = |text: Option<&str>| {
            let text = text.map(str::to_owned);
            let env = move |name: &str| text.clone().filter(|_| name == "DISTEST_KEY");
            IdentitySettings::of_environment(&env, Path::new("/cwd")).key
        };
        assert_eq!(source(None), KeySource::User);
        assert_eq!(source(Some(" ")), KeySource::Nowhere);
        assert_eq!(source(Some("keys/ci")), KeySource::File("/cwd/keys/ci".into()));
        let text = "-----BEGIN PRIVATE KEY----- secret";
        assert!(!format!("{:?}", source(Some(text))).contains("secret"));
    }
}
