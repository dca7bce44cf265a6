//! Real projects: `cargo run --release -p distest-tests --bin public-crates -- [NAME…] [PATH…]`
//!
//! Fetches crates that are published with their tests through cargo, runs each under `cargo test`
//! and under `cargo distest run`, embedded and on two workers, and compares pass and fail name by
//! name. As root the workers are hermetic: of another user, who has never seen these files. An argument with a `/` or that is `.` is a package of one's own. Needs the
//! network unless cargo has everything. Doctests count like other tests.
//! Exits with 1 if anything differs. The work folder, `target/public-crates`, is kept and used again.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Instant;
use std::{env, fs, io};

use distest_tests::client::Client;
use distest_tests::crates::fetch;
use distest_tests::hermetic;
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{Case, Transcript, Verdict};
use distest_tests::worker::Worker;

/// Crate and version requirement.
const CRATES: [(&str, &str); 9] = [
    ("semver", "1"),
    ("bytes", "1"),
    ("indexmap", "2"),
    ("fd-find", "10"),
    ("ripgrep", "14"),
    ("insta", "1"),
    ("just", "1.59.0"),
    ("petgraph", "0.8"),
    ("itertools", "0.14"),
];

/// What to give cargo for a project that has so many doctests that compiling them one by one takes
/// longer than all the rest.
fn arguments(name: &str) -> &'static [&'static str] {
    match name {
        "jiff" | "petgraph" => &["--tests"],
        _ => &[],
    }
}

/// What a test came to under `cargo test`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Passed,
    Failed,
    Ignored,
}

type Outcomes = BTreeMap<Case, Outcome>;

fn main() -> io::Result<ExitCode> {
    let args: Vec<String> = env::args().skip(1).collect();
    let (paths, names): (Vec<&String>, Vec<&String>) =
        args.iter().partition(|arg| arg.contains('/') || *arg == ".");
    let work = product().target_dir.join("public-crates");
    let mut projects = Vec::new();
    if paths.is_empty() || !names.is_empty() {
        let wanted = |name: &str| names.is_empty() || names.iter().any(|given| *given == name);
        let crates: Vec<_> = CRATES.into_iter().filter(|(name, _)| wanted(name)).collect();
        projects = fetch(&work, &crates)?;
    }
    for path in paths {
        projects.push(fs::canonicalize(path)?);
    }

    println!(
        "{:<24} {:>6} {:>6} {:>12} {:>12} {:>12} {:>6}",
        "", "tests", "failed", "cargo test", "embedded", "2 workers", "differ"
    );
    let mut total = 0;
    for project in projects {
        total += compare(&work, &project)?;
    }
    Ok(if total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a project in all three ways; returns how many outcomes differ.
fn compare(work: &Path, project: &Path) -> io::Result<usize> {
    let name = project.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let scratch = Scratch::new();
    let target = work.join("target").join(&name);
    // A crate's folder has its version, a checkout's has none.
    let crate_name = name.rsplit_once('-').map_or(&*name, |(crate_name, _)| crate_name);
    let arguments = arguments(crate_name);
    let run = Run { scratch: &scratch, project, target: &target, arguments };
    let started = Instant::now();
    let build = || {
        let mut cargo = scratch.command(cargo());
        cargo.args(["test", "--no-run"]).args(arguments).current_dir(project);
        cargo.env("CARGO_TARGET_DIR", &target).stdin(Stdio::null());
        cargo.stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    // What a crate was published with may name versions that are not to be had any more.
    let built = build()?.success()
        || (fs::remove_file(project.join("Cargo.lock")).is_ok() && build()?.success());
    if !built {
        return Err(io::Error::other(format!("{name} does not build under cargo test")));
    }
    eprint_progress(&format!("{name} built in {:.0} s", started.elapsed().as_secs_f64()));

    let (expected, cargo_s) = under_cargo(&run)?;
    let (embedded, embedded_s) = under_distest(&run, &[])?;
    let workers = hermetic::fleet(&scratch, 2, 2);
    let (remote, remote_s) = under_distest(&run, &workers)?;
    let failed = expected.values().filter(|outcome| **outcome == Outcome::Failed).count();

    let mut report = String::new();
    let mut differences = 0;
    for (label, told) in [("embedded", &embedded), ("2 workers", &remote)] {
        for case in expected.keys().chain(told.keys().filter(|case| !expected.contains_key(case))) {
            let (under_cargo, here) = (expected.get(case), told.get(case));
            if under_cargo != here {
                differences += 1;
                let _ = writeln!(
                    report,
                    "  {case}: {under_cargo:?} under cargo test, {here:?} {label}"
                );
            }
        }
    }
    println!(
        "{name:<24} {:>6} {failed:>6} {cargo_s:>10.1} s {embedded_s:>10.1} s {remote_s:>10.1} s {differences:>6}",
        expected.len()
    );
    print!("{report}");
    Ok(differences)
}

/// What is run, and where.
struct Run<'a> {
    scratch: &'a Scratch,
    project: &'a Path,
    target: &'a Path,
    /// For cargo, about what to build.
    arguments: &'a [&'a str],
}

fn under_distest(run: &Run<'_>, workers: &[Worker]) -> io::Result<(Outcomes, f64)> {
    let mut client = Client::call(run.scratch, run.project, &["run", "--no-fail-fast"])
        .args(run.arguments)
        .json()
        .env("CARGO_TARGET_DIR", run.target);
    if !workers.is_empty() {
        client = client.only_on(workers);
    }
    let started = Instant::now();
    let finished = client.finish();
    let took = started.elapsed().as_secs_f64();
    let transcript = Transcript::check(&finished.lines)
        .map_err(|error| io::Error::other(format!("{error}\n{}", finished.stderr)))?;
    let mut outcomes = Outcomes::new();
    for (case, verdict) in transcript.verdicts {
        let outcome = match verdict {
            Verdict::Pass | Verdict::Flaky => Outcome::Passed,
            Verdict::Skipped => Outcome::Ignored,
            _ => Outcome::Failed,
        };
        insert(&mut outcomes, Case::new(&target_of(&case.binary), &case.name), outcome)?;
    }
    Ok((outcomes, took))
}

/// Name of the crate as rustc has it, with `lib/` before that of a library and `doc/` before that
/// of a library's doctests.
fn target_of(binary_id: &str) -> String {
    match binary_id.split_once("::") {
        None => format!("lib/{}", binary_id.replace('-', "_")),
        Some((_, rest)) if rest.starts_with("doc/") => rest.replace('-', "_"),
        Some((_, rest)) => rest.rsplit('/').next().unwrap_or(rest).replace('-', "_"),
    }
}

fn under_cargo(run: &Run<'_>) -> io::Result<(Outcomes, f64)> {
    let started = Instant::now();
    // One pipe for both streams: cargo names the executable on stderr before it runs it.
    let (mut reader, writer) = io::pipe()?;
    let mut command = run.scratch.command(cargo());
    command
        .args(["test", "--no-fail-fast", "--color", "never"])
        .args(run.arguments)
        .current_dir(run.project)
        .env("CARGO_TARGET_DIR", run.target)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    // It holds the pipe's writing end as long as it lives.
    drop(command);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut reader, &mut bytes)?;
    child.wait()?;
    let took = started.elapsed().as_secs_f64();

    let mut outcomes = Outcomes::new();
    let mut current = None;
    for line in String::from_utf8_lossy(&bytes).lines() {
        if let Some(running) = line.trim_start().strip_prefix("Running ") {
            current = executable_of(running);
        } else if let Some(library) = line.trim_start().strip_prefix("Doc-tests ") {
            current = Some(format!("doc/{library}"));
        } else if let (Some(current), Some((name, outcome))) = (&current, test_line(line)) {
            insert(&mut outcomes, Case::new(current, name), outcome)?;
        }
    }
    Ok((outcomes, took))
}

/// `unittests src/lib.rs (target/debug/deps/semver-4f0c)` → `lib/semver`.
fn executable_of(running: &str) -> Option<String> {
    let (source, rest) = running.split_once(" (")?;
    let stem = Path::new(rest.strip_suffix(')')?).file_name()?.to_str()?;
    let name = stem.rsplit_once('-')?.0;
    let is_lib = source.starts_with("unittests") && source.ends_with("lib.rs");
    Some(if is_lib { format!("lib/{name}") } else { name.to_owned() })
}

/// `test a::b - should panic ... ok` → `a::b`, passed.
fn test_line(line: &str) -> Option<(&str, Outcome)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match result {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ if result.starts_with("ignored") => Outcome::Ignored,
        _ => return None,
    };
    // What libtest says of the kind of test is no part of its name.
    let kinds = [" - should panic", " - compile fail", " - compile"];
    let name = kinds.iter().find_map(|kind| name.strip_suffix(kind)).unwrap_or(name);
    Some((name, outcome))
}

fn insert(outcomes: &mut Outcomes, case: Case, outcome: Outcome) -> io::Result<()> {
    match outcomes.insert(case.clone(), outcome) {
        None => Ok(()),
        Some(_) => Err(io::Error::other(format!("{case} is there twice"))),
    }
}

#[expect(clippy::print_stderr, reason = "progress, beside the table on stdout")]
fn eprint_progress(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_lines() {
        assert_eq!(
            executable_of("unittests src/lib.rs (target/debug/deps/a-1f)").unwrap(),
            "lib/a"
        );
        assert_eq!(executable_of("tests/it.rs (target/debug/deps/it-1f)").unwrap(), "it");
        let line = "test a::b - should panic ... ok";
        assert_eq!(test_line(line), Some(("a::b", Outcome::Passed)));
        assert_eq!(test_line("test x ... ignored, why"), Some(("x", Outcome::Ignored)));
        assert_eq!(test_line("test result: ok. 1 passed"), None);
    }

    #[test]
    fn both_sides_name_a_target_alike() {
        assert_eq!(target_of("a-b"), "lib/a_b");
        assert_eq!(target_of("fd-find::bin/fd-find"), "fd_find");
        assert_eq!(target_of("ripgrep::integration"), "integration");
        assert_eq!(target_of("a-b::doc/a-b"), "doc/a_b");
    }
}
