//! Wall time of real projects: `cargo run --release -p distest-tests --bin bench-crates -- [ROUNDS] [NAME…]`
//!
//! Each round runs `cargo test --lib --bins --tests`, `cargo distest run` (`auto`, with history) and,
//! if it is installed, `cargo nextest run`, one after the other; ratios to `cargo test` are taken
//! within a round. Everything is built first. What fails in a project fails under each of them.
//! The first run of `cargo distest`, which has no history and no listing, is told as well. Needs the
//! network unless cargo has everything. The work folder, `target/public-crates`, is used again.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs, io};

use distest_tests::crates::fetch;
use distest_tests::measure::{Cost, measure, median};
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;

const ROUNDS: usize = 5;
/// Crate and version.
const CRATES: [(&str, &str); 3] = [("bytes", "1.12.1"), ("just", "1.59.0"), ("fd-find", "10")];

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let (numbers, names): (Vec<&String>, Vec<_>) =
        args.iter().partition(|arg| arg.parse::<usize>().is_ok());
    let rounds = numbers.first().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let wanted = |name: &str| names.is_empty() || names.iter().any(|given| *given == name);
    let crates: Vec<_> = CRATES.into_iter().filter(|(name, _)| wanted(name)).collect();
    let work = product().target_dir.join("public-crates");
    println!("medians of {rounds} rounds; ratio to cargo test");
    for project in fetch(&work, &crates)? {
        compare(&work, &project, rounds)?;
    }
    Ok(())
}

fn compare(work: &Path, project: &Path, rounds: usize) -> io::Result<()> {
    let name = project.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let scratch = Scratch::new();
    let target = work.join("target").join(&name);
    let with = |program: &Path, args: &[&str]| {
        let mut command = scratch.command(program);
        command.args(args).current_dir(project).env("CARGO_TARGET_DIR", &target);
        command.stdin(Stdio::null());
        command
    };
    let built = with(&cargo(), &["test", "--no-run"]).stderr(Stdio::null()).status()?;
    if !built.success() {
        return Err(io::Error::other(format!("{name} does not build under cargo test")));
    }
    let manifest = fs::read_to_string(project.join("Cargo.toml"))?;
    let library = project.join("src/lib.rs").exists() || manifest.contains("\n[lib]");
    let targets = ["--lib", "--bins", "--tests"];
    let targets = &targets[usize::from(!library)..];
    let all = |runner: &[&'static str]| [runner, &["--no-fail-fast"], targets].concat();
    let (test, distest, nextest) =
        (all(&["test"]), all(&["distest", "run"]), all(&["nextest", "run"]));
    let mut contenders: Vec<(&str, Command)> =
        vec![("cargo test", with(&cargo(), &test)), ("auto", with(&product().client, &distest))];
    let runner = Path::new("cargo-nextest");
    let version = with(runner, &["nextest", "--version"]).stdout(Stdio::null()).status();
    if version.is_ok_and(|status| status.success()) {
        contenders.push(("nextest", with(runner, &nextest)));
    }
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); contenders.len()];
    let mut first = Vec::new();
    for (label, command) in &contenders {
        let cost = measure(command, None)?;
        // All passed, or some failed, as each of them says it.
        let failed = if *label == "cargo test" { 101 } else { 100 };
        if ![Some(0), Some(failed)].contains(&cost.exit_code) {
            let message = format!("{name} under {label}: it ended with {:?}", cost.exit_code);
            return Err(io::Error::other(message));
        }
        first.push((*label, cost.wall_s));
    }
    for _ in 0..rounds {
        for ((_, command), costs) in contenders.iter().zip(&mut costs) {
            costs.push(measure(command, None)?);
        }
    }
    println!("\n{name}");
    for ((label, _), own) in contenders.iter().zip(&costs) {
        let ratio =
            |of: fn(&Cost) -> f64| median(own.iter().zip(&costs[0]).map(|(a, b)| of(a) / of(b)));
        let first = first.iter().find(|(name, _)| name == label).map_or(f64::NAN, |it| it.1);
        println!(
            "  {label:<10} {:>8.2} s {:>6.2} x wall, {:>6.2} x CPU; first run {first:.2} s",
            median(own.iter().map(|cost| cost.wall_s)),
            ratio(|cost| cost.wall_s),
            ratio(|cost| cost.cpu_s),
        );
    }
    Ok(())
}
