//! What an answer of `cargo metadata` depends on, besides the question: every file that cargo reads
//! for it, looks for in vain, or finds by listing a folder.
//!
//! Where that can't be told for certain there is no answer to this, and cargo is asked each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use cargo_metadata::{DependencyKind, Metadata, Package};
use distest_worker::lexical::plain;
use toml::{Table, Value};

use super::seen::{self, Seen};

/// An answer that depends on more than this isn't kept.
const PATHS_MAX: usize = 50_000;
/// The folders in which cargo finds targets that no manifest names.
const TARGET_FOLDERS: [&str; 4] = ["src/bin", "tests", "examples", "benches"];

/// Paths, and how cargo looks at them.
#[derive(Clone, Debug, Default)]
pub(super) struct Depends {
    paths: BTreeMap<PathBuf, Look>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    /// It is only of interest whether something is there.
    Whether,
    /// What is in it counts.
    Inside,
}

impl Depends {
    /// On these files.
    pub(super) fn on(files: &BTreeSet<PathBuf>) -> Self {
        let paths = files.iter().map(|path| (path.clone(), Look::Inside)).collect();
        Self { paths }
    }

    /// On whatever led to this answer. None if that can't be followed.
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        let mut depends = Self::default();
        let root = metadata.workspace_root.as_std_path();
        let manifests: BTreeSet<&Path> =
            metadata.packages.iter().map(|package| package.manifest_path.as_std_path()).collect();
        let members: BTreeSet<_> = metadata.workspace_members.iter().collect();
        if !root.join("Cargo.lock").is_file() {
            return None;
        }
        depends.add(root.join("Cargo.lock"));
        depends.manifests_above(root);
        depends.workspace(root, &manifests)?;
        for package in &metadata.packages {
            depends.add(package.manifest_path.clone().into_std_path_buf());
            // What comes from a registry or from git is never changed, but may be removed.
            if package.source.is_none() {
                depends.local(package, members.contains(&package.id), &manifests)?;
            }
        }
        (depends.paths.len() <= PATHS_MAX).then_some(depends)
    }

    /// On all that either depends on.
    pub(super) fn and(mut self, other: Self) -> Self {
        for (path, look) in other.paths {
            let known = self.paths.entry(path).or_insert(look);
            *known = look.max(*known);
        }
        self
    }

    /// What there is now. None if that can't be told.
    pub(super) fn look(&self) -> Option<BTreeMap<PathBuf, Seen>> {
        let look = |(path, look): (&PathBuf, &Look)| {
            let seen = match look {
                Look::Whether => Seen::whether(path),
                Look::Inside => Seen::at(path),
            };
            Some((path.clone(), seen.ok()?))
        };
        self.paths.iter().map(look).collect()
    }

    fn add(&mut self, path: PathBuf) {
        self.paths.insert(path, Look::Inside);
    }

    fn add_whether(&mut self, path: PathBuf) {
        self.paths.entry(path).or_insert(Look::Whether);
    }

    /// cargo looks there for the root of a package's workspace.
    fn manifests_above(&mut self, folder: &Path) {
        for folder in folder.ancestors() {
            self.add(folder.join("Cargo.toml"));
        }
    }

    /// The root's manifest: it may name members by patterns, and packages that replace others.
    fn workspace(&mut self, root: &Path, manifests: &BTreeSet<&Path>) -> Option<()> {
        let manifest = read(&root.join("Cargo.toml"))?;
        if manifest.contains_key("cargo-features") {
            return None;
        }
        let workspace = manifest.get("workspace").and_then(Value::as_table);
        for key in ["members", "default-members"] {
            let patterns = workspace.and_then(|it| it.get(key)).and_then(Value::as_array);
            for pattern in patterns.into_iter().flatten() {
                self.members(root, pattern.as_str()?)?;
            }
        }
        let sources = manifest.get("patch").and_then(Value::as_table).into_iter().flatten();
        let patches = sources.filter_map(|(_, source)| source.as_table());
        let replaced = manifest.get("replace").and_then(Value::as_table);
        for patch in patches.chain(replaced).flatten().filter_map(|(_, patch)| patch.as_table()) {
            // One that isn't used is read all the same, but isn't in the answer.
            if let Some(path) = patch.get("path") {
                let manifest = plain(&root.join(path.as_str()?)).join("Cargo.toml");
                manifests.contains(&*manifest).then_some(())?;
            }
        }
        Some(())
    }

    /// Wherever a pattern of members may match.
    fn members(&mut self, root: &Path, pattern: &str) -> Option<()> {
        let mut folders = vec![root.to_owned()];
        let mut fixed = true;
        for component in Path::new(pattern).components() {
            let text = component.as_os_str().to_str()?;
            fixed &= !text.contains(['*', '?', '[']);
            // Of any depth, or back from where it may match.
            if text.contains("**") || (!fixed && component == Component::ParentDir) {
                return None;
            }
            if fixed {
                folders.iter_mut().for_each(|folder| folder.push(component));
                continue;
            }
            for folder in std::mem::take(&mut folders) {
                folders.extend(folders_in(&folder));
                self.add(folder);
            }
            if folders.len() > PATHS_MAX {
                return None;
            }
        }
        for folder in folders {
            self.add(plain(&folder).join("Cargo.toml"));
        }
        Some(())
    }

    /// A package that may be worked on.
    fn local(
        &mut self,
        package: &Package,
        is_member: bool,
        manifests: &BTreeSet<&Path>,
    ) -> Option<()> {
        let path = package.manifest_path.as_std_path();
        let folder = path.parent()?;
        // A script with a manifest inside has rules of its own.
        if path.file_name()? != "Cargo.toml" {
            return None;
        }
        let manifest = read(path)?;
        // Nobody knows what features to come are about.
        if manifest.contains_key("cargo-features") {
            return None;
        }
        if let Some(root) = manifest.get("package").and_then(|it| it.get("workspace")) {
            self.add(folder.join(root.as_str()?).join("Cargo.toml"));
        }
        self.manifests_above(folder);
        self.targets(folder);
        for target in &package.targets {
            self.add_whether(target.src_path.clone().into_std_path_buf());
        }
        for dependency in &package.dependencies {
            let Some(path) = &dependency.path else { continue };
            // cargo doesn't look at them.
            if dependency.kind == DependencyKind::Development && !is_member {
                continue;
            }
            // What isn't wanted for these targets or features is read, but isn't in the answer.
            manifests.contains(path.join("Cargo.toml").as_std_path()).then_some(())?;
        }
        Some(())
    }

    /// What makes a target by lying where it lies: also `build.rs`, and what may be a readme.
    fn targets(&mut self, folder: &Path) {
        self.add(folder.to_owned());
        self.add(folder.join("src"));
        for targets in TARGET_FOLDERS.map(|name| folder.join(name)) {
            for folder in folders_in(&targets) {
                self.add_whether(folder.join("main.rs"));
            }
            self.add(targets);
        }
    }
}

/// What there was when cargo answered that was started at `started`, if that is certain: of `before`
/// it is known what there was then; the rest must have been so for a while.
pub(super) fn certain(
    before: &BTreeMap<PathBuf, Seen>,
    after: BTreeMap<PathBuf, Seen>,
    started: SystemTime,
) -> Option<Vec<(PathBuf, Seen)>> {
    let same = before.iter().all(|(path, seen)| after.get(path) == Some(seen));
    let doubtful = |(path, seen): (&PathBuf, &Seen)| {
        let went = *seen == Seen::Absent && !before.contains_key(path);
        seen.is_younger_than(started) || (went && seen::may_have_gone(path, started))
    };
    (same && !after.iter().any(doubtful)).then(|| after.into_iter().collect())
}

fn read(manifest: &Path) -> Option<Table> {
    fs::read_to_string(manifest).ok()?.parse().ok()
}

/// Links to folders included; none if it can't be listed.
fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
