//! cargo's configuration files, as far as tests depend on them: `[env]` is in no cargo message.
//!
//! Read and merged as cargo does (<https://doc.rust-lang.org/cargo/reference/config.html>): the
//! current directory upwards, then `$CARGO_HOME`; `include`; `--config`. A merged table keeps the
//! place of the file that it was first seen in, and so do values in it that are `relative`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Value;

/// How deep files may include each other.
const INCLUDE_DEPTH_MAX: u32 = 32;

/// The merged configuration.
#[derive(Debug)]
pub(super) struct CargoConfig {
    root: BTreeMap<String, Node>,
    looked_at: BTreeSet<PathBuf>,
}

/// A variable that `[env]` adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigVariable {
    pub(super) name: OsString,
    pub(super) value: OsString,
}

/// A value and the folder that paths in it are relative to.
#[derive(Debug)]
struct Node {
    kind: Kind,
    base: PathBuf,
}

#[derive(Debug)]
enum Kind {
    Table(BTreeMap<String, Node>),
    Leaf(Value),
}

impl CargoConfig {
    /// Reads everything that a cargo started in `cwd` with these `--config` values would.
    pub(super) fn load(cwd: &Path, cli: &[String]) -> Result<Self, String> {
        let home = std::env::var_os("CARGO_HOME")
            .filter(|home| !home.is_empty())
            .map(|home| cwd.join(home))
            .or_else(|| Some(std::env::home_dir()?.join(".cargo")));
        Self::load_from(cwd, home.as_deref(), cli)
    }

    pub(super) fn load_from(
        cwd: &Path,
        home: Option<&Path>,
        cli: &[String],
    ) -> Result<Self, String> {
        let mut folders: Vec<PathBuf> =
            cwd.ancestors().map(|folder| folder.join(".cargo")).collect();
        folders.extend(home.map(Path::to_path_buf));
        let mut root = Node::table(BTreeMap::new(), cwd.to_path_buf());
        let mut seen = BTreeSet::new();
        let mut looked_at = BTreeSet::new();
        for folder in folders {
            // The old name wins if both are there.
            let files = [folder.join("config"), folder.join("config.toml")];
            looked_at.extend(files.iter().cloned());
            let Some(file) = files.iter().find(|file| file.is_file()) else { continue };
            if seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone())) {
                root.merge(read_file(file, INCLUDE_DEPTH_MAX, &mut looked_at)?, false);
            }
        }
        let mut given = Node::table(BTreeMap::new(), cwd.to_path_buf());
        for value in cli {
            given.merge(read_argument(value, cwd, &mut looked_at)?, true);
        }
        root.merge(given, true);
        match root.kind {
            Kind::Table(root) => Ok(Self { root, looked_at }),
            Kind::Leaf(_) => Err("it is no table".to_owned()),
        }
    }

    /// Every file that was read, or was not there to be read.
    pub(super) fn looked_at(&self) -> &BTreeSet<PathBuf> {
        &self.looked_at
    }

    /// What it has values of.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.root.keys().map(String::as_str)
    }

    /// What the tables in a table have values of.
    pub(super) fn keys_of_tables_in(&self, table: &str) -> BTreeSet<&str> {
        let tables = self.root.get(table).and_then(Node::entries).into_iter().flatten();
        let keys = tables.filter_map(|(_, table)| Some(table.entries()?.keys()));
        keys.flatten().map(String::as_str).collect()
    }

    /// The variables of `[env]`, each with the value in force: what the client has, which `given`
    /// tells, wins unless the configuration forces its own. It is named all the same, because a
    /// worker elsewhere doesn't have it.
    pub(super) fn variables(
        &self,
        given: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<ConfigVariable> {
        let Some(Kind::Table(env)) = self.root.get("env").map(|node| &node.kind) else {
            return Vec::new();
        };
        let variable = |(name, node): (&String, &Node)| {
            let (value, force) = node.variable()?;
            let value = given(name).filter(|_| !force).unwrap_or(value);
            Some(ConfigVariable { name: name.into(), value })
        };
        env.iter().filter_map(variable).collect()
    }

    /// A program: a bare name is looked up by whoever runs it, a path is relative to its file.
    pub(super) fn program(&self, table: &str, key: &str) -> Option<OsString> {
        let node = self.get(table, key)?;
        let name = node.as_str()?;
        Some(if name.contains('/') { node.base.join(name).into() } else { name.into() })
    }

    /// A string, or a list of them.
    pub(super) fn strings(&self, table: &str, key: &str) -> Vec<String> {
        self.get(table, key).map(Node::strings).unwrap_or_default()
    }

    /// `rustflags` of `[target]` for any of these targets or by a condition, each as written.
    pub(super) fn target_rustflags(&self, targets: &[String]) -> Vec<String> {
        let Some(Kind::Table(tables)) = self.root.get("target").map(|node| &node.kind) else {
            return Vec::new();
        };
        let applies = |name: &String| name.starts_with("cfg(") || targets.contains(name);
        let flags = tables.iter().filter(|(name, _)| applies(name)).filter_map(|(_, node)| {
            let Kind::Table(entries) = &node.kind else { return None };
            Some(entries.get("rustflags")?.strings())
        });
        flags.flatten().collect()
    }

    fn get(&self, table: &str, key: &str) -> Option<&Node> {
        self.root.get(table)?.entries()?.get(key)
    }
}

impl Node {
    fn table(entries: BTreeMap<String, Node>, base: PathBuf) -> Self {
        Self { kind: Kind::Table(entries), base }
    }

    fn new(value: Value, base: &Path) -> Self {
        let kind = match value {
            Value::Table(table) => Kind::Table(
                table.into_iter().map(|(key, value)| (key, Self::new(value, base))).collect(),
            ),
            leaf => Kind::Leaf(leaf),
        };
        Self { kind, base: base.to_path_buf() }
    }

    /// Takes what `other` has and this lacks, and with `force` also what both have. Tables keep
    /// their place; cargo refuses to merge a table with something else.
    fn merge(&mut self, other: Self, force: bool) {
        match (&mut self.kind, other.kind) {
            (Kind::Table(own), Kind::Table(others)) => {
                for (key, value) in others {
                    match own.get_mut(&key) {
                        Some(known) => known.merge(value, force),
                        None => drop(own.insert(key, value)),
                    }
                }
            }
            (Kind::Leaf(own), Kind::Leaf(value)) if force => {
                *own = value;
                self.base = other.base;
            }
            _ => {}
        }
    }

    fn entries(&self) -> Option<&BTreeMap<String, Self>> {
        match &self.kind {
            Kind::Table(entries) => Some(entries),
            Kind::Leaf(_) => None,
        }
    }

    fn strings(&self) -> Vec<String> {
        match &self.kind {
            Kind::Leaf(Value::String(text)) => vec![text.clone()],
            Kind::Leaf(Value::Array(list)) => {
                list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn as_str(&self) -> Option<&str> {
        match &self.kind {
            Kind::Leaf(value) => value.as_str(),
            Kind::Table(_) => None,
        }
    }

    /// As an entry of `[env]`: its value, and whether it overrides the client's environment.
    fn variable(&self) -> Option<(OsString, bool)> {
        let entries = match &self.kind {
            Kind::Leaf(value) => return Some((value.as_str()?.into(), false)),
            Kind::Table(entries) => entries,
        };
        let flag = |name| {
            let kind = entries.get(name).map(|node| &node.kind);
            matches!(kind, Some(Kind::Leaf(Value::Boolean(true))))
        };
        let value = entries.get("value")?.as_str()?;
        let value =
            if flag("relative") { self.base.join(value).into() } else { OsString::from(value) };
        Some((value, flag("force")))
    }
}

/// `KEY=VALUE`, or the path of a file.
fn read_argument(
    argument: &str,
    cwd: &Path,
    looked_at: &mut BTreeSet<PathBuf>,
) -> Result<Node, String> {
    let file = cwd.join(argument);
    looked_at.insert(file.clone());
    if !argument.is_empty() && file.exists() {
        return read_file(&file, INCLUDE_DEPTH_MAX, looked_at);
    }
    let table = argument.parse().map_err(|error| format!("--config {argument}: {error}"))?;
    resolve_includes(table, cwd, cwd, INCLUDE_DEPTH_MAX, looked_at)
}

fn read_file(file: &Path, depth: u32, looked_at: &mut BTreeSet<PathBuf>) -> Result<Node, String> {
    let text = std::fs::read_to_string(file).map_err(|error| tell(file, error))?;
    let table = text.parse().map_err(|error| tell(file, error))?;
    let folder = file.parent().unwrap_or(file);
    // Paths in `dir/.cargo/config.toml` are relative to `dir`.
    let base = folder.parent().unwrap_or(folder);
    resolve_includes(table, folder, base, depth, looked_at)
}

/// The included files, later ones over earlier ones, and `table` over them.
fn resolve_includes(
    mut table: toml::Table,
    folder: &Path,
    base: &Path,
    depth: u32,
    looked_at: &mut BTreeSet<PathBuf>,
) -> Result<Node, String> {
    let includes = match table.remove("include") {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let mut node = Node::table(BTreeMap::new(), base.to_path_buf());
    for include in includes {
        let (path, optional) = match &include {
            Value::String(path) => (Some(path.as_str()), false),
            Value::Table(table) => (
                table.get("path").and_then(Value::as_str),
                table.get("optional").and_then(Value::as_bool).unwrap_or(false),
            ),
            _ => (None, false),
        };
        let Some(path) = path else { return Err(tell(folder, "`include` without a path")) };
        let file = folder.join(path);
        looked_at.insert(file.clone());
        if optional && !file.exists() {
            continue;
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(tell(&file, format!("included more than {INCLUDE_DEPTH_MAX} deep")));
        };
        node.merge(read_file(&file, depth, looked_at)?, true);
    }
    node.merge(Node::new(Value::Table(table), base), true);
    Ok(node)
}

fn tell(file: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// `NAME=value` lines of what a cargo in `cwd` adds for a client that has `HAD`.
    fn check(cwd: &Path, cli: &[&str], expected: &[String]) {
        let cli: Vec<String> = cli.iter().map(|&value| value.to_owned()).collect();
        let config = CargoConfig::load_from(cwd, None, &cli).unwrap();
        let found: Vec<String> = config
            .variables(|name| (name == "HAD").then(|| "the client's".into()))
            .iter()
            .map(|variable| {
                format!("{}={}", variable.name.to_string_lossy(), variable.value.to_string_lossy())
            })
            .collect();
        assert_eq!(found, expected);
    }

    /// The files and results of an experiment with cargo 1.95.
    #[test]
    fn merges_as_cargo_does() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        write(
            root,
            &[
                (
                    "w/.cargo/config.toml",
                    r#"include = ["more/a.toml", { path = "more/missing.toml", optional = true },
                           { path = "../other/deep/b.toml" }]
                       [env]
                       MAIN = { value = "m", relative = true }
                       BOTH = "main"
                       HAD = "not taken"
                       MERGED = { value = "x", force = true }"#,
                ),
                (
                    "w/.cargo/more/a.toml",
                    r#"env = { INC = { value = "i", relative = true }, BOTH = "a", AB = "a",
                           MERGED = { value = "a" } }"#,
                ),
                (
                    "w/other/deep/b.toml",
                    r#"env = { OTHER = { value = "o", relative = true }, BOTH = "b", AB = "b" }"#,
                ),
                (
                    ".cargo/config.toml",
                    r#"[env]
                       BOTH = "up"
                       MERGED = { value = "up", relative = true }
                       UP = { value = "z", force = true, relative = true }"#,
                ),
                ("w/cli/x.toml", r#"env.FILE = { value = "c", relative = true }"#),
            ],
        );
        let at = |name: &str, path: &str| format!("{name}={}/{path}", root.display());
        check(
            &root.join("w"),
            &["cli/x.toml", "env.UP.value='cli'", "env.V.value='v'", "env.V.relative=true"],
            &[
                "AB=b".to_owned(),
                "BOTH=main".to_owned(),
                at("FILE", "w/c"),
                "HAD=the client's".to_owned(),
                at("INC", "w/.cargo/i"),
                at("MAIN", "w/m"),
                at("MERGED", "w/.cargo/x"),
                at("OTHER", "w/.cargo/../other/o"),
                at("UP", "cli"),
                at("V", "w/v"),
            ],
        );
        check(root, &[], &["BOTH=up".to_owned(), at("MERGED", "up"), at("UP", "z")]);
    }

    #[test]
    fn files_that_include_each_other_end_in_an_error() {
        let temp = tempfile::tempdir().unwrap();
        write(temp.path(), &[(".cargo/config.toml", r#"include = ["config.toml"]"#)]);
        let error = CargoConfig::load_from(temp.path(), None, &[]).unwrap_err();
        assert!(error.contains("deep"), "{error}");
    }

    #[test]
    fn only_force_overrides_what_the_client_has() {
        let temp = tempfile::tempdir().unwrap();
        check(temp.path(), &["env.HAD='plain'"], &["HAD=the client's".to_owned()]);
        check(
            temp.path(),
            &["env.HAD.value='forced'", "env.HAD.force=true"],
            &["HAD=forced".to_owned()],
        );
    }
}
