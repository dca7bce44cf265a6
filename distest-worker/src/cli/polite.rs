//! How much a worker leaves to others who use its machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::say;
use crate::log::{Complaint, Line};
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
    pub(super) fn obey(&self) -> Result<(), Complaint> {
        for path in &self.presence {
            looks(path)?.into_iter().for_each(say);
        }
        let Some(nice) = self.nice else { return Ok(()) };
        let set = set_niceness(nice);
        set.map_err(|error| format!("could not set the niceness {nice}: {error}").into())
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

/// Whether somebody can be seen there: a file may come later, which is said; a folder that is not
/// there is misspelt.
fn looks(path: &Path) -> Result<Option<Line>, Complaint> {
    let Err(error) = fs::metadata(path) else { return Ok(None) };
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (shown, folder) = (path.display(), path.parent().filter(|folder| folder.is_dir()));
    if error.kind() == io::ErrorKind::NotFound && folder.is_some() {
        let what = format!("--presence {shown} is not there: until it is, it shows nobody");
        return Ok(Some(
            Line::warning(what).hint("check how it is spelt, unless it is made later"),
        ));
    }
    Err(Complaint::from(format!(
        "could not look whether somebody is at --presence {shown}: {error}"
    ))
    .hint("name a file or folder that is there and whose use shows that somebody is there"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_show_presence_must_be_able_to() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(looks(folder.path()).unwrap(), None);
        let later = looks(&folder.path().join("later")).unwrap().expect("a warning");
        assert!(later.message.contains("is not there"), "{later:?}");
        for nowhere in ["no/folder", "file/below"] {
            fs::write(folder.path().join("file"), "").unwrap();
            let complaint = looks(&folder.path().join(nowhere)).unwrap_err();
            assert!(complaint.why.contains(nowhere) && complaint.hint.is_some(), "{complaint:?}");
        }
    }
}
