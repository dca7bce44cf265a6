//! Doctests: which packages have some, and what rustdoc says of them.
//!
//! cargo and rustdoc do what they always do: they choose, build, judge. What they build runs
//! through a target runner ([`crate::runner`]); what they print is read by [`parse`]. A doctest's
//! binary id is `PACKAGE::doc/LIBRARY`, in the manner of cargo-nextest's other kinds, so that it
//! can't be taken for an integration test of the name `doc`.

pub mod parse;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use cargo_metadata::Package;
use tokio::process::Command;

use crate::compile::{SECRET_VARIABLE, Workspace};
use crate::failure::{ExitCode, Failure};
use crate::model::{BinaryId, BinaryKind, BinaryNeeds, Harness, TestBinary};
use crate::settings::CompileSettings;

/// Source files of one package that are looked through; a package with more is asked.
const FILES_MAX: usize = 20_000;
/// What cargo says where there is no library at all.
const NO_LIBRARY: &str = "no library targets found";

/// A library that may have doctests, standing for the binary that rustdoc makes of each.
pub type Library = Arc<TestBinary>;

/// The libraries of the workspace whose sources may hold doctests, by the name that cargo prints.
///
/// Reads sources, blocks.
pub fn libraries(workspace: &Workspace) -> BTreeMap<String, Library> {
    let members = workspace.metadata.workspace_packages();
    let libraries = members.into_iter().filter_map(|package| {
        let library = package.targets.iter().find(|target| {
            target.doctest && (target.is_lib() || target.is_proc_macro() || target.is_rlib())
        })?;
        let folder = package.manifest_path.as_std_path().parent()?;
        let has_some = sources_have_some(folder, &workspace.target_dir, &mut 0);
        let name = library.name.replace('-', "_");
        has_some.then(|| (name.clone(), Arc::new(binary(workspace, package, &name, folder))))
    });
    libraries.collect()
}

fn binary(workspace: &Workspace, package: &Package, name: &str, folder: &Path) -> TestBinary {
    TestBinary {
        id: BinaryId::new(format!("{}::doc/{name}", package.name)),
        package: package.name.to_string(),
        package_id: package.id.repr.clone(),
        target_name: name.to_owned(),
        kind: BinaryKind::Lib,
        harness: Harness::Custom,
        triple: workspace.host.clone(),
        for_host: false,
        executable: folder.to_owned(),
        cwd: folder.to_owned(),
        env: BTreeMap::new(),
        companions: Vec::new(),
        companion_dirs: Vec::new(),
        writable_dirs: Vec::new(),
        needs: BinaryNeeds::default(),
    }
}

/// Whether a Rust source file below `folder` may hold a doctest. What can't be read may.
fn sources_have_some(folder: &Path, target_dir: &Path, seen: &mut usize) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return true };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { return true };
        if kind.is_dir() {
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && path != target_dir && sources_have_some(&path, target_dir, seen) {
                return true;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *seen += 1;
            let some = fs::read_to_string(&path).map_or(true, |text| parse::may_have_some(&text));
            if some || *seen > FILES_MAX {
                return true;
            }
        }
    }
    false
}

/// What rustdoc lists: names by library, and which of them are ignored. Builds the libraries.
///
/// # Errors
/// [`ExitCode::ListFailed`] with what cargo said.
pub async fn list(settings: &CompileSettings) -> Result<Vec<parse::Listed>, Failure> {
    let all = parse::list(&ask(settings, &["--list"]).await?);
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let ignored = parse::list(&ask(settings, &["--list", "--ignored"]).await?);
    let listed = all.into_iter().map(|(library, name)| {
        let ignored = ignored.iter().any(|it| *it == (library.clone(), name.clone()));
        parse::Listed { library, name, ignored }
    });
    Ok(listed.collect())
}

async fn ask(settings: &CompileSettings, args: &[&str]) -> Result<String, Failure> {
    let fail = |why: String| {
        Failure::new(ExitCode::ListFailed, "could not list the doctests").because(why)
    };
    let (reader, writer) = std::io::pipe().map_err(|error| fail(error.to_string()))?;
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    let mut command = command(settings, &[], &args);
    let errors = writer.try_clone().map_err(|error| fail(error.to_string()))?;
    // In one pipe, so that it is known which library a list belongs to.
    command.stdout(Stdio::from(writer)).stderr(Stdio::from(errors)).stdin(Stdio::null());
    let mut child = command.spawn().map_err(|error| fail(error.to_string()))?;
    drop(command);
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut { reader }, &mut bytes).map(|_| bytes)
    });
    let status = child.wait().await.map_err(|error| fail(error.to_string()))?;
    let bytes = reading.await.map_err(std::io::Error::other).and_then(|read| read);
    let text =
        String::from_utf8_lossy(&bytes.map_err(|error| fail(error.to_string()))?).into_owned();
    if status.success() || text.contains(NO_LIBRARY) {
        return Ok(text);
    }
    Err(fail(format!("`cargo test --doc` ended with {status}:\n{}", text.trim_end())))
}

/// `cargo test --doc`, as the user's flags want it, and with more `flags`. `args` are for rustdoc's
/// test harness; rustdoc splits them at spaces.
pub fn command(settings: &CompileSettings, flags: &[OsString], args: &[OsString]) -> Command {
    let mut command = Command::new(&settings.cargo);
    command
        .args(["test", "--doc", "--color=never"])
        .args(&settings.build_args)
        .args(flags)
        .arg("--")
        .args(args)
        .env_remove(SECRET_VARIABLE)
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        .process_group(0)
        .kill_on_drop(true);
    command
}
