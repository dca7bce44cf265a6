//! Which cargo and which rustc are in force, and what the compiler says of itself.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::cargo_config::CargoConfig;
use super::compilers::Compilers;
use crate::failure::{ExitCode, Failure};
use crate::model::Triple;
use crate::settings::CompileSettings;

/// The compiler that cargo will use: `$RUSTC`, else `build.rustc`, else `rustc`.
pub(super) fn rustc(config: Option<&CargoConfig>) -> OsString {
    ["RUSTC", "CARGO_BUILD_RUSTC"]
        .into_iter()
        .filter_map(std::env::var_os)
        .find(|rustc| !rustc.is_empty())
        .or_else(|| config?.program("build", "rustc"))
        .unwrap_or_else(|| "rustc".into())
}

/// The compiler's host triple, and the folder that its libraries lie under.
///
/// # Errors
/// There is no such compiler, or it doesn't answer.
pub(super) async fn host_and_sysroot(rustc: &OsStr) -> Result<(Triple, PathBuf), Failure> {
    let Some(own) = own_executable(Path::new(rustc)) else { return ask_both(rustc).await };
    let mut compilers = Compilers::open();
    if let Some(answer) = compilers.answer(&own) {
        return Ok(answer);
    }
    let (host, sysroot) = ask_both(own.as_os_str()).await?;
    compilers.remember(&own, &host, &sysroot);
    Ok((host, sysroot))
}

/// The compiler itself: what lies on the path, or what rustup's proxy there would start. None
/// where only the proxy knows.
fn own_executable(rustc: &Path) -> Option<PathBuf> {
    let found = on_path(rustc)?;
    if !is_proxy(&found) {
        return Some(found);
    }
    // Set by the proxy that started `cargo`; rustup heeds it before anything else.
    let toolchain = std::env::var_os("RUSTUP_TOOLCHAIN").filter(|name| !name.is_empty())?;
    let home = match std::env::var_os("RUSTUP_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".rustup"),
    };
    // A toolchain may be a path, which replaces what it is joined to.
    let own = home.join("toolchains").join(toolchain).join("bin").join(found.file_name()?);
    (own.is_absolute() && own.is_file()).then_some(own)
}

/// Whether a tool is rustup, which starts the one that is in force.
fn is_proxy(tool: &Path) -> bool {
    let resolved = tool.canonicalize().unwrap_or_else(|_| tool.to_owned());
    resolved.file_stem().is_some_and(|stem| stem == "rustup")
        || tool.with_file_name("rustup").exists()
}

/// Its start is most of what a question costs, so both are one, where it knows `host-tuple`: from
/// Rust 1.84 on.
async fn ask_both(rustc: &OsStr) -> Result<(Triple, PathBuf), Failure> {
    let both = Command::new(rustc)
        .args(["--print", "host-tuple", "--print", "sysroot"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| cannot_run("rustc", rustc, error))?;
    let text = String::from_utf8_lossy(&both.stdout);
    match text.lines().collect::<Vec<_>>()[..] {
        [host, sysroot] if both.status.success() => Ok((Triple::new(host), sysroot.into())),
        _ => Ok((host(rustc).await?, sysroot(rustc).await?)),
    }
}

async fn host(rustc: &OsStr) -> Result<Triple, Failure> {
    let version = ask(rustc, &["-vV"]).await?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(Triple::new).ok_or_else(|| {
        Failure::new(ExitCode::Setup, "could not find the host triple")
            .because(format!("`{} -vV` doesn't tell it", Path::new(rustc).display()))
    })
}

async fn sysroot(rustc: &OsStr) -> Result<PathBuf, Failure> {
    Ok(PathBuf::from(ask(rustc, &["--print", "sysroot"]).await?.trim_end()))
}

/// What will be built for: `--target`, else `$CARGO_BUILD_TARGET`, else `build.target`; and always
/// the host, for which build scripts and procedural macros are built.
pub(super) fn targets(
    settings: &CompileSettings,
    config: Option<&CargoConfig>,
    host: &Triple,
) -> Vec<String> {
    let mut targets = settings.targets.clone();
    if targets.is_empty() {
        targets = match std::env::var("CARGO_BUILD_TARGET") {
            Ok(target) if !target.is_empty() => vec![target],
            _ => config.map(|config| config.strings("build", "target")).unwrap_or_default(),
        };
    }
    targets.retain(|target| target != "host-tuple" && **target != *host.0);
    targets.insert(0, host.0.to_string());
    targets
}

/// What cargo tells tests in `CARGO`: its own path. Where `cargo` is rustup's proxy, that is the
/// cargo that the proxy would start.
pub(super) fn cargo_for_tests(cargo: &Path, sysroot: &Path) -> PathBuf {
    let Some(found) = on_path(cargo) else { return cargo.to_path_buf() };
    let own = sysroot.join("bin/cargo").with_extension(std::env::consts::EXE_EXTENSION);
    if is_proxy(&found) && own.exists() { own } else { found }
}

/// The executables that decide what cargo finds out of itself and of the compiler, which lies in
/// `sysroot`. None where that can't be told for certain.
pub(super) fn tools(
    cargo: &Path,
    rustc: &OsStr,
    sysroot: &Path,
    config: &CargoConfig,
) -> Option<Vec<PathBuf>> {
    let (cargo, rustc) = (on_path(cargo)?, on_path(Path::new(rustc))?);
    let own = ["cargo", "rustc"]
        .map(|name| sysroot.join("bin").join(name).with_extension(std::env::consts::EXE_EXTENSION));
    // It starts the cargo that lies beside the compiler which its other proxy starts, if any.
    if is_proxy(&cargo) && !(is_proxy(&rustc) && own[0].is_file()) {
        return None;
    }
    let mut tools = vec![cargo, rustc];
    tools.extend(own);
    for (key, variables) in [
        ("rustc-wrapper", ["RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WRAPPER"]),
        (
            "rustc-workspace-wrapper",
            ["RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER"],
        ),
    ] {
        let given = variables.into_iter().filter_map(std::env::var_os);
        for wrapper in given.chain(config.program("build", key)).filter(|it| !it.is_empty()) {
            tools.push(on_path(Path::new(&wrapper))?);
        }
    }
    Some(tools)
}

/// The error for a program that can't be started.
pub(super) fn cannot_run(what: &str, program: impl AsRef<Path>, error: io::Error) -> Failure {
    let program = program.as_ref().display();
    let failure = Failure::new(ExitCode::Setup, format!("could not run `{program}`"));
    if error.kind() == io::ErrorKind::NotFound {
        let variable = what.to_uppercase();
        return failure.because("there is no such program").hint(format!(
            "install Rust (https://rustup.rs), or set ${variable} to the path of {what}"
        ));
    }
    failure.because(error)
}

/// What the compiler prints.
pub(super) async fn ask<S: AsRef<str>>(rustc: &OsStr, args: &[S]) -> Result<String, Failure> {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    let output = Command::new(rustc)
        .args(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| cannot_run("rustc", rustc, error))?
        .wait_with_output()
        .await
        .map_err(|error| cannot_run("rustc", rustc, error))?;
    if !output.status.success() {
        let command = format!("{} {}", Path::new(rustc).display(), args.join(" "));
        return Err(Failure::new(ExitCode::Setup, "could not ask the compiler what it is")
            .because(format!("`{command}` ended with {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn on_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return std::path::absolute(program).ok();
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program).with_extension(std::env::consts::EXE_EXTENSION))
        .find(|candidate| candidate.is_file())
}
