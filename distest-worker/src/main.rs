//! The worker's executable.

use std::process::ExitCode;

use clap::Parser;
use distest_worker::cli::{self, WorkerCommand};

/// Runs the tests that clients of `cargo distest` send.
#[derive(Parser)]
#[command(name = "distest-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: WorkerCommand,
}

fn main() -> ExitCode {
    distest_worker::zygote::enter_if_asked();
    cli::run(Cli::parse().command)
}
