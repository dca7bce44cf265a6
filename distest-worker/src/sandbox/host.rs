//! How sandboxes are made on this machine, and what must not be seen in them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::level::Level;

/// What one sandbox may write by default, in bytes.
pub const WRITES_BYTES_MAX: u64 = 1 << 30;
/// The home of tests where this user has none.
const NO_HOME: &str = "/home/distest";

/// How sandboxes are made on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The best that is possible.
    pub level: Level,
    /// Why nothing better is, in words, and what to do about it.
    pub shortfall: Option<Shortfall>,
    /// Whether an attempt can have a network of its own; else why not.
    pub private_network: Result<(), Shortfall>,
    /// An empty home for tests.
    pub home: PathBuf,
    /// Folders that are empty in a sandbox.
    pub hidden: Vec<PathBuf>,
    /// Folders that are seen although they lie in hidden ones.
    pub shown: Vec<PathBuf>,
    /// What one sandbox may write, in bytes.
    pub writes_bytes_max: u64,
}

/// Why something is out of reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// What was tried, and what came of it.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Host {
    /// A machine on which nothing is recreated: paths in variables are translated.
    pub fn plain() -> Self {
        Self {
            level: Level::Variables,
            shortfall: None,
            private_network: Err(Shortfall { reason: "nobody has tried".to_owned(), hint: None }),
            home: NO_HOME.into(),
            hidden: Vec::new(),
            shown: Vec::new(),
            writes_bytes_max: WRITES_BYTES_MAX,
        }
    }

    /// This user's machine, as this process's environment tells of it. `own` are folders of the
    /// worker's, such as its store. Its level is yet to be found out.
    pub fn of_this_process(own: &[PathBuf]) -> Self {
        let folder = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = env::home_dir().filter(|home| home.is_absolute() && home != Path::new("/"));
        let mut hidden = own.to_vec();
        hidden.extend(home.clone());
        for name in ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
            for own in ["cargo-distest", "distest"] {
                hidden.extend(folder(name).map(|path| path.join(own)));
            }
        }
        hidden.extend(folder("XDG_RUNTIME_DIR"));
        let user = nix::unistd::geteuid();
        hidden.push(format!("/run/user/{user}").into());
        // Only root could look into other users'.
        hidden.extend(user.is_root().then(|| PathBuf::from("/home")));
        // A folder that holds more than the agent's socket hides too much.
        let agent = folder("SSH_AUTH_SOCK").and_then(|socket| Some(socket.parent()?.to_owned()));
        hidden.extend(agent.filter(|folder| folder.components().count() > 2));
        let path = env::var_os("PATH").unwrap_or_default();
        let mut shown: Vec<_> = env::split_paths(&path).filter(|path| path.is_absolute()).collect();
        // The programs that rustup puts into PATH only stand for those in here.
        let rustup = folder("RUSTUP_HOME").or_else(|| Some(home.as_ref()?.join(".rustup")));
        shown.extend(rustup.map(|folder| folder.join("toolchains")));
        Self {
            home: home.unwrap_or_else(|| NO_HOME.into()),
            hidden: with_real_paths(hidden),
            shown: with_real_paths(shown),
            ..Self::plain()
        }
    }
}

/// Paths and what they lead to, once each: both are names of the same.
fn with_real_paths(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for path in paths {
        // What doesn't exist yet may do so later.
        let real = fs::canonicalize(&path)
            .ok()
            .or_else(|| Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?)));
        for path in [Some(path), real].into_iter().flatten() {
            if path != Path::new("/") && !all.contains(&path) {
                all.push(path);
            }
        }
    }
    all
}
