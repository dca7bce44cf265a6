//! `cargo distest list`: the same line up to the plan, printed instead of run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use tokio::sync::mpsc;

use super::{Aside, EVENTS_MAX, Fed, Line, ORDERS_MAX, Purpose, doctests, prepare};
use crate::cli::{ListArgs, ListFormat};
use crate::dispatch::Order;
use crate::event::{PlanComplete, RunEvent};
use crate::failure::{ExitCode, Failure};
use crate::model::{BinaryId, TestBinary, TestCase};
use crate::plan;
use crate::settings::ShowProgress;
use crate::ui::{Ui, report_warning};
use distest_worker::shown;

/// Builds, lists and prints the selected tests.
///
/// # Errors
/// As for a run, up to the plan.
pub async fn list(args: &ListArgs) -> Result<ExitCode, Failure> {
    let ui = Ui::new(args.color.unwrap_or_default(), ShowProgress::None);
    let mut prepared = prepare(&args.as_run(), Purpose::Look).await?;
    for warning in std::mem::take(&mut prepared.warnings) {
        report_warning(&ui, &warning.text, warning.hint.as_deref());
    }
    let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
    let (orders, mut orders_in) = mpsc::channel(ORDERS_MAX);
    let (line, Aside { building, .. }) = Line::new(Instant::now(), prepared, events);
    let planning = async move {
        let mut fed = Fed::default();
        line.build_and_plan(building, &orders, &mut fed).await?;
        drop(orders);
        doctests::cases(&line, &mut PlanComplete::default()).await
    };
    let collecting = async {
        let mut tests = Vec::new();
        while let Some(order) = orders_in.recv().await {
            if let Order::Tests(planned) = order {
                tests.extend(planned.into_iter().map(|planned| Entry {
                    binary: Arc::clone(&planned.runnable.binary),
                    case: planned.case,
                    doctest: false,
                }));
            }
        }
        tests
    };
    let warning = async {
        while let Some(event) = events_in.recv().await {
            if let RunEvent::Warning { text, hint } = event {
                report_warning(&ui, &text, hint.as_deref());
            }
        }
    };
    let (planned, mut tests, ()) = tokio::join!(planning, collecting, warning);
    tests.extend(planned?.into_iter().map(|(case, binary)| Entry { case, binary, doctest: true }));
    tests.sort_by(|a, b| plan::listing_order(&a.case, &b.case));
    print(&tests, args.message_format, &ui);
    ui.flush();
    ui.stdout_written().map(|()| ExitCode::Passed)
}

/// A test in the list.
struct Entry {
    case: TestCase,
    binary: Arc<TestBinary>,
    /// rustdoc will make its executable.
    doctest: bool,
}

fn print(tests: &[Entry], format: ListFormat, ui: &Ui) {
    match format {
        ListFormat::Oneline => tests.iter().for_each(|test| ui.stdout_line(&test.case.to_string())),
        ListFormat::Human => {
            let mut binary: Option<&BinaryId> = None;
            for test in tests {
                if binary != Some(&test.case.binary) {
                    ui.stdout_line(&format!("{}:", shown::word(&test.case.binary.0)));
                    binary = Some(&test.case.binary);
                }
                ui.stdout_line(&format!("    {}", shown::word(&test.case.name.0)));
            }
        }
        ListFormat::Json => ui.stdout_line(&document(tests).to_string()),
    }
}

/// One document: binaries in listing order, each with its selected tests.
fn document(tests: &[Entry]) -> serde_json::Value {
    let mut names: BTreeMap<&BinaryId, Vec<&str>> = BTreeMap::new();
    let mut binaries = Vec::new();
    for test in tests {
        let names = names.entry(&test.case.binary).or_default();
        if names.is_empty() {
            binaries.push((&test.binary, test.doctest));
        }
        names.push(&test.case.name.0);
    }
    let binaries = binaries.into_iter().map(|(binary, doctest)| {
        let executable = (!doctest).then(|| binary.executable.to_string_lossy());
        let kind = if doctest { json!("doc") } else { json!(binary.kind) };
        json!({
            "binary_id": binary.id,
            "package": binary.package,
            "kind": kind,
            "target": binary.triple,
            "executable": executable,
            "cwd": binary.cwd.to_string_lossy(),
            "tests": names.get(&binary.id),
        })
    });
    json!({ "schema": 1, "tests": tests.len(), "binaries": binaries.collect::<Vec<_>>() })
}
