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

use super::keys::Keys;
use super::visit::{Talk, Trouble, Visited, answered, visit};
use super::{Unusable, run_name};
use crate::settings::{FleetSettings, WorkerAddress};

/// An answer to a question.
const ANSWER: Duration = Duration::from_secs(10);
/// Pieces of output that wait to be shown.
const SAID_MAX: usize = 64;
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
    Failed(Trouble),
}

/// The workers that are there and meant: all, or those of these names.
///
/// # Errors
/// None is there, or one of the names is nobody's.
pub async fn meant(settings: &FleetSettings, names: &[String]) -> Result<Vec<Visited>, Trouble> {
    let mut there = visit(settings).await?;
    if names.is_empty() {
        there.retain(|worker| worker.said.is_ok());
        if there.is_empty() {
            return Err(Unusable::new("no worker is there")
                .hint("`cargo distest workers` shows which there are, and why one can't be used")
                .into());
        }
        return Ok(there);
    }
    if let Some(nobody) = names.iter().find(|name| !there.iter().any(|it| it.is_called(name))) {
        return Err(Unusable::new(format!("no worker is called {nobody}"))
            .hint("`cargo distest workers` shows which there are")
            .into());
    }
    there.retain(|worker| names.iter().any(|name| worker.is_called(name)));
    Ok(there)
}

/// Runs a command on one of them, and tells what happens, last of all how it ended.
pub async fn run(
    settings: &FleetSettings,
    worker: &Visited,
    command: &[OsString],
    told: mpsc::Sender<Happened>,
) {
    let last = match command_on(settings, worker, command, &told).await {
        Ok(exit) => Happened::Ended(exit),
        Err(trouble) => Happened::Failed(trouble),
    };
    // Whoever doesn't listen any more doesn't want to know.
    let _ = told.send(last).await;
}

async fn command_on(
    settings: &FleetSettings,
    worker: &Visited,
    command: &[OsString],
    told: &mpsc::Sender<Happened>,
) -> Result<Exit, Trouble> {
    if let Err(trouble) = &worker.said {
        return Err(trouble.clone());
    }
    let Ok(WorkerAddress::Tcp { host, port, key }) = worker.address.parse() else {
        return Err(Unusable::new("it can't be dialled").into());
    };
    let keys = Keys::load(&settings.identity)?;
    let (said, mut heard) = mpsc::channel(SAID_MAX);
    let callbacks = move |_, request| called(said.clone(), request);
    let talk = Talk::serving(&keys, &host, port, key, callbacks).await?.recent()?;
    let Talk { worker, link, .. } = talk;
    let spec = SessionSpec { run: run_name(), slots: 1, hands: true, ..SessionSpec::default() };
    answered(worker.open(link::context(ANSWER), spec).await)?;
    answered(worker.prepare(link::context(ANSWER), shell()).await)?;
    let lease = Lease { attempts: vec![attempt(command)] };
    answered(worker.lease(link::context(ANSWER), lease).await)?;
    loop {
        tokio::select! {
            biased;
            Some(word) = heard.recv() => match word {
                Word::Wrote(stream, data) => {
                    let _ = told.send(Happened::Wrote(stream, data)).await;
                }
                Word::Ended(ended) => {
                    let _ = timeout(ANSWER, worker.close(link::context(ANSWER))).await;
                    return ended.map_err(|why| Unusable::new(why).into());
                }
            },
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

/// What a worker says of the one command.
enum Word {
    Wrote(Stream, Bytes),
    Ended(Result<Exit, String>),
}

/// Takes what the worker calls; answers when it has been taken.
async fn called(
    said: mpsc::Sender<Word>,
    request: ClientRequest,
) -> Result<ClientResponse, ServerError> {
    match request {
        ClientRequest::Report { reports } => {
            for report in reports {
                let ended = match report {
                    Report::Finished(finished) => Ok(finished.exit),
                    Report::Lost { detail, .. } => Err(detail),
                    Report::Started { .. }
                    | Report::Slow { .. }
                    | Report::Progress { .. }
                    | Report::Draining {} => continue,
                };
                let _ = said.send(Word::Ended(ended)).await;
            }
            Ok(ClientResponse::Report(()))
        }
        ClientRequest::Output { chunk } => {
            let _ = said.send(Word::Wrote(chunk.stream, chunk.data)).await;
            Ok(ClientResponse::Output(()))
        }
        // There is nothing else that a command could want.
        _ => {
            let (kind, why) =
                (std::io::ErrorKind::Unsupported, "this is a session for one command");
            Err(ServerError::new(kind, why.to_owned()))
        }
    }
}
