//! What worker and zygote say to each other over their SOCK_SEQPACKET socket.
//!
//! Both ends are the same executable, so there is no version. A request begins with a byte that
//! says where its MessagePack lies: behind it, or, when it is long, in a memfd that comes first
//! among the descriptors. An answer is MessagePack and short. The end of the stream is the request
//! to kill everything and to leave.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::protocol::{AttemptId, AttemptSignal, Exit, FORWARDS_MAX, Forward, Network, Usage};
use crate::sandbox::enclosure::{Enclosure, Obstacle};

/// The longest request that travels in the socket itself; longer ones travel in a memfd.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// The longest answer: room for the names of a leak's processes.
pub(crate) const ANSWER_BYTES_MAX: usize = 32 * 1024;
/// The most descriptors that come with one request.
const DESCRIPTORS_MAX: usize = 16;
/// The most that come with one answer: a port is listened at by two protocols.
const ANSWER_DESCRIPTORS_MAX: usize = 2 * FORWARDS_MAX;

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// Worker to zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a process. The descriptors that come with it become its descriptors 0, 1, 2 and on.
    ///
    /// Answered by [`Answer::Spawned`] and later [`Answer::Exited`], or [`Answer::CouldNotSpawn`].
    Spawn(Box<Spawn>),
    /// SIGTERM to the attempt's process group, if it still runs.
    Terminate(AttemptId),
    /// SIGKILL to all that the attempt started, if it still runs or something is left of it.
    Kill(AttemptId),
    /// Enter a sandbox, for good. Only before the first `Spawn`.
    ///
    /// Answered by [`Answer::Entered`], which brings a descriptor of the sandbox's written layer, or
    /// by [`Answer::CouldNotEnter`], after which the zygote leaves.
    Enter(Box<Enclosure>),
    /// A signal to the attempt's process group, if it still runs.
    Signal(AttemptId, AttemptSignal),
    /// What comes with it says until when attempts may run: see [`super::deadline`]. Not answered.
    Deadline,
    /// Show that you live. Answered by [`Answer::Alive`].
    AreYouAlive,
    /// Leave the network for one of your own, as each attempt does that asks for it.
    ///
    /// Answered by [`Answer::Entered`] or by [`Answer::CouldNotEnter`], after which the zygote
    /// leaves.
    TryNetwork,
}

/// What to start. Texts end in NUL, so that they can be handed to the kernel as they lie.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spawn {
    pub(crate) attempt: AttemptId,
    pub(crate) leak_timeout: Duration,
    pub(crate) program: Bytes,
    pub(crate) cwd: Bytes,
    /// `program\0first\0second\0`
    pub(crate) args: Bytes,
    /// `NAME=value\0OTHER=value\0`
    pub(crate) env: Bytes,
    /// A zygote that has started something in a private network can't go back to the host's.
    pub(crate) network: Network,
    /// Where it finds services of the client's, in a network of its own.
    pub(crate) forwards: Vec<Forward>,
    /// None of its threads interrupts what runs when it wakes.
    pub(crate) patient: bool,
}

/// Zygote to worker.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The process runs, as leader of its own process group. Its number is told if it is one of
    /// the worker's own namespace. A listening socket comes with it for each of `forwards`, which
    /// says by its place in the request where it listens.
    Spawned { pid: Option<i32>, forwards: Vec<u16> },
    /// There is no process.
    CouldNotSpawn { step: SpawnStep, errno: i32 },
    /// The process has ended and so has all that it started.
    Exited(Exited),
    /// Nothing is wrong here.
    Alive,
    /// What is spawned from now on is in the sandbox.
    Entered,
    /// There is no sandbox.
    CouldNotEnter(Obstacle),
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SpawnStep {
    /// Reading the request and its descriptors.
    Receive,
    /// Entering the working directory.
    ChangeFolder,
    /// Starting the program.
    Execute,
    /// Making a network of its own.
    Network,
    /// Listening where it finds the client's services.
    Forward,
    /// Keeping it from signalling others.
    Fence,
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exited {
    pub(crate) exit: Exit,
    /// From just before the process was started until its end was seen.
    pub(crate) duration: Duration,
    pub(crate) usage: Usage,
    /// `name (pid N)` of each process that was still there after the leak timeout.
    pub(crate) left: Vec<String>,
    /// The sandbox's room for writes is nearly used up, or the attempt changed its own executable:
    /// the next attempt had better get another.
    pub(crate) spent: bool,
}

/// Appends `text` and a NUL. An error names a text that holds one itself.
pub(crate) fn push_text(list: &mut Vec<u8>, parts: &[&OsStr]) -> io::Result<()> {
    for part in parts {
        if part.as_bytes().contains(&0) {
            let message = format!("{part:?} holds a NUL byte, which no process can be given");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        list.extend_from_slice(part.as_bytes());
    }
    list.push(0);
    Ok(())
}

/// The texts of a list made by [`push_text`].
pub(crate) fn texts(list: &[u8]) -> Vec<&CStr> {
    list.split_inclusive(|byte| *byte == 0)
        .filter_map(|text| CStr::from_bytes_with_nul(text).ok())
        .collect()
}

/// Encodes a message.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec(message).map_err(io::Error::other)
}

/// Decodes a message.
pub(crate) fn decode<'a, T: Deserialize<'a>>(data: &'a [u8]) -> io::Result<T> {
    rmp_serde::from_slice(data).map_err(io::Error::other)
}

/// Sends an encoded request with descriptors. [`io::ErrorKind::WouldBlock`] if the other end is
/// behind and `socket` doesn't block.
pub(crate) fn send_request(
    socket: BorrowedFd<'_>,
    request: &[u8],
    descriptors: &[RawFd],
) -> io::Result<()> {
    if request.len() <= INLINE_BYTES_MAX {
        return send_parts(socket, &[IoSlice::new(&[INLINE]), IoSlice::new(request)], descriptors);
    }
    let mut memory = File::from(memfd_create(c"distest request", MFdFlags::MFD_CLOEXEC)?);
    memory.write_all(request)?;
    let with_memory: Vec<RawFd> = [&[memory.as_raw_fd()], descriptors].concat();
    send_parts(socket, &[IoSlice::new(&[IN_MEMFD])], &with_memory)
}

fn send_parts(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[RawFd],
) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Sends an encoded answer with descriptors.
pub(crate) fn send_answer(
    socket: BorrowedFd<'_>,
    answer: &[u8],
    descriptors: &[RawFd],
) -> io::Result<()> {
    send_parts(socket, &[IoSlice::new(answer)], descriptors)
}

/// Takes the next answer, without waiting if `socket` doesn't: its length in `buffer`, 0 at the end
/// of the stream, and the descriptors that came with it.
pub(crate) fn receive_answer(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; ANSWER_DESCRIPTORS_MAX]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let descriptors = message.cmsgs().into_iter().flatten().flat_map(own).collect();
    // The kernel leaves out the descriptors for which this process has no room.
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMFILE.into());
    }
    Ok((message.bytes, descriptors))
}

/// What [`Inbox::receive`] found.
pub(crate) enum Received {
    /// The other end is closed.
    End,
    /// Nothing is there now.
    Nothing,
    /// A request and the descriptors that came with it.
    Request(Request, Vec<OwnedFd>),
    /// A request that could not be read.
    Broken(Errno),
}

/// The zygote's reusable buffers.
pub(crate) struct Inbox {
    data: Vec<u8>,
    control: Vec<u8>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        Self { data: vec![0; INLINE_BYTES_MAX + 1], control }
    }

    /// Takes the next request, without waiting.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> Received {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let mut parts = [IoSliceMut::new(&mut self.data)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut self.control), flags);
        let (length, descriptors, truncated) = match message {
            Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
            Err(_) => return Received::End,
            Ok(message) => {
                let descriptors: Vec<OwnedFd> =
                    message.cmsgs().into_iter().flatten().flat_map(own).collect();
                (message.bytes, descriptors, message.flags.contains(MsgFlags::MSG_CTRUNC))
            }
        };
        if length == 0 {
            return Received::End;
        }
        // The kernel leaves out the descriptors for which this process has no room.
        if truncated {
            return Received::Broken(Errno::EMFILE);
        }
        read_request(&self.data[..length], descriptors)
            .unwrap_or_else(|error| Received::Broken(errno_of(&error)))
    }
}

fn read_request(data: &[u8], mut descriptors: Vec<OwnedFd>) -> io::Result<Received> {
    if data[0] == INLINE {
        return Ok(Received::Request(decode(&data[1..])?, descriptors));
    }
    if descriptors.is_empty() {
        return Err(Errno::EBADMSG.into());
    }
    let memory = File::from(descriptors.remove(0));
    let length = usize::try_from(memory.metadata()?.len()).map_err(io::Error::other)?;
    let mut long = vec![0; length];
    memory.read_exact_at(&mut long, 0)?;
    Ok(Received::Request(decode(&long)?, descriptors))
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EBADMSG, Errno::from_raw)
}

#[expect(unsafe_code, reason = "SCM_RIGHTS hands over bare numbers")]
fn own(message: ControlMessageOwned) -> Vec<OwnedFd> {
    let ControlMessageOwned::ScmRights(numbers) = message else { return Vec::new() };
    // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
    numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    /// Sends a spawn request with `env_bytes` of environment and one descriptor, and takes it in.
    fn check_round_trip(env_bytes: usize) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let mut env = Vec::new();
        let value = OsString::from("v".repeat(env_bytes));
        push_text(&mut env, &[OsStr::new("NAME"), OsStr::new("="), &value]).unwrap();
        let request = Request::Spawn(Box::new(Spawn {
            attempt: AttemptId(7),
            leak_timeout: Duration::from_millis(200),
            program: Bytes::from_static(b"/bin/true\0"),
            cwd: Bytes::from_static(b"/\0"),
            args: Bytes::from_static(b"true\0\0--x\0"),
            network: Network::Host,
            forwards: Vec::new(),
            patient: false,
            env: env.into(),
        }));
        let descriptor = File::open("/dev/null").unwrap();
        let data = encode(&request).unwrap();
        send_request(ours.as_fd(), &data, &[descriptor.as_raw_fd()]).unwrap();
        drop(ours);
        let mut inbox = Inbox::new();
        let Received::Request(Request::Spawn(spawn), descriptors) = inbox.receive(theirs.as_fd())
        else {
            panic!("no request arrived");
        };
        assert_eq!(descriptors.len(), 1);
        assert_eq!(texts(&spawn.args), [c"true", c"", c"--x"]);
        assert_eq!(texts(&spawn.env)[0].to_bytes().len(), "NAME=".len() + env_bytes);
        assert!(matches!(inbox.receive(theirs.as_fd()), Received::End));
    }

    #[test]
    fn short_requests_travel_in_the_socket() {
        check_round_trip(100);
    }

    #[test]
    fn long_requests_travel_beside_it() {
        check_round_trip(700_000);
    }

    #[test]
    fn a_text_with_nul_is_refused() {
        let error = push_text(&mut Vec::new(), &[OsStr::new("a\0b")]).unwrap_err();
        assert!(error.to_string().contains("NUL"));
    }
}
