//! One status line, in nextest's manner. Pure.
//!
//! `        PASS [   0.004s] (1/20) pkg::bin module::test @ worker`

use std::fmt::{self, Write as _};
use std::iter;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use distest_worker::protocol::Exit;

use crate::model::{AttemptResult, TestCase, Verdict};
use crate::report::text::signal;
use crate::results::{Summary, TestState};
use distest_worker::shown;

/// Puts colours on text, or doesn't.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    pub(super) colors: bool,
}

/// How a thing is meant. Never the only way to tell: the text says it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Odd,
    Quiet,
    Strong,
    Binary,
    Module,
    Name,
}

/// What a status line says, ready to be put together.
pub(super) struct Line<'a> {
    pub(super) label: String,
    pub(super) tone: Tone,
    pub(super) time: Time,
    /// `(1/20)`; empty where there are no counters.
    pub(super) counter: String,
    pub(super) case: &'a TestCase,
    /// The worker's name, when there is more than one.
    pub(super) worker: Option<String>,
}

/// What stands in a line's brackets.
#[derive(Clone, Copy)]
pub(super) enum Time {
    Took(Duration),
    Over(Duration),
    None,
}

impl Paint {
    pub(super) fn put(self, tone: Tone, text: &str) -> String {
        let mut put = String::new();
        self.add(tone, text, &mut put);
        put
    }

    /// The same at the end of a line.
    fn add(self, tone: Tone, text: &str, line: &mut String) {
        if !self.colors || text.is_empty() {
            return line.push_str(text);
        }
        let color = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
        let style = match tone {
            Tone::Good => color(AnsiColor::Green).bold(),
            Tone::Bad => color(AnsiColor::Red).bold(),
            Tone::Odd => color(AnsiColor::Yellow).bold(),
            Tone::Quiet => Style::new().dimmed(),
            Tone::Strong => Style::new().bold(),
            Tone::Binary => color(AnsiColor::Magenta).bold(),
            Tone::Module => color(AnsiColor::Cyan),
            Tone::Name => color(AnsiColor::Blue).bold(),
        };
        // A string takes all.
        let _ = write!(line, "{style}{text}{style:#}");
    }

    /// A test case as `binary module::name`.
    pub(super) fn case(self, case: &TestCase) -> String {
        let mut shown = String::new();
        self.add_case(case, &mut shown);
        shown
    }

    fn add_case(self, case: &TestCase, line: &mut String) {
        let name = shown::word(&case.name.0);
        let (module, last) = name.split_at(name.rfind("::").map_or(0, |at| at + 2));
        self.add(Tone::Binary, &shown::word(&case.binary.0), line);
        line.push(' ');
        self.add(Tone::Module, module, line);
        self.add(Tone::Name, last, line);
    }

    /// `    label rest`, the label right-aligned as cargo does.
    pub(super) fn labelled(self, tone: Tone, label: &str, rest: &str) -> String {
        let mut line = self.label(tone, label);
        line.push_str(rest);
        line
    }

    fn label(self, tone: Tone, label: &str) -> String {
        let mut line = String::with_capacity(128);
        line.extend(iter::repeat_n(' ', 12_usize.saturating_sub(label.len())));
        self.add(tone, label, &mut line);
        line.push(' ');
        line
    }

    /// The whole line.
    pub(super) fn line(self, parts: &Line<'_>) -> String {
        let mut line = self.label(parts.tone, &parts.label);
        // A string takes all.
        let _ = match parts.time {
            Time::Took(time) => write!(line, "[{:>8}s]", Seconds(time)),
            Time::Over(time) => write!(line, "[>{:>7}s]", Seconds(time)),
            Time::None => line.write_str("[         ]"),
        };
        line.push(' ');
        if !parts.counter.is_empty() {
            line.push_str(&parts.counter);
            line.push(' ');
        }
        self.add_case(parts.case, &mut line);
        if let Some(worker) = &parts.worker {
            self.add(Tone::Quiet, &format!(" @ {}", shown::word(worker)), &mut line);
        }
        line
    }
}

/// With milliseconds, rounded. Much quicker than a floating-point number.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = (self.0.as_nanos() + 500_000) / 1_000_000;
        let (seconds, rest) = (millis / 1000, millis % 1000);
        let width = f.width().unwrap_or(0).saturating_sub(".000".len());
        write!(f, "{seconds:>width$}.{rest:03}")
    }
}

/// The label of one attempt's result: `FAIL`, `TIMEOUT`, `SIGSEGV`; `TRY 2 TMT` when it is one of
/// several.
pub(super) fn attempt_label(
    result: AttemptResult,
    exit: Option<Exit>,
    one_of_several: Option<u32>,
) -> (String, Tone) {
    let tone = match result {
        AttemptResult::Pass => Tone::Good,
        AttemptResult::Leak => Tone::Odd,
        _ => Tone::Bad,
    };
    let short = match (result, exit) {
        (AttemptResult::Pass, _) => "PASS".to_owned(),
        (AttemptResult::Leak, _) => "LEAK".to_owned(),
        (AttemptResult::Fail, _) => "FAIL".to_owned(),
        (AttemptResult::Timeout, _) => "TMT".to_owned(),
        (AttemptResult::Lost, _) => "LOST".to_owned(),
        (AttemptResult::Crashed, Some(Exit::Signal(number))) => {
            signal(number).map_or_else(|| format!("SIG {number}"), str::to_owned)
        }
        (AttemptResult::Crashed, _) => "CRASH".to_owned(),
    };
    let label = match (one_of_several, result, exit) {
        (Some(number), ..) => format!("TRY {number} {short}"),
        (None, AttemptResult::Timeout, _) => "TIMEOUT".to_owned(),
        (None, AttemptResult::Crashed, Some(Exit::Signal(number))) if signal(number).is_some() => {
            format!("SIG{short}")
        }
        (None, ..) => short,
    };
    (label, tone)
}

/// The label of a test's verdict while the run goes on.
pub(super) fn verdict_label(
    verdict: Verdict,
    test: &TestState,
    exit: Option<Exit>,
) -> (String, Tone) {
    let last = test.last();
    let several = last.filter(|last| last.number > 1).map(|last| last.number);
    match (verdict, last) {
        (Verdict::Skipped, _) => ("SKIP".to_owned(), Tone::Name),
        (Verdict::Pass | Verdict::Flaky, Some(last)) => attempt_label(last.result, exit, several),
        (Verdict::Pass | Verdict::Flaky, None) => ("PASS".to_owned(), Tone::Good),
        (Verdict::Fail, _) => attempt_label(AttemptResult::Fail, exit, several),
        (Verdict::Timeout, _) => attempt_label(AttemptResult::Timeout, exit, several),
        (Verdict::Crashed, _) => attempt_label(AttemptResult::Crashed, exit, several),
        (Verdict::Lost, _) => attempt_label(AttemptResult::Lost, exit, several),
    }
}

/// `( 3/20)`, or as wide a rule for a line that isn't a test's last.
pub(super) fn counter(summary: &Summary, place: u32) -> String {
    let total = summary.tests().len().to_string();
    if place == 0 {
        format!("({})", "─".repeat(2 * total.len() + 1))
    } else {
        format!("({place:>width$}/{total})", width = total.len())
    }
}
