//! What was typed, the environment and the files → [`Settings`].
//!
//! Asks nobody but its arguments: it reads neither files nor the process's environment.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use distest_worker::shown;

use super::constraints::{self, ConstraintSettings};
use super::layer::{Layer, parse_choice};
use super::reader::{self, FileConfig, FileProfile};
use super::travel::{self, TravelLayer};
use super::{
    CompileSettings, ConfigFiles, Dialect, Doctests, ExecuteSettings, Fallback, FleetSettings,
    HistorySettings, IdentitySettings, Isolation, MaxFail, Network, OutputWhen, ReportSettings,
    RunIgnored, SelectSettings, Settings, ShowProgress, StatusLevel, TestThreads, WaitWorkers,
    WorkerAddress, cargo_args, identity,
};
use crate::cli::{
    BuildArgs, ConfigArgs, ExecuteArgs, FlakyResult, FleetArgs, HistoryArgs, LibtestArgs,
    ReportArgs, RunArgs, SelectArgs, TravelArgs,
};
use crate::failure::{ExitCode, Failure};

/// Looks up a variable of the environment.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What is known of this machine and the workspace.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Processors of this machine that we may use.
    pub cores: u32,
    /// The workspace's root folder.
    pub workspace_root: PathBuf,
    /// The folder that relative paths on the command line start from.
    pub cwd: PathBuf,
}

/// What comes out.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The settings.
    pub settings: Settings,
    /// What a user should know about them.
    pub warnings: Vec<Warning>,
    /// Workers are left out for want of a key, of which a warning tells.
    pub keyless: bool,
}

impl Resolved {
    /// Checks that tests which run on one side only have workers there, which nobody needs who runs none.
    ///
    /// # Errors
    /// [`ExitCode::Setup`] for an override whose tests can run nowhere.
    pub fn check_sides(&self) -> Result<(), Failure> {
        let Settings { constraints, fleet, .. } = &self.settings;
        // Whom `--on` names may be known without an address.
        let workers_given = self.keyless || !fleet.workers.is_empty() || fleet.on.is_some();
        constraints::check_sides(constraints, workers_given, fleet.local_slots)
    }
}

/// Something that a user should know and that ends nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What, and why.
    pub text: String,
    /// What to do.
    pub hint: Option<String>,
}

/// How cargo is to be called: all that is needed before `cargo metadata`.
pub fn compile_settings(args: &RunArgs, env: &Environment<'_>) -> CompileSettings {
    cargo_args::compile_settings(args, variable(env, "CARGO"))
}

/// Everything that `run` and `list` need to know:
/// flags > `DISTEST_*` > `.config/distest.toml` > `.config/nextest.toml` > user's file > defaults.
///
/// A profile inherits from its `inherits`, or from `default`; within each profile our own file
/// comes before nextest's.
///
/// # Errors
///
/// [`ExitCode::Usage`] for a flag or variable that makes no sense, [`ExitCode::Setup`] for a file
/// or profile that makes none.
pub fn resolve(
    args: &RunArgs,
    env: &Environment<'_>,
    files: &ConfigFiles,
    facts: &Facts,
) -> Result<Resolved, Failure> {
    let RunArgs { select, build, execute, fleet, travel, report, history, config } = args;
    let ConfigArgs { profile, config_file: _ } = config;

    let files = Files::read(files)?;
    let profile = profile
        .clone()
        .or_else(|| variable(env, "DISTEST_PROFILE"))
        .unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
    let (file_layer, mut warnings) = files.profile(&profile)?;
    let layer = flags_layer(args, facts).or(environment_layer(env, facts)?).or(file_layer);

    let constraints = constraint_settings(travel, &layer, &files)?;
    let mut settings = Settings {
        constraints,
        compile: compile_settings(args, env),
        select: select_settings(select, &layer, &files)?,
        doctests: doctests(args, &files),
        execute: execute_settings(execute, env, &select.libtest, &layer, &files, facts)?,
        fleet: fleet_settings(fleet, env, &layer, &files, facts)?,
        travel: travel::settings(travel, &layer),
        report: report_settings((report, build), &layer, &files, &profile, facts),
        history: history_settings(history, env, facts),
        profile,
    };
    constraints::check(&settings.constraints)?;
    if settings.execute.no_capture {
        leave_to_tests(&mut settings.report);
    }
    let without_key = identity::without_key(&mut settings.fleet);
    let keyless = without_key.is_some();
    warnings.extend(without_key);
    if settings.fleet.is_on_another() {
        settings.fleet.fallback = Fallback::Fail;
    }
    Ok(Resolved { settings, warnings, keyless })
}

/// As cargo: no target selected means doctests too. Where a configuration of cargo-nextest is in
/// force, what it knows runs, which doctests are not part of.
fn doctests(args: &RunArgs, files: &Files) -> Doctests {
    let build = &args.build;
    let some = |names: &[String]| !names.is_empty();
    let targets = build.lib
        || build.bins
        || build.examples
        || build.tests
        || build.benches
        || build.all_targets
        || [&build.bin, &build.example, &build.test, &build.bench].into_iter().any(|it| some(it));
    match build.doc {
        true => Doctests::Only,
        false if targets || args.execute.no_run || files.nextest.is_some() => Doctests::No,
        false => Doctests::After,
    }
}

/// Groups of both files, ours before nextest's; overrides come by profile.
fn constraint_settings(
    args: &TravelArgs,
    layer: &Layer,
    files: &Files,
) -> Result<ConstraintSettings, Failure> {
    let mut groups = files.nextest.as_ref().map(|file| file.groups.clone()).unwrap_or_default();
    groups.extend(files.distest.groups.clone());
    let profile = layer.forward.as_deref().unwrap_or_default();
    let forwards = constraints::forwards(profile, &args.forward)?;
    let network = match layer.network {
        Some(network) => network,
        // It is found nowhere else.
        None if !forwards.is_empty() => Network::Private,
        None => Network::Host,
    };
    Ok(ConstraintSettings { groups, overrides: layer.overrides.clone(), network, forwards })
}

const DEFAULT_PROFILE: &str = "default";
/// Relative to the workspace's root, as in cargo-nextest, wherever cargo's target folder is.
const STORE: &str = "target/nextest";

/// The files, read.
struct Files {
    distest: FileConfig,
    /// None: no configuration of cargo-nextest is in force.
    nextest: Option<FileConfig>,
    nextest_path: PathBuf,
    user: FileConfig,
}

impl Files {
    fn read(files: &ConfigFiles) -> Result<Self, Failure> {
        let ConfigFiles { distest, nextest, user } = files;
        let read = |file: &Option<_>, dialect| {
            file.as_ref().map(|file| reader::read(file, dialect)).transpose()
        };
        Ok(Self {
            distest: read(distest, Dialect::Distest)?.unwrap_or_default(),
            nextest: read(nextest, Dialect::Nextest)?,
            nextest_path: nextest.as_ref().map(|file| file.path.clone()).unwrap_or_default(),
            user: read(user, Dialect::User)?.unwrap_or_default(),
        })
    }

    /// What both files say of a profile and those that it inherits from.
    fn profile(&self, name: &str) -> Result<(Layer, Vec<Warning>), Failure> {
        let mut layer = Layer::default();
        let mut without_effect: Vec<String> =
            self.nextest.iter().flat_map(|nextest| nextest.without_effect.clone()).collect();
        let mut seen = BTreeSet::new();
        let mut next = Some(name.to_owned());
        while let Some(name) = next {
            if !seen.insert(name.clone()) {
                return Err(Failure::new(
                    ExitCode::Setup,
                    format!("profile `{name}` of the configuration inherits from itself"),
                ));
            }
            let ours = self.distest.profiles.get(&name);
            let theirs = self.nextest.as_ref().and_then(|nextest| nextest.profiles.get(&name));
            if ours.is_none() && theirs.is_none() && name != DEFAULT_PROFILE {
                return Err(self.unknown_profile(&name));
            }
            let of = |profile: Option<&FileProfile>| profile.map(|profile| profile.layer.clone());
            layer = layer.or(of(ours).unwrap_or_default()).or(of(theirs).unwrap_or_default());
            for profile in [ours, theirs].into_iter().flatten() {
                without_effect.extend_from_slice(&profile.without_effect);
            }
            let inherits = [ours, theirs].into_iter().flatten().find_map(|it| it.inherits.clone());
            let inherits = inherits.unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
            next = (name != DEFAULT_PROFILE).then_some(inherits);
        }
        Ok((layer, self.warnings(without_effect)))
    }

    fn unknown_profile(&self, name: &str) -> Failure {
        let files = [Some(&self.distest), self.nextest.as_ref()];
        let known: BTreeSet<&str> = files
            .into_iter()
            .flatten()
            .flat_map(|file| file.profiles.keys().map(String::as_str))
            .chain([DEFAULT_PROFILE])
            .collect();
        let known: Vec<&str> = known.into_iter().collect();
        Failure::new(ExitCode::Setup, format!("there is no profile `{name}`"))
            .hint(format!("known profiles: {}", known.join(", ")))
    }

    fn warnings(&self, without_effect: Vec<String>) -> Vec<Warning> {
        if without_effect.is_empty() {
            return Vec::new();
        }
        let file = match self.nextest {
            Some(_) => self.nextest_path.display().to_string(),
            None => "the configuration".to_owned(),
        };
        vec![Warning {
            text: format!("{file} has keys without effect here: {}", without_effect.join(", ")),
            hint: Some("tests that depend on them may behave differently".to_owned()),
        }]
    }
}

fn flags_layer(args: &RunArgs, facts: &Facts) -> Layer {
    let RunArgs { select, build: _, execute, fleet, travel, report, history: _, config: _ } = args;
    let max_fail = match (execute.fail_fast, execute.no_fail_fast) {
        (true, _) => Some(MaxFail::Count { failures: 1, immediate: false }),
        (_, true) => Some(MaxFail::All),
        _ => execute.max_fail,
    };
    Layer {
        overrides: Vec::new(),
        retries: execute.retries,
        flaky_fails: execute.flaky_result.map(|result| result == FlakyResult::Fail),
        hedge: None,
        max_fail,
        test_threads: execute.test_threads.or(select.libtest.test_threads),
        slow_timeout: execute.slow_timeout,
        test_timeout: execute.test_timeout.map(Some),
        grace: None,
        leak_timeout: None,
        global_timeout: execute.global_timeout,
        isolation: execute.isolation,
        writes: None,
        // Whoever asks for it by hand means all tests that no override says anything of.
        network: (!travel.forward.is_empty()).then_some(Network::Private),
        forward: None,
        local_slots: fleet.local_slots,
        default_filter: None,
        no_tests: select.no_tests,
        message_format: report.message_format,
        color: report.color,
        progress: report.show_progress,
        status_level: report.status_level,
        final_status_level: report.final_status_level,
        success_output: report.success_output,
        failure_output: report.failure_output,
        junit: report.junit.as_ref().map(|path| facts.cwd.join(path)),
        junit_name: None,
        junit_success_output: None,
        junit_failure_output: None,
        travel: TravelLayer::default(),
    }
}

fn environment_layer(env: &Environment<'_>, facts: &Facts) -> Result<Layer, Failure> {
    let color = match parsed(env, "DISTEST_COLOR", parse_choice)? {
        // What cargo doesn't understand here, cargo itself complains about.
        None => variable(env, "CARGO_TERM_COLOR").and_then(|text| parse_choice(&text).ok()),
        some => some,
    };
    let flaky = parsed(env, "DISTEST_FLAKY_RESULT", parse_choice::<FlakyResult>)?;
    Ok(Layer {
        retries: parsed(env, "DISTEST_RETRIES", |text| {
            text.parse().map_err(|_| "expected a number from 0".to_owned())
        })?,
        flaky_fails: flaky.map(|result| result == FlakyResult::Fail),
        max_fail: parsed(env, "DISTEST_MAX_FAIL", str::parse)?,
        test_threads: parsed(env, "DISTEST_TEST_THREADS", str::parse::<TestThreads>)?,
        isolation: parsed(env, "DISTEST_ISOLATION", parse_choice)?,
        writes: None,
        local_slots: parsed(env, "DISTEST_LOCAL_SLOTS", str::parse)?,
        no_tests: parsed(env, "DISTEST_NO_TESTS", parse_choice)?,
        message_format: parsed(env, "DISTEST_MESSAGE_FORMAT", parse_choice)?,
        color,
        progress: parsed(env, "DISTEST_SHOW_PROGRESS", parse_choice)?,
        status_level: parsed(env, "DISTEST_STATUS_LEVEL", parse_choice)?,
        final_status_level: parsed(env, "DISTEST_FINAL_STATUS_LEVEL", parse_choice)?,
        success_output: parsed(env, "DISTEST_SUCCESS_OUTPUT", parse_choice)?,
        failure_output: parsed(env, "DISTEST_FAILURE_OUTPUT", parse_choice)?,
        junit: variable(env, "DISTEST_JUNIT").map(|path| facts.cwd.join(path)),
        ..Layer::default()
    })
}

fn select_settings(
    args: &SelectArgs,
    layer: &Layer,
    files: &Files,
) -> Result<SelectSettings, Failure> {
    let SelectArgs {
        filters,
        libtest_args: _,
        libtest,
        filterset,
        ignore_default_filter,
        run_ignored,
        no_tests: _,
        partition,
        shard,
    } = args;
    let LibtestArgs {
        filters: more_filters,
        skip,
        exact,
        ignored,
        include_ignored,
        nocapture: _,
        test_threads: _,
    } = libtest;
    let libtest_ignored = match (ignored, include_ignored) {
        (true, _) => Some(RunIgnored::Only),
        (_, true) => Some(RunIgnored::All),
        _ => None,
    };
    if let (Some(flag), Some(libtest)) = (run_ignored, libtest_ignored)
        && *flag != libtest
    {
        return Err(Failure::new(
            ExitCode::Usage,
            "`--run-ignored` contradicts what is given behind `--`",
        )
        .hint("leave one of them out"));
    }
    Ok(SelectSettings {
        filters: [filters.as_slice(), more_filters].concat(),
        filtersets: filterset.clone(),
        default_filter: layer.default_filter.clone(),
        ignore_default_filter: *ignore_default_filter,
        skip: skip.clone(),
        exact: *exact,
        run_ignored: run_ignored.or(libtest_ignored).unwrap_or_default(),
        no_tests: layer.no_tests.unwrap_or_default(),
        partition: partition.or(*shard),
        whole: files.distest.whole.clone(),
    })
}

fn execute_settings(
    args: &ExecuteArgs,
    env: &Environment<'_>,
    libtest: &LibtestArgs,
    layer: &Layer,
    files: &Files,
    facts: &Facts,
) -> Result<ExecuteSettings, Failure> {
    let ExecuteArgs {
        no_run: _,
        test_threads: _,
        isolation: _,
        seed,
        retries: _,
        flaky_result: _,
        fail_fast: _,
        no_fail_fast: _,
        max_fail: _,
        slow_timeout: _,
        test_timeout: _,
        global_timeout: _,
        no_capture,
    } = args;
    let no_capture = *no_capture || libtest.nocapture;
    // Tests that were written for a process each, as cargo-nextest gives them, keep it.
    let isolation = match files.nextest {
        Some(_) => Isolation::Process,
        None => Isolation::Auto,
    };
    Ok(ExecuteSettings {
        isolation: layer.isolation.unwrap_or(isolation),
        writes: layer.writes.unwrap_or_default(),
        seed: match seed {
            Some(seed) => Some(*seed),
            None => parsed(env, "DISTEST_SEED", |text| {
                text.parse().map_err(|_| "expected a number from 0".to_owned())
            })?,
        },
        retries: layer.retries.unwrap_or(0),
        flaky_fails: layer.flaky_fails.unwrap_or(false),
        hedge: layer.hedge.unwrap_or_default(),
        max_fail: layer.max_fail.unwrap_or(MaxFail::Count { failures: 1, immediate: false }),
        test_threads: match no_capture {
            true => Some(1),
            false => layer.test_threads.and_then(|threads| threads.limit(facts.cores)),
        },
        slow_timeout: layer.slow_timeout.unwrap_or(Duration::from_secs(60)),
        test_timeout: layer.test_timeout.flatten(),
        grace: layer.grace.unwrap_or(Duration::from_secs(10)),
        leak_timeout: layer.leak_timeout.unwrap_or(Duration::from_millis(200)),
        global_timeout: layer.global_timeout,
        no_capture,
    })
}

fn fleet_settings(
    args: &FleetArgs,
    env: &Environment<'_>,
    layer: &Layer,
    files: &Files,
    facts: &Facts,
) -> Result<FleetSettings, Failure> {
    let FleetArgs { worker, wait_workers, max_workers, on, local_slots: _ } = args;
    let from_files =
        || files.distest.workers.clone().or_else(|| files.user.workers.clone()).unwrap_or_default();
    let workers = match parsed(env, "DISTEST_WORKERS", parse_addresses)? {
        _ if !worker.is_empty() => worker.clone(),
        Some(workers) => workers,
        None => from_files(),
    };
    let mut seen = BTreeSet::new();
    let workers = workers.into_iter().filter(|address| seen.insert(address.to_string())).collect();
    let WaitWorkers { count, within } =
        wait_workers.unwrap_or(WaitWorkers { count: 1, within: None });
    Ok(FleetSettings {
        workers,
        ssh_program: variable(env, "DISTEST_SSH").unwrap_or_else(|| "ssh".to_owned()),
        identity: IdentitySettings::of_environment(env, &facts.cwd)?,
        wait_workers: count,
        wait_given: wait_workers.is_some(),
        wait_for: within.unwrap_or(Duration::from_secs(30)),
        max_workers: *max_workers,
        on: on.clone(),
        local_slots: layer.local_slots.unwrap_or_default(),
        fallback: files.distest.fallback.or(files.user.fallback).unwrap_or_default(),
    })
}

fn parse_addresses(text: &str) -> Result<Vec<WorkerAddress>, String> {
    text.split([',', ' ', '\n'])
        .filter(|address| !address.is_empty())
        .map(|address| address.parse().map_err(|error| format!("`{address}`: {error}")))
        .collect()
}

fn report_settings(
    (args, build): (&ReportArgs, &BuildArgs),
    layer: &Layer,
    files: &Files,
    profile: &str,
    facts: &Facts,
) -> ReportSettings {
    let ReportArgs {
        junit: _,
        message_format: _,
        show_progress: _,
        status_level: _,
        final_status_level: _,
        success_output: _,
        failure_output: _,
        color: _,
    } = args;
    let store = files.distest.store.as_ref();
    let store = store.or(files.nextest.as_ref().and_then(|nextest| nextest.store.as_ref()));
    let store = facts.workspace_root.join(store.map_or(STORE.as_ref(), PathBuf::as_path));
    ReportSettings {
        format: layer.message_format.unwrap_or_default(),
        color: layer.color.unwrap_or_default(),
        progress: layer.progress.unwrap_or_default(),
        verbose: build.cargo_verbose > 0,
        status_level: layer.status_level.unwrap_or(StatusLevel::Pass),
        final_status_level: layer.final_status_level.unwrap_or(StatusLevel::Flaky),
        success_output: layer.success_output.unwrap_or(OutputWhen::Never),
        failure_output: layer.failure_output.unwrap_or(OutputWhen::ImmediateFinal),
        // Joining an absolute path, as a flag gives it, yields that path.
        junit: layer.junit.as_ref().map(|path| store.join(profile).join(path)),
        junit_name: layer.junit_name.clone().unwrap_or_else(|| "nextest-run".to_owned()),
        junit_success_output: layer.junit_success_output.unwrap_or(false),
        junit_failure_output: layer.junit_failure_output.unwrap_or(true),
    }
}

/// What tests write is shown as they write it: not again at their end, and no bar is drawn over a
/// line that they have not finished.
fn leave_to_tests(report: &mut ReportSettings) {
    report.success_output = OutputWhen::Never;
    report.failure_output = OutputWhen::Never;
    report.progress = match report.progress {
        ShowProgress::None => ShowProgress::None,
        ShowProgress::Auto | ShowProgress::Bar | ShowProgress::Counter => ShowProgress::Counter,
    };
}

fn history_settings(args: &HistoryArgs, env: &Environment<'_>, facts: &Facts) -> HistorySettings {
    let HistoryArgs { history, no_history } = args;
    let path = history.clone().or_else(|| variable(env, "DISTEST_HISTORY").map(PathBuf::from));
    HistorySettings { path: path.map(|path| facts.cwd.join(path)), enabled: !no_history }
}

/// A variable that is set and not empty.
fn variable(env: &Environment<'_>, name: &str) -> Option<String> {
    env(name).filter(|text| !text.is_empty())
}

fn parsed<T>(
    env: &Environment<'_>,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    let Some(text) = variable(env, name) else { return Ok(None) };
    parse(&text).map(Some).map_err(|error| {
        Failure::new(
            ExitCode::Usage,
            format!("invalid value `{}` of {name}: {error}", shown::word(&text)),
        )
        .hint(format!("correct or unset the variable {name}"))
    })
}

#[cfg(test)]
mod tests;
