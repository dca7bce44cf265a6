//! What travels to workers: which folders, which files in them, and whether they stayed the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use distest_worker::globs::Globs;
use distest_worker::protocol::OsText;
use distest_worker::server::FROM_WORKER;

use crate::collect::Collector;
use crate::compile::Workspace;
use crate::dispatch::Here;
use crate::failure::{ExitCode, Failure};
use crate::settings::{TravelSettings, Warning};
use crate::testenv;
use crate::tree::copies::Copies;
use crate::tree::include::{Include, SYSTEM};
use crate::tree::{self, Tree, TreeRoots, TreeRules};

/// Where workspace files are looked for, and by which rules.
#[derive(Clone, Debug)]
pub struct Travel {
    roots: TreeRoots,
    rules: TreeRules,
    pass: Globs,
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
        let (exclude, pass) = (globs("exclude", exclude)?, globs("env.pass", pass)?);
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

    /// Takes what comes back, and keeps it in `folder` until it is complete.
    ///
    /// # Errors
    /// A pattern makes no sense.
    pub fn collector(&self, folder: PathBuf) -> Result<Arc<Collector>, Failure> {
        let mut roots = vec![self.roots.workspace.clone()];
        roots.extend(self.roots.packages.iter().chain(&self.roots.excluded).cloned());
        roots.sort();
        roots.dedup_by(|inner, outer| inner.starts_with(outer));
        Ok(Arc::new(Collector::new(roots, globs("collect", &self.collect)?, folder)))
    }

    /// Variables that remote tests get beside those that always travel.
    pub fn pass(&self) -> &Globs {
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
        let own_there = |name: &String| !FROM_WORKER.contains(&name.as_str());
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
    Globs::new(patterns).map_err(|why| {
        let what = format!("could not use the patterns of `{key}`");
        Failure::new(ExitCode::Setup, what).because(why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
