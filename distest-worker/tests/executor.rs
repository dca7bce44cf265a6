//! The executor with real zygotes and real processes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distest_worker::executor::{
    Deadline, ExecutorOptions, HELPER_DEATHS_MAX, SlotCommand, SlotEvent, SlotExit, Slots,
    SpawnRequest,
};
use distest_worker::output::Capture;
use distest_worker::protocol::{AttemptId, Exit, LossReason, Network, SlotId, Stream, Streams};
use distest_worker::zygote::ZygoteProgram;
use tokio::sync::mpsc;

#[path = "executor/template.rs"]
mod template;

const SLOT: SlotId = SlotId(0);
/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);
const NONE_IGNORED: &str = "SigIgn:\t0000000000000000";

/// One slot. Dropping it, on a failed assertion too, kills all that runs in it.
struct Rig {
    slots: Slots,
    events: mpsc::Receiver<SlotEvent>,
    scratch: tempfile::TempDir,
    deadline: Arc<Deadline>,
    attempts: u64,
}

/// Runs a test on a fresh slot that is ready.
fn with_slot(test: impl AsyncFnOnce(&mut Rig)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rig = Rig::start().await;
        tokio::time::timeout(PATIENCE, test(&mut rig)).await.expect("the test hangs");
        tokio::time::timeout(PATIENCE, rig.slots.end()).await.expect("the slots don't end");
    });
}

impl Rig {
    async fn start() -> Self {
        let mut rig = Self::with_zygote(env!("CARGO_BIN_EXE_distest-worker"));
        assert!(matches!(rig.next().await, SlotEvent::Ready { slot: SLOT }));
        rig
    }

    fn with_zygote(program: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let zygote = ZygoteProgram::new(program);
        let deadline = Arc::new(Deadline::new().unwrap());
        let options = ExecutorOptions {
            scratch: scratch.path().into(),
            zygote,
            enclosure: None,
            wanted: None,
            deadline: Arc::clone(&deadline),
        };
        let (sender, events) = mpsc::channel(4);
        let slots = Slots::start(1, options, sender);
        Self { slots, events, scratch, deadline, attempts: 0 }
    }

    /// A request to run a shell script.
    fn script(&mut self, script: &str, streams: Streams) -> SpawnRequest {
        self.attempts += 1;
        SpawnRequest {
            attempt: AttemptId(self.attempts),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: [("PATH".into(), std::env::var_os("PATH").unwrap())].into_iter().collect(),
            cwd: self.scratch.path().into(),
            streams,
            progress: false,
            leak_timeout: Duration::from_millis(200),
            layer: 0,
            network: Network::Host,
            forwards: Vec::new(),
        }
    }

    fn spawn(&self, request: SpawnRequest) {
        self.command(SlotCommand::Spawn(Box::new(request)));
    }

    fn command(&self, command: SlotCommand) {
        self.slots.command(SLOT, command);
    }

    async fn next(&mut self) -> SlotEvent {
        self.events.recv().await.expect("no more events")
    }

    /// Waits until a live script has written `count` lines to its standard output.
    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut text = Vec::new();
        loop {
            match self.next().await {
                SlotEvent::Spawned { .. } | SlotEvent::StdinTaken { .. } => {}
                SlotEvent::Output { stream: Stream::Stdout, data, .. } => text.extend(data),
                other => panic!("{other:?} came before the output"),
            }
            let text = String::from_utf8_lossy(&text);
            if text.matches('\n').count() >= count {
                return text.lines().map(Into::into).collect();
            }
        }
    }

    /// Waits for the end, and passes over output.
    async fn exit(&mut self) -> SlotExit {
        loop {
            match self.next().await {
                SlotEvent::Exited(exit) => return *exit,
                SlotEvent::Spawned { .. }
                | SlotEvent::Output { .. }
                | SlotEvent::StdinTaken { .. } => {}
                other => panic!("{other:?} instead of an exit"),
            }
        }
    }

    /// Runs a script to its end.
    async fn run(&mut self, script: &str) -> SlotExit {
        let request = self.script(script, Streams::Capture);
        self.run_request(request).await
    }

    async fn run_request(&mut self, request: SpawnRequest) -> SlotExit {
        let attempt = request.attempt;
        self.spawn(request);
        let exit = self.exit().await;
        assert_eq!((exit.slot, exit.attempt), (SLOT, attempt));
        exit
    }

    async fn check_does_not_spawn(&mut self, request: SpawnRequest, detail: &[&str]) {
        let sent = request.attempt;
        self.spawn(request);
        match self.next().await {
            SlotEvent::CouldNotSpawn { slot: SLOT, attempt, reason, detail: said } => {
                assert_eq!((attempt, reason), (sent, LossReason::CouldNotStart));
                for part in detail {
                    assert!(said.contains(part), "{said:?} doesn't say {part:?}");
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn text(capture: &Capture) -> String {
    assert_eq!(capture.dropped(), 0);
    String::from_utf8_lossy(&capture.to_output().inline).into_owned()
}

/// Whether a process exists that has not ended.
fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// Waits for the end of a process that isn't ours to wait for.
fn wait_until_dead(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        std::thread::yield_now();
    }
}

#[test]
fn an_attempt_gets_what_it_was_given_and_nothing_else() {
    with_slot(async |rig| {
        let mut request = rig.script(
            "pwd; env | sort; echo /proc/self/fd/*; grep -E 'Sig(Blk|Ign)' /proc/self/status
             ps -o pgid= -p $$ | tr -d ' ' | grep -qx $$ && echo leader; cat; echo err >&2; exit 7",
            Streams::Capture,
        );
        request.env.set("NAME", "a value");
        let path = request.env.get(OsStr::new("PATH")).unwrap().to_str().unwrap().to_owned();
        let exit = rig.run_request(request).await;
        let cwd = rig.scratch.path().canonicalize().unwrap();
        assert_eq!(exit.exit, Exit::Code(7));
        // The shell adds PWD; the fourth descriptor is the folder that it lists; glibc ignores its
        // own two signals (32 and 33) in whatever posix_spawn starts.
        let printed = text(&exit.stdout).replace("SigIgn:\t0000000180000000", NONE_IGNORED);
        let expected = format!(
            "{cwd}\nNAME=a value\nPATH={path}\nPWD={cwd}\n\
             /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n\
             SigBlk:\t0000000000000000\n{NONE_IGNORED}\nleader\n",
            cwd = cwd.display()
        );
        assert_eq!(printed, expected);
        assert_eq!(text(&exit.stderr), "err\n");
        assert_eq!(exit.leak, None);
        assert!(exit.usage.memory_bytes > 100_000 && exit.duration > Duration::ZERO);
        assert!(exit.usage.user + exit.usage.system > Duration::ZERO);
    });
}

#[test]
fn death_by_a_signal_is_told_as_such() {
    with_slot(async |rig| {
        assert_eq!(rig.run("kill -SEGV $$").await.exit, Exit::Signal(11));
        assert_eq!(rig.run("exit 139").await.exit, Exit::Code(139));
    });
}

#[test]
fn a_leak_is_named_and_killed_even_if_it_left_its_session() {
    with_slot(async |rig| {
        let exit = rig
            .run(
                "setsid sleep 1000 >/dev/null 2>&1 & echo $!
                  until [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done",
            )
            .await;
        let pid = text(&exit.stdout).trim().parse().unwrap();
        assert_eq!(exit.exit, Exit::Code(0));
        let leak = exit.leak.unwrap();
        assert_eq!((leak.processes, leak.output_open), (vec![format!("sleep (pid {pid})")], false));
        assert!(!is_alive(pid));
        assert_eq!(rig.run("true").await.leak, None, "the next attempt has nothing to do with it");
    });
}

#[test]
fn what_ends_in_time_is_no_leak_and_its_output_counts() {
    with_slot(async |rig| {
        let mut request = rig.script("(sleep 0.1; echo late) & echo early", Streams::Capture);
        request.leak_timeout = PATIENCE;
        let exit = rig.run_request(request).await;
        assert_eq!((exit.leak, text(&exit.stdout)), (None, "early\nlate\n".into()));
    });
}

#[test]
fn output_held_open_from_outside_is_a_leak_and_ends_all_the_same() {
    with_slot(async |rig| {
        let request = rig.script("echo $$; read line; echo bye", Streams::LiveWithStdin);
        rig.spawn(request);
        let pid = rig.lines(1).await.remove(0);
        let held = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
        rig.command(SlotCommand::Stdin(Bytes::new()));
        assert_eq!(rig.lines(1).await, ["bye"]);
        let leak = rig.exit().await.leak.unwrap();
        assert_eq!((leak.processes, leak.output_open), (vec![], true));
        drop(held);
    });
}

#[test]
fn much_output_is_kept_whole_but_not_in_memory() {
    with_slot(async |rig| {
        let exit = rig.run("yes 0123456789abcde | head -c 200000000").await;
        assert_eq!(
            (exit.exit, exit.stdout.total(), exit.stdout.dropped()),
            (Exit::Code(0), 200_000_000, 0)
        );
        let mut chunks = exit.stdout.into_chunks();
        let mut offset = 0;
        while let Some(chunk) = chunks.next().await.unwrap() {
            let pattern = b"0123456789abcde\n".repeat(2);
            let shift = offset % 16;
            assert_eq!(&chunk[..16], &pattern[shift..shift + 16]);
            offset += chunk.len();
        }
        assert_eq!(offset, 200_000_000);
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kibibytes < 100 << 10, "{kibibytes} KiB");
    });
}

#[test]
fn terminate_can_be_caught_and_kill_cannot() {
    with_slot(async |rig| {
        let script = "trap 'echo caught' TERM; echo ready; while :; do sleep 1000 & wait; done";
        let request = rig.script(script, Streams::Live);
        rig.spawn(request);
        assert_eq!(rig.lines(1).await, ["ready"]);
        rig.command(SlotCommand::Terminate);
        assert_eq!(rig.lines(1).await, ["caught"]);
        rig.command(SlotCommand::Kill);
        let exit = rig.exit().await;
        assert_eq!((exit.exit, exit.leak), (Exit::Signal(9), None));

        let request = rig.script("echo ready; exec sleep 1000", Streams::Live);
        rig.spawn(request);
        rig.lines(1).await;
        rig.command(SlotCommand::Terminate);
        assert_eq!(rig.exit().await.exit, Exit::Signal(15));
    });
}

#[test]
fn kill_reaches_what_left_the_process_group() {
    with_slot(async |rig| {
        let request =
            rig.script("setsid sleep 1000 >/dev/null 2>&1 & echo $!; wait", Streams::Live);
        rig.spawn(request);
        let pid = rig.lines(1).await.remove(0).parse().unwrap();
        rig.command(SlotCommand::Kill);
        let exit = rig.exit().await;
        assert_eq!((exit.exit, exit.leak, is_alive(pid)), (Exit::Signal(9), None, false));
    });
}

#[test]
fn standard_input_arrives_whole_and_is_answered() {
    with_slot(async |rig| {
        let request = rig.script("cat", Streams::LiveWithStdin);
        rig.spawn(request);
        let piece = Bytes::from(b"0123456789".repeat(20_000));
        for _ in 0..3 {
            rig.command(SlotCommand::Stdin(piece.clone()));
        }
        rig.command(SlotCommand::Stdin(Bytes::new()));
        let (mut received, mut taken) = (Vec::new(), 0);
        let exit = loop {
            match rig.next().await {
                SlotEvent::Output { data, .. } => received.extend(data),
                SlotEvent::StdinTaken { .. } => taken += 1,
                SlotEvent::Spawned { .. } => {}
                SlotEvent::Exited(exit) => break exit,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((exit.exit, exit.stdout.total()), (Exit::Code(0), 600_000));
        assert!(received == piece.repeat(3) && taken >= 3);
    });
}

#[test]
fn an_environment_may_be_huge() {
    with_slot(async |rig| {
        let mut request = rig.script("env | wc -c", Streams::Capture);
        let value = OsString::from("x".repeat(1000));
        (0..500).for_each(|n| request.env.set(format!("HUGE_{n:03}"), &value));
        let length: usize = text(&rig.run_request(request).await.stdout).trim().parse().unwrap();
        assert!(length > 500_000, "{length}");
    });
}

#[test]
fn what_cannot_start_says_why_and_spoils_nothing() {
    with_slot(async |rig| {
        let missing = PathBuf::from("/nonexistent/program");
        let request = SpawnRequest { program: missing, ..rig.script("", Streams::Capture) };
        rig.check_does_not_spawn(
            request,
            &["could not start /nonexistent/program", "No such file"],
        )
        .await;
        let plain = rig.scratch.path().join("plain");
        fs::write(&plain, "#!/bin/sh\n").unwrap();
        let request = SpawnRequest { program: plain, ..rig.script("", Streams::Capture) };
        rig.check_does_not_spawn(request, &["plain", "Permission denied"]).await;
        let request =
            SpawnRequest { cwd: "/nonexistent".into(), ..rig.script("", Streams::Capture) };
        rig.check_does_not_spawn(request, &["could not enter /nonexistent"]).await;
        let request =
            SpawnRequest { args: vec!["a\0b".into()], ..rig.script("", Streams::Capture) };
        rig.check_does_not_spawn(request, &["NUL"]).await;
        assert_eq!(rig.run("exit 3").await.exit, Exit::Code(3));
    });
}

#[test]
fn a_dead_zygote_is_our_loss_and_leaves_no_process() {
    with_slot(async |rig| {
        let script = "sleep 1000 & echo $PPID; echo $$; echo $!; wait";
        let request = rig.script(script, Streams::Live);
        let sent = request.attempt;
        rig.spawn(request);
        let pids: Vec<i32> = rig.lines(3).await.iter().map(|line| line.parse().unwrap()).collect();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[0]), nix::sys::signal::SIGKILL)
            .unwrap();
        match rig.next().await {
            SlotEvent::HelperDied { slot: SLOT, attempt, .. } => assert_eq!(attempt, Some(sent)),
            other => panic!("{other:?}"),
        }
        pids.into_iter().for_each(wait_until_dead);
        assert!(matches!(rig.next().await, SlotEvent::Ready { slot: SLOT }));
        assert_eq!(rig.run("exit 3").await.exit, Exit::Code(3));
    });
}

#[test]
fn a_slot_whose_zygotes_keep_dying_is_given_up() {
    with_slot(async |rig| {
        *rig = Rig::with_zygote("/bin/false");
        // What it was given waits for the next one each time.
        let request = rig.script("", Streams::Capture);
        rig.spawn(request);
        let mut deaths = 0;
        let detail = loop {
            match rig.next().await {
                SlotEvent::Ready { .. } => {}
                SlotEvent::HelperDied { attempt: None, .. } => deaths += 1,
                SlotEvent::Gone { slot: SLOT, detail } => break detail,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(deaths, HELPER_DEATHS_MAX);
        assert!(detail.contains("exit status: 1"), "{detail}");
    });
}

#[test]
fn ending_the_slots_leaves_no_process() {
    with_slot(async |rig| {
        let request =
            rig.script("setsid sleep 1000 & echo $PPID; echo $$; echo $!; wait", Streams::Live);
        rig.spawn(request);
        let pids = rig.lines(3).await;
        let fresh = Rig::start().await;
        std::mem::replace(rig, fresh).slots.end().await;
        for pid in pids {
            assert!(!is_alive(pid.parse().unwrap()), "{pid} lives on");
        }
    });
}

/// A test that stops the process that watches it costs that process, and is nobody's failure.
#[test]
fn a_zygote_that_stops_answering_counts_as_dead() {
    with_slot(async |rig| {
        let request = rig.script("kill -STOP $PPID; sleep 1000", Streams::Capture);
        let attempt = request.attempt;
        rig.spawn(request);
        loop {
            match rig.next().await {
                SlotEvent::HelperDied { attempt: lost, detail, .. } => {
                    assert_eq!(lost, Some(attempt));
                    assert!(detail.contains("doesn't answer"), "{detail}");
                    break;
                }
                SlotEvent::Spawned { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(rig.next().await, SlotEvent::Ready { slot: SLOT }));
    });
}

/// Nobody renews it, as in a worker that stands still.
#[test]
fn what_runs_beyond_the_deadline_is_ended_and_is_our_loss() {
    with_slot(async |rig| {
        let request = rig.script("setsid sleep 1000 & echo $!; echo $$; wait", Streams::Live);
        let attempt = request.attempt;
        rig.spawn(request);
        let pids = rig.lines(2).await;
        rig.deadline.renew(Some(Duration::ZERO));
        match rig.next().await {
            SlotEvent::HelperDied { attempt: lost, .. } => assert_eq!(lost, Some(attempt)),
            other => panic!("{other:?}"),
        }
        for pid in pids {
            assert!(!is_alive(pid.parse().unwrap()));
        }
        assert!(matches!(rig.next().await, SlotEvent::Ready { slot: SLOT }));
        // Renewed in time, again and again, it ends nothing.
        let request = rig.script("until [ -e enough ]; do :; done; exit 9", Streams::Capture);
        rig.deadline.renew(Some(PATIENCE));
        rig.spawn(request);
        assert!(matches!(rig.next().await, SlotEvent::Spawned { .. }));
        for _ in 0..100 {
            rig.deadline.renew(Some(Duration::from_secs(10)));
            rig.deadline.renew(Some(PATIENCE));
        }
        fs::write(rig.scratch.path().join("enough"), "").unwrap();
        assert_eq!(rig.exit().await.exit, Exit::Code(9));
    });
}

/// Starts itself again as the worker that is to be killed.
#[test]
fn a_killed_worker_leaves_no_process() {
    const TO_BE_KILLED: &str = "DISTEST_TEST_TO_BE_KILLED";
    if std::env::var_os(TO_BE_KILLED).is_some() {
        return run_until_killed();
    }
    // It can't clean up after itself.
    let folder = tempfile::tempdir().unwrap();
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_worker_leaves_no_process", "--nocapture"])
        .env("TMPDIR", folder.path())
        .env(TO_BE_KILLED, "yes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    let pids: Vec<i32> = lines
        .filter_map(|line| line.unwrap().strip_prefix("pid ").map(|pid| pid.parse().unwrap()))
        .take(3)
        .collect();
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert_eq!(pids.len(), 3);
    pids.into_iter().for_each(wait_until_dead);
}

/// Runs a test that never ends, and one that left its session.
fn run_until_killed() {
    with_slot(async |rig| {
        let script = "setsid sleep 1000 & echo pid $!; echo pid $$; echo pid $PPID; wait";
        let request = rig.script(script, Streams::Live);
        rig.spawn(request);
        let mut stdout = std::io::stdout();
        for line in rig.lines(3).await {
            writeln!(stdout, "\n{line}").unwrap();
        }
        rig.exit().await;
    });
}

#[test]
fn the_word_alone_is_refused() {
    let output = Command::new(Path::new(env!("CARGO_BIN_EXE_distest-worker")))
        .arg(distest_worker::zygote::ZYGOTE_WORD)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("own use only"));
}

#[tokio::test]
async fn progress_is_told_line_by_line_before_the_exit() {
    let mut rig = Rig::start().await;
    let script = "read line < fifo; echo \"$line\" >&3; printf 'ok b\\nfailed c\\nhalf' >&3";
    let made = std::process::Command::new("mkfifo").arg(rig.scratch.path().join("fifo")).status();
    assert!(made.unwrap().success());
    let request = SpawnRequest { progress: true, ..rig.script(script, Streams::Capture) };
    rig.spawn(request);
    assert!(matches!(rig.next().await, SlotEvent::Spawned { .. }));
    std::fs::write(rig.scratch.path().join("fifo"), "ok a\n").unwrap();
    let mut told = Vec::new();
    loop {
        match rig.next().await {
            SlotEvent::Progress { lines, .. } => told.extend(lines.into_iter().map(|l| l.text)),
            SlotEvent::Exited(exit) => break assert_eq!(exit.exit, Exit::Code(0)),
            other => panic!("{other:?} instead of progress"),
        }
    }
    assert_eq!(told, ["ok a", "ok b", "failed c"]);
    rig.slots.end().await;
}

#[tokio::test]
async fn many_tests_in_one_process_interrupt_nobody() {
    let mut rig = Rig::start().await;
    let made = std::process::Command::new("mkfifo").arg(rig.scratch.path().join("fifo")).status();
    assert!(made.unwrap().success());
    for (progress, policy) in [(false, libc::SCHED_OTHER), (true, libc::SCHED_BATCH)] {
        let script = rig.script("read line < fifo; cat /proc/self/stat", Streams::Capture);
        rig.spawn(SpawnRequest { progress, ..script });
        assert!(matches!(rig.next().await, SlotEvent::Spawned { .. }));
        std::fs::write(rig.scratch.path().join("fifo"), "go\n").unwrap();
        let SlotEvent::Exited(exit) = rig.next().await else { panic!("it ends") };
        // The 41st number, and the second may have spaces.
        let stat = text(&exit.stdout);
        let words = stat.rsplit_once(')').unwrap().1.split_whitespace();
        assert_eq!(words.collect::<Vec<_>>()[38], policy.to_string());
    }
    rig.slots.end().await;
}
