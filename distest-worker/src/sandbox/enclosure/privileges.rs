//! What a process in a sandbox may not do, whoever it is.

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

#[expect(unsafe_code, reason = "nix has no call for these")]
fn prctl(what: i32, value: u32) -> nix::Result<()> {
    // SAFETY: neither operation takes a pointer.
    let result = unsafe { libc::prctl(what, libc::c_ulong::from(value), 0, 0, 0) };
    Errno::result(result).map(drop)
}
