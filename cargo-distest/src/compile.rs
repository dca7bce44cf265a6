//! cargo's JSON messages → test binaries and their environment.
//!
//! cargo itself is run, with the user's flags untouched and its stderr on the user's terminal. As
//! soon as it reports a linked test binary (and the programs that the binary's tests may start),
//! the binary goes on to the next stage; rustc may still be building the rest.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cargo_metadata::{Message, Metadata};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

use crate::failure::{ExitCode, Failure};
use crate::model::{TestBinary, Triple};
use crate::settings::CompileSettings;

mod assemble;
mod cargo_config;
mod compilers;
mod cpu;
mod dep_info;
mod harness;
mod layout;
mod metadata;
mod needed;
mod plain;
mod runtime_env;
mod toolchain;

pub(crate) use metadata::target_folder;
pub(crate) use needed::libraries as needed_libraries;
pub(crate) use plain::plain;

use assemble::Assembler;
use cargo_config::{CargoConfig, ConfigVariable};
use metadata::{Answer, Kept, Question};

/// The longest line of cargo's stdout that we are willing to hold.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// The client's own secret: neither build scripts nor tests have any business with it.
pub(crate) const SECRET_VARIABLE: &str = "DISTEST_KEY";

/// What cargo knows of the workspace before anything is built.
#[derive(Debug)]
pub struct Workspace {
    /// `cargo metadata`, parsed.
    pub metadata: Metadata,
    /// The same as cargo printed it: JSON, for guppy.
    pub raw: String,
    /// The workspace's root folder.
    pub root: PathBuf,
    /// Where cargo puts what it built, without `..`.
    pub target_dir: PathBuf,
    /// Where cargo puts intermediate files and test binaries: `build.build-dir`, else the same as
    /// [`Self::target_dir`].
    pub build_dir: PathBuf,
    /// What rustc builds for if nothing else is asked.
    pub host: Triple,
    /// Folders of code that doesn't come from a registry or from git: the workspace's root, then
    /// path packages outside of it. None lies in another.
    pub local_roots: Vec<PathBuf>,
    /// The compiler's `--print sysroot`.
    pub sysroot: PathBuf,
    /// Processor features that the user's flags put in force, if there are such flags.
    cpu_features: Vec<String>,
    /// What cargo tells tests in `CARGO`.
    cargo: PathBuf,
    /// What `[env]` of cargo's configuration adds to the client's environment.
    config_env: Vec<ConfigVariable>,
    /// The dynamic loader's path in the client's environment.
    inherited_library_path: Option<OsString>,
}

/// A build that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildDone {
    /// From cargo's start to its end.
    pub elapsed: Duration,
    /// Test binaries that were sent on.
    pub binaries: u32,
}

/// Asks cargo and rustc what there is.
///
/// # Errors
/// No cargo or rustc, or `cargo metadata` failed; in the latter case cargo has told the user.
pub async fn metadata(settings: &CompileSettings) -> Result<Workspace, Failure> {
    let cwd = std::env::current_dir().map_err(|error| {
        Failure::new(ExitCode::Setup, "could not find the current directory").because(error)
    })?;
    // A broken configuration is cargo's to tell, so errors wait until cargo has had its say.
    let cli = settings.config.clone();
    let now = SystemTime::now();
    let (cwd, config) = in_background(move || {
        let config = CargoConfig::load(&cwd, &cli);
        (cwd, config)
    })
    .await;
    let rustc = toolchain::rustc(config.as_ref().ok());
    let (host, sysroot) = toolchain::host_and_sysroot(&rustc).await?;
    let targets = toolchain::targets(settings, config.as_ref().ok(), &host);
    let question = Question::new(settings, &targets, &cwd);
    let known = config.as_ref().ok();
    let surroundings = known.and_then(|config| question.surroundings(config, &rustc, &sysroot));
    let kept = Kept::of_this_user();
    let Answer { raw, metadata } = metadata::answer(&question, surroundings, kept, now).await?;
    let config = config.map_err(|error| {
        Failure::new(ExitCode::Setup, "could not read cargo's configuration").because(error)
    })?;
    let cpu_features = cpu::features(&rustc, &config, &targets).await?;
    let target_dir = plain(metadata.target_directory.as_std_path());
    let build_dir = metadata.build_directory.as_ref().map(|dir| plain(dir.as_std_path()));
    Ok(Workspace {
        root: metadata.workspace_root.clone().into_std_path_buf(),
        build_dir: build_dir.unwrap_or_else(|| target_dir.clone()),
        target_dir,
        local_roots: local_roots(&metadata),
        cargo: toolchain::cargo_for_tests(&settings.cargo, &sysroot),
        config_env: config.variables(|name| std::env::var_os(name)),
        inherited_library_path: std::env::var_os(runtime_env::LIBRARY_PATH),
        metadata,
        raw,
        host,
        sysroot,
        cpu_features,
    })
}

/// A build under way: cargo runs, whether or not somebody follows what it says. Dropping this kills
/// cargo; compilers that it had started end by themselves.
pub struct Building {
    cargo: Child,
    stdout: ChildStdout,
    started: Instant,
}

impl Building {
    /// Starts cargo.
    ///
    /// # Errors
    /// It could not be run.
    pub fn start(settings: &CompileSettings) -> Result<Self, Failure> {
        let started = Instant::now();
        let mut cargo = Command::new(&settings.cargo)
            .args(["test", "--no-run", "--message-format=json-render-diagnostics"])
            .args(&settings.build_args)
            .env_remove(SECRET_VARIABLE)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| toolchain::cannot_run("cargo", &settings.cargo, error))?;
        let stdout = cargo.stdout.take().ok_or_else(|| cannot_follow("its stdout is missing"))?;
        Ok(Self { cargo, stdout, started })
    }

    /// Sends each test binary as soon as it can be used. If the receiver is dropped the build goes
    /// on to its end.
    ///
    /// # Errors
    /// The build failed, and cargo has told the user why.
    pub async fn follow(
        self,
        settings: &CompileSettings,
        workspace: &Arc<Workspace>,
        binaries: mpsc::Sender<TestBinary>,
    ) -> Result<BuildDone, Failure> {
        let Self { mut cargo, stdout, started } = self;
        let mut stdout = BufReader::with_capacity(64 << 10, stdout);
        let mut assembler = Assembler::new(workspace.clone(), &settings.build_args);
        let mut sent = 0;
        while let Some(line) = next_line(&mut stdout).await.map_err(cannot_follow)? {
            let Some(message) = parse(&line) else { continue };
            let ready;
            // Reads manifests and dep-info files.
            (assembler, ready) = in_background(move || {
                let ready = assembler.take(message);
                (assembler, ready)
            })
            .await;
            for binary in ready {
                sent += 1;
                // Nobody listens any more: the run is ending, but the user still wants cargo's
                // errors.
                binaries.send(binary).await.ok();
            }
        }
        let status = cargo.wait().await.map_err(cannot_follow)?;
        told_by_cargo(status, ExitCode::BuildFailed, "cargo test --no-run")?;
        Ok(BuildDone { elapsed: started.elapsed(), binaries: sent })
    }
}

impl Workspace {
    /// Where the standard library for `triple` lies, as shared and static libraries.
    pub fn rust_libdir(&self, triple: &Triple) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(&*triple.0).join("lib")
    }
}

/// Whoever exits with a code has said why on stderr; whoever dies by a signal has not.
fn told_by_cargo(status: ExitStatus, code: ExitCode, command: &str) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        if signal == nix::libc::SIGINT {
            return Err(Failure::told(ExitCode::Interrupted, format!("`{command}` interrupted")));
        }
        return Err(Failure::new(code, format!("`{command}` was ended by signal {signal}")).hint(
            "run it by hand; if it was killed for using too much memory, lower --build-jobs",
        ));
    }
    Err(Failure::told(code, format!("`{command}` failed")))
}

fn cannot_follow(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(ExitCode::Setup, "could not follow what cargo does").because(error)
}

/// The next line without its end, or none at the end of the stream.
async fn next_line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    if line.len() as u64 == LINE_BYTES_MAX {
        return Err(io::Error::other(format!("a line of more than {LINE_BYTES_MAX} bytes")));
    }
    Ok((!line.is_empty()).then_some(line))
}

/// A message that says something about binaries. Anything else on cargo's stdout is no concern of
/// ours: newer cargos may send kinds of messages that we don't know.
fn parse(line: &[u8]) -> Option<Message> {
    match serde_json::from_slice(line).ok()? {
        message @ (Message::CompilerArtifact(_)
        | Message::BuildScriptExecuted(_)
        | Message::BuildFinished(_)) => Some(message),
        _ => None,
    }
}

/// Runs `work` where it may block.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The workspace's root and the path packages outside of it, outermost only.
fn local_roots(metadata: &Metadata) -> Vec<PathBuf> {
    let mut roots = vec![metadata.workspace_root.clone().into_std_path_buf()];
    let mut folders: Vec<&Path> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_none())
        .filter_map(|package| package.manifest_path.as_std_path().parent())
        .collect();
    // A folder sorts before what it contains.
    folders.sort_unstable();
    for folder in folders {
        if !roots.iter().any(|root| folder.starts_with(root)) {
            roots.push(folder.to_path_buf());
        }
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn only_who_exits_by_itself_has_told_why() {
        use std::os::unix::process::ExitStatusExt;
        let told = |raw| {
            let status = ExitStatus::from_raw(raw);
            told_by_cargo(status, ExitCode::BuildFailed, "cargo").map_err(|f| (f.code, f.silent))
        };
        assert_eq!(told(0), Ok(()));
        assert_eq!(told(101 << 8), Err((ExitCode::BuildFailed, true)));
        assert_eq!(told(9), Err((ExitCode::BuildFailed, false)));
        assert_eq!(told(2), Err((ExitCode::Interrupted, true)));
    }

    #[tokio::test]
    async fn what_is_no_message_is_passed_over() {
        let text = "some text\n\n{\"reason\":\"from-the-future\"}\n\
                    {\"reason\":\"build-finished\",\"success\":true}";
        let mut stream = text.as_bytes();
        let mut messages = Vec::new();
        while let Some(line) = next_line(&mut stream).await.unwrap() {
            messages.extend(parse(&line));
        }
        assert!(matches!(&messages[..], [Message::BuildFinished(done)] if done.success));
    }
}
