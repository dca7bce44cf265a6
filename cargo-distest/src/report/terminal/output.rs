//! What a test wrote, as sections below its status line. Pure.

use super::line::{Paint, Tone};
use crate::event::{AttemptEnded, CapturedOutput};
use crate::model::{AttemptResult, TestCase};
use crate::report::text::{Escapes, Part, clean, parts};
use distest_worker::shown;

/// The most bytes that are shown of one output stream: half from each end.
const SHOWN_BYTES_MAX: usize = 1 << 20;

/// The sections of one attempt: stdout, stderr, and what else there is to say of its end.
pub(super) fn sections(paint: Paint, case: &TestCase, ended: &AttemptEnded) -> Vec<String> {
    let try_ = if ended.attempt > 1 || ended.will_retry {
        format!(" (try {})", ended.attempt)
    } else {
        String::new()
    };
    let mut lines = Vec::new();
    for (stream, output) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
        if output.total > 0 {
            let title = paint.put(tone(ended.result), &format!("{stream} ───"));
            lines.push(format!("  {title} {}{try_}", paint.case(case)));
            lines.extend(body(paint, output));
        }
    }
    // A test that failed in the usual way needs no more words than its label.
    let usual = ended.result == AttemptResult::Fail && ended.reason == "exited with code 101";
    if !ended.reason.is_empty() && (lines.is_empty() || !usual) {
        lines.push(format!("    ({})", shown::lines(&ended.reason)));
    }
    lines.extend(ended.hints.iter().map(|hint| format!("    hint: {}", shown::lines(hint))));
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

/// What an attempt left behind, in one line.
pub(super) fn leak(ended: &AttemptEnded) -> Option<String> {
    let leak = ended.leak.as_ref()?;
    let left = if leak.processes.is_empty() {
        "an output stream stayed open".to_owned()
    } else {
        leak.processes.join(", ")
    };
    Some(format!("    (left behind: {})", shown::word(&left)))
}

fn body(paint: Paint, output: &CapturedOutput) -> Vec<String> {
    let escapes = if paint.colors { Escapes::Colors } else { Escapes::None };
    let mut lines = Vec::new();
    for part in parts(output, SHOWN_BYTES_MAX) {
        match part {
            Part::Text(text) => {
                let text = clean(text, escapes);
                lines.extend(text.lines().map(|line| {
                    let line = format!("    {line}");
                    line.trim_end_matches(' ').to_owned()
                }));
                // A colour that the test left on must not run into our own lines.
                if let Some(last) = lines.last_mut().filter(|_| text.contains('\x1b')) {
                    last.push_str("\x1b[0m");
                }
            }
            Part::LeftOut(note) => lines.push(paint.put(Tone::Odd, &format!("    {note}"))),
        }
    }
    lines
}

fn tone(result: AttemptResult) -> Tone {
    if result.passed() { Tone::Good } else { Tone::Bad }
}
