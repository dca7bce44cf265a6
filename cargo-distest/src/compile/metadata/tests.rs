//! Each change that cargo would notice, made to a workspace whose answer is kept: what is answered
//! then is what cargo answers.

use std::fs;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::Value;

use super::*;
use crate::compile::cargo_config::CargoConfig;

/// Cases that are under way at once.
const CASES_AT_ONCE: usize = 3;

const FILES: &[(&str, &str)] = &[
    (
        "ws/Cargo.toml",
        "[workspace]\nmembers = ['app', 'crates/*']\nresolver = '2'\n\
         [workspace.package]\nversion = '0.1.0'\nedition = '2021'\n",
    ),
    (
        "ws/app/Cargo.toml",
        "[package]\nname = 'app'\nversion.workspace = true\nedition.workspace = true\n\
         [features]\nx = []\n\
         [dependencies]\none = { path = '../crates/one' }\nout = { path = '../../outside/out' }\n",
    ),
    ("ws/app/build.rs", "fn main() {}"),
    ("ws/app/src/lib.rs", ""),
    ("ws/app/src/bin/tool.rs", "fn main() {}"),
    ("ws/app/src/bin/parts/main.rs", "fn main() {}"),
    ("ws/app/tests/it.rs", ""),
    ("ws/app/tests/deep/main.rs", ""),
    ("ws/app/tests/data/empty", ""),
    ("ws/app/examples/ex.rs", "fn main() {}"),
    ("ws/crates/one/Cargo.toml", "package = { name = 'one', version = '0.1.0', edition = '2021' }"),
    ("ws/crates/one/src/lib.rs", ""),
    ("ws/crates/text", "no package"),
    (
        "outside/Cargo.toml",
        "[workspace]\nmembers = ['out']\nresolver = '2'\n[workspace.package]\nversion = '0.1.0'\n",
    ),
    (
        "outside/out/Cargo.toml",
        "[package]\nname = 'out'\nversion.workspace = true\nedition = '2021'\n",
    ),
    ("outside/out/src/lib.rs", ""),
    ("other/Cargo.toml", "package = { name = 'other', version = '0.1.0', edition = '2021' }"),
    ("other/src/lib.rs", ""),
    ("home/none", ""),
];

/// A workspace, and how cargo is asked about it.
struct Scratch {
    folder: tempfile::TempDir,
    args: Vec<OsString>,
    config: Vec<String>,
    environment: BTreeMap<OsString, OsString>,
}

/// Whether cargo is asked again after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Kept,
    Asked,
    /// Each time, before the change and after it.
    AskedAlways,
}
use Expected::{Asked, AskedAlways, Kept as StillKept};

struct Case {
    name: &'static str,
    before: fn(&mut Scratch),
    change: fn(&mut Scratch),
    expected: Expected,
}

impl Scratch {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut environment: BTreeMap<_, _> = std::env::vars_os().collect();
        // Set while these tests are built, or by whoever runs them.
        environment.retain(|name, _| !starts_with(name, &["CARGO", "RUST"]));
        let scratch = Self { folder, args: Vec::new(), config: Vec::new(), environment };
        for (path, text) in FILES {
            scratch.write(path, text);
        }
        let home = scratch.at("home");
        let mut scratch = scratch;
        scratch.environment.insert("CARGO_HOME".into(), home.into());
        scratch
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn append(&self, path: &str, text: &str) {
        let before = fs::read_to_string(self.at(path)).unwrap();
        self.write(path, &format!("{before}{text}"));
    }

    fn replace(&self, path: &str, from: &str, to: &str) {
        let before = fs::read_to_string(self.at(path)).unwrap();
        assert!(before.contains(from), "{path} doesn't contain {from}");
        self.write(path, &before.replace(from, to));
    }

    fn remove(&self, path: &str) {
        let path = self.at(path);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.at(from), self.at(to)).unwrap();
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.into(), value.into());
    }

    fn configure(&mut self, value: &str) {
        self.args.push(format!("--config={value}").into());
        self.config.push(value.to_owned());
    }

    fn cargo(&self, args: &[&str]) {
        let mut command = std::process::Command::new(cargo());
        command.args(args).env("CARGO_HOME", self.at("home")).current_dir(self.at("ws/app"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn ask(&self) -> Asking {
        let cwd = self.at("ws");
        let rustc = toolchain::rustc(None);
        let (host, sysroot) = toolchain::host_and_sysroot(&rustc).await.unwrap();
        let mut args: Vec<OsString> = vec!["--format-version=1".into(), "--offline".into()];
        args.push(format!("--filter-platform={host}").into());
        args.extend_from_slice(&self.args);
        let environment = self.environment.clone();
        let question = Question { cargo: cargo().into(), args, cwd: cwd.clone(), environment };
        let config = CargoConfig::load_from(&cwd, Some(&self.at("home")), &self.config);
        let surroundings =
            config.ok().and_then(|config| question.surroundings(&config, &rustc, &sysroot));
        Asking { question, surroundings, kept: Kept::at(self.at("kept")) }
    }
}

/// A question that is asked once, and can be looked up.
struct Asking {
    question: Question,
    surroundings: Option<Surroundings>,
    kept: Kept,
}

impl Asking {
    fn known(&self) -> Option<String> {
        self.kept.answer(self.surroundings.as_ref()?.key)
    }

    async fn answer(&self, now: SystemTime) -> Result<String, Failure> {
        let (surroundings, kept) = (self.surroundings.clone(), Some(self.kept.clone()));
        answer(&self.question, surroundings, kept, now).await.map(|answer| answer.raw)
    }

    /// Looks whether the answer is cargo's own, and returns whether there is one.
    async fn check(&self, name: &str) -> bool {
        // All that is there was there long before.
        let now = SystemTime::now() + Duration::from_secs(3600);
        let fresh = self.question.ask().await.map_err(|failure| failure.to_string());
        let answer = self.answer(now).await.map_err(|failure| failure.to_string());
        let parsed = |raw: &String| serde_json::from_str::<Value>(raw).unwrap();
        match (&fresh, &answer) {
            (Ok(fresh), Ok(answer)) => assert!(parsed(fresh) == parsed(answer), "{name}: {answer}"),
            _ => assert_eq!(fresh, answer, "{name}"),
        }
        if let Some(known) = self.known() {
            assert_eq!(Ok(known), answer, "{name}: what is kept");
        }
        answer.is_ok()
    }
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

async fn check(case: &Case) {
    let Case { name, before, change, expected } = case;
    let mut scratch = Scratch::new();
    before(&mut scratch);
    assert!(scratch.ask().await.check(name).await, "{name}: no answer before the change");
    let warm = scratch.ask().await.known().is_some();
    assert_eq!(warm, *expected != AskedAlways, "{name}: kept before the change");
    change(&mut scratch);
    let kept = scratch.ask().await.known().is_some();
    assert_eq!(kept, *expected == StillKept, "{name}: kept after the change");
    let answered = scratch.ask().await.check(name).await;
    let kept = scratch.ask().await.known().is_some();
    assert_eq!(kept, answered && *expected != AskedAlways, "{name}: kept when asked again");
}

fn case(name: &'static str, expected: Expected, change: fn(&mut Scratch)) -> Case {
    Case { name, before: |_| {}, change, expected }
}

fn prepared(
    name: &'static str,
    before: fn(&mut Scratch),
    expected: Expected,
    change: fn(&mut Scratch),
) -> Case {
    Case { name, before, change, expected }
}

async fn check_all(cases: Vec<Case>) {
    stream::iter(&cases).for_each_concurrent(CASES_AT_ONCE, check).await;
}

#[tokio::test]
async fn changes_of_manifests() {
    const MANIFEST: &str = "ws/app/Cargo.toml";
    check_all(vec![
        case("nothing", StillKept, |_| {}),
        case("a member touched", Asked, |s| {
            let file = fs::File::options().write(true).open(s.at(MANIFEST)).unwrap();
            file.set_modified(SystemTime::now()).unwrap();
        }),
        case("a member replaced by its equal", Asked, |s| {
            fs::copy(s.at(MANIFEST), s.at("ws/app/new")).unwrap();
            s.rename("ws/app/new", MANIFEST);
        }),
        case("a feature", Asked, |s| s.replace(MANIFEST, "x = []", "y = []")),
        case("a renamed package", Asked, |s| {
            s.replace("ws/crates/one/Cargo.toml", "'one'", "'uno'");
            s.replace(MANIFEST, "one = {", "uno = {");
        }),
        case("a version that is inherited", Asked, |s| {
            s.replace("ws/Cargo.toml", "0.1.0", "0.2.0")
        }),
        case("one that is wrong", Asked, |s| s.append(MANIFEST, "[[[")),
        case("a new member by a pattern", Asked, |s| {
            s.write("ws/crates/two/Cargo.toml", "package = { name = 'two', version = '0.1.0' }");
            s.write("ws/crates/two/src/lib.rs", "");
        }),
        case("a folder that is no member", Asked, |s| s.write("ws/crates/notes/text", "")),
        case("a member where a file was", Asked, |s| {
            s.remove("ws/crates/text");
            s.write("ws/crates/text/Cargo.toml", "package = { name = 'n', version = '0.1.0' }");
            s.write("ws/crates/text/src/lib.rs", "");
        }),
        prepared(
            "a member that is gone",
            |s| {
                s.write(
                    "ws/crates/two/Cargo.toml",
                    "package = { name = 'two', version = '0.1.0' }",
                );
                s.write("ws/crates/two/src/lib.rs", "");
            },
            Asked,
            |s| s.remove("ws/crates/two"),
        ),
        case("cargo add", Asked, |s| s.cargo(&["add", "--offline", "--path", "../../other"])),
        case("a package outside", Asked, |s| {
            s.replace("outside/out/Cargo.toml", "2021", "2024");
        }),
        case("what a package outside inherits", Asked, |s| {
            s.replace("outside/Cargo.toml", "0.1.0", "0.3.0");
        }),
        prepared(
            "what a package outside inherits from where it says",
            |s| {
                s.rename("outside/Cargo.toml", "other/Cargo.toml");
                s.replace("other/Cargo.toml", "'out'", "'../outside/out'");
                s.replace(
                    "outside/out/Cargo.toml",
                    "[package]",
                    "[package]\nworkspace = '../../other'",
                );
            },
            Asked,
            |s| s.replace("other/Cargo.toml", "0.1.0", "0.3.0"),
        ),
        case("a manifest above", Asked, |s| s.write("Cargo.toml", "[workspace]\nmembers = []")),
        prepared(
            "a package for another system",
            |s| {
                s.append(MANIFEST, "[target.'cfg(windows)'.dependencies]\n");
                s.append(MANIFEST, "other = { path = '../../other' }\n");
            },
            AskedAlways,
            |s| s.replace("other/Cargo.toml", "0.1.0", "0.4.0"),
        ),
        prepared(
            "a patch that isn't used",
            |s| s.append("ws/Cargo.toml", "[patch.crates-io]\nother = { path = '../other' }\n"),
            AskedAlways,
            |s| s.replace("other/Cargo.toml", "0.1.0", "0.4.0"),
        ),
        prepared(
            "a pattern of any depth",
            |s| s.replace("ws/Cargo.toml", "crates/*", "crates/**/one"),
            AskedAlways,
            |s| s.replace("ws/crates/one/Cargo.toml", "0.1.0", "0.4.0"),
        ),
        prepared(
            "a pattern that leads back",
            |s| s.replace("ws/Cargo.toml", "'crates/*'", "'crates/o*/../one'"),
            AskedAlways,
            |s| s.replace("ws/crates/one/Cargo.toml", "0.1.0", "0.4.0"),
        ),
        case("no lock file", Asked, |s| s.remove("ws/Cargo.lock")),
        case("another lock file", Asked, |s| s.append("ws/Cargo.lock", "# changed\n")),
    ])
    .await;
}

#[tokio::test]
async fn changes_of_targets() {
    check_all(vec![
        case("code", StillKept, |s| s.write("ws/app/src/lib.rs", "// changed")),
        case("code by way of another file", StillKept, |s| {
            s.write("ws/app/src/new", "// changed");
            s.rename("ws/app/src/new", "ws/app/src/lib.rs");
        }),
        case("a file that came and went", StillKept, |s| {
            s.write("ws/app/test.db", "");
            s.remove("ws/app/test.db");
        }),
        case("a test", Asked, |s| s.write("ws/app/tests/x.rs", "")),
        case("no such test", Asked, |s| s.remove("ws/app/tests/it.rs")),
        case("a test with modules", Asked, |s| s.write("ws/app/tests/data/main.rs", "")),
        case("no test with modules", Asked, |s| s.remove("ws/app/tests/deep/main.rs")),
        case("data of a test", StillKept, |s| s.write("ws/app/tests/data/other", "")),
        case("no tests", Asked, |s| s.remove("ws/app/tests")),
        case("a file that becomes a folder", Asked, |s| {
            s.remove("ws/app/tests/it.rs");
            s.write("ws/app/tests/it.rs/x", "");
        }),
        case("a first benchmark", Asked, |s| s.write("ws/app/benches/b.rs", "fn main() {}")),
        case("an example", Asked, |s| s.write("ws/app/examples/two/main.rs", "fn main() {}")),
        case("a program", Asked, |s| s.write("ws/app/src/main.rs", "fn main() {}")),
        case("one more program", Asked, |s| s.write("ws/app/src/bin/two.rs", "fn main() {}")),
        case("no such program", Asked, |s| s.remove("ws/app/src/bin/parts")),
        case("no build script", Asked, |s| s.remove("ws/app/build.rs")),
        case("a build script", Asked, |s| s.write("ws/crates/one/build.rs", "fn main() {}")),
        case("a readme", Asked, |s| s.write("ws/app/README.md", "")),
        case("a test of a package outside", Asked, |s| s.write("outside/out/tests/t.rs", "")),
        case("no library outside", Asked, |s| s.remove("outside/out/src/lib.rs")),
    ])
    .await;
}

#[tokio::test]
async fn changes_of_configuration() {
    const TARGET: &str = "build.target-dir = 'elsewhere'";
    const TARGET_AGAIN: &str = "build.target-dir = 'elsewhere-else'";
    check_all(vec![
        case("a first file", Asked, |s| s.write("ws/.cargo/config.toml", TARGET)),
        case("one by its old name", Asked, |s| s.write("ws/.cargo/config", TARGET)),
        case("a file above", Asked, |s| s.write(".cargo/config.toml", TARGET)),
        case("a file in cargo's home", Asked, |s| s.write("home/config.toml", TARGET)),
        case("one there by its old name", Asked, |s| s.write("home/config", TARGET)),
        prepared(
            "another value",
            |s| s.write("ws/.cargo/config.toml", TARGET),
            Asked,
            |s| s.write("ws/.cargo/config.toml", TARGET_AGAIN),
        ),
        prepared(
            "a file that is included",
            |s| {
                s.write("ws/.cargo/config.toml", "include = ['more.toml']");
                s.write("ws/.cargo/more.toml", TARGET);
            },
            Asked,
            |s| s.write("ws/.cargo/more.toml", TARGET_AGAIN),
        ),
        prepared(
            "a file that may be included",
            |s| {
                let include = "include = [{ path = 'more.toml', optional = true }]";
                s.write("ws/.cargo/config.toml", include);
            },
            Asked,
            |s| s.write("ws/.cargo/more.toml", TARGET),
        ),
        prepared(
            "a file that is given",
            |s| {
                s.write("given.toml", TARGET);
                s.configure("../given.toml");
            },
            Asked,
            |s| s.write("given.toml", TARGET_AGAIN),
        ),
        case("a value that is given", Asked, |s| s.configure(TARGET)),
        case("paths", AskedAlways, |_| {}).with(|s| {
            s.write("ws/.cargo/config.toml", "paths = ['../other']");
        }),
        case("a patch", AskedAlways, |_| {}).with(|s| {
            s.write("home/config.toml", "patch.crates-io.other = { path = 'other' }");
        }),
        case("what the lock file depends on", AskedAlways, |_| {}).with(|s| {
            s.write("home/config.toml", "resolver.incompatible-rust-versions = 'allow'");
        }),
        case("a folder of sources", AskedAlways, |_| {}).with(|s| {
            s.write("vendor/empty/none", "");
            s.remove("vendor/empty");
            s.write(
                "ws/.cargo/config.toml",
                "source.crates-io.replace-with = 'v'\nsource.v.directory = '../vendor'",
            );
        }),
        case("another registry", Asked, |s| {
            s.write(
                "ws/.cargo/config.toml",
                "source.crates-io.replace-with = 'm'\nsource.m.registry = 'sparse+http://[::1]:1/'",
            );
        }),
        case("a toolchain", Asked, |s| s.write("ws/rust-toolchain.toml", "[toolchain]")),
        case("a toolchain above", Asked, |s| s.write("rust-toolchain", "stable")),
    ])
    .await;
}

#[tokio::test]
async fn other_questions() {
    check_all(vec![
        case("another target folder", Asked, |s| s.set("CARGO_TARGET_DIR", "/nowhere/a")),
        case("another target folder by its other name", Asked, |s| {
            s.set("CARGO_BUILD_TARGET_DIR", "/nowhere/b");
        }),
        case("another home", Asked, |s| {
            let home = s.at("other-home");
            s.set("CARGO_HOME", home.to_str().unwrap());
        }),
        case("a variable that cargo doesn't read", StillKept, |s| s.set("SHLVL", "7")),
        case("another manifest", Asked, |s| {
            s.args.push("--manifest-path=../other/Cargo.toml".into())
        }),
        case("no such manifest", Asked, |s| s.args.push("--manifest-path=no/Cargo.toml".into())),
        case("features", Asked, |s| s.args.push("--features=app/x".into())),
        case("all locked", Asked, |s| s.args.push("--locked".into())),
        case("all frozen", Asked, |s| s.args.push("--frozen".into())),
        prepared(
            "all locked, and there is something new",
            |s| {
                // Written before it is locked.
                s.cargo(&["metadata", "--offline", "--format-version=1"]);
                s.args.push("--locked".into());
            },
            Asked,
            |s| s.append("ws/app/Cargo.toml", "other = { path = '../../other' }\n"),
        ),
        case("what isn't stable", Asked, |s| s.args.push("-Zunstable-options".into())),
        case("a spoilt cache", Asked, |s| {
            for file in fs::read_dir(s.at("kept")).unwrap() {
                fs::write(file.unwrap().path(), "spoilt").unwrap();
            }
        }),
    ])
    .await;
}

impl Case {
    fn with(self, before: fn(&mut Scratch)) -> Self {
        Self { before, ..self }
    }
}

/// Nothing is kept of what might change within the resolution of a clock.
#[tokio::test]
async fn what_was_just_written_is_asked_again() {
    let scratch = Scratch::new();
    for (later, kept) in [(0, false), (0, false), (3600, true)] {
        let now = SystemTime::now() + Duration::from_secs(later);
        scratch.ask().await.answer(now).await.unwrap();
        assert_eq!(scratch.ask().await.known().is_some(), kept);
    }
}

/// With packages from a registry, of which some lie where cargo put them and some don't any more.
#[tokio::test]
async fn this_workspace_with_its_registry() {
    let mut scratch = Scratch::new();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    scratch.environment.remove(OsStr::new("CARGO_HOME"));
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        scratch.environment.insert("CARGO_HOME".into(), home);
    }
    scratch.args.push(format!("--manifest-path={}", here.display()).into());
    scratch.args.push("--locked".into());
    scratch.ask().await.check("this workspace").await;
    let asking = scratch.ask().await;
    assert!(asking.known().is_some());
    asking.check("this workspace").await;
}
