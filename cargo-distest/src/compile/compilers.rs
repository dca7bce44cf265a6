//! What compilers said of themselves, so that each is asked once.
//!
//! Starting a compiler to ask for its host costs more than a quick run takes to finish. An answer is
//! remembered only of a compiler that lies in the sysroot it names: its file then decides what it
//! answers. A wrapper or a proxy may answer differently in another folder, and is asked each time.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::model::Triple;
use crate::stamp::Stamp;

/// More compilers than these are not remembered.
const COMPILERS_MAX: usize = 64;
/// A larger file is not ours, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Answers by the compiler's path.
#[derive(Debug)]
pub(super) struct Compilers {
    path: Option<PathBuf>,
    known: BTreeMap<PathBuf, Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    file: Stamp,
    host: String,
    sysroot: PathBuf,
}

impl Compilers {
    /// What this user's cache folder knows; nothing if it has none, or one that can't be read.
    pub(super) fn open() -> Self {
        let cache = etcetera::base_strategy::Xdg::new().ok().map(|base| base.cache_dir());
        Self::at(cache.map(|cache| cache.join("cargo-distest/compilers.json")))
    }

    fn at(path: Option<PathBuf>) -> Self {
        let small = |path: &&PathBuf| fs::metadata(path).is_ok_and(|it| it.len() <= FILE_BYTES_MAX);
        let bytes = path.as_ref().filter(small).and_then(|path| fs::read(path).ok());
        let known = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, known: known.unwrap_or_default() }
    }

    /// What the compiler at an absolute path would answer.
    pub(super) fn answer(&self, rustc: &Path) -> Option<(Triple, PathBuf)> {
        let Answer { file, host, sysroot } = self.known.get(rustc)?;
        let unchanged = stamp(rustc).is_ok_and(|now| now == *file);
        unchanged.then(|| (Triple::new(host.as_str()), sysroot.clone()))
    }

    /// Keeps an answer, if the compiler's file alone decides it. Not being able to costs the next
    /// run a question.
    pub(super) fn remember(&mut self, rustc: &Path, host: &Triple, sysroot: &Path) {
        let own = sysroot.join("bin").join(rustc.file_name().unwrap_or(OsStr::new("rustc")));
        let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
        if same(&own, rustc) != Some(true) {
            return;
        }
        let Ok(file) = stamp(rustc) else { return };
        let answer = Answer { file, host: host.0.to_string(), sysroot: sysroot.to_owned() };
        self.known.retain(|path, _| path.exists());
        self.known.insert(rustc.to_owned(), answer);
        if self.known.len() <= COMPILERS_MAX {
            let _ = self.save();
        }
    }

    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut temp = tempfile::NamedTempFile::new_in(folder)?;
        temp.write_all(&serde_json::to_vec(&self.known)?)?;
        temp.persist(path)?;
        Ok(())
    }
}

fn stamp(file: &Path) -> io::Result<Stamp> {
    fs::metadata(file).map(|metadata| Stamp::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysroot with a compiler, and where answers are kept.
    fn bench() -> (tempfile::TempDir, PathBuf, PathBuf, Option<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let sysroot = dir.path().join("toolchain");
        let rustc = sysroot.join("bin/rustc");
        fs::create_dir_all(sysroot.join("bin")).unwrap();
        fs::write(&rustc, "first").unwrap();
        let cache = Some(dir.path().join("new/compilers.json"));
        (dir, sysroot, rustc, cache)
    }

    #[test]
    fn a_compiler_is_known_until_its_file_changes() {
        let (_dir, sysroot, rustc, cache) = bench();
        let host = Triple::new("x86_64-unknown-linux-gnu");
        Compilers::at(cache.clone()).remember(&rustc, &host, &sysroot);
        let known = Compilers::at(cache.clone());
        assert_eq!(known.answer(&rustc), Some((host, sysroot)));
        assert_eq!(known.answer(&rustc.with_file_name("other")), None);
        fs::write(&rustc, "updated").unwrap();
        assert_eq!(Compilers::at(cache).answer(&rustc), None);
    }

    #[test]
    fn what_lies_outside_of_its_sysroot_is_asked_each_time() {
        let (dir, sysroot, _rustc, cache) = bench();
        let wrapper = dir.path().join("rustc");
        fs::write(&wrapper, "wrapper").unwrap();
        Compilers::at(cache.clone()).remember(&wrapper, &Triple::new("any"), &sysroot);
        assert_eq!(Compilers::at(cache).answer(&wrapper), None);
    }

    #[test]
    fn a_spoilt_file_is_as_good_as_none() {
        let (_dir, sysroot, rustc, cache) = bench();
        let path = cache.clone().unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "{\"/a\": 1").unwrap();
        let mut compilers = Compilers::at(cache.clone());
        assert_eq!(compilers.answer(&rustc), None);
        compilers.remember(&rustc, &Triple::new("any"), &sysroot);
        assert!(Compilers::at(cache).answer(&rustc).is_some());
    }
}
