//! What the other side's shell is told, and what it answers. Pure.
//!
//! Scripts go inside single quotes, so that any login shell hands them to `sh`: they contain
//! neither single quotes nor line ends.

use super::executable::Executable;

/// Where executables lie there.
const FOLDER: &str = "d=${XDG_CACHE_HOME:-$HOME/.cache}/cargo-distest/bin";
/// What our scripts' lines begin with.
const MARK: &str = "distest-launch:";
/// Days for which an executable that nobody uses is kept.
const KEEP_DAYS: u32 = 14;

/// What a script says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// The other side's shell runs the script that starts a worker.
    Reached,
    /// The executable is there, and speaks from here on.
    Have,
    /// It isn't; what the machine is.
    Lack(Machine),
    /// It is there now.
    Copied,
}

/// What the other side is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::fleet) struct Machine {
    /// `Linux x86_64`.
    pub(in crate::fleet) kind: String,
    /// `glibc 2.36`; empty if unknown.
    pub(in crate::fleet) libc: String,
}

/// Starts the worker if its executable is there.
pub(super) fn start(it: &Executable) -> String {
    let (name, command) = (it.name(), it.command);
    format!(
        "echo {MARK} reached; {FOLDER}; f=\"$d/{name}\"; if [ -x \"$f\" ]; then touch \"$f\"; echo {MARK} have; \
         exec \"$f\" {command}; fi; echo {MARK} lack \"$(uname -s) $(uname -m)\" / \
         \"$(getconf GNU_LIBC_VERSION 2>/dev/null)\""
    )
}

/// Takes the executable on stdin. What arrives incomplete is removed, and so is what is old.
pub(super) fn copy(it: &Executable) -> String {
    let (name, size) = (it.name(), it.size);
    format!(
        "umask 077; {FOLDER}; mkdir -p \"$d\" || exit 1; t=\"$d/.new.$$\"; cat > \"$t\"; \
         if [ \"$(wc -c < \"$t\")\" -eq {size} ] && chmod 700 \"$t\" && mv \"$t\" \"$d/{name}\"; \
         then find \"$d\" -type f -mtime +{KEEP_DAYS} -exec rm -f {{}} +; echo {MARK} copied; \
         else rm -f \"$t\"; exit 1; fi"
    )
}

impl Said {
    /// A line, if it is one of ours.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let said = line.strip_suffix('\n')?.strip_prefix(MARK)?.trim();
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "reached" => Some(Self::Reached),
            "have" => Some(Self::Have),
            "copied" => Some(Self::Copied),
            "lack" => {
                let (kind, libc) = rest.split_once('/').unwrap_or((rest, ""));
                let (kind, libc) = (kind.trim().to_owned(), libc.trim().to_owned());
                Some(Self::Lack(Machine { kind, libc }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Output, Stdio};

    use distest_worker::digest::Digest;

    use super::*;

    fn it() -> Executable {
        let text = b"#!/bin/sh\necho ran $1\n";
        Executable {
            path: "unused".into(),
            command: "worker",
            digest: Digest::of(text),
            size: text.len() as u64,
            glibc: None,
        }
    }

    fn sh(script: &str, home: &std::path::Path, input: &[u8]) -> Output {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        // A script that takes no input may have ended.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        child.wait_with_output().expect("it ends")
    }

    fn lines(output: &Output) -> Vec<String> {
        String::from_utf8_lossy(&output.stdout).split_inclusive('\n').map(str::to_owned).collect()
    }

    #[test]
    fn an_executable_is_copied_once_and_then_started() {
        let home = tempfile::tempdir().expect("a folder");
        let text = b"#!/bin/sh\necho ran $1\n";
        let lacks = lines(&sh(&start(&it()), home.path(), b""));
        assert_eq!(Said::parse(&lacks[0]), Some(Said::Reached));
        let Some(Said::Lack(machine)) = Said::parse(&lacks[1]) else { panic!("{lacks:?}") };
        assert!(machine.kind.starts_with("Linux ") || cfg!(not(target_os = "linux")));
        let copied = lines(&sh(&copy(&it()), home.path(), text));
        assert_eq!(Said::parse(&copied[0]), Some(Said::Copied), "{copied:?}");
        let has = lines(&sh(&start(&it()), home.path(), b""));
        assert_eq!(Said::parse(&has[1]), Some(Said::Have));
        assert_eq!(has[2], "ran worker\n");
    }

    #[test]
    fn what_arrives_incomplete_leaves_nothing() {
        let home = tempfile::tempdir().expect("a folder");
        let output = sh(&copy(&it()), home.path(), b"#!/bin/sh");
        assert!(!output.status.success());
        let left = std::fs::read_dir(home.path().join(".cache/cargo-distest/bin"));
        assert_eq!(left.expect("it was made").count(), 0);
    }

    #[test]
    fn scripts_survive_being_quoted() {
        for script in [start(&it()), copy(&it())] {
            assert!(!script.contains(['\'', '\n', '!']), "{script}");
        }
        for chatter in ["Welcome!\n", "", "distest-launch: have", "distest-launch: other\n"] {
            assert_eq!(Said::parse(chatter), None, "{chatter}");
        }
    }
}
