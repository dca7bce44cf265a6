//! Why a test may have failed on a worker that would pass here: a path that did not travel, a
//! variable that was not passed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distest_worker::globs::Globs;
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
    /// Patterns of files that the user wants to stay here.
    pub exclude: Globs,
    /// Names of variables that are set here and that remote tests don't get.
    pub variables: Vec<String>,
}

/// Finds hints. What an executable names is found out once.
#[derive(Default)]
pub(super) struct Hints {
    here: Arc<Here>,
    named: BTreeMap<BinaryKey, Vec<String>>,
    /// Variables that have been told of.
    told: BTreeSet<String>,
}

impl Hints {
    pub(super) fn new(here: Here) -> Self {
        Self { here: Arc::new(here), ..Self::default() }
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
                let left_out = tree.as_ref().and_then(|tree| tree.left_out(&path));
                let hint = path_hint(&path, &here, left_out);
                if hints.len() < HINTS_MAX && !hints.contains(&hint) {
                    hints.push(hint);
                }
            }
            hints.extend(texts.iter().flatten().find_map(|text| lacking_hint(text)));
            let missed = |name: &&String| {
                texts.iter().flatten().any(|text| clues::misses_variable(text, name))
            };
            let missed: BTreeSet<String> = named.iter().filter(missed).cloned().collect();
            (hints, named, missed)
        };
        // What panics here says nothing about the test.
        let (mut hints, named, missed) =
            tokio::task::spawn_blocking(look).await.unwrap_or_default();
        // All failures of a binary could get them; one is enough where nothing speaks for it.
        let telling = |name: &&String| missed.contains(*name) || !self.told.contains(*name);
        let variables: Vec<String> =
            named.iter().filter(telling).take(HINTS_MAX).cloned().collect();
        hints.extend(variables.iter().map(|name| variable_hint(name)));
        self.told.extend(variables);
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

/// `left_out`: why, if it is not just that git ignores it or that it lies elsewhere.
fn path_hint(path: &Path, here: &Here, left_out: Option<&str>) -> String {
    let relative = here.roots.first().and_then(|root| path.strip_prefix(root).ok());
    let shown = relative.unwrap_or(path).to_string_lossy();
    let pattern = toml::Value::from(clues::pattern_of(&shown));
    let shown = match shown.contains(char::is_whitespace) {
        true => format!("{shown:?}"),
        false => shown.into_owned(),
    };
    let what = format!("{shown} exists here but did not travel");
    if let Some(why) = left_out {
        return format!("{what}: {why}");
    }
    if here.exclude.matches(path, relative) {
        return format!("{what}: `exclude` in the profile of .config/distest.toml names it");
    }
    format!("{what}: include = [{pattern}] in the profile of .config/distest.toml sends it")
}

/// What never travels, and seems to have been wanted.
fn lacking_hint(text: &[u8]) -> Option<String> {
    const REST: &str = "`local-only = true` in an override of the profile keeps such tests here";
    if clues::misses_repository(text) {
        return Some(format!(
            "git finds no repository on a worker, since .git does not travel: {REST}"
        ));
    }
    if clues::misses_room(text) {
        let text = "a worker keeps what tests write in memory, with a bound on bytes and on files: \
                    `serve --writes-max` there raises both";
        return Some(text.to_owned());
    }
    let tool = clues::missed_tools(text).into_iter().find(|path| Path::new(path).is_file())?;
    Some(format!("{tool} exists here, but workers have tools of their own only, if any: {REST}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_travels_is_told() {
        let told = |text: &str| lacking_hint(text.as_bytes()).unwrap_or_default();
        assert!(told("fatal: not a git repository").contains("since .git does not travel"));
        assert!(told("Os { code: 28, kind: StorageFull, .. }").contains("--writes-max"));
        let tools = tempfile::tempdir().unwrap();
        let cargo = tools.path().join("cargo");
        let text = format!("{}: No such file or directory (os error 2)", cargo.display());
        assert_eq!(told(&text), "", "nor is it here");
        fs::write(&cargo, "").unwrap();
        assert!(told(&text).starts_with(&format!("{} exists here", cargo.display())));
    }

    #[test]
    fn a_path_that_stayed_is_told_with_what_would_send_it() {
        let exclude = Globs::new(["docs"]).unwrap();
        let here = Here { roots: vec!["/w".into()], exclude, ..Here::default() };
        let check = |path: &str, left_out, expected: &str| {
            assert_eq!(path_hint(Path::new(path), &here, left_out), expected);
        };
        let rest = "in the profile of .config/distest.toml";
        let said = "exists here but did not travel";
        check("/w/a.bin", None, &format!("a.bin {said}: include = [\"a.bin\"] {rest} sends it"));
        check(
            "/w/two words[1]",
            None,
            &format!("\"two words[1]\" {said}: include = ['two words\\[1\\]'] {rest} sends it"),
        );
        check("/w/docs/x", None, &format!("docs/x {said}: `exclude` {rest} names it"));
        check("/w/pipe", Some("it is a named pipe"), &format!("pipe {said}: it is a named pipe"));
    }
}
