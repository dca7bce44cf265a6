//! `cargo distest exec`: one command, on one worker or on all.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use distest_worker::protocol::{Exit, Stream};
use tokio::sync::mpsc;

use super::{failed, fleet_settings};
use crate::cli::ExecArgs;
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Happened, Trouble};

/// What happens that waits to be told.
const TOLD_MAX: usize = 64;
/// The most bytes of a line that waits for its end.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Runs the command; `print` gets whole lines, as they come, for stdout or stderr.
///
/// # Errors
/// [`ExitCode::NoWorker`] if nobody can run it.
pub async fn exec(
    args: &ExecArgs,
    mut print: impl FnMut(Stream, &[u8]),
) -> Result<ExitCode, Failure> {
    let ExecArgs { on, all, worker, command } = args;
    let cwd = std::env::current_dir().unwrap_or_default();
    let settings = fleet_settings(worker, Path::new(&cwd))?;
    let meant = super::meant(&settings, on, *all).await;
    let meant = meant
        .map_err(|trouble| failed(ExitCode::NoWorker, "could not run the command", trouble))?;
    let names: Vec<String> = meant.iter().map(|it| it.name.clone()).collect();
    let (told, mut happened) = mpsc::channel(TOLD_MAX);
    for (index, worker) in meant.into_iter().enumerate() {
        let (settings, told) = (settings.clone(), told.clone());
        let command: Vec<OsString> = command.clone();
        tokio::spawn(async move {
            let (tell, mut hear) = mpsc::channel(TOLD_MAX);
            let telling = async {
                while let Some(it) = hear.recv().await {
                    let _ = told.send((index, it)).await;
                }
            };
            tokio::join!(fleet::run(&settings, worker, &command, tell), telling);
        });
    }
    drop(told);
    let mut lines = Lines { prefix: names.len() > 1, begun: BTreeMap::new() };
    let mut code = ExitCode::Passed;
    let mut ends = Vec::new();
    while let Some((index, it)) = happened.recv().await {
        let name = &names[index];
        let end = match it {
            Happened::Wrote(stream, data) => {
                lines.take(index, name, stream, &data, &mut print);
                continue;
            }
            Happened::Ended(Exit::Code(0)) => None,
            Happened::Ended(Exit::Code(number)) => Some(format!("exited with {number}")),
            Happened::Ended(Exit::Signal(number)) => Some(format!("was killed by signal {number}")),
            Happened::Failed(Trouble { reason, hint }) => {
                let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
                Some(format!("could not run it: {reason}{hint}"))
            }
        };
        lines.end(index, name, &mut print);
        if let Some(end) = end {
            code = ExitCode::CommandFailed;
            ends.push(format!("{name} {end}\n"));
        }
    }
    ends.sort();
    ends.iter().for_each(|end| print(Stream::Stderr, end.as_bytes()));
    Ok(code)
}

/// Output of several, cut into lines.
struct Lines {
    prefix: bool,
    begun: BTreeMap<(usize, Stream), Vec<u8>>,
}

impl Lines {
    fn take(
        &mut self,
        index: usize,
        name: &str,
        stream: Stream,
        data: &[u8],
        print: &mut impl FnMut(Stream, &[u8]),
    ) {
        if !self.prefix {
            return print(stream, data);
        }
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let line = self.begun.entry((index, stream)).or_default();
            line.extend_from_slice(piece);
            if line.ends_with(b"\n") || line.len() >= LINE_BYTES_MAX {
                let line = std::mem::take(line);
                print(stream, &prefixed(name, &line));
            }
        }
    }

    /// What has no newline at its end.
    fn end(&mut self, index: usize, name: &str, print: &mut impl FnMut(Stream, &[u8])) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = self.begun.remove(&(index, stream)).unwrap_or_default();
            if !line.is_empty() {
                print(stream, &prefixed(name, &line));
            }
        }
    }
}

fn prefixed(name: &str, line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    [name.as_bytes(), b" | ", line, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_are_whole_and_named() {
        let mut lines = Lines { prefix: true, begun: BTreeMap::new() };
        let mut printed = Vec::new();
        let mut print = |_, line: &[u8]| printed.extend_from_slice(line);
        lines.take(0, "a", Stream::Stdout, b"one\ntw", &mut print);
        lines.take(1, "b", Stream::Stdout, b"other\n", &mut print);
        lines.take(0, "a", Stream::Stdout, b"o\nthree", &mut print);
        lines.end(0, "a", &mut print);
        assert_eq!(printed, b"a | one\nb | other\na | two\na | three\n");
    }
}
