//! Patterns for paths, as they stand in configurations: `tests/data/**`, `*.snap.new`, `/opt/x/*.bin`.
//!
//! A pattern without a slash is a name at any depth; one with a slash is relative to a root, or
//! absolute if it begins with one. `*` and `?` stay within a name, `**` crosses folders. What lies
//! in a folder that matches, matches.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Patterns in one list.
pub const PATTERNS_MAX: usize = 1000;
/// Bytes of one pattern.
const PATTERN_BYTES_MAX: usize = 4096;

/// A list of patterns: matches what one of them matches.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    relative: GlobSet,
    absolute: GlobSet,
    len: usize,
}

impl Globs {
    /// Compiles patterns.
    ///
    /// # Errors
    /// In words: a pattern that makes no sense, or more than [`PATTERNS_MAX`].
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, String> {
        let (mut relative, mut absolute) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        let mut len = 0;
        for pattern in patterns {
            len += 1;
            if len > PATTERNS_MAX {
                return Err(format!("there are more than {PATTERNS_MAX} patterns"));
            }
            let pattern = pattern.as_ref();
            let set = if pattern.starts_with('/') { &mut absolute } else { &mut relative };
            for form in forms(pattern)? {
                let glob = GlobBuilder::new(&form).literal_separator(true).build();
                set.add(glob.map_err(|error| error.kind().to_string())?);
            }
        }
        let build = |set: &GlobSetBuilder| set.build().map_err(|error| error.to_string());
        Ok(Self { relative: build(&relative)?, absolute: build(&absolute)?, len })
    }

    /// Whether `path` matches, which lies at `relative` below the root if it lies there at all.
    pub fn matches(&self, path: &Path, relative: Option<&Path>) -> bool {
        let below = relative.is_some_and(|relative| self.relative.is_match(relative));
        below || !self.absolute.is_empty() && self.absolute.is_match(path)
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Checks one pattern.
///
/// # Errors
/// Why it makes none.
pub fn check(pattern: &str) -> Result<(), String> {
    Globs::new([pattern]).map(|_| ())
}

/// A pattern, and the same for what lies in a folder that it matches.
fn forms(pattern: &str) -> Result<[String; 2], String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"));
    }
    let plain = pattern.strip_prefix("./").unwrap_or(pattern).trim_end_matches('/');
    if plain.is_empty() {
        return Err("expected a pattern such as `tests/data/**` or `*.bin`".to_owned());
    }
    let pattern = if plain.contains('/') || pattern.starts_with("./") {
        plain.to_owned()
    } else {
        format!("**/{plain}")
    };
    Ok([format!("{pattern}/**"), pattern])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        let globs = Globs::new([pattern]).unwrap();
        let matches = |path: &str| {
            let path = Path::new(path);
            globs.matches(&Path::new("/w").join(path), path.is_relative().then_some(path))
        };
        for path in matching {
            assert!(matches(path), "{pattern} matches {path}");
        }
        for path in others {
            assert!(!matches(path), "{pattern} doesn't match {path}");
        }
    }

    #[test]
    fn a_name_matches_anywhere_and_a_path_where_it_says() {
        check("*.new", &["a.new", "x/y/a.new", ".a.new", "d.new/x"], &["a.newer", "new"]);
        check("data", &["data", "data/x/y", "x/data/y"], &["data2", "x/mydata"]);
        check("a/*.bin", &["a/x.bin"], &["b/a/x.bin", "a/b/x.bin"]);
        check("a/**", &["a/x", "a/b/x"], &["a", "b/a/x"]);
        check("./a", &["a", "a/x"], &["b/a"]);
        check("a/", &["a/x", "b/a/x"], &["ab"]);
        check("/opt/m/*.bin", &["/opt/m/x.bin"], &["opt/m/x.bin"]);
        check("a b/[xy]", &["a b/x"], &["a b/z"]);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for pattern in ["", "/", "a[", "{a", &"x".repeat(5000)] {
            assert!(super::check(pattern).is_err(), "{pattern}");
        }
        assert!(Globs::new(vec!["a"; PATTERNS_MAX + 1]).is_err());
        assert!(Globs::new([""; 0]).unwrap().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn names_need_not_be_unicode() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"d/\xff.new"));
        assert!(Globs::new(["*.new"]).unwrap().matches(path, Some(path)));
    }
}
