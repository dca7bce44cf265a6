//! What a command costs: wall time, processor time of its whole process tree, memory.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::wait;
use serde::{Deserialize, Serialize};

/// What a command took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// From start to the exit of its own process.
    pub wall_s: f64,
    /// User and system time of it and of everything it started, orphans included.
    pub cpu_s: f64,
    /// Largest resident set of one process among them, in KiB.
    pub memory_kib: i64,
    /// Its exit code; none if it was killed.
    pub exit_code: Option<i32>,
}

/// Runs a command and says what it took. Its output is thrown away, unless `stdout` names a file.
///
/// The `measure` executable does it, once for each command, because the system adds up what a
/// process's descendants took and never forgets.
///
/// # Errors
/// If it can't be started.
pub fn measure(command: &Command, stdout: Option<&Path>) -> io::Result<Cost> {
    let result = tempfile::NamedTempFile::new()?;
    let mut outer = Command::new(beside_this("measure")?);
    outer.arg(result.path()).arg(command.get_program()).args(command.get_args());
    // Exactly the command's variables: it was made without those of this process.
    outer.env_clear();
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        outer.current_dir(folder);
    }
    outer.stdin(Stdio::null()).stderr(Stdio::null());
    outer.stdout(match stdout {
        Some(path) => fs::File::create(path)?.into(),
        None => Stdio::null(),
    });
    let status = outer.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("could not measure {command:?}: {status}")));
    }
    Ok(serde_json::from_slice(&fs::read(result.path())?)?)
}

/// What the `measure` executable does: runs `command`, and waits for all that it leaves behind.
///
/// # Errors
/// If it can't be started.
pub fn run_measured(program: OsString, args: impl Iterator<Item = OsString>) -> io::Result<Cost> {
    // Orphans come to us instead of to init, so that what they took is counted too.
    set_child_subreaper(true)?;
    let started = Instant::now();
    let status: ExitStatus = Command::new(program).args(args).status()?;
    let wall = started.elapsed();
    while wait() != Err(Errno::ECHILD) {}
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Cost {
        wall_s: wall.as_secs_f64(),
        cpu_s: Duration::from_micros(micros.unsigned_abs()).as_secs_f64(),
        memory_kib: usage.max_rss(),
        exit_code: status.code(),
    })
}

/// The middle one; of an even number the mean of both in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    values.get(low).zip(values.get(high)).map_or(f64::NAN, |(low, high)| (low + high) / 2.0)
}

/// Another executable of this package.
///
/// # Errors
/// If it has not been built: `cargo run` builds only the one it runs.
pub fn beside_this(name: &str) -> io::Result<PathBuf> {
    let path = env::current_exe()?.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    let hint = format!("{} is missing: run cargo build -p distest-tests --bins", path.display());
    Err(io::Error::new(io::ErrorKind::NotFound, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
