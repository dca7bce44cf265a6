//! What libtest prints at the end of a process: counts, and the output of tests that failed.

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

/// What a failed test wrote, as libtest shows it after all tests have run.
pub fn failure(stdout: &[u8], name: &str) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(stdout);
    let failures = text.rfind("\nfailures:\n\n---- ")?;
    let title = format!("\n---- {name} stdout ----\n");
    let from = failures + text[failures..].find(&title)? + title.len();
    let rest = &text[from..];
    let ends = ["\n---- ", "\n\nfailures:\n"].iter().filter_map(|end| rest.find(end));
    let section = &rest[..ends.min().unwrap_or(rest.len())];
    Some(format!("{}\n", section.trim_end_matches('\n')).into_bytes())
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
        let text = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nout\n\nthread 'a' panicked\
                    \n\n---- b::c stdout ----\nError: \"x\"\n\n\nfailures:\n    a\n    b::c\n\n";
        let found = |name| failure(text.as_bytes(), name).map(|t| String::from_utf8(t).unwrap());
        assert_eq!(found("a").as_deref(), Some("out\n\nthread 'a' panicked\n"));
        assert_eq!(found("b::c").as_deref(), Some("Error: \"x\"\n"));
        assert_eq!(found("c"), None);
        assert_eq!(failure(b"test a ... ok\n", "a"), None);
    }
}
