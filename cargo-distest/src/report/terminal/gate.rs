//! Holds back what can't be shown yet, in order, and what is soon followed by more: each time that
//! something is shown the progress bar is taken away and drawn again.

use std::rc::Rc;

use bytes::Bytes;
use distest_worker::protocol::Stream;

use crate::report::Screen;

/// The most bytes of live output that are held back; beyond it everything is shown at once.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Between the lines of a run and the screen.
pub(super) struct Gate {
    screen: Rc<dyn Screen>,
    /// Waits for the build's end.
    early: Vec<String>,
    /// Waits for the number of tests too.
    results: Vec<Shown>,
    /// Bytes of live output in `results`.
    bytes: usize,
    built: bool,
    planned: bool,
}

enum Shown {
    Line(String),
    Raw(Stream, Bytes),
}

impl Gate {
    /// Closed: cargo owns the terminal.
    pub(super) fn new(screen: Rc<dyn Screen>) -> Self {
        let (early, results) = (Vec::new(), Vec::new());
        Self { screen, early, results, bytes: 0, built: false, planned: false }
    }

    /// Shows a line, or several, as soon as the build is over.
    pub(super) fn early(&mut self, line: String) {
        self.early.push(line);
    }

    /// Shows a line, or several, as soon as it has been told how many tests there are.
    pub(super) fn result(&mut self, line: String) {
        self.results.push(Shown::Line(line));
    }

    /// Passes on what a test writes, in order with results.
    pub(super) fn raw(&mut self, stream: Stream, bytes: &Bytes) {
        self.bytes += bytes.len();
        self.results.push(Shown::Raw(stream, bytes.clone()));
        if self.bytes > HELD_BYTES_MAX {
            self.open();
            self.release();
        }
    }

    /// The build is over.
    pub(super) fn built(&mut self) {
        self.built = true;
    }

    /// It has been told how many tests there are.
    pub(super) fn planned(&mut self) {
        self.planned = true;
    }

    /// Nothing needs to wait any more.
    pub(super) fn open(&mut self) {
        self.planned = true;
        self.built();
    }

    /// Shows what needs to wait no longer.
    pub(super) fn release(&mut self) {
        if !self.built {
            return;
        }
        let mut lines = std::mem::take(&mut self.early);
        if self.planned {
            for shown in self.results.drain(..) {
                match shown {
                    Shown::Line(line) => lines.push(line),
                    Shown::Raw(stream, bytes) => {
                        show(&*self.screen, &mut lines);
                        self.screen.raw(stream, &bytes);
                    }
                }
            }
            self.bytes = 0;
        }
        show(&*self.screen, &mut lines);
    }
}

fn show(screen: &dyn Screen, lines: &mut Vec<String>) {
    if !lines.is_empty() {
        screen.line(&lines.join("\n"));
        lines.clear();
    }
}
