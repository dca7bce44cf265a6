//! Slots: starts attempts through zygotes, watches them, gathers their output.
//!
//! [`Slots`] is a handful of tasks, one per slot, each with a [zygote](crate::zygote) of its own.
//! They carry out [`SlotCommand`]s and tell what happens as [`SlotEvent`]s; they decide nothing.
//! When an attempt is slow and when it is to be ended is the session's business: no clock here
//! ends a test. What goes wrong between the worker and its zygote is told apart from what a test
//! does: it is never a test's failure.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::output::Capture;
use crate::protocol::{
    AttemptId, AttemptSignal, Exit, Forward, Leak, LossReason, Network, ProgressLine, SlotId,
    Stream, Streams, Usage,
};
use crate::sandbox::changes::Written;
use crate::sandbox::enclosure::Enclosure;
use crate::sandbox::left::{Left, Wanted};
use crate::zygote::ZygoteProgram;

pub use self::variables::{Environment, Variables};
pub use crate::zygote::deadline::Deadline;

mod helper;
mod progress;
mod pump;
mod request;
mod slot;
mod variables;

/// How many times in a row a slot's zygote may die before the slot is given up.
pub const HELPER_DEATHS_MAX: u32 = 5;

/// What slots need to know.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    /// An existing folder for output that is too long for memory.
    pub scratch: PathBuf,
    /// How to start the helper processes.
    pub zygote: ZygoteProgram,
    /// The sandbox that attempts run in.
    pub enclosure: Option<Arc<Enclosure>>,
    /// Files that are looked for when an attempt in a sandbox has ended.
    pub wanted: Option<Arc<Wanted>>,
    /// Until when attempts may run. Slots in which they run on lose their zygotes then.
    pub deadline: Arc<Deadline>,
}

/// One process to start, in a slot that is ready.
#[derive(Clone, Debug)]
pub struct SpawnRequest {
    /// Its name in events.
    pub attempt: AttemptId,
    /// The executable's absolute path.
    pub program: PathBuf,
    /// Arguments after the program's name.
    pub args: Vec<OsString>,
    /// The whole environment; nothing is inherited.
    pub env: Variables,
    /// Absolute path of the working directory.
    pub cwd: PathBuf,
    /// What becomes of its standard streams.
    pub streams: Streams,
    /// It gets a pipe as descriptor [`crate::protocol::PROGRESS_DESCRIPTOR`].
    pub progress: bool,
    /// How long what it leaves behind may take to end by itself.
    pub leak_timeout: Duration,
    /// Attempts of a slot that follow each other with the same number share one sandbox, and see
    /// what each other wrote. What an attempt needs must have been laid out before the first of
    /// them. Without meaning where there is no sandbox.
    pub layer: u64,
    /// What of the network it sees. Where one that sees the machine's follows one that had its
    /// own, it gets another sandbox, too.
    pub network: Network,
    /// Services that it finds in a network of its own. Unix sockets only if they are among those
    /// of the sandbox ([`Enclosure::sockets`]), and none where there is no sandbox.
    pub forwards: Vec<Forward>,
}

/// A socket that listens where an attempt looks for a service.
#[derive(Debug)]
pub struct Listener {
    /// Which service.
    pub forward: Forward,
    /// In the attempt's network or sandbox, whoever holds it.
    pub socket: OwnedFd,
}

/// What a slot is told to do.
#[derive(Debug)]
pub enum SlotCommand {
    /// Start a process. Answered by [`SlotEvent::Spawned`] and later [`SlotEvent::Exited`], or by
    /// [`SlotEvent::CouldNotSpawn`], or by a [`SlotEvent::HelperDied`] that names the attempt; one
    /// that doesn't has not taken it in yet, and the slot's next zygote will.
    Spawn(Box<SpawnRequest>),
    /// SIGTERM to the attempt's process group. Answered by [`SlotEvent::Exited`], if it obeys.
    Terminate,
    /// SIGKILL to all that the attempt started. Answered by [`SlotEvent::Exited`].
    Kill,
    /// A signal to this attempt, if it still runs. Not answered.
    Signal(AttemptId, AttemptSignal),
    /// The next piece of standard input; an empty one closes it. Answered by
    /// [`SlotEvent::StdinTaken`] or [`SlotEvent::Exited`].
    Stdin(Bytes),
    /// Kill everything and be no more. Not answered: a slot that ends says nothing.
    End,
}

/// What happened in a slot.
#[derive(Debug)]
pub enum SlotEvent {
    /// The slot can take a [`SlotCommand::Spawn`]: said at its start and after each
    /// [`SlotEvent::HelperDied`] with which nothing waits that it was given. After [`SlotEvent::CouldNotSpawn`] and [`SlotEvent::Exited`] it
    /// goes without saying.
    Ready {
        /// Where.
        slot: SlotId,
    },
    /// The attempt's process runs.
    Spawned {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
        /// Where it looks for what [`SpawnRequest::forwards`] names. To be closed when it ends.
        listeners: Vec<Listener>,
    },
    /// The attempt's process could not be started.
    CouldNotSpawn {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
        /// [`LossReason::CouldNotStart`] or [`LossReason::OutOfResources`].
        reason: LossReason,
        /// In words.
        detail: String,
    },
    /// The attempt wrote something; only with live streams. In order per stream, and all before
    /// [`SlotEvent::Exited`]. An attempt whose events are not taken waits in its write.
    Output {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
        /// Where to.
        stream: Stream,
        /// At most [`crate::protocol::CHUNK_BYTES_MAX`] bytes.
        data: Bytes,
    },
    /// The attempt has written lines to its progress pipe. In order, and all before
    /// [`SlotEvent::Exited`].
    Progress {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
        /// At least one.
        lines: Vec<ProgressLine>,
    },
    /// A [`SlotCommand::Stdin`] has been written, or nobody reads it any more.
    StdinTaken {
        /// Where.
        slot: SlotId,
        /// Which.
        attempt: AttemptId,
    },
    /// The attempt and all that it started have ended.
    Exited(Box<SlotExit>),
    /// The slot's zygote died or stopped answering, and what is known of its attempt has been
    /// killed: our loss. The slot starts another; answered by [`SlotEvent::Ready`] or
    /// [`SlotEvent::Gone`].
    HelperDied {
        /// Where.
        slot: SlotId,
        /// What was running or about to.
        attempt: Option<AttemptId>,
        /// In words.
        detail: String,
    },
    /// The slot has no zygote and won't get one: it died [`HELPER_DEATHS_MAX`] times in a row. An
    /// attempt that it was given and that is unanswered is lost.
    Gone {
        /// Where.
        slot: SlotId,
        /// In words, with what to do.
        detail: String,
    },
}

/// How an attempt ended.
#[derive(Debug)]
pub struct SlotExit {
    /// Where.
    pub slot: SlotId,
    /// Which.
    pub attempt: AttemptId,
    /// How its process ended.
    pub exit: Exit,
    /// From its start until then, by the zygote's monotonic clock.
    pub duration: Duration,
    /// What it consumed.
    pub usage: Usage,
    /// What it left behind; all of it has been killed.
    pub leak: Option<Leak>,
    /// What it and those before it in the same sandbox wrote into the client's tree.
    pub written: Option<Arc<Written>>,
    /// The files among that which are wanted, and which it left or changed.
    pub left: Vec<Left>,
    /// What it wrote to standard output. Live streams are counted, not kept.
    pub stdout: Capture,
    /// What it wrote to standard error. Live streams are counted, not kept.
    pub stderr: Capture,
}

/// The slots of a worker's session. Dropping them kills everything that runs in them, as
/// [`Slots::end`] does, but without waiting for it.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Slot>,
    /// Slots end when this is closed.
    alive: watch::Sender<()>,
}

#[derive(Debug)]
struct Slot {
    commands: mpsc::UnboundedSender<SlotCommand>,
    task: JoinHandle<()>,
}

impl Slots {
    /// Starts `count` slots, on the current tokio runtime. The zygote of each starts with its first
    /// attempt.
    ///
    /// Each says [`SlotEvent::Ready`], and perhaps [`SlotEvent::Gone`] in the end. A slot whose events are
    /// not taken stops; it can still be ended.
    pub fn start(count: u32, options: ExecutorOptions, events: mpsc::Sender<SlotEvent>) -> Self {
        let (alive, ending) = watch::channel(());
        let scratch: Arc<Path> = options.scratch.into();
        let slots = (0..count)
            .map(|number| {
                let (commands, receiver) = mpsc::unbounded_channel();
                let task = tokio::spawn(slot::run(
                    slot::Place {
                        slot: SlotId(number),
                        events: events.clone(),
                        scratch: Arc::clone(&scratch),
                        zygote: options.zygote.clone(),
                        enclosure: options.enclosure.clone(),
                        wanted: options.wanted.clone(),
                        deadline: Arc::clone(&options.deadline),
                        nothing: OnceLock::new(),
                    },
                    receiver,
                    ending.clone(),
                ));
                Slot { commands, task }
            })
            .collect();
        Self { slots, alive }
    }

    /// Tells a slot what to do. A slot that is gone or doesn't exist does nothing.
    pub fn command(&self, slot: SlotId, command: SlotCommand) {
        if let Some(slot) = self.slots.get(slot.0 as usize) {
            let _ = slot.commands.send(command);
        }
    }

    /// Kills everything that runs and waits until it and the zygotes are gone. No event follows,
    /// taken or not.
    pub async fn end(self) {
        drop(self.alive);
        for slot in self.slots {
            let _ = slot.task.await;
        }
    }
}
