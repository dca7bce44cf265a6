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
use crate::event::RunEvent;
use crate::failure::{ExitCode, Failure};
use crate::forecast::{Forecast, Machine, Question, play};
use crate::model::TestIndex;
use crate::plan::{Rank, Urgency};
use crate::scheduler::{Group, GroupIndex, Rules, Task};
use crate::settings::{NoTests, ShowProgress};
use crate::ui::{Ui, report_warning};

/// What an attempt takes besides its test: a process start and two ways.
const OVERHEAD: Duration = Duration::from_millis(3);
/// A worker more that gains less than this share of the time is beyond the knee.
const KNEE: f64 = 0.05;

/// What the predictions are made from.
struct Basis {
    tests: Vec<(Task, Duration)>,
    /// How many of them have never run: their times are guessed.
    unknown: usize,
    groups: Vec<Group>,
    /// Tests at once over the whole run.
    threads: Option<u32>,
    /// Of each worker.
    slots: u32,
}

/// Builds, lists, and plays the run through on each number of workers.
///
/// # Errors
/// As for a list; if no test is selected, as for a run; and if nothing is known of any test's time.
pub async fn plan(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let ui = Ui::new(args.list.color.unwrap_or_default(), ShowProgress::None);
    let mut prepared = prepare(&args.list.as_run()).await?;
    for warning in std::mem::take(&mut prepared.warnings) {
        report_warning(&ui, &warning.text, warning.hint.as_deref());
    }
    let settings = &prepared.settings;
    let (no_tests, threads) = (settings.select.no_tests, settings.execute.test_threads);
    let remembers = settings.history.enabled;
    let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
    let (orders, mut orders_in) = mpsc::channel(ORDERS_MAX);
    let (line, _) = Line::new(Instant::now(), prepared, events);
    let groups = line.constraints.groups().to_vec();
    let planning = async move {
        let mut fed = Fed::default();
        line.build_and_plan(&orders, &mut fed).await.map(|()| fed.planned.unwrap_or_default())
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
    let (planned, tests, ()) = tokio::join!(planning, collecting, warning);
    let skipped = planned?.skipped;
    if tests.is_empty() {
        return nothing_to_plan(no_tests, skipped, &ui);
    }
    if tests.iter().all(|test| test.expected.is_none()) {
        let what = "could not plan: no selected test has a known time";
        return Err(Failure::new(ExitCode::Setup, what).hint(match remembers {
            true => "run the tests once: cargo distest run",
            false => "times are known from history: plan without --no-history",
        }));
    }
    let slots = args.slots.unwrap_or_else(cores).max(1);
    let unknown = tests.iter().filter(|test| test.rank.urgency == Urgency::New).count();
    let basis = Basis { tests: work(&tests), unknown, groups, threads, slots };
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
        let times = || basis.tests.iter().map(|(_, takes)| *takes);
        let (total, longest) = (seconds(times().sum()), seconds(times().max().unwrap_or_default()));
        let count = basis.tests.len();
        let guessed = match basis.unknown {
            0 => String::new(),
            unknown => format!(", {unknown} of unknown time guessed from the others"),
        };
        ui.stdout_line(&format!("{count} tests, {total}, longest {longest}{guessed}"));
    }
    let slots = basis.slots;
    let (mut before, mut knee): (Option<f64>, Option<u32>) = (None, None);
    for workers in args.workers.from..=args.workers.to {
        let Forecast { makespan, .. } = basis.on(workers);
        let limit = basis.limit(workers);
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
        let rank = Rank { expected: Reverse(takes), ..test.rank };
        let binary: BinaryKey = test.runnable.key;
        (Task { test: TestIndex(index as u32), binary, rank, needs: None }, takes)
    });
    let mut work: Vec<_> = work.collect();
    for ((task, _), test) in work.iter_mut().zip(planned) {
        // Labels, sides and networks are unknown of workers that are not there.
        task.needs = test.needs.as_ref().map(|needs| {
            let mut needs = crate::scheduler::Needs::clone(needs);
            needs.requires = BTreeMap::new();
            needs.place = crate::scheduler::Place::Any;
            needs.private_network = false;
            needs.forwards = false;
            needs.into()
        });
    }
    work
}

impl Basis {
    fn on(&self, workers: u32) -> Forecast {
        let machine = Machine {
            slots: self.slots,
            speed: 1.0,
            speed_known: true,
            round_trip: Duration::from_millis(1),
            prepare: Duration::ZERO,
            rate: None,
            dies_at: None,
        };
        let rules = Rules {
            retries: 0,
            failures_max: None,
            failures_end_running: false,
            flaky_fails: false,
            threads: self.threads,
            hedge: false,
        };
        let question = Question {
            rules,
            groups: self.groups.clone(),
            tests: self.tests.clone(),
            machines: vec![machine; workers as usize],
            overhead: OVERHEAD,
            sizes: BTreeMap::new(),
        };
        play(&question, |scheduler, input, effects| scheduler.step(input, effects))
    }

    /// What keeps a run on so many workers from being quicker: the largest of its lower bounds.
    fn limit(&self, workers: u32) -> String {
        let all = workers.saturating_mul(self.slots).max(1);
        let (at_once, busy) = match self.threads.filter(|threads| *threads < all) {
            Some(threads) => (threads.max(1), "the number of test threads"),
            None => (all, "all slots are busy"),
        };
        let lasts = |takes: &Duration| *takes + OVERHEAD;
        let work: Duration = self
            .tests
            .iter()
            .map(|(task, takes)| lasts(takes) * self.slots_of(task).min(at_once))
            .sum();
        let longest = self.tests.iter().map(|(_, takes)| lasts(takes)).max().unwrap_or_default();
        let plain = [(work / at_once, busy), (longest, "the longest test")];
        let plain = plain.map(|(bound, name)| (bound, name.to_owned()));
        let limits = plain.into_iter().chain(self.group_bounds(workers));
        limits.max_by_key(|(bound, _)| *bound).map(|(_, name)| name).unwrap_or_default()
    }

    /// Slots that a test keeps others from.
    fn slots_of(&self, task: &Task) -> u32 {
        task.needs.as_ref().map_or(1, |needs| match needs.exclusive {
            true => self.slots,
            false => needs.threads.clamp(1, self.slots),
        })
    }

    /// How long each bounded group takes on its own, and what it is called.
    fn group_bounds(&self, workers: u32) -> impl Iterator<Item = (Duration, String)> {
        let mut sums: BTreeMap<GroupIndex, Duration> = BTreeMap::new();
        for (task, takes) in &self.tests {
            if let Some(group) = task.needs.as_ref().and_then(|needs| needs.group) {
                *sums.entry(group).or_default() += *takes + OVERHEAD;
            }
        }
        sums.into_iter().filter_map(move |(GroupIndex(index), sum)| {
            let group = self.groups.get(usize::from(index))?;
            let per_worker = group.per_worker.map(|max| max.saturating_mul(workers));
            let at_once = [group.threads_max, per_worker].into_iter().flatten().min()?;
            Some((sum / at_once.max(1), format!("the test group {}", group.name)))
        })
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
