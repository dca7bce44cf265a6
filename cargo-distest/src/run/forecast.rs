//! `cargo distest plan`: what a run would take on so many workers, from history. Nothing runs.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distest_worker::protocol::BinaryKey;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Aside, EVENTS_MAX, Fed, Line, ORDERS_MAX, cores, prepare};
use crate::cli::{ListFormat, PlanArgs};
use crate::dispatch::{Order, Planned};
use crate::event::RunEvent;
use crate::failure::{ExitCode, Failure};
use crate::forecast::{Forecast, Machine, Question, play};
use crate::model::TestIndex;
use crate::pace::Paces;
use crate::plan::{Rank, Urgency};
use crate::scheduler::{Batch, Group, GroupIndex, Rotated, Rules, Task};
use crate::settings::{NoTests, ShowProgress};
use crate::ui::{Ui, report_warning};

/// What a process takes besides its tests: its start and two ways.
const OVERHEAD: Duration = Duration::from_millis(3);
/// A worker more that gains less than this share of the time is beyond the knee.
const KNEE: f64 = 0.05;

/// Sending is what limits a run that would take less than this share of its time without.
const SENDING_SHARE: f64 = 0.9;

/// What the predictions are made from.
struct Basis {
    tests: Vec<(Task, Duration)>,
    /// How many of them have never run: their times are guessed.
    unknown: usize,
    groups: Vec<Group>,
    /// Who shares a process, and who runs alone instead.
    batches: Vec<Batch>,
    rotated: Vec<Rotated>,
    /// Bytes of executables, each of which is to be sent once.
    sizes: BTreeMap<BinaryKey, u64>,
    /// Bytes that get to a worker each second, as far as any way was measured.
    rate: Option<f64>,
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
    let rate = usual_rate(&prepared.paces);
    let (events, mut events_in) = mpsc::channel(EVENTS_MAX);
    let (orders, mut orders_in) = mpsc::channel(ORDERS_MAX);
    let (line, Aside { building, .. }) = Line::new(Instant::now(), prepared, events);
    let groups = line.constraints.groups().to_vec();
    let planning = async move {
        let mut fed = Fed::default();
        line.build_and_plan(building, &orders, &mut fed)
            .await
            .map(|()| fed.planned.unwrap_or_default())
    };
    let collecting = async {
        let (mut tests, mut together) = (Vec::new(), (Vec::new(), Vec::new()));
        while let Some(order) = orders_in.recv().await {
            match order {
                Order::Tests(planned) => tests.extend(planned),
                Order::Batches { batches, rotated } => together = (batches, rotated),
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
    let (batches, rotated) = together;
    let (sizes, tests) = (sizes(&tests), work(&tests));
    let basis = Basis { tests, unknown, groups, batches, rotated, sizes, rate, threads, slots };
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
        let batched: usize = basis.batches.iter().map(|batch| batch.tests.len()).sum();
        let batched = match batched {
            0 => String::new(),
            batched => format!(", {batched} of them in {} processes", basis.batches.len()),
        };
        let sending = basis.sending(args.workers.to);
        ui.stdout_line(&format!(
            "{count} tests, {total}, longest {longest}{guessed}{batched}{sending}"
        ));
    }
    let slots = basis.slots;
    let (mut before, mut knee): (Option<f64>, Option<u32>) = (None, None);
    for workers in args.workers.from..=args.workers.to {
        let Forecast { makespan, .. } = basis.on(workers, basis.rate);
        let limit = basis.limit(workers, makespan);
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

impl Basis {
    /// What is counted for sending executables, in words.
    fn sending(&self, workers: u32) -> String {
        let bytes: u64 = self.sizes.values().sum();
        match self.rate {
            _ if workers < 2 => String::new(),
            Some(rate) => {
                let (size, rate) = (bytes as f64 / 1e6, rate / 1e6);
                format!(", {size:.0} MB of executables to send at {rate:.1} MB/s, as measured")
            }
            None => ", sending executables not counted (no way to a worker is remembered)".into(),
        }
    }

    /// On so many workers, of which one is here, with `rate` on the way to the others.
    fn on(&self, workers: u32, rate: Option<f64>) -> Forecast {
        let here = Machine {
            slots: self.slots,
            speed: 1.0,
            speed_known: true,
            round_trip: Duration::from_millis(1),
            prepare: Duration::ZERO,
            rate: None,
            dies_at: None,
        };
        let elsewhere = Machine { rate, ..here };
        let others = workers.saturating_sub(1) as usize;
        let machines = std::iter::once(here).chain(std::iter::repeat_n(elsewhere, others));
        let question = Question {
            rules: Rules { threads: self.threads, ..Rules::default() },
            groups: self.groups.clone(),
            batches: self.batches.clone(),
            rotated: self.rotated.clone(),
            tests: self.tests.clone(),
            machines: machines.collect(),
            overhead: OVERHEAD,
            sizes: self.sizes.clone(),
        };
        play(&question, |scheduler, input, effects| scheduler.step(input, effects))
    }

    /// What keeps a run on so many workers from being quicker: sending, if it would be much quicker
    /// without; else the largest of its lower bounds.
    fn limit(&self, workers: u32, makespan: Duration) -> String {
        let sent = self.rate.map(|_| self.on(workers, None).makespan);
        if sent.is_some_and(|without| without < makespan.mul_f64(SENDING_SHARE)) {
            return "sending executables".to_owned();
        }
        let all = workers.saturating_mul(self.slots).max(1);
        let (at_once, busy) = match self.threads.filter(|threads| *threads < all) {
            Some(threads) => (threads.max(1), "the number of test threads"),
            None => (all, "all slots are busy"),
        };
        let lasts = |takes: &Duration| *takes + OVERHEAD;
        let work =
            self.tests.iter().map(|(task, takes)| lasts(takes) * self.slots_of(task).min(at_once));
        // Who shares a process shares its start.
        let shared: usize = self.batches.iter().map(|batch| batch.tests.len() - 1).sum();
        let saved = OVERHEAD * u32::try_from(shared).unwrap_or(u32::MAX);
        let work = work.sum::<Duration>().saturating_sub(saved);
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
