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
use super::pump::readable;
use crate::protocol::{
    AttemptId, PROGRESS_BYTES_MAX, PROGRESS_LINE_BYTES_MAX, ProgressLine, SlotId,
};

/// How long the pipe rests after it has been read: lines that come closer together share a time
/// and a wake-up.
const REST: Duration = Duration::from_millis(1);
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
        let (mut open, mut resting) = (true, false);
        loop {
            tokio::select! {
                biased;
                _ = &mut end => break,
                () = sleep_until(self.due.unwrap_or_else(Instant::now)), if self.due.is_some() => {
                    self.tell().await;
                    continue;
                }
                ready = readable(&self.pipe), if open && !resting => open = ready.is_ok(),
                () = sleep(REST), if resting => {}
            }
            let before = self.lines.total;
            let state = self.lines.read(&self.pipe);
            open &= matches!(state, Err(error) if error.kind() == ErrorKind::WouldBlock);
            resting = open && self.lines.total > before;
            if !self.lines.complete.is_empty() {
                self.due.get_or_insert_with(|| Instant::now() + TELL_AFTER);
            }
        }
        let _ = self.lines.read(&self.pipe);
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
    partial: Vec<u8>,
    complete: Vec<ProgressLine>,
    total: usize,
}

impl Lines {
    fn new() -> Self {
        Self { since: Instant::now(), partial: Vec::new(), complete: Vec::new(), total: 0 }
    }

    /// Reads what is there; [`ErrorKind::WouldBlock`] if there may be more later.
    fn read(&mut self, pipe: &impl AsFd) -> io::Result<()> {
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

    /// Takes in bytes. A line without its newline is none.
    fn push(&mut self, data: &[u8]) {
        let at = self.since.elapsed();
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
