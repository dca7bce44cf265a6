//! What client and worker say to each other: two tarpc services and their messages.
//!
//! [`Worker`] is served by the worker, [`Client`] by the client, both over one byte stream (see
//! [`crate::link`]). Messages travel as MessagePack maps with named fields: a field that the other
//! side's version lacks is ignored, one that it doesn't send takes its default. Methods and
//! variants are only ever appended, and used only where the version agreed in
//! [`crate::hello`] has them, because an unknown method ends the connection.
//!
//! Paths in messages are the *client's* absolute paths. Where they lie on the worker is the
//! worker's business ([`crate::sandbox`]).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

mod forward;
mod holding;
mod times;
mod upgrade;

pub use forward::{
    FORWARD_PIECES_MAX, FORWARDED_MAX, FORWARDS_MAX, Forward, ForwardedId, ForwardedPiece,
    SOCKET_PATH_BYTES_MAX,
};
pub use holding::{Challenge, PROOFS_MAX, PROVED_BYTES_MAX, Proof};
pub use times::{
    TIME_TEXT_BYTES_MAX, TIMES_BYTES_MAX, TIMES_MAX, TestTime, bounded as bounded_times,
};
pub use upgrade::{EXECUTABLE_BYTES_MAX, ExecutablePiece, Freed, UpgradeReply};

/// The most bytes of data in one [`BlobChunk`], [`OutputChunk`] or [`StdinChunk`].
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one file that is collected.
pub const COLLECTED_FILE_BYTES_MAX: u64 = 256 << 20;
/// Files that a client takes in one run. A worker that has more brings one more, so that the client
/// can tell.
pub const COLLECTED_FILES_MAX: usize = 10_000;
/// What travels of a folder's permissions in a [`TreeNode`]: its sticky bit, too, as in `/tmp`.
pub const FOLDER_MODE: u32 = 0o1777;
/// The most bytes of a test's stdout or stderr that travel inside [`Report::Finished`]; more goes
/// ahead of it as [`OutputChunk`]s.
pub const INLINE_OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// The descriptor on which a process tells of its progress, if [`AttemptSpec::progress`] says so.
pub const PROGRESS_DESCRIPTOR: i32 = 3;
/// The most bytes of one line of progress; more is cut off.
pub const PROGRESS_LINE_BYTES_MAX: usize = 16 * 1024;
/// The most bytes of progress of one attempt; what comes after is dropped.
pub const PROGRESS_BYTES_MAX: usize = 1024 * 1024;

/// A byte string of the operating system: a path, an argument, a variable. Needn't be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OsText(Bytes);

/// Names one run of one client, unique in practice: `20261122T101500Z-1a2b3c4d`.
pub type RunName = String;

/// One execution of a test case, unique within a run and never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AttemptId(pub u64);

/// A test binary within a session, chosen by the client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BinaryKey(pub u32);

/// A slot of a worker's session, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SlotId(pub u32);

/// Libraries that a worker looks for at a time.
pub const LIBRARIES_MAX: usize = 1000;
/// Bytes of their names, all together.
pub const LIBRARIES_BYTES_MAX: usize = 64 * 1024;

/// Served by the worker.
#[tarpc::service]
pub trait Worker {
    /// Heartbeat. A worker that hears nothing for [`crate::session::FENCE_AFTER`] ends the session.
    async fn ping() -> Pong;
    /// Opens the connection's only session. Everything below needs it.
    async fn open(spec: SessionSpec) -> Result<SessionReady, Refusal>;
    /// Which of these blobs the worker lacks, or has only from others: a client may use what it has
    /// sent or proved to hold.
    async fn missing(digests: Vec<Digest>) -> Result<Vec<Digest>, Refusal>;
    /// The next piece of a blob. Pieces of one blob come in order; blobs may interleave.
    async fn put(chunk: BlobChunk) -> Result<PutReply, Refusal>;
    /// Lays out the workspace files. All blobs it names must be there.
    async fn lay_tree(tree: TreeSpec) -> Result<(), Refusal>;
    /// Makes a test binary ready to run. All blobs it names must be there.
    async fn prepare(binary: BinarySpec) -> Result<(), Refusal>;
    /// Queues attempts. Each is answered by exactly one [`Report::Finished`] or [`Report::Lost`],
    /// unless it comes back from `revoke`.
    async fn lease(lease: Lease) -> Result<(), Refusal>;
    /// Takes back attempts that have not started; answers those that are taken back.
    async fn revoke(attempts: Vec<AttemptId>) -> Vec<AttemptId>;
    /// Ends what runs and drops what is queued. Dropped and killed attempts are reported.
    async fn stop(how: Stop) -> ();
    /// The next piece of a running attempt's standard input; an empty piece closes it.
    async fn stdin(chunk: StdinChunk) -> Result<(), Refusal>;
    /// Ends the session in order; the connection may be closed after the answer.
    async fn close() -> ();
    /// Sends a signal to a running attempt. One that has not started yet is refused.
    async fn signal(attempt: AttemptId, signal: AttemptSignal) -> Result<(), Refusal>;
    /// What goes on here. Needs no session. Since version 1.1.
    async fn status() -> Result<WorkerStatus, Refusal>;
    /// Finish what runs, take nothing more, and end. Needs no session. Since version 1.1.
    async fn drain() -> Result<(), Refusal>;
    /// A piece of a file of the worker's user, at most [`CHUNK_BYTES_MAX`] long. Needs no session,
    /// and the permission `copy`. Since version 1.1.
    async fn read_file(path: OsText, offset: u64) -> Result<FilePiece, Refusal>;
    /// The next piece of a file, which appears under its name with the last; one file at a time.
    /// Needs no session, and the permission `copy`. Since version 1.1.
    async fn write_file(piece: FilePiece) -> Result<(), Refusal>;
    /// What a proof that this client holds a blob is to be made with. This and `prove` only for
    /// workers that say so in their greeting.
    async fn challenge() -> Result<Challenge, Refusal>;
    /// Proves that this client holds blobs, at most [`PROOFS_MAX`] of
    /// [`PROVED_BYTES_MAX`] at once. Answers those that it
    /// needn't send; the others are not here, or were not proved.
    async fn prove(proofs: Vec<Proof>) -> Result<Vec<Digest>, Refusal>;
    /// The next page of what lies in a folder of the worker's user, after the name `after`. Needs
    /// no session, and the permission `copy`. Since version 1.1.
    async fn list_folder(path: OsText, after: OsText) -> Result<FolderPage, Refusal>;
    /// Makes the next thing below a folder; files come in pieces, one at a time. Needs no session,
    /// and the permission `copy`. Since version 1.1.
    async fn write_tree(piece: TreePiece) -> Result<(), Refusal>;
    /// Keeps what tests of the session's project took, for this client alone: at most
    /// [`TIMES_MAX`], more is dropped. Only for workers that know how many they keep:
    /// [`SessionReady::times_known`].
    async fn remember(times: Vec<TestTime>) -> Result<(), Refusal>;
    /// The next piece of an executable that the worker is to become, in order. With the last it is
    /// verified and tried; the worker then finishes what runs, and goes on as the new one. Needs no
    /// session, and the permission `admin`. Since version 1.1.
    async fn upgrade(piece: ExecutablePiece) -> Result<UpgradeReply, Refusal>;
    /// Removes all received files that no session uses. Needs no session, and the permission
    /// `admin`. Since version 1.1.
    async fn collect_garbage() -> Result<Freed, Refusal>;
    /// Which of these shared libraries, at most [`LIBRARIES_MAX`] with names of at most
    /// [`LIBRARIES_BYTES_MAX`], a test that needs them would not find among the worker's own. One call
    /// at a time; needs no session, and the permission `view`. Since version 1.1.
    async fn lacks_libraries(names: Vec<String>) -> Result<Vec<String>, Refusal>;
}

/// Served by the client.
#[tarpc::service]
pub trait Client {
    /// What happened, in order. The answer is the window: a worker has at most one `report` under
    /// way and gathers what happens meanwhile for the next.
    async fn report(reports: Vec<Report>) -> ();
    /// A piece of an attempt's output, in order per stream; answered when it has been taken.
    async fn output(chunk: OutputChunk) -> ();
    /// A piece of a blob that the client offered, at most [`CHUNK_BYTES_MAX`] long.
    async fn fetch(digest: Digest, offset: u64) -> Result<Bytes, Refusal>;
    /// The next piece of a file that tests created or changed, in order per file. Only for clients
    /// that asked for it by [`SessionSpec::collect`].
    async fn collect(piece: CollectedPiece) -> Result<(), Refusal>;
    /// Opens a connection to one of [`SessionSpec::forwards`]. This and what follows only for
    /// clients that declared some.
    async fn forward_open(connection: ForwardedId, forward: Forward) -> Result<(), Refusal>;
    /// Takes what an attempt wrote, in order per connection; answered when the service has taken
    /// it. At most [`FORWARD_PIECES_MAX`] of a connection are under way.
    async fn forward_write(piece: ForwardedPiece) -> Result<(), Refusal>;
    /// What the service writes next, at most [`CHUNK_BYTES_MAX`] bytes: answered when there is
    /// something; empty when it writes no more. At most one of a connection is under way.
    async fn forward_read(connection: ForwardedId) -> Result<Bytes, Refusal>;
    /// Ends a connection, in whatever state it is.
    async fn forward_close(connection: ForwardedId) -> ();
}

/// Answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pong {
    /// Attempts running now.
    pub running: u32,
    /// Attempts queued now.
    pub queued: u32,
    /// The machine is short of memory: one thing runs after the other.
    pub short_of_memory: bool,
}

/// A piece of a file of the worker's user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePiece {
    /// The worker's absolute path of it.
    pub path: OsText,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of it in earlier pieces.
    pub offset: u64,
    /// The next bytes, at most [`CHUNK_BYTES_MAX`].
    pub data: Bytes,
    /// No piece follows.
    pub last: bool,
}

/// A page of what lies in a folder, in order of name.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FolderPage {
    /// If not, the path leads to something else and there is nothing more to say.
    pub is_folder: bool,
    /// The folder's permission bits.
    pub mode: u32,
    /// What lies there, at most 1,000 of it.
    pub entries: Vec<FolderEntry>,
    /// Another page follows.
    pub more: bool,
}

/// Something that lies in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderEntry {
    /// Its name.
    pub name: OsText,
    /// What it is.
    pub node: FolderNode,
}

/// What lies in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FolderNode {
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
    },
    /// A file.
    File {
        /// Permission bits.
        mode: u32,
        /// In bytes.
        size: u64,
    },
    /// A symbolic link, not followed.
    Link {
        /// Its text.
        target: OsText,
    },
    /// A device, a socket or a pipe.
    Other {},
}

/// The next piece of a folder on its way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreePiece {
    /// The worker's absolute path of the folder.
    pub root: OsText,
    /// Relative to it; empty for the folder itself.
    pub path: OsText,
    /// What is to lie there.
    pub node: PieceNode,
}

/// A piece of what lies in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PieceNode {
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
        /// All that lies in it has come: it gets just these permissions.
        done: bool,
    },
    /// A symbolic link.
    Link {
        /// Its text.
        target: OsText,
    },
    /// A file's next bytes; it appears under its name with the last.
    File {
        /// Permission bits.
        mode: u32,
        /// Bytes of it in earlier pieces.
        offset: u64,
        /// At most [`CHUNK_BYTES_MAX`].
        data: Bytes,
        /// No piece follows.
        last: bool,
    },
}

/// What goes on at a worker.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Attempts that it runs at once.
    pub slots: u32,
    /// Those that run now.
    pub used: u32,
    /// It takes nothing more.
    pub draining: bool,
    /// Why it takes nothing for now; empty if it does.
    pub paused: String,
    /// The machine is short of memory: one thing runs after the other.
    pub short_of_memory: bool,
    /// Bytes of received files that it keeps.
    pub store_bytes: u64,
    /// The most that it keeps.
    pub store_bytes_max: u64,
    /// Why it does not recreate clients' paths better; empty if it can't be better.
    pub sandbox_reason: String,
    /// What to do about that.
    pub sandbox_hint: Option<String>,
    /// Its clock, in milliseconds since 1970; 0 if it doesn't say.
    pub clock_ms: u64,
    /// Files that it may have open; 0 if it doesn't say.
    pub descriptors_max: u64,
    /// Bytes that are free where it keeps received files, if it says.
    pub disk_free_bytes: Option<u64>,
    /// The first client that came is the only one that gets sessions: its sandboxes hide nothing.
    pub one_client: bool,
    /// Who has a session.
    pub sessions: Vec<SessionStatus>,
}

/// A session at a worker.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionStatus {
    /// What the worker calls its client.
    pub client: String,
    /// The run it serves.
    pub run: RunName,
    /// Attempts running now.
    pub running: u32,
    /// Attempts queued now.
    pub queued: u32,
}

/// What a client wants of its session.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionSpec {
    /// The run this session serves.
    pub run: RunName,
    /// Slots wanted at most; 0 takes all that the worker has.
    pub slots: u32,
    /// Number of the session's slot 0 within the whole run, for `NEXTEST_TEST_GLOBAL_SLOT`.
    pub slot_base: u32,
    /// Use the client's files where they lie. Only an embedded worker agrees.
    pub in_place: bool,
    /// Folders of the client whose contents are laid out on the worker, outermost first. Every
    /// path in this session lies in one of them or is the worker's own (`/usr/bin/git`).
    pub roots: Vec<OsText>,
    /// Environment of every process, over the worker's base. Paths below `roots` are translated,
    /// unless the worker recreates them.
    pub env: Vec<(OsText, OsText)>,
    /// Which attempts see what others wrote.
    pub writes: Writes,
    /// Remote hands: what runs is in no sandbox. Needs the permission `exec` in place of `run`.
    /// Since version 1.1.
    pub hands: bool,
    /// Patterns of files that are to come back when tests create or change them, see
    /// [`crate::globs`]. Relative ones start at each of `roots`.
    pub collect: Vec<String>,
    /// Services of the client's that attempts with a network of their own find where they are on
    /// the client: at most [`FORWARDS_MAX`]. A worker that can do this says so in its greeting.
    pub forwards: Vec<Forward>,
    /// What an attempt leaves that `collect` names comes back before its end is reported, not when
    /// no other attempt will add to it.
    pub collect_at_once: bool,
    /// Whose tests these are, for what a worker keeps of their times. Empty: nothing is kept.
    pub project: String,
    /// The client has no times of its own: it wants what the worker knows.
    pub lend_times: bool,
}

/// Which attempts of a slot share what they write into the client's tree and private folders,
/// where a sandbox discards it. Otherwise without meaning: all attempts share one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Writes {
    /// Attempts of one binary that follow each other in a slot.
    #[default]
    Binary,
    /// Those of one binary in one lease.
    Lease,
    /// None.
    Test,
}

/// A piece of a file that tests created or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedPiece {
    /// The client's path of it.
    pub path: OsText,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of it in earlier pieces; 0 begins it, anew if need be.
    pub offset: u64,
    /// The next bytes, at most [`CHUNK_BYTES_MAX`].
    pub data: Bytes,
    /// No piece follows.
    pub last: bool,
    /// If it has more than [`COLLECTED_FILE_BYTES_MAX`] bytes: how many. Then nothing of it is kept,
    /// and no piece follows, although this is not a last one.
    #[serde(default)]
    pub too_large: Option<u64>,
    /// With the first piece: the attempts that left or changed it here, as far as they are known,
    /// one after the other. The first and last ones, at most [`WRITERS_MAX`].
    #[serde(default)]
    pub writers: Vec<Writer>,
}

/// The most attempts that are named of one file.
pub const WRITERS_MAX: usize = 8;

/// An attempt that left or changed a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its [`AttemptSpec::label`].
    pub label: String,
    /// What the file held at its end, unless that was too long to be looked at.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// That began with all that was there before.
    #[serde(default)]
    pub adds: bool,
}

/// What the client gets.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionReady {
    /// Slots granted.
    pub slots: u32,
    /// How the worker recreates the client's paths in this session: the number of a
    /// [`crate::sandbox::level::Level`].
    pub sandbox_level: u32,
    /// Why not better; empty if it can't be.
    pub sandbox_reason: String,
    /// What to do about that.
    pub sandbox_hint: Option<String>,
    /// Tests of the client's project whose times are known here. None if this worker keeps none.
    pub times_known: Option<u32>,
    /// What they take, if the client wants to know.
    pub times: Vec<TestTime>,
}

/// A piece of a blob on its way to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobChunk {
    /// Which blob: the digest of its uncompressed bytes.
    pub digest: Digest,
    /// Uncompressed size in bytes: a bound that the worker enforces.
    pub size: u64,
    /// How `data` is to be read. The same in every piece of a blob.
    pub encoding: Encoding,
    /// The next bytes of the encoded blob, at most [`CHUNK_BYTES_MAX`].
    pub data: Bytes,
    /// No piece follows.
    pub last: bool,
}

/// How a blob's bytes are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// What became of a [`BlobChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutReply {
    /// Taken; go on.
    More,
    /// The blob is stored and verified. Also the answer to any piece of a blob that this client
    /// has sent already: stop sending it.
    Stored,
}

/// The workspace files of a run.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TreeSpec {
    /// Entries sorted by path, so that a folder comes before what is in it.
    pub entries: Vec<TreeEntry>,
}

/// One file, folder or link of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Absolute path on the client, below one of the session's roots.
    pub path: OsText,
    /// What lies there.
    pub node: TreeNode,
}

/// What a tree entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeNode {
    /// A folder with its permission bits.
    Folder {
        /// Permission bits, as in `0o755`.
        mode: u32,
    },
    /// A file.
    File {
        /// Contents.
        digest: Digest,
        /// Size in bytes.
        size: u64,
        /// Permission bits, as in `0o644`.
        mode: u32,
    },
    /// A symbolic link, not followed.
    Link {
        /// Its text, relative or absolute.
        target: OsText,
    },
}

/// A test binary and what it needs at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinarySpec {
    /// The client's name for it in this session.
    pub key: BinaryKey,
    /// As people know it: nextest's binary id.
    pub label: String,
    /// The executable.
    pub program: OsText,
    /// Working directory of its tests.
    pub cwd: OsText,
    /// Variables of this binary, over the session's. Paths below roots are translated.
    pub env: Vec<(OsText, OsText)>,
    /// The executable and its companions (built programs, libraries, `OUT_DIR`): [`TreeNode`]s at
    /// the paths where they lie on the client. Empty for an embedded worker.
    pub files: Vec<TreeEntry>,
    /// Folders that must exist and be writable (`CARGO_TARGET_TMPDIR`).
    #[serde(default)]
    pub writable: Vec<OsText>,
}

/// Attempts handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// In the order in which to start them.
    pub attempts: Vec<AttemptSpec>,
}

/// One process to run: a test case by itself, or a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptSpec {
    /// Its name in reports.
    pub id: AttemptId,
    /// Which prepared binary.
    pub binary: BinaryKey,
    /// Arguments.
    pub args: Vec<OsText>,
    /// Variables of this attempt, over the binary's.
    pub env: Vec<(OsText, OsText)>,
    /// When it is slow, and when it ends.
    pub limits: Limits,
    /// What becomes of its standard streams.
    #[serde(default)]
    pub streams: Streams,
    /// It does several things one after the other, and writes a line to descriptor
    /// [`PROGRESS_DESCRIPTOR`] when each is done. The lines are reported, and the clocks of
    /// [`Limits`] begin anew with each. While other clients wait for places, it is ended after
    /// [`crate::session::YIELD_AFTER`]: whoever wants to be interrupted nowhere leases one thing.
    #[serde(default)]
    pub progress: bool,
    /// Variables that it must not have, whoever set them.
    #[serde(default)]
    pub unset: Vec<OsText>,
    /// What of the network it sees. A worker that can't give it a network of its own says so in
    /// its greeting, and refuses a lease that asks for one.
    #[serde(default)]
    pub network: Network,
    /// Places on the worker that it takes, of whichever client's: one at least, all there are at
    /// most. For tests that need several processors, or nobody beside them.
    #[serde(default)]
    pub places: u32,
    /// As people know it: comes back with the files that it leaves.
    #[serde(default)]
    pub label: String,
}

/// What of the network an attempt sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// All that its machine has.
    #[default]
    Host,
    /// A loopback interface of its own, which no other attempt shares, and nothing else.
    Private,
}

/// How long each of an attempt's limits may be; longer ones count as this.
pub const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The clocks of one attempt, each at most [`LIMIT_MAX`]. All are the worker's, monotonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Report [`Report::Slow`] each time this long has passed.
    pub slow_after: Duration,
    /// SIGTERM after this long.
    pub timeout: Option<Duration>,
    /// SIGKILL this long after SIGTERM; zero kills at once.
    pub grace: Duration,
    /// How long after its exit an attempt's left-over processes and open output may end by
    /// themselves before they count as a leak.
    pub leak_timeout: Duration,
}

impl Limits {
    /// The same, none beyond [`LIMIT_MAX`].
    #[must_use]
    pub fn bounded(self) -> Self {
        let Self { slow_after, timeout, grace, leak_timeout } = self;
        Self {
            slow_after: slow_after.min(LIMIT_MAX),
            timeout: timeout.map(|timeout| timeout.min(LIMIT_MAX)),
            grace: grace.min(LIMIT_MAX),
            leak_timeout: leak_timeout.min(LIMIT_MAX),
        }
    }
}

impl Default for Limits {
    /// As cargo-nextest: slow after 60 s, never ended, grace 10 s, leak after 200 ms.
    fn default() -> Self {
        Self {
            slow_after: Duration::from_secs(60),
            timeout: None,
            grace: Duration::from_secs(10),
            leak_timeout: Duration::from_millis(200),
        }
    }
}

/// What becomes of an attempt's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Streams {
    /// Kept and sent when the attempt has ended. Standard input is empty.
    #[default]
    Capture,
    /// Output sent as it is written. Standard input is empty.
    Live,
    /// Output sent as it is written. Standard input comes from [`Worker::stdin`].
    LiveWithStdin,
}

/// A piece of standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdinChunk {
    /// For which attempt.
    pub attempt: AttemptId,
    /// At most [`CHUNK_BYTES_MAX`]; empty closes the stream.
    pub data: Bytes,
}

/// A signal for one attempt, by meaning: its number is the worker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptSignal {
    /// SIGHUP to its process group.
    Hangup,
    /// SIGINT to its process group.
    Interrupt,
    /// SIGQUIT to its process group.
    Quit,
    /// SIGTERM to its process group.
    Terminate,
    /// SIGUSR1 to its process group.
    User1,
    /// SIGUSR2 to its process group.
    User2,
    /// SIGKILL to all that it started.
    Kill,
}

/// How to end what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Drop what is queued; let what runs end.
    Drain,
    /// Drop what is queued; SIGTERM to what runs, SIGKILL after its grace.
    Terminate,
    /// Drop what is queued; SIGKILL to what runs.
    Kill,
}

/// What happened to an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Its process runs.
    Started {
        /// Which attempt.
        attempt: AttemptId,
        /// Where.
        slot: SlotId,
    },
    /// It has run for another [`Limits::slow_after`].
    Slow {
        /// Which attempt.
        attempt: AttemptId,
        /// Since it started, or since its last line of progress.
        elapsed: Duration,
    },
    /// It ended, and so did everything it had started.
    Finished(Finished),
    /// It came to no end that says anything about the test: the worker's or our fault, or a stop.
    Lost {
        /// Which attempt.
        attempt: AttemptId,
        /// Why.
        reason: LossReason,
        /// In words, with what to do.
        detail: String,
    },
    /// It has written lines to [`PROGRESS_DESCRIPTOR`]: in order, and all before its end is
    /// reported.
    Progress {
        /// Which attempt.
        attempt: AttemptId,
        /// At least one.
        lines: Vec<ProgressLine>,
    },
    /// The worker takes nothing more: what has not started is for the client to take back, what
    /// runs ends by itself. Since version 1.1.
    Draining {},
}

/// A line of progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressLine {
    /// Without its newline; at most [`PROGRESS_LINE_BYTES_MAX`] bytes.
    pub text: String,
    /// When it was read, since the attempt was about to start.
    pub at: Duration,
}

/// Why an attempt came to no end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossReason {
    /// It was stopped before it started.
    Dropped,
    /// It was killed by [`Stop`], or by the session's end.
    Stopped,
    /// The process could not be started.
    CouldNotStart,
    /// The helper process that started it died.
    HelperDied,
    /// The worker ran out of disk, memory or descriptors.
    OutOfResources,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Which attempt.
    pub attempt: AttemptId,
    /// How its process ended.
    pub exit: Exit,
    /// It was ended because [`Limits::timeout`] had passed.
    pub timed_out: bool,
    /// From start to the exit of its process.
    pub duration: Duration,
    /// What it left behind, if anything; all of it has been killed.
    pub leak: Option<Leak>,
    /// The kernel ended it for lack of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Processor time and memory.
    #[serde(default)]
    pub usage: Usage,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
    /// What it met that was not of its own making: a forwarded service that refused it. At most
    /// [`NOTES_MAX`], of at most [`NOTE_BYTES_MAX`] each.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Finished {
    /// What it met, within the bounds: a worker may say anything.
    pub fn take_notes(&mut self) -> Vec<String> {
        let fits = |note: &String| !note.is_empty() && note.len() <= NOTE_BYTES_MAX;
        std::mem::take(&mut self.notes).into_iter().filter(fits).take(NOTES_MAX).collect()
    }
}

/// The most notes on one attempt.
pub const NOTES_MAX: usize = 4;
/// The longest of them, in bytes.
pub const NOTE_BYTES_MAX: usize = 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What outlived an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Leak {
    /// Its processes: `sleep (pid 4711)`. Empty if only an output stream stayed open.
    pub processes: Vec<String>,
    /// Something outside the attempt's processes kept its output open.
    pub output_open: bool,
}

/// What an attempt consumed, with all its reaped descendants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// Largest resident set of one process, in bytes.
    pub memory_bytes: u64,
}

/// An output stream of a finished attempt.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    /// All of it if `total` fits [`INLINE_OUTPUT_BYTES_MAX`]; else empty, and sent as
    /// [`OutputChunk`]s before the report.
    pub inline: Bytes,
    /// Bytes that the attempt wrote.
    pub total: u64,
    /// Bytes that were written but not kept, because a bound was reached.
    pub dropped: u64,
}

/// A piece of an attempt's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputChunk {
    /// Whose.
    pub attempt: AttemptId,
    /// Which stream.
    pub stream: Stream,
    /// The next bytes, at most [`CHUNK_BYTES_MAX`].
    pub data: Bytes,
}

/// An output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A request that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of obstacle.
    pub kind: RefusalKind,
    /// What we were doing, to what, and why it failed.
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub hint: Option<String>,
}

/// Kinds of obstacle that a client treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The request makes no sense: a bug, or a hostile peer.
    Invalid,
    /// A blob is needed that isn't there (any more): send it again.
    MissingBlob,
    /// A blob's bytes do not have its digest: sent again once, then told.
    Corrupt,
    /// No space, memory or descriptors: use another worker.
    OutOfResources,
    /// The worker can't run this here, whatever is sent.
    Incompatible,
    /// Not permitted for this key.
    Forbidden,
    /// The session is over.
    Closed,
}

impl Refusal {
    /// A refusal without hint.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl OsText {
    /// As a string of the operating system.
    #[cfg(unix)]
    pub fn as_os_str(&self) -> &OsStr {
        std::os::unix::ffi::OsStrExt::from_bytes(&self.0)
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(self.as_os_str())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for OsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_os_str().fmt(f)
    }
}

#[cfg(unix)]
impl From<&OsStr> for OsText {
    fn from(text: &OsStr) -> Self {
        Self(Bytes::copy_from_slice(std::os::unix::ffi::OsStrExt::as_bytes(text)))
    }
}

#[cfg(unix)]
impl From<OsString> for OsText {
    fn from(text: OsString) -> Self {
        Self(std::os::unix::ffi::OsStringExt::into_vec(text).into())
    }
}

impl From<&str> for OsText {
    fn from(text: &str) -> Self {
        OsStr::new(text).into()
    }
}

impl From<String> for OsText {
    fn from(text: String) -> Self {
        OsString::from(text).into()
    }
}

impl From<&Path> for OsText {
    fn from(path: &Path) -> Self {
        path.as_os_str().into()
    }
}

impl From<PathBuf> for OsText {
    fn from(path: PathBuf) -> Self {
        path.into_os_string().into()
    }
}

/// Labels of a worker: `gpu=none`.
pub type Labels = BTreeMap<String, String>;
