//! The workspace files that travel.
//!
//! What git knows or would add, per repository, and empty folders, which git doesn't know; without
//! git, everything but what `.gitignore` files exclude. Never `.git`, nor what is built; the user's
//! patterns add and leave out ([`include`]). Contents are named by digest, through a cache that saves
//! reading what has not changed ([`statcache`]), and served from [`copies`]; the test binaries
//! themselves are taken by [`keep`] and described by [`payload`].

pub mod copies;
pub mod include;
pub mod keep;
pub mod payload;
pub mod statcache;

mod assemble;
mod git;
mod unlisted;
mod walk;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::thread;

use distest_worker::digest::Digest;
use distest_worker::globs::Globs;
use distest_worker::protocol::TreeEntry;

use self::copies::Copies;
use self::include::Include;
use crate::failure::{ExitCode, Failure};
use crate::stamp::Stamp;

/// Files that travel with one binary at most.
pub const PAYLOAD_FILES_MAX: usize = 200_000;
/// Notices beyond this are counted, not told.
const NOTICES_MAX: usize = 10;

/// Where to look for workspace files. All paths are absolute.
#[derive(Clone, Debug, Default)]
pub struct TreeRoots {
    /// The workspace's root.
    pub workspace: PathBuf,
    /// Folders of local packages; those that lie in the workspace are found anyway.
    pub packages: Vec<PathBuf>,
    /// Target and build directories: what git doesn't track in them stays here.
    pub excluded: Vec<PathBuf>,
    /// Folders that only hold what the user includes.
    pub included: Vec<PathBuf>,
}

/// What the user says of it.
#[derive(Clone, Debug)]
pub struct TreeRules {
    /// What travels besides.
    pub include: Vec<Include>,
    /// What stays, whatever else is said. Relative to the workspace.
    pub exclude: Globs,
    /// More files than this are a mistake.
    pub files_max: usize,
    /// The largest files stay here beyond this many bytes.
    pub bytes_max: u64,
}

/// The workspace files.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Folders, files and links by path, each below one of the roots and after its folder.
    pub entries: Vec<TreeEntry>,
    /// Where our copy of a content lies.
    pub files: BTreeMap<Digest, PathBuf>,
    /// What a user should know: what doesn't travel although it should.
    pub notices: Vec<String>,
    /// Bytes of all files.
    pub bytes: u64,
    /// What the files were when they were read.
    seen: Vec<(PathBuf, Stamp)>,
    /// What stays here although it lies among the files, and why.
    left_out: BTreeMap<PathBuf, String>,
}

/// Something that may travel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    path: OsString,
    /// Git has it, so it travels wherever it lies.
    tracked: bool,
}

/// What was found, and told, so far.
#[derive(Default)]
struct Collector {
    found: Vec<Found>,
    /// Folders that were asked for: whether they are repositories, or were walked.
    asked: BTreeMap<PathBuf, bool>,
    notices: Notices,
    files_max: usize,
}

/// A bounded list for people.
#[derive(Default)]
struct Notices {
    told: Vec<String>,
    untold: usize,
}

/// Finds the files that travel, and copies those into `copies` that it doesn't have as they are.
/// Runs git, reads the disk, blocks.
///
/// # Errors
/// [`ExitCode::Setup`] if a root can't be read or there are more than [`TreeRules::files_max`]
/// files. What can't be read below a root is a notice.
pub fn collect(roots: &TreeRoots, rules: &TreeRules, copies: &Copies) -> Result<Tree, Failure> {
    let found = thread::scope(|scope| {
        // While git looks.
        scope.spawn(|| copies.look());
        find(roots, rules)
    });
    assemble::assemble(found?, roots, rules, copies)
}

/// Files that would travel now and did not. Runs git, reads folders, blocks.
pub fn appeared(tree: &Tree, roots: &TreeRoots, rules: &TreeRules) -> Vec<PathBuf> {
    // Who can't be asked any more has nothing to add to what is told already.
    let Ok(Collector { found, .. }) = find(roots, rules) else { return Vec::new() };
    assemble::appeared(found, tree, roots, rules)
}

/// What may travel.
fn find(roots: &TreeRoots, rules: &TreeRules) -> Result<Collector, Failure> {
    let mut collector = Collector { files_max: rules.files_max, ..Collector::default() };
    collector.root(&roots.workspace, roots)?;
    for package in &roots.packages {
        let manifest = package.join("Cargo.toml").into_os_string();
        // Members are among the workspace's files, unless its repository ignores them.
        if !collector.found.iter().any(|found| found.path == manifest) {
            collector.root(package, roots)?;
        }
    }
    for include in &rules.include {
        let found = include.find(&roots.excluded, 5 * rules.files_max);
        if found.is_empty() {
            let text = "of `include` in the profile matches nothing here";
            collector.notices.add(format!("the pattern `{}` {text}", include.pattern()));
        }
        for path in found {
            // As if git had it: wherever it lies.
            collector.add(path, true);
        }
        collector.bounded(&roots.workspace)?;
    }
    Ok(collector)
}

impl Tree {
    /// Files that are no longer what travelled. Looks at each, blocks.
    pub fn changed(&self) -> Vec<&Path> {
        assemble::changed(&self.seen)
    }

    /// Why something stays here that lies among the files.
    pub fn left_out(&self, path: &Path) -> Option<&str> {
        self.left_out.get(path).map(String::as_str)
    }

    /// The entry at a path.
    pub fn entry(&self, path: &Path) -> Option<&TreeEntry> {
        let found = self.entries.binary_search_by(|entry| {
            entry.path.as_bytes().cmp(path.as_os_str().as_encoded_bytes())
        });
        found.ok().map(|index| &self.entries[index])
    }
}

impl TreeRules {
    /// Rules that leave it to git, with the bounds of the default configuration.
    pub fn new(files_max: usize, bytes_max: u64) -> Self {
        Self { include: Vec::new(), exclude: Globs::default(), files_max, bytes_max }
    }
}

impl Collector {
    /// A workspace or package: its repository's files in it, or all files.
    fn root(&mut self, dir: &Path, roots: &TreeRoots) -> Result<(), Failure> {
        std::fs::read_dir(dir).map_err(|error| {
            let what = format!("could not read the workspace folder {}", dir.display());
            Failure::new(ExitCode::Setup, what).because(error)
        })?;
        let listing = git::list(dir);
        // A folder that a repository around it ignores is not this repository's.
        let foreign = listing.as_ref().is_ok_and(|listing| {
            dir.join("Cargo.toml").exists() && !listing.has_file("Cargo.toml")
        });
        if foreign {
            self.walk(dir, roots);
        } else {
            self.repository(dir, listing, roots);
        }
        self.bounded(dir)
    }

    fn repository(
        &mut self,
        dir: &Path,
        listing: Result<git::Listing, git::Problem>,
        roots: &TreeRoots,
    ) {
        let listing = match listing {
            Ok(listing) => listing,
            Err(problem) => {
                if let git::Problem::Refused(why) = problem {
                    let text =
                        "git can't list its files, so all that no .gitignore excludes travel";
                    self.notices.add(format!("{}: {text}: {why}", dir.display()));
                }
                return self.walk(dir, roots);
            }
        };
        self.asked.insert(dir.to_owned(), true);
        for warning in listing.warnings {
            self.notices.add(format!("{}: {warning}", dir.display()));
        }
        for name in listing.files {
            self.add(dir.join(name), true);
        }
        for name in listing.submodules {
            let submodule = dir.join(name);
            self.add(submodule.clone(), true);
            if submodule.join(".git").symlink_metadata().is_ok() {
                self.repository(&submodule, git::list(&submodule), roots);
            } else if submodule.is_dir() {
                let text = "the submodule is not checked out, so its folder is empty for tests";
                self.notices.add(format!("{}: {text}", submodule.display()));
            }
        }
        for name in listing.untracked {
            self.add(dir.join(name), false);
        }
        for name in listing.nested {
            self.nested(&dir.join(name), roots);
        }
    }

    /// A repository in a folder that isn't its submodule.
    fn nested(&mut self, dir: &Path, roots: &TreeRoots) {
        if !roots.excluded.iter().any(|excluded| dir.starts_with(excluded)) {
            self.add(dir.to_owned(), false);
            self.repository(dir, git::list(dir), roots);
        }
    }

    fn walk(&mut self, dir: &Path, roots: &TreeRoots) {
        self.asked.insert(dir.to_owned(), false);
        let walk::Walked { paths, nested, problems } = walk::walk(dir, &roots.excluded);
        for path in paths {
            self.add(path, false);
        }
        for problem in problems {
            self.notices.add(problem);
        }
        for repository in nested {
            self.nested(&repository, roots);
        }
    }

    fn add(&mut self, path: PathBuf, tracked: bool) {
        self.found.push(Found { path: path.into_os_string(), tracked });
    }

    /// Before any file is looked at: this many can't all be meant.
    fn bounded(&self, dir: &Path) -> Result<(), Failure> {
        // Files that are built may be among them if they aren't ignored; those are left out later.
        if self.found.len() <= 5 * self.files_max {
            return Ok(());
        }
        Err(too_many(dir, self.files_max))
    }
}

fn too_many(dir: &Path, files_max: usize) -> Failure {
    let what = format!("could not gather the files of {}", dir.display());
    Failure::new(ExitCode::Setup, what)
        .because(format!("there are more than {files_max} that git doesn't ignore"))
        .hint(
            "leave out what tests don't need with `exclude` in the profile or in .gitignore, or raise \
             the profile's `tree-files-max`",
        )
}

impl Notices {
    fn add(&mut self, text: String) {
        if self.told.len() < NOTICES_MAX {
            self.told.push(text);
        } else {
            self.untold += 1;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.untold > 0 {
            self.told.push(format!("and {} more files or folders like these", self.untold));
        }
        self.told
    }
}

#[cfg(test)]
mod tests;
