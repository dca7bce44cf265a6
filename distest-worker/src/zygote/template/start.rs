//! Starting a copy of a template: what it is told, and what it does to itself before it becomes
//! the program.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::unistd::Pid;

use super::super::launch::Start;
use super::code::{FIRST_RECEIVED, GO, SOCKET, Step};
use super::plant::Template;

/// The most bytes of steps, arguments, environment and folder together; more are executed as ever.
/// They lie on the stack, which is so much smaller for the program.
pub(super) const BODY_BYTES_MAX: usize = 32 * 1024;
/// How long a copy may take for its steps. Less than the worker's patience with this process, and
/// longer than they take anywhere but where something stopped or killed one of the two.
const STEPS_PATIENCE_MS: u16 = 3_000;
/// `struct prctl_mm_map` in words: eleven addresses, that of the auxiliary vector, and two halves.
const MAP_WORDS: usize = 13;
const WORD_BYTES: usize = 8;
/// Of the stack at a program's entry (System V ABI).
const STACK_ALIGNMENT: usize = 16;

/// What came of a start.
pub(super) enum Started {
    Process(Pid),
    /// It doesn't fit, or the system has no room; another may do.
    NotNow,
    /// A step failed, as it would again.
    Refused,
    /// Nothing is heard of template or copy, of which there may be one.
    Silent,
    /// The template has ended.
    Gone,
}

/// Where the kernel believes a process's parts to be, which decides what `/proc` shows of it.
pub(super) struct MemoryMap {
    code: [u64; 2],
    data: [u64; 2],
    heap: [u64; 2],
    stack: u64,
}

impl MemoryMap {
    /// From `/proc/PID/stat` (proc_pid_stat(5)), where the fields behind the name begin at the third.
    pub(super) fn read(pid: Pid, brk: u64) -> nix::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| Errno::ENOTSUP)?;
        let fields: Vec<_> =
            text.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
        let field = |number: usize| {
            let value = fields.get(number - 3).and_then(|field| field.parse().ok());
            // 0: not for us to see.
            value.filter(|value| *value != 0).ok_or(Errno::ENOTSUP)
        };
        Ok(Self {
            code: [field(26)?, field(27)?],
            data: [field(45)?, field(46)?],
            heap: [field(47)?, brk],
            stack: field(28)?,
        })
    }

    /// As the kernel takes it.
    fn words(&self, args: [u64; 2], env: [u64; 2]) -> [u64; MAP_WORDS] {
        let Self { code, data, heap, stack } = self;
        // The auxiliary vector stays, of no bytes, and so does the executable, of no number.
        let keep = u64::from(u32::MAX) << 32;
        [
            code[0], code[1], data[0], data[1], heap[0], heap[1], *stack, args[0], args[1], env[0],
            env[1], 0, keep,
        ]
    }
}

impl Template {
    /// Makes a process of it that becomes the program.
    pub(super) fn start(&self, start: &Start<'_>) -> Started {
        let descriptors: Vec<RawFd> =
            start.descriptors.iter().chain(start.fence).map(AsRawFd::as_raw_fd).collect();
        let Some(told) = self.tell(start) else { return Started::NotNow };
        let parts = [IoSlice::new(&told.env), IoSlice::new(&told.body)];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &rights, flags, None) {
            Ok(_) => {}
            Err(Errno::EMSGSIZE) => return Started::NotNow,
            Err(_) => return Started::Gone,
        }
        receive_process(&self.socket)
    }

    /// None: it doesn't fit.
    fn tell(&self, start: &Start<'_>) -> Option<Told> {
        let (args, env, cwd) = (&start.spawn.args, &start.spawn.env, &start.spawn.cwd);
        let (args_count, env_count) = (count_texts(args), start.env.len());
        let steps_count =
            start.descriptors.len() + OTHER_STEPS + usize::from(start.fence.is_some());
        let map_at = steps_count * size_of::<Step>();
        let stack_at = (map_at + MAP_WORDS * WORD_BYTES).next_multiple_of(STACK_ALIGNMENT);
        let args_at = stack_at + (1 + args_count + 1) * WORD_BYTES;
        let env_at = args_at + args.len();
        let cwd_at = env_at + env.len();
        let end = cwd_at + cwd.len();
        if end > BODY_BYTES_MAX {
            return None;
        }
        let address = |offset: usize| self.body + offset as u64;
        let mut body = Vec::with_capacity(end);
        for step in self.steps(start, address(map_at), address(cwd_at), address(stack_at)) {
            put(&mut body, &[step.number.cast_unsigned()]);
            put(&mut body, &step.arguments);
        }
        debug_assert_eq!(body.len(), map_at, "as many steps as were counted");
        let spans = [[args_at, env_at], [env_at, cwd_at]].map(|span| span.map(address));
        put(&mut body, &self.map.words(spans[0], spans[1]));
        body.resize(stack_at, 0);
        put(&mut body, &[args_count as u64]);
        put(&mut body, &pointers(args, address(args_at)));
        put(&mut body, &[0]);
        body.extend_from_slice(args);
        body.extend_from_slice(env);
        body.extend_from_slice(cwd);
        let mut its_env = Vec::with_capacity(env_count * WORD_BYTES);
        put(&mut its_env, &pointers(env, address(env_at)));
        Some(Told { env: its_env, body })
    }

    /// What the new process does to itself.
    fn steps(&self, start: &Start<'_>, map: u64, cwd: u64, stack: u64) -> Vec<Step> {
        let count = start.descriptors.len() as u64;
        let first = FIRST_RECEIVED as u64;
        let mut steps = Vec::with_capacity(start.descriptors.len() + OTHER_STEPS + 1);
        let mut step = |number: i64, arguments: &[u64]| {
            let arguments = std::array::from_fn(|index| arguments.get(index).copied().unwrap_or(0));
            steps.push(Step { number, arguments });
        };
        // Each comes from a number that is higher than its own, and is no longer needed there.
        for number in 0..count {
            step(libc::SYS_dup2, &[first + number, number]);
        }
        step(libc::SYS_setpgid, &[0, 0]);
        step(libc::SYS_chdir, &[cwd]);
        let facts = &self.facts;
        step(libc::SYS_set_robust_list, &[facts.robust_list, facts.robust_list_bytes]);
        let (set, to) = (libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64);
        step(libc::SYS_prctl, &[set, to, map, (MAP_WORDS * WORD_BYTES) as u64]);
        // The template is hidden, which is no concern of its copies.
        step(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1]);
        if start.fence.is_some() {
            step(libc::SYS_landlock_restrict_self, &[first + count, 0]);
        }
        step(libc::SYS_close_range, &[count, SOCKET as u64 - 1, 0]);
        // Its own number: all is well. What comes after that can't fail.
        step(libc::SYS_write, &[SOCKET as u64, facts.thread_number, size_of::<i32>() as u64]);
        step(libc::SYS_close, &[SOCKET as u64]);
        step(GO, &[stack]);
        steps
    }
}

/// [`Template::steps`] that are there whatever the start.
const OTHER_STEPS: usize = 9;

/// The two parts of a message.
struct Told {
    env: Vec<u8>,
    body: Vec<u8>,
}

fn put(bytes: &mut Vec<u8>, words: &[u64]) {
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

fn count_texts(list: &[u8]) -> usize {
    list.iter().filter(|byte| **byte == 0).count()
}

/// Where each of the texts is, if the first is at `address`.
fn pointers(list: &[u8], address: u64) -> Vec<u64> {
    let mut at = address;
    list.split_inclusive(|byte| *byte == 0)
        .map(|text| {
            let here = at;
            at += text.len() as u64;
            here
        })
        .collect()
}

/// The new process tells its number when it has done all steps, or why it has ended; the template
/// tells if it could not make one.
fn receive_process(socket: &OwnedFd) -> Started {
    let mut bytes = [0; 8];
    loop {
        let mut watched = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::from(STEPS_PATIENCE_MS)) {
            Ok(0) => return Started::Silent,
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => {}
        }
        return match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(4) => {
                let [a, b, c, d, ..] = bytes;
                Started::Process(Pid::from_raw(i32::from_ne_bytes([a, b, c, d])))
            }
            Ok(8) => match i64::from_ne_bytes(bytes).unsigned_abs() {
                passing if passing == Errno::EAGAIN as u64 || passing == Errno::ENOMEM as u64 => {
                    Started::NotNow
                }
                _ => Started::Refused,
            },
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => Started::Gone,
        };
    }
}
