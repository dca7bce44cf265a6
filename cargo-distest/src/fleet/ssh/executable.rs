//! Which executable is copied: this one where it fits, else a static build found beside it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use distest_worker::compat::elf::Elf;
use distest_worker::digest::Digest;
use object::ReadCache;

pub(in crate::fleet) use super::script::Machine;
use crate::fleet::Unusable;

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

/// Its digest, its size, and the newest `GLIBC_2.x` that it asks its libraries for.
fn inspect(path: &Path) -> io::Result<(Digest, u64, Option<u32>)> {
    let (digest, size) = Digest::of_reader(File::open(path)?)?;
    // Reads a few pages.
    let glibc = Elf::parse(&ReadCache::new(File::open(path)?)).and_then(|elf| elf.glibc());
    Ok((digest, size, glibc.map(|(_, minor)| minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_needs_the_glibc_that_its_libraries_are_asked_for() {
        let (_, size, glibc) = inspect(&std::env::current_exe().expect("this")).expect("read");
        assert!(size > 0 && glibc.is_some() == cfg!(target_env = "gnu"), "{glibc:?}");
        assert!(runs_with(None, "") && runs_with(Some(34), "glibc 2.36"));
        assert!(!runs_with(Some(34), "glibc 2.31") && !runs_with(Some(34), ""));
    }

    #[tokio::test]
    async fn another_machine_needs_another_executable_and_the_error_says_which() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cargo-distest");
        std::fs::write(&path, b"it").expect("written");
        let own = Executable::read(path, "worker").await.expect("read");
        assert_eq!((own.digest, own.glibc), (Digest::of(b"it"), None));
        let own = Executable { glibc: Some(34), ..own };
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
