//! The end of the line: reports, exit code, history.

use tokio::sync::mpsc;

use super::{Ended, record};
use crate::dispatch::{FleetEnd, Unplaceable};
use crate::event::{CancelReason, RunEvent};
use crate::failure::{ExitCode, Failure};
use crate::history::History;
use crate::report::{Reporter, Reports};
use crate::results::{Ending, Summary};
use crate::settings::{NoTests, Warning};
use crate::ui::{Ui, report_warning};

/// The most events that are shown at once.
const BURST_MAX: usize = 1024;

/// What the reporters hold when the last event but one has gone through them.
pub(super) struct Reported {
    reports: Reports,
    summary: Summary,
}

/// Folds and shows events until nobody sends any more.
pub(super) async fn report(
    mut reports: Reports,
    mut summary: Summary,
    mut events: mpsc::Receiver<RunEvent>,
) -> Reported {
    let mut burst = Vec::new();
    while events.recv_many(&mut burst, BURST_MAX).await > 0 {
        for event in burst.drain(..) {
            summary.apply(&event);
            reports.event(&event, &summary);
        }
        reports.pause(&summary);
    }
    Reported { reports, summary }
}

/// What a run without a worker for its tests exits with.
fn code_without_worker(fleet: FleetEnd) -> ExitCode {
    match fleet {
        FleetEnd::NeverWas | FleetEnd::Stands => ExitCode::NoWorker,
        FleetEnd::Lost | FleetEnd::Left => ExitCode::FleetLost,
    }
}

fn without_worker(code: ExitCode, fleet: FleetEnd) -> Failure {
    let (what, hint) = match fleet {
        FleetEnd::NeverWas => {
            ("no worker is usable", "start a worker, or allow this machine with --local-slots N")
        }
        FleetEnd::Stands => (
            "no worker takes the tests that are left",
            "the warnings say why; mend that, or allow this machine with --local-slots N",
        ),
        FleetEnd::Lost => (
            "all workers were lost before the end of the run",
            "what ran until then is in the report",
        ),
        FleetEnd::Left => (
            "the last worker takes no more tests, before the end of the run",
            "what ran until then is in the report; `cargo distest workers` shows who is there",
        ),
    };
    Failure::new(code, what).hint(hint)
}

/// Tells the last event, writes reports and history, and says what to exit with.
pub(super) fn end(
    ended: Ended,
    reported: Reported,
    history: Option<History>,
    ui: &Ui,
) -> Result<ExitCode, Failure> {
    let Ended { settings, origin, fed, dispatched, .. } = ended;
    let Reported { mut reports, mut summary } = reported;
    let failed_early = fed.failure.is_some();
    let none_left = fed.planned.as_ref().filter(|plan| plan.tests == 0);
    let none_left = none_left.map(|plan| format!("no tests to run ({} skipped)", plan.skipped));
    let no_tests = settings.select.no_tests;

    let mut code = summary.exit_code();
    if let Some(failure) = &fed.failure {
        code = code.or_worse(failure.code);
    }
    code = match dispatched.cancelled {
        Some(CancelReason::Interrupt) => code.or_worse(ExitCode::Interrupted),
        Some(CancelReason::FleetLost) => code.or_worse(code_without_worker(dispatched.fleet)),
        Some(CancelReason::Unplaceable) => code.or_worse(ExitCode::NoWorker),
        Some(CancelReason::GlobalTimeout) => code.or_worse(ExitCode::TestsFailed),
        Some(CancelReason::TestFailure | CancelReason::Failure) | None => code,
    };
    if none_left.is_some() && no_tests == NoTests::Fail {
        code = code.or_worse(ExitCode::NoTests);
    }
    let ending =
        Ending { exit_code: code, elapsed: origin.elapsed(), built_at: fed.built_at, failed_early };
    let finished = RunEvent::Finished(Box::new(summary.ending(ending)));
    summary.apply(&finished);
    reports.event(&finished, &summary);
    reports.pause(&summary);
    let written = reports.finish(&summary).and(ui.stdout_written());
    let warning =
        history.and_then(|history| record::remember(history, &summary, &settings, &dispatched.met));
    if let Some(Warning { text, hint }) = warning {
        report_warning(ui, &text, hint.as_deref());
    }
    if let (None, Some(Unplaceable { text, nearest })) = (&fed.failure, &dispatched.unplaceable) {
        let hint = nearest.as_deref().unwrap_or("connect a worker that has what it needs");
        return Err(Failure::new(code, text.clone()).hint(hint));
    }
    match (fed.failure, written) {
        (Some(failure), _) => Err(Failure { code, ..failure }),
        (None, Ok(())) if dispatched.cancelled == Some(CancelReason::FleetLost) => {
            Err(without_worker(code, dispatched.fleet))
        }
        (None, Err(failure)) => Err(Failure { code: code.or_worse(failure.code), ..failure }),
        (None, Ok(())) => match (none_left, no_tests) {
            (Some(what), NoTests::Fail) => {
                Err(Failure::new(code, what).hint("--no-tests pass makes this a success"))
            }
            (Some(what), NoTests::Warn) => {
                report_warning(ui, &what, None);
                Ok(code)
            }
            (Some(_), NoTests::Pass) | (None, _) => Ok(code),
        },
    }
}
