//! Workers that are started where ssh leads: nothing needs to be installed there.
//!
//! The system's own `ssh` does the talking, so configuration, agents, jump hosts and shared
//! connections work as ever. One call starts the worker if its executable is there, by digest; if
//! not, a second copies it and a third starts it. The worker speaks on the call's standard streams
//! and ends with them: when the run ends, however it ends, nothing is left running there.

pub(super) mod executable;
mod script;

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use self::executable::Executable;
use self::script::Said;
use super::connection::{self, Connection};
use super::greeting::Greeted;
use super::stopwatch::Stopwatch;
use super::{CONNECT_TIMEOUT, Fleet, Unusable};
use crate::model::Step;

/// How long ssh may take to connect and the other side's shell to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long copying an executable may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(300);
/// The most bytes of a line on stdout before the worker speaks, and the most lines: a shell's
/// start-up files may chatter.
const LINE_BYTES_MAX: u64 = 4096;
const LINES_MAX: usize = 100;
/// What is kept of stderr, to say why it failed.
const STDERR_BYTES_MAX: usize = 4096;

/// Where ssh leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// As whom, if not as ssh's configuration says.
    pub(super) user: Option<&'a str>,
    /// Never begins with a dash: addresses are parsed so.
    pub(super) host: &'a str,
    /// Port, if not as ssh's configuration says.
    pub(super) port: Option<u16>,
}

/// A worker's standard streams, by way of ssh's.
pub(super) type Stream = tokio::io::Join<BufReader<ChildStdout>, ChildStdin>;

/// Starts a worker there and opens a session.
pub(super) async fn launch(
    fleet: &Fleet,
    target: &Target<'_>,
    address: String,
) -> Result<Connection, Unusable> {
    let mut watch = Stopwatch::start();
    let (stream, stderr) = start(&fleet.shared.settings.ssh_program, target, &mut watch).await?;
    let opened = async {
        let greeted = Greeted::behind(target.host, stream).await?;
        watch.done(Step::Hello);
        connection::over(fleet, greeted, address, watch).await
    };
    opened.await.map_err(|unusable| stderr.explain(unusable))
}

/// Starts a worker there. It ends with the stream.
pub(super) async fn start(
    program: &str,
    target: &Target<'_>,
    watch: &mut Stopwatch,
) -> Result<(Stream, Stderr), Unusable> {
    let ours = executable::own().await?;
    watch.done(Step::Read);
    let mut call = Call::start(program, target, &script::start(&ours))?;
    call.reached().await?;
    watch.done(Step::Connect);
    let answer = call.answer().await?;
    watch.done(Step::Probe);
    let mut call = match answer {
        Said::Have => call,
        Said::Lack(machine) => {
            let chosen = executable::choose(ours, &machine).await?;
            copy(program, target, &chosen).await?;
            watch.done(Step::Copy);
            let mut call = Call::start(program, target, &script::start(&chosen))?;
            call.reached().await?;
            match call.answer().await? {
                Said::Have => call,
                Said::Lack(_) => {
                    return Err(Unusable::new("the executable was copied there and is gone again"));
                }
                Said::Reached | Said::Copied => return Err(unasked()),
            }
        }
        Said::Reached | Said::Copied => return Err(unasked()),
    };
    // It speaks first. If it doesn't, greeting it says so.
    let _ = timeout(CONNECT_TIMEOUT, call.stdout.fill_buf()).await;
    watch.done(Step::Start);
    let Call { stdin, stdout, stderr, mut child } = call;
    // Reaps ssh, which ends when its stdin does.
    tokio::spawn(async move { child.wait().await });
    Ok((tokio::io::join(stdout, stdin), stderr))
}

fn unasked() -> Unusable {
    Unusable::new("it answers what was not asked")
}

/// Puts an executable there: under a name of its own, then renamed.
async fn copy(program: &str, target: &Target<'_>, it: &Executable) -> Result<(), Unusable> {
    let mut call = Call::start(program, target, &script::copy(it))?;
    let copied = timeout(COPY_TIMEOUT, async {
        let mut file = tokio::fs::File::open(&it.path).await?;
        tokio::io::copy(&mut file, &mut call.stdin).await?;
        call.stdin.shutdown().await
    });
    let failed = |why: String| Unusable::new(format!("could not copy the worker there: {why}"));
    let copied = copied.await.map_err(|_| failed("it takes too long".to_owned()))?;
    // ssh's end of input is ours.
    let Call { stdin, stdout, stderr, child } = call;
    drop(stdin);
    let answer = read_answer(stdout, &stderr, child).await;
    match (copied, answer) {
        (Ok(()), Ok((Said::Copied, ..))) => Ok(()),
        (Ok(()), Ok(_)) => Err(failed(stderr.text())),
        (_, Err(unusable)) => Err(failed(unusable.reason)),
        (Err(error), Ok(_)) => Err(failed(error.to_string())),
    }
}

/// One call of ssh.
struct Call {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Stderr,
    child: Child,
}

impl Call {
    fn start(program: &str, target: &Target<'_>, script: &str) -> Result<Self, Unusable> {
        let mut command = Command::new(program);
        // Nobody is asked for a password in the middle of a run.
        command.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]);
        command.args(["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"]);
        if let Some(port) = target.port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(user) = target.user {
            command.args(["-l", user]);
        }
        command.args(["--", target.host]).arg(format!("sh -c '{script}'"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C is for us: we end sessions in order, and ssh with them.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            Unusable::new(format!("could not start `{program}`: {error}"))
                .hint("install an OpenSSH client, or name one in DISTEST_SSH")
        })?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(Unusable::new("ssh has no standard streams"));
        };
        let (stdout, stderr) = (BufReader::new(stdout), Stderr::read(stderr));
        Ok(Self { stdin, stdout, stderr, child })
    }

    /// The other side's shell runs our script.
    async fn reached(&mut self) -> Result<(), Unusable> {
        match self.answer().await? {
            Said::Reached => Ok(()),
            _ => Err(unasked()),
        }
    }

    async fn answer(&mut self) -> Result<Said, Unusable> {
        let answer = timeout(ANSWER_TIMEOUT, answer(&mut self.stdout)).await;
        match answer {
            Ok(Some(said)) => Ok(said),
            Ok(None) => Err(failed(&mut self.child, &self.stderr).await),
            Err(_) => {
                let seconds = ANSWER_TIMEOUT.as_secs();
                Err(Unusable::new(format!("ssh brought no answer within {seconds} s")))
            }
        }
    }
}

async fn read_answer(
    mut stdout: BufReader<ChildStdout>,
    stderr: &Stderr,
    mut child: Child,
) -> Result<(Said, Child), Unusable> {
    match timeout(ANSWER_TIMEOUT, answer(&mut stdout)).await {
        Ok(Some(said)) => Ok((said, child)),
        _ => Err(failed(&mut child, stderr).await),
    }
}

/// The first line that our script says. None if there is none.
async fn answer(stdout: &mut BufReader<ChildStdout>) -> Option<Said> {
    for _ in 0..LINES_MAX {
        let mut line = Vec::new();
        let read = stdout.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if read.ok()? == 0 {
            return None;
        }
        if let Some(said) = Said::parse(&String::from_utf8_lossy(&line)) {
            return Some(said);
        }
    }
    None
}

async fn failed(child: &mut Child, stderr: &Stderr) -> Unusable {
    let status = timeout(Duration::from_secs(1), child.wait()).await;
    let status = match status {
        Ok(Ok(status)) => format!("ssh ended with {status}"),
        _ => "ssh brought no answer".to_owned(),
    };
    let said = stderr.whole().await;
    let reason = if said.is_empty() { status } else { format!("{status}: {said}") };
    Unusable::new(reason).hint("try it by hand: ssh must connect without a password or a question")
}

/// The last of what ssh, and the worker behind it, wrote to stderr.
#[derive(Clone)]
pub(super) struct Stderr {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Whoever reads has let go of it: all was read.
    reading: watch::Receiver<()>,
}

impl Stderr {
    fn read(mut pipe: ChildStderr) -> Self {
        let kept = Arc::<Mutex<Vec<u8>>>::default();
        let (reads, reading) = watch::channel(());
        let this = Self { kept: Arc::clone(&kept), reading };
        tokio::spawn(async move {
            let _reads = reads;
            let mut piece = [0; 1024];
            while let Ok(read @ 1..) = pipe.read(&mut piece).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&piece[..read]);
                let excess = kept.len().saturating_sub(STDERR_BYTES_MAX);
                kept.drain(..excess);
            }
        });
        this
    }

    /// All that a process that has ended said, if nobody else holds its stderr open.
    async fn whole(&self) -> String {
        let _ = timeout(Duration::from_secs(1), self.reading.clone().changed()).await;
        self.text()
    }

    /// With what was said there, if anything was.
    pub(super) fn explain(&self, unusable: Unusable) -> Unusable {
        let said = self.text();
        if said.is_empty() { unusable } else { unusable.hint(format!("it said: {said}")) }
    }

    /// In one line, safe to print.
    fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines.join("; ")
    }
}
