//! Whether an executable finds its files only where it was built: asked for a worker that can't recreate
//! the client's paths.

use std::fs;
use std::path::Path;

use distest_worker::sandbox::level::Level;
use object::{Object, ObjectSection, SectionFlags};

use crate::fleet::PathsThere;

/// Executables larger than this are not searched.
const EXECUTABLE_BYTES_MAX: u64 = 1 << 30;

/// Why an executable can't run on a worker that treats paths like this, and what to do. Reads it if
/// that is the question.
pub(crate) fn obstacle(executable: &Path, there: &PathsThere) -> Option<(String, Option<String>)> {
    if Level::from_number(there.level).recreates_paths() {
        return None;
    }
    let large = fs::metadata(executable).is_ok_and(|it| it.len() > EXECUTABLE_BYTES_MAX);
    // What can't be read can't be sent either, which is told then.
    let bytes = if large { Vec::new() } else { fs::read(executable).unwrap_or_default() };
    let root = there.roots.iter().find(|root| is_baked_in(&bytes, root.as_bytes()))?;
    let mut why = format!(
        "{} is compiled into it, and that path can't be recreated there",
        root.as_path().display()
    );
    if !there.reason.is_empty() {
        why.push_str(&format!(" ({})", there.reason));
    }
    let hint = there.hint.clone();
    Some((why, hint.or_else(|| Some("run it here, with --local-slots".to_owned()))))
}

/// Whether a path stands in what the executable has in memory when it runs. Debug information names
/// sources, too, but no test reads it.
fn is_baked_in(executable: &[u8], path: &[u8]) -> bool {
    let Ok(parsed) = object::File::parse(executable) else { return false };
    parsed.sections().any(|section| {
        let loaded = match section.flags() {
            SectionFlags::Elf { sh_flags, .. } => (sh_flags & object::elf::SHF_ALLOC).0 != 0,
            _ => true,
        };
        loaded && section.data().is_ok_and(|data| contains(data, path))
    })
}

fn contains(data: &[u8], text: &[u8]) -> bool {
    let Some(first) = text.first() else { return false };
    let mut rest = data;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(text) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiled_in_path_is_found_and_one_in_debug_information_is_not() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let baked = std::hint::black_box("/a path that stands in this very test/");
        assert!(is_baked_in(&own, baked.as_bytes()));
        // Built here, so that the same text doesn't stand in the executable.
        let absent: String = baked.chars().rev().collect();
        assert!(!is_baked_in(&own, absent.as_bytes()));
        assert!(!is_baked_in(b"no executable", b"no"));
        assert!(contains(b"//a/b", b"/a") && !contains(b"//a/b", b"/b/") && !contains(b"a", b""));
    }
}
