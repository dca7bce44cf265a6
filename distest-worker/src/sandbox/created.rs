//! What tests have created or changed where the client's files are laid out, by comparing: for
//! sandboxes without a layer of their own for what is written.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::digest::Digest;
use crate::globs::Globs;
use crate::protocol::TreeNode;

/// Deeper than this nothing is looked for.
const DEPTH_MAX: usize = 256;

/// A file that is not as it was laid out.
#[derive(Debug)]
pub struct Created {
    /// The client's path of it.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Opened for reading, at its beginning.
    pub file: File,
}

/// Files that match, at most `limit`. `base` stands for the client's `/`.
pub(super) fn find(
    base: &Path,
    roots: &[PathBuf],
    laid: &BTreeMap<PathBuf, TreeNode>,
    globs: &Globs,
    limit: usize,
) -> Vec<Created> {
    let mut created = Vec::new();
    for root in roots {
        let mut folders = vec![(root.clone(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            // What can't be read can't be brought to anyone.
            let there = fs::read_dir(on_disk(base, &folder)).into_iter().flatten().flatten();
            for entry in there {
                let path = folder.join(entry.file_name());
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() && depth < DEPTH_MAX && entry.file_name() != ".git" {
                    folders.push((path, depth + 1));
                } else if kind.is_file() && globs.matches(&path, path.strip_prefix(root).ok()) {
                    created.extend(changed(base, path, laid));
                }
                if created.len() >= limit {
                    return created;
                }
            }
        }
    }
    created
}

fn changed(base: &Path, path: PathBuf, laid: &BTreeMap<PathBuf, TreeNode>) -> Option<Created> {
    let open = || {
        // A FIFO must not be waited for.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file =
            OpenOptions::new().read(true).custom_flags(flags.bits()).open(on_disk(base, &path));
        let metadata = file.as_ref().ok()?.metadata().ok()?;
        Some((file.ok()?, metadata)).filter(|(_, metadata)| metadata.is_file())
    };
    let (file, metadata) = open()?;
    if let Some(TreeNode::File { digest, size, .. }) = laid.get(&path)
        && *size == metadata.len()
        && Digest::of_reader(&file).is_ok_and(|(now, _)| now == *digest)
    {
        return None;
    }
    // Comparing has read it.
    let (file, metadata) = open()?;
    Some(Created { mode: metadata.permissions().mode() & 0o777, path, file })
}

fn on_disk(base: &Path, client: &Path) -> PathBuf {
    base.join(client.strip_prefix("/").unwrap_or(client))
}
