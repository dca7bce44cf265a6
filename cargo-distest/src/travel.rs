//! What travels to workers: which folders, which files in them, and whether they stayed the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use distest_worker::globs::Globs;
use distest_worker::protocol::OsText;

use crate::collect::Collector;
use crate::compile::Workspace;
use crate::dispatch::Here;
use crate::failure::{ExitCode, Failure};
use crate::settings::{TravelSettings, Warning};
use crate::testenv::{self, Pass};
use crate::tree::copies::Copies;
use crate::tree::include::{Include, SYSTEM};
use crate::tree::{self, Tree, TreeRoots, TreeRules};

/// Where workspace files are looked for, and by which rules.
#[derive(Clone, Debug)]
pub struct Travel {
    roots: TreeRoots,
    rules: TreeRules,
    pass: Pass,
    collect: Vec<String>,
}

impl Travel {
    /// Checked before the build.
    ///
    /// # Errors
    /// A pattern makes no sense.
    pub fn new(settings: &TravelSettings, workspace: &Workspace) -> Result<Self, Failure> {
        let TravelSettings { include, exclude, tree_files_max, tree_bytes_max, pass, collect } =
            settings;
        let mut roots = TreeRoots {
            workspace: workspace.root.clone(),
            packages: workspace.local_roots.clone(),
            excluded: vec![workspace.target_dir.clone(), workspace.build_dir.clone()],
            included: Vec::new(),
        };
        let include = include.iter().map(|pattern| Include::parse(pattern, &workspace.root));
        let include = include.collect::<Result<Vec<_>, _>>()?;
        let known = [&roots.packages[..], &roots.excluded[..]].concat();
        for include in &include {
            roots.included.extend(include.root(&known)?);
        }
        let exclude = globs("exclude", exclude)?;
        let pass = Pass::new(pass).map_err(|why| unusable("env.pass", why))?;
        for pattern in collect {
            inside(pattern, &roots)?;
        }
        let files_max = usize::try_from(*tree_files_max).unwrap_or(usize::MAX / 8);
        let rules = TreeRules { include, exclude, ..TreeRules::new(files_max, *tree_bytes_max) };
        Ok(Self { roots, rules, pass, collect: collect.clone() })
    }

    /// Folders that a worker lays out, outermost first, none within another.
    pub fn session_roots(&self, workspace: &Workspace) -> Vec<OsText> {
        let mut folders = workspace.local_roots.clone();
        folders.extend(
            [&workspace.root, &workspace.target_dir, &workspace.build_dir].map(Clone::clone),
        );
        // The standard library as a shared library, for tests that are linked to it.
        folders.extend([workspace.sysroot.join("lib"), workspace.rust_libdir(&workspace.host)]);
        folders.extend(self.roots.included.iter().cloned());
        folders.sort();
        folders.dedup_by(|inner, outer| inner.starts_with(outer));
        folders.into_iter().map(OsText::from).collect()
    }

    /// Patterns of files that come back.
    pub fn collect_patterns(&self) -> Vec<String> {
        self.collect.clone()
    }

    /// Takes what comes back.
    ///
    /// # Errors
    /// A pattern makes no sense.
    pub fn collector(&self, workspace: &Workspace) -> Result<Arc<Collector>, Failure> {
        let folder = workspace.target_dir.join("distest").join("collect");
        let mut roots = vec![self.roots.workspace.clone()];
        roots.extend(self.roots.packages.iter().chain(&self.roots.excluded).cloned());
        roots.sort();
        roots.dedup_by(|inner, outer| inner.starts_with(outer));
        Ok(Arc::new(Collector::new(roots, globs("collect", &self.collect)?, folder)))
    }

    /// Variables that remote tests get beside those that always travel.
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// What is here, for a test that fails elsewhere.
    pub fn here(&self, workspace: &Workspace) -> Here {
        let homes = ["CARGO_HOME", "RUSTUP_HOME"].into_iter().filter_map(std::env::var_os);
        let homes = homes.map(PathBuf::from).chain(
            std::env::home_dir()
                .into_iter()
                .flat_map(|home| [home.join(".cargo"), home.join(".rustup")]),
        );
        let own = [workspace.sysroot.clone(), workspace.target_dir.join("distest")];
        let system = SYSTEM.iter().map(PathBuf::from);
        let mut roots = vec![workspace.root.clone()];
        roots.extend(self.roots.packages.iter().chain(&self.roots.excluded).cloned());
        let names = std::env::vars_os().map(|(name, _)| name);
        let unpassed = names.filter(|name| !testenv::travels(name, &self.pass));
        let exclude = self.rules.exclude.clone();
        let own_there = |name: &String| !testenv::is_workers_own(name);
        Here {
            roots,
            exclude,
            foreign: own.into_iter().chain(homes).chain(system).collect(),
            variables: unpassed
                .filter_map(|name| name.into_string().ok())
                .filter(own_there)
                .collect(),
        }
    }

    /// Files that are here now and would travel. Blocks.
    fn appeared(&self, tree: &Tree) -> Vec<PathBuf> {
        tree::appeared(tree, &self.roots, &self.rules)
    }

    /// Takes stock of the workspace's files.
    ///
    /// # Errors
    /// As [`tree::collect`].
    pub async fn collect(&self, copies: &Arc<Copies>) -> Result<Tree, Failure> {
        let (this, copies) = (self.clone(), Arc::clone(copies));
        blocking(move || tree::collect(&this.roots, &this.rules, &copies)).await
    }
}

/// Whether the workspace is still what travelled, in one line if not; then tidies the copies.
pub async fn look_back(
    travel: Travel,
    tree: Arc<Tree>,
    copies: Arc<Copies>,
    ours: Vec<PathBuf>,
    workspace: PathBuf,
) -> Option<Warning> {
    blocking(move || {
        copies.tidy(tree.files.keys().copied());
        let foreign = |path: &&Path| !ours.iter().any(|it| it == path);
        let changed: Vec<_> = tree.changed().into_iter().filter(foreign).collect();
        let appeared = travel.appeared(&tree);
        let appeared: Vec<_> = appeared.iter().map(PathBuf::as_path).filter(foreign).collect();
        differs(&changed, &appeared, &workspace)
    })
    .await
}

/// Runs what blocks without holding up everything else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn differs(changed: &[&Path], appeared: &[&Path], workspace: &Path) -> Option<Warning> {
    let some = |paths: &[&Path]| {
        let first = paths.first()?;
        let first = first.strip_prefix(workspace).unwrap_or(first).display();
        Some(match paths.len() - 1 {
            0 => first.to_string(),
            1 => format!("{first} and 1 other file"),
            more => format!("{first} and {more} other files"),
        })
    };
    let text = match (some(changed), some(appeared)) {
        (None, None) => return None,
        (Some(changed), None) => format!("{changed} changed during the run"),
        (None, Some(appeared)) => format!("{appeared} appeared during the run"),
        (Some(changed), Some(appeared)) => {
            format!("{changed} changed during the run, {appeared} appeared")
        }
    };
    let text = format!("{text}; workers had what was there before");
    Some(Warning { text, hint: None })
}

fn globs(key: &str, patterns: &[String]) -> Result<Globs, Failure> {
    Globs::new(patterns).map_err(|why| unusable(key, why))
}

fn unusable(key: &str, why: String) -> Failure {
    let what = format!("could not use the patterns of `{key}`");
    Failure::new(ExitCode::Setup, what).because(why)
}

/// Whether files that a pattern of `collect` names can lie where files come back to.
fn inside(pattern: &str, roots: &TreeRoots) -> Result<(), Failure> {
    let fail = |why: &str| {
        let what = format!("could not use the pattern `{pattern}` of `collect`");
        let hint = "write it relative to the workspace, such as `tests/out/*.log`; files come back \
                    to the workspace, its target folder and its path dependencies";
        Err(Failure::new(ExitCode::Setup, what).because(why.to_owned()).hint(hint))
    };
    if pattern.split('/').any(|component| component == "..") {
        return fail("it has a `..`, and no file's path has one");
    }
    if !pattern.starts_with('/') {
        return Ok(());
    }
    let mut folders = [&roots.workspace].into_iter().chain(&roots.packages).chain(&roots.excluded);
    match folders.any(|folder| may_name_in(pattern, folder)) {
        true => Ok(()),
        false => fail("it lies outside of the folders that files come back to"),
    }
}

/// Whether an absolute pattern can name something in a folder: as far as both go, each name fits.
fn may_name_in(pattern: &str, folder: &Path) -> bool {
    let names = folder.components().skip(1).map(|component| Path::new(component.as_os_str()));
    let parts = pattern.split('/').filter(|part| !part.is_empty());
    for (part, name) in parts.zip(names) {
        if part == "**" {
            return true;
        }
        // What makes no sense is told elsewhere.
        let fits = Globs::new([part]).is_ok_and(|globs| globs.matches(name, Some(name)));
        if !fits {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_files_that_could_not_come_back_are_refused() {
        let roots = TreeRoots {
            workspace: "/w/ws".into(),
            packages: vec!["/w/dependency".into()],
            excluded: vec!["/t/target".into()],
            ..TreeRoots::default()
        };
        for good in ["*.out", "a/b", "./a", "a..b", "/w/ws/*.out", "/w/*/x", "/**/x", "/t/target/x"]
        {
            assert!(inside(good, &roots).is_ok(), "{good}");
        }
        for bad in ["../x", "a/../b", "..", "/tmp/*.log", "/w/*.log", "/w/other/x", "/w/ws-2/x"] {
            let failure = inside(bad, &roots).unwrap_err();
            assert_eq!(failure.code, ExitCode::Setup, "{bad}");
            assert!(failure.hint.is_some());
        }
    }

    #[test]
    fn what_a_worker_gives_to_tests_is_known_here() {
        let known = |name: &&'static str| {
            testenv::is_workers_own(name) || testenv::travels((*name).as_ref(), &Pass::default())
        };
        assert!(distest_worker::server::FROM_WORKER.iter().all(known));
    }

    #[test]
    fn one_line_names_one_file() {
        fn paths<'a>(paths: &[&'a str]) -> Vec<&'a Path> {
            paths.iter().map(|path| Path::new(*path)).collect()
        }
        let both = |changed: &[&'static str], appeared: &[&'static str]| {
            let warning = differs(&paths(changed), &paths(appeared), Path::new("/w"));
            warning.map(|warning| warning.text)
        };
        let told = |changed: &[&'static str]| both(changed, &[]);
        let rest = " changed during the run; workers had what was there before";
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["/w/a"]), Some(format!("a{rest}")));
        assert_eq!(told(&["/x/a", "/w/b", "/w/c"]), Some(format!("/x/a and 2 other files{rest}")));
        let rest = "; workers had what was there before";
        let appeared = both(&[], &["/w/new", "/w/b"]);
        let expected = "new and 1 other file appeared during the run";
        assert_eq!(appeared, Some(format!("{expected}{rest}")));
        let all = "a changed during the run, new appeared";
        assert_eq!(both(&["/w/a"], &["/w/new"]), Some(format!("{all}{rest}")));
    }
}
