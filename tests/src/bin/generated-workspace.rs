//! Compares lists on a large workspace: `cargo run --release -p distest-tests --bin generated-workspace -- [PACKAGES]`
//!
//! Writes a workspace of 200 packages (path dependencies, equal test names, features, procedural
//! macros, examples), builds it, and checks that `cargo distest list --message-format oneline` says
//! exactly what `cargo nextest list --message-format oneline` says. Prints time and memory of both:
//! wall time, and the largest resident set of one process (cargo's own is below both).
//! Exits with 1 if they differ.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs, io};

use distest_tests::measure::{Cost, measure};
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;

const PACKAGES: usize = 200;

fn main() -> io::Result<ExitCode> {
    let packages = env::args().nth(1).map_or(Ok(PACKAGES), |text| text.parse());
    let packages =
        packages.map_err(|_| io::Error::other("usage: generated-workspace [PACKAGES]"))?;
    let scratch = Scratch::new();
    generate(&scratch, packages);
    let root = scratch.join("workspace");
    let with = |program: &Path, args: &[&str]| {
        let mut command = scratch.command(program);
        command.args(args).current_dir(&root);
        command
    };
    println!("building {packages} packages");
    let built = with(&cargo(), &["test", "--no-run", "--workspace", "--offline"]).output()?;
    if !built.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&built.stderr).into_owned()));
    }
    let args = ["list", "--workspace", "--message-format", "oneline"];
    let distest = || with(&product().client, &[&["distest"][..], &args].concat());
    let nextest = || with(Path::new("cargo-nextest"), &[&["nextest"][..], &args].concat());

    let told = listed(&scratch, "cargo distest list, first", &distest())?;
    let again = listed(&scratch, "cargo distest list, again", &distest())?;
    let expected = listed(&scratch, "cargo nextest list", &nextest())?;
    let mut differences = 0;
    for (label, list) in [("first", &told), ("second", &again)] {
        for line in list.symmetric_difference(&expected) {
            let side = if expected.contains(line) { "nextest" } else { "distest" };
            println!("only in the {label} list of {side}: {line}");
            differences += 1;
        }
    }
    println!("{} test cases, {differences} differences", expected.len());
    let same = differences == 0 && !expected.is_empty();
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn listed(scratch: &Scratch, label: &str, command: &Command) -> io::Result<BTreeSet<String>> {
    let file = scratch.join("list");
    let Cost { wall_s, cpu_s, memory_kib, exit_code } = measure(command, Some(&file))?;
    println!("{label:<27} {wall_s:>7.2} s wall {cpu_s:>7.2} s CPU {:>7} MiB", memory_kib / 1024);
    if exit_code != Some(0) {
        return Err(io::Error::other(format!("{label} ended with {exit_code:?}")));
    }
    let text = fs::read_to_string(file)?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let set: BTreeSet<String> = lines.iter().cloned().collect();
    if set.len() != lines.len() {
        return Err(io::Error::other(format!("{label} names a test twice")));
    }
    Ok(set)
}

fn generate(scratch: &Scratch, packages: usize) {
    let manifest = "[workspace]\nmembers = [\"package-*\"]\nresolver = \"3\"\n\
                    [profile.dev]\ndebug = false\nstrip = true\n";
    scratch.write("workspace/Cargo.toml", manifest);
    for number in 0..packages {
        for (path, text) in package(number) {
            scratch.write(&format!("workspace/package-{number:03}/{path}"), &text);
        }
    }
}

/// A package that differs from its neighbours in what it has, and not in what it calls it.
fn package(number: usize) -> Vec<(&'static str, String)> {
    let is_macro = |number: usize| number % 10 == 3;
    let mut manifest = format!(
        "[package]\nname = \"package-{number:03}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n"
    );
    let mut files = Vec::new();
    if number % 4 == 1 {
        manifest += "[[example]]\nname = \"shows\"\ntest = true\n";
        let text = "fn main() {}\n#[test]\nfn works() {}\n#[test]\nfn example_works() {}\n";
        files.push(("examples/shows.rs", text.to_owned()));
    }
    if number % 7 == 2 {
        files.push(("src/main.rs", "fn main() {}\n#[test]\nfn works() {}\n".to_owned()));
    }
    if number % 3 == 1 {
        let text = "#[test]\nfn works() {}\n#[test]\n#[ignore]\nfn ignored() {}\n";
        files.push(("tests/same.rs", text.to_owned()));
    }
    if is_macro(number) {
        manifest += "[lib]\nproc-macro = true\n";
    } else if number % 6 == 4 {
        let _ = write!(manifest, "[lib]\nname = \"renamed_{number:03}\"\n");
    }
    manifest += "[features]\ndefault = [\"one\"]\none = []\ntwo = []\n[dependencies]\n";
    // A few earlier ones, with features in turn, so that some are built more than once.
    for step in [1, 5, 17] {
        if number >= step && !is_macro(number) {
            let other = number - step;
            let features = if step == 5 { ", features = [\"two\"]" } else { "" };
            let path = format!("path = \"../package-{other:03}\"");
            let _ = writeln!(manifest, "package-{other:03} = {{ {path}{features} }}");
        }
    }
    let mut source = "#[cfg(test)]\nmod tests {\n    #[test]\n    fn works() {}\n    \
                      #[test]\n    #[ignore]\n    fn ignored() {}\n"
        .to_owned();
    let _ = write!(source, "    #[test]\n    fn own_{number:03}() {{}}\n");
    source += "    #[cfg(feature = \"two\")]\n    #[test]\n    fn has_two() {}\n}\n";
    files.push(("src/lib.rs", source));
    files.push(("Cargo.toml", manifest));
    files
}
