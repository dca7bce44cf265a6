//! Where cargo puts things, read off the path of something that it built.
//!
//! Outputs lie in `TARGET/[TRIPLE/]PROFILE`, intermediate files and test binaries in
//! `BUILD/[TRIPLE/]PROFILE/deps`; both are the same folder unless `build.build-dir` is set. This
//! module never touches the file system.

use std::path::{Component, Path, PathBuf};

/// The folders that one artifact's siblings lie in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Layout {
    /// The triple that was given with `--target`, if any (for a specification file: its stem).
    pub(super) triple: Option<String>,
    /// Outputs under their final names: `target/debug`.
    pub(super) outputs: PathBuf,
    /// Intermediate files: `target/debug`, or the same below `build.build-dir`.
    pub(super) intermediate: PathBuf,
    /// `CARGO_TARGET_TMPDIR`.
    pub(super) tmp: PathBuf,
}

impl Layout {
    /// The layout that `artifact` belongs to. A path outside of both folders is taken for
    /// `PROFILE/deps/NAME`.
    pub(super) fn of(artifact: &Path, target_dir: &Path, build_dir: &Path) -> Self {
        let mut roots = [target_dir, build_dir];
        // One may lie in the other.
        roots.sort_by_key(|root| std::cmp::Reverse(root.components().count()));
        let relative = roots.iter().find_map(|root| artifact.strip_prefix(root).ok());
        let (triple, profile) = relative.map_or((None, None), split);
        let Some(profile) = profile else {
            let folder = artifact.parent().and_then(Path::parent).unwrap_or(artifact);
            let tmp = folder.parent().unwrap_or(folder).join("tmp");
            let (outputs, intermediate) = (folder.to_path_buf(), folder.to_path_buf());
            return Self { triple: None, outputs, intermediate, tmp };
        };
        let below = |root: &Path| triple.as_ref().map_or(root.to_owned(), |name| root.join(name));
        Self {
            outputs: below(target_dir).join(&profile),
            intermediate: below(build_dir).join(&profile),
            tmp: below(build_dir).join("tmp"),
            triple,
        }
    }

    /// Where rustc puts libraries and test binaries.
    pub(super) fn deps(&self) -> PathBuf {
        self.intermediate.join("deps")
    }

    /// Where build scripts have their folders.
    pub(super) fn scripts(&self) -> PathBuf {
        self.intermediate.join("build")
    }
}

/// The triple and the profile's folder in `[TRIPLE/]PROFILE[/deps|/examples|/build/…]/NAME`.
fn split(relative: &Path) -> (Option<String>, Option<String>) {
    let folders = relative.parent().map(Path::components).into_iter().flatten();
    let folders: Vec<&str> = folders
        .filter_map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .enumerate()
        .take_while(|&(i, name)| i == 0 || !matches!(name, "deps" | "examples" | "build"))
        .map(|(_, name)| name)
        .collect();
    match folders[..] {
        [profile] => (None, Some(profile.to_owned())),
        [triple, profile] => (Some(triple.to_owned()), Some(profile.to_owned())),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(artifact: &str, triple: Option<&str>, outputs: &str, intermediate: &str, tmp: &str) {
        let layout = Layout::of(Path::new(artifact), Path::new("/w/target"), Path::new("/b"));
        assert_eq!(layout.triple.as_deref(), triple, "{artifact}");
        assert_eq!(layout.outputs, Path::new(outputs), "{artifact}");
        assert_eq!(layout.intermediate, Path::new(intermediate), "{artifact}");
        assert_eq!(layout.tmp, Path::new(tmp), "{artifact}");
    }

    #[test]
    fn finds_triple_and_profile_wherever_the_artifact_lies() {
        for artifact in
            ["/w/target/debug/rg", "/b/debug/deps/it-1", "/b/debug/build/p/out/deps/it-1"]
        {
            check(artifact, None, "/w/target/debug", "/b/debug", "/b/tmp");
        }
        for artifact in
            ["/w/target/arm/fast/rg", "/b/arm/fast/deps/it-1", "/b/arm/fast/examples/e-1"]
        {
            check(artifact, Some("arm"), "/w/target/arm/fast", "/b/arm/fast", "/b/arm/tmp");
        }
        check("/else/debug/deps/it-1", None, "/else/debug", "/else/debug", "/else/tmp");
    }

    #[test]
    fn the_inner_of_two_nested_folders_counts() {
        let artifact = Path::new("/w/target/build/debug/deps/it-1");
        let layout = Layout::of(artifact, Path::new("/w/target"), Path::new("/w/target/build"));
        assert_eq!(layout.triple, None);
        assert_eq!(layout.outputs, Path::new("/w/target/debug"));
        assert_eq!(layout.intermediate, Path::new("/w/target/build/debug"));
    }
}
