//! The pipe on which an attempt tells of its progress: cut into lines, each with its time.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::read;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::SlotEvent;
use crate::pipes::readable;
use crate::protocol::{
    AttemptId, PROGRESS_BYTES_MAX, PROGRESS_LINE_BYTES_MAX, ProgressLine, SlotId,
};

/// How long the pipe rests after it has been read: lines that come closer together share a
/// wake-up, and the time that they took together.
const REST: Duration = Duration::from_millis(1);
/// Where lines keep coming thick and fast the rest grows up to this.
const REST_MAX: Duration = Duration::from_millis(8);
/// So many lines in one rest are thick and fast.
const MANY: usize = 8;
/// How long lines are gathered before they are told.
const TELL_AFTER: Duration = Duration::from_millis(50);
/// The most bytes read at once.
const READ_BYTES_MAX: usize = 16 * 1024;

/// A task that reads an attempt's progress. Dropped, it stops.
pub(super) struct Progress {
    task: JoinHandle<()>,
    ended: Option<oneshot::Sender<()>>,
}

impl Progress {
    pub(super) fn start(
        pipe: OwnedFd,
        slot: SlotId,
        attempt: AttemptId,
        events: mpsc::Sender<SlotEvent>,
    ) -> Self {
        let (ended, end) = oneshot::channel();
        let reader = Reader { pipe, slot, attempt, events, lines: Lines::new(), due: None };
        Self { task: tokio::spawn(reader.follow(end)), ended: Some(ended) }
    }

    /// Tells of what is in the pipe now that the attempt has ended, and then no more.
    pub(super) async fn finish(mut self) {
        drop(self.ended.take());
        // It can only fail with the whole runtime.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reader {
    pipe: OwnedFd,
    slot: SlotId,
    attempt: AttemptId,
    events: mpsc::Sender<SlotEvent>,
    lines: Lines,
    /// When what has been gathered is told.
    due: Option<Instant>,
}

impl Reader {
    async fn follow(mut self, mut end: oneshot::Receiver<()>) {
        let (mut open, mut rest) = (true, Duration::ZERO);
        loop {
            tokio::select! {
                biased;
                _ = &mut end => break,
                () = sleep_until(self.due.unwrap_or_else(Instant::now)), if self.due.is_some() => {
                    self.tell().await;
                    continue;
                }
                ready = readable(&self.pipe), if open && rest.is_zero() => open = ready.is_ok(),
                () = sleep(rest), if !rest.is_zero() => {}
            }
            let (before, lines) = (self.lines.total, self.lines.complete.len());
            let state = self.lines.read(&self.pipe, rest);
            open &= matches!(state, Err(error) if error.kind() == ErrorKind::WouldBlock);
            rest = match self.lines.complete.len() - lines {
                _ if !open || self.lines.total == before => Duration::ZERO,
                MANY.. => (rest * 2).clamp(REST, REST_MAX),
                _ => REST,
            };
            if !self.lines.complete.is_empty() {
                self.due.get_or_insert_with(|| Instant::now() + TELL_AFTER);
            }
        }
        let _ = self.lines.read(&self.pipe, rest);
        self.tell().await;
    }

    async fn tell(&mut self) {
        self.due = None;
        let lines = std::mem::take(&mut self.lines.complete);
        if !lines.is_empty() {
            let (slot, attempt) = (self.slot, self.attempt);
            // A receiver that is gone wants no more events.
            let _ = self.events.send(SlotEvent::Progress { slot, attempt, lines }).await;
        }
    }
}

/// Bytes on their way to lines.
struct Lines {
    since: Instant,
    /// When it was read last.
    read_at: Duration,
    partial: Vec<u8>,
    complete: Vec<ProgressLine>,
    total: usize,
}

impl Lines {
    fn new() -> Self {
        let (read_at, partial, complete) = (Duration::ZERO, Vec::new(), Vec::new());
        Self { since: Instant::now(), read_at, partial, complete, total: 0 }
    }

    /// Reads what is there, which has come within `rest`; [`ErrorKind::WouldBlock`] if there may be
    /// more later.
    fn read(&mut self, pipe: &impl AsFd, rest: Duration) -> io::Result<()> {
        let known = self.complete.len();
        let state = self.read_all(pipe);
        self.stamp(known, self.since.elapsed(), rest);
        state
    }

    fn read_all(&mut self, pipe: &impl AsFd) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES_MAX];
        while self.total < PROGRESS_BYTES_MAX {
            match read(pipe, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => self.push(&buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Gives all lines but the first `known` their times: evenly spread over what came before `now`.
    fn stamp(&mut self, known: usize, now: Duration, rest: Duration) {
        let from = self.read_at.max(now.saturating_sub(rest));
        let lines = &mut self.complete[known..];
        let count = lines.len() as u32;
        for (line, number) in lines.iter_mut().zip(1..) {
            line.at = from + (now - from) * number / count;
        }
        self.read_at = now;
    }

    /// Takes in bytes. A line without its newline is none.
    fn push(&mut self, data: &[u8]) {
        let at = Duration::ZERO;
        let data = &data[..data.len().min(PROGRESS_BYTES_MAX.saturating_sub(self.total))];
        self.total += data.len();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = PROGRESS_LINE_BYTES_MAX - self.partial.len();
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                let text = String::from_utf8_lossy(&self.partial).into_owned();
                self.complete.push(ProgressLine { text, at });
                self.partial.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]], expected: &[&str]) {
        let mut lines = Lines::new();
        pieces.iter().for_each(|piece| lines.push(piece));
        let texts: Vec<_> = lines.complete.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, expected);
    }

    #[tokio::test]
    async fn lines_end_with_their_newline() {
        check(&[b"ok a", b"\n", b"ok b\nfai", b"led c\nok"], &["ok a", "ok b", "failed c"]);
        check(&[b"\n\xff\n"], &["", "\u{fffd}"]);
    }

    #[tokio::test]
    async fn lines_of_one_rest_share_its_time() {
        const MS: Duration = Duration::from_millis(1);
        let mut lines = Lines::new();
        let mut times = |text: &[u8], now: u32, rest: u32| {
            let known = lines.complete.len();
            lines.push(text);
            lines.stamp(known, MS * now, MS * rest);
            lines.complete[known..].iter().map(|line| line.at.as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(times(b"a\n", 100, 0), [100], "it was waited for");
        assert_eq!(times(b"b\nc\n", 104, 4), [102, 104]);
        assert_eq!(times(b"", 108, 4), []);
        assert_eq!(times(b"d\ne\n", 300, 0), [300, 300], "both came at once");
        assert_eq!(times(b"f\n", 301, 8), [301], "nothing is read twice");
    }

    #[tokio::test]
    async fn what_is_too_long_is_cut_and_what_is_too_much_is_dropped() {
        let long = vec![b'x'; PROGRESS_LINE_BYTES_MAX + 9];
        check(&[&long, b"\nok\n"], &[&"x".repeat(PROGRESS_LINE_BYTES_MAX), "ok"]);
        let mut lines = Lines::new();
        for _ in 0..PROGRESS_BYTES_MAX {
            lines.push(b"y\n");
        }
        assert_eq!(lines.complete.len(), PROGRESS_BYTES_MAX / 2);
    }
}
