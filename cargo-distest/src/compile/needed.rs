//! Which shared libraries an executable asks the dynamic loader for.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use object::elf::{DT_NEEDED, FileHeader32, FileHeader64};
use object::read::elf::FileHeader;
use object::read::{ReadCache, ReadRef};
use object::{Endianness, FileKind};

/// File names of the libraries that `file` names itself (`DT_NEEDED`); empty for anything but ELF.
pub(super) fn libraries(file: &Path) -> BTreeSet<String> {
    let read = || {
        // Reads a few pages, however large the file is.
        let data = ReadCache::new(File::open(file).ok()?);
        match FileKind::parse(&data).ok()? {
            FileKind::Elf64 => elf::<FileHeader64<Endianness>, _>(&data),
            FileKind::Elf32 => elf::<FileHeader32<Endianness>, _>(&data),
            _ => None,
        }
    };
    read().unwrap_or_default()
}

fn elf<'data, Elf: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(
    data: R,
) -> Option<BTreeSet<String>> {
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let table = header.sections(endian, data).ok()?.dynamic_table(endian, data).ok()?;
    let names = table.iter().filter(|entry| entry.tag == DT_NEEDED).filter_map(|entry| {
        let name = table.string(entry).ok()?;
        Some(String::from_utf8_lossy(name).into_owned())
    });
    Some(names.collect())
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
    }
}
