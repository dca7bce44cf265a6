//! Asking git which files a folder has.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

/// Mode of a submodule in the index.
const GITLINK: &[u8] = b"160000";
/// Variables that tie git to one repository, as it sets them for hooks
/// (`git rev-parse --local-env-vars`).
const LOCAL_VARIABLES: [&str; 9] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
];

/// What git says lies in a folder, by paths relative to it.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Tracked, ignored or not. They needn't exist.
    pub(super) files: Vec<OsString>,
    /// Tracked repositories.
    pub(super) submodules: Vec<OsString>,
    /// Neither tracked nor ignored.
    pub(super) untracked: Vec<OsString>,
    /// Repositories that are neither tracked nor ignored.
    pub(super) nested: Vec<OsString>,
    /// Folders that git could not read.
    pub(super) warnings: Vec<String>,
}

/// Why git doesn't say.
#[derive(Debug)]
pub(super) enum Problem {
    /// There is no repository, or no git to read it.
    NoRepository,
    /// There is a repository that git can't or won't read, with git's words.
    Refused(String),
}

/// What git says lies in `dir`, which may be any folder of a repository.
pub(super) fn list(dir: &Path) -> Result<Listing, Problem> {
    let (cached, others) = thread::scope(|scope| {
        let cached = scope.spawn(|| ls_files(dir, &["--cached", "--stage"]));
        let others = ls_files(dir, &["--others", "--exclude-standard"]);
        let cached = cached.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (cached, others)
    });
    let (cached, others) = (accept(dir, cached)?, accept(dir, others)?);
    let mut listing = Listing::default();
    for record in records(&cached.stdout) {
        // `MODE HASH STAGE<tab>PATH`; a conflict has up to three stages.
        let mut parts = record.splitn(2, |byte| *byte == b'\t');
        let (Some(stage), Some(path)) = (parts.next(), parts.next()) else { continue };
        let gitlink = stage.starts_with(GITLINK);
        let list = if gitlink { &mut listing.submodules } else { &mut listing.files };
        list.push(OsStr::from_bytes(path).to_owned());
    }
    listing.submodules.dedup();
    for record in records(&others.stdout) {
        match record.strip_suffix(b"/") {
            Some(path) => listing.nested.push(OsStr::from_bytes(path).to_owned()),
            None => listing.untracked.push(OsStr::from_bytes(record).to_owned()),
        }
    }
    let stderr = String::from_utf8_lossy(&others.stderr);
    let warnings = stderr.lines().filter_map(|line| line.strip_prefix("warning: "));
    listing.warnings = warnings.map(str::to_owned).collect();
    Ok(listing)
}

/// Which of these paths in a repository it ignores. None if it doesn't say.
pub(super) fn ignored(repository: &Path, paths: &[&Path]) -> Option<BTreeSet<PathBuf>> {
    let mut git = git_in(repository);
    git.args(["check-ignore", "-z", "--stdin"]).stdin(Stdio::piped());
    let mut git = git.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let stdin = git.stdin.take();
    let output = thread::scope(|scope| {
        // It answers while it is being asked.
        scope.spawn(move || {
            let mut stdin = BufWriter::new(stdin?);
            for path in paths {
                let path = path.strip_prefix(repository).ok()?.as_os_str().as_bytes();
                // Nor is a name that begins with a colon a pattern then.
                let record = [b"./", path, b"\0"];
                record.iter().try_for_each(|part| stdin.write_all(part)).ok()?;
            }
            stdin.flush().ok()
        });
        git.wait_with_output()
    });
    let output = output.ok()?;
    let absolute = |path| {
        let path = Path::new(OsStr::from_bytes(path));
        repository.join(path.strip_prefix(".").unwrap_or(path))
    };
    // 1: none of them.
    matches!(output.status.code(), Some(0 | 1))
        .then(|| records(&output.stdout).map(absolute).collect())
}

impl Listing {
    /// Whether a file right in the folder is tracked, or would be.
    pub(super) fn has_file(&self, name: &str) -> bool {
        self.files.iter().chain(&self.untracked).any(|path| path == name)
    }
}

fn ls_files(dir: &Path, args: &[&str]) -> io::Result<Output> {
    git_in(dir).args(["ls-files", "-z"]).args(args).output()
}

fn git_in(dir: &Path) -> Command {
    let mut git = Command::new("git");
    for variable in LOCAL_VARIABLES {
        git.env_remove(variable);
    }
    git.arg("-C").arg(dir).env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0").stdin(Stdio::null());
    git
}

fn accept(dir: &Path, output: io::Result<Output>) -> Result<Output, Problem> {
    let output = match output {
        Ok(output) => output,
        Err(error) if !dir.join(".git").exists() => {
            let _ = error;
            return Err(Problem::NoRepository);
        }
        Err(error) => return Err(Problem::Refused(format!("could not run git: {error}"))),
    };
    if output.status.success() {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("not a git repository") {
        return Err(Problem::NoRepository);
    }
    let mut words = stderr.lines().find(|line| !line.is_empty()).unwrap_or("no reason").to_owned();
    if stderr.contains("dubious ownership") {
        words += &format!(" (`git config --global --add safe.directory {}`)", dir.display());
    }
    Err(Problem::Refused(words))
}

fn records(stdout: &[u8]) -> impl Iterator<Item = &[u8]> {
    stdout.split(|byte| *byte == 0).filter(|record| !record.is_empty())
}
