//! What past runs know, and what this one adds to it. History never fails a run: what goes wrong
//! is a warning.

use super::company::{self, Choice};
use crate::batch::Standings;
use crate::compile::Workspace;
use crate::cost::Timings;
use crate::history::{self, History, RunRecord};
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

/// What is known of the host's tests; of other triples' as far as they were asked for.
pub(super) fn timings(
    history: Option<&mut History>,
    settings: &Settings,
    workspace: &Workspace,
    warnings: &mut Vec<Warning>,
) -> Timings {
    let Some(history) = history else { return Timings::default() };
    let (timings, warning) = history.timings(&workspace.host, &settings.compile.cargo_profile);
    warnings.extend(warning);
    timings
}

/// What is known of workers.
pub(super) fn paces(history: Option<&mut History>, warnings: &mut Vec<Warning>) -> Paces {
    let Some(history) = history else { return Paces::default() };
    let (paces, warning) = history.paces();
    warnings.extend(warning);
    paces
}

/// Which tests share a process, as far as history knows them.
pub(super) fn choice(
    history: Option<&mut History>,
    settings: &Settings,
    workspace: &Workspace,
    warnings: &mut Vec<Warning>,
) -> Option<Choice> {
    let mut standings = Standings::default();
    if let Some(history) = history.filter(|_| company::mode(settings).is_some()) {
        let profile = &settings.compile.cargo_profile;
        let (known, warning) = history.standings(&workspace.host, profile);
        standings = known;
        warnings.extend(warning);
    }
    Choice::new(settings, standings)
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
