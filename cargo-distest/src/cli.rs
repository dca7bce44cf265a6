//! What can be typed: clap's structs and nothing else. [`crate::settings`] makes sense of them.
//!
//! Spellings follow cargo-nextest wherever it has the thing. Flags that cargo knows are handed on
//! to it as they are.

mod build;
mod execute;
mod fleet;
mod report;
mod select;
mod travel;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use distest_worker::cli::WorkerCommand;
use distest_worker::server::SLOTS_MAX;

pub use build::BuildArgs;
pub use execute::{ExecuteArgs, FlakyResult, FleetArgs};
pub use fleet::{
    AdministeredArgs, CpArgs, DoctorArgs, ExecArgs, KeyCommand, ListWorkersArgs, WorkersArgs,
    WorkersCommand, WorkersFormat,
};
pub use report::{HistoryArgs, ReportArgs};
pub use select::{LibtestArgs, SelectArgs};
pub use travel::TravelArgs;

/// `cargo test` for every machine you own.
///
/// Builds a workspace's test binaries, ships what the workers lack, runs the test cases there, and
/// merges their results. With no worker given they run on this machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo-distest", bin_name = "cargo distest", version, after_help = EXIT_CODES)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Build, ship, run and report.
    #[command(visible_alias = "r", after_help = EXIT_CODES)]
    Run(Box<RunArgs>),
    /// Build and list the test cases, without running them.
    #[command(after_help = EXIT_CODES)]
    List(Box<ListArgs>),
    /// Build, list, and predict from history how long a run would take on so many workers.
    ///
    /// From the first test's start: the build is not counted. Doctests are, after everything else;
    /// rustdoc builds and starts them here, so that they take as long on any number of workers.
    #[command(after_help = EXIT_CODES)]
    Plan(Box<PlanArgs>),
    /// Run one executable on the fleet as if it ran here: a target runner for cargo.
    ///
    /// With `CARGO_TARGET_<TRIPLE>_RUNNER="cargo-distest runner"`, `cargo test`, `cargo run`,
    /// `cargo bench` and `cargo nextest run` run their executables on the workers that
    /// DISTEST_WORKERS or the configuration name; without any, here.
    Runner(RunnerArgs),
    /// Be a worker: the same as `distest-worker`.
    #[command(subcommand)]
    Worker(Box<WorkerCommand>),
    /// The workers that there are.
    Workers(Box<WorkersArgs>),
    /// Run a command on workers, outside of their sandboxes: `exec --all -- uname -a`.
    ///
    /// Needs the permission `exec` there. Output comes as it is written, with the worker's name
    /// before each line if there are several; ends with 0 if the command did so everywhere. What
    /// would control a terminal is written out there and before names; one worker's output comes as
    /// it is into a file or a pipe.
    Exec(ExecArgs),
    /// Copy a file or a folder to a worker or from it: `cp report.txt NAME:/tmp/`.
    ///
    /// Needs the permission `copy` there. As with `cp -r`, what goes to a folder that is there
    /// already goes into it, under its own name; anything else becomes what DST names. Files appear
    /// when they are whole. What is new gets the permission bits of what it was copied from, folders
    /// that are there keep theirs, and links are copied as links.
    Cp(CpArgs),
    /// Look at this machine, the configuration and every worker, with a fix for what is found.
    ///
    /// Ends with 96 if something is wrong.
    Doctor(DoctorArgs),
    /// This user's key, by which workers know it.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print a script that completes this command line in a shell.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

/// `cargo distest run`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Which tests.
    #[command(flatten)]
    pub select: SelectArgs,
    /// Building.
    #[command(flatten)]
    pub build: BuildArgs,
    /// How they run.
    #[command(flatten)]
    pub execute: ExecuteArgs,
    /// Where they run.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// What comes back.
    #[command(flatten)]
    pub travel: TravelArgs,
    /// What is shown and written.
    #[command(flatten)]
    pub report: ReportArgs,
    /// What is remembered.
    #[command(flatten)]
    pub history: HistoryArgs,
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// `cargo distest list`.
#[derive(Clone, Debug, Default, Args)]
pub struct ListArgs {
    /// How the list is printed.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub message_format: ListFormat,
    /// Colours on the terminal [env: DISTEST_COLOR, CARGO_TERM_COLOR] [default: auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub color: Option<crate::settings::Color>,
    /// Which tests.
    #[command(flatten)]
    pub select: SelectArgs,
    /// Building.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Where binaries of other platforms are listed.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// What is remembered.
    #[command(flatten)]
    pub history: HistoryArgs,
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// `cargo distest runner`.
#[derive(Clone, Debug, Args)]
pub struct RunnerArgs {
    /// Keep workers' connections at this socket: used by the runner itself.
    #[arg(long, hide = true, value_name = "SOCKET", conflicts_with = "command")]
    pub agent: Option<PathBuf>,
    /// The executable and its arguments.
    #[arg(
        value_name = "EXE",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "agent"
    )]
    pub command: Vec<OsString>,
}

/// `list --message-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// `BINARY_ID TEST_NAME` a line, in colour on a terminal.
    #[default]
    Human,
    /// One JSON document.
    Json,
    /// `BINARY_ID TEST_NAME` a line, never in colour.
    Oneline,
}

/// The configuration.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigArgs {
    /// Profile of the configuration [env: DISTEST_PROFILE] [default: default]
    #[arg(short = 'P', long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Configuration to use instead of `.config/distest.toml` and `.config/nextest.toml`.
    ///
    /// A file whose name ends in `nextest.toml` is read as a configuration of cargo-nextest.
    #[arg(long, value_name = "PATH")]
    pub config_file: Option<PathBuf>,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  all selected tests passed
    1  a command of `exec` failed, or `cp`
    2  the command line is wrong
    4  no test was left to run
   94  invalid filterset
   96  set-up or configuration
   97  no usable worker; for exec, cp, workers drain, gc and upgrade: one that is named isn't there
   98  the whole fleet was lost before the end
  100  some test failed
  101  the build failed
  102  cargo metadata failed
  104  a test binary could not be listed
  105  a setup script failed
  110  a report could not be written
  130  interrupted
When several hold: 130 > 101 > 98 > 105 > 100 > 110 > 4.";

/// Parses a command line, the program's name included.
///
/// cargo calls a subcommand with its own name as the first argument, so one `distest` there is
/// accepted and ignored.
///
/// # Errors
///
/// A request for help or the version, or what is wrong: [`clap::Error::print`] tells it,
/// [`clap::Error::exit_code`] is 0 or 2.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|first| first == "distest") {
        args.remove(1);
    }
    let mut cli = Cli::try_parse_from(args)?;
    let select = match &mut cli.command {
        Command::Run(run) => Some(&mut run.select),
        Command::List(list) => Some(&mut list.select),
        Command::Plan(plan) => Some(&mut plan.list.select),
        Command::Runner(_)
        | Command::Worker(_)
        | Command::Workers(_)
        | Command::Exec(_)
        | Command::Cp(_)
        | Command::Doctor(_)
        | Command::Key(_)
        | Command::Completions { .. }
        | Command::Man => None,
    };
    if let Some(select) = select {
        select.parse_libtest_args()?;
    }
    Ok(cli)
}

/// The executable and arguments of a plain `runner EXE ARGS…`, which needs no parser: it is called
/// once for each executable, and has to be quick.
pub fn runner_call(args: &[OsString]) -> Option<(&OsString, &[OsString])> {
    let rest = match args {
        [_, first, rest @ ..] if first == "distest" => rest,
        [_, rest @ ..] => rest,
        [] => return None,
    };
    match rest {
        [word, program, args @ ..]
            if word == "runner" && !program.as_encoded_bytes().starts_with(b"-") =>
        {
            Some((program, args))
        }
        _ => None,
    }
}

/// `plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct PlanArgs {
    /// Numbers of workers to predict for: `8`, or `1..64` for a curve and its knee.
    #[arg(long, value_name = "N[..M]", default_value = "1..8", value_parser = parse_workers)]
    pub workers: WorkerRange,
    /// Slots of each worker [default: this machine's cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_MAX)))]
    pub slots: Option<u32>,
    /// Which tests, as for `list`.
    #[command(flatten)]
    pub list: ListArgs,
}

/// From so many workers to so many, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerRange {
    /// At least 1.
    pub from: u32,
    /// At least `from`.
    pub to: u32,
}

fn parse_workers(text: &str) -> Result<WorkerRange, String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|number| (1..=4096).contains(number));
    match (number(from), number(to)) {
        (Some(from), Some(to)) if from <= to => Ok(WorkerRange { from, to }),
        _ => Err("expected a number from 1 to 4096, or two of them such as `1..64`".to_owned()),
    }
}

impl ListArgs {
    /// The same selection and build as a run's, so that `list` and `run` can't disagree.
    pub fn as_run(&self) -> RunArgs {
        let Self { message_format: _, color, select, build, fleet, history, config } = self.clone();
        let report = ReportArgs { color, ..ReportArgs::default() };
        let (execute, travel) = (ExecuteArgs::default(), TravelArgs::default());
        RunArgs { select, build, execute, fleet, travel, report, history, config }
    }
}

/// Writes a shell's completion script.
pub fn write_completions(shell: Shell, out: &mut dyn Write) {
    // The command that a shell completes is the executable's name, not `cargo distest`.
    let mut command = Cli::command().bin_name("cargo-distest");
    clap_complete::generate(shell, &mut command, "cargo-distest", &mut { out });
}

/// Writes the manual page: the command and all its subcommands.
pub fn write_man(out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(out)?;
    command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
        .try_for_each(|subcommand| clap_mangen::Man::new(subcommand.clone()).render(out))
}

#[cfg(test)]
mod tests;
