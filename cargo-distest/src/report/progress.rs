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
const TEMPLATE: &str = "     Running [{elapsed_precise}] {bar:20} {pos}/{len}: {wide_msg}";

/// Keeps the screen's progress bar up to date.
pub struct Progress {
    screen: Rc<dyn Screen>,
}

impl Progress {
    /// For the screen's bar, if it has one.
    pub fn new(screen: Rc<dyn Screen>) -> Self {
        Self { screen }
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
                Self::show(bar, summary);
            }
            RunEvent::Finished(_) => bar.finish_and_clear(),
            _ => {}
        }
    }

    fn finish(&mut self, _summary: &Summary) -> Result<(), Failure> {
        Ok(())
    }
}

/// `3 running on 4 slots, 10 passed, 1 failed, about 12 s left`
fn message(summary: &Summary) -> String {
    let counts = summary.counts();
    let flaky = if summary.flaky_fails() { 0 } else { counts.flaky };
    let passed = counts.passed + flaky;
    let failed = counts.not_skipped() - passed;
    let slots = summary.slots();
    let mut message =
        format!("{} running on {slots} slots, {passed} passed, {failed} failed", summary.running());
    let all_known = summary.plan().is_some();
    if let Some(left) = summary.remaining().filter(|left| all_known && !left.is_zero()) {
        message += &format!(", about {} left", seconds(left));
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

    #[test]
    fn the_template_is_one_that_indicatif_understands() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }
}
