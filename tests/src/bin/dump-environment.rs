//! A cargo target runner that writes down the environment it is given and then becomes the test.
//!
//! `dump-environment EXECUTABLE ARGS…` writes `$ENVIRONMENT_OUT/runner-NAME`, entries ending with
//! NUL, where NAME is the executable's file name.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let missing = |what: &str| io::Error::other(format!("{what} is missing"));
    let folder = env::var_os("ENVIRONMENT_OUT").ok_or_else(|| missing("ENVIRONMENT_OUT"))?;
    let executable = env::args_os().nth(1).ok_or_else(|| missing("the executable"))?;
    let name = Path::new(&executable).file_name().ok_or_else(|| missing("a file name"))?;

    let mut bytes = Vec::new();
    for (name, value) in env::vars_os() {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'=');
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    }
    let file = PathBuf::from(folder).join(format!("runner-{}", name.to_string_lossy()));
    fs::write(file, bytes)?;
    Err(Command::new(&executable).args(env::args_os().skip(2)).exec())
}
