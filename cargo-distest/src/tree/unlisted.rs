//! What git doesn't speak of: folders without a file that travels, pipes, sockets.
//!
//! The folders that travel are read, which is far cheaper than to have git look for folders; git is
//! asked, once for each repository, only about what it didn't list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use distest_worker::protocol::FOLDER_MODE;

use super::assemble::{is_build_directory, parallel, special};
use super::{Found, git, walk};

/// What lies in the folders of repositories beside what git lists, and is not ignored.
#[derive(Default)]
pub(super) struct Unlisted {
    /// Folders, and their permission bits: tests may count on empty ones.
    pub(super) folders: Vec<(PathBuf, u32)>,
    /// What has no contents, and what it is.
    pub(super) special: Vec<(PathBuf, &'static str)>,
}

/// Something of which git is asked. A special one says what it is.
type Candidate = (PathBuf, Option<&'static str>);

/// Looks into `folders`, which are in the order of bytes, as is what was `found` in them. `asked`
/// says which folders are repositories. What lies in `excluded` folders isn't looked at.
pub(super) fn look(
    folders: &[&Path],
    found: &[Found],
    asked: &BTreeMap<PathBuf, bool>,
    excluded: &[PathBuf],
) -> Unlisted {
    let listed = |path: &Path| {
        let place = |it: &Found| it.path.as_os_str().cmp(path.as_os_str());
        found.binary_search_by(place).is_ok() || folders.binary_search(&path).is_ok()
    };
    let candidate = |entry: fs::DirEntry| -> Option<Candidate> {
        let kind = entry.file_type().ok()?;
        let special = special(kind);
        if special.is_none() && !kind.is_dir() {
            return None;
        }
        let path = entry.path();
        let foreign = || {
            kind.is_dir()
                && (entry.file_name() == ".git"
                    || excluded.contains(&path)
                    || is_build_directory(&path))
        };
        (!listed(&path) && !foreign()).then_some((path, special))
    };
    let candidates = parallel(folders, |folder| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(candidate).collect::<Vec<_>>()
    });
    let mut by_repository: BTreeMap<&Path, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates.into_iter().flatten() {
        // The innermost folder that was asked for says whether git knows of ignoring there.
        let around = candidate.0.ancestors().find_map(|around| asked.get_key_value(around));
        if let Some((repository, true)) = around {
            by_repository.entry(repository).or_default().push(candidate);
        }
    }
    let mut unlisted = Unlisted::default();
    for (repository, candidates) in by_repository {
        let paths: Vec<&Path> = candidates.iter().map(|(path, _)| path.as_path()).collect();
        let Some(ignored) = git::ignored(repository, &paths) else { continue };
        unlisted.add(candidates, &ignored, excluded);
    }
    unlisted
}

impl Unlisted {
    fn add(
        &mut self,
        candidates: Vec<Candidate>,
        ignored: &BTreeSet<PathBuf>,
        excluded: &[PathBuf],
    ) {
        for (path, special) in candidates {
            if ignored.contains(&path) {
                continue;
            }
            if let Some(special) = special {
                self.special.push((path, special));
                continue;
            }
            let folders = walk::folders(&path, excluded).into_iter().filter_map(|folder| {
                let mode = fs::symlink_metadata(&folder).ok()?.mode() & FOLDER_MODE;
                Some((folder, mode))
            });
            self.folders.extend(folders);
        }
    }
}
