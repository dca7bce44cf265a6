//! What a client's words weigh in a worker's memory, in bytes: their own, and what keeping them costs.

use crate::protocol::{AttemptSpec, BinarySpec, OsText, SessionSpec};

/// What keeping a text costs beside its bytes, at least: a place in a list, an allocation.
const TEXT_BYTES: usize = 64;

/// Attempts that wait.
pub fn of_attempts(specs: &[AttemptSpec]) -> usize {
    specs.iter().map(of_attempt).sum()
}

/// An attempt that waits.
pub(super) fn of_attempt(spec: &AttemptSpec) -> usize {
    let texts = spec.args.iter().chain(&spec.unset).map(of_text).sum::<usize>();
    size_of::<AttemptSpec>() + texts + of_variables(&spec.env) + spec.label.len()
}

/// What a session keeps of a binary that is ready to run.
pub fn of_binary(spec: &BinarySpec) -> usize {
    of_text(&spec.program) + of_text(&spec.cwd) + of_variables(&spec.env)
}

/// What a session keeps of how it was opened.
pub fn of_session(spec: &SessionSpec) -> usize {
    let roots = spec.roots.iter().map(of_text).sum::<usize>();
    let patterns = spec.collect.iter().map(|it| TEXT_BYTES + it.len()).sum::<usize>();
    spec.run.len() + spec.project.len() + roots + patterns + of_variables(&spec.env)
}

fn of_variables(variables: &[(OsText, OsText)]) -> usize {
    variables.iter().map(|(name, value)| of_text(name) + of_text(value)).sum()
}

fn of_text(text: &OsText) -> usize {
    TEXT_BYTES + text.as_os_str().len()
}
