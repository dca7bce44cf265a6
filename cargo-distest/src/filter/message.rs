//! What is wrong with a filterset, in plain text.

use std::ops::Range;

use miette::Diagnostic;
use nextest_filtering::FiltersetKind;
use nextest_filtering::errors::FiltersetParseErrors;

use crate::failure::{ExitCode, Failure};

/// Deeper nesting is refused: the parser is recursive.
const DEPTH_MAX: usize = 100;
const REFERENCE: &str = "the language is described at https://nexte.st/docs/filtersets/reference";

/// The expression, each error, and a line that marks the place.
pub(super) fn invalid(errors: &FiltersetParseErrors, kind: FiltersetKind) -> Failure {
    let input = &errors.input;
    let mut what = match kind {
        FiltersetKind::DefaultFilter => format!("invalid default-filter `{input}`"),
        _ => format!("invalid filterset `{input}`"),
    };
    for error in &errors.errors {
        what.push_str(&format!("\n  {error}"));
        for label in error.labels().into_iter().flatten() {
            let place = label.offset()..label.offset() + label.len();
            what.push_str(&mark(input, place, label.label().unwrap_or_default()));
        }
        if let Some(help) = error.help() {
            what.push_str(&format!("\n  {help}"));
        }
    }
    Failure::new(ExitCode::InvalidFilterset, what).hint(REFERENCE)
}

/// The line of `input` that `place` starts in, and a line that marks it.
fn mark(input: &str, place: Range<usize>, label: &str) -> String {
    // Offsets come from another crate: one in the middle of a character must not panic.
    let floor = |offset: usize| {
        let offset = offset.min(input.len());
        (0..=offset).rev().find(|offset| input.is_char_boundary(*offset)).unwrap_or(0)
    };
    let (start, end) = (floor(place.start), floor(place.end));
    let line_start = input[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = input[start..].find('\n').map_or(input.len(), |newline| start + newline);
    let before = input[line_start..start].chars().count();
    let marked = input[start..end.clamp(start, line_end)].chars().count().max(1);
    let line = &input[line_start..line_end];
    let line = format!("    {line}");
    format!("\n{}\n    {}{} {label}", line.trim_end(), " ".repeat(before), "^".repeat(marked))
}

/// Whether an expression is nested so deeply that parsing it could exhaust the stack.
pub(super) fn is_too_deep(expression: &str) -> bool {
    let (mut open, mut prefixes, mut deepest) = (0_usize, 0_usize, 0_usize);
    for token in expression.split_inclusive(|c: char| !c.is_alphanumeric()) {
        let word = token.trim_end_matches(|c: char| !c.is_alphanumeric());
        match word {
            "" => {}
            "not" => prefixes += 1,
            _ => prefixes = 0,
        }
        match token[word.len()..].chars().next() {
            Some('(') => open += 1,
            Some(')') => (open, prefixes) = (open.saturating_sub(1), 0),
            Some('!') => prefixes += 1,
            _ => {}
        }
        deepest = deepest.max(open + prefixes);
    }
    deepest > DEPTH_MAX
}

/// What is told of such an expression.
pub(super) fn too_deep(expression: &str) -> Failure {
    let start: String = expression.chars().take(60).collect();
    Failure::new(
        ExitCode::InvalidFilterset,
        format!("invalid filterset `{start}…`: nested more than {DEPTH_MAX} levels deep"),
    )
    .hint("give several -E expressions instead of one")
}
