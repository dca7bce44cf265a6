//! The one door to `cargo metadata`.
//!
//! Its answer costs more than all else that precedes a warm build, so it is kept, and used again as
//! long as cargo would say the same: the question is the same, and so is everything that cargo
//! would read to answer it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use cargo_metadata::Metadata;
use distest_worker::digest::{Digest, Hasher};
use tokio::process::Command;

mod depends;
mod kept;
mod seen;

use super::cargo_config::CargoConfig;
use super::{SECRET_VARIABLE, cannot_follow, in_background, told_by_cargo, toolchain};
use crate::failure::{ExitCode, Failure};
use crate::settings::CompileSettings;
use depends::{Depends, certain};
pub(super) use kept::Kept;

/// What variables of the environment begin with that cargo, rustup, rustc, git or the loader read.
const VARIABLES: &[&str] = &[
    "CARGO",
    "__CARGO",
    "RUST",
    "HOME",
    "USERPROFILE",
    "PATH",
    "LD_",
    "DYLD_",
    "GIT_",
    "SSL_",
    "CURL_",
    "XDG_",
    "http",
    "HTTP",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];
/// Variables that stand for configuration which isn't followed here.
const VARIABLES_ODD: &[&str] =
    &["CARGO_SOURCE_", "CARGO_UNSTABLE_", "CARGO_PATCH_", "CARGO_PATHS", "CARGO_RESOLVER_"];
/// Tables of cargo's configuration that lead to no other file which an answer depends on.
const TABLES: &[&str] = &[
    "alias",
    "build",
    "cache",
    "cargo-new",
    "credential-alias",
    "doc",
    "env",
    "future-incompat-report",
    "http",
    "install",
    "net",
    "profile",
    "registries",
    "registry",
    "source",
    "target",
    "term",
];
/// Keys of a `[source.NAME]` of which the same is true.
const SOURCE_KEYS: &[&str] = &["registry", "replace-with"];

/// Everything that cargo is told.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) cargo: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) cwd: PathBuf,
    pub(super) environment: BTreeMap<OsString, OsString>,
}

/// What decides how cargo takes a question.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// The question with all that is around it.
    key: Digest,
    /// What cargo reads or looks for, whatever it is going to answer.
    depends: Depends,
}

impl Question {
    /// What there is in the workspace, for these targets.
    pub(super) fn new(settings: &CompileSettings, targets: &[String], cwd: &Path) -> Self {
        let mut args: Vec<OsString> = vec!["--format-version=1".into()];
        // Without a filter cargo would download what only other platforms need.
        args.extend(targets.iter().map(|target| format!("--filter-platform={target}").into()));
        args.extend_from_slice(&settings.metadata_args);
        let mut environment: BTreeMap<_, _> = std::env::vars_os().collect();
        environment.remove(OsStr::new(SECRET_VARIABLE));
        // It goes before `--config`, by which cargo metadata is told the folder, as `--target-dir`
        // goes before it.
        let flag = |arg: &OsString| arg.as_bytes().starts_with(b"--target-dir");
        if settings.build_args.iter().any(flag) {
            environment.remove(OsStr::new("CARGO_TARGET_DIR"));
        }
        Self { cargo: settings.cargo.clone(), args, cwd: cwd.to_owned(), environment }
    }

    /// What decides how cargo takes this. None if that can't be followed.
    pub(super) fn surroundings(
        &self,
        config: &CargoConfig,
        rustc: &OsStr,
        sysroot: &Path,
    ) -> Option<Surroundings> {
        let tools = toolchain::tools(&self.cargo, rustc, sysroot, config)?;
        let odd = |name: &OsString| starts_with(name, VARIABLES_ODD);
        // What isn't stable may read whatever it likes.
        let unstable = |arg: &OsString| arg.as_bytes().starts_with(b"-Z");
        if self.environment.keys().any(odd) || self.args.iter().any(unstable) || !followed(config) {
            return None;
        }
        let mut files: BTreeSet<PathBuf> = config.looked_at().clone();
        for value in values(&self.args, "--config") {
            let file = self.cwd.join(value);
            // It is read as a file then, which may include others.
            if !files.contains(&file) && file.exists() {
                return None;
            }
            files.insert(file);
        }
        files.extend(tools);
        for folder in self.folders().iter().flat_map(|folder| folder.ancestors()) {
            let names = ["Cargo.toml", "rust-toolchain", "rust-toolchain.toml"];
            files.extend(names.map(|name| folder.join(name)));
        }
        let home = |variable: &str, default: &str| match self.variable(variable) {
            Some(home) => Some(self.cwd.join(home)),
            None => Some(Path::new(self.variable("HOME")?).join(default)),
        };
        let cargo_home = home("CARGO_HOME", ".cargo")?;
        files.extend(["credentials", "credentials.toml"].map(|name| cargo_home.join(name)));
        files.extend(home("RUSTUP_HOME", ".rustup").map(|home| home.join("settings.toml")));
        Some(Surroundings { key: self.key(&files), depends: Depends::on(&files) })
    }

    /// The folders from which cargo looks upwards: the current one, and that of `--manifest-path`.
    fn folders(&self) -> Vec<PathBuf> {
        let manifests = values(&self.args, "--manifest-path").into_iter();
        let mut folders: Vec<_> = manifests.map(|path| self.cwd.join(path)).collect();
        folders.iter_mut().for_each(|path| _ = path.pop());
        folders.push(self.cwd.clone());
        folders
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        let value = self.environment.get(OsStr::new(name))?;
        (!value.is_empty()).then_some(value)
    }

    fn key(&self, files: &BTreeSet<PathBuf>) -> Digest {
        let relevant = |(name, _): &(&OsString, &OsString)| starts_with(name, VARIABLES);
        let environment = self.environment.iter().filter(relevant);
        let mut hasher = Hasher::default();
        let mut group = |words: Vec<&OsStr>| {
            hasher.update(&words.len().to_le_bytes());
            for word in words {
                hasher.update(&word.len().to_le_bytes());
                hasher.update(word.as_bytes());
            }
        };
        group(vec![env!("CARGO_PKG_VERSION").as_ref(), self.cargo.as_ref(), self.cwd.as_ref()]);
        group(self.args.iter().map(OsString::as_ref).collect());
        group(environment.flat_map(|(name, value)| [name.as_ref(), value.as_ref()]).collect());
        group(files.iter().map(|path| path.as_os_str()).collect());
        hasher.finish().0
    }

    /// Asks cargo.
    async fn ask(&self) -> Result<String, Failure> {
        let output = Command::new(&self.cargo)
            .arg("metadata")
            .args(&self.args)
            .current_dir(&self.cwd)
            .env_clear()
            .envs(&self.environment)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| toolchain::cannot_run("cargo", &self.cargo, error))?
            .wait_with_output()
            .await
            .map_err(cannot_follow)?;
        told_by_cargo(output.status, ExitCode::MetadataFailed, "cargo metadata")?;
        String::from_utf8(output.stdout).map_err(not_read)
    }
}

/// What cargo knows of a workspace.
#[derive(Debug)]
pub(super) struct Answer {
    /// As cargo printed it.
    pub(super) raw: String,
    pub(super) metadata: Metadata,
}

impl Answer {
    fn parse(raw: String) -> Result<Self, Failure> {
        let metadata = serde_json::from_str(&raw).map_err(not_read)?;
        Ok(Self { raw, metadata })
    }
}

/// What cargo answers. It is asked only if that can't be told for certain at `now`, or nothing is
/// kept.
///
/// # Errors
/// cargo can't be run, or failed and has told the user why.
pub(super) async fn answer(
    question: &Question,
    surroundings: Option<Surroundings>,
    kept: Option<Kept>,
    now: SystemTime,
) -> Result<Answer, Failure> {
    let Some((Surroundings { key, depends }, kept)) = surroundings.zip(kept) else {
        return Answer::parse(question.ask().await?);
    };
    let look = move || match kept.answer(key).and_then(|raw| Answer::parse(raw).ok()) {
        Some(answer) => Ok(answer),
        None => Err((kept, depends.look(), depends)),
    };
    let (kept, before, depends) = match in_background(look).await {
        Ok(answer) => return Ok(answer),
        Err(unknown) => unknown,
    };
    let answer = Answer::parse(question.ask().await?)?;
    let keep = move || {
        let all = Depends::of(&answer.metadata).map(|others| depends.and(others));
        let certain = before.zip(all).and_then(|(before, all)| certain(&before, all.look()?, now));
        if let Some(certain) = certain {
            // What can't be kept is asked again.
            kept.keep(key, &certain, &answer.raw).ok();
        }
        answer
    };
    Ok(in_background(keep).await)
}

/// Where cargo puts what it builds in the current folder, if that is in a workspace. Changes nothing
/// and fetches nothing, and what is wrong isn't told.
pub(crate) fn target_folder(cargo: &OsStr) -> Option<PathBuf> {
    let mut metadata = std::process::Command::new(cargo);
    metadata.args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let output = metadata.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).ok()?;
    Some(metadata.target_directory.into_std_path_buf())
}

/// Whether this configuration leads to nothing that would have to be watched, too.
fn followed(config: &CargoConfig) -> bool {
    let source = config.keys_of_tables_in("source");
    config.keys().all(|key| TABLES.contains(&key))
        && source.iter().all(|key| SOURCE_KEYS.contains(key))
}

/// The values of a flag, glued to it or not.
fn values<'a>(args: &'a [OsString], flag: &str) -> Vec<&'a OsStr> {
    let glued = |arg: &'a OsString| {
        let value = arg.as_bytes().strip_prefix(flag.as_bytes())?.strip_prefix(b"=")?;
        Some(OsStr::from_bytes(value))
    };
    let apart = args.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_os_str());
    args.iter().filter_map(glued).chain(apart).collect()
}

fn starts_with(name: &OsStr, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| name.as_bytes().starts_with(beginning.as_bytes()))
}

fn not_read(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    let what = "could not read what `cargo metadata` printed";
    Failure::new(ExitCode::MetadataFailed, what).because(error)
}

#[cfg(test)]
mod tests;
