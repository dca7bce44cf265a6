//! What an executable needs beside itself, and under which name workers have it.
//!
//! Nobody tells a runner what cargo has built. So what travels is what the executable's environment
//! and bytes name: built programs (`CARGO_BIN_EXE_*`), `OUT_DIR`, build scripts' folders whose path
//! is compiled in, libraries that the loader will ask for, and examples beside an integration test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use distest_worker::digest::Digest;
use distest_worker::protocol::{BinaryKey, BinarySpec, OsText, TreeEntry, TreeNode};
use tokio::sync::OnceCell;

use super::wire::{Call, Variable};
use crate::compile;
use crate::failure::{ExitCode, Failure};
use crate::model::{BinaryId, BinaryKind, BinaryNeeds, Harness, TestBinary, Triple};
use crate::parcel::Packed;
use crate::tree::keep::ClientStore;
use crate::tree::payload::{self, Payload};

/// Build scripts' folders that one executable may name.
const NAMED_FOLDERS_MAX: usize = 100;

/// Packs executables, each once as long as it doesn't change.
pub(super) struct Packer {
    store: Arc<ClientStore>,
    target_dir: PathBuf,
    roots: Vec<OsText>,
    keys: AtomicU32,
    known: Mutex<BTreeMap<Needs, Known>>,
}

type Known = (BinaryKey, Arc<OnceCell<Packed>>);

/// What distinguishes one executable from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Needs {
    program: (PathBuf, Stamp),
    cwd: PathBuf,
    programs: Vec<(PathBuf, Stamp)>,
    out_dir: Option<(PathBuf, Stamp)>,
    library_path: Option<OsText>,
}

/// Changes when a file does: device, inode, size, modification time.
type Stamp = (u64, u64, u64, i64, i64);

/// An executable as workers get it.
pub(super) struct Parcel {
    pub(super) key: BinaryKey,
    pub(super) packed: Packed,
    /// It is used once: whoever has it may forget it.
    pub(super) single: bool,
}

impl Packer {
    /// Packs for sessions that lay out `roots`.
    pub(super) fn new(store: Arc<ClientStore>, target_dir: PathBuf, roots: &[OsText]) -> Self {
        let roots = roots.to_vec();
        Self { store, target_dir, roots, keys: AtomicU32::new(0), known: Mutex::default() }
    }

    /// Looks at everything again from now on.
    pub(super) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What a worker is told that uses the client's files in place.
    pub(super) fn in_place(&self, call: &Call) -> BinarySpec {
        BinarySpec {
            key: self.next_key(),
            label: label(call.program.as_path()),
            program: call.program.clone(),
            cwd: call.cwd.clone(),
            env: Vec::new(),
            files: Vec::new(),
            writable: Vec::new(),
        }
    }

    /// An executable that lies in the site's folders, with what it needs.
    pub(super) async fn inside(&self, call: &Call) -> Result<Parcel, Failure> {
        let needs = Needs::of(call).map_err(|error| cannot_read(call, error))?;
        let (key, cell) = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || (self.next_key(), Arc::default());
            known.entry(needs.clone()).or_insert_with(fresh).clone()
        };
        let pack = || async {
            let store = Arc::clone(&self.store);
            // `CARGO_TARGET_TMPDIR` is known at compile time only.
            let mut writable = vec![OsText::from(self.target_dir.join("tmp"))];
            writable.extend(self.laid_out(&call.cwd));
            let packing = tokio::task::spawn_blocking(move || pack(key, &needs, &store, writable));
            packing.await.map_err(|error| {
                Failure::new(ExitCode::Setup, "could not pack an executable").because(error)
            })?
        };
        let packed = cell.get_or_try_init(pack).await.cloned()?;
        Ok(Parcel { key, packed, single: false })
    }

    /// An executable that lies elsewhere (a doctest in a temporary folder): workers get it, and
    /// nothing else, at a place of our own.
    pub(super) async fn outside(&self, call: &Call) -> Result<Parcel, Failure> {
        let path = call.program.as_path().to_owned();
        let store = Arc::clone(&self.store);
        let hashing = tokio::task::spawn_blocking(move || {
            let (digest, size, mode) = store.copies().stats().digest_of(&path)?;
            Ok((path, digest, size, mode))
        });
        let hashed = hashing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (path, digest, size, mode) = hashed.map_err(|error| cannot_read(call, error))?;
        let key = self.next_key();
        let place = self.place(&path, digest);
        let spec = BinarySpec {
            key,
            label: label(&path),
            program: place.clone().into(),
            cwd: call.cwd.clone(),
            env: Vec::new(),
            files: vec![TreeEntry {
                path: place.into(),
                node: TreeNode::File { digest, size, mode },
            }],
            writable: self.laid_out(&call.cwd).into_iter().collect(),
        };
        let files = BTreeMap::from([(digest, path)]);
        let packed = Packed { spec: Arc::new(spec), files: Arc::new(files) };
        Ok(Parcel { key, packed, single: true })
    }

    /// A working directory that must exist on workers: an empty one doesn't travel.
    fn laid_out(&self, cwd: &OsText) -> Option<OsText> {
        let inside = self.roots.iter().any(|root| cwd.as_path().starts_with(root.as_path()));
        inside.then(|| cwd.clone())
    }

    /// Where an executable from elsewhere lies on workers.
    fn place(&self, path: &Path, digest: Digest) -> PathBuf {
        let name = path.file_name().unwrap_or("executable".as_ref());
        let folder = digest.to_string();
        self.target_dir.join("distest").join("outside").join(&folder[..16]).join(name)
    }

    fn next_key(&self) -> BinaryKey {
        BinaryKey(self.keys.fetch_add(1, Ordering::Relaxed))
    }
}

impl Needs {
    fn of(call: &Call) -> io::Result<Self> {
        let program = call.program.as_path().to_owned();
        let mut programs = BTreeMap::new();
        let path_of = |variable: &Variable| compile::plain(variable.value.as_path());
        let (mut out_dir, mut library_path) = (None, None);
        for variable in &call.env {
            let Some(name) = variable.name.as_os_str().to_str() else { continue };
            match name {
                "OUT_DIR" => out_dir = Some(path_of(variable)),
                "LD_LIBRARY_PATH" => library_path = Some(variable.value.clone()),
                _ if name.contains("_BIN_EXE_") => {
                    let path = path_of(variable);
                    // cargo names programs that are not built, too.
                    if let Ok(stamp) = stamp(&path) {
                        programs.insert(path, stamp);
                    }
                }
                _ => {}
            }
        }
        Ok(Self {
            program: (program.clone(), stamp(&program)?),
            cwd: call.cwd.as_path().to_owned(),
            programs: programs.into_iter().collect(),
            out_dir: out_dir.and_then(|folder| stamp(&folder).ok().map(|stamp| (folder, stamp))),
            library_path,
        })
    }
}

fn pack(
    key: BinaryKey,
    needs: &Needs,
    store: &ClientStore,
    writable: Vec<OsText>,
) -> Result<Packed, Failure> {
    let program = &needs.program.0;
    let mut companions: BTreeSet<PathBuf> =
        needs.programs.iter().map(|(path, _)| path.clone()).collect();
    if !companions.is_empty() {
        companions.extend(examples_beside(program));
    }
    companions.extend(libraries(program, &companions, needs.library_path.as_ref()));
    companions.remove(program);
    let folders: BTreeSet<PathBuf> = needs
        .out_dir
        .iter()
        .map(|(folder, _)| folder.clone())
        .chain(build_folders(program))
        .collect();
    let binary = TestBinary {
        id: BinaryId::new(label(program)),
        package: String::new(),
        package_id: String::new(),
        target_name: String::new(),
        kind: BinaryKind::Test,
        harness: Harness::Custom,
        triple: Triple::new(""),
        for_host: false,
        executable: program.clone(),
        cwd: needs.cwd.clone(),
        env: BTreeMap::new(),
        companions: companions.into_iter().collect(),
        companion_dirs: folders.into_iter().collect(),
        writable_dirs: Vec::new(),
        needs: BinaryNeeds::default(),
    };
    let Payload { entries, files, .. } = payload::gather(&binary, None, store)?;
    let spec = BinarySpec {
        key,
        label: binary.id.to_string(),
        program: program.clone().into(),
        cwd: needs.cwd.clone().into(),
        env: Vec::new(),
        files: entries,
        writable,
    };
    Ok(Packed { spec: Arc::new(spec), files: Arc::new(files) })
}

/// Examples under their plain names, which integration tests start.
fn examples_beside(program: &Path) -> Vec<PathBuf> {
    let Some(profile) = program.parent().filter(|it| it.ends_with("deps")).and_then(Path::parent)
    else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(profile.join("examples")) else { return Vec::new() };
    let plain = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let hash = name.rsplit_once('-').map_or("", |(_, hash)| hash);
        let hashed = hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        let executable = fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0);
        executable && !hashed
    };
    entries.flatten().map(|entry| entry.path()).filter(plain).collect()
}

/// Libraries that the loader will ask for, by name, and those that these ask for, as far as they
/// lie where the caller told it to look first.
fn libraries(
    program: &Path,
    companions: &BTreeSet<PathBuf>,
    library_path: Option<&OsText>,
) -> BTreeSet<PathBuf> {
    let folders: Vec<PathBuf> = library_path
        .map(|path| std::env::split_paths(path.as_os_str()).map(|it| compile::plain(&it)).collect())
        .unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut open: Vec<PathBuf> = companions.iter().cloned().chain([program.to_owned()]).collect();
    while let Some(file) = open.pop() {
        for name in compile::needed_libraries(&file) {
            let path = folders.iter().map(|folder| folder.join(&name)).find(|it| it.is_file());
            if let Some(path) = path
                && found.insert(path.clone())
            {
                open.push(path);
            }
        }
    }
    found
}

/// Folders of build scripts (`…/PROFILE/build/NAME-HASH/out`) whose path is compiled into an
/// executable that lies in `…/PROFILE/deps` or `…/PROFILE`.
fn build_folders(program: &Path) -> BTreeSet<PathBuf> {
    let parent = program.parent();
    let profile = match parent {
        Some(folder) if folder.ends_with("deps") || folder.ends_with("examples") => folder.parent(),
        folder => folder,
    };
    let mut found = BTreeSet::new();
    let Some(build) = profile.map(|profile| profile.join("build")).filter(|it| it.is_dir()) else {
        return found;
    };
    let Ok(bytes) = fs::read(program) else { return found };
    // Not the whole path, which the caller may have spelled otherwise when it built: with `..`.
    let profile = build.parent().and_then(Path::file_name).unwrap_or_default();
    let needle = [b"/", profile.as_bytes(), b"/build/"].concat();
    let mut rest = &bytes[..];
    let finder = memchr::memmem::Finder::new(&needle);
    while let Some(at) = finder.find(rest) {
        rest = &rest[at + needle.len()..];
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(0);
        let folder = build.join(std::ffi::OsStr::from_bytes(&rest[..end.min(255)])).join("out");
        if end > 0 && rest[end..].starts_with(b"/out") && folder.is_dir() {
            found.insert(folder);
        }
        if found.len() >= NAMED_FOLDERS_MAX {
            break;
        }
    }
    found
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

fn label(program: &Path) -> String {
    program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn cannot_read(call: &Call, error: io::Error) -> Failure {
    let what = format!("could not read {}", call.program.as_path().display());
    Failure::new(ExitCode::Setup, what).because(error)
}
