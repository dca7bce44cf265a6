//! Puts cargo's messages together: test binaries, each with what its tests need beside it.
//!
//! cargo reports an integration test as soon as it is linked, which may be before the package's
//! programs are: the test only needed their paths to compile. Such a binary is held back until
//! everything that it may start has been reported; so is one of which cargo has not yet noted with
//! which run of a build script it was built.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cargo_metadata::{Artifact, BuildScript, DependencyKind, Message, Package, Target, TargetKind};
use serde::Deserialize;

use super::Workspace;
use super::dep_info;
use super::harness::CustomHarnesses;
use super::layout::Layout;
use super::needed;
use super::plain::plain;
use super::runtime_env::{self, Inputs, link_search_folder, package_root};
use crate::model::{BinaryId, BinaryKind, BinaryNeeds, TestBinary, Triple};

/// Libraries for tests that build something: they call cargo when the tests run.
const CALL_CARGO: [&str; 3] = ["trybuild", "ui_test", "escargot"];

/// What cargo has reported so far.
pub(super) struct Assembler {
    workspace: Arc<Workspace>,
    /// Indices into the workspace's packages.
    packages: BTreeMap<String, usize>,
    /// Indices into the nodes of the dependency graph.
    nodes: BTreeMap<String, usize>,
    rust_versions: BTreeMap<String, String>,
    /// Whether this build makes the examples of the packages that it tests.
    builds_examples: bool,

    scripts: BTreeMap<String, Vec<BuildScript>>,
    /// By package and layout, then by target name.
    programs: BTreeMap<(String, Layout), BTreeMap<String, PathBuf>>,
    examples: BTreeMap<(String, Layout), BTreeMap<String, Vec<PathBuf>>>,
    libraries: BTreeMap<(String, Layout), Vec<PathBuf>>,
    harnesses: BTreeMap<String, CustomHarnesses>,
    waiting: Vec<Artifact>,
}

impl Assembler {
    pub(super) fn new(workspace: Arc<Workspace>, build_args: &[OsString]) -> Self {
        let packages = workspace.metadata.packages.iter().enumerate();
        let packages = packages.map(|(i, package)| (package.id.repr.clone(), i)).collect();
        let nodes = workspace.metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
        let nodes = nodes.enumerate().map(|(i, node)| (node.id.repr.clone(), i)).collect();
        Self {
            packages,
            nodes,
            rust_versions: rust_versions(&workspace.raw),
            builds_examples: builds_examples(build_args),
            workspace,
            scripts: BTreeMap::new(),
            programs: BTreeMap::new(),
            examples: BTreeMap::new(),
            libraries: BTreeMap::new(),
            harnesses: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// Takes the next message; answers test binaries that are complete now.
    pub(super) fn take(&mut self, message: Message) -> Vec<TestBinary> {
        match message {
            Message::BuildScriptExecuted(script) => {
                self.scripts.entry(script.package_id.repr.clone()).or_default().push(script);
                Vec::new()
            }
            Message::CompilerArtifact(artifact) => {
                if artifact.profile.test && artifact.executable.is_some() {
                    self.waiting.push(artifact);
                } else {
                    self.note(artifact);
                }
                self.release(false)
            }
            Message::BuildFinished(finished) if finished.success => self.release(true),
            _ => Vec::new(),
        }
    }

    /// Notes something that tests may need: a program, an example, a dynamic library.
    fn note(&mut self, artifact: Artifact) {
        let Some(first) = artifact.filenames.first() else { return };
        let key = (artifact.package_id.repr, self.layout(first.as_std_path()));
        let name = artifact.target.name.clone();
        let files = artifact.filenames.iter().map(|file| file.clone().into_std_path_buf());
        let executable = artifact.executable.clone().map(|file| file.into_std_path_buf());
        if artifact.target.is_bin() {
            self.programs.entry(key).or_default().extend(executable.map(|file| (name, file)));
        } else if artifact.target.is_example() {
            let files = files.filter(|file| executable.is_some() || is_dynamic_library(file));
            self.examples.entry(key).or_default().insert(name, files.collect());
        } else if artifact.target.is_dylib() || artifact.target.is_cdylib() {
            let files = files.filter(|file| is_dynamic_library(file));
            self.libraries.entry(key).or_default().extend(files);
        }
    }

    fn release(&mut self, all: bool) -> Vec<TestBinary> {
        let waiting = std::mem::take(&mut self.waiting);
        let (ready, waiting) = waiting
            .into_iter()
            .partition(|artifact| all || self.is_complete(artifact) && self.is_decided(artifact));
        self.waiting = waiting;
        ready.into_iter().filter_map(|artifact| self.finish(&artifact)).collect()
    }

    /// Whether it is known with which run of its build script it was built.
    fn is_decided(&self, artifact: &Artifact) -> bool {
        artifact.executable.as_ref().is_none_or(|executable| {
            let executable = executable.as_std_path();
            let layout = self.layout(executable);
            let choice = self.script_of(&artifact.package_id.repr, executable, &layout);
            matches!(choice, dep_info::Choice::Decided(_))
        })
    }

    fn script_of(
        &self,
        package_id: &str,
        executable: &Path,
        layout: &Layout,
    ) -> dep_info::Choice<'_> {
        let candidates = self.scripts_of(package_id, layout);
        dep_info::choose(&candidates, executable, &layout.intermediate)
    }

    /// Whether everything that the binary's tests may start has been reported.
    fn is_complete(&self, artifact: &Artifact) -> bool {
        let (Some(package), Some(executable)) =
            (self.package(&artifact.package_id.repr), &artifact.executable)
        else {
            return true;
        };
        if !starts_programs(kind_of(&artifact.target)) {
            return true;
        }
        let enabled = |target: &&Target| {
            target.required_features.iter().all(|feature| artifact.features.contains(feature))
        };
        let key = (artifact.package_id.repr.clone(), self.layout(executable.as_std_path()));
        let (programs, examples) = (self.programs.get(&key), self.examples.get(&key));
        package.targets.iter().filter(enabled).all(|target| {
            if target.is_bin() {
                programs.is_some_and(|programs| programs.contains_key(&target.name))
            } else if target.is_example() && self.builds_examples && !target.test {
                examples.is_some_and(|examples| examples.contains_key(&target.name))
            } else {
                true
            }
        })
    }

    /// The test binary with all that has been reported for it; none if cargo speaks of a package
    /// that its own metadata doesn't know.
    fn finish(&mut self, artifact: &Artifact) -> Option<TestBinary> {
        let executable = artifact.executable.clone()?.into_std_path_buf();
        let package_id = &artifact.package_id.repr;
        let kind = kind_of(&artifact.target);
        let harness = self
            .harnesses
            .entry(package_id.clone())
            .or_insert_with(|| CustomHarnesses::read(artifact.manifest_path.as_std_path()))
            .of(kind, &artifact.target.name);

        let package = self.package(package_id)?;
        let layout = self.layout(&executable);
        let for_host = kind == BinaryKind::ProcMacro;
        let triple = match &layout.triple {
            Some(triple) if !for_host => Triple::new(triple.as_str()),
            _ => self.workspace.host.clone(),
        };
        let dependencies = self.dependencies(package_id);
        let script = self.script_of(package_id, &executable, &layout).script();
        let native_dirs = self.native_dirs(&dependencies, &layout);
        let none = BTreeMap::new();
        let key = (package_id.clone(), layout.clone());
        let programs = starts_programs(kind).then(|| self.programs.get(&key).unwrap_or(&none));
        let writable_dirs =
            if starts_programs(kind) { vec![plain(&layout.tmp)] } else { Vec::new() };
        let env = runtime_env::compose(&Inputs {
            workspace: &self.workspace,
            package,
            rust_version: self.rust_versions.get(package_id).map_or("", String::as_str),
            layout: &layout,
            script,
            native_dirs: &native_dirs,
            rust_libdir: self.workspace.rust_libdir(&triple),
            programs,
        });
        let needs = BinaryNeeds {
            glibc: needed::glibc(&executable),
            cpu_features: self.workspace.cpu_features.clone(),
            cargo_for: self.calls_cargo(&dependencies, &executable),
        };
        Some(TestBinary {
            id: binary_id(&package.name, kind, &artifact.target.name),
            package: package.name.to_string(),
            package_id: package_id.clone(),
            target_name: artifact.target.name.clone(),
            kind,
            harness,
            companions: self.companions(&key, kind, &dependencies, &executable, &triple),
            companion_dirs: self.companion_dirs(script, &dependencies, &layout, &native_dirs),
            triple,
            for_host,
            executable: plain(&executable),
            cwd: package_root(package).to_path_buf(),
            env,
            writable_dirs,
            needs,
        })
    }

    /// Programs and examples of its package, dynamic libraries of all that it is linked with.
    fn companions(
        &self,
        key: &(String, Layout),
        kind: BinaryKind,
        dependencies: &BTreeSet<&str>,
        executable: &Path,
        triple: &Triple,
    ) -> Vec<PathBuf> {
        let mut files = BTreeSet::new();
        if starts_programs(kind) {
            files.extend(self.programs.get(key).into_iter().flat_map(BTreeMap::values).cloned());
            let examples = self.examples.get(key).into_iter().flat_map(BTreeMap::values);
            files.extend(examples.flatten().cloned());
        }
        let libraries = |package: &&str| self.libraries.get(&((*package).into(), key.1.clone()));
        files.extend(dependencies.iter().filter_map(libraries).flatten().cloned());
        // Rust's own: tests of procedural macros, and whatever `-C prefer-dynamic` was used for.
        let libdir = self.workspace.rust_libdir(triple);
        let all = files.iter().map(PathBuf::as_path).chain([executable]);
        let needed: BTreeSet<PathBuf> = all
            .flat_map(needed::libraries)
            .map(|name| libdir.join(name))
            .filter(|file| file.is_file())
            .collect();
        files.extend(needed);
        files.iter().map(|file| plain(file)).collect()
    }

    /// Folders of build scripts: of the package and of other local ones, whose code may name them
    /// by `env!("OUT_DIR")`, and those with dynamic libraries.
    fn companion_dirs(
        &self,
        own: Option<&BuildScript>,
        dependencies: &BTreeSet<&str>,
        layout: &Layout,
        native_dirs: &BTreeSet<PathBuf>,
    ) -> Vec<PathBuf> {
        let local = |id: &&&str| self.package(id).is_some_and(|package| package.source.is_none());
        let mut folders: BTreeSet<PathBuf> = dependencies
            .iter()
            .filter(|&id| own.is_none_or(|own| own.package_id.repr != **id))
            .filter(local)
            .flat_map(|id| self.scripts_of(id, layout))
            .chain(own)
            .map(|script| script.out_dir.clone().into_std_path_buf())
            .collect();
        folders.extend(native_dirs.iter().filter(|folder| has_dynamic_library(folder)).cloned());
        folders.iter().filter(|folder| folder.is_dir()).map(|folder| plain(folder)).collect()
    }

    /// The runs of a package's build script for the target that `layout` belongs to.
    fn scripts_of(&self, package_id: &str, layout: &Layout) -> Vec<&BuildScript> {
        let all = self.scripts.get(package_id).map(Vec::as_slice).unwrap_or_default();
        let folder = layout.scripts();
        let ours: Vec<_> = all.iter().filter(|one| one.out_dir.starts_with(&folder)).collect();
        if ours.is_empty() { all.iter().collect() } else { ours }
    }

    /// As cargo: only folders that lie where the binary's own outputs do.
    fn native_dirs(&self, dependencies: &BTreeSet<&str>, layout: &Layout) -> BTreeSet<PathBuf> {
        dependencies
            .iter()
            .filter_map(|&id| self.scripts.get(id))
            .flatten()
            .flat_map(|script| &script.linked_paths)
            .map(|path| link_search_folder(path.as_str()))
            .filter(|folder| folder.starts_with(&layout.outputs))
            .map(Path::to_path_buf)
            .collect()
    }

    /// The package and all that its tests are linked with.
    fn dependencies(&self, package_id: &str) -> BTreeSet<&str> {
        let nodes = self.workspace.metadata.resolve.as_ref().map(|resolve| &resolve.nodes);
        let node = |id: &str| nodes?.get(*self.nodes.get(id)?);
        let mut found = BTreeSet::new();
        let mut queue: Vec<&str> = node(package_id).map(|own| &*own.id.repr).into_iter().collect();
        while let Some(id) = queue.pop() {
            if !found.insert(id) {
                continue;
            }
            for dependency in node(id).into_iter().flat_map(|node| &node.deps) {
                let linked = dependency.dep_kinds.iter().any(|info| match info.kind {
                    DependencyKind::Normal => true,
                    DependencyKind::Development => id == package_id,
                    _ => false,
                });
                if linked {
                    queue.push(&dependency.pkg.repr);
                }
            }
        }
        found
    }

    /// A library among `dependencies` that calls cargo when tests run, if the executable is really
    /// linked with it.
    fn calls_cargo(&self, dependencies: &BTreeSet<&str>, executable: &Path) -> Option<String> {
        let names = dependencies.iter().filter_map(|id| Some(self.package(id)?.name.as_str()));
        names
            .filter(|name| CALL_CARGO.contains(name))
            .find(|name| needed::mentions(executable, name))
            .map(str::to_owned)
    }

    fn package(&self, id: &str) -> Option<&Package> {
        self.packages.get(id).map(|&i| &self.workspace.metadata.packages[i])
    }

    /// As cargo spells its folders, `..` included: so does all that it says of them.
    fn layout(&self, artifact: &Path) -> Layout {
        let target_dir = self.workspace.metadata.target_directory.as_std_path();
        let build_dir = self.workspace.metadata.build_directory.as_ref();
        Layout::of(artifact, target_dir, build_dir.map_or(target_dir, |dir| dir.as_std_path()))
    }
}

/// As cargo-nextest 0.9.143 writes it, which takes a procedural macro for a library.
fn binary_id(package: &str, kind: BinaryKind, target: &str) -> BinaryId {
    BinaryId::new(match kind {
        BinaryKind::Lib | BinaryKind::ProcMacro => package.to_owned(),
        BinaryKind::Test => format!("{package}::{target}"),
        BinaryKind::Bin => format!("{package}::bin/{target}"),
        BinaryKind::Example => format!("{package}::example/{target}"),
        BinaryKind::Bench => format!("{package}::bench/{target}"),
    })
}

fn kind_of(target: &Target) -> BinaryKind {
    match target.kind.first() {
        Some(TargetKind::ProcMacro) => BinaryKind::ProcMacro,
        Some(TargetKind::Bin) => BinaryKind::Bin,
        Some(TargetKind::Test) => BinaryKind::Test,
        Some(TargetKind::Example) => BinaryKind::Example,
        Some(TargetKind::Bench) => BinaryKind::Bench,
        _ => BinaryKind::Lib,
    }
}

/// Integration tests and benchmarks: cargo builds the package's programs for them.
fn starts_programs(kind: BinaryKind) -> bool {
    matches!(kind, BinaryKind::Test | BinaryKind::Bench)
}

/// `cargo test` builds examples unless it is told which kinds of target to build.
fn builds_examples(build_args: &[OsString]) -> bool {
    let flags: Vec<&str> = build_args
        .iter()
        .filter_map(|arg| arg.to_str())
        .map(|arg| arg.split_once('=').map_or(arg, |(flag, _)| flag))
        .collect();
    let says = |names: &[&str]| flags.iter().any(|flag| names.contains(flag));
    says(&["--examples", "--all-targets"])
        || !says(&["--lib", "--bin", "--bins", "--test", "--tests", "--bench", "--benches"])
            && !says(&["--example"])
}

fn is_dynamic_library(file: &Path) -> bool {
    file.extension().is_some_and(|extension| {
        ["so", "dylib", "dll"].iter().any(|known| extension == OsStr::new(known))
    })
}

/// Whether a folder has one, under any version: `libz.so`, `libz.so.1.3`.
fn has_dynamic_library(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name();
        is_dynamic_library(Path::new(&name)) || name.to_string_lossy().contains(".so.")
    })
}

/// `rust-version` as each package spells it, which `cargo_metadata` doesn't keep.
fn rust_versions(metadata: &str) -> BTreeMap<String, String> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Spelled>,
    }
    #[derive(Deserialize)]
    struct Spelled {
        id: String,
        rust_version: Option<String>,
    }
    let packages = serde_json::from_str(metadata).map(|Metadata { packages }| packages);
    let packages = packages.unwrap_or_default().into_iter();
    packages.filter_map(|package| Some((package.id, package.rust_version?))).collect()
}
