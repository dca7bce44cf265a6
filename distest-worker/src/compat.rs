//! Whether an executable can be loaded here, found out before a test's verdict depends on it.
//!
//! As the loader does it (`man 8 ld.so`): a library is looked for in `DT_RPATH`, `LD_LIBRARY_PATH`,
//! `DT_RUNPATH`, `/etc/ld.so.cache` and the standard folders; every symbol version that a file
//! needs of a library must be defined there. What is loaded later by hand (`dlopen`) can't be known.

pub mod elf;

mod cache;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use object::ReadCache;

use self::elf::{Elf, Kind};
use crate::lexical;

/// Libraries of one executable, all together, at most.
const LIBRARIES_MAX: usize = 2000;
/// Where libraries are looked for in the end. What doesn't exist is passed over, as is what is made
/// for another kind of machine.
const STANDARD: [&str; 10] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
];

/// What can be loaded here.
pub struct Loader<'a> {
    /// `LD_LIBRARY_PATH` of the process.
    pub library_path: Vec<PathBuf>,
    /// Where a path that the process will see lies now.
    pub on_disk: &'a dyn Fn(&Path) -> PathBuf,
}

/// A library's needs, and where they come from.
struct Loaded {
    path: PathBuf,
    elf: Elf,
}

impl Loader<'_> {
    /// Looks up everything that `program` needs to start.
    ///
    /// # Errors
    /// In words: what is missing. What is no ELF file is nobody's business here.
    pub fn check(&self, program: &Path) -> Result<(), String> {
        let Some(elf) = read(&(self.on_disk)(program)) else { return Ok(()) };
        let Some(interpreter) = &elf.interpreter else { return Ok(()) };
        if !(self.on_disk)(interpreter).exists() {
            return Err(format!(
                "it needs the loader {}, which is not here",
                interpreter.display()
            ));
        }
        let mut seen = BTreeSet::new();
        let main = Loaded { path: program.to_owned(), elf };
        let kind = main.elf.kind;
        let rpath = own_folders(&main, &main.elf.rpath);
        let mut waiting = vec![main];
        let mut found: BTreeMap<String, Elf> = BTreeMap::new();
        let mut wanted: Vec<(String, String, BTreeSet<String>)> = Vec::new();
        while let Some(file) = waiting.pop() {
            for name in &file.elf.needed {
                if !seen.insert(name.clone()) || seen.len() > LIBRARIES_MAX {
                    continue;
                }
                let library = self.find(name, &file, &rpath, kind).ok_or_else(|| {
                    let by = shown(&file.path);
                    format!("{by} needs the library {name}, which is not installed here")
                })?;
                found.insert(name.clone(), library.elf.clone());
                waiting.push(library);
            }
            let by = shown(&file.path);
            for (library, versions) in file.elf.versions {
                wanted.push((by.clone(), library, versions));
            }
        }
        for (by, library, versions) in wanted {
            // One that names no versions satisfies all, as for the loader.
            let Some(elf) = found.get(&library).filter(|elf| !elf.defines.is_empty()) else {
                continue;
            };
            let missing: Vec<_> = versions.difference(&elf.defines).map(String::as_str).collect();
            if let Some(newest) = missing.last() {
                return Err(format!(
                    "{by} needs version {newest} of {library}, which is older here: it was built \
                     against a newer system"
                ));
            }
        }
        Ok(())
    }

    fn find(&self, name: &str, by: &Loaded, rpath: &[PathBuf], kind: Kind) -> Option<Loaded> {
        let fits = |path: PathBuf| {
            // What a `..` leaves need not be laid out yet.
            let look = |path: &Path| read(&(self.on_disk)(path)).filter(|elf| elf.kind == kind);
            let elf = look(&path).or_else(|| look(&without_parents(&path)?))?;
            Some(Loaded { path, elf })
        };
        if name.contains('/') {
            return fits(name.into());
        }
        let (own_rpath, main_rpath) = match by.elf.runpath.is_empty() {
            true => (own_folders(by, &by.elf.rpath), rpath),
            false => (Vec::new(), &[][..]),
        };
        let own = own_rpath.iter().chain(main_rpath).chain(&self.library_path).cloned();
        let own = own.chain(own_folders(by, &by.elf.runpath));
        let cached = known_libraries().get(name).into_iter().flatten().cloned();
        let standard = STANDARD.iter().map(|folder| Path::new(folder).join(name));
        own.map(|folder| folder.join(name)).chain(cached).chain(standard).find_map(fits)
    }
}

/// Which of these libraries are nowhere that a loader looks by itself, in the kind that this process
/// is made of.
pub fn lacking(names: Vec<String>) -> Vec<String> {
    let Some(own) = own_kind() else { return Vec::new() };
    let fits = |path: &Path| read(path).is_some_and(|elf| elf.kind == own);
    let is_lacking = |name: &String| {
        let cached = known_libraries().get(name).into_iter().flatten();
        let standard = STANDARD.iter().map(|folder| Path::new(folder).join(name));
        // A path would be looked for as it is, not in these folders.
        name.contains('/') || !(cached.cloned().chain(standard).any(|path| fits(&path)))
    };
    names.into_iter().filter(is_lacking).collect()
}

/// What this process is made of.
fn own_kind() -> Option<Kind> {
    static OWN: OnceLock<Option<Kind>> = OnceLock::new();
    *OWN.get_or_init(|| read(Path::new("/proc/self/exe")).map(|elf| elf.kind))
}

/// Folders that a file names, with `$ORIGIN` put in.
fn own_folders(file: &Loaded, folders: &[String]) -> Vec<PathBuf> {
    let origin = file.path.parent().unwrap_or(Path::new("/")).to_string_lossy();
    let put_in = |folder: &String| {
        PathBuf::from(folder.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
    };
    folders.iter().map(put_in).collect()
}

/// By its words alone, without `..`; none if there is none.
fn without_parents(path: &Path) -> Option<PathBuf> {
    path.components().find(|component| *component == Component::ParentDir)?;
    Some(lexical::plain(path))
}

fn read(path: &Path) -> Option<Elf> {
    // Reads a few pages, however large the file is.
    let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|it| it.is_file()))?;
    Elf::parse(&ReadCache::new(file))
}

/// The loader's cache, as it was when it was first needed.
fn known_libraries() -> &'static BTreeMap<String, Vec<PathBuf>> {
    static KNOWN: OnceLock<BTreeMap<String, Vec<PathBuf>>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        fs::read("/etc/ld.so.cache").map(|bytes| cache::parse(&bytes)).unwrap_or_default()
    })
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
