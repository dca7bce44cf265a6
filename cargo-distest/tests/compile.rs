//! Small workspaces without dependencies, built by the real cargo: what is found, named, listed and
//! given to tests is compared with what `cargo test` and cargo-nextest make of the same workspace.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cargo_distest::compile::{self, Workspace};
use cargo_distest::failure::{ExitCode, Failure};
use cargo_distest::inventory::{Inventory, LocalLister};
use cargo_distest::model::{BinaryKind, Harness, Listing, TestBinary};
use cargo_distest::settings::CompileSettings;
use tokio::sync::mpsc;

/// One of each kind of test binary; renamed library, dashes, build script, dynamic library.
const KINDS: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        r#"[workspace]
           members = ["main", "user", "pm", "dyl"]
           resolver = "2"
           [profile.dev]
           debug = 0"#,
    ),
    (
        "main/Cargo.toml",
        r#"[package]
           name = "main-pkg"
           version = "1.2.3-rc.1"
           edition = "2021"
           rust-version = "1.70"
           authors = ["A <a@example.org>", "B"]
           description = "What it is"
           homepage = "https://example.org/home"
           repository = "https://example.org/repository"
           license-file = "LICENCE"
           readme = "READ.md"
           [lib]
           name = "renamed"
           path = "src/other.rs"
           [[bin]]
           name = "never-built"
           path = "src/never.rs"
           required-features = ["never"]
           [features]
           never = []
           [[example]]
           name = "ex-test"
           test = true
           [[bench]]
           name = "be-test"
           test = true
           [[test]]
           name = "custom"
           harness = false"#,
    ),
    (
        "main/build.rs",
        r#"fn main() {
               let out = std::env::var("OUT_DIR").unwrap();
               std::fs::write(format!("{out}/libnative.so.1"), "").unwrap();
               println!("cargo:rustc-env=FROM_BUILD=a=b c");
               println!("cargo:rustc-link-search=native={out}");
               println!("cargo:rustc-link-search=/usr/lib");
           }"#,
    ),
    ("main/LICENCE", ""),
    ("main/READ.md", ""),
    ("main/src/other.rs", "#[test] fn plain() {} #[test] #[ignore] fn left_out() {}"),
    ("main/src/main.rs", "fn main() {} #[test] fn plain() {}"),
    ("main/src/never.rs", "fn main() {}"),
    ("main/src/bin/second-bin.rs", "fn main() {} #[test] fn plain() {}"),
    ("main/tests/it.rs", "#[test] fn plain() {} #[test] fn grüße() {}"),
    (
        "main/tests/custom.rs",
        r#"fn main() {
               if !std::env::args().any(|arg| arg == "--ignored") {
                   println!("a name with spaces: test\n--dashes: test");
               }
           }"#,
    ),
    ("main/examples/ex-test.rs", "fn main() {} #[test] fn plain() {}"),
    ("main/examples/ex-plain.rs", "fn main() {}"),
    ("main/benches/be-test.rs", "#[test] fn plain() {}"),
    (
        "user/Cargo.toml",
        r#"[package]
           name = "user"
           version = "0.1.0"
           edition = "2021"
           [dependencies]
           pm = { path = "../pm" }
           main-pkg = { path = "../main" }"#,
    ),
    ("user/src/lib.rs", "#[test] fn plain() {}"),
    ("user/tests/it.rs", "#[test] fn plain() {}"),
    (
        "pm/Cargo.toml",
        r#"[package]
           name = "pm"
           version = "0.1.0"
           edition = "2021"
           [lib]
           proc-macro = true"#,
    ),
    ("pm/src/lib.rs", "#[test] fn plain() {}"),
    (
        "dyl/Cargo.toml",
        r#"[package]
           name = "dyl"
           version = "0.1.0"
           edition = "2021"
           [lib]
           crate-type = ["dylib"]"#,
    ),
    ("dyl/src/lib.rs", "pub fn there() {} #[test] fn plain() {}"),
    (
        "config/env/variables.toml",
        r#"[env]
           PLAIN = "plain"
           RELATIVE = { value = "below", relative = true }
           HOME = { value = "forced", force = true }
           PATH = "not taken: the client has one"
           CARGO_PKG_NAME = { value = "not taken: cargo has one", force = true }"#,
    ),
];

/// Package `twice` is built with a feature for a build script and without it for its own tests.
const TWICE: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        r#"[workspace]
           members = ["twice", "user"]
           resolver = "2"
           [profile.dev]
           debug = 0"#,
    ),
    (
        "twice/Cargo.toml",
        r#"[package]
           name = "twice"
           version = "0.1.0"
           edition = "2021"
           [features]
           x = []"#,
    ),
    (
        "twice/build.rs",
        r#"fn main() {
               println!("cargo:rustc-env=FEATURE={}", std::env::var("CARGO_FEATURE_X").is_ok());
           }"#,
    ),
    ("twice/src/lib.rs", "#[test] fn plain() {}"),
    ("twice/tests/asks.rs", r#"#[test] fn plain() { assert_eq!(env!("FEATURE"), "false"); }"#),
    ("twice/tests/asks_not.rs", "#[test] fn plain() {}"),
    (
        "user/Cargo.toml",
        r#"[package]
           name = "user"
           version = "0.1.0"
           edition = "2021"
           [build-dependencies]
           twice = { path = "../twice", features = ["x"] }"#,
    ),
    ("user/build.rs", "fn main() {}"),
    ("user/src/lib.rs", "#[test] fn plain() {}"),
];

#[tokio::test]
async fn every_kind_is_found_listed_and_given_what_cargo_gives() {
    let project = Project::new(KINDS);
    let config = project.root().join("config/env/variables.toml");
    let args = ["--workspace", "--config", config.to_str().unwrap()];
    let (workspace, binaries) = project.build(&args).await.unwrap();
    assert_eq!(workspace.root, project.root());
    assert_eq!(workspace.local_roots, [project.root()]);

    let found: Vec<_> = binaries.values().map(|b| (&*b.id.0, b.kind, b.harness)).collect();
    use {BinaryKind::*, Harness::*};
    assert_eq!(
        found,
        [
            ("dyl", Lib, Libtest),
            ("main-pkg", Lib, Libtest),
            ("main-pkg::bench/be-test", Bench, Libtest),
            ("main-pkg::bin/main-pkg", Bin, Libtest),
            ("main-pkg::bin/second-bin", Bin, Libtest),
            ("main-pkg::custom", Test, Custom),
            ("main-pkg::example/ex-test", Example, Libtest),
            ("main-pkg::it", Test, Libtest),
            ("pm", ProcMacro, Libtest),
            ("user", Lib, Libtest),
            ("user::it", Test, Libtest),
        ]
    );
    let it = &binaries["main-pkg::it"];
    assert_eq!(names(&it.companions), ["ex-plain", "main-pkg", "second-bin"]);
    assert_eq!(names(&it.companion_dirs), ["out"]);
    assert_eq!(names(&binaries["user::it"].companion_dirs), ["out"]);
    assert_eq!(names(&binaries["pm"].companions), ["libstd-*.so"]);
    assert_eq!(names(&binaries["main-pkg::bin/main-pkg"].writable_dirs), [""; 0]);
    assert!(it.writable_dirs[0].is_dir());

    compare_environments(&project, &args, &workspace, &binaries);
    compare_lists(&project, &args, &binaries).await;
}

#[tokio::test]
async fn of_two_runs_of_a_build_script_the_right_one_counts() {
    let project = Project::new(TWICE);
    // The second time nothing is built, and cargo reports in another order.
    for _ in 0..2 {
        let (workspace, binaries) = project.build(&["--workspace"]).await.unwrap();
        for id in ["twice", "twice::asks", "twice::asks_not"] {
            let feature = &binaries[id].env[OsStr::new("FEATURE")];
            assert_eq!(feature, "false", "{id}");
        }
        compare_environments(&project, &["--workspace"], &workspace, &binaries);
    }
}

#[tokio::test]
async fn triple_and_build_folder_move_things_as_in_cargo() {
    let project = Project::new(KINDS);
    let build_dir = format!("build.build-dir={:?}", project.root().join("elsewhere"));
    let host = project.metadata(&[]).await.unwrap().host.to_string();
    let args = ["--config", &build_dir, "--target", &host, "-p", "main-pkg", "-p", "pm"];
    let (workspace, binaries) = project.build(&args).await.unwrap();
    assert_eq!(workspace.target_dir, project.root().join("target"));
    assert_eq!(workspace.build_dir, project.root().join("elsewhere"));
    assert!(binaries.values().all(|binary| *binary.triple.0 == *host));
    assert!(binaries["pm"].for_host && !binaries["main-pkg"].for_host);

    let it = &binaries["main-pkg::it"];
    let outputs = workspace.target_dir.join(&host).join("debug");
    let below = |folder: PathBuf| move |path: &PathBuf| path.starts_with(&folder);
    assert!(it.executable.starts_with(workspace.build_dir.join(&host).join("debug/deps")));
    assert!(it.companions.contains(&outputs.join("main-pkg")), "{:?}", it.companions);
    assert!(it.writable_dirs.iter().all(below(workspace.build_dir.join(&host))));
    assert!(it.companion_dirs.iter().all(below(workspace.build_dir.join(&host))));
    compare_environments(&project, &args, &workspace, &binaries);
}

#[tokio::test]
async fn libraries_that_are_loaded_at_run_time_come_along() {
    let project = Project::new(&[
        ("Cargo.toml", "workspace = { members = ['user', 'dyl'], resolver = '2' }"),
        (
            "dyl/Cargo.toml",
            "package = { name = 'dyl', version = '0.1.0', edition = '2021' }
             lib = { crate-type = ['dylib'] }",
        ),
        ("dyl/src/lib.rs", "pub fn there() {}"),
        (
            "user/Cargo.toml",
            "package = { name = 'user', version = '0.1.0', edition = '2021' }
             dependencies = { dyl = { path = '../dyl' } }",
        ),
        ("user/tests/it.rs", "#[test] fn plain() { dyl::there() }"),
    ]);
    let args = ["--config", "build.rustflags=['-Cprefer-dynamic']", "-p", "user"];
    let (workspace, binaries) = project.build(&args).await.unwrap();
    let it = &binaries["user::it"];
    assert_eq!(names(&it.companions), ["libdyl.so", "libstd-*.so"]);
    compare_environments(&project, &args, &workspace, &binaries);
    let inventory = Inventory::new(LocalLister::default(), 2, None, &[]);
    let listing = inventory.list(Arc::new(it.clone()), None).await.unwrap();
    assert_eq!(sorted_cases(&listing), [("plain".to_owned(), false)]);
}

#[tokio::test]
async fn a_binary_arrives_while_others_are_still_being_built() {
    let project = Project::new(&[
        ("Cargo.toml", "workspace = { members = ['quick', 'slow'], resolver = '2' }"),
        ("quick/Cargo.toml", "package = { name = 'quick', version = '0.1.0', edition = '2021' }"),
        ("quick/src/lib.rs", ""),
        ("slow/Cargo.toml", "package = { name = 'slow', version = '0.1.0', edition = '2021' }"),
        ("slow/src/lib.rs", ""),
        (
            "slow/build.rs",
            r#"fn main() {
                   for _ in 0..6000 {
                       if std::path::Path::new("../received").exists() { return }
                       std::thread::sleep(std::time::Duration::from_millis(10));
                   }
                   panic!("nobody received the other binary");
               }"#,
        ),
    ]);
    let settings = project.settings(&["--workspace", "-j2"]);
    let workspace = Arc::new(compile::metadata(&settings).await.unwrap());
    let (sender, mut receiver) = mpsc::channel::<TestBinary>(1);
    let receive = async {
        let first = receiver.recv().await.unwrap();
        std::fs::write(project.root().join("received"), "").unwrap();
        (first.id, receiver.recv().await.unwrap().id, receiver.recv().await.is_none())
    };
    let (done, received) = tokio::join!(compile::build(&settings, &workspace, sender), receive);
    assert_eq!(done.unwrap().binaries, 2);
    assert_eq!((&*received.0.0, &*received.1.0, received.2), ("quick", "slow", true));
}

#[tokio::test]
async fn what_cargo_tells_is_not_told_again() {
    let manifest = "package = { name = 'bad', version = '0.1.0', edition = '2021' }";
    let project = Project::new(&[("Cargo.toml", manifest), ("src/lib.rs", "not rust")]);
    let failure = project.build(&[]).await.map(drop).unwrap_err();
    assert_eq!((failure.code, failure.silent), (ExitCode::BuildFailed, true));

    let project = Project::new(&[("Cargo.toml", "package = {")]);
    let failure = project.metadata(&[]).await.unwrap_err();
    assert_eq!((failure.code, failure.silent), (ExitCode::MetadataFailed, true));

    let settings = CompileSettings { cargo: "/no/such/cargo".into(), ..project.settings(&[]) };
    let failure = compile::metadata(&settings).await.unwrap_err();
    assert_eq!((failure.code, failure.silent), (ExitCode::Setup, false));
    assert_eq!(failure.to_string(), "could not run `/no/such/cargo`: there is no such program");
}

/// A workspace in a folder of its own.
struct Project {
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self { root, _folder: folder }
    }

    fn root(&self) -> &Path {
        &self.root
    }

    /// `args` in front of what every call of cargo needs here.
    fn args(&self, args: &[&str]) -> Vec<OsString> {
        let manifest = self.root.join("Cargo.toml").into_os_string();
        let common = ["--offline".into(), "--manifest-path".into(), manifest];
        args.iter().map(OsString::from).chain(common).collect()
    }

    fn settings(&self, args: &[&str]) -> CompileSettings {
        let value = |flag| {
            let at = args.iter().position(|&arg| arg == flag);
            at.map(|i| args[i + 1].to_owned()).into_iter().collect::<Vec<_>>()
        };
        let config: Vec<&str> = args
            .iter()
            .position(|&arg| arg == "--config")
            .map_or(Vec::new(), |i| args[i..i + 2].to_vec());
        CompileSettings {
            cargo: cargo().into(),
            manifest_path: Some(self.root.join("Cargo.toml")),
            build_args: self.args(args),
            metadata_args: self.args(&config),
            config: value("--config"),
            targets: value("--target"),
            cargo_profile: "dev".to_owned(),
            no_run: false,
        }
    }

    async fn metadata(&self, args: &[&str]) -> Result<Workspace, Failure> {
        compile::metadata(&self.settings(args)).await
    }

    /// Builds it; whatever a binary needs must be there when it arrives.
    async fn build(
        &self,
        args: &[&str],
    ) -> Result<(Arc<Workspace>, BTreeMap<String, TestBinary>), Failure> {
        let settings = self.settings(args);
        let workspace = Arc::new(compile::metadata(&settings).await?);
        let (sender, mut receiver) = mpsc::channel::<TestBinary>(1);
        let receive = async {
            let mut binaries = BTreeMap::new();
            while let Some(binary) = receiver.recv().await {
                let needed = [&binary.companions, &binary.companion_dirs, &binary.writable_dirs];
                for path in needed.into_iter().flatten().chain([&binary.executable]) {
                    assert!(path.exists(), "{}: {}", binary.id, path.display());
                }
                assert!(binaries.insert(binary.id.to_string(), binary).is_none());
            }
            binaries
        };
        let (done, binaries) = tokio::join!(compile::build(&settings, &workspace, sender), receive);
        assert_eq!(done?.binaries as usize, binaries.len());
        Ok((workspace, binaries))
    }
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// File names, sorted; hashes of Rust's own libraries left out.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<_> = paths
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .map(|name| if name.starts_with("libstd-") { "libstd-*.so" } else { name }.to_owned())
        .collect();
    names.sort();
    names
}

/// Runs `cargo test` with a target runner that keeps what it was given instead of running tests,
/// and compares that with ours, variable by variable.
fn compare_environments(
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
            "CARGO_TARGET_TMPDIR" => assert_eq!(ours.is_some(), !binary.writable_dirs.is_empty()),
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
async fn compare_lists(project: &Project, args: &[&str], binaries: &BTreeMap<String, TestBinary>) {
    let inventory = Inventory::new(LocalLister::default(), 2, None, &[]);
    let mut ours = BTreeMap::new();
    for (id, binary) in binaries {
        let listing = inventory.list(Arc::new(binary.clone()), None).await.unwrap();
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

fn sorted_cases(listing: &Listing) -> Vec<(String, bool)> {
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
