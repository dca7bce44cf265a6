//! Where reporters show things: the terminal, or a test's memory.

use std::io::{self, Write};

use distest_worker::protocol::Stream;
use indicatif::ProgressBar;

use crate::ui::Ui;

/// What reporters need of a terminal.
pub trait Screen {
    /// A line for people, on stderr, above the progress bar. `text` has no newline at its end.
    fn line(&self, text: &str);

    /// A line for programs, on stdout; seen at the latest after [`Screen::flush`].
    fn stdout_line(&self, text: &str);

    /// Hands on what is held back of stdout.
    fn flush(&self);

    /// Bytes as a test wrote them, to the same stream of ours.
    fn raw(&self, stream: Stream, bytes: &[u8]);

    /// Lines for people may have colours.
    fn colors(&self) -> bool;

    /// The progress bar, where there is one.
    fn progress(&self) -> Option<&ProgressBar>;
}

impl Screen for Ui {
    fn line(&self, text: &str) {
        Self::line(self, text);
    }

    fn stdout_line(&self, text: &str) {
        Self::stdout_line(self, text);
    }

    fn flush(&self) {
        Self::flush(self);
    }

    fn raw(&self, stream: Stream, bytes: &[u8]) {
        // Past the colour filter: a test that runs without capture owns our streams, as it would
        // if it had inherited them. A reader that has gone away is no error.
        self.flush();
        let write = || match stream {
            Stream::Stdout => write_all(&mut io::stdout().lock(), bytes),
            Stream::Stderr => write_all(&mut io::stderr().lock(), bytes),
        };
        match Self::progress(self) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn colors(&self) -> bool {
        Self::colors(self)
    }

    fn progress(&self) -> Option<&ProgressBar> {
        Self::progress(self)
    }
}

fn write_all(stream: &mut dyn Write, bytes: &[u8]) {
    let _gone = stream.write_all(bytes).and_then(|()| stream.flush());
}
