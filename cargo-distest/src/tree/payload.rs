//! What travels with a test binary.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use distest_worker::digest::Digest;
use distest_worker::protocol::{TreeEntry, TreeNode};

use super::assemble::{Looked, look_at_all};
use super::keep::{Blob, ClientStore};
use super::{PAYLOAD_FILES_MAX, too_many};
use crate::failure::{ExitCode, Failure};
use crate::model::TestBinary;

/// A test binary's files.
#[derive(Clone, Debug)]
pub struct Payload {
    /// Contents of the executable.
    pub executable: Digest,
    /// The executable, its companions and what lies in its companion folders, sorted by path: for
    /// [`BinarySpec::files`](distest_worker::protocol::BinarySpec::files).
    pub entries: Vec<TreeEntry>,
    /// Where a content lies.
    pub files: BTreeMap<Digest, PathBuf>,
}

/// Keeps a test binary's executables in `store` and names all that must travel with it. Blocks on
/// the disk.
///
/// Its own executable travels as it was when it was `listed`, whatever cargo has put in its place
/// since: another one may not have the tests that it is asked for, and libtest calls it a success if
/// none is found.
///
/// # Errors
/// [`ExitCode::Setup`] if something can't be read or kept.
pub fn gather(
    binary: &TestBinary,
    listed: Option<Blob>,
    store: &ClientStore,
) -> Result<Payload, Failure> {
    let fail = |path: &Path, error: io::Error| {
        let what = format!("could not take in {}, which {} needs", path.display(), binary.id);
        Failure::new(ExitCode::Setup, what).because(error)
    };
    let mut nodes = BTreeMap::new();
    let mut files = BTreeMap::new();
    let mut put = |path: &Path, blob: Blob| {
        let Blob { digest, size, path: copy, mode, stamp: _ } = blob;
        files.insert(digest, copy);
        nodes.insert(path.as_os_str().to_owned(), TreeNode::File { digest, size, mode });
        digest
    };
    let take = |path: &Path| store.take(path).map_err(|error| fail(path, error));
    let own = match listed {
        Some(listed) if listed.path.exists() => listed,
        // Somebody has removed the copy.
        listed => {
            let now = take(&binary.executable)?;
            if listed.is_some_and(|listed| listed.digest != now.digest) {
                let gone = io::Error::other("it was built anew and its copy is gone");
                return Err(fail(&binary.executable, gone));
            }
            now
        }
    };
    let executable = put(&binary.executable, own);
    for companion in &binary.companions {
        put(companion, take(companion)?);
    }
    for folder in &binary.companion_dirs {
        let mut paths = Vec::new();
        everything_in(folder, &mut paths).map_err(|error| fail(folder, error))?;
        if paths.len() > PAYLOAD_FILES_MAX {
            return Err(too_many(folder, PAYLOAD_FILES_MAX));
        }
        let looked = look_at_all(&paths, store.copies());
        for (path, looked) in paths.into_iter().zip(looked) {
            let node = match looked {
                Looked::File { digest, size, mode, .. } => {
                    files.entry(digest).or_insert_with(|| store.copies().path(digest));
                    TreeNode::File { digest, size, mode }
                }
                Looked::Node(node) => node,
                // Nobody can ship a socket; what is gone is nothing a test may rely on.
                Looked::Gone | Looked::Unusable(_) => continue,
            };
            nodes.entry(path.into_os_string()).or_insert(node);
        }
    }
    let nodes = nodes.into_iter();
    let entries = nodes.map(|(path, node)| TreeEntry { path: path.into(), node }).collect();
    Ok(Payload { executable, entries, files })
}

/// A folder and all that lies in it, links not followed.
fn everything_in(folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    paths.push(folder.to_owned());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            everything_in(&entry.path(), paths)?;
        } else {
            paths.push(entry.path());
        }
        if paths.len() > PAYLOAD_FILES_MAX {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tree::copies::Copies;
    use crate::tree::statcache::StatCache;

    #[test]
    fn names_the_executable_its_companions_and_what_its_build_script_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let stats = Arc::new(StatCache::open(&at("stats")));
        let copies = Arc::new(Copies::new(&at("target"), stats));
        let store = ClientStore::open(&at("target"), copies).unwrap();
        for file in ["exe", "program", "out/deep/generated.rs"] {
            fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            fs::write(at(file), file).unwrap();
        }
        std::os::unix::fs::symlink("deep", at("out/link")).unwrap();
        let mut binary = TestBinary {
            executable: at("exe"),
            cwd: dir.path().to_owned(),
            companions: vec![at("program")],
            companion_dirs: vec![at("out")],
            ..TestBinary::sample()
        };
        let payload = gather(&binary, None, &store).unwrap();
        assert_eq!(payload.executable, Digest::of(b"exe"));
        let names: Vec<_> = payload
            .entries
            .iter()
            .map(|entry| entry.path.as_path().strip_prefix(dir.path()).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["exe", "out", "out/deep", "out/deep/generated.rs", "out/link", "program"]
        );
        let kept = &payload.files[&Digest::of(b"program")];
        assert!(kept.starts_with(at("target/distest/store")));
        assert_eq!(payload.files.len(), 3);

        binary.companions = vec![at("gone")];
        let failure = gather(&binary, None, &store).unwrap_err().to_string();
        assert!(failure.contains("gone, which a::b needs"), "{failure}");

        // As it was when it was listed.
        binary.companions = Vec::new();
        let listed = store.take(&binary.executable).unwrap();
        fs::remove_file(&binary.executable).unwrap();
        for rebuilt in [false, true] {
            if rebuilt {
                fs::write(&binary.executable, "built anew").unwrap();
            }
            let payload = gather(&binary, Some(listed.clone()), &store).unwrap();
            assert_eq!(payload.executable, Digest::of(b"exe"));
            assert_eq!(fs::read_to_string(&payload.files[&payload.executable]).unwrap(), "exe");
        }
        fs::remove_dir_all(listed.path.parent().unwrap()).unwrap();
        let failure = gather(&binary, Some(listed.clone()), &store).unwrap_err().to_string();
        assert!(failure.contains("exe, which a::b needs: it was built anew"), "{failure}");
        fs::write(&binary.executable, "exe").unwrap();
        assert!(gather(&binary, Some(listed), &store).is_ok());
    }
}
