//! What only who administers a worker asks of it: to drain, to make room, to become another
//! executable.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::hello::Hello;
use distest_worker::link;
use distest_worker::protocol::{CHUNK_BYTES_MAX, ExecutablePiece, Freed, UpgradeReply};
use tokio::time::{Instant, sleep};

use super::meant::{self, Meant};
use super::ssh::executable::{self, Executable, Machine};
use super::talk::{Talk, answered};
use super::{REDIAL_MAX, Trouble, Undone, Unusable};
use crate::settings::FleetSettings;

/// An answer to a question.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a worker may take to look at all that it keeps.
const LONG_ANSWER: Duration = Duration::from_secs(60);
/// How long a worker may take to try an executable that it has.
const TRIED_WITHIN: Duration = Duration::from_secs(120);
/// How long to wait for a worker that finishes what runs before it goes on as another.
const BACK_WITHIN: Duration = Duration::from_secs(15 * 60);

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgraded {
    /// It has had that executable already.
    UpToDate,
    /// It goes on as this version.
    To(String),
}

/// Tells a worker to finish what runs and to take nothing more. It is named by its address, or by
/// whatever it is called. Answers its name.
///
/// # Errors
/// It can't be found, or doesn't do it.
pub async fn drain(settings: &FleetSettings, name: &str) -> Result<String, Undone> {
    let worker = meant::only(settings, name).await.map_err(Undone::NotThere)?;
    let talk = worker.reach(settings).await?;
    answered(talk.worker.drain(link::context(ANSWER)).await)?;
    Ok(talk.hello.name.clone())
}

/// Removes whatever no session uses from what a worker keeps.
///
/// # Errors
/// It doesn't answer, or may not be asked.
pub async fn collect_garbage(settings: &FleetSettings, worker: Meant) -> Result<Freed, Undone> {
    let talk = worker.reach(settings).await?;
    Ok(answered(talk.worker.collect_garbage(link::context(LONG_ANSWER)).await)?)
}

/// Has a worker go on as this program, or as a static build of the worker where that doesn't run.
/// `told` is called when it has been sent; the worker then finishes what runs.
///
/// # Errors
/// It doesn't take it, and goes on as it was; or it has not come back in time.
pub async fn upgrade(
    settings: &FleetSettings,
    worker: Meant,
    told: impl FnOnce(),
) -> Result<Upgraded, Undone> {
    let address = worker.address().cloned();
    // Reading executables takes a while, and who is silent for long is taken for gone.
    let own = executable::own().await?;
    let talk = worker.reach(settings).await?;
    let executable = talk.awake_during(executable::choose(own, &machine(&talk.hello))).await?;
    match send(&talk, &executable).await? {
        UpgradeReply::Same {} => return Ok(Upgraded::UpToDate),
        UpgradeReply::Begun {} => {}
        UpgradeReply::More {} => return Err(Unusable::new("it answers what was not asked").into()),
    }
    told();
    let before = talk.hello.instance.clone();
    drop(talk);
    // Only one that listens takes it.
    let address = address.ok_or_else(|| Unusable::new("it can't be dialled again"))?;
    let end = Instant::now() + BACK_WITHIN;
    loop {
        if let Ok(talk) = Meant::at(address.clone()).reach(settings).await
            && talk.hello.instance != before
        {
            return match ask(&talk, &executable).await? {
                UpgradeReply::Same {} => Ok(Upgraded::To(talk.hello.software.clone())),
                _ => Err(Unusable::new("it goes on with the executable that it had")
                    .hint("what it wrote to its log says why")
                    .into()),
            };
        }
        if Instant::now() >= end {
            let minutes = BACK_WITHIN.as_secs() / 60;
            return Err(Unusable::new(format!("it has not come back within {minutes} minutes"))
                .hint("something may still run there, which it finishes first")
                .into());
        }
        sleep(REDIAL_MAX / 4).await;
    }
}

/// What an executable must run on.
fn machine(hello: &Hello) -> Machine {
    let mut parts = hello.target.split('-');
    let architecture = parts.next().unwrap_or_default();
    let system = if parts.any(|part| part == "linux") { "Linux" } else { hello.target.as_str() };
    Machine { kind: format!("{system} {architecture}"), libc: hello.libc.clone() }
}

async fn ask(talk: &Talk, it: &Executable) -> Result<UpgradeReply, Trouble> {
    put(talk, it.digest, it.size, 0, Bytes::new()).await
}

/// Sends all of it, unless the worker wants none.
async fn send(talk: &Talk, it: &Executable) -> Result<UpgradeReply, Trouble> {
    let reply = ask(talk, it).await?;
    if reply != (UpgradeReply::More {}) {
        return Ok(reply);
    }
    let mut file = File::open(&it.path).map_err(|error| unread(&it.path, &error))?;
    let mut offset = 0;
    loop {
        let mut data = Vec::new();
        let read = Read::by_ref(&mut file).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut data);
        let read = read.map_err(|error| unread(&it.path, &error))?;
        if read == 0 {
            return Err(Unusable::new(format!("{} has become shorter", it.path.display())).into());
        }
        let reply = put(talk, it.digest, it.size, offset, data.into()).await?;
        if reply != (UpgradeReply::More {}) {
            return Ok(reply);
        }
        offset += read as u64;
    }
}

async fn put(
    talk: &Talk,
    digest: Digest,
    size: u64,
    offset: u64,
    data: Bytes,
) -> Result<UpgradeReply, Trouble> {
    let piece = ExecutablePiece { digest, size, offset, data };
    answered(talk.worker.upgrade(link::context(TRIED_WITHIN), piece).await)
}

fn unread(path: &Path, error: &std::io::Error) -> Trouble {
    Unusable::new(format!("could not read {}: {error}", path.display())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_chosen_by_what_the_worker_says_of_its_machine() {
        let machine = |target: &str| {
            let libc = "glibc 2.36".to_owned();
            machine(&Hello { target: target.to_owned(), libc, ..Hello::default() })
        };
        assert_eq!(machine("x86_64-unknown-linux-gnu").kind, "Linux x86_64");
        assert_eq!(machine("aarch64-unknown-linux-musl").kind, "Linux aarch64");
        assert_eq!(machine("aarch64-apple-darwin").kind, "aarch64-apple-darwin aarch64");
        assert_eq!(machine("x86_64-unknown-linux-gnu").libc, "glibc 2.36");
    }
}
