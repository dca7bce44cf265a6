//! Real projects: crates that are published with their tests, through cargo.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use crate::product::cargo;

/// Copies crates out of what cargo vendors, each as a workspace of its own, below `work`.
///
/// Each is a name and a version requirement: `1`, or `1.12.1` for exactly that.
///
/// # Errors
/// If cargo can't fetch them.
pub fn fetch(work: &Path, crates: &[(&str, &str)]) -> io::Result<Vec<PathBuf>> {
    let manifest_dir = work.join("manifest");
    let mut manifest =
        "[workspace]\n[package]\nname = \"public-crates-manifest\"\nversion = \"0.1.0\"\n\
                        edition = \"2024\"\n[dependencies]\n"
            .to_owned();
    for (name, version) in crates {
        let exactly = if version.matches('.').count() == 2 { "=" } else { "" };
        let _ = writeln!(manifest, "{name} = \"{exactly}{version}\"");
    }
    fs::create_dir_all(manifest_dir.join("src"))?;
    fs::write(manifest_dir.join("Cargo.toml"), manifest)?;
    fs::write(manifest_dir.join("src/lib.rs"), "")?;
    let vendored = work.join("vendor");
    // Crates without a library may stand among the dependencies: cargo warns and fetches them.
    let mut command = Command::new(cargo());
    command.args(["vendor", "--versioned-dirs"]).arg(&vendored).current_dir(&manifest_dir);
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    crates.iter().map(|(name, version)| copy_out(work, &vendored, name, version)).collect()
}

fn copy_out(work: &Path, vendored: &Path, name: &str, version: &str) -> io::Result<PathBuf> {
    let (whole, start) = (format!("{name}-{version}"), format!("{name}-{version}."));
    let mut found = fs::read_dir(vendored)?.filter_map(Result::ok).map(|entry| entry.file_name());
    let folder = found
        .find(|folder| **folder == *whole || folder.to_string_lossy().starts_with(&start))
        .ok_or_else(|| io::Error::other(format!("cargo vendored no {start}*")))?;
    let project = work.join("projects").join(&folder);
    if !project.exists() {
        let partial = work.join("projects").join("partial");
        let _ = fs::remove_dir_all(&partial);
        copy(&vendored.join(&folder), &partial)?;
        let manifest = partial.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)?;
        if !text.lines().any(|line| line.starts_with("[workspace")) {
            fs::write(&manifest, text + "\n[workspace]\n")?;
        }
        fs::rename(&partial, &project)?;
    }
    Ok(project)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_name() != ".cargo-checksum.json" {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
