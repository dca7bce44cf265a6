//! Which of several runs of a package's build script a test binary was built with.
//!
//! A package that is built with two feature sets (resolver 2: once as a dependency, once as a build
//! dependency) runs its build script twice, and cargo reports both under the same package id, in
//! any order. What the binary was compiled with stands in its dep-info file: rustc notes every
//! variable that the code asked for (`# env-dep:OUT_DIR=…`). A binary whose code asked for none is
//! decided by cargo's own fingerprints, which cargo writes some time after it has reported the
//! binary: until then there is no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use cargo_metadata::BuildScript;

/// Which run of a build script it was.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice<'a> {
    /// This one, or there was none.
    Decided(Option<&'a BuildScript>),
    /// Nothing decides yet. If nothing ever does: the first by output folder, the same one every
    /// time.
    Open(Option<&'a BuildScript>),
}

/// The run among `candidates`, all of one package, that `executable` was built with.
pub(super) fn choose<'a>(
    candidates: &[&'a BuildScript],
    executable: &Path,
    intermediate: &Path,
) -> Choice<'a> {
    if let [] | [_] = candidates {
        return Choice::Decided(candidates.first().copied());
    }
    let asked = read_dep_info(executable);
    let mut left: Vec<_> =
        candidates.iter().copied().filter(|one| agrees(one, &asked, candidates)).collect();
    if left.len() > 1 {
        let needed = fingerprints_needed(executable, intermediate);
        let fits = |one: &&BuildScript| {
            fingerprint(one, intermediate).is_some_and(|own| needed.contains(&own))
        };
        // Fingerprints of an earlier build fit none.
        if !left.iter().any(fits) {
            return Choice::Open(first(left));
        }
        left.retain(fits);
    }
    Choice::Decided(first(left))
}

fn first(mut left: Vec<&BuildScript>) -> Option<&BuildScript> {
    left.sort_by_key(|one| &one.out_dir);
    left.into_iter().next()
}

impl<'a> Choice<'a> {
    /// The run, whatever decided.
    pub(super) fn script(self) -> Option<&'a BuildScript> {
        let (Self::Decided(script) | Self::Open(script)) = self;
        script
    }
}

/// Whether the code can have seen these values when it was built with `candidate`.
fn agrees(
    candidate: &BuildScript,
    asked: &BTreeMap<String, Option<String>>,
    all: &[&BuildScript],
) -> bool {
    asked.iter().all(|(name, seen)| {
        let would_see = value(candidate, name);
        // A variable that no run sets comes from elsewhere.
        let ours = all.iter().any(|one| value(one, name).is_some());
        !ours || would_see == seen.as_deref()
    })
}

fn value<'a>(script: &'a BuildScript, name: &str) -> Option<&'a str> {
    if name == "OUT_DIR" {
        return Some(script.out_dir.as_str());
    }
    script.env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// Variables that the code asked for, and what it got.
fn read_dep_info(executable: &Path) -> BTreeMap<String, Option<String>> {
    std::fs::read_to_string(executable.with_extension("d"))
        .map(|text| parse_dep_info(&text))
        .unwrap_or_default()
}

fn parse_dep_info(text: &str) -> BTreeMap<String, Option<String>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# env-dep:"))
        .map(|entry| match entry.split_once('=') {
            Some((name, value)) => (unescape(name), Some(unescape(value))),
            None => (unescape(entry), None),
        })
        .collect()
}

/// Undoes rustc's escapes: `\n`, `\r` and `\\`.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    plain
}

/// Fingerprints that the executable's own fingerprint was made of.
///
/// `.fingerprint/PACKAGE-HASH/KIND-NAME.json` has `"deps":[[_, CRATE, _, FINGERPRINT], …]`. These
/// files are cargo's own business: if they look different one day, nothing is found.
fn fingerprints_needed(executable: &Path, intermediate: &Path) -> BTreeSet<u64> {
    let hash = executable.file_stem().and_then(OsStr::to_str);
    let Some((_, hash)) = hash.and_then(|stem| stem.rsplit_once('-')) else {
        return BTreeSet::new();
    };
    let own = |folder: &Path| {
        let name = folder.file_name().and_then(OsStr::to_str);
        name.and_then(|name| name.rsplit_once('-')).is_some_and(|(_, own)| own == hash)
    };
    entries(&intermediate.join(".fingerprint"))
        .into_iter()
        .filter(|folder| own(folder))
        .flat_map(|folder| entries(&folder))
        .filter(|file| file.extension() == Some(OsStr::new("json")))
        .filter_map(|file| {
            serde_json::from_slice::<serde_json::Value>(&std::fs::read(file).ok()?).ok()
        })
        .flat_map(|json| {
            let deps = json["deps"].as_array().cloned().unwrap_or_default();
            deps.into_iter().filter_map(|dep| dep[3].as_u64())
        })
        .collect()
}

/// The fingerprint of a build script's run: 16 hexadecimal digits, least significant byte first.
fn fingerprint(script: &BuildScript, intermediate: &Path) -> Option<u64> {
    let name = script.out_dir.parent()?.file_name()?;
    let file = entries(&intermediate.join(".fingerprint").join(name)).into_iter().find(|file| {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("run-build-script-") && !name.ends_with(".json")
    })?;
    let digits = std::fs::read_to_string(file).ok()?;
    u64::from_str_radix(&digits, 16).ok().map(u64::swap_bytes)
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(out_dir: &str, env: &[(&str, &str)]) -> BuildScript {
        let env: Vec<_> = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let json = serde_json::json!({
            "package_id": "p", "linked_libs": [], "linked_paths": [], "cfgs": [],
            "env": env, "out_dir": out_dir,
        });
        serde_json::from_value(json).unwrap()
    }

    fn check(dep_info: &str, expected: &str) {
        let temp = tempfile::tempdir().unwrap();
        let executable = temp.path().join("it-1a2b");
        std::fs::write(executable.with_extension("d"), dep_info).unwrap();
        let runs = [
            run("/b/with/out", &[("FEATURE", "yes"), ("ONLY", "here"), ("TEXT", "two\nlines")]),
            run("/a/without/out", &[("FEATURE", "no")]),
        ];
        for candidates in [[&runs[0], &runs[1]], [&runs[1], &runs[0]]] {
            let chosen = choose(&candidates, &executable, temp.path());
            let open = matches!(chosen, Choice::Open(_));
            assert_eq!(open, !dep_info.contains("env-dep"), "{dep_info}");
            assert_eq!(chosen.script().unwrap().out_dir, expected, "{dep_info}");
        }
    }

    #[test]
    fn the_variables_that_the_code_asked_for_decide() {
        check("# env-dep:OUT_DIR=/b/with/out\n", "/b/with/out");
        check("it: it.rs\n\n# env-dep:FEATURE=yes\n# env-dep:HOME=/root\n", "/b/with/out");
        check("# env-dep:FEATURE=no\n", "/a/without/out");
        check("# env-dep:ONLY=here\n", "/b/with/out");
        check("# env-dep:ONLY\n", "/a/without/out");
        check("# env-dep:TEXT=two\\nlines\n", "/b/with/out");
    }

    #[test]
    fn without_them_the_choice_is_the_same_every_time() {
        check("it: it.rs\n", "/a/without/out");
    }
}
