//! `/etc/ld.so.cache`: where the loader knows libraries to lie. Pure.
//!
//! The format of glibc 2.2 and later, as `sysdeps/generic/dl-cache.h` describes it: a magic text, the
//! number of libraries, then for each its flags and offsets of its name and path, counted from the
//! magic text. An older format may stand in front of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEAD_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;
/// Larger numbers of libraries are taken for nonsense.
const ENTRIES_MAX: usize = 200_000;

/// Paths by the library's name: several, for several kinds of machine.
pub(super) fn parse(bytes: &[u8]) -> BTreeMap<String, Vec<PathBuf>> {
    let Some(start) = bytes.windows(MAGIC.len()).position(|window| window == MAGIC) else {
        return BTreeMap::new();
    };
    read(&bytes[start..]).unwrap_or_default()
}

fn read(bytes: &[u8]) -> Option<BTreeMap<String, Vec<PathBuf>>> {
    let number = |at: usize| -> Option<usize> {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(four)).ok()
    };
    let text = |at: usize| {
        let rest = bytes.get(at..)?;
        rest.iter().position(|byte| *byte == 0).map(|end| &rest[..end])
    };
    let mut libraries: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for index in 0..number(MAGIC.len())?.min(ENTRIES_MAX) {
        let entry = HEAD_BYTES + index * ENTRY_BYTES;
        let (name, path) = (text(number(entry + 4)?)?, text(number(entry + 8)?)?);
        let name = String::from_utf8_lossy(name).into_owned();
        libraries.entry(name).or_default().push(OsStr::from_bytes(path).into());
    }
    Some(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend((libraries.len() as u32).to_ne_bytes());
        head.resize(HEAD_BYTES, 0);
        let mut texts = Vec::new();
        let base = HEAD_BYTES + libraries.len() * ENTRY_BYTES;
        for (name, path) in libraries {
            let mut offset = |text: &str| {
                let at = (base + texts.len()) as u32;
                texts.extend(text.bytes().chain([0]));
                at.to_ne_bytes()
            };
            let (name, path) = (offset(name), offset(path));
            head.extend([[0; 4], name, path, [0; 4], [0; 4], [0; 4]].concat());
        }
        head.extend(texts);
        head
    }

    #[test]
    fn finds_every_place_of_a_library() {
        let bytes = cache(&[("libz.so.1", "/lib/libz.so.1"), ("libz.so.1", "/lib32/libz.so.1")]);
        let expected = ["/lib/libz.so.1", "/lib32/libz.so.1"].map(PathBuf::from);
        assert_eq!(parse(&bytes)["libz.so.1"], expected);
        let old_format_first = [b"ld.so-1.7.0\0xxxx".to_vec(), bytes].concat();
        assert_eq!(parse(&old_format_first)["libz.so.1"], expected);
    }

    #[test]
    fn nonsense_has_no_libraries() {
        let good = cache(&[("libz.so.1", "/lib/libz.so.1")]);
        for end in 0..good.len() {
            let _ = parse(&good[..end]);
        }
        let mut many = good.clone();
        many[MAGIC.len()..MAGIC.len() + 4].fill(0xff);
        assert_eq!(parse(&many), BTreeMap::new());
        assert_eq!(parse(b"no cache"), BTreeMap::new());
    }
}
