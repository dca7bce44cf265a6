//! What taking stock of a workspace costs: `cargo run --release -p cargo-distest --example
//! tree_cost [FILES]`.
//!
//! Makes a repository of so many files (10,000) and takes stock of it: once from nothing, then
//! again and again without a change.

#![expect(clippy::print_stdout, reason = "a benchmark talks to whoever runs it")]

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cargo_distest::tree::copies::Copies;
use cargo_distest::tree::statcache::StatCache;
use cargo_distest::tree::{Tree, TreeRoots, TreeRules, collect};

const ROUNDS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let files = std::env::args().nth(1).map_or(Ok(10_000), |files| files.parse())?;
    let folder = tempfile::tempdir()?;
    make(folder.path(), files)?;

    let (first, tree) = round(folder.path())?;
    println!("{} files, {} entries", tree.files.len(), tree.entries.len());
    println!("first time: {:.1} ms", millis(first));
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(round(folder.path())?.0);
    }
    rounds.sort_unstable();
    let [least, median, most] = [rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]].map(millis);
    println!("unchanged: {least:.1} ms / {median:.1} ms / {most:.1} ms (least / median / most)");
    let looked = Instant::now();
    let changed = tree.changed().len();
    println!("looking back: {:.1} ms, {changed} changed", millis(looked.elapsed()));
    Ok(())
}

/// As a run does it: what is remembered is read, the tree taken, what is new remembered.
fn round(folder: &Path) -> Result<(Duration, Tree), Box<dyn Error>> {
    let started = Instant::now();
    let target = folder.join("target");
    let stats = Arc::new(StatCache::open(&target.join("distest/digests")));
    let copies = Copies::new(&target, Arc::clone(&stats));
    let roots =
        TreeRoots { workspace: folder.to_owned(), excluded: vec![target], ..TreeRoots::default() };
    let tree = collect(&roots, &TreeRules::new(200_000, 2 << 30), &copies)?;
    let took = started.elapsed();
    stats.save()?;
    Ok((took, tree))
}

fn make(folder: &Path, files: usize) -> Result<(), Box<dyn Error>> {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::write(folder.join(".gitignore"), "/target\n")?;
    for number in 0..files.saturating_sub(1) {
        let path = folder.join(format!("crate-{}/src/module_{number}.rs", number % 100));
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(&path, format!("pub const NUMBER: usize = {number};\n").repeat(1 + number % 80))?;
        File::options().write(true).open(&path)?.set_modified(hour_ago)?;
    }
    for args in [&["init", "-q"][..], &["add", "."]] {
        let status = Command::new("git").arg("-C").arg(folder).args(args).status()?;
        if !status.success() {
            return Err(format!("git {args:?}: {status}").into());
        }
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
