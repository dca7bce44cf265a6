//! What travels with a test binary: the executable, the programs and libraries built beside it, and
//! what its build script wrote.

use std::io;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distest_worker::digest::Digest;
use distest_worker::protocol::{BinaryKey, BinarySpec, TreeEntry, TreeNode};
use tokio::sync::OnceCell;

use crate::model::TestBinary;
use crate::tree::keep::{Blob, ClientStore};

/// A test binary as workers get it. Its companions are taken into the store only when the first
/// worker asks: an embedded worker never does.
#[derive(Debug)]
pub struct Parcel {
    key: BinaryKey,
    binary: Arc<TestBinary>,
    executable: Blob,
    store: Arc<ClientStore>,
    packed: OnceCell<Packed>,
}

/// A parcel ready to go.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What the worker is told.
    pub spec: Arc<BinarySpec>,
    /// Where the bytes of each file are.
    pub blobs: Arc<BTreeMap<Digest, PathBuf>>,
}

impl Parcel {
    /// The parcel of a binary whose executable is in the store as `executable`.
    pub fn new(
        key: BinaryKey,
        binary: Arc<TestBinary>,
        executable: Blob,
        store: Arc<ClientStore>,
    ) -> Self {
        Self { key, binary, executable, store, packed: OnceCell::new() }
    }

    /// What an embedded worker is told: everything lies where it is.
    pub fn in_place(&self) -> BinarySpec {
        self.spec(Vec::new())
    }

    /// Takes all companions into the store, once.
    ///
    /// # Errors
    /// A companion that can't be read.
    pub async fn pack(&self) -> io::Result<Packed> {
        let pack = || async {
            let (binary, store) = (Arc::clone(&self.binary), Arc::clone(&self.store));
            let executable = self.executable.clone();
            let work = move || files(&binary, executable, &store);
            let (entries, blobs) = match tokio::task::spawn_blocking(work).await {
                Ok(packed) => packed?,
                Err(error) => return Err(io::Error::other(error)),
            };
            Ok(Packed { spec: Arc::new(self.spec(entries)), blobs: Arc::new(blobs) })
        };
        self.packed.get_or_try_init(pack).await.cloned()
    }

    fn spec(&self, files: Vec<TreeEntry>) -> BinarySpec {
        let binary = &self.binary;
        let env = binary.env.iter();
        BinarySpec {
            key: self.key,
            label: binary.id.to_string(),
            program: binary.executable.as_path().into(),
            cwd: binary.cwd.as_path().into(),
            env: env.map(|(name, value)| (name.clone().into(), value.clone().into())).collect(),
            files,
            writable: binary.writable_dirs.iter().map(|dir| dir.as_path().into()).collect(),
        }
    }
}

type Files = (Vec<TreeEntry>, BTreeMap<Digest, PathBuf>);

fn files(binary: &TestBinary, executable: Blob, store: &ClientStore) -> io::Result<Files> {
    let mut found = BTreeMap::from([(binary.executable.clone(), executable)]);
    for companion in &binary.companions {
        found.insert(companion.clone(), store.take(companion)?);
    }
    for folder in &binary.companion_dirs {
        take_folder(folder, store, &mut found)?;
    }
    let blobs = found.values().map(|blob| (blob.digest, blob.path.clone())).collect();
    let entry = |(path, blob): (PathBuf, Blob)| TreeEntry {
        path: path.into(),
        node: TreeNode::File { digest: blob.digest, size: blob.size, mode: blob.mode },
    };
    Ok((found.into_iter().map(entry).collect(), blobs))
}

/// Takes every file below a folder. What vanishes meanwhile is left out: it was never meant to
/// stay.
fn take_folder(
    folder: &Path,
    store: &ClientStore,
    found: &mut BTreeMap<PathBuf, Blob>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            take_folder(&path, store, found)?;
        } else if kind.is_file() {
            found.insert(path.clone(), store.take(&path)?);
        }
    }
    Ok(())
}
