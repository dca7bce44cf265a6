//! Slot numbers that are unique on a machine, across workers and clients: tests derive ports and
//! database names from them.
//!
//! A number is held by a socket with a name in Linux's abstract namespace, which the kernel frees
//! however its holder ends.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::SLOTS_MAX;

/// A number, held until it is dropped.
#[derive(Debug)]
pub(super) struct MachineSlot {
    number: u32,
    /// None if the machine gave us none.
    _held: Option<UnixListener>,
}

impl MachineSlot {
    /// Takes the smallest free number.
    pub(super) fn take() -> Self {
        for number in 0..SLOTS_MAX {
            let name = format!("cargo-distest-slot-{number}");
            let bound = SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixListener::bind_addr(&address));
            match bound {
                Ok(held) => return Self { number, _held: Some(held) },
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                // Without sockets a number is better than none, if only unique in this process.
                Err(_) => break,
            }
        }
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(SLOTS_MAX);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self { number, _held: None }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_while_held_and_used_again() {
        let (a, b) = (MachineSlot::take(), MachineSlot::take());
        assert_ne!(a.number(), b.number());
        let freed = a.number();
        drop(a);
        // Others on this machine may take it first, so only the order is certain.
        assert!(MachineSlot::take().number() >= freed.min(b.number()));
    }
}
