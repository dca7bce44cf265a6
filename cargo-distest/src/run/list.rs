//! `cargo distest list`: the same line up to the plan, printed instead of run.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;
use tokio::sync::mpsc;

use super::{EVENTS_MAX, Fed, Line, ORDERS_MAX, prepare};
use crate::cli::{ListArgs, ListFormat};
use crate::dispatch::{Order, Planned};
use crate::event::RunEvent;
use crate::failure::{ExitCode, Failure};
use crate::model::BinaryId;
use crate::plan;
use crate::settings::ShowProgress;
use crate::ui::{Ui, report_warning};

/// Builds, lists and prints the selected tests.
///
/// # Errors
/// As for a run, up to the plan.
pub async fn list(args: &ListArgs) -> Result<ExitCode, Failure> {
    let ui = Ui::new(args.color.unwrap_or_default(), ShowProgress::None);
    let mut prepared = prepare(&args.as_run()).await?;
    for warning in std::mem::take(&mut prepared.warnings) {
        report_warning(&ui, &warning.text, warning.hint.as_deref());
    }
    let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
    let (orders, mut orders_in) = mpsc::channel(ORDERS_MAX);
    let (line, _) = Line::new(Instant::now(), prepared, events);
    let planning = async move {
        let mut fed = Fed::default();
        line.build_and_plan(&orders, &mut fed).await
    };
    let collecting = async {
        let mut tests = Vec::new();
        while let Some(order) = orders_in.recv().await {
            if let Order::Tests(planned) = order {
                tests.extend(planned);
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
    planned?;
    tests.sort_by(|a, b| plan::listing_order(&a.case, &b.case));
    print(&tests, args.message_format, &ui);
    ui.flush();
    ui.stdout_written().map(|()| ExitCode::Passed)
}

fn print(tests: &[Planned], format: ListFormat, ui: &Ui) {
    match format {
        ListFormat::Oneline => tests.iter().for_each(|test| ui.stdout_line(&test.case.to_string())),
        ListFormat::Human => {
            let mut binary: Option<&BinaryId> = None;
            for test in tests {
                if binary != Some(&test.case.binary) {
                    ui.stdout_line(&format!("{}:", test.case.binary));
                    binary = Some(&test.case.binary);
                }
                ui.stdout_line(&format!("    {}", test.case.name));
            }
        }
        ListFormat::Json => ui.stdout_line(&document(tests).to_string()),
    }
}

/// One document: binaries in listing order, each with its selected tests.
fn document(tests: &[Planned]) -> serde_json::Value {
    let mut names: BTreeMap<&BinaryId, Vec<&str>> = BTreeMap::new();
    let mut binaries = Vec::new();
    for test in tests {
        let names = names.entry(&test.case.binary).or_default();
        if names.is_empty() {
            binaries.push(&test.runnable.binary);
        }
        names.push(&test.case.name.0);
    }
    let binaries = binaries.into_iter().map(|binary| {
        json!({
            "binary_id": binary.id,
            "package": binary.package,
            "kind": binary.kind,
            "target": binary.triple,
            "executable": binary.executable.to_string_lossy(),
            "cwd": binary.cwd.to_string_lossy(),
            "tests": names.get(&binary.id),
        })
    });
    json!({ "schema": 1, "tests": tests.len(), "binaries": binaries.collect::<Vec<_>>() })
}
