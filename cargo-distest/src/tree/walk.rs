//! Finding files without git: everything but what `.gitignore` files exclude.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ignore::WalkBuilder;

use super::assemble::is_build_directory;

/// What lies in a folder.
#[derive(Default)]
pub(super) struct Walked {
    /// Files, links and folders, empty ones too.
    pub(super) paths: Vec<PathBuf>,
    /// Repositories on the way, not looked into.
    pub(super) nested: Vec<PathBuf>,
    /// What could not be read, in words.
    pub(super) problems: Vec<String>,
}

/// The folders in a folder of a repository of which git tracks nothing: itself and those below
/// that are not ignored, without repositories and what is built.
pub(super) fn folders(dir: &Path, excluded: &[PathBuf]) -> Vec<PathBuf> {
    let excluded = excluded.to_vec();
    let walk = WalkBuilder::new(dir)
        .standard_filters(false)
        .parents(true)
        .git_ignore(true)
        .git_global(true)
        .git_exclude(true)
        .filter_entry(move |entry| {
            let path = entry.path();
            let folder = entry.file_type().is_some_and(|kind| kind.is_dir());
            let foreign = entry.file_name() == ".git" || excluded.iter().any(|dir| path == dir);
            let repository = || path.join(".git").symlink_metadata().is_ok();
            folder && !foreign && !is_build_directory(path) && !repository()
        })
        .build();
    walk.filter_map(Result::ok).map(ignore::DirEntry::into_path).collect()
}

/// Everything in `dir` but what its `.gitignore` files exclude, `.git`, and what is built.
pub(super) fn walk(dir: &Path, excluded: &[PathBuf]) -> Walked {
    let nested = Arc::new(Mutex::new(Vec::new()));
    let excluded: Vec<PathBuf> =
        excluded.iter().filter(|excluded| !dir.starts_with(excluded)).cloned().collect();
    let walk = WalkBuilder::new(dir)
        .standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .filter_entry({
            let nested = Arc::clone(&nested);
            move |entry| {
                let path = entry.path();
                let folder = entry.file_type().is_some_and(|kind| kind.is_dir());
                if entry.file_name() == ".git" || excluded.iter().any(|dir| path == dir) {
                    return false;
                }
                if !folder || entry.depth() == 0 {
                    return true;
                }
                if path.join(".git").symlink_metadata().is_ok() {
                    nested.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
                    return false;
                }
                !is_build_directory(path)
            }
        })
        .build();
    let mut walked = Walked::default();
    for entry in walk {
        match entry {
            Ok(entry) if entry.depth() == 0 => {}
            Ok(entry) => walked.paths.push(entry.into_path()),
            Err(error) => walked.problems.push(format!("not shipped: {error}")),
        }
    }
    walked.nested = std::mem::take(&mut nested.lock().unwrap_or_else(PoisonError::into_inner));
    walked
}
