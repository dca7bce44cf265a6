//! Runs every fuzz target for some thousand inputs, always the same: the kept corpus, and mutations
//! of it.
//!
//! `DISTEST_FUZZ_INPUTS=1000000 cargo test --release -p cargo-distest --test fuzz_smoke` runs longer,
//! `DISTEST_FUZZ_SEED=7` elsewhere. `cargo +nightly fuzz run TARGET`, in the repository's root, is
//! guided by coverage. `INSTA_UPDATE=always` writes the seeds into the corpus.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod mutate;
mod seeds;
#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs};

use self::mutate::Mutator;
use self::targets::TARGETS;

/// Mutations of each target, unless told otherwise.
const INPUTS: u64 = 2_000;
/// Of those that are slow: they touch files, or parse this workspace's metadata.
const SLOW_INPUTS: u64 = 300;
const SLOW: [&str; 3] = ["tree", "upload", "filterset"];
/// Of a kept input.
const KEPT_BYTES_MAX: u64 = 16 * 1024;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// The kept inputs of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut kept: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    kept.sort();
    kept
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

fn run(name: &str, target: targets::Target) {
    let kept = corpus(name);
    let inputs: Vec<Vec<u8>> = kept.iter().map(|(_, bytes)| bytes.clone()).collect();
    let understood = kept.iter().filter(|(file, bytes)| whole(name, target, file, bytes)).count();
    assert!(understood > 0, "{name} makes sense of nothing in its corpus");
    let count = if SLOW.contains(&name) { SLOW_INPUTS } else { INPUTS };
    let count = number("DISTEST_FUZZ_INPUTS").unwrap_or(count);
    let first = number("DISTEST_FUZZ_SEED").unwrap_or(0);
    for seed in first..first + count {
        let input = Mutator::new(seed).input(&inputs);
        whole(name, target, &format!("seed {seed}"), &input);
    }
}

/// Runs one input; shows it if it breaks something.
fn whole(name: &str, target: targets::Target, which: &str, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| target(input))).unwrap_or_else(|_| {
        let shown = input.escape_ascii();
        panic!("target {name}, {which}: keep this as fuzz/corpus/{name}/WHAT: b\"{shown}\"")
    })
}

/// Deep nesting must not end the process: the stack here is as large as that of the slightest
/// thread that reads such bytes.
fn in_a_small_stack(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(work).unwrap();
    thread.join().unwrap();
}

macro_rules! smoke {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            let target = TARGETS.iter().find(|(it, _)| *it == name).unwrap().1;
            in_a_small_stack(move || run(name, target));
        })*
        const RUN: &[&str] = &[$(stringify!($name)),*];
    };
}

smoke!(
    hello,
    frames,
    to_worker,
    to_client,
    words,
    upload,
    tree,
    executable,
    listing,
    doctests,
    filterset,
    configuration,
    addresses,
    keys,
    globs
);

#[test]
fn every_target_runs_here_and_under_cargo_fuzz() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(RUN, names);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let files = fs::read_dir(fuzz().join("fuzz_targets")).unwrap();
    let files: BTreeSet<_> =
        files.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, names.iter().map(|name| format!("{name}.rs")).collect());
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let text = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("run(\"{name}\", data)")), "{name}");
    }
}

#[test]
fn seeds_are_kept_and_kept_inputs_are_small() {
    let update = env::var("INSTA_UPDATE").is_ok_and(|value| value == "always");
    for (target, _) in TARGETS {
        let folder = fuzz().join("corpus").join(target);
        for (name, bytes) in seeds::seeds(target) {
            let path = folder.join(name);
            if update && !path.exists() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, bytes).unwrap();
            }
            assert!(path.is_file(), "{path:?} is missing: INSTA_UPDATE=always writes it");
        }
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let bytes = entry.metadata().unwrap().len();
            assert!(bytes <= KEPT_BYTES_MAX, "{:?} has {bytes} bytes", entry.path());
        }
    }
}
