//! `cargo distest plan`: what a run would take on so many workers, from history. Nothing runs.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distest_worker::protocol::BinaryKey;
use serde_json::json;
use tokio::sync::mpsc;

use super::{EVENTS_MAX, Fed, Line, ORDERS_MAX, cores, prepare};
use crate::cli::{ListFormat, PlanArgs};
use crate::dispatch::{Order, Planned};
use crate::failure::{ExitCode, Failure};
use crate::forecast::{Forecast, Machine, Question, play};
use crate::model::TestIndex;
use crate::scheduler::{Group, GroupIndex, Rules, Task};
use crate::settings::ShowProgress;
use crate::ui::Ui;

/// What an attempt takes besides its test: a process start and two ways.
const OVERHEAD: Duration = Duration::from_millis(3);
/// A worker more that gains less than this share of the time is beyond the knee.
const KNEE: f64 = 0.05;

/// Builds, lists, and plays the run through on each number of workers.
///
/// # Errors
/// As for a list; and if nothing is known of any test's time.
pub async fn plan(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let ui = Ui::new(args.list.color.unwrap_or_default(), ShowProgress::None);
    let prepared = prepare(&args.list.as_run()).await?;
    let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
    let (orders, mut orders_in) = mpsc::channel(ORDERS_MAX);
    let (line, _) = Line::new(Instant::now(), prepared, events);
    let groups = line.constraints.groups().to_vec();
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
    let ignoring = async { while events_in.recv().await.is_some() {} };
    let (planned, tests, ()) = tokio::join!(planning, collecting, ignoring);
    planned?;
    if tests.iter().all(|test| test.expected.is_none()) {
        let what = "could not plan: no selected test has a known time";
        return Err(
            Failure::new(ExitCode::Setup, what).hint("run the tests once: cargo distest run")
        );
    }
    print(args, &tests, &groups, &ui);
    ui.flush();
    ui.stdout_written().map(|()| ExitCode::Passed)
}

fn print(args: &PlanArgs, planned: &[Planned], groups: &[Group], ui: &Ui) {
    let tests = work(planned);
    let slots = args.slots.unwrap_or_else(cores).max(1);
    let total: Duration = tests.iter().map(|(_, takes)| *takes).sum();
    let longest = tests.iter().map(|(_, takes)| *takes).max().unwrap_or_default();
    let chain = longest_chain(&tests, groups);
    let json = args.list.message_format == ListFormat::Json;
    if !json {
        let (total, longest) = (seconds(total), seconds(longest));
        ui.stdout_line(&format!("{} tests, {total}, longest {longest}", tests.len()));
    }
    let (mut before, mut knee): (Option<f64>, Option<u32>) = (None, None);
    for workers in args.workers.from..=args.workers.to {
        let Forecast { makespan, .. } = on(workers, slots, &tests, groups);
        let share = total / (workers * slots).max(1);
        let limit =
            [(share, "all slots are busy"), (longest, "the longest test"), (chain.0, &*chain.1)];
        let limit = limit.into_iter().max_by_key(|(bound, _)| *bound).map_or("", |(_, name)| name);
        let took = makespan.as_secs_f64();
        if knee.is_none() && before.is_some_and(|before| took > before * (1.0 - KNEE)) {
            knee = Some(workers - 1);
        }
        before = Some(took);
        let beyond = knee == Some(workers - 1);
        let line = if json {
            let beyond_knee = knee.is_some();
            json!({ "workers": workers, "slots": slots, "time_s": took, "limited_by": limit, "beyond_knee": beyond_knee }).to_string()
        } else {
            let mark = if beyond { "  <- beyond the knee" } else { "" };
            let time = seconds(makespan);
            format!("{workers:>4} × {slots} slots  {time}  limited by: {limit}{mark}")
        };
        ui.stdout_line(&line);
    }
}

/// Tests with what they take: what is not known is like the mean of the others.
fn work(planned: &[Planned]) -> Vec<(Task, Duration)> {
    let known: Vec<_> = planned.iter().filter_map(|test| test.expected).collect();
    let mean = known.iter().sum::<Duration>() / u32::try_from(known.len()).unwrap_or(1).max(1);
    let work = planned.iter().enumerate().map(|(index, test)| {
        let takes = test.expected.unwrap_or(mean);
        let rank = crate::plan::Rank { expected: Reverse(takes), ..test.rank };
        let binary: BinaryKey = test.runnable.key;
        (Task { test: TestIndex(index as u32), binary, rank, needs: None }, takes)
    });
    let mut work: Vec<_> = work.collect();
    for ((task, _), test) in work.iter_mut().zip(planned) {
        // Labels and sides are unknown of workers that are not there.
        task.needs = test.needs.as_ref().map(|needs| {
            let mut needs = crate::scheduler::Needs::clone(needs);
            needs.requires = BTreeMap::new();
            needs.place = crate::scheduler::Place::Any;
            needs.into()
        });
    }
    work
}

/// What the fullest group takes, and its name.
fn longest_chain(tests: &[(Task, Duration)], groups: &[Group]) -> (Duration, String) {
    let mut sums: BTreeMap<GroupIndex, Duration> = BTreeMap::new();
    for (task, takes) in tests {
        if let Some(group) = task.needs.as_ref().and_then(|needs| needs.group) {
            *sums.entry(group).or_default() += *takes;
        }
    }
    let chains = sums.into_iter().filter_map(|(GroupIndex(index), sum)| {
        let group = groups.get(index as usize)?;
        Some((sum / group.threads_max?.max(1), format!("the test group {}", group.name)))
    });
    chains.max().unwrap_or_default()
}

fn on(workers: u32, slots: u32, tests: &[(Task, Duration)], groups: &[Group]) -> Forecast {
    let machine = Machine {
        slots,
        speed: 1.0,
        speed_known: true,
        round_trip: Duration::from_millis(1),
        prepare: Duration::ZERO,
        dies_at: None,
    };
    let rules = Rules {
        retries: 0,
        failures_max: None,
        failures_end_running: false,
        flaky_fails: false,
        threads: None,
    };
    let question = Question {
        rules,
        groups: groups.to_vec(),
        tests: tests.to_vec(),
        machines: vec![machine; workers as usize],
        overhead: OVERHEAD,
    };
    play(&question, |scheduler, input, effects| scheduler.step(input, effects))
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
