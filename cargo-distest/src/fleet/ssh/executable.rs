//! Which executable is copied: this one where it fits, else a static build found beside it.

use std::path::{Path, PathBuf};

use distest_worker::digest::{Digest, Hasher};

pub(in crate::fleet) use super::script::Machine;
use crate::fleet::Unusable;

/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Longest `GLIBC_2.…` that a piece's end may cut through.
const OVERLAP_BYTES: usize = 16;
const GLIBC: &[u8] = b"GLIBC_2.";

/// An executable that contains the worker.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct Executable {
    /// Where it lies here.
    pub(in crate::fleet) path: PathBuf,
    /// The arguments by which it is a worker.
    pub(in crate::fleet) command: &'static str,
    pub(in crate::fleet) digest: Digest,
    /// In bytes.
    pub(in crate::fleet) size: u64,
    /// The oldest glibc 2.x that will do; none for a static one.
    pub(in crate::fleet) glibc: Option<u32>,
}

impl Executable {
    /// What it is called there.
    pub(in crate::fleet) fn name(&self) -> String {
        self.digest.to_string()
    }

    async fn read(path: PathBuf, command: &'static str) -> Result<Self, Unusable> {
        let failed = {
            let path = path.clone();
            move |why: String| Unusable::new(format!("could not read {}: {why}", path.display()))
        };
        let read = tokio::task::spawn_blocking({
            let path = path.clone();
            move || inspect(&path)
        });
        let read = read.await.map_err(|error| failed(error.to_string()))?;
        let (digest, size, glibc) = read.map_err(|error| failed(error.to_string()))?;
        Ok(Self { path, command, digest, size, glibc })
    }
}

/// This process's own.
pub(in crate::fleet) async fn own() -> Result<Executable, Unusable> {
    let path = std::env::current_exe()
        .map_err(|error| Unusable::new(format!("could not find this executable: {error}")))?;
    Executable::read(path, "worker stdio --trusted").await
}

/// What runs on that machine.
pub(in crate::fleet) async fn choose(
    own: Executable,
    machine: &Machine,
) -> Result<Executable, Unusable> {
    let here = format!("Linux {}", std::env::consts::ARCH);
    if machine.kind == here && runs_with(own.glibc, &machine.libc) {
        return Ok(own);
    }
    let architecture = machine.kind.rsplit(' ').next().unwrap_or_default();
    let name = format!("distest-worker-{architecture}-unknown-linux-musl");
    let beside = own.path.with_file_name(&name);
    if machine.kind.starts_with("Linux ") && beside.is_file() {
        return Executable::read(beside, "stdio --trusted").await;
    }
    let libc = if machine.libc.is_empty() { "an unknown C library" } else { &machine.libc };
    let needs = own.glibc.map_or(String::new(), |minor| format!(" with glibc 2.{minor} or newer"));
    let reason = format!("it is {} with {libc}; this executable needs {here}{needs}", machine.kind);
    Err(Unusable::new(reason).hint(format!(
        "build a static worker with: cargo build --release -p distest-worker --target \
         {architecture}-unknown-linux-musl, and put it at {}",
        beside.display()
    )))
}

/// Whether an executable that needs glibc 2.`minor` runs with `libc` (`glibc 2.36`).
fn runs_with(minor: Option<u32>, libc: &str) -> bool {
    let Some(needed) = minor else { return true };
    let there = libc.strip_prefix("glibc 2.").and_then(|rest| rest.split('.').next()?.parse().ok());
    there.is_some_and(|there: u32| there >= needed)
}

/// Its digest, its size, and the newest `GLIBC_2.x` that it names.
fn inspect(path: &Path) -> std::io::Result<(Digest, u64, Option<u32>)> {
    use std::io::Read;

    let mut file = std::fs::File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; READ_BYTES + OVERLAP_BYTES];
    let (mut kept, mut glibc) = (0, None);
    loop {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            let (digest, size) = hasher.finish();
            return Ok((digest, size, glibc));
        }
        hasher.update(&buffer[kept..kept + read]);
        let end = kept + read;
        glibc = glibc.max(newest_glibc(&buffer[..end]));
        kept = end.min(OVERLAP_BYTES);
        buffer.copy_within(end - kept..end, 0);
    }
}

fn newest_glibc(bytes: &[u8]) -> Option<u32> {
    let starts = bytes.windows(GLIBC.len()).enumerate().filter(|(_, window)| *window == GLIBC);
    let minors = starts.filter_map(|(at, _)| {
        let digits = bytes[at + GLIBC.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let digits: String = digits.take(3).map(|byte| char::from(*byte)).collect();
        digits.parse().ok()
    });
    minors.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_needed_glibc_counts() {
        assert_eq!(
            newest_glibc(b"x\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBC_PRIVATE"),
            Some(34)
        );
        assert_eq!(newest_glibc(b"nothing"), None);
        assert!(runs_with(None, "") && runs_with(Some(34), "glibc 2.36"));
        assert!(!runs_with(Some(34), "glibc 2.31") && !runs_with(Some(34), ""));
    }

    #[tokio::test]
    async fn another_machine_needs_another_executable_and_the_error_says_which() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cargo-distest");
        std::fs::write(&path, b"\0GLIBC_2.34\0").expect("written");
        let own = Executable::read(path, "worker").await.expect("read");
        assert_eq!(own.digest, Digest::of(b"\0GLIBC_2.34\0"));
        let machine = |kind: &str, libc: &str| Machine { kind: kind.into(), libc: libc.into() };
        let here = format!("Linux {}", std::env::consts::ARCH);
        let fits = choose(own.clone(), &machine(&here, "glibc 2.36")).await.expect("it fits");
        assert_eq!(fits.digest, own.digest);
        let old = machine(&here, "glibc 2.28");
        let error = choose(own.clone(), &old).await.expect_err("too old");
        assert!(error.reason.contains("glibc 2.28") && error.reason.contains("2.34"));
        assert!(error.hint.expect("a hint").contains("-unknown-linux-musl"));
        let name = format!("distest-worker-{}-unknown-linux-musl", std::env::consts::ARCH);
        std::fs::write(folder.path().join(name), b"static").expect("written");
        let beside = choose(own.clone(), &old).await.expect("a static one");
        assert_eq!((beside.digest, beside.command), (Digest::of(b"static"), "stdio --trusted"));
        assert!(choose(own, &machine("Darwin arm64", "")).await.is_err());
    }
}
