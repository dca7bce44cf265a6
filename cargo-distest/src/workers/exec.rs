//! `cargo distest exec`: one command, on one worker or on all.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use distest_worker::protocol::{Exit, Stream};
use distest_worker::shown;
use tokio::sync::mpsc;

use super::{exit_code, failed, fleet_settings, ls};
use crate::cli::ExecArgs;
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Happened, Trouble};

/// What happens that waits to be told.
const TOLD_MAX: usize = 64;
/// The most bytes of a line that waits for its end.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Runs the command; `print` gets what it writes, as it comes, for stdout or stderr.
///
/// # Errors
/// [`ExitCode::NoWorker`] if nobody is meant.
pub async fn exec(
    args: &ExecArgs,
    terminals: Terminals,
    mut print: impl FnMut(Stream, &[u8]),
) -> Result<ExitCode, Failure> {
    let ExecArgs { on, all, worker, command } = args;
    let cwd = std::env::current_dir().unwrap_or_default();
    let settings = fleet_settings(worker, Path::new(&cwd))?;
    let meant = super::meant(&settings, on, *all)
        .await
        .map_err(|undone| failed(ExitCode::CommandFailed, "could not run the command", undone))?;
    let names: Vec<String> = meant.iter().map(|it| ls::plain(&it.name)).collect();
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
    let mut shown = Shown { prefix: names.len() > 1, terminals, begun: BTreeMap::new() };
    let mut code = ExitCode::Passed;
    let mut ends = Vec::new();
    while let Some((index, it)) = happened.recv().await {
        let name = &names[index];
        let end = match it {
            Happened::Wrote(stream, data) => {
                shown.take(index, name, stream, &data, &mut print);
                continue;
            }
            Happened::Ended(Exit::Code(0)) => None,
            Happened::Ended(Exit::Code(number)) => Some(format!("exited with {number}")),
            Happened::Ended(Exit::Signal(number)) => Some(format!("was killed by signal {number}")),
            Happened::Failed(undone) => {
                code = code.or_worse(exit_code(ExitCode::CommandFailed, &undone));
                let Trouble { reason, hint } = undone.trouble();
                let hint = hint.as_ref().map(|hint| format!("\n  hint: {}", shown::lines(hint)));
                let (reason, hint) = (shown::lines(reason), hint.unwrap_or_default());
                Some(format!("could not run it: {reason}{hint}"))
            }
        };
        shown.end(index, name, &mut print);
        if let Some(end) = end {
            code = code.or_worse(ExitCode::CommandFailed);
            ends.push(format!("{name} {end}\n"));
        }
    }
    ends.sort();
    ends.iter().for_each(|end| print(Stream::Stderr, end.as_bytes()));
    Ok(code)
}

/// What commands write, as it is shown: the lines of several with their names before them, and
/// nothing that a terminal would act on, where that may be one or where it could look like ours.
struct Shown {
    /// Lines have names before them.
    prefix: bool,
    /// stdout and stderr are a terminal's.
    terminals: Terminals,
    begun: BTreeMap<(usize, Stream), Begun>,
}

/// What has no end yet.
#[derive(Default)]
struct Begun {
    bytes: Vec<u8>,
    /// The last line ended with a carriage return: a newline after it ends nothing.
    returned: bool,
    /// Some of the line is shown already.
    open: bool,
}

/// Which streams are a terminal's.
#[derive(Clone, Copy, Debug)]
pub struct Terminals {
    /// stdout is one.
    pub stdout: bool,
    /// stderr is one.
    pub stderr: bool,
}

impl Terminals {
    fn has(self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

impl Shown {
    fn take(
        &mut self,
        index: usize,
        name: &str,
        stream: Stream,
        data: &[u8],
        print: &mut impl FnMut(Stream, &[u8]),
    ) {
        if !self.prefix && !self.terminals.has(stream) {
            return print(stream, data);
        }
        let begun = self.begun.entry((index, stream)).or_default();
        for piece in data.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let piece = match piece {
                b"\n" if std::mem::take(&mut begun.returned) => continue,
                piece => piece,
            };
            begun.returned = piece.ends_with(b"\r");
            begun.bytes.extend_from_slice(piece);
            let ends = piece.ends_with(b"\n") || begun.returned;
            // What a carriage return would put at a line's beginning is there already.
            if ends && begun.bytes == b"\r" && !begun.open {
                begun.bytes.clear();
            } else if ends || begun.bytes.len() >= LINE_BYTES_MAX {
                let line = std::mem::take(&mut begun.bytes);
                begun.open = false;
                print(stream, &whole_line(self.prefix.then_some(name), &line));
            }
        }
        // A line of one command alone is shown as it grows, but for a character that has just begun.
        if !self.prefix {
            let rest = begun.bytes.split_off(whole(&begun.bytes));
            let now = std::mem::replace(&mut begun.bytes, rest);
            if !now.is_empty() {
                begun.open = true;
                print(stream, readable(&now).as_bytes());
            }
        }
    }

    /// What has no newline at its end.
    fn end(&mut self, index: usize, name: &str, print: &mut impl FnMut(Stream, &[u8])) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Begun { bytes, .. } = self.begun.remove(&(index, stream)).unwrap_or_default();
            match (bytes.is_empty(), self.prefix) {
                (true, _) => {}
                (false, true) => print(stream, &whole_line(Some(name), &bytes)),
                (false, false) => print(stream, readable(&bytes).as_bytes()),
            }
        }
    }
}

fn whole_line(name: Option<&str>, line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").or(line.strip_suffix(b"\r")).unwrap_or(line);
    let name = name.map(|name| format!("{name} | ")).unwrap_or_default();
    format!("{name}{}\n", readable(line)).into_bytes()
}

fn readable(bytes: &[u8]) -> String {
    shown::lines(&String::from_utf8_lossy(bytes)).into_owned()
}

/// How many of these bytes are whole characters, or none at all.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Ok(_) | Err(_) => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPES: Terminals = Terminals { stdout: false, stderr: false };
    const TERMINALS: Terminals = Terminals { stdout: true, stderr: true };

    fn check(prefix: bool, terminals: Terminals, pieces: &[(usize, &str, &[u8])], expected: &str) {
        let mut shown = Shown { prefix, terminals, begun: BTreeMap::new() };
        let mut printed = Vec::new();
        let mut print = |_, line: &[u8]| printed.extend_from_slice(line);
        for (index, name, data) in pieces {
            shown.take(*index, name, Stream::Stdout, data, &mut print);
        }
        pieces.iter().for_each(|(index, name, _)| shown.end(*index, name, &mut print));
        assert_eq!(String::from_utf8_lossy(&printed), expected);
    }

    #[test]
    fn lines_of_several_are_whole_and_named() {
        let pieces: [(usize, &str, &[u8]); 3] =
            [(0, "a", b"one\ntw"), (1, "b", b"other\n"), (0, "a", b"o\nthree")];
        check(true, PIPES, &pieces, "a | one\nb | other\na | two\na | three\n");
    }

    #[test]
    fn nobody_writes_over_a_name_or_steers_the_terminal() {
        let pieces: [(usize, &str, &[u8]); 4] = [
            (0, "a", b"\rb | forged\r\n50%\r"),
            (0, "a", b"\n\n99%\r"),
            (0, "a", b"100%\r\n\x1b[2J\x1b[31mred\x1b[0m \xe2\x80\xae\xff"),
            (0, "a", b"\x1b]0;title\x07"),
        ];
        let expected = "a | b | forged\na | 50%\na | \na | 99%\na | 100%\n\
                        a | \\u{1b}[2Jred \\u{202e}\u{fffd}\\u{1b}]0;title\\u{7}\n";
        check(true, PIPES, &pieces, expected);
        let alone = expected.replace("a | ", "");
        check(false, TERMINALS, &pieces, alone.trim_end());
    }

    #[test]
    fn one_command_in_a_pipe_is_as_it_is_and_on_a_terminal_grows() {
        let pieces: [(usize, &str, &[u8]); 2] = [(0, "a", b"50%\r\x1b[K\xc3"), (0, "a", b"\xa4..")];
        check(false, PIPES, &pieces, "50%\r\u{1b}[K\u{e4}..");
        let mut shown = Shown { prefix: false, terminals: TERMINALS, begun: BTreeMap::new() };
        let mut printed = Vec::new();
        let mut print = |_, text: &[u8]| printed.push(String::from_utf8_lossy(text).into_owned());
        for data in [&b".."[..], b".\xc3", b"\xa4", b"\r50%"] {
            shown.take(0, "a", Stream::Stdout, data, &mut print);
        }
        assert_eq!(printed, ["..", ".", "\u{e4}", "\n", "50%"]);
    }
}
