//! How errors and warnings look.

use std::error::Error;

use anstyle::{AnsiColor, Style};

use super::Ui;
use crate::failure::Failure;
use distest_worker::shown;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// Tells a user of a failure: what, its causes, and what to do next. A failure that was told
/// already is not told again.
pub fn report_failure(ui: &Ui, failure: &Failure) {
    if failure.silent {
        return;
    }
    ui.line(&format!("{ERROR}error{ERROR:#}: {}", shown::lines(&failure.what)));
    let mut cause = failure.cause.as_deref().map(|cause| cause as &dyn Error);
    while let Some(error) = cause {
        ui.line(&format!("  caused by: {}", shown::lines(&error.to_string())));
        cause = error.source();
    }
    hint(ui, failure.hint.as_deref());
}

/// Tells a user of something that doesn't end the run.
pub fn report_warning(ui: &Ui, text: &str, next: Option<&str>) {
    ui.line(&format!("{WARNING}warning{WARNING:#}: {}", shown::lines(text)));
    hint(ui, next);
}

fn hint(ui: &Ui, text: Option<&str>) {
    if let Some(text) = text {
        ui.line(&format!("{HINT}hint{HINT:#}: {}", shown::lines(text)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ExitCode;

    #[test]
    fn tells_what_why_and_what_next() {
        let (ui, captured) = Ui::captured(false);
        let cause = std::io::Error::other("gone");
        let failure = Failure::new(ExitCode::Setup, "could not read a").because(cause).hint("look");
        report_failure(&ui, &failure);
        report_failure(&ui, &Failure::told(ExitCode::BuildFailed, "cargo said it"));
        report_warning(&ui, "slow", None);
        report_warning(&ui, "worker \u{202e}x\r says\x07", Some("\x1b[2J"));
        let expected = "error: could not read a\n  caused by: gone\nhint: look\nwarning: slow\n\
                        warning: worker \\u{202e}x\\r says\\u{7}\nhint: \\u{1b}[2J\n";
        assert_eq!(captured.stderr.text(), expected);
    }
}
