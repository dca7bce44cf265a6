//! The one door to the terminal: stderr for people, stdout for machines.
//!
//! Colours are written as ANSI sequences and taken out here where the terminal (or `--color`)
//! doesn't want them. A reader that has gone away (`| head`) is no error: what comes after it is
//! dropped.

mod failure;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anstream::adapter::StripBytes;
use anstream::{AutoStream, ColorChoice};
use indicatif::{ProgressBar, ProgressDrawTarget};

use crate::failure::{ExitCode, Failure};
use crate::settings::{Color, ShowProgress};

pub use failure::{report_failure, report_warning};

/// A handle to the terminal; clones draw on the same one.
#[derive(Clone)]
pub struct Ui {
    inner: Arc<Inner>,
}

struct Inner {
    stderr: Mutex<Door>,
    stdout: Mutex<Door>,
    bar: Option<ProgressBar>,
    terminal: bool,
}

/// Somewhere to write, until its reader has gone.
struct Door {
    writer: Option<Box<dyn Write + Send>>,
    colors: bool,
    /// Takes colours out, where they are not wanted.
    strip: StripBytes,
    /// Why not all could be written, unless its reader just went away.
    failure: Option<io::Error>,
}

/// What was written to a [`Ui::captured`].
#[derive(Clone, Default)]
pub struct Captured {
    /// Lines for people.
    pub stderr: Capture,
    /// Lines for machines.
    pub stdout: Capture,
}

/// Bytes written to one stream.
#[derive(Clone, Default)]
pub struct Capture(Arc<Mutex<Vec<u8>>>);

impl Ui {
    /// The process's own terminal. A bar is made if `progress` asks for one: [`ShowProgress::Bar`],
    /// or [`ShowProgress::Auto`] on a terminal that people look at (no CI).
    pub fn new(color: Color, progress: ShowProgress) -> Self {
        let (stderr, stdout) = (io::stderr(), io::stdout());
        let terminal = stderr.is_terminal();
        let bar = match progress {
            ShowProgress::Bar => true,
            ShowProgress::Auto => terminal && std::env::var_os("CI").is_none(),
            ShowProgress::None | ShowProgress::Counter => false,
        };
        let bar = bar.then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        let colors = wants_colors(color, &stderr);
        let out_colors = wants_colors(color, &stdout);
        // Stderr comes in whole lines; stdout may come in a hundred thousand of them.
        let stderr = Door::new(Box::new(stderr), colors);
        let stdout = Door::new(Box::new(BufWriter::new(stdout)), out_colors);
        Self::from_doors(stderr, stdout, bar, terminal)
    }

    /// A terminal in memory, for tests. Without progress bar.
    pub fn captured(colors: bool) -> (Self, Captured) {
        let captured = Captured::default();
        let door = |capture: &Capture| Door::new(Box::new(capture.clone()), colors);
        let ui = Self::from_doors(door(&captured.stderr), door(&captured.stdout), None, false);
        (ui, captured)
    }

    fn from_doors(stderr: Door, stdout: Door, bar: Option<ProgressBar>, terminal: bool) -> Self {
        let (stderr, stdout) = (Mutex::new(stderr), Mutex::new(stdout));
        Self { inner: Arc::new(Inner { stderr, stdout, bar, terminal }) }
    }

    /// Writes a line for people, above the progress bar. It may contain ANSI colours, and further
    /// lines.
    pub fn line(&self, text: &str) {
        self.write(format!("{text}\n").as_bytes());
    }

    /// Writes bytes for people as they are, above the progress bar: what a test wrote.
    pub fn write(&self, bytes: &[u8]) {
        let write = || lock(&self.inner.stderr).write(bytes, true);
        match &self.inner.bar {
            // To suspend a bar draws it again. One without length has not been shown yet, and must
            // not be while cargo draws its own.
            Some(bar) if bar.length().is_some() => bar.suspend(write),
            _ => write(),
        }
    }

    /// Writes a line for machines. It is sure to be out after [`Ui::flush`].
    pub fn stdout_line(&self, text: &str) {
        let mut line = Vec::with_capacity(text.len() + 1);
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        lock(&self.inner.stdout).write(&line, false);
    }

    /// Sends what is held back to stdout: after each burst of lines, and before the process ends.
    pub fn flush(&self) {
        lock(&self.inner.stdout).write(&[], true);
    }

    /// Whether all that was meant for stdout got there, or its reader wanted no more.
    ///
    /// # Errors
    /// [`ExitCode::ReportFailed`]: a full disk, for example.
    pub fn stdout_written(&self) -> Result<(), Failure> {
        let failure = lock(&self.inner.stdout).failure.take();
        failure.map_or(Ok(()), |error| {
            Err(Failure::new(ExitCode::ReportFailed, "could not write to stdout")
                .because(error)
                .hint("what was written before is not complete"))
        })
    }

    /// Whether somebody still reads stdout.
    pub fn stdout_is_open(&self) -> bool {
        lock(&self.inner.stdout).writer.is_some()
    }

    /// The progress bar, if there is one. Its style and position are the reporter's; it is shown
    /// from when its length is set.
    pub fn progress(&self) -> Option<&ProgressBar> {
        self.inner.bar.as_ref()
    }

    /// Takes the progress bar away for good.
    pub fn clear_progress(&self) {
        if let Some(bar) = &self.inner.bar {
            bar.finish_and_clear();
        }
    }

    /// Whether colours reach the eye: for choosing between symbols, never needed for writing.
    pub fn colors(&self) -> bool {
        lock(&self.inner.stderr).colors
    }

    /// Whether colours reach stdout.
    pub fn stdout_colors(&self) -> bool {
        lock(&self.inner.stdout).colors
    }

    /// Whether stderr is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.inner.terminal
    }

    /// Columns of the terminal; none if stderr is not one.
    pub fn width(&self) -> Option<usize> {
        let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(io::stderr())?;
        (columns > 0).then_some(usize::from(columns))
    }
}

impl Door {
    fn new(writer: Box<dyn Write + Send>, colors: bool) -> Self {
        Self { writer: Some(writer), colors, strip: StripBytes::new(), failure: None }
    }

    fn write(&mut self, bytes: &[u8], flush: bool) {
        let Some(writer) = &mut self.writer else { return };
        let written = match self.colors || is_plain(bytes) {
            true => writer.write_all(bytes),
            false => self.strip.strip_next(bytes).try_for_each(|part| writer.write_all(part)),
        };
        let written = written.and_then(|()| match flush {
            true => writer.flush(),
            false => Ok(()),
        });
        // Whatever the reason (a closed pipe, a full disk): nobody can be told through here.
        if let Err(error) = written {
            self.writer = None;
            self.failure = Some(error).filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
        }
    }
}

impl Capture {
    /// What was written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0)).into_owned()
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wants_colors(color: Color, stream: &impl anstream::stream::RawStream) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => AutoStream::choice(stream) != ColorChoice::Never,
    }
}

/// Whether there is nothing to take out, as in most lines.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b'\n' | b'\t' | b' '..=b'~' | 0x80..))
}

/// A writer that panicked in the middle leaves half a line, not a broken invariant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_pass_or_are_taken_out() {
        for (colors, expected) in [(true, "\x1b[31mred\x1b[0m\n"), (false, "red\n")] {
            let (ui, captured) = Ui::captured(colors);
            ui.line("\x1b[31mred\x1b[0m");
            ui.stdout_line("{}");
            ui.flush();
            assert_eq!(captured.stderr.text(), expected);
            assert_eq!(captured.stdout.text(), "{}\n");
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let ui = closed(io::ErrorKind::BrokenPipe);
        assert!(ui.stdout_is_open());
        ui.stdout_line("dropped");
        ui.stdout_line("dropped too");
        ui.line("dropped as well");
        ui.flush();
        assert!(!ui.stdout_is_open());
        assert!(ui.stdout_written().is_ok());
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let ui = closed(io::ErrorKind::StorageFull);
        ui.stdout_line("lost");
        ui.flush();
        let failure = ui.stdout_written().unwrap_err();
        assert_eq!(failure.code, ExitCode::ReportFailed);
    }

    /// A terminal on which every write fails like this.
    fn closed(kind: io::ErrorKind) -> Ui {
        struct Closed(io::ErrorKind);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let door = || Door::new(Box::new(Closed(kind)), false);
        Ui::from_doors(door(), door(), None, false)
    }
}
