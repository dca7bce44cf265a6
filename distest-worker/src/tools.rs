//! Programs that some tests need and that a worker tells of in its greeting.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is looked for: tests that use trybuild, ui_test or escargot call cargo.
const LOOKED_FOR: [&str; 1] = ["cargo"];

/// Those that are here.
pub fn present() -> Vec<String> {
    LOOKED_FOR.iter().filter(|name| find(name).is_some()).map(|name| (*name).to_owned()).collect()
}

/// Where `PATH` has a program.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_executable(file))
}

/// Whether a file can be executed, as far as its mode tells.
pub fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_in_the_path() {
        assert!(find("sh").is_some_and(|sh| is_executable(&sh)));
        assert_eq!(find("no-such-program"), None);
        assert!(!is_executable(Path::new("/")) && !is_executable(Path::new("/etc/passwd")));
    }
}
