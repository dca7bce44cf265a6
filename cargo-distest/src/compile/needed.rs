//! What an executable asks for: shared libraries of the dynamic loader, a C library, cargo.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use aho_corasick::AhoCorasick;
use distest_worker::compat::elf::Elf;
use object::ReadCache;

/// File names of the libraries that `file` names itself (`DT_NEEDED`); empty for anything but ELF.
pub(crate) fn libraries(file: &Path) -> BTreeSet<String> {
    read(file).map(|elf| elf.needed.into_iter().collect()).unwrap_or_default()
}

/// The oldest glibc that `file` runs with.
pub(super) fn glibc(file: &Path) -> Option<(u32, u32)> {
    read(file)?.glibc()
}

/// Whether a name stands anywhere in `file`; if that can't be found out, it does.
pub(super) fn mentions(file: &Path, name: &str) -> bool {
    let found = || {
        let search = AhoCorasick::new([name]).ok()?;
        Some(search.stream_find_iter(File::open(file).ok()?).next().is_some())
    };
    found().unwrap_or(true)
}

fn read(file: &Path) -> Option<Elf> {
    // Reads a few pages, however large the file is.
    Elf::parse(&ReadCache::new(File::open(file).ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_very_executable_needs_libc_and_a_manifest_needs_nothing() {
        let own = libraries(&std::env::current_exe().unwrap());
        assert!(own.iter().any(|name| name.starts_with("libc.")), "{own:?}");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert_eq!(libraries(&manifest), BTreeSet::new());
        assert!(glibc(&std::env::current_exe().unwrap()).is_some() == cfg!(target_env = "gnu"));
        assert!(mentions(&manifest, "aho-corasick") && !mentions(&manifest, "trybuild"));
    }
}
