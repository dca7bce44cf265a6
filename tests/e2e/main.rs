//! End-to-end tests: the executables, from outside, on the fixtures.
//!
//! A harness of its own (libtest-mimic), because the cases are fixture × fleet and because a case
//! that can't be carried out here is counted and named as ignored. With `CI=true` and as root
//! nothing may be left out: there it fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot be carried out has failed")]

mod bad_input;
mod bad_workers;
mod batches;
mod blackhole;
mod constraints;
mod deploy;
mod discovery;
mod doctests;
mod doctor;
mod drain;
mod environment;
mod faults;
mod fleet;
mod forward;
mod hands;
mod hedge;
mod hermetic;
mod hostile;
mod illegal;
mod keys;
mod levels;
mod memory;
mod models;
mod network;
mod output;
mod plan;
mod polite;
mod remembered;
mod resume;
mod runner;
mod selection;
mod sharing;
mod shipping;
mod signals;
mod ssh;
mod travel;
mod upgrade;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use distest_tests::scratch::Scratch;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;

/// Within this long processes must have gone once their run has ended: sessions end 3 s after their
/// client was killed, and on a busy machine whoever notices waits for its turn.
pub(crate) const GONE_WITHIN: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = [
        models::cases(),
        levels::cases(),
        selection::cases(),
        remembered::cases(),
        output::cases(),
        plan::cases(),
        runner::cases(),
        doctests::cases(),
        environment::cases(),
        shipping::cases(),
        signals::cases(),
        travel::cases(),
        network::cases(),
        forward::cases(),
        batches::cases(),
        constraints::cases(),
        faults::cases(),
        resume::cases(),
        hedge::cases(),
        memory::cases(),
        blackhole::cases(),
        hermetic::cases(),
        hostile::cases(),
        bad_input::cases(),
        bad_workers::cases(),
        illegal::cases(),
        keys::cases(),
        fleet::cases(),
        discovery::cases(),
        drain::cases(),
        upgrade::cases(),
        sharing::cases(),
        polite::cases(),
        hands::cases(),
        doctor::cases(),
        deploy::cases(),
        ssh::cases(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// A case with a scratch folder of its own, which no process may outlive.
pub(crate) fn case(name: impl Into<String>, body: impl FnOnce(&Scratch) + Send + 'static) -> Trial {
    case_if(name, || Ok(()), body)
}

/// The same for a case that can't be carried out everywhere: `possible` says why not.
pub(crate) fn case_if(
    name: impl Into<String>,
    possible: fn() -> Result<(), String>,
    body: impl FnOnce(&Scratch) + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Err(reason) = possible() {
            if geteuid().is_root() && env::var_os("CI").is_some_and(|value| value == "true") {
                return Err(format!("may not be left out here: {reason}").into());
            }
            return Ok(Completion::ignored_with(reason));
        }
        let scratch = Scratch::new();
        body(&scratch);
        nothing_left(&scratch)?;
        Ok(Completion::Completed)
    })
}

fn nothing_left(scratch: &Scratch) -> Result<(), Failed> {
    let left = scratch.left_after(GONE_WITHIN, |_| true);
    if left.is_empty() { Ok(()) } else { Err(format!("processes left behind: {left:#?}").into()) }
}
