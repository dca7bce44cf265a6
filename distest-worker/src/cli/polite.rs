//! How much a worker leaves to others who use its machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::polite::{Politeness, Presence};
use crate::server::WorkerShared;

/// Where terminals are.
const TERMINALS: [&str; 8] = [
    "/dev/pts",
    "/dev/tty1",
    "/dev/tty2",
    "/dev/tty3",
    "/dev/tty4",
    "/dev/tty5",
    "/dev/tty6",
    "/dev/input",
];

/// What a worker leaves to others.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Politeness")]
pub struct PoliteArgs {
    /// Run tests with this niceness, from 0 to 19
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=19))]
    pub nice: Option<u8>,
    /// Start nothing while the machine's load average over the last minute is above this
    #[arg(long, value_name = "LOAD", value_parser = load)]
    pub max_load: Option<f64>,
    /// Start nothing while somebody uses a terminal of this machine
    #[arg(long)]
    pub idle_only: bool,
    /// How long nobody must have used one
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub idle_after: u32,
    /// A file or folder whose use shows that somebody is there; may be repeated [default:
    /// terminals]
    #[arg(long, value_name = "PATH", requires = "idle_only")]
    pub presence: Vec<PathBuf>,
}

impl PoliteArgs {
    /// Obeys, as far as this process is concerned. Before there are other threads.
    pub(super) fn obey(&self) -> Result<(), String> {
        let Some(nice) = self.nice else { return Ok(()) };
        set_niceness(nice).map_err(|error| format!("could not set the niceness {nice}: {error}"))
    }

    /// Keeps the worker to it from now on.
    pub(super) fn keep(self, worker: &Arc<WorkerShared>) {
        let Self { nice: _, max_load, idle_only, idle_after, presence } = self;
        let paths = match presence.is_empty() {
            true => TERMINALS.map(PathBuf::from).to_vec(),
            false => presence,
        };
        let idle_after = Duration::from_secs(idle_after.into());
        let presence = idle_only.then_some(Presence { paths, idle_after });
        let politeness = Politeness { load_max: max_load, presence };
        if politeness == Politeness::default() {
            return;
        }
        worker.pause(politeness.objection());
        // As long as the process.
        tokio::spawn(politeness.keep(Arc::clone(worker)));
    }
}

#[expect(unsafe_code, reason = "no crate here wraps setpriority")]
fn set_niceness(nice: u8) -> std::io::Result<()> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, i32::from(nice)) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn load(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|load: &f64| load.is_finite() && *load >= 0.0);
    number.ok_or_else(|| "expected a number such as 2.5".to_owned())
}
