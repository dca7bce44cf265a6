//! `cargo distest`'s executable: parses the command line and hands it on.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use cargo_distest::cli::{self, Cli, Command, RunnerArgs};
use cargo_distest::failure::{self, Failure};
use cargo_distest::key;
use cargo_distest::run;
use cargo_distest::runner::{agent, shim};
use cargo_distest::settings::{Color, ShowProgress};
use cargo_distest::ui::{self, Ui};
use cargo_distest::workers;
use distest_worker::protocol::Stream;

fn main() -> ExitCode {
    distest_worker::zygote::enter_if_asked();
    let args: Vec<_> = std::env::args_os().collect();
    if let Some((program, args)) = cli::runner_call(&args) {
        return ExitCode::from(shim::run(program, args).unwrap_or_else(tell).number());
    }
    let Cli { command } = match cli::parse(args) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error),
    };
    let code = match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            cli::write_completions(shell, &mut script);
            print(&script)
        }
        Command::Man => {
            let mut page = Vec::new();
            match cli::write_man(&mut page) {
                Ok(()) => print(&page),
                Err(error) => tell(
                    Failure::new(failure::ExitCode::Setup, "could not make the manual page")
                        .because(error),
                ),
            }
        }
        Command::Workers(args) => {
            let say = |text: &str| print(text.as_bytes()) == failure::ExitCode::Passed;
            perform(workers::workers(&args, say))
        }
        Command::Exec(args) => {
            perform(workers::exec(&args, terminals(), |stream, bytes| match stream {
                // Whoever doesn't read any more has heard enough.
                Stream::Stdout => _ = print(bytes),
                Stream::Stderr => _ = std::io::stderr().write_all(bytes),
            }))
        }
        Command::Cp(args) => perform(workers::cp(&args)),
        Command::Doctor(args) => perform(workers::doctor(&args, |text| _ = print(text.as_bytes()))),
        Command::Key(command) => match key::key(&command) {
            Ok(text) => print(text.as_bytes()),
            Err(failure) => tell(failure),
        },
        Command::Runner(RunnerArgs { agent: Some(socket), command: _ }) => {
            agent::forget_inherited();
            perform(agent::run(&socket))
        }
        Command::Runner(RunnerArgs { agent: None, command }) => match command.split_first() {
            Some((program, args)) => shim::run(program, args).unwrap_or_else(tell),
            None => failure::ExitCode::Usage,
        },
        Command::Worker(command) => return distest_worker::cli::run(*command),
        Command::Run(args) => perform(run::run(&args)),
        Command::List(args) => perform(run::list(&args)),
        Command::Plan(args) => perform(run::plan(&args)),
    };
    ExitCode::from(code.number())
}

/// Help and the version go to stdout and are no failure; everything else is one of usage.
fn tell_usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason to complain about.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::ExitCode::Usage.number()))
}

fn terminals() -> workers::Terminals {
    let (stdout, stderr) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
    workers::Terminals { stdout, stderr }
}

fn print(bytes: &[u8]) -> failure::ExitCode {
    let mut stdout = std::io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => tell(
            Failure::new(failure::ExitCode::ReportFailed, "could not write to stdout")
                .because(error),
        ),
        _ => failure::ExitCode::Passed,
    }
}

/// Runs on one thread: what computes goes to others, and a run's CPU time is its tests'.
fn perform(command: impl Future<Output = Result<failure::ExitCode, Failure>>) -> failure::ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(command);
            // A thread that still reads our stdin must not hold us up.
            runtime.shutdown_background();
            result
        }
        Err(error) => {
            let what = "could not start the runtime";
            Err(Failure::new(failure::ExitCode::Setup, what).because(error))
        }
    };
    result.unwrap_or_else(tell)
}

fn tell(failure: Failure) -> failure::ExitCode {
    ui::report_failure(&Ui::new(Color::Auto, ShowProgress::None), &failure);
    failure.code
}
