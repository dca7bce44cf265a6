//! What each of several attempts leaves for the client in a layer that they share: files that it
//! wants to have, and whether one attempt overwrote another's.
//!
//! One look when an attempt has ended and before the next begins. It costs a few system calls where
//! nothing was created and nothing known has changed.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::changes::{Change, ChangeKind, Stamp, Written};
use crate::digest::Digest;
use crate::globs::Globs;

/// A layer with more changes is no place for another attempt: each look costs that many steps.
const FOLLOWED_MAX: usize = 1_000;
/// With more known files and folders one looks at once instead of asking whether to.
const ASKED_MAX: usize = 32;
/// A file system's clock may stand still for this long.
const CLOCK_STEP: Duration = Duration::from_millis(20);
/// Larger files are not compared with what they were, in bytes.
const COMPARED_BYTES_MAX: u64 = 16 << 20;

/// Which files a client wants to have.
#[derive(Debug)]
pub struct Wanted {
    globs: Globs,
    roots: Vec<PathBuf>,
}

/// A file that an attempt left or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The client's path of it.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// What it held then. None for a file that is too long to be compared.
    pub digest: Option<Digest>,
    /// It began with all that was there before.
    pub adds: bool,
}

/// Follows the attempts of one layer.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    /// Folders in which something was written; the first is the layer itself.
    folders: BTreeMap<PathBuf, Stamp>,
    /// Wanted files.
    files: BTreeMap<PathBuf, Seen>,
    /// What was changed just before the last look may be changed again without a trace.
    restless: bool,
    /// Not for another attempt.
    pub(crate) spent: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: Stamp,
    size: u64,
    digest: Option<Digest>,
    restless: bool,
}

impl Wanted {
    /// Files below `roots` that match; relative patterns start at each root.
    pub fn new(globs: Globs, roots: Vec<PathBuf>) -> Self {
        Self { globs, roots }
    }

    /// The patterns.
    pub fn globs(&self) -> &Globs {
        &self.globs
    }

    /// Whether the client wants the file at this path.
    pub fn holds(&self, path: &Path) -> bool {
        let root = self.roots.iter().find(|root| path.starts_with(root));
        root.is_some_and(|root| self.globs.matches(path, path.strip_prefix(root).ok()))
    }
}

impl Follower {
    /// Follows from now on, in a layer that nobody has written into.
    pub(crate) fn of(written: &Written) -> Self {
        let root = PathBuf::from("/");
        let stamp = written.stamp(&root);
        Self { folders: stamp.map(|stamp| (root, stamp)).into_iter().collect(), ..Self::default() }
    }

    /// Whether to look: something came or went, or a known file changed.
    pub(crate) fn is_due(&self, written: &Written) -> bool {
        let known = self.folders.len() + self.files.len();
        if known == 0 || known > ASKED_MAX || self.restless {
            return true;
        }
        let folders = self.folders.iter().map(|(path, stamp)| (path, *stamp));
        let files = self.files.iter().map(|(path, seen)| (path, seen.stamp));
        !folders.chain(files).all(|(path, stamp)| written.stamp(path) == Some(stamp))
    }

    /// Files that were left or changed since the last look, which was before `now`. Blocks on the
    /// disk.
    pub(crate) fn look(
        &mut self,
        written: &Written,
        wanted: &Wanted,
        now: SystemTime,
    ) -> Vec<Left> {
        let folders = Self::of(written).folders;
        let Ok(changes) = written.list() else {
            // More than can be listed. Nobody is to add to it.
            self.spent = true;
            return Vec::new();
        };
        self.spent |= changes.len() > FOLLOWED_MAX;
        self.folders = folders;
        self.restless = false;
        let known = std::mem::take(&mut self.files);
        let mut left = Vec::new();
        for Change { path, kind, stamp } in changes {
            let restless = stamp.is_within(CLOCK_STEP, now);
            self.restless |= restless;
            let (size, mode) = match kind {
                ChangeKind::File { size, mode } if wanted.holds(&path) => (size, mode),
                ChangeKind::Folder => {
                    self.folders.insert(path, stamp);
                    continue;
                }
                _ => continue,
            };
            let before = known.get(&path);
            let same = |seen: &&Seen| seen.stamp == stamp && seen.size == size;
            if let Some(seen) = before.filter(same).filter(|seen| !seen.restless) {
                self.files.insert(path, *seen);
                continue;
            }
            // What can't be read is not compared.
            let (digest, adds) = compare(written, &path, size, before).unwrap_or_default();
            let unchanged = before.filter(same).is_some_and(|seen| seen.digest == digest);
            self.files.insert(path.clone(), Seen { stamp, size, digest, restless });
            if !unchanged {
                left.push(Left { path, mode, digest, adds });
            }
        }
        left
    }
}

/// What a file holds, and whether it begins with what was there before.
fn compare(
    written: &Written,
    path: &Path,
    size: u64,
    before: Option<&Seen>,
) -> io::Result<(Option<Digest>, bool)> {
    if size > COMPARED_BYTES_MAX {
        return Ok((None, false));
    }
    let begins = match before {
        Some(Seen { size: old, digest: Some(old_digest), .. }) if *old <= size => {
            let (digest, length) = Digest::of_reader(written.open(path)?.take(*old))?;
            length == *old && digest == *old_digest
        }
        _ => false,
    };
    let (digest, _) = Digest::of_reader(written.open(path)?.take(COMPARED_BYTES_MAX))?;
    Ok((Some(digest), begins))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;

    use super::*;

    #[test]
    fn each_look_finds_what_came_since_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let proj = dir.path().join("work/proj");
        fs::create_dir_all(&proj).unwrap();
        let written = Written::new(File::open(dir.path()).unwrap().into());
        let wanted = Wanted::new(Globs::new(["*.out"]).unwrap(), vec!["/work/proj".into()]);
        let mut follower = Follower::of(&written);
        let mut look = || -> Vec<(String, Option<Digest>, bool)> {
            let left = follower.look(&written, &wanted, SystemTime::now()).into_iter();
            let name =
                |left: &Left| left.path.strip_prefix("/work/proj").unwrap().display().to_string();
            left.map(|left| (name(&left), left.digest, left.adds)).collect()
        };
        let said = |text: &str| Some(Digest::of(text.as_bytes()));
        fs::write(proj.join("a.out"), "one").unwrap();
        fs::write(proj.join("a.other"), "one").unwrap();
        fs::write(dir.path().join("work/b.out"), "outside").unwrap();
        assert_eq!(look(), [("a.out".to_owned(), said("one"), false)]);
        assert_eq!(look(), []);
        let mut file = File::options().append(true).open(proj.join("a.out")).unwrap();
        file.write_all(b" more").unwrap();
        assert_eq!(look(), [("a.out".to_owned(), said("one more"), true)]);
        fs::write(proj.join("a.out"), "other").unwrap();
        assert_eq!(look(), [("a.out".to_owned(), said("other"), false)]);
    }

    #[test]
    fn what_came_went_or_changed_makes_a_look_due_and_much_makes_it_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let written = Written::new(File::open(dir.path()).unwrap().into());
        let wanted = Wanted::new(Globs::new(["*"]).unwrap(), vec!["/".into()]);
        let later = || SystemTime::now() + 2 * CLOCK_STEP;
        assert!(Follower::default().is_due(&written), "nothing is known");
        let mut follower = Follower::of(&written);
        assert!(!follower.is_due(&written));
        for change in [
            &|| fs::write(at("a"), "one").unwrap() as (),
            &|| fs::write(at("a"), "three").unwrap(),
            &|| fs::create_dir(at("d")).unwrap(),
            &|| fs::write(at("d/b"), "one").unwrap(),
            // As much comes as goes.
            &|| fs::remove_file(at("d/b")).and_then(|()| fs::write(at("d/c"), "two")).unwrap(),
        ] as [&dyn Fn(); 5]
        {
            change();
            assert!(follower.is_due(&written));
            follower.look(&written, &wanted, later());
            assert!(!follower.is_due(&written) && !follower.spent);
        }
        follower.look(&written, &wanted, SystemTime::now());
        assert!(follower.is_due(&written), "it may have changed again at the same time");
        for number in 0..FOLLOWED_MAX {
            fs::write(at(&number.to_string()), "").unwrap();
        }
        assert_eq!(follower.look(&written, &wanted, later()).len(), FOLLOWED_MAX);
        assert!(follower.spent);
    }
}
