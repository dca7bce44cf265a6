//! What a failed test's output and executable say of things that it lacked. Pure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aho_corasick::{AhoCorasick, MatchKind};
use distest_worker::lexical::plain;

/// Paths that are looked at of one output.
const PATHS_MAX: usize = 200;
/// Bytes of output that are looked through, from either end.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// The longest path that Linux takes.
const PATH_BYTES_MAX: usize = 4096;

/// Variables that executables name because the standard library or libtest does, or that every
/// machine has its own of.
const COMMON: &[&str] = &[
    "CARGO",
    "COLUMNS",
    "DISPLAY",
    "EDITOR",
    "HOSTNAME",
    "LINES",
    "MAIL",
    "OLDPWD",
    "SHLVL",
    "TERM",
    "TERMINFO",
    "TERMINFO_DIRS",
    "VISUAL",
];

/// Paths that a text mentions, as it spells them, each once: what has a slash or a dot in it. Where
/// code panicked or was called is no such path: nobody opened it.
pub fn paths(text: &[u8]) -> Vec<String> {
    let (head, tail) = match text.len() > 2 * OUTPUT_BYTES_MAX {
        true => (&text[..OUTPUT_BYTES_MAX], &text[text.len() - OUTPUT_BYTES_MAX..]),
        false => (text, &text[..0]),
    };
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for part in [head, tail] {
        let part = String::from_utf8_lossy(part);
        let lines: Vec<&str> = part.lines().map(without_location).collect();
        let part = lines.join("\n");
        let escaped: Vec<String> = part.lines().flat_map(escaped).collect();
        let escaped = escaped.iter().map(String::as_str);
        let quoted = part.lines().flat_map(quoted);
        let words = part.split(|c: char| c.is_whitespace() || "\"'`()[]{}<>,;|=".contains(c));
        for word in escaped.chain(quoted).chain(words) {
            let word = trimmed(word);
            let path = word.len() <= PATH_BYTES_MAX && word.contains(['/', '.']);
            if path && word.contains(char::is_alphanumeric) && seen.insert(word.to_owned()) {
                found.push(word.to_owned());
                if found.len() == PATHS_MAX {
                    return found;
                }
            }
        }
    }
    found
}

/// Whether a text says that a variable is not set, or names one of these.
pub fn misses_variable(text: &[u8], name: &str) -> bool {
    let says = |what: &str| memchr::memmem::find(text, what.as_bytes()).is_some();
    says(name) || says("NotPresent") || says("environment variable not found")
}

/// Whether a text says that git found no repository.
pub fn misses_repository(text: &[u8]) -> bool {
    memchr::memmem::find(text, b"not a git repository").is_some()
}

/// Whether a text says that there was no room to write.
pub fn misses_room(text: &[u8]) -> bool {
    let says = |what: &str| memchr::memmem::find(text, what.as_bytes()).is_some();
    says("No space left on device") || says("StorageFull")
}

/// The tools of the compiler that a text names by their paths, if it says that a file is missing.
pub fn missed_tools(text: &[u8]) -> Vec<String> {
    let says = |what: &str| memchr::memmem::find(text, what.as_bytes()).is_some();
    if !(says("No such file or directory") || says("NotFound")) {
        return Vec::new();
    }
    let is_tool = |path: &String| {
        let name = Path::new(path).file_name();
        path.starts_with('/')
            && ["cargo", "rustc", "rustdoc"].iter().any(|tool| name == Some(tool.as_ref()))
    };
    paths(text).into_iter().filter(is_tool).collect()
}

/// A pattern that stands for this path alone.
pub fn pattern_of(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    for character in path.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// Where a mentioned path may lie here: `roots` are folders that workers lay out, perhaps below a
/// folder of their own; a relative path starts at `cwd` or at the first root.
pub fn places(path: &str, cwd: &Path, roots: &[PathBuf]) -> Vec<PathBuf> {
    if !path.starts_with('/') {
        let first = roots.first().map(PathBuf::as_path);
        let mut places: Vec<PathBuf> =
            [Some(cwd), first].into_iter().flatten().map(|at| plain(&at.join(path))).collect();
        places.dedup();
        return places;
    }
    // Behind a folder of the worker's: `/var/lib/worker/session-1/root/code/proj/x`.
    let ours = roots.iter().filter_map(|root| {
        let root = root.to_str()?;
        let at = path.find(root).filter(|at| *at > 0)?;
        let rest = &path[at + root.len()..];
        (rest.is_empty() || rest.starts_with('/')).then(|| plain(Path::new(&path[at..])))
    });
    ours.chain([plain(Path::new(path))]).collect()
}

/// Which of `names` an executable's constants name. Short and common names say nothing.
pub fn named<'a>(constants: &[u8], names: &'a [String]) -> Vec<&'a str> {
    let telling: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| is_telling(name)).collect();
    let Ok(search) = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&telling) else {
        return Vec::new();
    };
    let mut found = BTreeSet::new();
    for hit in search.find_overlapping_iter(constants) {
        let name = telling[hit.pattern().as_usize()];
        // Constants lie side by side without anything between them, so what is around a long name
        // may belong to another constant; of a short one it would make another word.
        let part_of_word = |byte: Option<&u8>| {
            byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        };
        let before = hit.start().checked_sub(1).and_then(|at| constants.get(at));
        let alone = !part_of_word(before) && !part_of_word(constants.get(hit.end()));
        if alone || name.contains('_') || name.len() >= 8 {
            found.insert(name);
        }
    }
    found.into_iter().collect()
}

fn is_telling(name: &str) -> bool {
    let tools = ["CARGO_", "RUSTUP_", "DISTEST", "NEXTEST", "XDG_", "LS_"];
    name.len() >= 4 && !COMMON.contains(&name) && !tools.iter().any(|tool| name.starts_with(tool))
}

/// Whether every machine has its own of a variable, or the standard library reads it.
pub fn is_common(name: &str) -> bool {
    COMMON.contains(&name)
}

/// What stands between quotes, which may contain blanks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    ['"', '\'', '`'].into_iter().flat_map(|quote| line.split(quote).skip(1).step_by(2))
}

/// What stands between double quotes as `{:?}` writes it, where that differs from what it stands for.
fn escaped(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut characters = line.chars();
    while characters.any(|character| character == '"') {
        let (mut text, mut differs) = (String::new(), false);
        loop {
            match characters.next() {
                // Not one that was closed.
                None => return found,
                Some('"') => break,
                Some('\\') => {
                    differs = true;
                    match characters.next() {
                        Some('t') => text.push('\t'),
                        Some('n') => text.push('\n'),
                        Some('r') => text.push('\r'),
                        // Others stand for themselves, or for what no path here has.
                        other => text.extend(other),
                    }
                }
                Some(other) => text.push(other),
            }
        }
        if differs {
            found.push(text);
        }
    }
    found
}

/// Without punctuation around it and `:LINE:COLUMN` behind it.
fn trimmed(word: &str) -> &str {
    let mut word = word.trim_end_matches(['.', ':', '!', '?']);
    while let Some((path, number)) = word.rsplit_once(':')
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        word = path;
    }
    word.strip_prefix("file://").unwrap_or(word)
}

/// A line without the place in the code that it tells of, as panics and backtraces do:
/// `thread 'x' panicked at src/x.rs:12:5:`, `   at ./src/x.rs:12:5`.
fn without_location(line: &str) -> &str {
    let Some(before) = line.trim_end().trim_end_matches(':').rsplit_once(char::is_whitespace)
    else {
        return line;
    };
    let (before, place) = before;
    let numbers = place.rsplitn(3, ':').take(2);
    let numbers = numbers.filter(|part| part.parse::<u32>().is_ok()).count();
    let told = before.ends_with("panicked at") || before.trim() == "at" || before.ends_with("',");
    if numbers == 2 && told { before } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_looks_like_a_path() {
        let text = "thread 'a::b' panicked at src/elsewhere.rs:10:5:\n\
                    thread 'a::b' panicked at 'old words', src/elsewhere.rs:10:5\n\
                    \x20  at ./src/elsewhere.rs:10:5\n\
                    error in tests/it.rs:10:5: unexpected\n\
                    called `unwrap()`: could not open data/model.bin: no such file\n\
                    see \"/w/two words/x.txt\", file:///w/y and (./z). 3.14 took 2s. --conf=a/b";
        let found = paths(text.as_bytes());
        for path in ["tests/it.rs", "data/model.bin", "/w/two words/x.txt", "/w/y", "./z", "a/b"] {
            assert!(found.iter().any(|found| found == path), "{path} in {found:?}");
        }
        assert!(!found.iter().any(|found| found == "2s"), "{found:?}");
        assert!(!found.iter().any(|found| found.contains("elsewhere")), "{found:?}");
        assert_eq!(paths(&vec![b'/'; 1 << 20]), [""; 0]);
        let many: String = (0..500).map(|number| format!("a/{number} ")).collect();
        assert_eq!(paths(many.as_bytes()).len(), PATHS_MAX);
    }

    #[test]
    fn finds_paths_that_were_printed_for_debugging() {
        for path in ["data/a\\b.txt", "data/the \"best\" x", "/w/tab\there", "it's/a \"b\\"] {
            let text = format!("opening \"x\": {path:?}: no such file");
            let found = paths(text.as_bytes());
            assert!(found.iter().any(|found| found == path), "{path} in {found:?}");
        }
        assert_eq!(escaped("\"plain\" and \"open\\"), [""; 0]);
    }

    #[test]
    fn a_pattern_stands_for_its_path_alone() {
        for (path, other) in [("data/a[1]*?.txt", "data/a1.txt"), ("x{a,b}\\", "xa")] {
            let globs = distest_worker::globs::Globs::new([pattern_of(path)]).unwrap();
            assert!(globs.matches(Path::new("/w"), Some(Path::new(path))), "{path}");
            assert!(!globs.matches(Path::new("/w"), Some(Path::new(other))), "{other}");
        }
        assert_eq!(pattern_of("data/model.bin"), "data/model.bin");
    }

    #[test]
    fn a_missing_variable_is_named_or_not() {
        for text in ["called `unwrap()`: NotPresent", "environment variable not found", "URL?"] {
            assert!(misses_variable(text.as_bytes(), "URL"), "{text}");
        }
        assert!(!misses_variable(b"1 != 2", "URL"));
    }

    #[test]
    fn a_missing_repository_and_missing_tools_are_named() {
        assert!(misses_repository(
            b"fatal: not a git repository (or any of the parent directories): .git"
        ));
        assert!(!misses_repository(b"a git repository"));
        let text = b"could not run \"/opt/rust/bin/cargo\": No such file or directory (os error 2)";
        assert_eq!(missed_tools(text), ["/opt/rust/bin/cargo"]);
        assert_eq!(missed_tools(b"/opt/rust/bin/cargo said: 1 != 2"), [""; 0]);
        assert_eq!(missed_tools(b"cargo, /x/cargo.toml: No such file or directory"), [""; 0]);
    }

    #[test]
    fn a_path_has_its_places() {
        let roots = [PathBuf::from("/code/proj"), PathBuf::from("/target")];
        let check = |path: &str, expected: &[&str]| {
            let found = places(path, Path::new("/code/proj/member"), &roots);
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{path}");
        };
        check("data/x", &["/code/proj/member/data/x", "/code/proj/data/x"]);
        check("../x", &["/code/proj/x", "/code/x"]);
        check("/code/proj/x", &["/code/proj/x"]);
        let theirs = "/var/s-1/root/code/proj/./x";
        check(theirs, &["/code/proj/x", "/var/s-1/root/code/proj/x"]);
        check("/old/code/proj-2/x", &["/old/code/proj-2/x"]);
    }

    #[test]
    fn finds_variables_among_constants() {
        let names = ["DATABASE_URL", "TOKEN", "TERM", "HOST", "ENDPOINT", "CARGO_HOME", "APP"];
        let names = names.map(str::to_owned);
        let constants =
            b"not setDATABASE_URLsrc/lib.rs\0HOST\0TERM TOKENS CARGO_HOME xENDPOINTx APP";
        assert_eq!(named(constants, &names), ["DATABASE_URL", "ENDPOINT", "HOST"]);
        assert_eq!(named(b"", &names), [""; 0]);
        assert_eq!(named(constants, &[]), [""; 0]);
    }
}
