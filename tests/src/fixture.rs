//! Fixtures, and what each of their tests must come to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use crate::product::{product, repository};
use crate::scratch::Scratch;
use crate::transcript::{AttemptResult, Case, Verdict};

/// A cargo workspace that is a test subject.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Name of its folder in `fixtures/`.
    pub name: String,
    /// That folder.
    pub root: PathBuf,
    /// Cargo's target directory for it, shared by all tests so that it is built once.
    pub target_dir: PathBuf,
    /// What must come of it.
    pub model: Model,
}

/// What must come of a run.
#[derive(Clone, Debug)]
pub struct Model {
    /// Arguments of the run.
    pub args: Vec<String>,
    /// What it exits with.
    pub exit_code: i32,
    /// What each test comes to.
    pub verdicts: BTreeMap<Case, Verdict>,
    /// Results of the attempts of some tests, in order.
    pub attempts: BTreeMap<Case, Vec<AttemptResult>>,
    /// What a test is told to leave behind: part of the words. All tests that leave something.
    pub leaks: BTreeMap<Case, String>,
    /// Binaries that a path of the client's is compiled into.
    pub baked: BTreeSet<String>,
    /// Its tests are to have networks of their own.
    pub private_network: bool,
}

/// The file `model.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    args: Vec<String>,
    exit_code: i32,
    #[serde(default)]
    verdicts: BTreeMap<String, BTreeMap<String, Verdict>>,
    #[serde(default)]
    attempts: BTreeMap<String, BTreeMap<String, Vec<AttemptResult>>>,
    #[serde(default)]
    leaks: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    baked: BTreeSet<String>,
    #[serde(default)]
    private_network: bool,
    #[serde(default)]
    series: Vec<Series>,
}

/// Tests called alike: `prefix` and four digits of a number counted from 0.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    binary: String,
    prefix: String,
    count: u32,
    verdict: Verdict,
}

impl Fixture {
    /// The fixture of this name.
    pub fn named(name: &str) -> Self {
        let root = repository().join("fixtures").join(name);
        let path = root.join("model.toml");
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("could not read {}: {error}", path.display()));
        let file: ModelFile = toml::from_str(&text)
            .unwrap_or_else(|error| panic!("could not understand {}: {error}", path.display()));
        let target_dir = product().target_dir.join("fixtures").join(name);
        Self { name: name.to_owned(), root, target_dir, model: file.into() }
    }

    /// A copy in a scratch folder, outside any repository and never built before.
    pub fn copied(name: &str, scratch: &Scratch) -> Self {
        let original = Self::named(name);
        let root = scratch.join("copy").join(name);
        copy(&original.root, &root).expect("a fixture can be copied");
        Self { target_dir: root.join("target"), root, ..original }
    }
}

impl From<ModelFile> for Model {
    fn from(file: ModelFile) -> Self {
        let mut verdicts = flatten(file.verdicts);
        for series in file.series {
            for number in 0..series.count {
                let name = format!("{}{number:04}", series.prefix);
                verdicts.insert(Case::new(&series.binary, &name), series.verdict);
            }
        }
        Self {
            args: file.args,
            exit_code: file.exit_code,
            verdicts,
            attempts: flatten(file.attempts),
            leaks: flatten(file.leaks),
            baked: file.baked,
            private_network: file.private_network,
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else if !kind.is_dir() {
            fs::copy(entry.path(), target)?;
        } else if entry.file_name() != "target" {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

fn flatten<T>(binaries: BTreeMap<String, BTreeMap<String, T>>) -> BTreeMap<Case, T> {
    let mut flat = BTreeMap::new();
    for (binary, tests) in binaries {
        flat.extend(tests.into_iter().map(|(name, value)| (Case::new(&binary, &name), value)));
    }
    flat
}
