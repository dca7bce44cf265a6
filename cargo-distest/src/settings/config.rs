//! Where configuration files lie, and their text. What is in them: [`super::reader`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::failure::{ExitCode, Failure};

/// The configuration files of a run, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct ConfigFiles {
    /// `.config/distest.toml` in the workspace's root, or `--config-file`.
    pub distest: Option<ConfigText>,
    /// `.config/nextest.toml` in the workspace's root, or `--config-file`.
    pub nextest: Option<ConfigText>,
    /// `~/.config/distest/config.toml`: the user's fleet.
    pub user: Option<ConfigText>,
}

/// A configuration file's text.
#[derive(Clone, Debug)]
pub struct ConfigText {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// What a configuration file may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Everything that is documented; an unknown key is an error.
    Distest,
    /// cargo-nextest's keys; unknown ones are ignored, known ones without effect are told.
    Nextest,
    /// `[fleet]` only; an unknown key is an error.
    User,
}

impl ConfigFiles {
    /// Reads the files that a run in this workspace uses.
    ///
    /// # Errors
    ///
    /// [`ExitCode::Setup`] if a file is there and can't be read, or `config_file` is not there.
    pub fn read(
        workspace_root: &Path,
        config_file: Option<&Path>,
        user: Option<&Path>,
    ) -> Result<Self, Failure> {
        let (distest, nextest) = match config_file {
            None => {
                let folder = workspace_root.join(".config");
                (read(&folder.join("distest.toml"))?, read(&folder.join("nextest.toml"))?)
            }
            Some(path) => {
                let file = read(path)?.ok_or_else(|| {
                    let what = format!("could not read {}: there is no such file", path.display());
                    Failure::new(ExitCode::Setup, what).hint("correct the path of --config-file")
                })?;
                match path.file_name() {
                    Some(name) if name.as_encoded_bytes().ends_with(b"nextest.toml") => {
                        (None, Some(file))
                    }
                    _ => (Some(file), None),
                }
            }
        };
        let user = user.map(read).transpose()?.flatten();
        Ok(Self { distest, nextest, user })
    }
}

/// Where the user's own configuration lies: `~/.config/distest/config.toml`, or below
/// `$XDG_CONFIG_HOME`. None for a user without a home.
pub fn user_config_path() -> Option<PathBuf> {
    let folders = etcetera::choose_base_strategy().ok()?;
    Some(folders.config_dir().join("distest").join("config.toml"))
}

fn read(path: &Path) -> Result<Option<ConfigText>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(ConfigText { path: path.to_owned(), text })),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Failure::new(
            ExitCode::Setup,
            format!("could not read the configuration {}", path.display()),
        )
        .because(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_workspaces_files_or_the_given_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(".config");
        std::fs::create_dir(&folder).unwrap();
        let none = ConfigFiles::read(root.path(), None, Some(&folder.join("user.toml"))).unwrap();
        assert!(none.distest.is_none() && none.nextest.is_none() && none.user.is_none());

        for name in ["distest.toml", "nextest.toml", "ci-nextest.toml", "user.toml"] {
            std::fs::write(folder.join(name), name).unwrap();
        }
        let text = |file: Option<ConfigText>| file.map(|file| file.text);
        let all = ConfigFiles::read(root.path(), None, Some(&folder.join("user.toml"))).unwrap();
        assert_eq!(text(all.distest).as_deref(), Some("distest.toml"));
        assert_eq!(text(all.nextest).as_deref(), Some("nextest.toml"));
        assert_eq!(text(all.user).as_deref(), Some("user.toml"));

        let given = folder.join("ci-nextest.toml");
        let given = ConfigFiles::read(root.path(), Some(&given), None).unwrap();
        assert!(given.distest.is_none());
        assert_eq!(text(given.nextest).as_deref(), Some("ci-nextest.toml"));

        let missing = ConfigFiles::read(root.path(), Some(Path::new("/nowhere/x.toml")), None);
        assert_eq!(missing.unwrap_err().code, ExitCode::Setup);
    }
}
