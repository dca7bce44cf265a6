//! Remote hands: running a command on workers, outside of their sandboxes.

use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::link;
use distest_worker::protocol::{
    AttemptId, AttemptSpec, BinaryKey, BinarySpec, ClientRequest, ClientResponse, Exit, Lease,
    Limits, Network, OsText, Report, SessionSpec, Stream, Streams,
};
use tarpc::ServerError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::meant::Meant;
use super::talk::{Talk, answered};
use super::{Undone, Unusable, run_name};
use crate::settings::FleetSettings;

/// An answer to a question.
const ANSWER: Duration = Duration::from_secs(10);
/// What the worker calls that waits to be heard.
const ASKED_MAX: usize = 64;
/// Finds the command as a shell does, and becomes it.
const BECOME: [&str; 3] = ["-c", "exec \"$@\"", "sh"];

/// What a worker's command does.
#[derive(Debug)]
pub enum Happened {
    /// It wrote something.
    Wrote(Stream, Bytes),
    /// It has ended.
    Ended(Exit),
    /// It could not be run, or its end is not known.
    Failed(Undone),
}

/// Runs a command on one of them, and tells what happens, last of all how it ended.
pub async fn run(
    settings: &FleetSettings,
    worker: Meant,
    command: &[OsString],
    told: mpsc::Sender<Happened>,
) {
    let last = match command_on(settings, worker, command, &told).await {
        Ok(exit) => Happened::Ended(exit),
        Err(undone) => Happened::Failed(undone),
    };
    // Whoever doesn't listen any more doesn't want to know.
    let _ = told.send(last).await;
}

async fn command_on(
    settings: &FleetSettings,
    worker: Meant,
    command: &[OsString],
    told: &mpsc::Sender<Happened>,
) -> Result<Exit, Undone> {
    let talk = worker.reach(settings).await?;
    let (asked, mut heard) = mpsc::channel(ASKED_MAX);
    talk.listen(asked);
    let Talk { worker, link, .. } = talk;
    let spec = SessionSpec { run: run_name(), slots: 1, hands: true, ..SessionSpec::default() };
    answered(worker.open(link::context(ANSWER), spec).await)?;
    answered(worker.prepare(link::context(ANSWER), shell()).await)?;
    let lease = Lease { attempts: vec![attempt(command)] };
    answered(worker.lease(link::context(ANSWER), lease).await)?;
    loop {
        tokio::select! {
            biased;
            Some((request, answer)) = heard.recv() => {
                let (answered, ended) = hear(request, told).await;
                // Whoever asked may be gone.
                let _ = answer.send(answered);
                if let Some(ended) = ended {
                    let _ = timeout(ANSWER, worker.close(link::context(ANSWER))).await;
                    return ended.map_err(|why| Unusable::new(why).into());
                }
            }
            end = link.ended() => return Err(Unusable::new(end.to_string()).into()),
        }
    }
}

fn shell() -> BinarySpec {
    BinarySpec {
        key: BinaryKey(0),
        label: "exec".to_owned(),
        program: "/bin/sh".into(),
        cwd: "/".into(),
        env: Vec::new(),
        files: Vec::new(),
        writable: Vec::new(),
    }
}

fn attempt(command: &[OsString]) -> AttemptSpec {
    let words = command.iter().map(|word| OsText::from(word.clone()));
    AttemptSpec {
        id: AttemptId(0),
        binary: BinaryKey(0),
        args: BECOME.map(OsText::from).into_iter().chain(words).collect(),
        env: Vec::new(),
        limits: Limits::default(),
        streams: Streams::Live,
        progress: false,
        unset: Vec::new(),
        network: Network::Host,
        places: 1,
        label: String::new(),
    }
}

/// Tells what a worker says of the one command; how that ended, if it has.
async fn hear(
    request: ClientRequest,
    told: &mpsc::Sender<Happened>,
) -> (Result<ClientResponse, ServerError>, Option<Result<Exit, String>>) {
    match request {
        ClientRequest::Report { reports } => {
            let ended = reports.into_iter().find_map(|report| match report {
                Report::Finished(finished) => Some(Ok(finished.exit)),
                Report::Lost { detail, .. } => Some(Err(detail)),
                Report::Started { .. }
                | Report::Slow { .. }
                | Report::Progress { .. }
                | Report::Draining {} => None,
            });
            (Ok(ClientResponse::Report(())), ended)
        }
        ClientRequest::Output { chunk } => {
            // Whoever doesn't listen any more doesn't want to know.
            let _ = told.send(Happened::Wrote(chunk.stream, chunk.data)).await;
            (Ok(ClientResponse::Output(())), None)
        }
        // There is nothing else that a command could want.
        _ => {
            let (kind, why) =
                (std::io::ErrorKind::Unsupported, "this is a session for one command");
            (Err(ServerError::new(kind, why.to_owned())), None)
        }
    }
}
