//! The environment that `cargo test` gives to a test binary, beyond what cargo itself was given.
//!
//! Found by comparing with cargo 1.95 through a target runner. Three things go beyond it:
//! `CARGO_TARGET_TMPDIR`, which cargo only sets while it compiles, so that a test that asks at run
//! time gets a folder that exists where it runs; and nextest's `NEXTEST_BIN_EXE_*` and
//! `NEXTEST_LD_LIBRARY_PATH`. This module never touches the file system.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cargo_metadata::{BuildScript, Package};

use super::Workspace;
use super::layout::Layout;

/// The variable that the dynamic loader reads.
pub(super) const LIBRARY_PATH: &str = if cfg!(target_os = "macos") {
    "DYLD_FALLBACK_LIBRARY_PATH"
} else if cfg!(windows) {
    "PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// What the environment of one test binary depends on.
pub(super) struct Inputs<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) package: &'a Package,
    /// As the manifest spells it (cargo metadata completes `1.70` to `1.70.0` when parsed).
    pub(super) rust_version: &'a str,
    pub(super) layout: &'a Layout,
    /// The run of the package's build script that the binary was built with.
    pub(super) script: Option<&'a BuildScript>,
    /// Folders with native libraries that build scripts of its dependencies named.
    pub(super) native_dirs: &'a BTreeSet<PathBuf>,
    /// Where Rust's own libraries for its target lie.
    pub(super) rust_libdir: PathBuf,
    /// The package's programs, for an integration test or a benchmark.
    pub(super) programs: Option<&'a BTreeMap<String, PathBuf>>,
}

/// The variables, later sources over earlier ones as in cargo.
pub(super) fn compose(inputs: &Inputs<'_>) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    let mut set = |name: &str, value: &dyn AsRef<OsStr>| {
        env.insert(OsString::from(name), value.as_ref().to_owned());
    };
    let library_path = library_path(inputs);
    set(LIBRARY_PATH, &library_path);
    if let Some(script) = inputs.script {
        set("OUT_DIR", &script.out_dir);
        for (name, value) in &script.env {
            set(name, value);
        }
    }
    package_variables(inputs, &mut set);
    if let Some(programs) = inputs.programs {
        program_variables(inputs, programs, &mut set);
    }
    set(&format!("NEXTEST_{LIBRARY_PATH}"), &library_path);
    // `[env]` never overrides what cargo itself sets.
    for variable in &inputs.workspace.config_env {
        env.entry(variable.name.clone()).or_insert_with(|| variable.value.clone());
    }
    env
}

/// For integration tests and benchmarks. cargo names every program of the package, even one that
/// isn't built because a feature that it requires is missing.
fn program_variables(
    inputs: &Inputs<'_>,
    built: &BTreeMap<String, PathBuf>,
    set: &mut impl FnMut(&str, &dyn AsRef<OsStr>),
) {
    set("CARGO_TARGET_TMPDIR", &inputs.layout.tmp);
    for target in inputs.package.targets.iter().filter(|target| target.is_bin()) {
        let file = format!("{}{}", target.name, std::env::consts::EXE_SUFFIX);
        set(&format!("CARGO_BIN_EXE_{}", target.name), &inputs.layout.outputs.join(file));
    }
    for (name, path) in built {
        set(&format!("CARGO_BIN_EXE_{name}"), path);
        set(&format!("NEXTEST_BIN_EXE_{name}"), path);
        set(&format!("NEXTEST_BIN_EXE_{}", name.replace('-', "_")), path);
    }
}

fn package_variables(inputs: &Inputs<'_>, set: &mut impl FnMut(&str, &dyn AsRef<OsStr>)) {
    let Inputs { workspace, package, rust_version, .. } = inputs;
    let path = |path: &Option<cargo_metadata::camino::Utf8PathBuf>| {
        path.as_ref().map_or_else(String::new, |path| path.to_string())
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let version = &package.version;
    set("CARGO", &workspace.cargo);
    set("CARGO_MANIFEST_DIR", &package_root(package));
    set("CARGO_MANIFEST_PATH", &package.manifest_path);
    set("CARGO_PKG_AUTHORS", &package.authors.join(":"));
    set("CARGO_PKG_DESCRIPTION", &text(&package.description));
    set("CARGO_PKG_HOMEPAGE", &text(&package.homepage));
    set("CARGO_PKG_LICENSE", &text(&package.license));
    set("CARGO_PKG_LICENSE_FILE", &path(&package.license_file));
    set("CARGO_PKG_NAME", &package.name.to_string());
    set("CARGO_PKG_README", &path(&package.readme));
    set("CARGO_PKG_REPOSITORY", &text(&package.repository));
    set("CARGO_PKG_RUST_VERSION", rust_version);
    set("CARGO_PKG_VERSION", &version.to_string());
    set("CARGO_PKG_VERSION_MAJOR", &version.major.to_string());
    set("CARGO_PKG_VERSION_MINOR", &version.minor.to_string());
    set("CARGO_PKG_VERSION_PATCH", &version.patch.to_string());
    set("CARGO_PKG_VERSION_PRE", &version.pre.as_str());
}

/// Native libraries, outputs, Rust libraries, Rust's own, then what the client has.
///
/// cargo names the native folders of the whole build; we name those of the binary's own
/// dependencies, because the rest needn't be built yet.
fn library_path(inputs: &Inputs<'_>) -> OsString {
    let inherited = inputs.workspace.inherited_library_path.as_deref().unwrap_or_default();
    let folders = inputs.native_dirs.iter().cloned();
    let folders = folders
        .chain([inputs.layout.outputs.clone(), inputs.layout.deps(), inputs.rust_libdir.clone()])
        .chain(std::env::split_paths(inherited).filter(|path| !path.as_os_str().is_empty()));
    // A folder with a separator in its name can't be named here: cargo fails for it.
    std::env::join_paths(folders).unwrap_or_else(|_| inherited.to_owned())
}

/// The folder of a package's manifest.
pub(super) fn package_root(package: &Package) -> &Path {
    let manifest = package.manifest_path.as_std_path();
    manifest.parent().unwrap_or(manifest)
}

/// The folder in a build script's `cargo::rustc-link-search=[KIND=]PATH`.
pub(super) fn link_search_folder(path: &str) -> &Path {
    Path::new(match path.split_once('=') {
        Some(("native" | "crate" | "dependency" | "framework" | "all", path)) => path,
        _ => path,
    })
}
