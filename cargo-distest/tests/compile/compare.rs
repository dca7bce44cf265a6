//! Comparisons with `cargo test` and cargo-nextest.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cargo_distest::compile::Workspace;
use cargo_distest::inventory::{Inventory, LocalLister};
use cargo_distest::model::{Listing, TestBinary};

use crate::project::{Project, cargo};

/// Runs `cargo test` with a target runner that keeps what it was given instead of running tests,
/// and compares that with ours, variable by variable.
pub(crate) fn compare_environments(
    project: &Project,
    args: &[&str],
    workspace: &Workspace,
    binaries: &BTreeMap<String, TestBinary>,
) {
    let given = project.root().join("given");
    std::fs::create_dir_all(&given).unwrap();
    // The environment as the shell got it: by itself it drops names with dashes.
    let keep = format!("cat /proc/$$/environ > {}/$(basename $0)", given.display());
    let runner = format!("target.{}.runner=['sh', '-c', '{keep}']", workspace.host);
    let status = Command::new(cargo())
        .arg("test")
        .args(project.args(args))
        .args(["--config", &runner, "--quiet", "--tests"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    for binary in binaries.values() {
        let file = given.join(binary.executable.file_name().unwrap());
        let expected = parse_environment(&std::fs::read(&file).unwrap());
        compare_environment(binary, &expected);
    }
}

fn parse_environment(bytes: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let variables = text.split_terminator('\0').filter_map(|line| line.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn compare_environment(binary: &TestBinary, expected: &BTreeMap<String, String>) {
    let text = |text: OsString| text.into_string().unwrap();
    let own = binary.env.clone().into_iter();
    let ours: BTreeMap<String, String> =
        std::env::vars_os().chain(own).map(|(name, value)| (text(name), text(value))).collect();
    for name in expected.keys().chain(ours.keys()) {
        let (ours, expected) = (ours.get(name), expected.get(name));
        match name.as_str() {
            // Ours alone: see `compile::runtime_env`.
            "CARGO_TARGET_TMPDIR" => {
                let own = binary.env.contains_key(OsStr::new(name));
                assert_eq!(own, !binary.writable_dirs.is_empty(), "{}", binary.id);
            }
            name if name.starts_with("NEXTEST_") => {}
            "LD_LIBRARY_PATH" => {
                // cargo adds native folders of packages that the binary has nothing to do with.
                let ours: Vec<_> = std::env::split_paths(ours.unwrap()).collect();
                let mut expected: Vec<_> = std::env::split_paths(expected.unwrap()).collect();
                expected.retain(|path| ours.contains(path) || !path.ends_with("out"));
                assert_eq!(ours, expected, "{}", binary.id);
            }
            name => assert_eq!(ours, expected, "{name} of {}", binary.id),
        }
    }
}

/// Lists all binaries and compares ids, names and `ignored` with cargo-nextest's list, if that is
/// installed, else with what the sources say.
pub(crate) async fn compare_lists(
    project: &Project,
    args: &[&str],
    binaries: &BTreeMap<String, TestBinary>,
) {
    let inventory = Inventory::new(LocalLister::default(), 2, None, &[]);
    let mut ours = BTreeMap::new();
    for (id, binary) in binaries {
        let listing = inventory.list(Arc::new(binary.clone())).await.unwrap();
        ours.insert(id.clone(), sorted_cases(&listing));
    }
    assert_eq!(inventory.executed() as usize, binaries.len());
    let case = |name: &str, ignored| (name.to_owned(), ignored);
    assert_eq!(ours["main-pkg"], [case("left_out", true), case("plain", false)]);
    assert_eq!(ours["main-pkg::it"], [case("grüße", false), case("plain", false)]);
    assert_eq!(
        ours["main-pkg::custom"],
        [case("--dashes", false), case("a name with spaces", false)]
    );
    match nextest_list(project, args) {
        Some(expected) => assert_eq!(ours, expected),
        None => eprintln!("skipped: cargo-nextest is not installed, its list is not compared"),
    }
}

pub(crate) fn sorted_cases(listing: &Listing) -> Vec<(String, bool)> {
    let cases = listing.cases.iter().map(|case| (case.name.to_string(), case.ignored));
    let mut cases: Vec<_> = cases.collect();
    cases.sort();
    cases
}

fn nextest_list(project: &Project, args: &[&str]) -> Option<BTreeMap<String, Vec<(String, bool)>>> {
    let version = Command::new(cargo()).args(["nextest", "--version"]).output().unwrap();
    if !version.status.success() {
        return None;
    }
    let output = Command::new(cargo())
        .args(["nextest", "list", "--message-format", "json"])
        .args(project.args(args))
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.status);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let suites = json["rust-suites"].as_object().unwrap().iter();
    let cases = |suite: &serde_json::Value| {
        let cases = suite["testcases"].as_object().unwrap().iter();
        let mut cases: Vec<_> =
            cases.map(|(name, case)| (name.clone(), case["ignored"].as_bool().unwrap())).collect();
        cases.sort();
        cases
    };
    Some(suites.map(|(id, suite)| (id.clone(), cases(suite))).collect())
}
