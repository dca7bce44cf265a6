//! What workers say, made fit for use where it enters: numbers that can be added, texts that stay in
//! the line that names them. Pure.
//!
//! A worker is trusted with results, not with the client: it may say anything, and nothing of it may
//! end a run, or begin a line that somebody else seems to have written. Numbers beyond these bounds
//! are taken for the bound, longer texts are cut.

use std::time::Duration;

use distest_worker::hello::Hello;
use distest_worker::protocol::{
    COLLECTED_FILE_BYTES_MAX, CollectedPiece, Finished, INLINE_OUTPUT_BYTES_MAX, Labels, Leak,
    NOTES_MAX, Output, ProgressLine, Refusal, Report, SessionReady, SessionStatus, TIMES_MAX,
    TestTime, Usage, WRITERS_MAX, WorkerStatus, Writer, bounded_times,
};
use distest_worker::shown;

/// Longer than any test takes: hundreds of millions of such times can be added.
pub const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Tests that one worker runs at once.
pub const SLOTS_MAX: u32 = 16_384;
/// Bytes of anything: 1 PiB.
pub const BYTES_MAX: u64 = 1 << 50;
/// Characters of a name, a target, a version, a label.
pub const NAME_CHARS_MAX: usize = 300;
/// Characters of a reason or a hint.
pub const SENTENCE_CHARS_MAX: usize = 2000;
/// Processes that are named of what an attempt left behind.
const LEFT_BEHIND_MAX: usize = 64;
/// Things of one kind in a greeting: labels, tools, instructions.
const LISTED_MAX: usize = 1000;

/// A name, or anything else that is short.
pub fn name(text: &str) -> String {
    bounded(text, NAME_CHARS_MAX)
}

/// What is said, or is to be done.
pub fn sentence(text: &str) -> String {
    bounded(text, SENTENCE_CHARS_MAX)
}

/// What a worker says of itself.
pub fn hello(hello: Hello) -> Hello {
    let names = |names: Vec<String>| names.iter().take(LISTED_MAX).map(|it| name(it)).collect();
    let labels = hello.labels.iter().take(LISTED_MAX);
    let labels: Labels = labels.map(|(key, value)| (name(key), name(value))).collect();
    Hello {
        software: name(&hello.software),
        name: name(&hello.name),
        target: name(&hello.target),
        cpu_features: names(hello.cpu_features),
        libc: name(&hello.libc),
        labels,
        slots: slots(hello.slots),
        tools: names(hello.tools),
        private_network_lack: sentence(&hello.private_network_lack),
        instance: name(&hello.instance),
        refusal: hello.refusal.map(refusal),
        protocol: hello.protocol,
        role: hello.role,
        sandbox_level: hello.sandbox_level,
        private_network: hello.private_network,
        forwards: hello.forwards,
        proofs: hello.proofs,
        comes_back: hello.comes_back,
        comeback: name(&hello.comeback),
    }
}

/// What a session is opened with.
pub fn ready(ready: SessionReady) -> SessionReady {
    let SessionReady { slots: given, sandbox_level, sandbox_reason, sandbox_hint, .. } = ready;
    let times = bounded_times(ready.times).into_iter().map(|it| {
        let most = u64::try_from(TIME_MAX.as_micros()).unwrap_or(u64::MAX);
        TestTime { micros: it.micros.min(most), ..it }
    });
    SessionReady {
        slots: slots(given),
        sandbox_level,
        sandbox_reason: sentence(&sandbox_reason),
        sandbox_hint: sandbox_hint.as_deref().map(sentence),
        times_known: ready.times_known.map(|known| known.min(TIMES_MAX as u32)),
        times: times.collect(),
    }
}

/// Why a worker doesn't do something.
pub fn refusal(refusal: Refusal) -> Refusal {
    let Refusal { kind, message, hint } = refusal;
    Refusal { kind, message: sentence(&message), hint: hint.as_deref().map(sentence) }
}

/// What happened to an attempt.
pub fn report(report: Report) -> Report {
    match report {
        Report::Started { .. } | Report::Draining {} => report,
        Report::Slow { attempt, elapsed } => {
            Report::Slow { attempt, elapsed: elapsed.min(TIME_MAX) }
        }
        Report::Finished(it) => Report::Finished(finished(it)),
        Report::Lost { attempt, reason, detail } => {
            Report::Lost { attempt, reason, detail: sentence(&detail) }
        }
        // Its text is compared with what may come next, and shown nowhere.
        Report::Progress { attempt, lines } => {
            let lines = lines.into_iter();
            let lines = lines.map(|it| ProgressLine { at: it.at.min(TIME_MAX), ..it }).collect();
            Report::Progress { attempt, lines }
        }
    }
}

fn finished(finished: Finished) -> Finished {
    let Usage { user, system, memory_bytes } = finished.usage;
    Finished {
        duration: finished.duration.min(TIME_MAX),
        leak: finished.leak.map(|Leak { processes, output_open }| {
            let processes = processes.iter().take(LEFT_BEHIND_MAX).map(|it| name(it)).collect();
            Leak { processes, output_open }
        }),
        usage: Usage {
            user: user.min(TIME_MAX),
            system: system.min(TIME_MAX),
            memory_bytes: memory_bytes.min(BYTES_MAX),
        },
        stdout: output(finished.stdout),
        stderr: output(finished.stderr),
        notes: finished.notes.iter().take(NOTES_MAX).map(|it| sentence(it)).collect(),
        attempt: finished.attempt,
        exit: finished.exit,
        timed_out: finished.timed_out,
        out_of_memory: finished.out_of_memory,
    }
}

fn output(output: Output) -> Output {
    let Output { mut inline, total, dropped } = output;
    inline.truncate(INLINE_OUTPUT_BYTES_MAX);
    Output { inline, total: total.min(BYTES_MAX), dropped: dropped.min(BYTES_MAX) }
}

/// What goes on at a worker.
pub fn status(status: WorkerStatus) -> WorkerStatus {
    let sessions = status.sessions.iter().map(|it| SessionStatus {
        client: name(&it.client),
        run: name(&it.run),
        running: it.running.min(SLOTS_MAX),
        queued: it.queued,
    });
    WorkerStatus {
        slots: slots(status.slots),
        used: slots(status.used),
        paused: sentence(&status.paused),
        store_bytes: status.store_bytes.min(BYTES_MAX),
        store_bytes_max: status.store_bytes_max.min(BYTES_MAX),
        sandbox_reason: sentence(&status.sandbox_reason),
        sandbox_hint: status.sandbox_hint.as_deref().map(sentence),
        sessions: sessions.collect(),
        disk_free_bytes: status.disk_free_bytes.map(|free| free.min(BYTES_MAX)),
        draining: status.draining,
        short_of_memory: status.short_of_memory,
        clock_ms: status.clock_ms,
        descriptors_max: status.descriptors_max,
        one_client: status.one_client,
    }
}

/// A piece of a file that tests left, as far as it is said of whom it is.
pub fn collected(piece: CollectedPiece) -> CollectedPiece {
    let writers = piece.writers.into_iter().take(WRITERS_MAX);
    let writers = writers.map(|it| Writer { label: sentence(&it.label), ..it }).collect();
    let too_large = piece.too_large.map(|it| it.clamp(COLLECTED_FILE_BYTES_MAX, BYTES_MAX));
    CollectedPiece { writers, too_large, ..piece }
}

fn slots(slots: u32) -> u32 {
    slots.min(SLOTS_MAX)
}

fn bounded(text: &str, most: usize) -> String {
    // No character that is written out becomes shorter.
    let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
    shown::word(&text[..end]).chars().take(most).collect()
}

#[cfg(test)]
mod tests;
