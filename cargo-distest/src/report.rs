//! What people and programs get to see of a run.
//!
//! A [`Reporter`] gets every event together with the [`Summary`] that holds it already. Reporters
//! decide nothing: what they lack becomes a field of an event.

pub mod json;
pub mod junit;
pub mod progress;
pub mod screen;
pub mod terminal;
mod text;

use std::rc::Rc;

pub use self::screen::Screen;
use crate::event::RunEvent;
use crate::failure::{ExitCode, Failure};
use crate::results::Summary;
use crate::settings::{MessageFormat, ReportSettings};

/// Shows or writes what happens in a run.
pub trait Reporter {
    /// Takes in the next event; `summary` holds it already.
    fn event(&mut self, event: &RunEvent, summary: &Summary);

    /// Nothing more has happened yet: what was held back, to be shown in one piece, is shown.
    /// Called after each burst of events, and before [`Reporter::finish`].
    fn pause(&mut self, _summary: &Summary) {}

    /// Writes what is written at the end. Called once, after [`RunEvent::Finished`], also when
    /// the run failed or was interrupted.
    fn finish(&mut self, summary: &Summary) -> Result<(), Failure>;
}

/// All reporters that the settings ask for.
pub struct Reports {
    /// Their files are written when the run has ended, before anyone is told its exit code.
    files: Vec<Box<dyn Reporter>>,
    shown: Vec<Box<dyn Reporter>>,
    failures: Vec<Failure>,
}

impl Reports {
    /// As the settings ask for them, on this screen.
    pub fn new(settings: &ReportSettings, screen: Rc<dyn Screen>) -> Self {
        let mut files: Vec<Box<dyn Reporter>> = Vec::new();
        if let Some(junit) = junit::Junit::new(settings) {
            files.push(Box::new(junit));
        }
        let terminal = Box::new(terminal::Terminal::new(settings, Rc::clone(&screen)));
        let shown: Vec<Box<dyn Reporter>> = match settings.format {
            // The bar first: it must look right, or be gone, when lines are shown above it.
            MessageFormat::Human => vec![Box::new(progress::Progress::new(screen)), terminal],
            MessageFormat::Json => vec![Box::new(json::Json::new(screen)), terminal],
        };
        Self { files, shown, failures: Vec::new() }
    }
}

impl Reporter for Reports {
    fn event(&mut self, event: &RunEvent, summary: &Summary) {
        for reporter in &mut self.files {
            reporter.event(event, summary);
        }
        if let RunEvent::Finished(finished) = event {
            for reporter in &mut self.files {
                self.failures.extend(reporter.finish(summary).err());
            }
            // The exit code that is told must be the one that the process will end with.
            let mut finished = finished.clone();
            if !self.failures.is_empty() {
                finished.exit_code = with_failed_report(finished.exit_code);
            }
            for reporter in &mut self.shown {
                reporter.event(&RunEvent::Finished(finished.clone()), summary);
            }
            return;
        }
        for reporter in &mut self.shown {
            reporter.event(event, summary);
        }
    }

    fn pause(&mut self, summary: &Summary) {
        for reporter in &mut self.shown {
            reporter.pause(summary);
        }
    }

    /// The first failure is returned; its text holds the others'.
    fn finish(&mut self, summary: &Summary) -> Result<(), Failure> {
        for reporter in &mut self.shown {
            self.failures.extend(reporter.finish(summary).err());
        }
        let mut failures = self.failures.drain(..);
        let Some(mut first) = failures.next() else { return Ok(()) };
        for other in failures {
            first.what = format!("{}; {other}", first.what);
        }
        Err(first)
    }
}

/// The exit code of a run that would have ended with `code`, had a report not failed.
fn with_failed_report(code: u8) -> u8 {
    let weaker = [ExitCode::Passed, ExitCode::NoTests];
    let known = weaker.into_iter().find(|weaker| weaker.number() == code);
    known.map_or(code, |weaker| weaker.or_worse(ExitCode::ReportFailed).number())
}

#[cfg(test)]
mod memory;
