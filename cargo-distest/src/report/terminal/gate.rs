//! Holds back what can't be shown yet, in order.

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
        self.release();
    }

    /// Shows a line, or several, as soon as it has been told how many tests there are.
    pub(super) fn result(&mut self, line: String) {
        self.results.push(Shown::Line(line));
        self.release();
    }

    /// Passes on what a test writes, in order with results.
    pub(super) fn raw(&mut self, stream: Stream, bytes: &Bytes) {
        self.bytes += bytes.len();
        self.results.push(Shown::Raw(stream, bytes.clone()));
        if self.bytes > HELD_BYTES_MAX { self.open() } else { self.release() }
    }

    /// The build is over.
    pub(super) fn built(&mut self) {
        self.built = true;
        self.release();
    }

    /// It has been told how many tests there are.
    pub(super) fn planned(&mut self) {
        self.planned = true;
        self.release();
    }

    /// Nothing needs to wait any more.
    pub(super) fn open(&mut self) {
        self.planned = true;
        self.built();
    }

    fn release(&mut self) {
        if !self.built {
            return;
        }
        for line in self.early.drain(..) {
            self.screen.line(&line);
        }
        if !self.planned {
            return;
        }
        for shown in self.results.drain(..) {
            match shown {
                Shown::Line(line) => self.screen.line(&line),
                Shown::Raw(stream, bytes) => self.screen.raw(stream, &bytes),
            }
        }
        self.bytes = 0;
    }
}
