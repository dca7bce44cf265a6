//! The progress bar: what runs, what is done, how long it will take. Nothing where there is no
//! terminal.

use std::rc::Rc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::text::seconds;
use super::{Reporter, Screen};
use crate::event::RunEvent;
use crate::failure::Failure;
use crate::results::Summary;

const TICK: Duration = Duration::from_millis(200);
const TEMPLATE: &str = "     Running [{elapsed_precise}] {bar:16} {pos}/{len}: {wide_msg}";

/// Keeps the screen's progress bar up to date.
pub struct Progress {
    screen: Rc<dyn Screen>,
    /// Something has happened that it shows.
    changed: bool,
}

impl Progress {
    /// For the screen's bar, if it has one.
    pub fn new(screen: Rc<dyn Screen>) -> Self {
        Self { screen, changed: false }
    }

    fn show(bar: &ProgressBar, summary: &Summary) {
        bar.set_length(summary.tests().len() as u64);
        bar.set_position(u64::from(summary.done()));
        bar.set_message(message(summary));
    }
}

impl Reporter for Progress {
    fn event(&mut self, event: &RunEvent, summary: &Summary) {
        let Some(bar) = self.screen.progress() else { return };
        match event {
            // cargo has its own bar until now.
            RunEvent::Built { .. } => {
                bar.set_style(style());
                bar.reset_elapsed();
                // Nothing may happen for long: the clock must not look stuck.
                bar.enable_steady_tick(TICK);
                Self::show(bar, summary);
            }
            RunEvent::Planned { .. }
            | RunEvent::PlanComplete(_)
            | RunEvent::AttemptStarted { .. }
            | RunEvent::AttemptEnded(_)
            | RunEvent::Verdict { .. }
                if summary.built().is_some() =>
            {
                self.changed = true;
            }
            RunEvent::Finished(_) => {
                bar.finish_and_clear();
                self.changed = false;
            }
            _ => {}
        }
    }

    fn pause(&mut self, summary: &Summary) {
        if let Some(bar) = self.screen.progress().filter(|_| self.changed) {
            Self::show(bar, summary);
            self.changed = false;
        }
    }

    fn finish(&mut self, _summary: &Summary) -> Result<(), Failure> {
        Ok(())
    }
}

/// `3/4 slots, 10 passed, 1 failed, 12 s left`
fn message(summary: &Summary) -> String {
    let counts = summary.counts();
    let flaky = if summary.flaky_fails() { 0 } else { counts.flaky };
    let passed = counts.passed + flaky;
    let failed = counts.not_skipped() - passed;
    let (running, slots) = (summary.running(), summary.slots());
    let mut message = format!("{running}/{slots} slots, {passed} passed, {failed} failed");
    let all_known = summary.plan().is_some();
    if let Some(left) = summary.remaining().filter(|left| all_known && !left.is_zero()) {
        message += &format!(", {} left", seconds(left));
    }
    message
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(TEMPLATE)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AttemptResult, Verdict};
    use crate::results::SummarySettings;
    use crate::results::script::Script;

    #[test]
    fn the_template_is_one_that_indicatif_understands() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }

    #[test]
    fn tells_how_far_the_run_is() {
        let mut s = Script::new(SummarySettings::default(), &["local"]);
        s.built();
        let [a, b] = ["a", "b"].map(|name| s.plan("one", name, Some(3000)));
        assert_eq!(message(&s.summary), "0/2 slots, 0 passed, 0 failed");
        s.planned();
        assert_eq!(message(&s.summary), "0/2 slots, 0 passed, 0 failed, 3.0 s left");
        s.attempt(a, AttemptResult::Timeout, 10, |_| {});
        s.verdict(a, Verdict::Timeout);
        s.attempt(b, AttemptResult::Pass, 10, |_| {});
        s.verdict(b, Verdict::Pass);
        assert_eq!(message(&s.summary), "0/2 slots, 1 passed, 1 failed");
    }
}
