//! One call, from its request to its end.

use std::collections::BTreeSet;
use std::future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distest_worker::link;
use distest_worker::protocol::{
    AttemptSignal, AttemptSpec, BinaryKey, Exit, Leak, Lease, Limits, OsText, Refusal, StdinChunk,
    Stream, Streams,
};
use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::environment;
use super::pool::{Pool, Said, Ticket};
use super::shim::DOCTEST_PATH_VARIABLE;
use super::site::{Site, Supply};
use super::wire::{Call, FromShim, Refused, ToShim};
use crate::baked;
use crate::collect::Underway;
use crate::failure::{ExitCode, Failure};
use crate::fleet::Connection;
use crate::model::Triple;
use crate::settings::{Fallback, FleetSettings};
use crate::ship::ShipError;
use distest_worker::shown;

/// Frames of a shim that wait to be taken.
const FRAMES_MAX: usize = 4;
/// Bytes of output that wait for a shim. Beyond that its worker's session waits with it.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Words of a call by which it is known.
const LABEL_WORDS_MAX: usize = 3;
/// Processes that are named when they are left behind.
const PROCESSES_TOLD_MAX: usize = 3;
/// An answer to a short request.
const ANSWER: Duration = Duration::from_secs(10);

/// Runs `call` and tells the shim. Ends when all has been told, or the shim is gone: then nothing
/// of the call runs any more. Answers whether it came to no end because of a worker.
pub(super) async fn serve<W>(
    call: &Call,
    site: &Site,
    settings: &FleetSettings,
    mut frames: Frames,
    to: W,
) -> bool
where
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (shim, writing) = Shim::start(to);
    let placed = tokio::select! {
        placed = place(call, site, settings) => placed,
        signal = early_signal(&mut frames) => Err(died_by(signal)),
    };
    let last = match placed {
        Ok(placed) => Running { call, placed, site, shim: &shim }.run(&mut frames).await,
        Err(last) => Some(last),
    };
    if let Some(ToShim::RunHere(Some(why))) = &last {
        site.tell_run_here(call.program.as_path(), why);
    }
    let code = ExitCode::FleetLost.number();
    let lost = matches!(&last, Some(ToShim::Failed(refused)) if refused.code == code);
    if let Some(last) = last {
        shim.say(&last, None);
    }
    drop(shim);
    let _ = writing.await;
    lost
}

/// What a shim says.
pub(super) type Frames = mpsc::Receiver<FromShim>;

/// Reads what a shim says, until it is gone.
pub(super) fn listen(
    mut from: impl AsyncRead + Unpin + Send + 'static,
) -> (Frames, JoinHandle<io::Result<()>>) {
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    let reading = tokio::spawn(async move {
        while let Some(frame) = FromShim::read(&mut from).await? {
            if frames.send(frame).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    (receiver, reading)
}

/// A call's place: where it runs, and under which names.
struct Placed {
    ticket: Ticket,
    binary: BinaryKey,
    /// The executable as the worker is told of it.
    program: OsText,
    /// Its sessions end with it.
    supply: Arc<Supply>,
    _underway: Underway,
}

/// Finds a worker and gets everything there. The error is the last word to the shim.
async fn place(call: &Call, site: &Site, settings: &FleetSettings) -> Result<Placed, ToShim> {
    let supply = site.supply(call, settings).await.map_err(|failure| failed(&failure))?;
    let underway = supply.collector.call();
    let triple = site.triple_of(call.program.as_path());
    let ticket =
        suited(&supply.pool, call, site, &triple).await.map_err(|why| nobody(&why, settings))?;
    let unusable = |error: ShipError| {
        let name = &ticket.member.connection.name;
        nobody(&[format!("could not use worker {name}: {error}")], settings)
    };
    let (binary, program) = if ticket.member.connection.embedded {
        let spec = supply.packer.in_place(call);
        ticket.member.prepare_in_place(&spec).await.map_err(unusable)?;
        (spec.key, spec.program)
    } else {
        let parcel = match site.holds(call.program.as_path()) {
            true => supply.packer.inside(call).await,
            false => supply.packer.outside(call).await,
        }
        .map_err(|failure| failed(&failure))?;
        supply.pool.prepare(&ticket.member, &parcel).await.map_err(unusable)?;
        (parcel.key, parcel.packed.spec.program.clone())
    };
    Ok(Placed { ticket, binary, program, supply, _underway: underway })
}

/// A place on a worker where the executable finds what it looks for. None, with the reasons, if
/// there won't be.
async fn suited(
    pool: &Pool,
    call: &Call,
    site: &Site,
    triple: &Triple,
) -> Result<Ticket, Vec<String>> {
    let (mut unsuited, mut reasons) = (BTreeSet::new(), Vec::new());
    loop {
        let ticket = match pool.ticket(triple, site.network(), &unsuited).await {
            Ok(ticket) => ticket,
            Err(troubles) => return Err([reasons, troubles].concat()),
        };
        let Connection { id, name, embedded: false, paths, .. } = &ticket.member.connection else {
            return Ok(ticket);
        };
        let (executable, paths) = (call.program.as_path().to_owned(), Arc::clone(paths));
        let looking = tokio::task::spawn_blocking(move || baked::obstacle(&executable, &paths));
        // Who can't look into it finds nothing against it.
        let Some((why, _)) = looking.await.ok().flatten() else { return Ok(ticket) };
        let program = call.program.as_path().display();
        reasons.push(format!("worker {name} does not take {program}: {why}"));
        unsuited.insert(*id);
    }
}

/// A signal that comes before anything runs; as good as one if the shim is gone.
async fn early_signal(frames: &mut Frames) -> AttemptSignal {
    loop {
        match frames.recv().await {
            Some(FromShim::Signal(signal)) => return signal,
            Some(FromShim::Stdin(_) | FromShim::Call(_)) => {}
            None => return AttemptSignal::Kill,
        }
    }
}

fn died_by(signal: AttemptSignal) -> ToShim {
    let signal = match signal {
        AttemptSignal::Hangup => Signal::SIGHUP,
        AttemptSignal::Interrupt => Signal::SIGINT,
        AttemptSignal::Quit => Signal::SIGQUIT,
        AttemptSignal::Terminate => Signal::SIGTERM,
        AttemptSignal::User1 => Signal::SIGUSR1,
        AttemptSignal::User2 => Signal::SIGUSR2,
        AttemptSignal::Kill => Signal::SIGKILL,
    };
    ToShim::Exited(Exit::Signal(signal as i32))
}

fn failed(failure: &Failure) -> ToShim {
    let (code, what, hint) = (failure.code.number(), failure.to_string(), failure.hint.clone());
    ToShim::Failed(Refused { code, what, hint })
}

/// No worker takes it: then it runs where the shim is, if the settings allow that.
fn nobody(why: &[String], settings: &FleetSettings) -> ToShim {
    let why = match why {
        [] => "no worker is usable".to_owned(),
        why => why.join("; "),
    };
    match settings.fallback {
        Fallback::Embedded => ToShim::RunHere(Some(why)),
        Fallback::Fail => ToShim::Failed(Refused {
            code: ExitCode::NoWorker.number(),
            what: why,
            hint: Some("start a worker, or set fleet.fallback = \"embedded\"".to_owned()),
        }),
    }
}

/// A call that has its place.
struct Running<'a> {
    call: &'a Call,
    placed: Placed,
    site: &'a Site,
    shim: &'a Shim,
}

/// Output that waits for room on its way to the shim.
struct Held {
    frame: ToShim,
    bytes: usize,
    taken: oneshot::Sender<()>,
}

impl Running<'_> {
    /// Follows the attempt. Answers the last word; none if the shim is gone.
    async fn run(mut self, frames: &mut Frames) -> Option<ToShim> {
        if let Err(refused) = self.lease().await {
            return Some(ToShim::Failed(refused));
        }
        let mut started = false;
        let mut early = Vec::new();
        let mut feeding = None;
        let mut held: Option<Held> = None;
        loop {
            let room = self.shim.room(held.as_ref().map_or(0, |held| held.bytes));
            tokio::select! {
                said = self.placed.ticket.said.recv(), if held.is_none() => match said? {
                    Said::Started => {
                        started = true;
                        early.drain(..).for_each(|signal| self.signal(signal));
                        self.shim.say(&ToShim::WantsStdin, None);
                    }
                    Said::Output(stream, data, taken) => {
                        let bytes = data.len();
                        let frame = match stream {
                            Stream::Stdout => ToShim::Stdout(data),
                            Stream::Stderr => ToShim::Stderr(data),
                        };
                        held = Some(Held { frame, bytes, taken });
                    }
                    Said::Finished { exit, notes, leak } => {
                        for note in notes.iter().filter(|_| exit != Exit::Code(0)) {
                            self.remark("note", note);
                        }
                        self.tell_left(leak);
                        return Some(ToShim::Exited(exit));
                    }
                    Said::Lost(why) => return Some(self.lost(&why)),
                },
                permit = room, if held.is_some() => {
                    if let Some(Held { frame, taken, .. }) = held.take() {
                        self.shim.say(&frame, permit);
                        let _ = taken.send(());
                    }
                }
                wanted = fed(&mut feeding) => {
                    feeding = None;
                    // If nobody reads it any more, the rest is not asked for.
                    if wanted {
                        self.shim.say(&ToShim::WantsStdin, None);
                    }
                }
                frame = frames.recv() => match frame {
                    Some(FromShim::Stdin(data)) => feeding = Some(self.feed(data)),
                    Some(FromShim::Signal(signal)) if started => self.signal(signal),
                    Some(FromShim::Signal(signal)) => early.push(signal),
                    Some(FromShim::Call(_)) => {}
                    None => {
                        drop(held);
                        self.abandon().await;
                        return None;
                    }
                },
            }
        }
    }

    /// Tells of what the executable left: processes, and files that did not come back.
    fn tell_left(&self, leak: Option<Leak>) {
        let program = self.site.name_of(self.call.program.as_path());
        let leak = leak.map(|leak| left_behind(&program, &leak));
        let files = self.placed.supply.collector.news();
        for text in leak.into_iter().chain(files).filter_map(|text| self.site.remark(text)) {
            self.remark("warning", &text);
        }
    }

    /// A line of our own among what the executable writes to standard error.
    fn remark(&self, kind: &str, text: &str) {
        let text = format!("cargo distest runner: {kind}: {}\n", shown::word(text));
        self.shim.say(&ToShim::Stderr(text.into()), None);
    }

    fn worker(&self) -> &str {
        &self.placed.ticket.member.connection.name
    }

    fn lost(&self, why: &str) -> ToShim {
        let program = self.call.program.as_path().display();
        ToShim::Failed(Refused {
            code: ExitCode::FleetLost.number(),
            what: format!("{program} came to no end on worker {}: {why}", self.worker()),
            hint: Some("run it again".to_owned()),
        })
    }

    async fn lease(&self) -> Result<(), Refused> {
        let Placed { ticket, binary, program, .. } = &self.placed;
        let connection = &ticket.member.connection;
        let mut env = environment::of_call(&self.call.env, connection.embedded, self.site.pass());
        for (name, value) in &mut env {
            if name.as_os_str() == DOCTEST_PATH_VARIABLE {
                value.clone_from(program);
            }
        }
        let attempt = AttemptSpec {
            id: ticket.attempt,
            binary: *binary,
            args: self.call.args.clone(),
            env,
            // The caller has clocks of its own.
            limits: Limits { slow_after: Duration::ZERO, ..Limits::default() },
            streams: Streams::LiveWithStdin,
            progress: false,
            unset: Vec::new(),
            network: self.site.network(),
            places: 1,
            label: self.label(),
        };
        let lease = Lease { attempts: vec![attempt] };
        let why = match connection.worker.lease(link::context(ANSWER), lease).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Refusal { message, .. })) => message,
            Err(error) => error.to_string(),
        };
        let program = self.call.program.as_path().display();
        let what = format!("could not run {program} on worker {}: {why}", self.worker());
        Err(Refused { code: ExitCode::FleetLost.number(), what, hint: None })
    }

    /// The executable and its arguments, as the user may know it.
    fn label(&self) -> String {
        let program = self.call.program.as_path().file_name().unwrap_or_default();
        let words = std::iter::once(program).chain(self.call.args.iter().map(OsText::as_os_str));
        let words: Vec<_> = words.take(LABEL_WORDS_MAX).map(|it| it.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Passes on a piece of standard input. Answers whether more is wanted.
    fn feed(&self, data: Bytes) -> oneshot::Receiver<bool> {
        let (fed, receiver) = oneshot::channel();
        let client = self.placed.ticket.member.connection.worker.clone();
        let attempt = self.placed.ticket.attempt;
        tokio::spawn(async move {
            let more = !data.is_empty();
            let chunk = StdinChunk { attempt, data };
            let taken = client.stdin(link::context(link::DEADLINE_MAX), chunk).await;
            let _ = fed.send(more && matches!(taken, Ok(Ok(()))));
        });
        receiver
    }

    /// Passes on a signal. If the attempt has ended meanwhile, that was the answer.
    fn signal(&self, signal: AttemptSignal) {
        let client = self.placed.ticket.member.connection.worker.clone();
        let attempt = self.placed.ticket.attempt;
        tokio::spawn(async move {
            let _ = client.signal(link::context(ANSWER), attempt, signal).await;
        });
    }

    /// Ends the attempt, and waits until it has ended.
    async fn abandon(&mut self) {
        let client = self.placed.ticket.member.connection.worker.clone();
        let attempt = self.placed.ticket.attempt;
        match client.revoke(link::context(ANSWER), vec![attempt]).await {
            Ok(revoked) if revoked.is_empty() => {}
            // It never started; or its session is gone, and it with it.
            Ok(_) | Err(_) => return,
        }
        self.signal(AttemptSignal::Kill);
        while let Some(said) = self.placed.ticket.said.recv().await {
            match said {
                Said::Started => self.signal(AttemptSignal::Kill),
                Said::Output(_, _, taken) => _ = taken.send(()),
                Said::Finished { .. } | Said::Lost(_) => return,
            }
        }
    }
}

/// When a piece of standard input has been taken: whether another is wanted.
async fn fed(feeding: &mut Option<oneshot::Receiver<bool>>) -> bool {
    match feeding {
        Some(feeding) => feeding.await.unwrap_or(false),
        None => future::pending().await,
    }
}

/// What outlived an executable, in words.
fn left_behind(program: &str, leak: &Leak) -> String {
    match &leak.processes[..] {
        [] => format!("{program} ended, and something else kept its output open"),
        processes => {
            let some = processes.iter().take(PROCESSES_TOLD_MAX).map(String::as_str);
            let more = match processes.len().saturating_sub(PROCESSES_TOLD_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let some = some.collect::<Vec<_>>().join(", ");
            format!("{program} left processes behind, which were ended: {some}{more}")
        }
    }
}

/// What is said to the shim, in order, written by a task of its own.
struct Shim {
    frames: mpsc::UnboundedSender<(Vec<u8>, Option<OwnedSemaphorePermit>)>,
    room: Arc<Semaphore>,
}

impl Shim {
    fn start(mut to: impl AsyncWrite + Unpin + Send + 'static) -> (Self, JoinHandle<()>) {
        let (frames, mut waiting) =
            mpsc::unbounded_channel::<(Vec<u8>, Option<OwnedSemaphorePermit>)>();
        let writing = tokio::spawn(async move {
            while let Some((frame, _permit)) = waiting.recv().await {
                // A shim that is gone is noticed where its frames are read.
                if to.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        (Self { frames, room: Arc::new(Semaphore::new(OUTPUT_BYTES_MAX)) }, writing)
    }

    /// Waits for room for so many bytes.
    fn room(&self, bytes: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + use<> {
        let room = Arc::clone(&self.room);
        let bytes = u32::try_from(bytes.min(OUTPUT_BYTES_MAX)).unwrap_or(u32::MAX);
        async move { room.acquire_many_owned(bytes).await.ok() }
    }

    fn say(&self, frame: &ToShim, permit: Option<OwnedSemaphorePermit>) {
        // Pieces of output are far shorter than a frame may be.
        if let Ok(frame) = frame.frame() {
            let _ = self.frames.send((frame, permit));
        }
    }
}
