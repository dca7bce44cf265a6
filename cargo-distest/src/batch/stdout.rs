//! What libtest prints at the end of a process: counts, and the output of tests that failed.

use memchr::memmem;

/// The counts of libtest's last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that were ignored.
    pub ignored: u32,
    /// Benchmarks.
    pub measured: u32,
}

/// Reads the last `test result: …` of a process's standard output, which must be the last that it
/// printed: `test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished
/// in 0.01s`.
pub fn closing(stdout: &[u8]) -> Option<Closing> {
    let text = stdout.trim_ascii_end();
    let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = std::str::from_utf8(&text[start..]).ok()?.strip_prefix("test result: ")?;
    let (word, counts) = line.split_once(". ")?;
    let mut counts = counts.split("; ");
    let mut count = |noun: &str| -> Option<u32> {
        let number = counts.next()?.strip_suffix(noun)?;
        number.parse().ok()
    };
    let passed = count(" passed")?;
    let failed = count(" failed")?;
    let ignored = count(" ignored")?;
    let measured = count(" measured")?;
    count(" filtered out")?;
    let agrees = word == if failed == 0 { "ok" } else { "FAILED" };
    agrees.then_some(Closing { passed, failed, ignored, measured })
}

/// Where libtest begins to show, after all tests have run, what failed ones wrote.
pub fn failures_begin(stdout: &[u8]) -> Option<usize> {
    memmem::rfind(stdout, b"\nfailures:\n\n---- ")
}

/// Where what a failed test wrote begins, behind where `failures` do.
pub fn failure_begins(stdout: &[u8], failures: usize, name: &str) -> Option<usize> {
    let title = format!("\n---- {name} stdout ----\n");
    Some(failures + memmem::find(&stdout[failures..], title.as_bytes())? + title.len())
}

/// Where it ends in what follows; none if that is not all. `is_name` knows whose sections may come
/// next: a test may print what looks like a title.
pub fn failure_ends(rest: &[u8], is_name: impl Fn(&str) -> bool) -> Option<usize> {
    const BEGIN: &[u8] = b"\n---- ";
    let is_title = |at: &usize| {
        let line = rest[at + BEGIN.len()..].split(|byte| *byte == b'\n').next();
        let name = line.and_then(|line| line.strip_suffix(b" stdout ----"));
        name.and_then(|name| str::from_utf8(name).ok()).is_some_and(&is_name)
    };
    let title = memmem::find_iter(rest, BEGIN).find(is_title);
    title.or_else(|| memmem::rfind(rest, b"\n\nfailures:\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_closes() {
        let line = |word: &str, failed: u32| {
            format!(
                "test a ... ok\n\ntest result: {word}. 2 passed; {failed} failed; 1 ignored; 0 \
                 measured; 7 filtered out; finished in 0.00s\n\n"
            )
        };
        let expected = Closing { passed: 2, failed: 1, ignored: 1, measured: 0 };
        assert_eq!(closing(line("FAILED", 1).as_bytes()), Some(expected));
        assert_eq!(closing(line("ok", 0).as_bytes()), Some(Closing { failed: 0, ..expected }));
        assert_eq!(closing(line("ok", 1).as_bytes()), None);
        assert_eq!(closing(format!("{}late\n", line("ok", 0)).as_bytes()), None);
        for text in ["", "test result: ok", "test result: ok. x passed; 0 failed", "\u{fffd}"] {
            assert_eq!(closing(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_failed_tests_output_is_found() {
        let text = "F.F\n\nfailures:\n\n---- a stdout ----\nout\n\n---- step ----\n\n---- x stdout \
                    ----\nthread 'a' panicked\n\n---- b::c stdout ----\nError: \"x\"\n\n\
                    \n\nfailures:\n\n\nfailures:\n    a\n    b::c\n\n";
        let found = |name| {
            let failures = failures_begin(text.as_bytes()).unwrap();
            let rest = &text[failure_begins(text.as_bytes(), failures, name)?..];
            let end = failure_ends(rest.as_bytes(), |name| ["a", "b::c"].contains(&name));
            Some(&rest[..end.unwrap()])
        };
        let own = "out\n\n---- step ----\n\n---- x stdout ----\nthread 'a' panicked\n";
        assert_eq!(found("a"), Some(own));
        assert_eq!(found("b::c"), Some("Error: \"x\"\n\n\n\nfailures:\n"));
        assert_eq!(found("c"), None);
        assert_eq!(failures_begin(b"test a ... ok\n"), None);
        assert_eq!(failure_ends(b"there is more", |_| true), None);
    }
}
