//! What a test binary prints for `--list --format terse` → test names.
//!
//! One line a test, `NAME: test` or `NAME: benchmark`; anything else is an error, as in
//! cargo-nextest: a harness that prints something else would hide tests. This module does no IO.

use std::collections::BTreeSet;

use crate::model::{ListedCase, TestName};

/// The most of an offending line that is shown, in characters.
const LINE_SHOWN_CHARS: usize = 200;

/// A line that names no test.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} of its list doesn't end in `: test` or `: benchmark`: {line:?}")]
pub struct NotAListing {
    /// Counted from 1.
    pub number: usize,
    /// The line, shortened.
    pub line: String,
}

/// The test cases of a binary, from its lists without and with `--ignored`.
///
/// In the order in which it lists them, each name once. Whatever the second list names is ignored,
/// even if the first lacks it.
///
/// # Errors
/// The first line that names no test.
pub fn cases(all: &[u8], ignored: &[u8]) -> Result<Vec<ListedCase>, NotAListing> {
    let ignored = names(ignored)?;
    let is_ignored: BTreeSet<&str> = ignored.iter().map(|name| &*name.0).collect();
    let mut seen = BTreeSet::new();
    let mut cases = Vec::new();
    for name in names(all)?.into_iter().chain(ignored.iter().cloned()) {
        if seen.insert(name.clone()) {
            let ignored = is_ignored.contains(&*name.0);
            cases.push(ListedCase { name, ignored });
        }
    }
    Ok(cases)
}

/// The names in one list, in its order, with duplicates.
///
/// # Errors
/// The first line that names no test.
pub fn names(list: &[u8]) -> Result<Vec<TestName>, NotAListing> {
    let mut lines: Vec<&[u8]> = list.split(|&byte| byte == b'\n').collect();
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    lines.iter().enumerate().map(|(i, line)| name(line).ok_or_else(|| offending(i, line))).collect()
}

fn name(line: &[u8]) -> Option<TestName> {
    let line = std::str::from_utf8(line).ok()?;
    let line = line.strip_suffix('\r').unwrap_or(line);
    let name = line.strip_suffix(": test").or_else(|| line.strip_suffix(": benchmark"))?;
    Some(TestName::new(name))
}

fn offending(index: usize, line: &[u8]) -> NotAListing {
    let line = String::from_utf8_lossy(line).chars().take(LINE_SHOWN_CHARS).collect();
    NotAListing { number: index + 1, line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, expected: &[&str]) {
        let found = names(list.as_bytes()).unwrap();
        let found: Vec<&str> = found.iter().map(|name| &*name.0).collect();
        assert_eq!(found, expected, "{list:?}");
    }

    #[test]
    fn a_name_is_all_before_the_last_suffix() {
        check("", &[]);
        check("a::b: test\nc: benchmark\n", &["a::b", "c"]);
        check("without a newline: test", &["without a newline"]);
        check("windows: test\r\nlines: test\r\n", &["windows", "lines"]);
        check("--exact: test\n-: test\n", &["--exact", "-"]);
        check("grüße ☃ \t: test\n", &["grüße ☃ \t"]);
        check("a: test: test\nb: benchmark: test\n", &["a: test", "b: benchmark"]);
    }

    #[test]
    fn any_other_line_is_an_error_that_shows_it() {
        for (list, number, line) in [
            ("a: test\n\nb: test\n", 2, ""),
            ("running 1 test\n", 1, "running 1 test"),
            ("a: test\nb: tests\n", 2, "b: tests"),
            ("a: test \n", 1, "a: test "),
        ] {
            let line = line.to_owned();
            assert_eq!(names(list.as_bytes()), Err(NotAListing { number, line }), "{list:?}");
        }
        assert_eq!(names(b"\xff: test\n").unwrap_err().line, "\u{fffd}: test");
    }

    #[test]
    fn the_second_list_marks_and_adds_ignored_tests() {
        let found = cases(b"b: test\na: test\nb: test\n", b"a: test\nonly: test\n").unwrap();
        let found: Vec<_> = found.iter().map(|case| (&*case.name.0, case.ignored)).collect();
        assert_eq!(found, [("b", false), ("a", true), ("only", true)]);
    }

    #[test]
    fn takes_20_000_names() {
        let list: String = (0..20_000).map(|i| format!("module::case_{i}: test\n")).collect();
        let found = cases(list.as_bytes(), b"module::case_7: test\n").unwrap();
        assert_eq!(found.len(), 20_000);
        assert_eq!(found.iter().filter(|case| case.ignored).count(), 1);
    }
}
