//! What users get wrong: one clear message each, the right exit code, nothing started in vain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::product::cargo;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Line;
use libtest_mimic::Trial;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("bad_input::unknown_flag", |scratch| {
            on_basic(scratch, &["--no-such-flag"], 2, "--no-such-flag")
        }),
        case("bad_input::bad_value", |scratch| {
            on_basic(scratch, &["--retries", "many"], 2, "many")
        }),
        case("bad_input::bad_worker_address", |scratch| {
            on_basic(scratch, &["--worker", "carrier-pigeon://home"], 2, "carrier-pigeon");
        }),
        case("bad_input::unknown_profile", |scratch| {
            on_basic(scratch, &["-P", "no-such-profile"], 96, "no-such-profile")
        }),
        case("bad_input::bad_filterset", |scratch| {
            on_basic(scratch, &["-E", "test(=unclosed"], 94, "unclosed")
        }),
        case("bad_input::missing_config_file", |scratch| {
            on_basic(scratch, &["--config-file", "no-such-file.toml"], 96, "no-such-file.toml");
        }),
        case("bad_input::no_cargo_toml", no_cargo_toml),
        case("bad_input::broken_manifest", broken_manifest),
        case("bad_input::build_error", build_error),
        case("bad_input::build_error_in_json", build_error_in_json),
        case("bad_input::report_that_cannot_be_written", unwritable_report),
        case("bad_input::binary_that_cannot_be_listed", cannot_list),
        case("bad_input::stdout_that_cannot_be_written", full_stdout),
        case("bad_input::time_limit_is_one_of_the_tests", time_limit),
    ]
}

fn on_basic(scratch: &Scratch, args: &[&str], exit_code: i32, text: &str) {
    let finished = Client::run_human(scratch, &Fixture::named("basic")).args(args).finish();
    finished.complains(exit_code, &["error", text]);
}

/// Runs in a folder that nobody else builds in.
fn in_folder(scratch: &Scratch, folder: &Path, args: &[&str]) -> Finished {
    Client::call(scratch, folder, &["run"]).args(args).finish()
}

fn no_cargo_toml(scratch: &Scratch) {
    let folder = scratch.join("empty");
    fs::create_dir(&folder).unwrap();
    in_folder(scratch, &folder, &[]).complains(102, &["Cargo.toml"]);
}

fn broken_manifest(scratch: &Scratch) {
    scratch.write("broken/Cargo.toml", "[package\nname = ");
    in_folder(scratch, &scratch.join("broken"), &[]).complains(102, &["Cargo.toml"]);
}

fn package(scratch: &Scratch, name: &str, manifest: &str, source: &str) -> PathBuf {
    let head = format!(
        "[workspace]\n[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n"
    );
    scratch.write(&format!("{name}/Cargo.toml"), &(head + manifest));
    scratch.write(&format!("{name}/src/lib.rs"), source);
    scratch.join(name)
}

fn does_not_build(scratch: &Scratch) -> PathBuf {
    let source = "#[test]\nfn wrong() {\n    let number: u32 = \"text\";\n}\n";
    package(scratch, "wrong", "", source)
}

fn build_error(scratch: &Scratch) {
    let folder = does_not_build(scratch);
    let finished = in_folder(scratch, &folder, &["--offline"]);
    assert_eq!(finished.code(), 101, "{}", finished.stderr);
    assert_eq!(finished.stdout, "", "stdout");
    assert!(finished.stderr.contains("mismatched types"), "{}", finished.stderr);
    // Cargo's message, and nothing else.
    let output = scratch
        .command(cargo())
        .args(["test", "--no-run", "--offline"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", scratch.join("other-target"))
        .output()
        .expect("cargo can be started");
    let cargos = String::from_utf8_lossy(&output.stderr);
    let cargos: BTreeSet<&str> = cargos.lines().map(str::trim_end).collect();
    let ours = finished.stderr.lines().map(str::trim_end);
    // What cargo says of its own waiting depends on who else is building.
    let waits = |line: &str| line.contains("waiting for");
    let ours: Vec<&str> = ours.filter(|line| !cargos.contains(line) && !waits(line)).collect();
    assert!(ours.is_empty(), "not from cargo: {ours:#?}");
}

fn build_error_in_json(scratch: &Scratch) {
    let folder = does_not_build(scratch);
    let finished = Client::call(scratch, &folder, &["run", "--offline"]).json().finish();
    let transcript = finished.transcript(101);
    assert_eq!(transcript.verdicts.len(), 0);
    assert!(matches!(finished.lines[..], [Line::Start(_), Line::Summary(_)]));
}

fn unwritable_report(scratch: &Scratch) {
    // Checked before the build, so the build's error doesn't come into it.
    let folder = does_not_build(scratch);
    let blocked = scratch.write("a-file", "").join("junit.xml");
    let blocked = blocked.display().to_string();
    in_folder(scratch, &folder, &["--junit", &blocked]).complains(96, &[&blocked]);
    let is_a_folder = scratch.path().display().to_string();
    in_folder(scratch, &folder, &["--junit", &is_a_folder]).complains(96, &[&is_a_folder]);
}

fn cannot_list(scratch: &Scratch) {
    let manifest = "[[test]]\nname = \"odd\"\nharness = false\n";
    let folder = package(scratch, "custom", manifest, "");
    let source =
        "fn main() {\n    eprintln!(\"what is a list?\");\n    std::process::exit(3);\n}\n";
    scratch.write("custom/tests/odd.rs", source);
    let finished = in_folder(scratch, &folder, &["--offline"]);
    finished.complains(104, &["custom::odd", "what is a list?", "3", "list = \"whole\""]);

    // Declared to be one test case, it is one.
    scratch.write("custom/.config/distest.toml", "[binary.\"custom::odd\"]\nlist = \"whole\"\n");
    let finished = Client::call(scratch, &folder, &["run", "--offline"]).json().finish();
    assert_eq!(finished.transcript(100).summary.failed, 1);
}

fn full_stdout(scratch: &Scratch) {
    let fixture = Fixture::named("basic");
    for args in [&["run", "adds", "--message-format", "json"][..], &["list"]] {
        let output = scratch
            .command(&distest_tests::product::product().client)
            .args(args)
            .current_dir(&fixture.root)
            .env("CARGO_TARGET_DIR", &fixture.target_dir)
            .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
            .output()
            .expect("cargo-distest can be started");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(110), "{args:?}: {told}");
        assert!(told.contains("stdout"), "{told}");
    }
}

/// The build takes longer than the limit, the tests don't, also where others keep them waiting.
fn time_limit(scratch: &Scratch) {
    let build = "fn main() { std::thread::sleep(std::time::Duration::from_millis(5100)); }\n";
    let folder = package(scratch, "patient", "build = \"build.rs\"\n", "#[test]\nfn quick() {}\n");
    scratch.write("patient/build.rs", build);
    let args = ["--offline", "--global-timeout", "5s"];
    in_folder(scratch, &folder, &args).complains(0, &["1 passed"]);

    let args = ["--offline", "--global-timeout", "1s"];
    let forever = "#[test]\nfn forever() { loop { std::thread::park(); } }\n";
    let folder = package(scratch, "endless", "", forever);
    let finished = Client::call(scratch, &folder, &["run"]).args(args).json().finish();
    finished.transcript(100);
    finished.complains(100, &["warning", "global timeout"]);
}
