//! A worker on an older distribution: `cargo run -p distest-tests --bin older-system -- [ROOT]`
//!
//! Installs Debian 11, whose C library is older than that of later systems, into a folder (ROOT if
//! it is named, and then it is kept and used again), from the mirror that this machine's apt uses.
//! Builds a worker for it and starts that there as an ordinary user, hermetically. A test that was
//! built for this machine must not be sent there, and the reason be told; one that was built for
//! the older system must run there. Only root can do this; needs `debootstrap`, `ip` and a C
//! compiler.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use distest_tests::client::Client;
use distest_tests::hermetic::{Plan, possible};
use distest_tests::product::{cargo, product, repository};
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Transcript;

const RELEASE: &str = "bullseye";
/// Where its libraries lie.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

const MANIFEST: &str =
    "[workspace]\n[package]\nname = \"subject\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
const TESTS: &str = r#"
    fn system() -> String {
        std::fs::read_to_string("/etc/os-release").unwrap()
    }

    #[test]
    fn tells_where_it_runs() {
        println!("{}", system());
    }

    #[test]
    fn finds_its_files() {
        assert!(std::fs::exists(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap());
    }

    #[test]
    fn runs_on_the_older_system() {
        assert!(system().contains("RELEASE"), "{}", system());
    }
"#;

fn main() {
    possible().expect("root, with ip");
    let scratch = Scratch::new();
    let root = env::args_os().nth(1).map_or_else(|| scratch.join("older"), PathBuf::from);
    if !root.join("etc/os-release").exists() {
        install(&root);
    }
    let flags = flags(&root);
    let worker = build_worker(&root, &flags);
    let worker = Plan::new(&scratch).on(&root, &worker).start(&scratch, "older", 2);
    println!("the worker is ready\n{}", worker.log());

    scratch.write("subject/Cargo.toml", MANIFEST);
    scratch.write("subject/src/lib.rs", &TESTS.replace("RELEASE", RELEASE));
    let folder = scratch.join("subject");
    let run = || Client::call(&scratch, &folder, &["run", "--offline", "--no-fail-fast"]).json();
    let there = std::slice::from_ref(&worker);

    let reason = ["worker older takes no tests of subject: it needs glibc", "glibc 2.31 there"];
    let refused = run().only_on(there).finish();
    refused.complains(97, &reason);
    println!("not sent there: {}", line(&refused.stderr, reason[0]));
    let here = run().worker(&worker.address).args(["--local-slots", "1"]).finish();
    here.complains(100, &reason);
    let transcript = here.transcript(100);
    assert_eq!(ran_on(&transcript), ["local"]);
    println!("here, beside it: {} passed", transcript.summary.passed);
    assert_eq!((transcript.summary.passed, transcript.summary.failed), (2, 1));

    let transcript = run().env("RUSTFLAGS", &flags).only_on(there).finish().transcript(0);
    assert_eq!(ran_on(&transcript), ["older"]);
    assert_eq!(transcript.summary.passed, 3);
    println!("built for it: {} passed there", transcript.summary.passed);
}

fn line<'a>(text: &'a str, with: &str) -> &'a str {
    text.lines().find(|line| line.contains(with)).unwrap_or_default()
}

fn ran_on(transcript: &Transcript) -> Vec<&str> {
    let mut names: Vec<_> = transcript.attempts.iter().map(|it| it.worker.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The mirror of this distribution that apt uses here.
fn mirror() -> String {
    let format = ["--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"];
    let output = Command::new("apt-get").arg("indextargets").args(format).output();
    let output = output.expect("apt-get can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    // Updates are not complete by themselves.
    let mut mirrors = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let ["Debian", codename, mirror] = words[..] else { return None };
        (!codename.contains('-')).then(|| mirror.to_owned())
    });
    mirrors.next().expect("apt knows a mirror of Debian")
}

fn install(root: &Path) {
    println!("installing Debian's {RELEASE}");
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", "--include=libc6-dev", RELEASE]);
    let output = command.arg(root).arg(mirror()).output().expect("debootstrap is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // Absolute links would lead a linker of this machine to this machine's libraries.
    for folder in [root.join(LIBRARIES), root.join("usr/lib64")] {
        for entry in fs::read_dir(&folder).expect("a new folder").flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let Some(name) = target.strip_prefix("/lib/x86_64-linux-gnu").ok() else { continue };
            let relative = Path::new("../x86_64-linux-gnu").join(name);
            let relative = match folder.ends_with("lib64") {
                true => Path::new("../lib/x86_64-linux-gnu").join(name),
                false => relative,
            };
            fs::remove_file(entry.path()).expect("a new folder can be changed");
            std::os::unix::fs::symlink(relative, entry.path()).expect("it can be changed");
        }
    }
}

/// What makes rustc link for that system.
fn flags(root: &Path) -> String {
    let libraries = root.join(LIBRARIES);
    let (root, libraries) = (root.display(), libraries.display());
    [format!("--sysroot={root}"), format!("-B{libraries}"), format!("-L{libraries}")]
        .map(|argument| format!("-Clink-arg={argument}"))
        .join(" ")
}

fn build_worker(root: &Path, flags: &str) -> PathBuf {
    println!("building a worker for it");
    let target_dir = product().target_dir.join("older-system");
    let mut command = Command::new(cargo());
    command.args(["build", "--quiet", "-p", "distest-worker", "--target-dir"]).arg(&target_dir);
    command.env("RUSTFLAGS", flags).env("CFLAGS", format!("--sysroot={}", root.display()));
    let status = command.current_dir(repository()).status().expect("cargo can be started");
    assert!(status.success(), "the worker can't be built for {}", root.display());
    target_dir.join("debug/distest-worker")
}
