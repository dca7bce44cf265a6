//! Who we are to workers: `DISTEST_KEY` and `DISTEST_KNOWN_WORKERS`.

use std::fmt;
use std::path::{Path, PathBuf};

use distest_worker::identity::KnownWorkers;
use distest_worker::registry::place;
use distest_worker::shown;

use super::resolve::{Environment, Warning};
use super::{Fallback, FleetSettings, LocalSlots};
use crate::failure::{ExitCode, Failure};

/// Characters that are shown of what should be a key: less than would tell anything of a private
/// one that is here by mistake.
const SHOWN_CHARS_MAX: usize = 20;

/// Who we are to workers, and which of them we know.
#[derive(Clone, Debug, Default)]
pub struct IdentitySettings {
    /// `DISTEST_KEY`.
    pub key: KeySource,
    /// `DISTEST_KNOWN_WORKERS`. Beside the user's file.
    pub known_workers: Option<KnownSource>,
}

/// Where more keys of workers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownSource {
    /// Here.
    Keys(KnownWorkers),
    /// In this file.
    File(PathBuf),
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
    ///
    /// # Errors
    /// [`ExitCode::Usage`]: `DISTEST_KNOWN_WORKERS` has keys, and something that is none.
    pub fn of_environment(env: &Environment<'_>, cwd: &Path) -> Result<Self, Failure> {
        let key = match env("DISTEST_KEY") {
            None => KeySource::User,
            Some(text) if text.trim().is_empty() => KeySource::Nowhere,
            Some(text) if text.contains("PRIVATE KEY") => KeySource::Text(text),
            Some(path) => KeySource::File(cwd.join(path)),
        };
        let known_workers = env("DISTEST_KNOWN_WORKERS").filter(|text| !text.trim().is_empty());
        let known_workers = known_workers.map(|text| known_source(&text, cwd)).transpose();
        Ok(Self { key, known_workers: known_workers.map_err(|why| wrongly_known(&why))? })
    }

    /// Looks whether the file with keys is there: a word that is neither a key nor a file is no
    /// reason to know nobody.
    ///
    /// # Errors
    /// [`ExitCode::Usage`]: it isn't.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.known_workers {
            Some(KnownSource::File(path)) if !path.exists() => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Err(wrongly_known(&format!(
                    "{} is no key (`ed25519:…`), and there is no file of that name",
                    quoted(&name)
                )))
            }
            _ => Ok(()),
        }
    }
}

fn wrongly_known(why: &str) -> Failure {
    let what = format!("invalid value of DISTEST_KNOWN_WORKERS: {why}");
    Failure::new(ExitCode::Usage, what).hint(
        "name keys of workers, which `distest-worker serve` prints, or a file like \
         ~/.config/distest/known_workers",
    )
}

/// Keys, or else the path of a file.
fn known_source(text: &str, cwd: &Path) -> Result<KnownSource, String> {
    if !text.contains("ed25519:") {
        return Ok(KnownSource::File(cwd.join(text.trim())));
    }
    let (known, wrong) = KnownWorkers::parse(text);
    if let Some(wrong) = wrong.into_iter().next() {
        return Err(wrong);
    }
    // What stands behind a key is an address, or no key.
    let odd = known.iter().find(|(_, it)| it.address != "-" && place(&it.address).is_none());
    match odd {
        None => Ok(KnownSource::Keys(known)),
        Some((_, odd)) => Err(format!(
            "{} is no key (`ed25519:…`), and no address of one (`HOST:PORT`)",
            quoted(&odd.address)
        )),
    }
}

/// The beginning of a text, safe to print.
fn quoted(text: &str) -> String {
    let text = text.trim();
    let beginning: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if beginning.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", shown::word(&beginning))
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
            IdentitySettings::of_environment(&env, Path::new("/cwd")).unwrap().key
        };
        assert_eq!(source(None), KeySource::User);
        assert_eq!(source(Some(" ")), KeySource::Nowhere);
        assert_eq!(source(Some("keys/ci")), KeySource::File("/cwd/keys/ci".into()));
        let text = "-----BEGIN PRIVATE KEY----- secret";
        assert!(!format!("{:?}", source(Some(text))).contains("secret"));
    }

    #[test]
    fn a_known_worker_is_a_key_or_in_a_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("known"), "").unwrap();
        let source = |text: &str| {
            let text = text.to_owned();
            let env = move |name: &str| Some(text.clone()).filter(|_| name != "DISTEST_KEY");
            let identity = IdentitySettings::of_environment(&env, folder.path())?;
            identity.check().map(|()| identity.known_workers)
        };
        assert_eq!(source(" ").unwrap(), None);
        assert_eq!(source("known").unwrap(), Some(KnownSource::File(folder.path().join("known"))));
        let key = format!("ed25519:{}", "A".repeat(43));
        for text in [key.clone(), format!("{key} host:7 name"), format!("{key},{key}")] {
            assert!(matches!(source(&text), Ok(Some(KnownSource::Keys(_)))), "{text}");
        }
        let wrong = ["rubbish", "/no/\u{1b}[2Jx", "ed25519:xx", &format!("{key},ed25519:xx")];
        let after = [format!("{key} rubbish"), format!("rubbish {key}")];
        for text in wrong.into_iter().chain(after.iter().map(String::as_str)) {
            let failure = source(text).unwrap_err();
            assert_eq!(failure.code, ExitCode::Usage, "{text}");
            let entry =
                text.replace(&key, "").replace([' ', ','], "").replace("/no/\u{1b}", "\\u{1b}");
            assert!(failure.what.contains(&format!("`{entry}`")), "{text}: {}", failure.what);
        }
    }
}
