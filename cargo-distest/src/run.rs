//! The pipeline. The only module that knows the whole line; everything else knows its neighbours.

mod company;
mod doctests;
mod finish;
mod forecast;
mod intake;
mod list;
mod record;
mod signals;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use distest_worker::protocol::{self, Limits, Stop, Streams};
use tokio::sync::{mpsc, watch};

use crate::cli::RunArgs;
use crate::collect::{Collected, Collector};
use crate::compile::{self, Building, Workspace};
use crate::constraint::Constraints;
use crate::cost::Timings;
use crate::dispatch::{Dispatch, DispatchSettings, Dispatched, Order};
use crate::event::{CancelReason, PlanComplete, RunEvent, RunStarted};
use crate::failure::{ExitCode, Failure};
use crate::filter::Filter;
use crate::fleet::{self, Fleet, Notice, Notices, SessionFacts, Trouble};
use crate::history::{History, Remembered};
use crate::pace::Paces;
use crate::report::Reports;
use crate::results::{Summary, SummarySettings};
use crate::scheduler::Rules;
use crate::settings::{
    self, ConfigFiles, Doctests, Facts, Fallback, FleetSettings, Hedge, LocalSlots, MaxFail,
    Settings, Warning, Writes,
};
use crate::testenv::RunFacts;
use crate::travel::{self, Travel};
use crate::tree::Tree;
use crate::tree::copies::Copies;
use crate::tree::statcache::StatCache;
use crate::ui::Ui;
use company::Choice;
pub use forecast::plan;
use intake::Intake;
pub use list::list;
use signals::Interrupts;

/// Events that wait for the reporters.
const EVENTS_MAX: usize = 1024;
/// Orders that wait for the dispatcher.
const ORDERS_MAX: usize = 64;
/// Linked binaries that wait to be listed.
const BINARIES_MAX: usize = 64;

/// A run that may begin: everything that can be refused before the build has been checked.
struct Prepared {
    settings: Settings,
    workspace: Arc<Workspace>,
    filter: Arc<Filter>,
    constraints: Arc<Constraints>,
    history: Option<History>,
    timings: Arc<Timings>,
    paces: Paces,
    choice: Option<Choice>,
    travel: Travel,
    collector: Arc<Collector>,
    warnings: Vec<Warning>,
    /// The build, if nothing keeps it from beginning.
    building: Option<Building>,
}

/// What the tests are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// They run, on the workers that are given.
    Run,
    /// None of them runs: workers may be given another time.
    Look,
}

/// What a line is not concerned with, or begins with.
struct Aside {
    history: Option<History>,
    building: Option<Building>,
}

/// `cargo distest run`.
///
/// # Errors
/// What ended the run before anything could be reported of it.
pub async fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let origin = Instant::now();
    let mut interrupts = Interrupts::listen()?;
    let mut prepared = tokio::select! {
        prepared = prepare(args, Purpose::Run) => prepared?,
        () = interrupts.next() => return Ok(ExitCode::Interrupted),
    };
    if prepared.settings.compile.no_run {
        return build_only(prepared).await;
    }
    let ui = Ui::new(prepared.settings.report.color, prepared.settings.report.progress);
    let reports = Reports::new(&prepared.settings.report, Rc::new(ui.clone()));
    let summary = Summary::new(SummarySettings::of(&prepared.settings));
    let (events, events_in) = mpsc::channel(EVENTS_MAX);
    let warnings = std::mem::take(&mut prepared.warnings);
    let (line, Aside { history, building }) = Line::new(origin, prepared, events);
    let reporting = finish::report(reports, summary, events_in);
    let running = line.run(building, warnings, interrupts);
    let (ended, reported) = futures::future::join(running, reporting).await;
    finish::end(ended, reported, history, &ui)
}

/// `--no-run`: cargo says all there is to say.
async fn build_only(prepared: Prepared) -> Result<ExitCode, Failure> {
    let Prepared { settings, workspace, building, .. } = prepared;
    let (binaries, mut sink) = mpsc::channel(1);
    let building = begun(building, &settings)?.follow(&settings.compile, &workspace, binaries);
    let drain = async { while sink.recv().await.is_some() {} };
    let (built, ()) = futures::future::join(building, drain).await;
    built.map(|_| ExitCode::Passed)
}

/// The build that is under way, or a new one.
fn begun(building: Option<Building>, settings: &Settings) -> Result<Building, Failure> {
    building.map_or_else(|| Building::start(&settings.compile), Ok)
}

/// Checks all that can be checked before the build, and reads what is to be read while it runs.
async fn prepare(args: &RunArgs, purpose: Purpose) -> Result<Prepared, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    let compile = settings::compile_settings(args, &env);
    let workspace = Arc::new(compile::metadata(&compile).await?);
    let user = settings::user_config_path();
    let config_file = args.config.config_file.as_deref();
    let files = ConfigFiles::read(&workspace.root, config_file, user.as_deref())?;
    let cwd = std::env::current_dir().map_err(|error| {
        Failure::new(ExitCode::Setup, "could not find the current directory").because(error)
    })?;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let facts = Facts { cores, workspace_root: workspace.root.clone(), cwd };
    let resolved = settings::resolve(args, &env, &files, &facts)?;
    if purpose == Purpose::Run {
        resolved.check_sides()?;
    }
    resolved.settings.fleet.identity.check()?;
    let (mut settings, mut warnings) = (resolved.settings, resolved.warnings);
    if let Some(Trouble { reason, hint }) = fleet::add_known(&mut settings.fleet) {
        let FleetSettings { workers, on, .. } = &settings.fleet;
        if workers.is_empty() {
            let what = format!("could not run tests on {}", on.as_deref().unwrap_or_default());
            let failure = Failure::new(ExitCode::NoWorker, what).because(reason);
            return Err(Failure { hint, ..failure });
        }
        warnings.push(Warning { text: reason, hint });
    }
    if let Some(junit) = &settings.report.junit {
        settings::check_writable(junit)?;
    }
    settings::check_services(&settings.constraints.forwards)?;
    let filter = Arc::new(Filter::new(&settings.select, &workspace.raw)?);
    let constraints = Arc::new(Constraints::new(&settings.constraints, &workspace.raw)?);
    let travel = Travel::new(&settings.travel, &workspace)?;
    let collector = travel.collector(&workspace)?;
    // cargo needs nothing of what follows. While it runs the terminal is its own, so what is to be
    // told is told before, and rustdoc builds what it needs itself.
    let at_once = warnings.is_empty() && settings.doctests != Doctests::Only;
    let building = at_once.then(|| Building::start(&settings.compile)).transpose()?;
    let mut history = record::open(&settings, &workspace, &mut warnings);
    let Remembered { timings, standings } =
        record::tests(history.as_mut(), &settings, &workspace, &mut warnings);
    let timings = Arc::new(timings);
    let paces = record::paces(history.as_mut(), &mut warnings);
    let choice = Choice::new(&settings, standings);
    Ok(Prepared {
        settings,
        workspace,
        filter,
        constraints,
        history,
        timings,
        paces,
        choice,
        travel,
        collector,
        warnings,
        building,
    })
}

/// The line itself.
struct Line {
    origin: Instant,
    settings: Settings,
    workspace: Arc<Workspace>,
    filter: Arc<Filter>,
    constraints: Arc<Constraints>,
    timings: Arc<Timings>,
    paces: Paces,
    choice: Option<Choice>,
    facts: RunFacts,
    travel: Travel,
    copies: Arc<Copies>,
    collector: Arc<Collector>,
    /// Takes what the user should know of what tests meet.
    notices: Arc<Notices>,
    events: mpsc::Sender<RunEvent>,
    /// cargo has linked everything.
    built: watch::Sender<bool>,
}

/// How the line ended, apart from the tests' verdicts.
struct Ended {
    settings: Settings,
    origin: Instant,
    fed: Fed,
    dispatched: Dispatched,
}

/// How building and planning ended.
#[derive(Default)]
struct Fed {
    built_at: Option<Duration>,
    planned: Option<PlanComplete>,
    failure: Option<Failure>,
    /// What travelled, if anything did.
    tree: Option<Arc<Tree>>,
}

impl Line {
    fn new(origin: Instant, prepared: Prepared, events: mpsc::Sender<RunEvent>) -> (Self, Aside) {
        let Prepared {
            settings,
            workspace,
            filter,
            constraints,
            history,
            timings,
            paces,
            choice,
            travel,
            collector,
            building,
            ..
        } = prepared;
        let facts = facts(&settings, &workspace);
        let stats = Arc::new(StatCache::open(&state_folder(&workspace).join("digests")));
        let copies = Arc::new(Copies::new(&workspace.target_dir, stats));
        let (notices, heard) = Notices::new();
        tokio::spawn(pass_on(heard, events.downgrade()));
        let line = Self {
            origin,
            settings,
            workspace,
            filter,
            constraints,
            timings,
            paces,
            choice,
            facts,
            travel,
            copies,
            collector,
            notices,
            events,
            built: watch::Sender::new(false),
        };
        (line, Aside { history, building })
    }

    async fn run(
        self,
        building: Option<Building>,
        warnings: Vec<Warning>,
        interrupts: Interrupts,
    ) -> Ended {
        self.announce(warnings).await;
        let (orders, orders_in) = mpsc::channel(ORDERS_MAX);
        let (timeout, built) = (self.settings.execute.global_timeout, self.built.subscribe());
        let watch = signals::watch(interrupts, timeout, built, orders.clone());
        let (fleet, messages) = Fleet::new(self.session_facts(), self.settings.fleet.clone());
        let connecting = tokio::spawn({
            let fleet = fleet.clone();
            async move { fleet.connect().await }
        });
        let dispatching =
            Dispatch::run(self.dispatch(), fleet, self.events.clone(), orders_in, messages);
        let feeding = self.feed(building, &orders, watch.interrupted());
        let (mut fed, mut dispatched) = futures::future::join(feeding, dispatching).await;
        connecting.abort();
        self.doctests(&mut fed, &mut dispatched, watch.interrupted()).await;
        drop(watch);
        self.save_digests().await;
        if let Some(tree) = fed.tree.clone() {
            self.look_back(tree).await;
        }
        let Self { origin, settings, .. } = self;
        Ended { settings, origin, fed, dispatched }
    }

    async fn announce(&self, warnings: Vec<Warning>) {
        let started = RunStarted {
            run: self.facts.run.clone(),
            version: env!("CARGO_PKG_VERSION"),
            at: SystemTime::now(),
            workspace: self.workspace.root.clone(),
            profile: self.settings.profile.clone(),
        };
        self.tell(RunEvent::Started(Box::new(started))).await;
        for Warning { text, hint } in warnings {
            self.tell(RunEvent::Warning { text, hint }).await;
        }
    }

    /// Runs the doctests, unless the run has come to an early end.
    async fn doctests(
        &self,
        fed: &mut Fed,
        dispatched: &mut Dispatched,
        interrupted: watch::Receiver<bool>,
    ) {
        let over = dispatched.cancelled.is_some() || fed.failure.is_some();
        let Some(plan) = fed.planned.as_mut().filter(|_| !over) else { return };
        if self.settings.doctests == Doctests::No {
            return;
        }
        match doctests::run(self, plan, interrupted).await {
            Ok(false) => {}
            Ok(true) => {
                let timeout = self.settings.execute.global_timeout;
                let timed_out = timeout.is_some_and(|timeout| self.origin.elapsed() >= timeout);
                dispatched.cancelled = Some(match timed_out {
                    true => CancelReason::GlobalTimeout,
                    false => CancelReason::Interrupt,
                });
            }
            Err(failure) => fed.failure = Some(failure),
        }
    }

    /// Builds and plans until everything is planned, something fails, or the user interrupts.
    async fn feed(
        &self,
        building: Option<Building>,
        orders: &mpsc::Sender<Order>,
        mut interrupted: watch::Receiver<bool>,
    ) -> Fed {
        let mut fed = Fed::default();
        let failure = tokio::select! {
            result = self.build_and_plan(building, orders, &mut fed) => result.err(),
            // The watcher has told the dispatcher already.
            _ = interrupted.wait_for(|interrupted| *interrupted) => None,
            // The dispatcher has ended the run: no worker, too many failures.
            () = orders.closed() => None,
        };
        if failure.is_some() {
            let _ = orders.send(Order::Cancel(CancelReason::Failure, Stop::Kill)).await;
        }
        Fed { failure, ..fed }
    }

    async fn build_and_plan(
        &self,
        building: Option<Building>,
        orders: &mpsc::Sender<Order>,
        fed: &mut Fed,
    ) -> Result<(), Failure> {
        let (binaries, binaries_in) = mpsc::channel(BINARIES_MAX);
        let intake = Intake::open(self).await?;
        let build = async {
            if self.settings.doctests == Doctests::Only {
                // cargo knows no building without running here; rustdoc runs later.
                drop(binaries);
                self.send_tree(orders).await?;
                return Ok(());
            }
            let building = begun(building, &self.settings)?;
            let built = building.follow(&self.settings.compile, &self.workspace, binaries).await?;
            fed.built_at = Some(self.origin.elapsed());
            self.built.send_replace(true);
            self.tell(RunEvent::Built { elapsed: built.elapsed }).await;
            fed.tree = self.send_tree(orders).await?;
            Ok(())
        };
        let ((), planned) = tokio::try_join!(build, intake.plan(binaries_in, orders))?;
        // Nobody takes orders once the run is cancelled.
        let _ = orders.send(Order::AllPlanned(planned.clone())).await;
        fed.planned = Some(planned);
        Ok(())
    }

    /// Takes stock of the workspace's files, if a worker may need them.
    async fn send_tree(&self, orders: &mpsc::Sender<Order>) -> Result<Option<Arc<Tree>>, Failure> {
        let travels = !self.settings.fleet.workers.is_empty();
        let mut tree = Tree::default();
        if travels {
            tree = self.travel.collect(&self.copies).await?;
            for notice in std::mem::take(&mut tree.notices) {
                self.tell(RunEvent::Warning { text: notice, hint: None }).await;
            }
        }
        let tree = Arc::new(tree);
        self.collector.know(Arc::clone(&tree));
        let _ = orders.send(Order::Tree(Arc::clone(&tree))).await;
        Ok(travels.then_some(tree))
    }

    /// Says what came back, and if the workspace is no longer what travelled.
    async fn look_back(&self, tree: Arc<Tree>) {
        let (copies, root) = (Arc::clone(&self.copies), self.workspace.root.clone());
        let Collected { files, notices } = self.collector.finish();
        for text in notices {
            self.tell(RunEvent::Warning { text, hint: None }).await;
        }
        if !files.is_empty() {
            self.tell(RunEvent::Collected { files: files.clone() }).await;
        }
        let differs = travel::look_back(self.travel.clone(), tree, copies, files, root).await;
        if let Some(Warning { text, hint }) = differs {
            self.tell(RunEvent::Warning { text, hint }).await;
        }
    }

    /// Remembers which files have which digest. If that fails they are hashed again.
    async fn save_digests(&self) {
        let stats = Arc::clone(self.copies.stats());
        let _ = blocking(move || stats.save()).await;
    }

    fn dispatch(&self) -> DispatchSettings {
        let Settings { execute, fleet, compile, .. } = &self.settings;
        let (failures_max, failures_end_running) = match execute.max_fail {
            MaxFail::All => (None, false),
            MaxFail::Count { failures, immediate } => (Some(failures), immediate),
        };
        DispatchSettings {
            rules: Rules {
                retries: execute.retries,
                failures_max,
                failures_end_running,
                flaky_fails: execute.flaky_fails,
                threads: if execute.no_capture { Some(1) } else { execute.test_threads },
                hedge: execute.hedge == Hedge::Tail && !execute.no_capture,
            },
            groups: self.constraints.groups().to_vec(),
            facts: self.facts.clone(),
            limits: Limits {
                slow_after: execute.slow_timeout,
                timeout: execute.test_timeout,
                grace: execute.grace,
                leak_timeout: execute.leak_timeout,
            },
            streams: if execute.no_capture { Streams::Live } else { Streams::Capture },
            build_args: compile.build_args.clone(),
            fallback: match fleet.local_slots {
                // The user wants no embedded worker, in no case.
                LocalSlots::Count(0) => Fallback::Fail,
                _ => fleet.fallback,
            },
            workers_given: !fleet.workers.is_empty(),
            wait_workers: fleet.wait_workers,
            wait_for: fleet.wait_for,
            wait_given: fleet.wait_given,
            may_stay_local: !fleet.wait_given && fleet.fallback != Fallback::Fail,
            output_folder: state_folder(&self.workspace).join("output").join(&self.facts.run),
            origin: self.origin,
            here: self.travel.here(&self.workspace),
            paces: self.paces.clone(),
        }
    }

    fn session_facts(&self) -> SessionFacts {
        SessionFacts {
            run: self.facts.clone(),
            roots: self.travel.session_roots(&self.workspace),
            environment: std::env::vars_os().collect(),
            pass: self.travel.pass().clone(),
            bare: false,
            writes: match self.settings.execute.writes {
                Writes::Binary => protocol::Writes::Binary,
                Writes::Lease => protocol::Writes::Lease,
                Writes::Test => protocol::Writes::Test,
            },
            project: self.project(),
            lend_times: self.timings.is_empty(),
            private_networks: self.settings.constraints.may_be_private(),
            forwards: self.settings.constraints.forwards.clone(),
            notices: Arc::clone(&self.notices),
            collect: self.travel.collect_patterns(),
            collect_at_once: false,
            collector: Arc::clone(&self.collector),
        }
    }

    /// What this workspace's tests are called by workers that keep their times: wherever it lies,
    /// built for the same by the same profile.
    fn project(&self) -> String {
        let members = self.workspace.metadata.workspace_packages();
        let mut words: Vec<_> = members.iter().map(|package| package.name.as_str()).collect();
        words.sort_unstable();
        words.push(&self.workspace.host.0);
        words.push(&self.settings.compile.cargo_profile);
        words.join("\n")
    }

    async fn tell(&self, event: RunEvent) {
        // If the reporters are gone, the run still ends in order.
        let _ = self.events.send(event).await;
    }
}

/// Tells what is heard for as long as anybody else tells anything.
async fn pass_on(mut heard: mpsc::UnboundedReceiver<Notice>, events: mpsc::WeakSender<RunEvent>) {
    while let (Some(Notice { text, hint }), Some(events)) = (heard.recv().await, events.upgrade()) {
        let hint = Some(hint).filter(|hint| !hint.is_empty());
        let _ = events.send(RunEvent::Warning { text, hint }).await;
    }
}

/// Where a workspace's own state lies: blobs, listings, long outputs.
fn state_folder(workspace: &Workspace) -> PathBuf {
    workspace.target_dir.join("distest")
}

fn facts(settings: &Settings, workspace: &Workspace) -> RunFacts {
    RunFacts {
        run: fleet::run_name(),
        profile: settings.profile.clone(),
        workspace_root: workspace.root.clone().into_os_string(),
        threads: settings.execute.test_threads.unwrap_or_else(cores),
        attempts_max: settings.execute.retries.saturating_add(1),
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// Runs what blocks or computes without holding up everything else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
