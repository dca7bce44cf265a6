//! Until when attempts may run, said by the worker in memory that its zygotes see.
//!
//! The worker ends what runs when its client has been silent for too long. One that itself stands
//! still (stopped, swapped out, in a debugger) can't, while its client gives the tests to others:
//! so its zygotes, which are processes of their own, know the time as well and end them in its place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};

/// For ever, and how long that is where it is added to.
const FOR_EVER: u64 = u64::MAX;
/// How much later than the worker a zygote acts: the worker's own way is the orderly one.
const MARGIN: Duration = Duration::from_millis(200);
/// A renewal by less than this is not worth telling. Less than [`MARGIN`].
const WORTH_TELLING: Duration = Duration::from_millis(50);

/// The worker's end.
#[derive(Debug)]
pub struct Deadline {
    /// Nanoseconds of the monotonic clock, which is the same for all processes of a machine.
    memory: File,
    told: AtomicU64,
}

/// A zygote's end.
pub(crate) struct Seen(File);

impl Deadline {
    /// One that lasts for ever.
    ///
    /// # Errors
    /// No descriptor or no memory is left for it.
    pub fn new() -> io::Result<Self> {
        let memory = File::from(memfd_create(c"distest deadline", MFdFlags::MFD_CLOEXEC)?);
        memory.write_all_at(&FOR_EVER.to_ne_bytes(), 0)?;
        Ok(Self { memory, told: FOR_EVER.into() })
    }

    /// Has it last for this long from now on; None: for ever.
    pub fn renew(&self, left: Option<Duration>) {
        let until = match left {
            Some(left) => now_ns().saturating_add(nanos(left + MARGIN)),
            None => FOR_EVER,
        };
        if until.abs_diff(self.told.load(Ordering::Relaxed)) >= nanos(WORTH_TELLING) {
            self.told.store(until, Ordering::Relaxed);
            // Its page is there since the first one was written.
            let _ = self.memory.write_all_at(&until.to_ne_bytes(), 0);
        }
    }

    /// For a zygote.
    pub(crate) fn memory(&self) -> &File {
        &self.memory
    }
}

impl Seen {
    pub(crate) fn new(memory: OwnedFd) -> Self {
        Self(memory.into())
    }

    /// How long it lasts yet, and how long ago it ended; None: for ever.
    pub(crate) fn left(&self) -> Option<Left> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        let until = u64::from_ne_bytes(bytes);
        let now = now_ns();
        let duration = |from: u64, to: u64| Duration::from_nanos(to - from);
        (until != FOR_EVER).then(|| match until > now {
            true => Left::Yet(duration(now, until)),
            false => Left::EndedFor(duration(until, now)),
        })
    }
}

/// What is left of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Yet(Duration),
    EndedFor(Duration),
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| nanos(Duration::from(now)))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(FOR_EVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn left(seen: &Seen) -> Duration {
        match seen.left() {
            Some(Left::Yet(left)) => left,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_seen_where_its_memory_is() {
        let deadline = Deadline::new().unwrap();
        let seen = Seen::new(deadline.memory().try_clone().unwrap().into());
        assert_eq!(seen.left(), None);
        deadline.renew(Some(HOUR));
        assert!(left(&seen) > HOUR / 2 && left(&seen) <= HOUR + MARGIN);
        deadline.renew(Some(2 * HOUR));
        assert!(left(&seen) > HOUR + MARGIN);
        deadline.renew(None);
        assert_eq!(seen.left(), None);
    }

    #[test]
    fn what_is_not_renewed_ends() {
        let deadline = Deadline::new().unwrap();
        let seen = Seen::new(deadline.memory().try_clone().unwrap().into());
        deadline.renew(Some(Duration::ZERO));
        while !matches!(seen.left(), Some(Left::EndedFor(_))) {
            std::thread::yield_now();
        }
    }
}
