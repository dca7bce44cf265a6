//! Making a template: a program that is executed under trace, in which [`code`](super::code) is
//! put where the loader looks for the program's entry. The trace ends before the loader begins.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use libc::{c_long, user_regs_struct};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::launch::{As, duplicate_from, execute};
use super::code::{self, Facts, PAGE_BYTES, Part, SOCKET, Words};
use super::start::{BODY_BYTES_MAX, MemoryMap};

/// How long the loader may take: slow disks included.
const LOADER_PATIENCE_MS: u16 = 3_000;
/// What a template is executed with, so that a tracer that doesn't stop it (an emulator's) has at
/// worst a list made.
const HARMLESS: &CStr = c"--list";
/// Between a body and the stack that the loader left.
const GAP_BYTES: u64 = 256;
const WORD_BYTES: u64 = 8;
/// The C library and what belongs to it, with versions: their constructors depend on nothing that
/// differs from start to start.
const PARTS: [(&str, u32); 7] = [
    ("libc", 6),
    ("libgcc_s", 1),
    ("libm", 6),
    ("libpthread", 0),
    ("libdl", 2),
    ("librt", 1),
    ("libutil", 1),
];
/// Longer names are none of those.
const NAME_BYTES_MAX: u64 = 64;
/// The most entries of a table in the program that are looked at.
const TABLE_MAX: u64 = 256;

/// A program that waits before its first instruction. Ends when dropped.
pub(crate) struct Template {
    process: Child,
    pub(super) socket: OwnedFd,
    pub(super) facts: Facts,
    pub(super) map: MemoryMap,
    /// Where the body of a start arrives.
    pub(super) body: u64,
}

/// Killed and reaped when dropped, unless it has ended.
struct Child(Option<Pid>);

/// What is found on the stack of a new process.
struct Layout {
    env: u64,
    entry_slot: u64,
    entry: u64,
    headers: u64,
    headers_count: u64,
}

/// Executes the program and stops it where its own code would begin.
///
/// # Errors
/// It is none of which copies are as good as new ones ([`Errno::ENOTSUP`]), or a step failed.
pub(super) fn plant(stack: &mut [u8], program: &CStr, env: &[&CStr]) -> nix::Result<Template> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let theirs = duplicate_from(&theirs, SOCKET + 1)?;
    let nothing = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    let descriptors = [(&nothing, 0), (&nothing, 1), (&nothing, 2), (&theirs, SOCKET)];
    let mut process =
        Child(Some(execute(stack, program, &descriptors, &[program, HARMLESS], env, As::Traced)?));
    let pid = process.pid()?;
    drop(theirs);
    process.wait_for_stop()?;
    // It must not go on without this process.
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_EXITKILL)?;
    let before = ptrace::getregs(pid)?;
    let memory = Memory::of(pid)?;
    let layout = Layout::read(&memory, before.rsp, env.len() as u64)?;
    // The kernel begins a static program at its entry itself.
    if layout.entry == before.rip || !only_needs_c_library(&memory, &layout)? {
        return Err(Errno::ENOTSUP);
    }
    let body = (before.rsp - GAP_BYTES - BODY_BYTES_MAX as u64) & !0xf;
    let parts = [
        Part { address: layout.env, bytes: WORD_BYTES * env.len() as u64 },
        Part { address: body, bytes: BODY_BYTES_MAX as u64 },
    ];
    put_code(&mut process, &memory, &before, &layout, parts)?;
    ptrace::setregs(pid, user_regs_struct { orig_rax: u64::MAX, ..before })?;
    ptrace::detach(pid, None)?;
    let facts = receive_facts(&ours)?;
    // The C library before 2.25 keeps the process's number there, too, and would believe it.
    let knows_process = (facts.thread_word >> 32) as i32 == pid.as_raw();
    if knows_process || has_rights(pid) || !has_only_c_library(pid, &layout)? {
        return Err(Errno::ENOTSUP);
    }
    let map = MemoryMap::read(pid, facts.brk)?;
    Ok(Template { process, socket: ours, facts, map, body })
}

impl Template {
    /// Its process, as long as that lives.
    pub(super) fn pid(&self) -> Option<i32> {
        self.process.0.map(Pid::as_raw)
    }

    /// Whether it was this one that has ended and been reaped.
    pub(super) fn take_end(&mut self, pid: Pid) -> bool {
        let its = self.process.0 == Some(pid);
        if its {
            self.process.0 = None;
        }
        its
    }
}

impl Child {
    fn pid(&self) -> nix::Result<Pid> {
        self.0.ok_or(Errno::ESRCH)
    }

    fn wait_for_stop(&mut self) -> nix::Result<()> {
        match waitpid(self.pid()?, None)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => return Ok(()),
            // Reaped: its number may be another's soon.
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => self.0 = None,
            _ => {}
        }
        Err(Errno::ENOTSUP)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// The memory of a stopped process, where it may read and write itself.
struct Memory(File);

impl Memory {
    fn of(pid: Pid) -> nix::Result<Self> {
        let path = format!("/proc/{pid}/mem");
        File::options().read(true).write(true).open(path).map(Self).map_err(|e| errno(&e))
    }

    /// At most so many bytes: fewer where its memory ends.
    fn bytes(&self, address: u64, most: u64) -> nix::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(most).unwrap_or(0)];
        let read = self.0.read_at(&mut bytes, address).map_err(|error| errno(&error))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// At most so many words.
    fn words(&self, address: u64, most: u64) -> nix::Result<Vec<u64>> {
        let bytes = self.bytes(address, most * WORD_BYTES)?;
        Ok(bytes.as_chunks().0.iter().copied().map(u64::from_ne_bytes).collect())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> nix::Result<()> {
        self.0.write_all_at(bytes, address).map_err(|error| errno(&error))
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::ENOTSUP, Errno::from_raw)
}

impl Layout {
    /// As the kernel lays it out: the arguments' number and pointers, those of the environment, and
    /// pairs of numbers, each list ended by zeroes.
    fn read(memory: &Memory, stack: u64, env_count: u64) -> nix::Result<Self> {
        const ARGS_COUNT: u64 = 2;
        // Another number: a script, whose interpreter has been executed.
        if memory.words(stack, 1)? != [ARGS_COUNT] {
            return Err(Errno::ENOTSUP);
        }
        let env = stack + (1 + ARGS_COUNT + 1) * WORD_BYTES;
        let pairs_at = env + (env_count + 1) * WORD_BYTES;
        let (mut entry, mut headers, mut headers_count) = (None, None, None);
        let words = memory.words(pairs_at, 2 * TABLE_MAX)?;
        let pairs = words.as_chunks().0.iter().zip((pairs_at..).step_by(2 * WORD_BYTES as usize));
        for (&[kind, value], at) in pairs {
            match kind {
                libc::AT_NULL => break,
                libc::AT_ENTRY => entry = Some((at + WORD_BYTES, value)),
                libc::AT_PHDR => headers = Some(value),
                libc::AT_PHNUM => headers_count = Some(value),
                // It has more rights than a traced one would get.
                libc::AT_SECURE if value != 0 => return Err(Errno::ENOTSUP),
                _ => {}
            }
        }
        let (entry_slot, entry) = entry.ok_or(Errno::ENOTSUP)?;
        let (headers, headers_count) = headers.zip(headers_count).ok_or(Errno::ENOTSUP)?;
        Ok(Self { env, entry_slot, entry, headers, headers_count })
    }
}

/// Whether the program asks for no libraries but the C library's own, and the loader would run none
/// of its code before its entry (`DT_PREINIT_ARRAY`), as sanitizers have it.
fn only_needs_c_library(memory: &Memory, layout: &Layout) -> nix::Result<bool> {
    /// Of which the third is the address.
    const HEADER_WORDS: usize = 7;
    const NEEDED: u64 = 1;
    const TEXTS: u64 = 5;
    const PREINIT_ARRAY: u64 = 32;
    let (mut bias, mut dynamic) = (None, None);
    let count = layout.headers_count.min(TABLE_MAX);
    let words = memory.words(layout.headers, count * HEADER_WORDS as u64)?;
    for &[kind, _, address, ..] in words.as_chunks::<HEADER_WORDS>().0 {
        // The kind is the lower half of its word.
        match kind as u32 {
            libc::PT_PHDR => bias = Some(layout.headers.wrapping_sub(address)),
            libc::PT_DYNAMIC => dynamic = Some(address),
            _ => {}
        }
    }
    let (bias, dynamic) = bias.zip(dynamic).ok_or(Errno::ENOTSUP)?;
    let (mut needed, mut texts) = (Vec::new(), None);
    let words = memory.words(bias.wrapping_add(dynamic), 2 * TABLE_MAX)?;
    for &[kind, value] in words.as_chunks().0 {
        match kind {
            0 => break,
            NEEDED => needed.push(value),
            TEXTS => texts = Some(bias.wrapping_add(value)),
            PREINIT_ARRAY => return Ok(false),
            _ => {}
        }
    }
    let texts = texts.ok_or(Errno::ENOTSUP)?;
    for offset in needed {
        let name = memory.bytes(texts.wrapping_add(offset), NAME_BYTES_MAX)?;
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::ENOTSUP)?;
        let name = name.to_string_lossy();
        let is_part = PARTS.iter().any(|(part, version)| name == format!("{part}.so.{version}"));
        if !is_part && name != "ld-linux-x86-64.so.2" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether its executable has rights of its own, which a traced process doesn't get.
#[expect(unsafe_code, reason = "nix has no extended attributes")]
fn has_rights(pid: Pid) -> bool {
    let path = format!("/proc/{pid}/exe");
    let set_id = libc::S_ISUID | libc::S_ISGID;
    if fs::metadata(&path).map_or(true, |metadata| metadata.mode() & set_id != 0) {
        return true;
    }
    let Ok(path) = CString::new(path) else { return true };
    let name = c"security.capability";
    // SAFETY: both are texts that end in NUL, and nothing is written where there is no room.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length >= 0
}

/// Puts the code and its words into the stopped process, and its address where the loader finds it.
fn put_code(
    process: &mut Child,
    memory: &Memory,
    registers: &user_regs_struct,
    layout: &Layout,
    parts: [Part; 2],
) -> nix::Result<()> {
    let number = |number: i32| u64::try_from(number).unwrap_or(0);
    let private = number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let writable = number(libc::PROT_READ | libc::PROT_WRITE);
    let bytes = 2 * PAGE_BYTES;
    let arguments = [0, bytes, writable, private, u64::MAX, 0];
    let place = call(process, registers, libc::SYS_mmap, arguments)?;
    memory.write(place, code::code())?;
    let words_at = place + PAGE_BYTES;
    let words = Words::new(words_at, layout.entry, layout.entry_slot, parts);
    memory.write(words_at, words.as_bytes())?;
    let executable = number(libc::PROT_READ | libc::PROT_EXEC);
    call(process, registers, libc::SYS_mprotect, [place, PAGE_BYTES, executable, 0, 0, 0])?;
    memory.write(layout.entry_slot, &place.to_ne_bytes())
}

/// Has the stopped process make a system call.
fn call(
    process: &mut Child,
    registers: &user_regs_struct,
    number: c_long,
    arguments: [u64; 6],
) -> nix::Result<u64> {
    /// `syscall`, in the lower half of a word.
    const SYSCALL: c_long = 0x050f;
    let pid = process.pid()?;
    // It may not write there itself.
    let code = registers.rip as ptrace::AddressType;
    let here = ptrace::read(pid, code)?;
    ptrace::write(pid, code, here & !0xffff | SYSCALL)?;
    let [rdi, rsi, rdx, r10, r8, r9] = arguments;
    let rax = number.cast_unsigned();
    let calling =
        user_regs_struct { rax, orig_rax: u64::MAX, rdi, rsi, rdx, r10, r8, r9, ..*registers };
    ptrace::setregs(pid, calling)?;
    ptrace::step(pid, None)?;
    process.wait_for_stop()?;
    let result = ptrace::getregs(pid)?.rax.cast_signed();
    ptrace::write(pid, code, here)?;
    match i32::try_from(result) {
        Ok(errno) if errno < 0 => Err(Errno::from_raw(-errno)),
        _ => Ok(result.cast_unsigned()),
    }
}

fn receive_facts(socket: &OwnedFd) -> nix::Result<Facts> {
    let mut watched = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut watched, PollTimeout::from(LOADER_PATIENCE_MS))? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    let mut bytes = [0; Facts::BYTES];
    // Nothing: the loader found something missing, which executing it will tell of.
    if recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty())? != Facts::BYTES {
        return Err(Errno::ENOTSUP);
    }
    let facts = Facts::from_bytes(&bytes);
    match i32::try_from(facts.failure) {
        Ok(0) => Ok(facts),
        Ok(errno) => Err(Errno::from_raw(-errno)),
        Err(_) => Err(Errno::ENOTSUP),
    }
}

/// Whether nothing is loaded but the program, the C library and what belongs to that: the
/// constructors of other libraries have already run.
fn has_only_c_library(pid: Pid, layout: &Layout) -> nix::Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|_| Errno::ENOTSUP)?;
    let files = maps.lines().filter_map(|line| {
        let path_at = line.find('/')?;
        let (begin, end) = line.split_once(' ')?.0.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        Some((address(begin)?..address(end)?, &line[path_at..]))
    });
    let files: Vec<_> = files.collect();
    let program = files.iter().find(|(range, _)| range.contains(&layout.headers));
    let (_, program) = program.ok_or(Errno::ENOTSUP)?;
    // `libc.so.6`, or the file that this was a link to once: `libc-2.31.so`.
    let is = |name: &str, part: &str| {
        name.strip_prefix(part)
            .is_some_and(|rest| rest.starts_with(".so.") || rest.starts_with('-'))
    };
    let libraries = files.iter().map(|(_, path)| *path).filter(|path| path != program);
    let libraries: Vec<_> = libraries.filter_map(|path| path.rsplit_once('/')).collect();
    let (folder, _) = libraries.iter().find(|(_, name)| is(name, "libc")).ok_or(Errno::ENOTSUP)?;
    Ok(libraries.iter().all(|(its_folder, name)| {
        let is_part = PARTS.iter().any(|(part, _)| is(name, part));
        let is_loader = name.starts_with("ld-linux") || name.starts_with("ld-2.");
        is_loader || is(name, "libgcc_s") || (is_part && its_folder == folder)
    }))
}
