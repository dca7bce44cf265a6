//! What an attempt's end says about the test. Pure.

use distest_worker::protocol::{Exit, Finished, LossReason};

use crate::model::AttemptResult;

/// How an attempt counts, and why in words (empty for a plain pass).
pub(crate) fn judge(finished: &Finished) -> (AttemptResult, String) {
    if finished.timed_out {
        let seconds = finished.duration.as_secs_f64();
        return (AttemptResult::Timeout, format!("timed out after {seconds:.1} s"));
    }
    match finished.exit {
        Exit::Signal(_) if finished.out_of_memory => {
            (AttemptResult::Crashed, "out of memory".to_owned())
        }
        Exit::Signal(number) => (AttemptResult::Crashed, signal(number)),
        Exit::Code(0) => match &finished.leak {
            None => (AttemptResult::Pass, String::new()),
            Some(leak) if leak.processes.is_empty() => {
                (AttemptResult::Leak, "left its output open".to_owned())
            }
            Some(leak) => {
                let left = format!("left behind: {}", leak.processes.join(", "));
                (AttemptResult::Leak, left)
            }
        },
        Exit::Code(code) => (AttemptResult::Fail, format!("exited with code {code}")),
    }
}

/// Whether a process met an instruction that its processor doesn't know.
pub(super) fn is_illegal(exit: Exit) -> bool {
    exit == Exit::Signal(nix::sys::signal::Signal::SIGILL as i32)
}

/// `signal 11 (SIGSEGV)`.
pub(super) fn signal(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(name) => format!("signal {number} ({name})"),
        Err(_) => format!("signal {number}"),
    }
}

/// A loss in words.
pub(super) fn loss(reason: LossReason, detail: &str) -> String {
    let what = match reason {
        LossReason::Dropped => "not started",
        LossReason::Stopped => "stopped",
        LossReason::CouldNotStart => "could not be started",
        LossReason::HelperDied => "the process that watched it died",
        LossReason::OutOfResources => "the worker ran out of resources",
    };
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use distest_worker::protocol::{self, AttemptId, Output, Usage};

    fn check(
        exit: Exit,
        timed_out: bool,
        leak: Option<protocol::Leak>,
        expected: AttemptResult,
        why: &str,
    ) {
        use AttemptResult::Crashed;
        let finished = Finished {
            attempt: AttemptId(0),
            exit,
            timed_out,
            duration: Duration::from_millis(1500),
            leak,
            out_of_memory: false,
            usage: Usage::default(),
            stdout: Output::default(),
            stderr: Output::default(),
            notes: Vec::new(),
        };
        assert_eq!(judge(&finished), (expected, why.to_owned()));
        if let Exit::Signal(_) = exit {
            let finished = Finished { out_of_memory: true, timed_out: false, ..finished };
            assert_eq!(judge(&finished), (Crashed, "out of memory".to_owned()));
        }
    }

    #[test]
    fn every_way_to_end_has_its_name() {
        use AttemptResult::*;
        let left =
            |name: &str| protocol::Leak { processes: vec![name.to_owned()], output_open: false };
        check(Exit::Code(0), false, None, Pass, "");
        check(Exit::Code(101), false, None, Fail, "exited with code 101");
        check(Exit::Signal(11), false, None, Crashed, "signal 11 (SIGSEGV)");
        check(Exit::Signal(15), true, None, Timeout, "timed out after 1.5 s");
        check(Exit::Code(0), false, Some(left("sh (pid 7)")), Leak, "left behind: sh (pid 7)");
        check(Exit::Code(1), false, Some(left("sh (pid 7)")), Fail, "exited with code 1");
        check(Exit::Code(0), false, Some(Default::default()), Leak, "left its output open");
    }
}
