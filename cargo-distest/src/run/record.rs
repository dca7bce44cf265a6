//! What past runs know, and what this one adds to it. History never fails a run: what goes wrong
//! is a warning.

use crate::compile::Workspace;
use crate::history::{self, History, Remembered, RunRecord};
use crate::pace::{Met, Paces};
use crate::results::Summary;
use crate::settings::{Settings, Warning};

/// Opens this workspace's history, unless the settings say no.
pub(super) fn open(
    settings: &Settings,
    workspace: &Workspace,
    warnings: &mut Vec<Warning>,
) -> Option<History> {
    if !settings.history.enabled {
        return None;
    }
    let members: Vec<_> = workspace
        .metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let given = settings.history.path.clone();
    if let Some(foreign) = given.as_deref().and_then(history::foreign) {
        warnings.push(foreign);
        return None;
    }
    let path = given.or_else(|| history::default_path(&workspace.root, &members))?;
    let (history, warning) = History::open(&path);
    warnings.extend(warning);
    history
}

/// What is known of the host's tests.
pub(super) fn tests(
    history: Option<&mut History>,
    settings: &Settings,
    workspace: &Workspace,
    warnings: &mut Vec<Warning>,
) -> Remembered {
    let Some(history) = history else { return Remembered::default() };
    let (remembered, warning) = history.tests(&workspace.host, &settings.compile.cargo_profile);
    warnings.extend(warning);
    remembered
}

/// What is known of workers.
pub(super) fn paces(history: Option<&mut History>, warnings: &mut Vec<Warning>) -> Paces {
    let Some(history) = history else { return Paces::default() };
    let (paces, warning) = history.paces();
    warnings.extend(warning);
    paces
}

/// Adds this run; answers what is to be told.
pub(super) fn remember(
    mut history: History,
    summary: &Summary,
    settings: &Settings,
    met: &[Met],
) -> Option<Warning> {
    let record = RunRecord::of(summary, &settings.compile.cargo_profile, met)?;
    history.record(&record)
}
