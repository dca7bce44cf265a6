//! Flags that say which tests run.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser};

use super::Cli;
use crate::settings::{NoTests, Partition, RunIgnored, TestThreads};

/// Which tests.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filter options")]
pub struct SelectArgs {
    /// Run tests whose name contains one of these.
    #[arg(value_name = "FILTER", help_heading = None)]
    pub filters: Vec<String>,
    /// More filters and arguments of libtest.
    ///
    /// `cargo distest run -- ARGS` understands what people give to `cargo test -- ARGS`:
    ///
    /// --skip X            leave out tests whose name contains X
    /// --exact             filters and skips are whole names
    /// --ignored           run ignored tests only
    /// --include-ignored   run ignored tests too
    /// --nocapture         one test at a time, output as it is written
    /// --test-threads N    tests at once
    #[arg(last = true, value_name = "FILTERS_AND_ARGS", help_heading = None, verbatim_doc_comment)]
    pub libtest_args: Vec<String>,
    /// What `libtest_args` mean.
    #[arg(skip)]
    pub libtest: LibtestArgs,
    /// Run tests that match this expression, in nextest's filterset language.
    ///
    /// Given more than once, a test that matches one of them runs. Combined with FILTER, a test
    /// has to match both. See <https://nexte.st/docs/filtersets>.
    #[arg(short = 'E', long, alias = "filter-expr", value_name = "EXPR")]
    pub filterset: Vec<String>,
    /// Run tests that the profile's `default-filter` leaves out, too.
    #[arg(long)]
    pub ignore_default_filter: bool,
    /// Which of the tests marked `#[ignore]` run [default: default]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub run_ignored: Option<RunIgnored>,
    /// What happens if no test is left to run [env: DISTEST_NO_TESTS] [default: fail]
    #[arg(long, value_name = "ACTION", value_enum)]
    pub no_tests: Option<NoTests>,
    /// Run one share of the tests: `hash:K/N`, `slice:K/N` or `timed:K/N`.
    ///
    /// For machines that can't talk to each other. Each test is in exactly one of the N shares:
    /// by a hash of its name, in turn, or by past timings.
    #[arg(long, value_name = "PARTITION")]
    pub partition: Option<Partition>,
    /// The same as `--partition timed:K/N`.
    #[arg(
        long,
        value_name = "K/N",
        value_parser = crate::settings::parse_shard,
        conflicts_with = "partition"
    )]
    pub shard: Option<Partition>,
}

/// What libtest understands behind `--`, as far as it makes sense here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
pub struct LibtestArgs {
    /// More filters.
    pub filters: Vec<String>,
    /// Leave these out.
    #[arg(long, allow_hyphen_values = true)]
    pub skip: Vec<String>,
    /// Filters and skips are whole names.
    #[arg(long)]
    pub exact: bool,
    /// Ignored tests only.
    #[arg(long)]
    pub ignored: bool,
    /// Ignored tests too.
    #[arg(long, conflicts_with = "ignored")]
    pub include_ignored: bool,
    /// Output as it is written.
    #[arg(long, alias = "no-capture")]
    pub nocapture: bool,
    /// Tests at once.
    #[arg(long, allow_hyphen_values = true)]
    pub test_threads: Option<TestThreads>,
}

impl SelectArgs {
    /// Makes sense of what stands behind `--`.
    pub(super) fn parse_libtest_args(&mut self) -> Result<(), clap::Error> {
        self.libtest = LibtestArgs::try_parse_from(&self.libtest_args).map_err(|error| {
            let argument = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(argument)) => argument.clone(),
                Some(ContextValue::Strings(arguments)) => arguments.join("` and `"),
                _ => self.libtest_args.join(" "),
            };
            let what = match error.kind() {
                ErrorKind::UnknownArgument => "is not supported",
                ErrorKind::ArgumentConflict => "is given twice or contradicts another argument",
                _ => "has no value, or a wrong one",
            };
            let message = format!(
                "`{argument}` behind `--` {what}\n\n  \
                 supported there: FILTER, --skip X, --exact, --ignored, --include-ignored, \
                 --nocapture, --test-threads N"
            );
            Cli::command().error(error.kind(), message)
        })?;
        Ok(())
    }
}
