//! Files that travel because the user says so, though git ignores them or they lie elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use distest_worker::globs::Globs;
use distest_worker::lexical::plain;

use crate::failure::{ExitCode, Failure};

/// Folders that every machine has for itself. What is laid out there would hide a worker's own.
pub const SYSTEM: [&str; 12] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys",
    "/usr",
];

/// One pattern: all in `base` that matches `rest`, or `base` itself and all that is in it.
#[derive(Clone, Debug)]
pub struct Include {
    pattern: String,
    base: PathBuf,
    rest: Option<Globs>,
}

impl Include {
    /// Parses a pattern relative to the workspace's root.
    ///
    /// # Errors
    /// [`ExitCode::Setup`] for a pattern that makes no sense.
    pub fn parse(pattern: &str, workspace: &Path) -> Result<Self, Failure> {
        let fail = |why: String| {
            let what = format!("could not use the pattern `{pattern}` of `include`");
            Failure::new(ExitCode::Setup, what).because(why)
        };
        let literal = |component: &&str| !component.contains(['*', '?', '[', '{', '\\']);
        let components: Vec<&str> = pattern.trim_end_matches('/').split('/').collect();
        let split = components.iter().take_while(|component| literal(component)).count();
        let (base, rest) = components.split_at(split);
        // An absolute pattern begins with an empty component.
        let absolute = pattern.starts_with('/');
        let root = if absolute { Path::new("/") } else { workspace };
        let base = plain(&root.join(base.join("/").trim_start_matches('/')));
        let rest = match rest {
            [] => None,
            rest => Some(Globs::new([format!("./{}", rest.join("/"))]).map_err(fail)?),
        };
        Ok(Self { pattern: pattern.to_owned(), base, rest })
    }

    /// As the user wrote it.
    pub(super) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The folder that must be laid out on workers for it, if it lies in none of `roots`.
    ///
    /// # Errors
    /// [`ExitCode::Setup`] if it would hide what workers have for themselves.
    pub fn root(&self, roots: &[PathBuf]) -> Result<Option<PathBuf>, Failure> {
        if roots.iter().any(|root| self.base.starts_with(root)) {
            return Ok(None);
        }
        let folder = match (self.base.is_dir(), self.base.parent()) {
            (false, Some(parent)) => parent,
            _ => &self.base,
        };
        let around = roots.iter().any(|root| root.starts_with(folder));
        let system = SYSTEM.iter().any(|system| folder.starts_with(system));
        if around || system || folder.components().count() < 3 {
            let what = format!("could not include files of {}", folder.display());
            let why = "workers have such a folder of their own, or it holds the workspace";
            return Err(Failure::new(ExitCode::Setup, what)
                .because(why)
                .hint("name a folder further down, or put the files into the workspace"));
        }
        Ok(Some(folder.to_owned()))
    }

    /// All that matches, at most `limit`. Links are not followed; `.git` and, unless the pattern
    /// names them, `excluded` folders are left out.
    pub(super) fn find(&self, excluded: &[PathBuf], limit: usize) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let excluded: Vec<&PathBuf> =
            excluded.iter().filter(|folder| !self.base.starts_with(folder)).collect();
        let mut folders = vec![self.base.clone()];
        if self.rest.is_none() && self.base.symlink_metadata().is_ok() {
            found.push(self.base.clone());
        }
        while let Some(folder) = folders.pop() {
            // What can't be read is missing, and found out by who looks for it.
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_name() == ".git" || excluded.iter().any(|folder| **folder == path) {
                    continue;
                }
                let relative = path.strip_prefix(&self.base).ok();
                if self.rest.as_ref().is_none_or(|rest| rest.matches(&path, relative)) {
                    found.push(path.clone());
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                }
            }
            if found.len() > limit {
                break;
            }
        }
        found
    }
}

/// Whether workers have what lies there for themselves.
pub(super) fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, base: &str, root: Result<Option<&str>, ()>) {
        let include = Include::parse(pattern, Path::new("/ws/project")).unwrap();
        assert_eq!(include.base, Path::new(base), "{pattern}");
        let found = include.root(&["/ws/project".into()]).map_err(|_| ());
        assert_eq!(found, root.map(|root| root.map(PathBuf::from)), "{pattern}");
    }

    #[test]
    fn patterns_start_at_the_workspace_or_the_root() {
        check("data/*.bin", "/ws/project/data", Ok(None));
        check("**/x", "/ws/project", Ok(None));
        check("./a/../b", "/ws/project/b", Ok(None));
        // Neither exists, so it is taken for a file.
        check("../data/set/x", "/ws/data/set/x", Ok(Some("/ws/data/set")));
        check("/opt/models/*", "/opt/models", Err(()));
        check("/opt/models/v1/x*", "/opt/models/v1", Ok(Some("/opt/models")));
    }

    #[test]
    fn what_workers_have_themselves_stays() {
        for pattern in ["/etc/hosts", "/usr/share/dict/words", "/*", "/tmp/x", "../x"] {
            let include = Include::parse(pattern, Path::new("/ws/project")).unwrap();
            let failure = include.root(&["/ws/project".into()]).unwrap_err();
            assert!(failure.to_string().contains("could not include"), "{pattern}");
        }
        assert!(Include::parse("data/[", Path::new("/w")).is_err());
    }
}
