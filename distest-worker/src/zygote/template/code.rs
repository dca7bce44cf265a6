//! What a template executes in place of its program, and the words that it shares with its zygote.
//!
//! Machine code, because it runs in a process in which nothing of ours is loaded, on a page of its
//! own, wherever that lies. It keeps to system calls and to the page behind it.
#![expect(unsafe_code, reason = "machine code, and the words that it finds")]

use std::arch::global_asm;
use std::mem::{offset_of, size_of};

/// Bytes of a page, and of each of the two that a template is given: code, then [`Words`].
pub(super) const PAGE_BYTES: u64 = 4096;
/// The number of a template's descriptor for its socket. Those that come with a start get the
/// numbers from [`FIRST_RECEIVED`] on.
pub(super) const SOCKET: i32 = 32;
/// A template has the standard three, and no others.
pub(super) const FIRST_RECEIVED: i32 = 3;
/// Ends a list of [`Step`]s.
pub(super) const GO: i64 = -1;
/// How a test's process is made: the zygote is its parent, as of one that was executed, and the C
/// library finds its thread's number where it keeps that.
const CLONE_FLAGS: i32 =
    libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
/// Room for [`super::super::wire::DESCRIPTORS_MAX`] and one, with its head.
const CONTROL_BYTES: usize = 128;

/// A system call, and up to six arguments. Of [`GO`] the first is the stack that the program finds.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Step {
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
}

/// The page behind the code.
#[repr(C)]
pub(super) struct Words {
    /// Where the program begins.
    pub(super) entry: u64,
    /// Where the program finds that, too (`AT_ENTRY`), until which is set here the code is found.
    pub(super) entry_slot: u64,
    /// What the template tells its zygote once it is ready.
    pub(super) facts: Facts,
    pub(super) message: Message,
    /// Where the environment's pointers go, and where all else of a start does.
    pub(super) parts: [Part; 2],
    control: [u64; CONTROL_BYTES / 8],
    failure: i64,
}

/// What only the process itself knows.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Facts {
    /// Where the C library keeps its thread's number.
    pub(super) thread_number: u64,
    pub(super) robust_list: u64,
    pub(super) robust_list_bytes: u64,
    /// The end of the heap.
    pub(super) brk: u64,
    /// What the loader has to do at the end, which it hands to the program.
    pub(super) at_exit: u64,
    pub(super) stack: u64,
    /// What is there: the number, and the four bytes behind it.
    pub(super) thread_word: u64,
    /// 0, or why there are no copies.
    pub(super) failure: i64,
}

/// `struct msghdr`.
#[repr(C)]
pub(super) struct Message {
    name: u64,
    name_bytes: u64,
    pub(super) parts: u64,
    pub(super) parts_count: u64,
    pub(super) control: u64,
    control_bytes: u64,
    flags: u64,
}

/// `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

impl Words {
    /// Of a template whose words lie at `address`.
    pub(super) fn new(address: u64, entry: u64, entry_slot: u64, parts: [Part; 2]) -> Self {
        let place = |offset: usize| address + offset as u64;
        let message = Message {
            name: 0,
            name_bytes: 0,
            parts: place(offset_of!(Self, parts)),
            parts_count: 2,
            control: place(offset_of!(Self, control)),
            control_bytes: 0,
            flags: 0,
        };
        let (control, failure) = ([0; CONTROL_BYTES / 8], 0);
        Self { entry, entry_slot, facts: Facts::default(), message, parts, control, failure }
    }

    /// As the template is given them.
    pub(super) fn as_bytes(&self) -> &[u8] {
        const { assert!(size_of::<Self>().is_multiple_of(8) && size_of::<Self>() as u64 <= PAGE_BYTES) };
        // SAFETY: it consists of 64-bit numbers, without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

impl Facts {
    pub(super) const BYTES: usize = size_of::<Self>();

    /// As the template has sent them.
    pub(super) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let word =
            |offset: usize| u64::from_ne_bytes(std::array::from_fn(|index| bytes[offset + index]));
        Self {
            thread_number: word(offset_of!(Self, thread_number)),
            robust_list: word(offset_of!(Self, robust_list)),
            robust_list_bytes: word(offset_of!(Self, robust_list_bytes)),
            brk: word(offset_of!(Self, brk)),
            at_exit: word(offset_of!(Self, at_exit)),
            stack: word(offset_of!(Self, stack)),
            thread_word: word(offset_of!(Self, thread_word)),
            failure: word(offset_of!(Self, failure)).cast_signed(),
        }
    }
}

/// The code, as the template is given it.
pub(super) fn code() -> &'static [u8] {
    unsafe extern "C" {
        static distest_template_code: u8;
        static distest_template_code_end: u8;
    }
    let (begin, end) = (&raw const distest_template_code, &raw const distest_template_code_end);
    // SAFETY: both are labels of the section below, between which there is nothing but code.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}

// In a page of data: here it is never executed. r12: the words; r14: the next step.
global_asm!(
    ".pushsection .rodata.distest_template_code, \"a\"",
    ".balign 16",
    ".hidden distest_template_code",
    ".globl distest_template_code",
    "distest_template_code:",
    // Reached from the dynamic loader as the program's entry would be.
    "    lea r12, [rip + distest_template_code]",
    "    add r12, {page}",
    "    mov [r12 + {at_exit}], rdx",
    "    mov [r12 + {stack}], rsp",
    "    mov r15, [r12 + {entry}]",
    "    mov rax, [r12 + {entry_slot}]",
    "    mov [rax], r15",
    "    mov eax, {prctl}",
    "    mov edi, {get_tid_address}",
    "    lea rsi, [r12 + {thread_number}]",
    "    xor edx, edx",
    "    xor r10d, r10d",
    "    xor r8d, r8d",
    "    syscall",
    "    mov [r12 + {facts_failure}], rax",
    "    test rax, rax",
    "    js 9f",
    "    mov rax, [r12 + {thread_number}]",
    "    mov rax, [rax]",
    "    mov [r12 + {thread_word}], rax",
    // Tried once, while nothing can go wrong yet.
    "    mov eax, {close_range}",
    "    mov edi, {first_received}",
    "    mov esi, {socket} - 1",
    "    xor edx, edx",
    "    syscall",
    "    mov [r12 + {facts_failure}], rax",
    "9:",
    "    mov eax, {get_robust_list}",
    "    xor edi, edi",
    "    lea rsi, [r12 + {robust_list}]",
    "    lea rdx, [r12 + {robust_list_bytes}]",
    "    syscall",
    "    mov eax, {brk_call}",
    "    xor edi, edi",
    "    syscall",
    "    mov [r12 + {brk}], rax",
    "    mov eax, {write}",
    "    mov edi, {socket}",
    "    lea rsi, [r12 + {facts}]",
    "    mov edx, {facts_bytes}",
    "    syscall",
    // A start: what arrives is the new process's already, and so are the descriptors.
    "2:",
    "    mov qword ptr [r12 + {control_bytes_at}], {control_bytes}",
    "    mov eax, {recvmsg}",
    "    mov edi, {socket}",
    "    lea rsi, [r12 + {message}]",
    "    xor edx, edx",
    "    syscall",
    "    test rax, rax",
    "    jle 4f",
    // From before there is a copy on, nobody may look into the template.
    "    mov eax, {prctl}",
    "    mov edi, {set_dumpable}",
    "    xor esi, esi",
    "    xor edx, edx",
    "    xor r10d, r10d",
    "    xor r8d, r8d",
    "    syscall",
    "    mov eax, {clone}",
    "    mov edi, {clone_flags}",
    "    xor esi, esi",
    "    xor edx, edx",
    "    mov r10, [r12 + {thread_number}]",
    "    xor r8d, r8d",
    "    syscall",
    "    test rax, rax",
    "    jz 5f",
    "    jns 3f",
    "    mov [r12 + {failure}], rax",
    "    mov eax, {write}",
    "    mov edi, {socket}",
    "    lea rsi, [r12 + {failure}]",
    "    mov edx, 8",
    "    syscall",
    "3:",
    "    mov eax, {close_range}",
    "    mov edi, {first_received}",
    "    mov esi, {socket} - 1",
    "    xor edx, edx",
    "    syscall",
    "    jmp 2b",
    // The zygote is gone, or doesn't want it any more.
    "4:",
    "    mov eax, {exit_group}",
    "    xor edi, edi",
    "    syscall",
    // The new process.
    "5:",
    "    mov r14, [r12 + {steps}]",
    "6:",
    "    mov rax, [r14]",
    "    cmp rax, {go}",
    "    je 7f",
    "    mov rdi, [r14 + 8]",
    "    mov rsi, [r14 + 16]",
    "    mov rdx, [r14 + 24]",
    "    mov r10, [r14 + 32]",
    "    mov r8, [r14 + 40]",
    "    mov r9, [r14 + 48]",
    "    syscall",
    "    cmp rax, -4095",
    "    jae 8f",
    "    add r14, {step_bytes}",
    "    jmp 6b",
    "7:",
    "    mov rsp, [r14 + 8]",
    "    mov rdx, [r12 + {at_exit}]",
    "    xor ebp, ebp",
    "    jmp r15",
    "8:",
    "    mov [r12 + {failure}], rax",
    "    mov eax, {write}",
    "    mov edi, {socket}",
    "    lea rsi, [r12 + {failure}]",
    "    mov edx, 8",
    "    syscall",
    "    mov eax, {exit_group}",
    "    mov edi, 127",
    "    syscall",
    ".hidden distest_template_code_end",
    ".globl distest_template_code_end",
    "distest_template_code_end:",
    ".popsection",
    page = const PAGE_BYTES,
    entry = const offset_of!(Words, entry),
    entry_slot = const offset_of!(Words, entry_slot),
    facts = const offset_of!(Words, facts),
    facts_bytes = const Facts::BYTES,
    thread_number = const offset_of!(Words, facts.thread_number),
    robust_list = const offset_of!(Words, facts.robust_list),
    robust_list_bytes = const offset_of!(Words, facts.robust_list_bytes),
    brk = const offset_of!(Words, facts.brk),
    at_exit = const offset_of!(Words, facts.at_exit),
    stack = const offset_of!(Words, facts.stack),
    thread_word = const offset_of!(Words, facts.thread_word),
    facts_failure = const offset_of!(Words, facts.failure),
    message = const offset_of!(Words, message),
    control_bytes_at = const offset_of!(Words, message.control_bytes),
    control_bytes = const CONTROL_BYTES,
    steps = const offset_of!(Words, parts) + size_of::<Part>(),
    failure = const offset_of!(Words, failure),
    step_bytes = const size_of::<Step>(),
    go = const GO,
    socket = const SOCKET,
    first_received = const FIRST_RECEIVED,
    clone_flags = const CLONE_FLAGS,
    set_dumpable = const libc::PR_SET_DUMPABLE,
    get_tid_address = const libc::PR_GET_TID_ADDRESS,
    prctl = const libc::SYS_prctl,
    get_robust_list = const libc::SYS_get_robust_list,
    brk_call = const libc::SYS_brk,
    write = const libc::SYS_write,
    recvmsg = const libc::SYS_recvmsg,
    clone = const libc::SYS_clone,
    close_range = const libc::SYS_close_range,
    exit_group = const libc::SYS_exit_group,
);
