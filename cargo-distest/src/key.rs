//! `cargo distest key`: this user's identity.

use std::path::PathBuf;

use distest_worker::identity::{Folder, IdentityError, PrivateKey};

use crate::cli::KeyCommand;
use crate::failure::{ExitCode, Failure};
use crate::fleet;
use crate::settings::IdentitySettings;

/// Does it; answers what goes to stdout.
///
/// # Errors
/// [`ExitCode::Setup`]: the key can't be read or written, or is there already.
pub fn key(command: &KeyCommand) -> Result<String, Failure> {
    match command {
        KeyCommand::Show => {
            let cwd = std::env::current_dir().unwrap_or_default();
            let identity =
                IdentitySettings::of_environment(&|name| std::env::var(name).ok(), &cwd)?;
            identity.check()?;
            let key = fleet::own_key(&identity).map_err(|(reason, hint)| Failure {
                hint,
                ..Failure::new(ExitCode::Setup, reason)
            })?;
            Ok(format!("{}\n", key.public()))
        }
        KeyCommand::New { out } => {
            let path = match out {
                Some(path) => path.clone(),
                None => own_key()?,
            };
            if path.exists() {
                let what = format!("could not make a key: {} is there already", path.display());
                return Err(Failure::new(ExitCode::Setup, what).hint(
                    "move it away first; whoever lets it in won't know the new one, so keep it \
                     until they do",
                ));
            }
            let key = PrivateKey::load_or_make(&path).map_err(failed)?;
            Ok(format!("{}\n", key.public()))
        }
    }
}

fn own_key() -> Result<PathBuf, Failure> {
    let folder = Folder::of_user().ok_or(IdentityError::NoFolder).map_err(failed)?;
    Ok(folder.client_key())
}

fn failed(error: IdentityError) -> Failure {
    let hint = error.hint();
    Failure::new(ExitCode::Setup, error.to_string()).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let out = Some(folder.path().join("ci"));
        let made = key(&KeyCommand::New { out: out.clone() }).expect("it is new");
        assert!(made.starts_with("ed25519:") && made.ends_with('\n'), "{made}");
        assert_eq!(key(&KeyCommand::New { out }).expect_err("it is there").code, ExitCode::Setup);
    }
}
