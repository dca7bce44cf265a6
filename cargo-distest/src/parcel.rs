//! What a worker is told of a test binary, and what travels with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distest_worker::digest::Digest;
use distest_worker::protocol::{BinaryKey, BinarySpec, TreeEntry};
use tokio::sync::OnceCell;

use crate::failure::{ExitCode, Failure};
use crate::model::TestBinary;
use crate::tree::keep::{Blob, ClientStore};
use crate::tree::payload::{self, Payload};

/// A test binary as workers get it. Its companions are taken into the store when the first worker
/// asks: an embedded worker never does.
#[derive(Debug)]
pub struct Parcel {
    key: BinaryKey,
    binary: Arc<TestBinary>,
    listed: Option<Blob>,
    store: Arc<ClientStore>,
    packed: OnceCell<Packed>,
}

/// A parcel ready to go.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What the worker is told.
    pub spec: Arc<BinarySpec>,
    /// Where the bytes of each file are.
    pub files: Arc<BTreeMap<Digest, PathBuf>>,
}

impl Parcel {
    /// The parcel of a linked binary, with the copy of its executable that was kept when it was
    /// listed, if one was.
    pub fn new(
        key: BinaryKey,
        binary: Arc<TestBinary>,
        listed: Option<Blob>,
        store: Arc<ClientStore>,
    ) -> Self {
        Self { key, binary, listed, store, packed: OnceCell::new() }
    }

    /// What an embedded worker is told: everything lies where it is.
    pub fn in_place(&self) -> BinarySpec {
        self.spec(Vec::new())
    }

    /// Takes the binary and its companions into the store, once.
    ///
    /// # Errors
    /// Something that can't be read.
    pub async fn pack(&self) -> Result<Packed, Failure> {
        let pack = || async {
            let (binary, store) = (Arc::clone(&self.binary), Arc::clone(&self.store));
            let listed = self.listed.clone();
            let gather = move || payload::gather(&binary, listed, &store);
            let gathered = tokio::task::spawn_blocking(gather);
            let Payload { entries, files, .. } = gathered.await.map_err(|error| {
                let what = format!("could not pack {}", self.binary.id);
                Failure::new(ExitCode::Setup, what).because(error)
            })??;
            Ok(Packed { spec: Arc::new(self.spec(entries)), files: Arc::new(files) })
        };
        self.packed.get_or_try_init(pack).await.cloned()
    }

    /// Whether a file or folder travels with it, or is its own.
    pub fn contains(&self, path: &Path) -> bool {
        let binary = &self.binary;
        let packed = self.packed.get().is_some_and(|packed| {
            let files = &packed.spec.files;
            files
                .binary_search_by(|entry| entry.path.as_path().as_os_str().cmp(path.as_os_str()))
                .is_ok()
        });
        packed
            || path == binary.executable
            || binary.writable_dirs.iter().any(|dir| path.starts_with(dir))
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
