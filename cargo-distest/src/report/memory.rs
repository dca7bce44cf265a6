//! A screen in memory, for the tests of reporters.

use std::cell::RefCell;
use std::rc::Rc;

use distest_worker::protocol::Stream;
use indicatif::ProgressBar;

use super::{Reporter, Screen};
use crate::results::Summary;
use crate::results::script::Script;
use crate::settings::*;

/// Remembers what was shown.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) colors: bool,
    pub(super) stderr: RefCell<String>,
    pub(super) stdout: RefCell<String>,
}

impl Screen for Memory {
    fn line(&self, text: &str) {
        *self.stderr.borrow_mut() += &format!("{text}\n");
    }

    fn stdout_line(&self, text: &str) {
        *self.stdout.borrow_mut() += &format!("{text}\n");
    }

    fn flush(&self) {}

    fn raw(&self, stream: Stream, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        match stream {
            Stream::Stdout => *self.stdout.borrow_mut() += &text,
            Stream::Stderr => *self.stderr.borrow_mut() += &text,
        }
    }

    fn colors(&self) -> bool {
        self.colors
    }

    fn progress(&self) -> Option<&ProgressBar> {
        None
    }
}

pub(super) fn settings() -> ReportSettings {
    ReportSettings {
        format: MessageFormat::Human,
        color: Color::Never,
        progress: ShowProgress::Auto,
        verbose: false,
        status_level: StatusLevel::Pass,
        final_status_level: StatusLevel::Flaky,
        success_output: OutputWhen::Never,
        failure_output: OutputWhen::Immediate,
        junit: None,
        junit_name: "distest-run".to_owned(),
        junit_success_output: false,
        junit_failure_output: true,
    }
}

/// Tells a reporter the whole story, each event with the summary as it was then.
pub(super) fn tell(script: &Script, reporter: &mut dyn Reporter) {
    let mut summary = Summary::new(script.settings);
    for event in &script.events {
        summary.apply(event);
        reporter.event(event, &summary);
        reporter.pause(&summary);
    }
    reporter.finish(&summary).unwrap();
}

/// What is shown of a script: stderr and stdout.
pub(super) fn shown(
    script: &Script,
    reporter: impl FnOnce(Rc<Memory>) -> Box<dyn Reporter>,
) -> (String, String) {
    let memory = Rc::new(Memory::default());
    let mut reporter = reporter(Rc::clone(&memory));
    tell(script, &mut *reporter);
    (memory.stderr.take(), memory.stdout.take())
}
