//! What a test is given beyond its binary's own needs: variables, arguments, and the command that
//! runs it again. Pure: the client's environment comes as an argument.
//!
//! `NEXTEST_*` follow cargo-nextest's documented environment, so that tests written for it work;
//! `DISTEST_TEST_WORKER`, `DISTEST_TEST_SLOT` and `NEXTEST_TEST_GLOBAL_SLOT` are added by the
//! worker, which alone knows the slot.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use distest_worker::globs::Globs;
use distest_worker::protocol::OsText;

use crate::filter;
use crate::model::{TestBinary, TestCase};

/// Tells insta where the workspace is: it would ask cargo, which a worker needn't have.
const INSTA_ROOT: &str = "INSTA_WORKSPACE_ROOT";

/// Variables of the client that a remote test gets, by name; `*` stands for any ending.
const TRAVELLING: &[&str] = &[
    "CARGO_TERM_*",
    "CI",
    "INSTA_*",
    "LANG",
    "LC_*",
    "LLVM_PROFILE_FILE",
    "NO_COLOR",
    "PROPTEST_*",
    "QUICKCHECK_*",
    "RUST_*",
    "TRYBUILD",
    "TRYCMD",
    "TZ",
    "UPDATE_EXPECT",
];

/// Variables that no test gets: they concern the client alone.
const KEPT_BACK: &[&str] = &["DISTEST_KEY"];

/// Variables that a worker and its tests have of their own, by name; `*` stands for any ending:
/// where the user's things are on a machine.
pub const OF_A_MACHINE: &[&str] = &[
    "CARGO_HOME",
    "HOME",
    "HOSTNAME",
    "LD_PRELOAD",
    "LOGNAME",
    "OLDPWD",
    "PATH",
    "PWD",
    "RUSTUP_*",
    "SHELL",
    "SHLVL",
    "SSH_*",
    "TEMP",
    "TMP",
    "TMPDIR",
    "USER",
    "XDG_*",
    "_",
];

/// The same: what cargo, rustdoc and cargo-nextest set for an executable.
pub const OF_CARGO: &[&str] = &[
    "CARGO",
    "CARGO_BIN_EXE_*",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_*",
    "CARGO_PKG_*",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_TARGET_TMPDIR",
    "LD_LIBRARY_PATH",
    "NEXTEST",
    "NEXTEST_*",
    "OUT_DIR",
    "RUSTDOC_DOCTEST_*",
];

/// The same: ours.
pub const OURS: &[&str] = &["DISTEST", "DISTEST_*"];

/// Variables that remote tests get because the user says so.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Given by their names.
    named: BTreeSet<String>,
    globs: Globs,
}

impl Pass {
    /// Names, and patterns of names. A pattern never means what a worker has of its own: only who
    /// names `PATH` wants to have it replaced.
    ///
    /// # Errors
    /// In words: a pattern that makes no sense.
    pub fn new(patterns: &[String]) -> Result<Self, String> {
        let globs = Globs::new(patterns)?;
        let plain = |pattern: &&String| !pattern.contains(['*', '?', '[', '{', '\\']);
        Ok(Self { named: patterns.iter().filter(plain).cloned().collect(), globs })
    }

    fn takes(&self, name: &OsStr) -> bool {
        let own = name.to_str().is_some_and(is_workers_own);
        let named = name.to_str().is_some_and(|name| self.named.contains(name));
        named || !own && self.globs.matches(Path::new(name), Some(Path::new(name)))
    }
}

/// Whether a worker, or a test there, has its own of a variable.
pub fn is_workers_own(name: &str) -> bool {
    [OF_A_MACHINE, OF_CARGO, OURS].into_iter().any(|own| any_matches(own, name))
}

/// What all tests of a run have in common.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// The run's name.
    pub run: String,
    /// The profile in force.
    pub profile: String,
    /// The workspace's root.
    pub workspace_root: OsString,
    /// Tests at once.
    pub threads: u32,
    /// Attempts that a test gets at most.
    pub attempts_max: u32,
}

/// The environment of every process of a session, before the binary's and the attempt's own.
///
/// An embedded worker passes on the client's whole environment, as cargo does; elsewhere only what
/// is meant for tests travels, and what `pass` names.
pub fn session(
    facts: &RunFacts,
    client: impl Iterator<Item = (OsString, OsString)>,
    embedded: bool,
    pass: &Pass,
) -> Vec<(OsText, OsText)> {
    let passed = client.filter(|(name, _)| match embedded {
        true => !is_kept_back(name),
        false => travels(name, pass),
    });
    let mut env: Vec<_> = passed.map(|(name, value)| (name.into(), value.into())).collect();
    let insta = OsText::from(INSTA_ROOT);
    if !embedded && !env.iter().any(|(name, _): &(OsText, OsText)| *name == insta) {
        env.push((insta, facts.workspace_root.clone().into()));
    }
    let ours = [
        ("DISTEST", OsString::from("1")),
        ("NEXTEST", "1".into()),
        ("NEXTEST_RUN_ID", facts.run.clone().into()),
        ("NEXTEST_EXECUTION_MODE", "process-per-test".into()),
        ("NEXTEST_PROFILE", facts.profile.clone().into()),
        ("NEXTEST_TEST_GROUP", "@global".into()),
        ("NEXTEST_TEST_GROUP_SLOT", "none".into()),
        ("NEXTEST_TEST_PHASE", "run".into()),
        ("NEXTEST_TEST_THREADS", facts.threads.to_string().into()),
        ("NEXTEST_TOTAL_ATTEMPTS", facts.attempts_max.to_string().into()),
        ("NEXTEST_WORKSPACE_ROOT", facts.workspace_root.clone()),
    ];
    env.extend(ours.into_iter().map(|(name, value)| (name.into(), value.into())));
    env
}

/// What a binary's tests must not find, though it is a variable of the session: insta's own tests
/// are about what is done without it.
pub fn unset(package: &str) -> impl Iterator<Item = OsText> {
    (package == "insta").then(|| OsText::from(INSTA_ROOT)).into_iter()
}

/// The variables of one attempt; `number` counts from 1.
pub fn attempt(facts: &RunFacts, case: &TestCase, number: u32) -> Vec<(OsText, OsText)> {
    let (binary, name) = (&case.binary, &case.name);
    let id = format!("{}:{binary}${name}", facts.run);
    let id = if number > 1 { format!("{id}#{number}") } else { id };
    let number = number.to_string();
    let env = [
        ("DISTEST_TEST_ATTEMPT", number.clone()),
        ("NEXTEST_ATTEMPT", number),
        ("NEXTEST_ATTEMPT_ID", id),
        ("NEXTEST_BINARY_ID", binary.to_string()),
        ("NEXTEST_TEST_NAME", name.to_string()),
    ];
    env.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// What makes a test binary run exactly one test and show its output; nothing for a binary that is
/// one test case as a whole. An ignored test must be told to run, or the harness passes it unseen.
/// What is known to be libtest is told that there may be several threads: one test starts no more
/// for it, and libtest need not read in files of the system how many the machine has.
pub fn arguments(case: &TestCase, ignored: bool, whole: bool, libtest: bool) -> Vec<OsText> {
    if whole {
        return Vec::new();
    }
    let name = &*case.name.0;
    let mut arguments = vec!["--exact", "--nocapture"];
    arguments.extend(ignored.then_some("--ignored"));
    arguments.extend(libtest.then_some("--test-threads=2"));
    // Only a custom harness has such names, and only behind a `--` are they no options.
    match name.starts_with('-') {
        true => arguments.extend(["--", name]),
        false => arguments.insert(0, name),
    }
    arguments.into_iter().map(OsText::from).collect()
}

/// The shell command that runs a test again through us: `build` is what cargo was given.
pub fn reproduce(build: &[OsString], binary: &TestBinary, case: &TestCase) -> String {
    let (id, name) = (filter::literal(&case.binary.0), filter::literal(&case.name.0));
    // An equality needs something to be equal to.
    let name = if name.is_empty() { "/^$/".to_owned() } else { format!("={name}") };
    let filterset = format!("binary_id(={id}) & test({name})");
    command(build, binary, &format!("--run-ignored all -E {}", quote(&filterset)))
}

/// The shell command that runs these tests of a binary in one process again.
pub fn reproduce_batch<'a>(
    build: &[OsString],
    binary: &TestBinary,
    names: impl Iterator<Item = &'a str>,
) -> String {
    let names: Vec<_> = names.map(|name| format!("test(={})", filter::literal(name))).collect();
    let id = filter::literal(&binary.id.0);
    let filterset = format!("binary_id(={id}) & ({})", names.join(" | "));
    // History may keep one of them out of company.
    let last = format!("--isolation batch -j 1 --no-history -E {}", quote(&filterset));
    command(build, binary, &last)
}

fn command(build: &[OsString], binary: &TestBinary, last: &str) -> String {
    let package = format!("--package={}", binary.package);
    let given = build.iter().map(|argument| quote(&argument.to_string_lossy()));
    let names_packages = build.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        ["-p", "--package", "--workspace", "--all"]
            .iter()
            .any(|flag| argument.split_once('=').map_or(&*argument, |(name, _)| name) == *flag)
    });
    let own = (!names_packages).then(|| quote(&package));
    let words = ["cargo distest run".to_owned()].into_iter().chain(given).chain(own);
    words.chain([last.to_owned()]).collect::<Vec<_>>().join(" ")
}

/// Whether it belongs to this machine and no worker gets it.
pub fn is_kept_back(name: &OsStr) -> bool {
    KEPT_BACK.iter().any(|kept| name == *kept)
}

/// A word as a POSIX shell takes it.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Whether remote tests get a variable of the client's.
pub fn travels(name: &OsStr, pass: &Pass) -> bool {
    if is_kept_back(name) {
        return false;
    }
    if pass.takes(name) {
        return true;
    }
    name.to_str().is_some_and(|name| any_matches(TRAVELLING, name))
}

/// Whether one of `patterns` is `name`, or its beginning followed by `*`.
pub fn any_matches(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BinaryId, TestName};

    fn facts() -> RunFacts {
        RunFacts {
            run: "run".into(),
            profile: "default".into(),
            workspace_root: "/w".into(),
            threads: 2,
            attempts_max: 1,
        }
    }

    fn case(name: &str) -> TestCase {
        TestCase { binary: BinaryId::new("p::t"), name: TestName::new(name) }
    }

    fn names(env: &[(OsText, OsText)]) -> Vec<&str> {
        env.iter().filter_map(|(name, _)| name.as_os_str().to_str()).collect()
    }

    #[test]
    fn only_what_is_meant_for_tests_travels_and_the_key_never_does() {
        let client = ["DISTEST_KEY", "SECRET", "RUST_LOG", "LC_ALL", "CI"];
        let client = client.map(|name| (OsString::from(name), OsString::from("x")));
        let none = Pass::default();
        let remote = session(&facts(), client.clone().into_iter(), false, &none);
        let travelling = ["RUST_LOG", "LC_ALL", "CI", "INSTA_WORKSPACE_ROOT", "DISTEST"];
        assert_eq!(names(&remote)[..5], travelling);
        let all = Pass::new(&["*".to_owned()]).unwrap();
        let passed = session(&facts(), client.clone().into_iter(), false, &all);
        assert_eq!(names(&passed)[..4], ["SECRET", "RUST_LOG", "LC_ALL", "CI"]);
        let insta = [("INSTA_WORKSPACE_ROOT".into(), "/mine".into())];
        let given = session(&facts(), insta.into_iter(), false, &none);
        assert_eq!(given[0].1, OsText::from("/mine"));
        assert_eq!(names(&given).iter().filter(|name| name.starts_with("INSTA")).count(), 1);
        let embedded = session(&facts(), client.into_iter(), true, &none);
        assert_eq!(names(&embedded)[..5], ["SECRET", "RUST_LOG", "LC_ALL", "CI", "DISTEST"]);
    }

    #[test]
    fn a_pattern_replaces_nothing_that_a_worker_has_of_its_own() {
        let own =
            ["PATH", "HOME", "TMPDIR", "CARGO", "CARGO_PKG_NAME", "OUT_DIR", "NEXTEST_RUN_ID"];
        let check = |patterns: &[&str], passed: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            let pass = Pass::new(&patterns).unwrap();
            let all = own.into_iter().chain(["MINE", "DISTEST_KEY"]);
            let travelling: Vec<_> = all.filter(|name| travels(name.as_ref(), &pass)).collect();
            assert_eq!(travelling, passed, "{patterns:?}");
        };
        check(&["*"], &["MINE"]);
        check(&["[A-Z]*", "?IN{E,N}", "HOM?"], &["MINE"]);
        check(&["PATH", "CARGO_PKG_NAME", "DISTEST_KEY"], &["PATH", "CARGO_PKG_NAME"]);
    }

    #[test]
    fn only_insta_itself_is_not_told_where_the_workspace_is() {
        assert_eq!(unset("insta").collect::<Vec<_>>(), [OsText::from(INSTA_ROOT)]);
        assert_eq!(unset("mine").count(), 0);
    }

    #[test]
    fn a_name_that_looks_like_an_option_is_none() {
        assert_eq!(
            arguments(&case("a b"), false, false, false),
            ["a b", "--exact", "--nocapture"].map(OsText::from)
        );
        let dashed = ["--exact", "--nocapture", "--", "-x"].map(OsText::from);
        assert_eq!(arguments(&case("-x"), false, false, false), dashed);
        assert_eq!(arguments(&case("t"), false, true, false), []);
        let ignored = ["t", "--exact", "--nocapture", "--ignored"].map(OsText::from);
        assert_eq!(arguments(&case("t"), true, false, false), ignored);
        let libtest = ["t", "--exact", "--nocapture", "--test-threads=2"].map(OsText::from);
        assert_eq!(arguments(&case("t"), false, false, true), libtest);
    }

    #[test]
    fn attempts_have_ids_of_their_own() {
        let ids = [1, 2].map(|n| attempt(&facts(), &case("t"), n)[2].1.clone());
        assert_eq!(ids, ["run:p::t$t", "run:p::t$t#2"].map(OsText::from));
    }

    #[test]
    fn words_survive_a_shell() {
        for (word, quoted) in [("a-b=c", "a-b=c"), ("", "''"), ("it's", r"'it'\''s'")] {
            assert_eq!(quote(word), quoted);
        }
    }
}
