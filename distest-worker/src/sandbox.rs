//! The client's paths on this machine.
//!
//! The client's roots are laid out below a folder of the worker's own, their absolute paths kept
//! as a suffix (`DIR/root/work/proj/…` for `/work/proj/…`). What tests see of that depends on what
//! the [`host`] can do: they find everything at the client's own paths, in an [`enclosure`] whose
//! lower layer this is; or, at the lowest [`level`], only paths in variables are translated.
//! [`Sandbox::in_place`] is for the embedded worker, where the client's paths are ours.
//!
//! What is laid out comes from a peer. Entries outside the roots are refused, and folders on the
//! way to an entry are opened one by one without following links, so that nothing is ever written
//! outside of the sandbox's folder.

pub(crate) mod beneath;
pub mod changes;
mod created;
pub mod enclosure;
pub mod host;
pub mod left;
pub mod level;
mod same_path;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use self::beneath::Beneath;
pub use self::created::Created;
use self::enclosure::Enclosure;
use self::host::Host;
use self::level::Level;
use self::same_path::Made;
use crate::globs::Globs;
use crate::protocol::{OsText, Refusal, RefusalKind, TreeEntry, TreeNode};
use crate::store::{Claim, remove_all, storage_refusal};

/// Where a client's files lie for its tests. Removed on drop unless it is in place.
pub struct Sandbox {
    place: Place,
}

enum Place {
    Here,
    At(At),
}

struct At {
    /// What is removed in the end.
    dir: PathBuf,
    /// Stands for the client's `/`.
    base: PathBuf,
    host: Arc<Host>,
    /// How the client's paths are recreated: the host's level, or less.
    level: Level,
    /// Folders of this machine that were made for the client's roots.
    _made: Option<Made>,
    /// Without roots that lie in other roots.
    roots: Vec<PathBuf>,
    /// What has been laid out, by the client's paths. Held locked while laying: a file that a test
    /// runs from must not be replaced by its equal in the middle.
    laid: Mutex<BTreeMap<PathBuf, TreeNode>>,
}

impl Sandbox {
    /// The client's files where they are.
    pub fn in_place() -> Self {
        Self { place: Place::Here }
    }

    /// A sandbox in `dir`, an absolute path that doesn't exist yet, for what the client has in
    /// `roots`, on a machine that only translates paths in variables.
    ///
    /// # Errors
    /// As [`Self::on`].
    pub fn at(dir: PathBuf, roots: &[OsText]) -> Result<Self, Refusal> {
        Self::on(Arc::new(Host::plain()), dir, roots)
    }

    /// A sandbox in `dir`, an absolute path that doesn't exist yet, for what the client has in
    /// `roots`, as truly as the host can.
    ///
    /// # Errors
    /// A root is not an absolute path without `..`, or is `/`; or `dir` can't be created.
    pub fn on(host: Arc<Host>, dir: PathBuf, roots: &[OsText]) -> Result<Self, Refusal> {
        let mut outer = Vec::new();
        for root in roots {
            outer.push(plain_absolute(root.as_path())?);
        }
        outer.sort();
        outer.dedup_by(|inner, root| inner.starts_with(root));
        let what = || format!("could not create the sandbox {}", dir.display());
        let fail = |error: io::Error| storage_refusal(what(), &error);
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        // Fails if it exists: all in it is going to be removed.
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(fail)?;
        let made = if host.level == Level::SamePath { Made::make(&outer) } else { None };
        let level = match host.level {
            Level::SamePath if made.is_none() => Level::Variables,
            level => level,
        };
        let base = if made.is_some() { PathBuf::from("/") } else { dir.join("root") };
        let at = At { base, dir, host, level, _made: made, roots: outer, laid: Mutex::default() };
        at.lay_roots().map_err(|error| {
            storage_refusal(format!("could not create {}", at.base.display()), &error)
        })?;
        Ok(Self { place: Place::At(at) })
    }

    /// How the client's paths are recreated. None if they are used where they are.
    pub fn level(&self) -> Option<Level> {
        match &self.place {
            Place::Here => None,
            Place::At(at) => Some(at.level),
        }
    }

    /// Whether what tests write into the client's files lies in layers of its own
    /// ([`changes`]); else [`Self::created`] finds it.
    pub fn discards_writes(&self) -> bool {
        self.level().is_some_and(Level::discards_writes)
    }

    /// The sandbox that tests are to run in, if the level has one. To be entered when what they
    /// need has been laid out.
    pub fn enclosure(&self) -> Option<Enclosure> {
        match &self.place {
            Place::At(at) if at.level.is_enclosed() => Some(at.enclosure()),
            Place::Here | Place::At(_) => None,
        }
    }

    /// Where a path of the client lies for its tests. A path outside all roots is the worker's own
    /// (`/usr/bin/git`) and stays as it is.
    pub fn path(&self, client: &Path) -> PathBuf {
        match &self.place {
            Place::Here => client.to_owned(),
            Place::At(at) => at.path(client),
        }
    }

    /// Where a path of the client lies on this machine's disks, whatever its tests will see.
    pub fn on_disk(&self, client: &Path) -> PathBuf {
        match (&self.place, client.strip_prefix("/")) {
            (Place::At(at), Ok(suffix)) if at.contains(client) => at.base.join(suffix),
            _ => client.to_owned(),
        }
    }

    /// Files that tests have created or changed where they are laid out, if they match: at most
    /// `limit`. None if they are used where they lie.
    pub fn created(&self, globs: &Globs, limit: usize) -> Vec<Created> {
        match &self.place {
            Place::Here => Vec::new(),
            Place::At(at) => {
                let laid = at.laid.lock().unwrap_or_else(PoisonError::into_inner);
                created::find(&at.base, &at.roots, &laid, globs, limit)
            }
        }
    }

    /// A variable's value or an argument with all paths in it translated.
    ///
    /// A root counts where a path begins and one of its components ends: in `/work/proj`,
    /// `/lib:/work/proj/lib`, `--x=/work/proj/a`, `-L/work/proj`, `file:///work/proj`, but not in
    /// `/work/proj-2` or `/old/work/proj`.
    pub fn value(&self, value: &OsStr) -> OsString {
        match &self.place {
            Place::Here => value.to_owned(),
            Place::At(at) => at.value(value.as_bytes()),
        }
    }

    /// Lays out entries of the client's, in the order given: folders, files and links. What is
    /// there already is left alone if it is the same, and replaced if it is not.
    ///
    /// Folders may always be written, whatever their mode says: more may have to be laid into them.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] for an entry that isn't plainly inside a root, or where something
    /// of another kind lies; and as [`Claim::file`] and [`crate::store::Store::copy_to`].
    pub fn lay(&self, claim: &Claim, entries: &[TreeEntry]) -> Result<(), Refusal> {
        match &self.place {
            Place::Here if entries.is_empty() => Ok(()),
            Place::Here => {
                let message = "could not lay out files: they are used where they lie";
                Err(Refusal::new(RefusalKind::Invalid, message))
            }
            Place::At(at) => at.lay(claim, entries),
        }
    }

    /// Makes sure that folders of the client's exist and can be written.
    ///
    /// # Errors
    /// As [`Self::lay`].
    pub fn make_writable(&self, folders: &[OsText]) -> Result<(), Refusal> {
        match &self.place {
            Place::Here => folders.iter().try_for_each(|folder| {
                let folder = folder.as_path();
                let what = || format!("could not create {}", folder.display());
                fs::create_dir_all(folder).map_err(|error| storage_refusal(what(), &error))
            }),
            Place::At(at) => at.make_writable(folders),
        }
    }
}

impl Drop for At {
    fn drop(&mut self) {
        // A leftover of a test may still write into it; the store's scratch folder, where it
        // usually lies, is removed with the process.
        let _ = remove_all(&self.dir);
    }
}

impl At {
    fn lay_roots(&self) -> io::Result<()> {
        if self.level.is_enclosed() {
            fs::create_dir(self.mount_point())?;
        }
        fs::create_dir_all(&self.base)?;
        let below = |root: &PathBuf| self.base.join(root.strip_prefix("/").unwrap_or(root));
        self.roots.iter().try_for_each(|root| fs::create_dir_all(below(root)))
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.join("mount")
    }

    fn enclosure(&self) -> Enclosure {
        let Host { hidden, shown, home, writes_bytes_max, .. } = &*self.host;
        Enclosure {
            level: self.level,
            mount_point: self.mount_point(),
            lower: self.base.clone(),
            roots: self.roots.clone(),
            hidden: hidden.clone(),
            shown: shown.clone(),
            home: home.clone(),
            sockets: Vec::new(),
            writes_bytes_max: *writes_bytes_max,
            check: None,
        }
    }

    fn path(&self, client: &Path) -> PathBuf {
        match client.strip_prefix("/") {
            _ if self.level.recreates_paths() => client.to_owned(),
            Ok(suffix) if self.contains(client) => self.base.join(suffix),
            _ => client.to_owned(),
        }
    }

    fn contains(&self, client: &Path) -> bool {
        self.roots.iter().any(|root| client.starts_with(root))
    }

    fn value(&self, value: &[u8]) -> OsString {
        if self.level.recreates_paths() {
            return OsString::from_vec(value.to_vec());
        }
        let mut out = Vec::with_capacity(value.len());
        let mut rest = 0;
        while let Some(found) = value[rest..].iter().position(|byte| *byte == b'/') {
            let start = rest + found;
            out.extend_from_slice(&value[rest..start]);
            rest = start;
            let root =
                if begins_path(&value[..start]) { self.root_at(&value[start..]) } else { None };
            if let Some(root) = root {
                out.extend_from_slice(self.base.as_os_str().as_bytes());
                out.extend_from_slice(root);
                rest += root.len();
            } else {
                out.push(b'/');
                rest += 1;
            }
        }
        out.extend_from_slice(&value[rest..]);
        OsString::from_vec(out)
    }

    /// The root that `text` begins with, up to the end of a component.
    fn root_at(&self, text: &[u8]) -> Option<&[u8]> {
        let roots = self.roots.iter().map(|root| root.as_os_str().as_bytes());
        roots.into_iter().find(|root| {
            let next = text.strip_prefix(*root).map(<[u8]>::first);
            next.is_some_and(|next| next.is_none_or(|byte| *byte == b'/' || !in_name(*byte)))
        })
    }

    fn lay(&self, claim: &Claim, entries: &[TreeEntry]) -> Result<(), Refusal> {
        let mut beneath = self.beneath()?;
        let mut laid = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        // Folders that their owner may not write into get their permissions when all is in them.
        let mut closed = BTreeMap::new();
        for TreeEntry { path, node } in entries {
            let path = self.checked(path.as_path())?;
            let what = || format!("could not lay out {}", path.display());
            for folder in path.ancestors().skip(1) {
                if let Some(mode) = laid.get(folder).and_then(closed_mode)
                    && closed.insert(folder.to_owned(), mode).is_none()
                {
                    let slot = beneath.slot(folder).map_err(|error| lay_refusal(what(), &error))?;
                    slot.folder(mode).map_err(|error| lay_refusal(what(), &error))?;
                }
            }
            let slot = beneath.slot(&path).map_err(|error| lay_refusal(what(), &error))?;
            // A test may have removed it meanwhile.
            if laid.get(&path) == Some(node) && slot.exists() {
                continue;
            }
            claim.file(node_bytes(node), laid.get(&path).map(node_bytes))?;
            match node {
                TreeNode::Folder { mode } => slot.folder(*mode),
                TreeNode::Link { target } => slot.link(&self.path(target.as_path())),
                TreeNode::File { digest, size, mode } => {
                    let mut refusal = None;
                    let written = slot.file(*mode, |file| {
                        claim.store().copy_to(*digest, *size, file).map_err(|refused| {
                            refusal = Some(refused);
                            io::ErrorKind::Other.into()
                        })
                    });
                    if let Some(Refusal { kind, message, hint }) = refusal {
                        return Err(Refusal {
                            kind,
                            message: format!("{}: {message}", what()),
                            hint,
                        });
                    }
                    written
                }
            }
            .map_err(|error| lay_refusal(what(), &error))?;
            closed.extend(closed_mode(node).map(|mode| (path.clone(), mode)));
            laid.insert(path, node.clone());
        }
        for (path, mode) in closed.iter().rev() {
            let what = || format!("could not lay out {}", path.display());
            let slot = beneath.slot(path).map_err(|error| lay_refusal(what(), &error))?;
            slot.folder_mode(*mode).map_err(|error| lay_refusal(what(), &error))?;
        }
        Ok(())
    }

    fn make_writable(&self, folders: &[OsText]) -> Result<(), Refusal> {
        let mut beneath = self.beneath()?;
        for folder in folders {
            let folder = self.checked(folder.as_path())?;
            let what = || format!("could not create {}", folder.display());
            beneath
                .slot(&folder)
                .and_then(|slot| slot.folder(0o755))
                .map_err(|error| lay_refusal(what(), &error))?;
        }
        Ok(())
    }

    fn beneath(&self) -> Result<Beneath, Refusal> {
        let what = || format!("could not open {}", self.base.display());
        Beneath::open(&self.base).map_err(|error| storage_refusal(what(), &error))
    }

    /// The path, if it is plainly inside a root.
    fn checked(&self, path: &Path) -> Result<PathBuf, Refusal> {
        let path = plain_absolute(path)?;
        if self.contains(&path) {
            return Ok(path);
        }
        let message =
            format!("could not lay out {}: it lies outside the session's folders", path.display());
        Err(Refusal::new(RefusalKind::Invalid, message))
    }
}

/// Bytes in it.
fn node_bytes(node: &TreeNode) -> u64 {
    match node {
        TreeNode::File { size, .. } => *size,
        TreeNode::Folder { .. } | TreeNode::Link { .. } => 0,
    }
}

/// The permissions of a folder that its owner may not use in every way.
fn closed_mode(node: &TreeNode) -> Option<u32> {
    match node {
        TreeNode::Folder { mode } if mode & 0o700 != 0o700 => Some(*mode),
        TreeNode::Folder { .. } | TreeNode::File { .. } | TreeNode::Link { .. } => None,
    }
}

/// An absolute path other than `/`, without `..`, and written in the one plain way.
fn plain_absolute(path: &Path) -> Result<PathBuf, Refusal> {
    let mut components = path.components();
    let absolute = components.next() == Some(Component::RootDir);
    let rest = components.as_path();
    let plain = components.all(|component| matches!(component, Component::Normal(_)));
    if absolute && plain && rest != Path::new("") {
        return Ok(Path::new("/").join(rest));
    }
    let message =
        format!("could not use path {path:?} of the client: it must be absolute and plain");
    Err(Refusal::new(RefusalKind::Invalid, message))
}

/// Whether a path can begin after `before`: at the start, after what can't be part of a path, or
/// right after an option's letter.
fn begins_path(before: &[u8]) -> bool {
    let word = before.iter().rev().take_while(|byte| **byte == b'/' || in_name(**byte)).count();
    let word = &before[before.len() - word..];
    let option = word.starts_with(b"-") && !word.contains(&b'/');
    let scheme = word == b"//" && before.ends_with(b"://");
    word.is_empty() || option || scheme
}

/// Whether a byte is commonly part of a file's name.
fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.+~".contains(&byte) || !byte.is_ascii()
}

/// Errors that a peer's entries cause are told apart from those of this machine's storage.
fn lay_refusal(what: String, error: &io::Error) -> Refusal {
    use io::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidInput | Kind::AlreadyExists => {
            RefusalKind::Invalid
        }
        Kind::NotFound => RefusalKind::Invalid,
        Kind::InvalidFilename | Kind::Unsupported => RefusalKind::Incompatible,
        _ if error.raw_os_error() == Some(libc::ELOOP) => RefusalKind::Invalid,
        _ => return storage_refusal(what, error),
    };
    Refusal::new(kind, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests;
