//! Why a test may have failed on a worker that would pass here: a path that did not travel, a
//! variable that was not passed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distest_worker::protocol::BinaryKey;
use object::{Object, ObjectSection};

use super::Runnable;
use crate::clues;
use crate::event::CapturedOutput;
use crate::model::TestBinary;
use crate::tree::Tree;

/// Hints of a kind that one failure gets.
const HINTS_MAX: usize = 3;
/// Executables larger than this are not looked through, in bytes.
const EXECUTABLE_BYTES_MAX: u64 = 1 << 30;

/// What is here and what travelled.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// Folders that workers lay out; the workspace is the first.
    pub roots: Vec<PathBuf>,
    /// Folders that no test of the workspace reads from: tools and what they keep.
    pub foreign: Vec<PathBuf>,
    /// Names of variables that are set here and that remote tests don't get.
    pub variables: Vec<String>,
}

/// Finds hints. What an executable names is found out once.
#[derive(Default)]
pub(super) struct Hints {
    here: Arc<Here>,
    named: BTreeMap<BinaryKey, Vec<String>>,
}

impl Hints {
    pub(super) fn new(here: Here) -> Self {
        Self { here: Arc::new(here), named: BTreeMap::new() }
    }

    /// Hints for a test of `runnable` that failed on a worker with these outputs. Looks at the
    /// disk.
    pub(super) async fn of(
        &mut self,
        runnable: &Arc<Runnable>,
        tree: Option<Arc<Tree>>,
        outputs: [&CapturedOutput; 2],
    ) -> Vec<String> {
        let texts = outputs.map(|output| [output.head.clone(), output.tail.clone()]);
        let (here, runnable, key) = (Arc::clone(&self.here), Arc::clone(runnable), runnable.key);
        let known = self.named.get(&key).cloned();
        let look = move || {
            let named = known.unwrap_or_else(|| variables(&runnable.binary, &here.variables));
            let mentioned = texts.iter().flatten().flat_map(|text| clues::paths(text));
            let paths = mentioned.flat_map(|path| {
                let places = clues::places(&path, &runnable.binary.cwd, &here.roots);
                let left = |place: &PathBuf| stayed(place, &here, tree.as_deref(), &runnable);
                places.into_iter().find(left)
            });
            let mut hints: Vec<String> = Vec::new();
            for path in paths {
                let hint = path_hint(&path, &here.roots);
                if hints.len() < HINTS_MAX && !hints.contains(&hint) {
                    hints.push(hint);
                }
            }
            hints.extend(named.iter().take(HINTS_MAX).map(|name| variable_hint(name)));
            (hints, named)
        };
        // What panics here says nothing about the test.
        let (hints, named) = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        self.named.insert(key, named);
        hints
    }
}

/// Whether something is here that did not travel, and that a test may have wanted.
fn stayed(path: &Path, here: &Here, tree: Option<&Tree>, runnable: &Runnable) -> bool {
    let Some(tree) = tree else { return false };
    let ours = here.roots.iter().any(|root| path.starts_with(root) && path != root);
    let foreign = here.foreign.iter().any(|folder| path.starts_with(folder));
    let git = path.components().any(|component| component.as_os_str() == ".git");
    if foreign || git || !(ours || path.components().count() > 3) {
        return false;
    }
    let travelled = tree.entry(path).is_some() || runnable.parcel.contains(path);
    !travelled && fs::symlink_metadata(path).is_ok()
}

fn path_hint(path: &Path, roots: &[PathBuf]) -> String {
    let shown = roots.first().and_then(|root| path.strip_prefix(root).ok()).unwrap_or(path);
    let shown = shown.to_string_lossy();
    format!(
        "{shown} exists here but did not travel: include = [{shown:?}] in the profile of \
         .config/distest.toml sends it"
    )
}

fn variable_hint(name: &str) -> String {
    format!(
        "the executable names {name}, which is set here but was not passed: env.pass = [{name:?}] in \
         the profile of .config/distest.toml passes it"
    )
}

/// Variables that the executable and the programs beside it name in their constants.
fn variables(binary: &TestBinary, names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let mut found: Vec<String> = Vec::new();
    for file in [&binary.executable].into_iter().chain(&binary.companions) {
        if fs::metadata(file).is_ok_and(|metadata| metadata.len() > EXECUTABLE_BYTES_MAX) {
            continue;
        }
        // What can't be read gives no hint.
        let Ok(bytes) = fs::read(file) else { continue };
        let Ok(parsed) = object::File::parse(&*bytes) else { continue };
        for section in parsed.sections().filter(|section| section.name() == Ok(".rodata")) {
            let Ok(constants) = section.data() else { continue };
            found.extend(clues::named(constants, names).into_iter().map(str::to_owned));
        }
    }
    found.sort();
    found.dedup();
    found
}
