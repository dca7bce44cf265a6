//! The folder with a user's keys and whom they trust.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::key::{KeyError, PrivateKey, PublicKey};

/// The most bytes of any of these files.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `~/.config/distest`, or below `$XDG_CONFIG_HOME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder(PathBuf);

/// Why a key or a list of keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no place for it.
    #[error("could not find a folder for keys: this user has no home")]
    NoFolder,
    /// Someone else could read or change it.
    #[error("{} is not safe: {why}", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Who could do what.
        why: String,
        /// What to do.
        hint: String,
    },
    /// It is something else than a file.
    #[error("could not read {}: it is {what}, not a file", path.display())]
    NoFile {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It is no key.
    #[error("could not read the key {}: {error}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: KeyError,
    },
    /// A key that was to be removed is named by it all the same.
    #[error("{key} was removed from {}, which still names it", path.display())]
    StillThere {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: PublicKey,
    },
    /// Reading or writing failed.
    #[error("could not {what} {}: {error}", path.display())]
    Io {
        /// Doing what.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl IdentityError {
    /// What to do.
    pub fn hint(&self) -> String {
        match self {
            Self::NoFolder => "set HOME or XDG_CONFIG_HOME, or name a key".to_owned(),
            Self::Exposed { hint, .. } => hint.clone(),
            Self::Malformed { path, .. } => {
                format!("move {} away; a new key is made on the next use", path.display())
            }
            Self::NoFile { path, .. } => {
                format!("put a file in place of {}, or name another one", path.display())
            }
            Self::StillThere { path, .. } => {
                format!("look whether somebody else writes {}, and do it again", path.display())
            }
            Self::Io { path, .. } => format!("check the permissions of {}", path.display()),
        }
    }
}

impl Folder {
    /// This user's. None without a home.
    pub fn of_user() -> Option<Self> {
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        let config = config.filter(|path| path.is_absolute());
        let config = config.or_else(|| Some(std::env::home_dir()?.join(".config")))?;
        Some(Self(config.join("distest")))
    }

    /// Some folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The client's private key.
    pub fn client_key(&self) -> PathBuf {
        self.0.join("key")
    }

    /// The worker's private key.
    pub fn worker_key(&self) -> PathBuf {
        self.0.join("worker-key")
    }

    /// A registry's private key.
    pub fn registry_key(&self) -> PathBuf {
        self.0.join("registry-key")
    }

    /// Whom a worker lets in.
    pub fn authorized_keys(&self) -> PathBuf {
        self.0.join("authorized_keys")
    }

    /// Which workers a client knows.
    pub fn known_workers(&self) -> PathBuf {
        self.0.join("known_workers")
    }
}

/// Where the public half of a private key lies.
pub(super) fn public_path(private: &Path) -> PathBuf {
    let mut name = private.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

impl PrivateKey {
    /// The key in a file, made on first use. Its public half lies beside it, as `NAME.pub`.
    ///
    /// # Errors
    /// Others can read it, it is none, or it can't be read or written.
    pub fn load_or_make(path: &Path) -> Result<Self, IdentityError> {
        if let Some(key) = Self::load(path)? {
            return Ok(key);
        }
        let malformed = |error| IdentityError::Malformed { path: path.to_owned(), error };
        let key = Self::generate().map_err(malformed)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let failed = |what| move |error| io_error(what, path, error);
        make_folder(folder).map_err(failed("make the folder of"))?;
        let mut file = tempfile::Builder::new()
            .prefix(".key-")
            .tempfile_in(folder)
            .map_err(failed("write"))?;
        // tempfile makes files that only we can read.
        file.write_all(key.pem().as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed("write"))?;
        match file.persist_noclobber(path) {
            Ok(_) => {}
            // Another process was quicker: its key is the key.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                return Self::load(path)?.ok_or_else(|| io_error("read", path, error.error));
            }
            Err(error) => return Err(io_error("write", path, error.error)),
        }
        key.write_public(path)?;
        Ok(key)
    }

    /// The key in a file, if there is one.
    ///
    /// # Errors
    /// Others can read it, it is none, or it can't be read.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(text) = read(path, Exposure::Secret)? else { return Ok(None) };
        let malformed = |error| IdentityError::Malformed { path: path.to_owned(), error };
        let key: Self = text.parse().map_err(malformed)?;
        if PublicKey::load(path) != Some(key.public()) {
            // Lost, or of another key.
            key.write_public(path)?;
        }
        Ok(Some(key))
    }

    fn write_public(&self, path: &Path) -> Result<(), IdentityError> {
        replace(&public_path(path), &format!("{}\n", self.public()), 0o644)
    }
}

impl PublicKey {
    /// The public half of the key in the file `private`, without reading that. None if it isn't
    /// there, or others could have written it.
    pub fn load(private: &Path) -> Option<Self> {
        read(&public_path(private), Exposure::Public).ok()??.trim().parse().ok()
    }
}

/// What others may do with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exposure {
    /// Nothing.
    Secret,
    /// Read it.
    Public,
}

/// A file's text; none if there is no such file. Waits for nobody, whatever lies there.
pub(super) fn read(path: &Path, exposure: Exposure) -> Result<Option<String>, IdentityError> {
    // A pipe is opened without waiting for whoever writes to it, a terminal without becoming ours.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(io_error("read", path, error)),
    };
    let about = file.metadata().map_err(|error| io_error("read", path, error))?;
    if let Some(what) = other_than_file(about.file_type()) {
        return Err(IdentityError::NoFile { path: path.to_owned(), what });
    }
    let exposed = |why: String, hint: String| {
        Err(IdentityError::Exposed { path: path.to_owned(), why, hint })
    };
    let us = nix::unistd::geteuid().as_raw();
    if about.uid() != us && about.uid() != 0 {
        return exposed(
            format!("it belongs to user {}", about.uid()),
            format!("make it this user's: chown {us} {}", path.display()),
        );
    }
    let (forbidden, others_can, mode) = match exposure {
        Exposure::Secret => (0o077, "read or change", "600"),
        Exposure::Public => (0o022, "change", "644"),
    };
    if about.mode() & forbidden != 0 {
        return exposed(
            format!("others can {others_can} it (mode {:o})", about.mode() & 0o777),
            format!("chmod {mode} {}", path.display()),
        );
    }
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| io_error("read", path, error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let error = io::Error::other("it has more than 1 MiB");
        return Err(io_error("read", path, error));
    }
    Ok(Some(text))
}

/// What something is that is no file.
fn other_than_file(kind: fs::FileType) -> Option<&'static str> {
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_dir() => Some("a folder"),
        _ if kind.is_fifo() => Some("a pipe"),
        _ => Some("a device"),
    }
}

/// Adds a line to a list, or makes the list. Lines that begin with the same key are replaced: `make`
/// gets the last of them, which is the one that counts.
pub(super) fn add_line(
    path: &Path,
    key: &PublicKey,
    make: impl FnOnce(Option<&str>) -> String,
) -> Result<(), IdentityError> {
    let key = key.to_string();
    let of_key = |line: &str| line.split_whitespace().next() == Some(&key);
    let without = |line: &str| of_key(line).then(String::new);
    edit(path, without, |last| Some(make(last))).map(|_| ())
}

/// Puts what `other` makes of a line in its place, or nothing if that is empty, and adds a line at
/// the end; answers whether a line was another.
pub(super) fn rewrite(
    path: &Path,
    other: impl Fn(&str) -> Option<String>,
    add: Option<String>,
) -> Result<bool, IdentityError> {
    edit(path, other, |_| add)
}

fn edit(
    path: &Path,
    other: impl Fn(&str) -> Option<String>,
    make: impl FnOnce(Option<&str>) -> Option<String>,
) -> Result<bool, IdentityError> {
    if let Some(folder) = path.parent() {
        make_folder(folder).map_err(|error| io_error("make the folder of", path, error))?;
    }
    let _lock = lock(path)?;
    let old = read(path, Exposure::Public)?.unwrap_or_default();
    let mut new = String::with_capacity(old.len());
    let mut last = None;
    for line in old.lines() {
        let other = other(line);
        last = other.as_ref().map(|_| line).or(last);
        match other.as_deref().unwrap_or(line) {
            "" if other.is_some() => {}
            line => new.extend([line, "\n"]),
        }
    }
    if let Some(line) = make(last) {
        new.extend([line.as_str(), "\n"]);
    }
    if new != old {
        replace(path, &new, 0o600)?;
    }
    Ok(last.is_some())
}

/// Two processes that edit a list at once must not undo each other's work.
fn lock(path: &Path) -> Result<nix::fcntl::Flock<File>, IdentityError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = File::open(folder).map_err(|error| io_error("lock", folder, error))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, error)| io_error("lock", folder, error.into()))
}

/// Writes a file whole or not at all.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let file = tempfile::Builder::new().prefix(".new-").make_in(folder, |path| {
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
        })?;
        file.as_file().write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    };
    write().map(|_| ()).map_err(|error| io_error("write", path, error))
}

fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

fn io_error(what: &'static str, path: &Path, error: io::Error) -> IdentityError {
    IdentityError::Io { what, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_nobody_else_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distest/key");
        let key = PrivateKey::load_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(PrivateKey::load_or_make(&path).unwrap().public(), key.public());
        assert_eq!(PublicKey::load(&path), Some(key.public()));
        // A public half that is not of this key is put right.
        fs::write(public_path(&path), PrivateKey::generate().unwrap().public().to_string())
            .unwrap();
        PrivateKey::load(&path).unwrap().unwrap();
        assert_eq!(PublicKey::load(&path), Some(key.public()));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "no file besides");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        PrivateKey::load_or_make(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = PrivateKey::load_or_make(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { .. }), "{error}");
            assert!(error.hint().starts_with("chmod 600 "), "{}", error.hint());
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "nonsense").unwrap();
        let error = PrivateKey::load_or_make(&path).unwrap_err();
        assert!(matches!(error, IdentityError::Malformed { .. }), "{error}");
        let public = public_path(&path);
        fs::set_permissions(&public, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(PublicKey::load(&path), None, "others could have written it");
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting_for_anybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (path, what) in [(path.as_path(), "a pipe"), (folder.path(), "a folder")] {
            for error in [
                read(path, Exposure::Public).unwrap_err(),
                PrivateKey::load_or_make(path).unwrap_err(),
            ] {
                let expected = format!("{}: it is {what}, not a file", path.display());
                assert!(error.to_string().contains(&expected), "{error}");
            }
        }
        nix::unistd::mkfifo(&public_path(&path), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(PublicKey::load(&path), None);
        let list = folder.path().join("list");
        nix::unistd::mkfifo(&list, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let key = PrivateKey::generate().unwrap().public();
        assert!(
            add_line(&list, &key, |_| String::new()).unwrap_err().hint().contains("in place of")
        );
    }

    #[test]
    fn lines_are_added_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/list");
        let [a, b] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let add = |key, made: &str, before: Option<&str>| {
            let make = |last: Option<&str>| {
                assert_eq!(last, before);
                made.to_owned()
            };
            add_line(&path, key, make).unwrap();
        };
        let [one, two, three] =
            [(a, "one"), (b, "two"), (a, "three")].map(|(k, n)| format!("{k} {n}"));
        add(&a, &one, None);
        add(&b, &two, None);
        add(&a, &three, Some(&one));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{b} two\n{a} three\n"));
        let without_b = |line: &str| line.starts_with(&b.to_string()).then(String::new);
        assert!(rewrite(&path, without_b, None).unwrap());
        assert!(!rewrite(&path, without_b, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{a} three\n"));
    }
}
