//! Keeps the house in order: which module may know which, and what pure modules never touch.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Client: each module and what it may import of the same crate. In the order in which data flows:
/// a stage never imports a later one.
const CLIENT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("failure", &[]),
    ("event", &["model"]),
    ("settings", &["failure", "model", "cli"]),
    ("cli", &["failure", "settings"]),
    ("ui", &["failure", "settings"]),
    ("stamp", &[]),
    ("compile", &["failure", "model", "settings", "stamp"]),
    ("parse", &["model"]),
    ("clues", &[]),
    ("suits", &["model"]),
    ("tree", &["failure", "model", "stamp"]),
    ("inventory", &["compile", "failure", "model", "parse", "settings", "stamp"]),
    ("cost", &["model"]),
    ("plan", &["cost", "model"]),
    ("pace", &["model"]),
    ("shard", &["cost", "model", "plan", "settings"]),
    ("filter", &["event", "failure", "model", "settings"]),
    ("testenv", &["filter", "model"]),
    ("fleet", &["collect", "model", "settings", "testenv", "wary"]),
    ("wary", &[]),
    ("key", &["cli", "failure", "fleet", "settings"]),
    ("baked", &["fleet"]),
    ("workers", &["cli", "clues", "compile", "failure", "fleet", "settings", "testenv", "ui"]),
    ("parcel", &["failure", "model", "tree"]),
    ("ship", &["failure", "model", "tree"]),
    ("collect", &["model", "tree"]),
    ("scheduler", &["event", "model", "pace", "plan"]),
    ("constraint", &["failure", "filter", "model", "scheduler", "settings"]),
    ("batch", &["model", "scheduler"]),
    ("forecast", &["model", "pace", "scheduler"]),
    ("sim", &["batch", "dispatch", "event", "model", "pace", "plan", "scheduler"]),
    (
        "dispatch",
        &[
            "clues",
            "baked",
            "batch",
            "event",
            "fleet",
            "model",
            "pace",
            "parcel",
            "plan",
            "scheduler",
            "settings",
            "ship",
            "stamp",
            "suits",
            "testenv",
            "tree",
            "wary",
        ],
    ),
    ("travel", &["collect", "compile", "dispatch", "failure", "settings", "testenv", "tree"]),
    ("doctest", &["compile", "failure", "model", "settings"]),
    (
        "runner",
        &[
            "baked", "cli", "collect", "compile", "failure", "fleet", "model", "parcel",
            "settings", "ship", "suits", "testenv", "travel", "tree",
        ],
    ),
    ("results", &["event", "failure", "model", "settings"]),
    ("report", &["event", "failure", "model", "results", "settings", "ui"]),
    ("history", &["batch", "cost", "event", "failure", "model", "pace", "results", "settings"]),
];

/// The only modules that know the whole line.
const WHOLE_LINE: &[&str] = &["run", "main", "lib"];

/// Worker: the same.
const WORKER: &[(&str, &[&str])] = &[
    ("accept", &[]),
    ("digest", &[]),
    ("globs", &[]),
    ("tools", &[]),
    ("lexical", &[]),
    ("compat", &["lexical"]),
    ("copying", &["protocol", "sandbox"]),
    ("protocol", &["digest", "globs", "hello", "link", "proof", "sandbox", "session"]),
    ("hello", &["packed", "protocol"]),
    ("identity", &["log", "shown"]),
    ("packed", &[]),
    ("pipes", &[]),
    ("memory", &[]),
    ("upgrade", &["digest", "protocol", "sandbox", "store"]),
    ("message", &["packed"]),
    ("tls", &["identity"]),
    ("invitation", &["digest", "identity", "message", "tls"]),
    ("link", &["message", "packed", "protocol", "session"]),
    ("session", &["protocol"]),
    ("share", &[]),
    ("shown", &[]),
    ("evict", &["digest"]),
    ("proof", &[]),
    ("store", &["digest", "evict", "packed", "proof", "protocol"]),
    ("sandbox", &["protocol", "store", "digest", "globs"]),
    ("output", &["protocol"]),
    ("zygote", &["protocol", "sandbox"]),
    ("executor", &["output", "pipes", "protocol", "sandbox", "store", "zygote"]),
    (
        "server",
        &[
            "accept", "compat", "copying", "digest", "executor", "globs", "hello", "identity",
            "link", "memory", "output", "proof", "protocol", "sandbox", "serve", "session",
            "share", "store", "tools", "upgrade", "zygote",
        ],
    ),
    ("log", &["repeats", "shown"]),
    ("repeats", &[]),
    ("probe", &["sandbox", "zygote"]),
    (
        "serve",
        &[
            "accept",
            "executor",
            "hello",
            "identity",
            "invitation",
            "link",
            "log",
            "message",
            "probe",
            "protocol",
            "sandbox",
            "server",
            "store",
            "tls",
            "upgrade",
            "zygote",
        ],
    ),
    ("polite", &["server"]),
    ("metrics", &["accept", "protocol", "server"]),
    ("registry", &["accept", "identity", "log", "message", "protocol", "serve", "tls"]),
    ("mdns", &["digest", "identity"]),
    (
        "cli",
        &[
            "accept",
            "identity",
            "invitation",
            "log",
            "mdns",
            "metrics",
            "polite",
            "protocol",
            "registry",
            "sandbox",
            "serve",
            "server",
            "store",
            "upgrade",
            "zygote",
        ],
    ),
];

/// Modules that decide: no IO, no clock, no environment.
const PURE: &[(&str, &[&str])] = &[
    (
        "cargo-distest",
        &[
            "model",
            "event",
            "clues",
            "suits",
            "batch",
            "parse",
            "plan",
            "cost",
            "pace",
            "shard",
            "filter",
            "constraint",
            "forecast",
            "scheduler",
            "results",
            "testenv",
            "wary",
        ],
    ),
    ("distest-worker", &["session", "share", "evict", "shown", "repeats"]),
];

/// What only the edge touches.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::process",
    "std::env",
    "std::net",
    "Instant::now",
    "SystemTime::now",
    "crate::ui",
    "std::thread::sleep",
];

#[test]
fn arrows_point_one_way() {
    let mut wrong = Vec::new();
    for (name, table) in [("cargo-distest", CLIENT), ("distest-worker", WORKER)] {
        let known: BTreeSet<_> = table.iter().map(|(module, _)| *module).collect();
        let allowed: BTreeMap<_, _> = table.iter().copied().collect();
        for (module, file, text) in sources(name) {
            // Tests may know more.
            if file.ends_with("/tests.rs") || file.contains("/tests/") {
                continue;
            }
            if WHOLE_LINE.contains(&module.as_str()) {
                continue;
            }
            let Some(allowed) = allowed.get(module.as_str()) else {
                wrong.push(format!("{file}: module {module} is not in the table of tests/tidy.rs"));
                continue;
            };
            for import in imports(&text) {
                let fine = import == module || allowed.contains(&import.as_str());
                if !fine
                    && (known.contains(import.as_str()) || WHOLE_LINE.contains(&import.as_str()))
                {
                    wrong.push(format!("{file}: {module} must not know {import}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn pure_modules_touch_nothing() {
    let mut wrong = Vec::new();
    for (name, pure) in PURE {
        for (module, file, text) in sources(name) {
            if pure.contains(&module.as_str()) {
                let used = IMPURE.iter().filter(|word| code(&text).contains(**word));
                wrong.extend(used.map(|word| format!("{file}: {module} is pure, but uses {word}")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_worker_knows_nothing_of_the_client() {
    let manifest = fs::read_to_string(root().join("distest-worker/Cargo.toml")).unwrap();
    assert!(!manifest.contains("cargo-distest.workspace"));
    assert!(!manifest.contains("cargo-distest ="));
}

/// The threat model names the tests that show its claims.
#[test]
fn security_claims_are_shown_by_tests() {
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let words = text.split('`').skip(1).step_by(2);
    let odd = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let named: BTreeSet<_> =
        words.filter(|word| !word.contains(odd) && word.contains(['_', ':'])).collect();
    assert!(named.len() > 50, "the table names tests: {named:?}");
    let mut all = String::new();
    for folder in ["cargo-distest/src", "distest-worker/src", "distest-worker/tests", "tests/e2e"] {
        rust_files(&root().join(folder)).iter().for_each(|file| {
            all += &fs::read_to_string(file).unwrap();
        });
    }
    let missing: Vec<_> = named.into_iter().filter(|name| !is_test(&all, name)).collect();
    assert!(missing.is_empty(), "SECURITY.md names what is no test: {missing:#?}");
}

/// A function, or a case of a harness of its own: in a table, or named by a string or a label.
fn is_test(code: &str, name: &str) -> bool {
    let has = |text: String| code.contains(&text);
    let labelled = name.match_indices('_').any(|(at, _)| {
        has(format!("\"{}_{{label}}\"", &name[..at])) && has(format!("\"{}\"", &name[at + 1..]))
    });
    has(format!("fn {name}()"))
        || has(format!("fn {name}(\n"))
        || has(format!("\n        {name} if "))
        || has(format!("\"{name}\""))
        || labelled
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|it| it == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found
}

/// Each source file of a crate: the module at the crate's root that it belongs to, its path, its
/// text.
fn sources(name: &str) -> Vec<(String, String, String)> {
    let src = root().join(name).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inner = path.strip_prefix(&src).unwrap();
                let first = inner.components().next().unwrap().as_os_str().to_str().unwrap();
                let module = first.trim_end_matches(".rs").to_owned();
                let file = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((module, file, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 5, "{name} has sources");
    found
}

/// Names after `crate::` in code, including those in `crate::{…}` groups.
fn imports(text: &str) -> BTreeSet<String> {
    let code = code(text);
    let word = |text: &str| -> String {
        text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{').and_then(|group| group.split_once('}')) {
            Some((group, _)) => found.extend(group.split(',').map(|item| word(item.trim()))),
            None => _ = found.insert(word(rest)),
        }
    }
    found
}

/// The text without comments and without what follows `#[cfg(test)]`: tests may do more.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = before_tests.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap().to_path_buf()
}
