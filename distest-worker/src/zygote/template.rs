//! Templates: programs that stand still just before their first instruction, to be copied.
//!
//! Of what a test costs that does nothing, most is spent before its program begins: `execve` lays
//! out a memory, the dynamic loader maps libraries and relocates. All of that comes out the same
//! each time. So from the second start of a program on, a zygote keeps one process of it, the
//! **template**, in which the loader has done its work and of the program itself nothing has run,
//! and makes each test's process by copying that (fork, where posix_spawn and the loader were):
//! less than half the cost. The copy gets its own arguments, environment, descriptors, folder and
//! process group, where the kernel would have put them, and then begins at the program's entry.
//!
//! A process made this way is as one that was executed, except that all copies of one template lie
//! at the same addresses and have the same random bytes for the C library's canaries (`AT_RANDOM`),
//! that the main stack is 32 KiB smaller, and that constructors of libraries which it loads
//! later (dlopen) are told the template's arguments. The template itself can be seen as a process of
//! that name, and the executable can't be overwritten in place while there is one.
//! Where more might differ there is no template and the program is executed as ever:
//! programs with libraries other than the C library's own (their constructors would have run
//! once for all), static ones, set-user-ID ones, scripts, sanitizers', other loaders', and kernels that
//! refuse any of the steps. Whatever fails, fails before the program has begun, so it is only
//! slower.
//!
//! Copies belong to one client's session, as all that a zygote starts. None of them can look into the
//! template or signal it where a sandbox is fenced; elsewhere they can end it, as the zygote itself.
//!
//! Linux on x86-64 only. [`plant`] makes a template, [`start`] says what a copy is given, [`code`]
//! is what runs in between.

use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::stat;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::launch::{Start, behind};
use super::processes::Process;
use crate::protocol::Network;
use plant::{Template, plant};
use start::Started;

mod code;
mod plant;
mod start;

/// The most programs whose starts are remembered.
const KNOWN_MAX: usize = 16;
/// The most of them that have a template: each is a process, if one that holds next to nothing.
const TEMPLATES_MAX: usize = 4;
/// A template that has not been used for so many starts makes room for another.
const IDLE_STARTS: u64 = 64;
/// A program whose templates end so often has none any more.
const ENDED_MAX: u32 = 3;

/// The templates of a zygote.
#[derive(Default)]
pub(super) struct Templates {
    /// The last used comes last.
    known: Vec<Known>,
    starts: u64,
    /// Names the zygote's children.
    children: Option<File>,
}

struct Known {
    key: Key,
    state: State,
    /// Which start used it last.
    used: u64,
    /// How many of its templates have ended.
    ended: u32,
}

/// What makes starts alike enough to share a template.
#[derive(PartialEq, Eq)]
struct Key {
    program: Box<[u8]>,
    /// The file that it is now: device, inode, when it changed in seconds and nanoseconds.
    file: [i64; 4],
    cwd: Box<[u8]>,
    env_count: usize,
    /// What of the environment the loader itself goes by.
    for_loader: Box<[u8]>,
}

enum State {
    /// Started once; a program that is never started again costs nothing more.
    Seen,
    Planted(Template),
    /// To be executed as ever.
    Unfit,
}

impl Templates {
    /// Makes a process of a template, if there is one or can be one. `None`: execute the program.
    pub(super) fn start(&mut self, start: &Start<'_>, stack: &mut [u8]) -> Option<Pid> {
        // A template would be in the network that was its zygote's.
        if start.spawn.network == Network::Private {
            return None;
        }
        self.starts += 1;
        let key = Key::of(start)?;
        let mut known = match self.known.iter().position(|known| known.key == key) {
            Some(index) => self.known.remove(index),
            None => {
                let used = self.starts;
                self.remember(Known { key, state: State::Seen, used, ended: 0 });
                return None;
            }
        };
        if matches!(known.state, State::Seen) && self.has_room() {
            known.state = self.plant(start, stack);
        }
        known.used = self.starts;
        let mut process = None;
        if let State::Planted(template) = &known.state {
            match template.start(start) {
                Started::Process(pid) => process = Some(pid),
                Started::NotNow => {}
                Started::Refused => known.state = State::Unfit,
                Started::Gone => {
                    known.ended += 1;
                    let again = known.ended < ENDED_MAX;
                    known.state = if again { State::Seen } else { State::Unfit };
                }
                Started::Silent => {
                    known.state = State::Unfit;
                    self.end_strangers();
                }
            }
        }
        self.remember(known);
        process
    }

    fn plant(&mut self, start: &Start<'_>, stack: &mut [u8]) -> State {
        if !self.can_tell_children() {
            return State::Unfit;
        }
        let mut plant = || plant(stack, start.program, start.env);
        let planted = match start.fence {
            // The loader, too, calls what the program tells it to.
            Some(fence) => behind(fence, &mut plant).flatten(),
            None => plant(),
        };
        match planted {
            Ok(template) => State::Planted(template),
            // Nothing is wrong with the program.
            Err(Errno::ETXTBSY | Errno::EAGAIN | Errno::ENOMEM) => State::Seen,
            Err(_) => State::Unfit,
        }
    }

    /// Whether this child was a template, which has ended now.
    pub(super) fn take_end(&mut self, pid: Pid) -> bool {
        for known in &mut self.known {
            if let State::Planted(template) = &mut known.state
                && template.take_end(pid)
            {
                known.state = State::Seen;
                return true;
            }
        }
        false
    }

    /// Whether the zygote has children and all of them are templates.
    pub(super) fn are_all_children(&self) -> bool {
        self.pids().next().is_some()
            && self
                .children()
                .is_some_and(|all| all.iter().all(|pid| self.pids().any(|own| own == *pid)))
    }

    /// The processes that are templates.
    pub(super) fn pids(&self) -> impl Iterator<Item = i32> {
        self.known.iter().filter_map(|known| match &known.state {
            State::Planted(template) => template.pid(),
            State::Seen | State::Unfit => None,
        })
    }

    /// What of `processes` is not a template.
    pub(super) fn all_but_them(&self, mut processes: Vec<Process>) -> Vec<Process> {
        processes.retain(|process| self.pids().all(|pid| pid != process.pid));
        processes
    }

    fn remember(&mut self, known: Known) {
        self.known.push(known);
        if self.known.len() > KNOWN_MAX {
            self.known.remove(0);
        }
    }

    /// Whether there may be one more template, if need be in place of one that has long not been
    /// used: programs that take turns would else have one made for each start.
    fn has_room(&mut self) -> bool {
        let planted = |known: &&mut Known| matches!(known.state, State::Planted(_));
        if self.known.iter_mut().filter(planted).count() < TEMPLATES_MAX {
            return true;
        }
        let starts = self.starts;
        let idle = |known: &&mut Known| starts - known.used > IDLE_STARTS;
        match self.known.iter_mut().filter(planted).find(idle) {
            Some(idle) => {
                idle.state = State::Seen;
                true
            }
            None => false,
        }
    }

    /// Ends children that are no templates, while no attempt runs: a copy that was never heard of.
    fn end_strangers(&self) {
        for pid in self.children().unwrap_or_default() {
            if self.pids().all(|own| own != pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                let _ = waitpid(Pid::from_raw(pid), None);
            }
        }
    }

    /// None: they can't be told, or not all of them are numbers that fit here.
    fn children(&self) -> Option<Vec<i32>> {
        let mut text = [0; 256];
        let length = self.children.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = str::from_utf8(&text[..length]).ok().filter(|_| length < text.len())?;
        text.split_ascii_whitespace().map(|pid| pid.parse().ok()).collect()
    }

    /// Whether it can be told that an attempt has left nothing although there are templates.
    fn can_tell_children(&mut self) -> bool {
        if self.children.is_none() {
            self.children = File::open("/proc/thread-self/children").ok();
        }
        self.children.is_some()
    }
}

impl Key {
    fn of(start: &Start<'_>) -> Option<Self> {
        let stat = stat(start.program).ok()?;
        let file = [
            stat.st_dev.cast_signed(),
            stat.st_ino.cast_signed(),
            stat.st_ctime,
            stat.st_ctime_nsec,
        ];
        // They have the loader tell or do something at each start.
        let quiet = |text: &CStr| {
            let text = text.to_bytes();
            !text.starts_with(b"LD_")
                || text.starts_with(b"LD_LIBRARY_PATH=")
                || text.starts_with(b"LD_BIND_NOW=")
        };
        if !start.env.iter().all(|text| quiet(text)) {
            return None;
        }
        let goes_by = |text: &[u8]| {
            [&b"LD_"[..], b"GLIBC_", b"MALLOC_"].iter().any(|prefix| text.starts_with(prefix))
        };
        let for_loader: Vec<u8> = start
            .env
            .iter()
            .map(|text| text.to_bytes_with_nul())
            .filter(|text| goes_by(text))
            .flatten()
            .copied()
            .collect();
        Some(Self {
            program: start.program.to_bytes().into(),
            file,
            cwd: start.spawn.cwd.as_ref().into(),
            env_count: start.env.len(),
            for_loader: for_loader.into(),
        })
    }
}
