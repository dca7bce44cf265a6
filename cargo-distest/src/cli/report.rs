//! Flags that say what is shown, written and remembered.

use std::path::PathBuf;

use clap::Args;

use crate::settings::{Color, MessageFormat, OutputWhen, ShowProgress, StatusLevel};

/// What is shown and written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Reporter options")]
pub struct ReportArgs {
    /// Write a JUnit report to this file [env: DISTEST_JUNIT]
    #[arg(long, value_name = "PATH")]
    pub junit: Option<PathBuf>,
    /// What is printed [env: DISTEST_MESSAGE_FORMAT] [default: human]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub message_format: Option<MessageFormat>,
    /// The progress display [env: DISTEST_SHOW_PROGRESS] [default: auto]
    #[arg(long, value_name = "HOW", value_enum)]
    pub show_progress: Option<ShowProgress>,
    /// Results that are shown as they come [env: DISTEST_STATUS_LEVEL] [default: pass]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub status_level: Option<StatusLevel>,
    /// Results that are shown again at the end [env: DISTEST_FINAL_STATUS_LEVEL] [default: fail]
    #[arg(long, value_name = "LEVEL", value_enum)]
    pub final_status_level: Option<StatusLevel>,
    /// When the output of passing tests is shown [env: DISTEST_SUCCESS_OUTPUT] [default: never]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub success_output: Option<OutputWhen>,
    /// When the output of failing tests is shown [env: DISTEST_FAILURE_OUTPUT]
    /// [default: immediate]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub failure_output: Option<OutputWhen>,
    /// Colours on the terminal [env: DISTEST_COLOR, CARGO_TERM_COLOR] [default: auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub color: Option<Color>,
}

/// What is remembered from run to run.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "History options")]
pub struct HistoryArgs {
    /// Database of past timings and outcomes [env: DISTEST_HISTORY] [default: one per workspace in
    /// the user's cache folder]
    #[arg(long, value_name = "PATH")]
    pub history: Option<PathBuf>,
    /// Neither read nor write a history.
    #[arg(long, conflicts_with = "history")]
    pub no_history: bool,
}
