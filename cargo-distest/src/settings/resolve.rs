//! What was typed, the environment and the files → [`Settings`].
//!
//! Asks nobody but its arguments: it reads neither files nor the process's environment.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::layer::{Layer, parse_choice};
use super::reader::{self, FileConfig, FileProfile};
use super::travel::{self, TravelLayer};
use super::{
    CompileSettings, ConfigFiles, Dialect, ExecuteSettings, Fallback, FleetSettings,
    HistorySettings, IdentitySettings, Isolation, KeySource, LocalSlots, MaxFail, OutputWhen,
    ReportSettings, RunIgnored, SelectSettings, Settings, StatusLevel, TestThreads, WaitWorkers,
    WorkerAddress, cargo_args,
};
use crate::cli::{
    ConfigArgs, ExecuteArgs, FlakyResult, FleetArgs, HistoryArgs, LibtestArgs, ReportArgs, RunArgs,
    SelectArgs,
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
    let RunArgs { select, build: _, execute, fleet, travel, report, history, config } = args;
    let ConfigArgs { profile, config_file: _ } = config;

    let files = Files::read(files)?;
    let profile = profile
        .clone()
        .or_else(|| variable(env, "DISTEST_PROFILE"))
        .unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
    let (file_layer, mut warnings) = files.profile(&profile)?;
    let layer = flags_layer(args, facts).or(environment_layer(env, facts)?).or(file_layer);

    let mut settings = Settings {
        compile: compile_settings(args, env),
        select: select_settings(select, &layer, &files)?,
        execute: execute_settings(execute, &select.libtest, &layer, &files, facts),
        fleet: fleet_settings(fleet, env, &layer, &files, facts)?,
        travel: travel::settings(travel, &layer),
