//! A test is given what `cargo test` gives it, variable by variable.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::product::cargo;
use distest_tests::scratch::Scratch;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;

use crate::case;

type Variables = BTreeMap<String, String>;

/// Label that the fixture uses, and the start of its executable's name.
const TESTS: [(&str, &str); 4] = [
    ("lib", "environment-"),
    ("bin", "environment_tool-"),
    ("test", "from_outside-"),
    ("example", "shows-"),
];

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("environment::embedded_is_cargo_tests", embedded),
        case("environment::on_a_worker_lacks_nothing", on_a_worker),
    ]
}

fn embedded(scratch: &Scratch) {
    let fixture = Fixture::named("environment");
    let cargo = under_cargo(scratch, &fixture);
    let folder = new_folder(scratch, "distest");
    // Not forced: what the user has set wins over cargo's configuration.
    let client = Client::run(scratch, &fixture)
        .env("ENVIRONMENT_OUT", &folder)
        .env("FIXTURE_NOT_FORCED", "from the user")
        .env("FIXTURE_FORCED", "from the user");
    client.finish().transcript(0);
    for (label, _) in TESTS {
        let mut given = read(&folder.join(format!("{label}.env")));
        given.retain(|name, _| !is_a_test_runners(name));
        let mut expected = cargo[label].clone();
        expected.insert("ENVIRONMENT_OUT".to_owned(), folder.display().to_string());
        // Beyond what cargo gives, for tests that ask at run time where they may write.
        let writable = given.remove("CARGO_TARGET_TMPDIR");
        assert_eq!(writable.is_some(), label == "test", "a folder to write in for {label}");
        assert!(writable.is_none_or(|folder| Path::new(&folder).is_dir()), "for {label}");
        assert_eq!(given, expected, "variables of {label}");
        let cwd = fs::read_to_string(folder.join(format!("{label}.cwd"))).unwrap();
        assert_eq!(Path::new(cwd.trim_end_matches('\0')), fixture.root, "folder of {label}");
    }
}

fn on_a_worker(scratch: &Scratch) {
    let fixture = Fixture::named("environment");
    let cargo = under_cargo(scratch, &fixture);
    let folder = new_folder(scratch, "distest");
    // In no sandbox, because the fixture writes what it finds into a folder of this machine's.
    let store = scratch.join("store");
    let executable = Executable::Worker;
    let workers = [Worker::start_changed(scratch, "w1", 1, &store, executable, |command| {
        command.args(["--sandbox", "variables"]);
    })];
    let told = workers[0].log();
    assert!(told.contains("all that is this user's, the worker's own files"), "{told}");
    // Through cargo's configuration, because the fixture's own variables don't travel otherwise.
    let out = format!("env.ENVIRONMENT_OUT='{}'", folder.display());
    let client = Client::run(scratch, &fixture)
        .only_on(&workers)
        .args(["--config", &out])
        .env("FIXTURE_NOT_FORCED", "from the user")
        .env("FIXTURE_FORCED", "from the user");
    client.finish().transcript(0);
    for (label, _) in TESTS {
        let given = read(&folder.join(format!("{label}.env")));
        for (name, value) in &cargo[label] {
            if name == "ENVIRONMENT_OUT" || is_the_machines(name) {
                continue;
            }
            let found = given.get(name);
            assert!(found.is_some(), "{label} has no {name} on a worker");
            // Where a path lies is the worker's business; all other values are the client's.
            if !value.contains('/') {
                assert_eq!(found, Some(value), "{name} of {label} on a worker");
            }
        }
    }
}

/// What cargo gives to each test, caught by a target runner and by the test itself.
fn under_cargo(scratch: &Scratch, fixture: &Fixture) -> BTreeMap<&'static str, Variables> {
    let folder = new_folder(scratch, "cargo");
    let runner = format!("CARGO_TARGET_{}_RUNNER", host().to_uppercase().replace('-', "_"));
    let output = scratch
        .command(cargo())
        .args(["test", "--tests"])
        .current_dir(&fixture.root)
        .env("CARGO_TARGET_DIR", &fixture.target_dir)
        .env(&runner, env!("CARGO_BIN_EXE_dump-environment"))
        .env("ENVIRONMENT_OUT", &folder)
        .env("FIXTURE_NOT_FORCED", "from the user")
        .env("FIXTURE_FORCED", "from the user")
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    TESTS
        .into_iter()
        .map(|(label, executable)| {
            let mut variables = read(&caught(&folder, executable));
            assert_eq!(read(&folder.join(format!("{label}.env"))), variables, "seen by {label}");
            variables.remove(&runner);
            (label, variables)
        })
        .collect()
}

/// The runner's file for an executable.
fn caught(folder: &Path, executable: &str) -> PathBuf {
    let start = format!("runner-{executable}");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found = files.filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start))
    });
    found.next().unwrap_or_else(|| panic!("cargo ran nothing called {executable}*"))
}

/// What cargo and rustup on this machine were given or set for themselves: no business of a test.
fn is_the_machines(name: &str) -> bool {
    const OWN: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_NET_OFFLINE",
        "CARGO_TARGET_DIR",
        "CARGO_HTTP_CAINFO",
        "E2E_SCRATCH",
        "PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ];
    OWN.contains(&name)
        || name.starts_with("RUSTUP_")
        || name.starts_with("XDG_")
        || name.to_lowercase().ends_with("_proxy")
}

fn is_a_test_runners(name: &str) -> bool {
    name.starts_with("DISTEST") || name.starts_with("NEXTEST")
}

fn new_folder(scratch: &Scratch, name: &str) -> PathBuf {
    let folder = scratch.join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn read(path: &Path) -> Variables {
    let bytes =
        fs::read(path).unwrap_or_else(|error| panic!("no test wrote {}: {error}", path.display()));
    let text = String::from_utf8(bytes).unwrap();
    let entries = text.split('\0').filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (name, value) = entry.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

fn host() -> String {
    let output = Command::new(cargo()).arg("-vV").output().expect("cargo can be started");
    let text = String::from_utf8(output.stdout).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("cargo says for what it was built").to_owned()
}
