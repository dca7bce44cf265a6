//! What `cargo test --doc` prints, stdout and stderr in one stream. Pure.
//!
//! rustdoc has no machine-readable form on stable. What is relied on: cargo announces each library
//! with `Doc-tests NAME`; libtest prints one line per finished test, and the output of those that
//! failed at the end of its run. Merged doctests (edition 2024) make several such runs of one library.

/// A doctest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The library, as cargo prints it.
    pub library: String,
    /// As rustdoc prints it: `src/lib.rs - sum (line 7)`.
    pub name: String,
    /// Marked `ignore`.
    pub ignored: bool,
}

/// What rustdoc says of a doctest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`.
    Passed,
    /// `FAILED`.
    Failed,
    /// `ignored`.
    Ignored,
}

/// Something that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A doctest's outcome.
    Outcome(String, String, Outcome),
    /// What a failed doctest wrote.
    Output(String, String, String),
}

/// Reads what a run prints, line by line.
#[derive(Debug, Default)]
pub struct Reader {
    library: String,
    block: Option<(String, String)>,
}

impl Reader {
    /// Takes the next line, without its end.
    pub fn line(&mut self, line: &str) -> Vec<Said> {
        if let Some(library) = announced(line) {
            let said = self.flush();
            library.clone_into(&mut self.library);
            return said;
        }
        if let Some(name) =
            line.strip_prefix("---- ").and_then(|it| it.strip_suffix(" stdout ----"))
        {
            let said = self.flush();
            self.block = Some((plain(name).to_owned(), String::new()));
            return said;
        }
        if line == "failures:" || line.starts_with("test result: ") {
            return self.flush();
        }
        if let Some((_, output)) = &mut self.block {
            output.push_str(line);
            output.push('\n');
            return Vec::new();
        }
        let outcome = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        let Some((name, word)) = outcome else { return Vec::new() };
        let outcome = match word.split([' ', ',']).next() {
            Some("ok") => Outcome::Passed,
            Some("FAILED") => Outcome::Failed,
            Some("ignored") => Outcome::Ignored,
            _ => return Vec::new(),
        };
        vec![Said::Outcome(self.library.clone(), plain(name).to_owned(), outcome)]
    }

    /// Tells what is left at the end.
    pub fn finish(mut self) -> Vec<Said> {
        self.flush()
    }

    fn flush(&mut self) -> Vec<Said> {
        let block = self.block.take();
        let said = block.map(|(name, output)| {
            Said::Output(self.library.clone(), name, output.trim().to_owned())
        });
        said.into_iter().collect()
    }
}

/// The doctests in what `cargo test --doc -- --list` prints: library and name, each once.
pub fn list(text: &str) -> Vec<(String, String)> {
    let mut library = String::new();
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = announced(line) {
            name.clone_into(&mut library);
        } else if let Some(name) = line.strip_suffix(": test").filter(|it| it.contains("(line ")) {
            let one = (library.clone(), plain(name).to_owned());
            if !library.is_empty() && !found.contains(&one) {
                found.push(one);
            }
        }
    }
    found
}

/// The library that cargo announces.
fn announced(line: &str) -> Option<&str> {
    let name = line.strip_prefix("   ")?.trim_start().strip_prefix("Doc-tests ")?;
    (!name.contains(' ')).then_some(name)
}

/// A name without what rustdoc adds to it when it runs: ` - compile fail`, ` - should panic`.
fn plain(name: &str) -> &str {
    match name.rfind("(line ").and_then(|at| Some(at + name[at..].find(')')? + 1)) {
        Some(end) => &name[..end],
        None => name,
    }
}

/// Whether a source file may hold a doctest: a block of code in a comment, or documentation that
/// comes from elsewhere. Never wrong about a file that does.
pub fn may_have_some(text: &str) -> bool {
    ["```", "~~~", "include_str!", "doc =", "doc=", "/**", "/*!"]
        .iter()
        .any(|word| text.contains(word))
        || text.lines().map(str::trim_start).any(|line| {
            let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            comment.is_some_and(|rest| {
                rest.starts_with("    ") || rest.starts_with('\t') || rest.starts_with(" \t")
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
   Compiling dt v0.1.0 (/tmp/dt)
   Doc-tests first

running 3 tests
test src/lib.rs - (line 1) ... ok
test src/lib.rs - f (line 18) - compile ... ok
test src/lib.rs - f (line 21) ... ignored

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.12s

   Doc-tests second

running 2 tests
test src/lib.rs - f (line 15) - compile fail ... ok
test src/lib.rs - f (line 8) ... FAILED

failures:

---- src/lib.rs - f (line 8) stdout ----
Test executable failed (exit status: 101).

stderr:
test src/lib.rs - f (line 15) ... FAILED


failures:
    src/lib.rs - f (line 8)

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
error: doctest failed, to rerun pass `-p second --doc`
";

    #[test]
    fn reads_what_was_said_of_each_and_not_what_a_test_said() {
        let mut reader = Reader::default();
        let mut said: Vec<Said> = RUN.lines().flat_map(|line| reader.line(line)).collect();
        said.extend(reader.finish());
        let outcome = |library: &str, name: &str, outcome| {
            Said::Outcome(library.to_owned(), format!("src/lib.rs - {name}"), outcome)
        };
        let output = "Test executable failed (exit status: 101).\n\nstderr:\n\
                      test src/lib.rs - f (line 15) ... FAILED";
        let second = "second".to_owned();
        let name = "src/lib.rs - f (line 8)".to_owned();
        assert_eq!(
            said,
            [
                outcome("first", "(line 1)", Outcome::Passed),
                outcome("first", "f (line 18)", Outcome::Passed),
                outcome("first", "f (line 21)", Outcome::Ignored),
                outcome("second", "f (line 15)", Outcome::Passed),
                outcome("second", "f (line 8)", Outcome::Failed),
                Said::Output(second, name, output.to_owned()),
            ]
        );
    }

    #[test]
    fn output_that_is_cut_off_is_told_as_far_as_it_goes() {
        let mut reader = Reader::default();
        assert_eq!(reader.line("---- a (line 1) stdout ----"), []);
        assert_eq!(reader.line("half"), []);
        let (none, name) = (String::new(), "a (line 1)".to_owned());
        assert_eq!(reader.finish(), [Said::Output(none, name, "half".to_owned())]);
    }

    #[test]
    fn lists_each_name_of_each_library_once() {
        let text = "   Doc-tests a\nx - f (line 1): test\nx - f (line 1): test\n\n1 test, 0 benchmarks\n\
                    y - g (line 2): test\n   Doc-tests b\nx - f (line 1): test\nwarning: test\n";
        let found = list(text);
        let found: Vec<_> = found.iter().map(|(library, name)| (&**library, &**name)).collect();
        assert_eq!(
            found,
            [("a", "x - f (line 1)"), ("a", "y - g (line 2)"), ("b", "x - f (line 1)")]
        );
    }

    #[test]
    fn a_source_without_code_in_its_comments_has_none() {
        for (text, may) in [
            ("//! Plain.\n/// Words.\n///   * a list\nfn f() {}", false),
            ("/// ```\n/// f();\n/// ```", true),
            ("//!     indented();", true),
            ("#![doc = include_str!(\"../README.md\")]", true),
            ("/** ~~~ */", true),
            ("#[doc(hidden)]", false),
        ] {
            assert_eq!(may_have_some(text), may, "{text}");
        }
    }
}
