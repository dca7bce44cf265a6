//! `cargo distest plan`: what a run would take on so many workers, from history. Nothing runs.

mod basis;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distest_worker::protocol::BinaryKey;
use serde_json::json;
use tokio::sync::mpsc;

use self::basis::{Basis, DoctestTimes, Prediction, work};
use super::{Aside, EVENTS_MAX, Fed, Line, ORDERS_MAX, Purpose, cores, doctests, prepare};
use crate::cli::{ListFormat, PlanArgs};
use crate::dispatch::{Order, Planned};
use crate::event::RunEvent;
use crate::failure::{ExitCode, Failure};
use crate::pace::Paces;
use crate::plan::Urgency;
use crate::settings::{NoTests, ShowProgress};
use crate::ui::{Ui, report_warning};

/// Beyond the knee each worker more gains less than this share of the time.
const KNEE: f64 = 0.05;

/// Builds, lists, and plays the run through on each number of workers.
///
/// # Errors
/// As for a list; if no test is selected, as for a run; and if nothing is known of any test's time.
pub async fn plan(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let ui = Ui::new(args.list.color.unwrap_or_default(), ShowProgress::None);
    let mut prepared = prepare(&args.list.as_run(), Purpose::Look).await?;
    for warning in std::mem::take(&mut prepared.warnings) {
        report_warning(&ui, &warning.text, warning.hint.as_deref());
    }
    let settings = &prepared.settings;
    let (no_tests, threads) = (settings.select.no_tests, settings.execute.test_threads);
    let remembers = settings.history.enabled;
    let rate = usual_rate(&prepared.paces);
    let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
    let (orders, mut orders_in) = mpsc::channel(ORDERS_MAX);
    let (line, Aside { building, .. }) = Line::new(Instant::now(), prepared, events);
    let groups = line.constraints.groups().to_vec();
    let planning = async move {
        let mut fed = Fed::default();
        line.build_and_plan(building, &orders, &mut fed).await?;
        drop(orders);
        let mut plan = fed.planned.unwrap_or_default();
        let cases = doctests::cases(&line, &mut plan).await?;
        let cases: Vec<_> = cases.into_iter().map(|(case, _)| case).collect();
        Ok::<_, Failure>((plan.skipped, DoctestTimes::of(&cases, &line.timings)))
    };
    let collecting = async {
        let (mut tests, mut together) = (Vec::new(), (Vec::new(), Vec::new()));
        while let Some(order) = orders_in.recv().await {
            match order {
                Order::Tests(planned) => tests.extend(planned),
                Order::Batches { batches, acquainted, .. } => together = (batches, acquainted),
                Order::AllPlanned(_) | Order::Tree(_) | Order::Cancel(..) => {}
            }
        }
        (tests, together)
    };
    let warning = async {
        while let Some(event) = events_in.recv().await {
            if let RunEvent::Warning { text, hint } = event {
                report_warning(&ui, &text, hint.as_deref());
            }
        }
    };
    let (planned, (tests, together), ()) = tokio::join!(planning, collecting, warning);
    let (skipped, doctests) = planned?;
    if tests.is_empty() && doctests.count == 0 {
        return nothing_to_plan(no_tests, skipped, &ui);
    }
    let unheard_of = match tests.is_empty() {
        true => doctests.take.is_none(),
        false => tests.iter().all(|test| test.expected.is_none()),
    };
    if unheard_of {
        let what = "could not plan: no selected test has a known time";
        return Err(Failure::new(ExitCode::Setup, what).hint(match remembers {
            true => "run the tests once: cargo distest run",
            false => "times are known from history: plan without --no-history",
        }));
    }
    let slots = args.slots.unwrap_or_else(cores).max(1);
    let unknown = tests.iter().filter(|test| test.rank.urgency == Urgency::New).count();
    let (batches, acquainted) = together;
    let (sizes, tests) = (sizes(&tests), work(&tests));
    let basis = Basis {
        tests,
        unknown,
        groups,
        batches,
        acquainted,
        sizes,
        rate,
        threads,
        slots,
        doctests,
    };
    print(args, &basis, &ui);
    ui.flush();
    ui.stdout_written().map(|()| ExitCode::Passed)
}

fn nothing_to_plan(no_tests: NoTests, skipped: u32, ui: &Ui) -> Result<ExitCode, Failure> {
    let what = format!("no tests to plan ({skipped} skipped)");
    match no_tests {
        NoTests::Fail => {
            Err(Failure::new(ExitCode::NoTests, what).hint("--no-tests pass makes this a success"))
        }
        NoTests::Warn => {
            report_warning(ui, &what, None);
            Ok(ExitCode::Passed)
        }
        NoTests::Pass => Ok(ExitCode::Passed),
    }
}

fn print(args: &PlanArgs, basis: &Basis, ui: &Ui) {
    let json = args.list.message_format == ListFormat::Json;
    if !json {
        let parts = [of_tests(basis, args.workers.to), of_doctests(&basis.doctests)];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        ui.stdout_line(&parts.join("; then "));
    }
    let slots = basis.slots;
    let doctests = basis.doctests.take.map(|takes| takes.as_secs_f64());
    let predictions: Vec<_> =
        (args.workers.from..=args.workers.to).map(|workers| basis.predict(workers)).collect();
    let times: Vec<f64> = predictions.iter().map(|it| it.takes.as_secs_f64()).collect();
    let knee = knee(&times);
    for (place, (workers, it)) in (args.workers.from..).zip(predictions).enumerate() {
        let Prediction { takes, limit, without_sending } = it;
        let line = if json {
            json!({
                "workers": workers,
                "slots": slots,
                "time_s": takes.as_secs_f64(),
                "doctests_s": doctests,
                "limited_by": limit,
                "beyond_knee": knee.is_some_and(|knee| place > knee),
            })
            .to_string()
        } else {
            let without = without_sending.map(|it| format!(" ({} without)", seconds(it)));
            let without = without.unwrap_or_default();
            // Fewer workers than the first number may do as well.
            let is_knee = knee == Some(place) && (place > 0 || workers == 1);
            let mark = match is_knee {
                true => {
                    format!("  <- the knee: more workers gain less than {:.0} % each", KNEE * 100.0)
                }
                false => String::new(),
            };
            let time = seconds(takes);
            format!("{workers:>4} × {slots} slots  {time}  limited by: {limit}{without}{mark}")
        };
        ui.stdout_line(&line);
    }
}

/// The place of the first number of workers from which on none gains enough for what it adds. None
/// if that may be beyond the last.
fn knee(times: &[f64]) -> Option<usize> {
    let pays = |from: usize, to: usize| {
        let more = i32::try_from(to - from).unwrap_or(i32::MAX);
        times[to] <= times[from] * (1.0 - KNEE).powi(more)
    };
    let last = times.len().checked_sub(1)?;
    (0..last).find(|from| !(from + 1..=last).any(|to| pays(*from, to)))
}

/// What is known of tests, in words; none if there are none.
fn of_tests(basis: &Basis, workers: u32) -> Option<String> {
    let times = || basis.tests.iter().map(|(_, takes)| *takes);
    let (total, longest) = (seconds(times().sum()), seconds(times().max()?));
    let count = basis.tests.len();
    let guessed = match basis.unknown {
        0 => String::new(),
        unknown => format!(", {unknown} of unknown time guessed from the others"),
    };
    let batched: usize = basis.batches.iter().map(|batch| batch.tests.len()).sum();
    let batched = match batched {
        0 => String::new(),
        batched => match basis.batches.len() {
            1 => format!(", {batched} of them in one process"),
            processes => format!(", {batched} of them in {processes} processes"),
        },
    };
    let sending = sending(basis, workers);
    Some(format!("{count} tests, {total}, longest {longest}{guessed}{batched}{sending}"))
}

/// What is known of doctests, in words; none if there are none.
fn of_doctests(doctests: &DoctestTimes) -> Option<String> {
    let DoctestTimes { count, unknown, take } = doctests;
    let known = match (take, unknown) {
        (None, _) => "of unknown time, not counted".to_owned(),
        (Some(take), 0) => seconds(*take),
        (Some(take), unknown) => {
            let take = seconds(*take);
            format!("{take}, {unknown} of unknown time guessed from the others")
        }
    };
    (*count > 0).then(|| format!("{count} doctests on any number of workers, {known}"))
}

/// Bytes of the executables of tests.
fn sizes(planned: &[Planned]) -> BTreeMap<BinaryKey, u64> {
    let mut sizes = BTreeMap::new();
    for test in planned {
        sizes.entry(test.runnable.key).or_insert_with(|| {
            let executable = std::fs::metadata(&test.runnable.binary.executable);
            executable.map_or(0, |metadata| metadata.len())
        });
    }
    sizes
}

/// The middle one of those that were measured.
fn usual_rate(paces: &Paces) -> Option<f64> {
    let mut rates: Vec<f64> = paces.values().filter_map(|pace| pace.rate()).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied()
}

/// What is counted for sending executables, in words.
fn sending(basis: &Basis, workers: u32) -> String {
    let bytes: u64 = basis.sizes.values().sum();
    match basis.rate {
        _ if workers < 2 => String::new(),
        Some(rate) => {
            let (size, rate) = (bytes as f64 / 1e6, rate / 1e6);
            format!(", {size:.0} MB of executables to send at {rate:.1} MB/s, as measured")
        }
        None => ", sending executables not counted (no way to a worker is remembered)".into(),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_knee_is_where_no_number_of_workers_more_pays() {
        let check = |times: &[f64], expected| assert_eq!(knee(times), expected, "{times:?}");
        check(&[9.0, 6.0, 6.0, 6.0], Some(1));
        // Four long tests: three workers take as long as two, and four half of that.
        check(&[4.0, 2.0, 2.0, 1.0, 1.0], Some(3));
        // Twenty workers more for a gain of a tenth.
        check(&[[1.0; 20].as_slice(), &[0.9]].concat(), Some(0));
        // What comes next is not known.
        check(&[4.0, 2.0], None);
        check(&[4.0], None);
        check(&[], None);
    }
}
