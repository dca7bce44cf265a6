//! What a process in a sandbox may not do, whoever it is.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::geteuid;

use super::{Doing, Obstacle, Step};

/// Capabilities (capabilities(7)) that root's tests keep: those about files, users and ports. Others
/// would take the sandbox apart (`CAP_SYS_ADMIN`), reach around it (`CAP_DAC_READ_SEARCH`,
/// `CAP_MKNOD`), or reach the machine.
const KEPT: [u32; 16] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    5,  // CAP_KILL
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    8,  // CAP_SETPCAP
    10, // CAP_NET_BIND_SERVICE
    14, // CAP_IPC_LOCK
    18, // CAP_SYS_CHROOT
    23, // CAP_SYS_NICE
    24, // CAP_SYS_RESOURCE
    28, // CAP_LEASE
    29, // CAP_AUDIT_WRITE
    31, // CAP_SETFCAP
];

/// Makes sure that whatever this process executes from now on lacks all other capabilities.
///
/// Only root needs this: everyone else loses all at the next exec. This process itself keeps them,
/// so that nothing it starts may trace it.
pub(super) fn drop_dangerous() -> Result<(), Obstacle> {
    if !geteuid().is_root() {
        return Ok(());
    }
    for capability in (0..64).filter(|capability| !KEPT.contains(capability)) {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // A capability that this kernel doesn't have.
            Ok(()) | Err(Errno::EINVAL) => {}
            other => other.doing(Step::Privileges, "capabilities")?,
        }
    }
    Ok(())
}

/// Makes this process one that others of the same user can't trace, and whose open files and
/// memory they can't see.
pub fn hide_from_others() {
    // Nobody is worse off than before if it fails.
    let _ = prctl(libc::PR_SET_DUMPABLE, 0);
}

/// Whether [`make_fence`] can be had: Landlock's sixth version, of Linux 6.12.
pub fn can_fence() -> bool {
    landlock_version() >= 6
}

/// What keeps whoever is behind it from signalling and tracing others: [`go_behind`].
pub(crate) fn make_fence() -> nix::Result<OwnedFd> {
    create_ruleset(&RulesetAttributes { scoped: SCOPE_SIGNAL, ..RulesetAttributes::default() })
}

/// Makes sure that this thread and what it starts from now on signal and trace only each other:
/// nobody outside, whoever's processes those are.
pub(crate) fn go_behind(fence: &OwnedFd) -> nix::Result<()> {
    restrict_self(fence.as_fd())
}

/// `LANDLOCK_SCOPE_SIGNAL`, see landlock(7).
const SCOPE_SIGNAL: u64 = 1 << 1;

/// `struct landlock_ruleset_attr`.
#[derive(Default)]
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// Of what this kernel has; 0 for nothing.
#[expect(unsafe_code, reason = "neither nix nor the C library has this call")]
fn landlock_version() -> libc::c_long {
    const VERSION: u32 = 1 << 0;
    let nothing = std::ptr::null::<RulesetAttributes>();
    // SAFETY: asked for its version, the call takes no attributes.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    version.max(0)
}

#[expect(unsafe_code, reason = "neither nix nor the C library has this call")]
fn create_ruleset(attributes: &RulesetAttributes) -> nix::Result<OwnedFd> {
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: the attributes live until the call returns, and the size is theirs.
    let made = unsafe {
        let size = size_of::<RulesetAttributes>();
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size, 0_u32)
    };
    let number = Errno::result(made)?;
    let number = RawFd::try_from(number).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call has just made it; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[expect(unsafe_code, reason = "neither nix nor the C library has this call")]
fn restrict_self(ruleset: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: it takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    Errno::result(done).map(drop)
}

#[expect(unsafe_code, reason = "nix has no call for these")]
fn prctl(what: i32, value: u32) -> nix::Result<()> {
    // SAFETY: neither operation takes a pointer.
    let result = unsafe { libc::prctl(what, libc::c_ulong::from(value), 0, 0, 0) };
    Errno::result(result).map(drop)
}
