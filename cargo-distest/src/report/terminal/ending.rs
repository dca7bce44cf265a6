//! What a run's end looks like: totals, failures again, what bounded it. Pure.

use std::time::Duration;

use super::line::{Line, Paint, Time, Tone, counter, verdict_label};
use super::output::sections;
use super::{exit_of, tier};
use crate::event::{CancelReason, RunFinished};
use crate::model::{TestCase, Verdict};
use crate::report::text::{because, count, seconds};
use crate::results::{Bound, Summary, TestState};
use crate::settings::{OutputWhen, ReportSettings, StatusLevel};
use distest_worker::shown;

/// Everything after the last test.
pub(super) fn lines(
    paint: Paint,
    settings: &ReportSettings,
    summary: &Summary,
    finished: &RunFinished,
    skipped: &[TestCase],
) -> Vec<String> {
    let mut lines = vec!["────────────".to_owned(), totals(paint, summary, finished)];
    lines.extend(again(paint, settings, summary));
    if settings.final_status_level >= StatusLevel::Skip {
        lines.extend(skipped.iter().map(|case| super::skip_line(paint, summary, case)));
    }
    lines.extend(not_run(paint, summary));
    lines.push(bounded_by(summary, finished));
    lines
}

/// `     Summary [   1.234s] 20 tests run: 18 passed (1 flaky), 2 failed, 3 skipped`
fn totals(paint: Paint, summary: &Summary, finished: &RunFinished) -> String {
    let counts = summary.counts();
    let (planned, ran) = (summary.tests().len(), summary.ran());
    let not_run = summary.tests().iter().filter(|test| summary.not_run(test)).count() as u32;
    let run = if ran == planned { ran.to_string() } else { format!("{ran}/{planned}") };
    let noun = if planned == 1 { "test" } else { "tests" };

    let flaky_passes = if summary.flaky_fails() { 0 } else { counts.flaky };
    let passed = paint.put(Tone::Good, &format!("{} passed", counts.passed + flaky_passes));
    let mut parts = vec![format!("{passed}{}", oddities(paint, summary))];
    let mut part = |number: u32, tone: Tone, word: &str| {
        if number > 0 {
            parts.push(paint.put(tone, &format!("{number} {word}")));
        }
    };
    part(counts.failed + counts.flaky - flaky_passes, Tone::Bad, "failed");
    part(counts.crashed, Tone::Bad, "crashed");
    part(counts.timed_out, Tone::Bad, "timed out");
    part(counts.lost - not_run, Tone::Bad, "lost");
    part(counts.skipped, Tone::Odd, "skipped");

    let good = summary.exit_code().number() == 0 && finished.exit_code == 0;
    let tone = if good { Tone::Good } else { Tone::Bad };
    let time = finished.testing.as_secs_f64();
    let rest = format!("[{time:>8.3}s] {run} {noun} run: {}", parts.join(", "));
    paint.labelled(tone, "Summary", &rest)
}

/// `1,940`.
fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// ` (1 slow, 1 flaky, 1 leaky, hedged 1, batched 1,940 · again alone 2)`: of the tests that passed, and of
/// all that shared a process.
fn oddities(paint: Paint, summary: &Summary) -> String {
    let passed = |test: &&TestState| test.verdict.is_some_and(|v| !summary.is_failure(v));
    let tests = || summary.tests().iter().filter(passed);
    let numbers = [
        (tests().filter(|test| test.slow).count(), "slow"),
        (tests().filter(|test| test.verdict == Some(Verdict::Flaky)).count(), "flaky"),
        (tests().filter(|test| super::leaked(test)).count(), "leaky"),
    ];
    let told = numbers.iter().filter(|(number, _)| *number > 0);
    let mut told: Vec<_> =
        told.map(|(number, word)| paint.put(Tone::Odd, &format!("{number} {word}"))).collect();
    if summary.hedged() > 0 {
        told.push(format!("hedged {}", thousands(summary.hedged())));
    }
    if summary.batched() > 0 {
        let again = match summary.rerun_alone() {
            0 => String::new(),
            again => format!(" · again alone {}", thousands(again)),
        };
        told.push(format!("batched {}{again}", thousands(summary.batched())));
    }
    if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
}

/// The tests that the settings want to see again, in the order of their verdicts.
fn again(paint: Paint, settings: &ReportSettings, summary: &Summary) -> Vec<String> {
    let mut tests: Vec<_> = summary.tests().iter().filter(|test| test.place > 0).collect();
    tests.sort_by_key(|test| test.place);
    let mut lines = Vec::new();
    for test in tests.into_iter().filter(|test| !summary.not_run(test)) {
        let Some(verdict) = test.verdict else { continue };
        let failed = summary.is_failure(verdict);
        let wanted = tier(test, verdict, failed) <= settings.final_status_level;
        let output = if failed { settings.failure_output } else { settings.success_output };
        let output = matches!(output, OutputWhen::Final | OutputWhen::ImmediateFinal);
        if wanted || output {
            lines.push(again_line(paint, settings, summary, test, verdict));
            let ended = test.last().and_then(|last| last.full.as_ref());
            if let (true, Some(ended)) = (output, ended) {
                lines.extend(sections(paint, &test.case, ended));
            }
            if let (true, Some(ended)) = (failed, ended)
                && !ended.reproduce.is_empty()
            {
                lines.push(format!("    reproduce: {}", ended.reproduce));
            }
            if let Some(command) = batch_command(test) {
                lines.push(format!("    in company: {command}"));
            }
        }
    }
    lines
}

/// What runs the batch again in which a test did otherwise than alone.
fn batch_command(test: &TestState) -> Option<&str> {
    let full = test.attempts.iter().filter_map(|attempt| attempt.full.as_ref());
    full.filter_map(|full| full.reproduce_batch.as_deref()).next_back()
}

fn again_line(
    paint: Paint,
    settings: &ReportSettings,
    summary: &Summary,
    test: &TestState,
    verdict: Verdict,
) -> String {
    let last = test.last();
    let (label, tone) = match (verdict, last) {
        (Verdict::Flaky, Some(last)) => {
            // What was lost took no try from it.
            let tries = summary.tries().saturating_add(test.lost()).max(last.number);
            (format!("FLAKY {}/{tries}", last.number), Tone::Odd)
        }
        _ => verdict_label(verdict, test, exit_of(test)),
    };
    paint.line(&Line {
        label,
        tone,
        time: last.map_or(Time::None, |last| Time::Took(last.duration)),
        counter: super::counter_if(settings, || counter(summary, test.place)),
        case: &test.case,
        worker: last.and_then(|last| super::worker_name(summary, last.worker)),
    })
}

fn not_run(paint: Paint, summary: &Summary) -> Option<String> {
    let not_run = summary.tests().iter().filter(|test| summary.not_run(test)).count();
    let reason = summary.cancelled().filter(|_| not_run > 0)?;
    let hint = match reason {
        CancelReason::TestFailure => {
            " (run with --no-fail-fast to run all tests, or with --max-fail)"
        }
        _ => "",
    };
    let (warning, total) = (paint.put(Tone::Odd, "warning"), summary.tests().len());
    let were = if not_run == 1 { "was" } else { "were" };
    let of = format!("{not_run}/{}", count(total, "test", "tests"));
    Some(format!("{warning}: {of} {were} not run due to {}{hint}", because(reason)))
}

/// `build 11 s · ship 0.4 s · tests 3.1 s (bound 3.0 s: longest test api e2e 3.0 s)`
fn bounded_by(summary: &Summary, finished: &RunFinished) -> String {
    let mut parts = vec![format!("build {}", seconds(finished.build))];
    if finished.ship > Duration::ZERO {
        parts.push(format!("ship {}", seconds(finished.ship)));
    }
    let mut tests = match finished.testing {
        Duration::ZERO if summary.ran() == 0 => "no test ran".to_owned(),
        testing => format!("tests {}", seconds(testing)),
    };
    if summary.ran() > 0 {
        let bound = summary.bound();
        let time = seconds(bound.duration());
        tests += &match bound {
            Bound::Longest(case, _) => {
                let case = case.to_string();
                format!(" (bound {time}: longest test {} {time})", shown::word(&case))
            }
            Bound::Work(_, slots) => {
                let slots = count(slots as usize, "slot", "slots");
                format!(" (bound {time}: total work over {slots})")
            }
        };
    }
    parts.push(tests);
    format!("  {}", parts.join(" · "))
}
