//! What an ELF file asks of the machine that it is to run on. Pure: bytes in, facts out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use object::elf::{
    DT_NEEDED, DT_RPATH, DT_RUNPATH, FileHeader32, FileHeader64, SHT_GNU_VERDEF, SHT_GNU_VERNEED,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::read::{ReadRef, StringTable};
use object::{Endianness, FileKind, SectionIndex};

/// Libraries, folders and versions of one file beyond this many are not looked at.
const ITEMS_MAX: usize = 4096;

/// What kind of code it is: only like is loaded into like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    machine: u16,
    wide: bool,
    big_endian: bool,
}

/// An executable's or shared library's needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// What may be loaded beside it.
    pub kind: Kind,
    /// The loader, for an executable that is dynamically linked.
    pub interpreter: Option<PathBuf>,
    /// Libraries that it names itself.
    pub needed: Vec<String>,
    /// Where it says that they lie, in force unless there is a `runpath`.
    pub rpath: Vec<String>,
    /// Where it says that its own ones lie.
    pub runpath: Vec<String>,
    /// Symbol versions that it needs, by library.
    pub versions: BTreeMap<String, BTreeSet<String>>,
    /// Symbol versions that it has.
    pub defines: BTreeSet<String>,
}

impl Elf {
    /// Reads as much of `data` as it takes. None for what is no ELF file, or a broken one.
    pub fn parse<'data, R: ReadRef<'data>>(data: R) -> Option<Self> {
        match FileKind::parse(data).ok()? {
            FileKind::Elf64 => parse::<FileHeader64<Endianness>, R>(data),
            FileKind::Elf32 => parse::<FileHeader32<Endianness>, R>(data),
            _ => None,
        }
    }

    /// The newest glibc that any of its libraries is asked for: `2.34`. All that have such versions
    /// belong to it, not the C library alone.
    pub fn glibc(&self) -> Option<(u32, u32)> {
        self.versions.values().flatten().filter_map(|name| glibc_version(name)).max()
    }
}

/// The number in `GLIBC_2.34` or `glibc 2.34`.
pub fn glibc_version(name: &str) -> Option<(u32, u32)> {
    let number = name.strip_prefix("GLIBC_").or_else(|| name.strip_prefix("glibc "))?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn parse<'data, H: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(data: R) -> Option<Elf> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let kind = Kind {
        machine: header.e_machine(endian).0,
        wide: header.is_class_64(),
        big_endian: header.is_big_endian(),
    };
    let mut elf = Elf {
        kind,
        interpreter: None,
        needed: Vec::new(),
        rpath: Vec::new(),
        runpath: Vec::new(),
        versions: BTreeMap::new(),
        defines: BTreeSet::new(),
    };
    for segment in header.program_headers(endian, data).ok()? {
        if let Ok(Some(interpreter)) = segment.interpreter(endian, data) {
            elf.interpreter = Some(OsStr::from_bytes(interpreter).into());
        }
    }
    let sections = header.sections(endian, data).ok()?;
    let table = sections.dynamic_table(endian, data).ok()?;
    for entry in table.iter().take(ITEMS_MAX) {
        let text = || Some(String::from_utf8_lossy(table.string(entry).ok()?).into_owned());
        let folders = || text().into_iter().flat_map(|text| folders(&text)).collect::<Vec<_>>();
        match entry.tag {
            DT_NEEDED => elf.needed.extend(text()),
            DT_RPATH => elf.rpath.extend(folders()),
            DT_RUNPATH => elf.runpath.extend(folders()),
            _ => {}
        }
    }
    let strings = |link: SectionIndex| sections.strings(endian, data, link).ok();
    for section in sections.iter() {
        if section.sh_type(endian) == SHT_GNU_VERNEED {
            read_needs::<H, R>(section, endian, data, strings, &mut elf);
        } else if section.sh_type(endian) == SHT_GNU_VERDEF {
            read_definitions::<H, R>(section, endian, data, strings, &mut elf);
        }
    }
    Some(elf)
}

fn read_needs<'data, H: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(
    section: &H::SectionHeader,
    endian: Endianness,
    data: R,
    strings: impl Fn(SectionIndex) -> Option<StringTable<'data, R>>,
    elf: &mut Elf,
) {
    let Ok(Some((mut needs, link))) = section.gnu_verneed(endian, data) else { return };
    let Some(strings) = strings(link) else { return };
    for _ in 0..ITEMS_MAX {
        let Ok(Some((need, mut versions))) = needs.next() else { return };
        let Ok(library) = need.file(endian, strings) else { return };
        let names = elf.versions.entry(String::from_utf8_lossy(library).into_owned()).or_default();
        for _ in 0..ITEMS_MAX {
            let Ok(Some(version)) = versions.next() else { break };
            // A weak one may be missing.
            let weak = version.vna_flags.get(endian).0 & object::elf::VER_FLG_WEAK.0 != 0;
            if let (false, Ok(name)) = (weak, version.name(endian, strings)) {
                names.insert(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
}

fn read_definitions<'data, H: FileHeader<Endian = Endianness>, R: ReadRef<'data>>(
    section: &H::SectionHeader,
    endian: Endianness,
    data: R,
    strings: impl Fn(SectionIndex) -> Option<StringTable<'data, R>>,
    elf: &mut Elf,
) {
    let Ok(Some((mut definitions, link))) = section.gnu_verdef(endian, data) else { return };
    let Some(strings) = strings(link) else { return };
    for _ in 0..ITEMS_MAX {
        let Ok(Some((_, mut names))) = definitions.next() else { return };
        // The first is its name, the others those that it inherits from.
        if let Ok(Some(name)) = names.next()
            && let Ok(name) = name.name(endian, strings)
        {
            elf.defines.insert(String::from_utf8_lossy(name).into_owned());
        }
    }
}

fn folders(path: &str) -> Vec<String> {
    path.split(':').filter(|folder| !folder.is_empty()).map(str::to_owned).collect()
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn this_very_executable_needs_a_loader_and_libc() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&*bytes).unwrap();
        assert!(elf.interpreter.as_ref().unwrap().exists(), "{:?}", elf.interpreter);
        assert!(elf.needed.iter().any(|name| name.starts_with("libc.so")), "{:?}", elf.needed);
        assert!(elf.glibc().unwrap() >= (2, 2), "{:?}", elf.versions);
        assert_eq!(elf.defines, BTreeSet::new());
    }

    #[test]
    fn any_library_of_glibcs_says_how_old_it_may_be() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut elf = Elf::parse(&*bytes).unwrap();
        let asks = |versions: &[&str]| versions.iter().map(|it| (*it).to_owned()).collect();
        elf.versions = BTreeMap::from([
            ("libc.so.6".to_owned(), asks(&["GLIBC_2.2.5", "GLIBC_2.34"])),
            ("libm.so.6".to_owned(), asks(&["GLIBC_2.38"])),
            ("libstdc++.so.6".to_owned(), asks(&["GLIBCXX_3.4.32"])),
        ]);
        assert_eq!(elf.glibc(), Some((2, 38)));
    }

    #[test]
    fn what_is_no_elf_file_has_no_needs() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for broken in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF", &bytes[..64], &bytes[..4000]] {
            let _ = Elf::parse(broken);
        }
        assert_eq!(Elf::parse(&b"#!/bin/sh\n"[..]), None);
        // Nowhere does a flipped byte end in a panic.
        let mut head = bytes[..bytes.len().min(1 << 16)].to_vec();
        for at in 0..head.len().min(2048) {
            head[at] ^= 0xff;
            let _ = Elf::parse(&*head);
            head[at] ^= 0xff;
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(glibc_version("GLIBC_2.34"), Some((2, 34)));
        assert_eq!(glibc_version("GLIBC_2.2.5"), Some((2, 2)));
        assert_eq!(glibc_version("glibc 2.36"), Some((2, 36)));
        assert_eq!(glibc_version("GLIBC_PRIVATE"), None);
        assert_eq!(glibc_version("musl 1.2"), None);
    }
}
