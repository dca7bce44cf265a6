//! The doctests of a run, after its other tests.
//!
//! rustdoc builds and judges them; each executable comes back to us through the runner's shim and
//! runs on the run's workers. Which worker had which doctest rustdoc doesn't say, so all of them
//! are told under its own name.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distest_worker::protocol::Usage;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;

use super::Line;
use crate::doctest::parse::{Listed, Outcome, Reader, Said};
use crate::doctest::{self, Library};
use crate::event::{
    AttemptEnded, CancelReason, CapturedOutput, PlanComplete, RunEvent, SkipReason, WorkerInfo,
};
use crate::failure::{ExitCode, Failure};
use crate::model::{AttemptResult, ListedCase, TestCase, TestIndex, TestName, Verdict, WorkerId};
use crate::plan;
use crate::runner::{SOCKET_VARIABLE, Server, Surroundings};
use crate::settings::{Doctests, MaxFail, RunIgnored};
use crate::shard::{self, Candidate};
use crate::testenv;

/// Stands for whoever ran a doctest.
const RUSTDOC: WorkerId = WorkerId(u32::MAX);
/// Rounds that are repeated for free because a worker was lost.
const LOSSES_MAX: u32 = 5;
/// Lines of cargo's that are kept, for telling why it failed.
const TAIL_LINES: usize = 200;

/// A doctest that is to run.
struct Doctest {
    index: TestIndex,
    case: TestCase,
    library: Library,
}

type Key = (String, String);
type Tests = BTreeMap<Key, Doctest>;

/// How a round went.
#[derive(Default)]
struct Round {
    failed: BTreeSet<Key>,
    outputs: BTreeMap<Key, String>,
    /// What cargo printed last.
    tail: Vec<String>,
    interrupted: bool,
    losses: u64,
}

/// Lists, selects and runs the doctests. `plan` is what the run had before, and grows by them.
/// Answers whether it was interrupted.
pub(super) async fn run(
    line: &Line,
    plan: &mut PlanComplete,
    mut interrupted: Interrupted,
) -> Result<bool, Failure> {
    let workspace = Arc::clone(&line.workspace);
    let libraries = super::blocking(move || doctest::libraries(&workspace)).await;
    let wanted = libraries.values().any(|library| line.filter.wants_binary(library) != Some(false));
    if !wanted {
        return Ok(false);
    }
    let listed = tokio::select! {
        listed = doctest::list(&line.settings.compile) => listed?,
        _ = interrupted.wait_for(|it| *it) => return Ok(true),
    };
    let (tests, partial) = select(line, listed, &libraries, plan).await;
    if tests.is_empty() {
        return Ok(false);
    }
    line.tell(RunEvent::WorkerJoined(Arc::new(WorkerInfo {
        id: RUSTDOC,
        name: "rustdoc".to_owned(),
        address: String::new(),
        slots: 0,
        embedded: true,
    })))
    .await;
    let open = tests.keys().cloned().collect();
    let mut stage = Stage { line, tests, partial, open, interrupted };
    let ran = match Serving::start(line) {
        Ok(serving) => stage.run(&serving).await,
        Err(failure) => Err(failure),
    };
    stage.lose_open().await;
    ran
}

/// The selected doctests, for who runs none. `plan` grows by them, as in a run.
pub(super) async fn cases(
    line: &Line,
    plan: &mut PlanComplete,
) -> Result<Vec<(TestCase, Library)>, Failure> {
    if line.settings.doctests == Doctests::No {
        return Ok(Vec::new());
    }
    let workspace = Arc::clone(&line.workspace);
    let libraries = super::blocking(move || doctest::libraries(&workspace)).await;
    if libraries.values().all(|library| line.filter.wants_binary(library) == Some(false)) {
        return Ok(Vec::new());
    }
    let listed = doctest::list(&line.settings.compile).await?;
    let (tests, _) = select(line, listed, &libraries, plan).await;
    Ok(tests.into_values().map(|test| (test.case, test.library)).collect())
}

type Interrupted = tokio::sync::watch::Receiver<bool>;

/// The doctests that are to run, planned; and whether rustdoc by itself would run others, too.
async fn select(
    line: &Line,
    listed: Vec<Listed>,
    libraries: &BTreeMap<String, Library>,
    plan: &mut PlanComplete,
) -> (Tests, bool) {
    let mut chosen = Vec::new();
    let mut seen = BTreeSet::new();
    let mut partial = false;
    for Listed { library, name, ignored } in listed {
        let Some(binary) = libraries.get(&library) else { continue };
        seen.insert(library.clone());
        let case = TestCase { binary: binary.id.clone(), name: TestName::new(name.clone()) };
        match line.filter.decide(binary, &ListedCase { name: case.name.clone(), ignored }) {
            Ok(()) => chosen.push(((library, name), case, Arc::clone(binary))),
            Err(reason) => {
                partial |= reason != SkipReason::Ignored;
                skip(line, case, binary, reason, plan).await;
            }
        }
    }
    let candidates: Vec<_> = chosen
        .iter()
        .map(|(_, case, _)| Candidate { case, expected: plan::expected(case, &line.timings) })
        .collect();
    let ours = match line.settings.select.partition {
        Some(partition) => shard::select(partition, &candidates),
        None => vec![true; candidates.len()],
    };
    let mut tests = Tests::new();
    for ((key, case, library), ours) in chosen.into_iter().zip(ours) {
        if !ours {
            partial = true;
            skip(line, case, &library, SkipReason::Partition, plan).await;
            continue;
        }
        let index = TestIndex(plan.tests);
        plan.tests += 1;
        let expected = plan::expected(&case, &line.timings);
        let (told, triple) = (case.clone(), library.triple.clone());
        line.tell(RunEvent::Planned { test: index, case: told, triple, expected }).await;
        tests.insert(key, Doctest { index, case, library });
    }
    plan.binaries += seen.len() as u32;
    (tests, partial)
}

async fn skip(
    line: &Line,
    case: TestCase,
    library: &Library,
    reason: SkipReason,
    plan: &mut PlanComplete,
) {
    plan.skipped += 1;
    let triple = library.triple.clone();
    line.tell(RunEvent::Skipped { case, triple, reason }).await;
}

/// Serves the shims of this run, until dropped.
struct Serving {
    folder: tempfile::TempDir,
    server: Arc<Server>,
    accepting: AbortHandle,
}

impl Serving {
    fn start(line: &Line) -> Result<Self, Failure> {
        let fail = |error: std::io::Error| {
            Failure::new(ExitCode::Setup, "could not make a socket for rustdoc's executables")
                .because(error)
        };
        let fleet = line.settings.fleet.clone();
        let (travel, copies) = (line.travel.clone(), Arc::clone(&line.copies));
        let surroundings = Surroundings::of(&line.settings.constraints, Arc::clone(&line.notices));
        let collector = Arc::clone(&line.collector);
        let server = Server::of(fleet, &line.workspace, travel, collector, copies, surroundings)?;
        let server = Arc::new(server);
        // Nobody else can enter it.
        let folder = tempfile::Builder::new().prefix("distest-").tempdir().map_err(fail)?;
        let listener = UnixListener::bind(folder.path().join("socket")).map_err(fail)?;
        let serving = Arc::clone(&server);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&serving);
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        Ok(Self { folder, server, accepting: accepting.abort_handle() })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Stage<'a> {
    line: &'a Line,
    tests: Tests,
    /// rustdoc by itself would run others, too.
    partial: bool,
    /// Those without a verdict.
    open: BTreeSet<Key>,
    interrupted: Interrupted,
}

impl Stage<'_> {
    /// Runs them, and those that fail again as often as the settings want it. Answers whether it
    /// was interrupted.
    async fn run(&mut self, serving: &Serving) -> Result<bool, Failure> {
        let (mut attempt, mut losses) = (1, 0);
        while !self.open.is_empty() {
            let round = self.round(serving, attempt).await?;
            if round.interrupted {
                return Ok(true);
            }
            let lost = round.losses > 0 && losses < LOSSES_MAX;
            let again = lost || attempt <= self.line.settings.execute.retries;
            for key in &round.failed {
                let result = if lost { AttemptResult::Lost } else { AttemptResult::Fail };
                let output = round.outputs.get(key).cloned().unwrap_or_default();
                self.ended(key, attempt, result, Duration::ZERO, again, output).await;
                if !again {
                    self.close(key, Verdict::Fail).await;
                }
            }
            let unheard = self.open.iter().any(|key| !round.failed.contains(key));
            if unheard {
                return self.ended_early(&round).await.map(|()| false);
            }
            losses += u32::from(lost);
            attempt += u32::from(!lost);
        }
        Ok(false)
    }

    /// Not all have been judged: cargo stops after a library whose doctests fail; or it failed.
    async fn ended_early(&self, round: &Round) -> Result<(), Failure> {
        if !round.failed.is_empty() {
            let reason = CancelReason::TestFailure;
            self.line.tell(RunEvent::Cancelling { reason, running: 0 }).await;
            return Ok(());
        }
        let said = round.tail.join("\n");
        Err(Failure::new(ExitCode::BuildFailed, "could not run the doctests")
            .because(format!("`cargo test --doc` said:\n{said}")))
    }

    async fn lose_open(&mut self) {
        for key in std::mem::take(&mut self.open) {
            self.tell_verdict(&key, Verdict::Lost).await;
        }
    }

    /// Runs those that are open; tells of those that pass, and closes them.
    async fn round(&mut self, serving: &Serving, attempt: u32) -> Result<Round, Failure> {
        let fail = |error: std::io::Error| {
            Failure::new(ExitCode::Setup, "could not run `cargo test --doc`").because(error)
        };
        let before = serving.server.losses();
        let (reader, writer) = std::io::pipe().map_err(fail)?;
        let (flags, args) = self.arguments()?;
        let mut command = doctest::command(&self.line.settings.compile, &flags, &args);
        command
            .env(SOCKET_VARIABLE, serving.folder.path().join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::from(writer.try_clone().map_err(fail)?))
            .stderr(Stdio::from(writer));
        let mut child = command.spawn().map_err(fail)?;
        // Only cargo and what it starts hold the pipe now.
        drop(command);
        let mut group = Group(child.id());
        let reader = Receiver::from_owned_fd(reader.into()).map_err(fail)?;
        let mut lines = BufReader::new(reader).split(b'\n');
        let (mut parser, mut round) = (Reader::default(), Round::default());
        let mut since = Instant::now();
        loop {
            let bytes = tokio::select! {
                bytes = lines.next_segment() => bytes.map_err(fail)?,
                _ = self.interrupted.wait_for(|it| *it) => {
                    round.interrupted = true;
                    return Ok(round);
                }
            };
            let Some(bytes) = bytes else { break };
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_end_matches('\r');
            if round.tail.len() == TAIL_LINES {
                round.tail.remove(0);
            }
            round.tail.push(text.to_owned());
            for said in parser.line(text) {
                self.take(said, &mut round, attempt, &mut since).await;
            }
        }
        for said in parser.finish() {
            self.take(said, &mut round, attempt, &mut since).await;
        }
        child.wait().await.map_err(fail)?;
        // Everything has ended by itself.
        group.0 = None;
        round.losses = serving.server.losses() - before;
        Ok(round)
    }

    async fn take(&mut self, said: Said, round: &mut Round, attempt: u32, since: &mut Instant) {
        match said {
            Said::Outcome(library, name, outcome) => {
                let key = (library, name);
                // rustdoc may run more than was selected.
                if !self.open.contains(&key) {
                    return;
                }
                match outcome {
                    Outcome::Failed => _ = round.failed.insert(key),
                    Outcome::Passed | Outcome::Ignored => {
                        let (took, result) = (since.elapsed(), AttemptResult::Pass);
                        self.ended(&key, attempt, result, took, false, String::new()).await;
                        let first = attempt == 1;
                        self.close(&key, if first { Verdict::Pass } else { Verdict::Flaky }).await;
                    }
                }
                *since = Instant::now();
            }
            Said::Output(library, name, output) => {
                round.outputs.insert((library, name), output);
            }
        }
    }

    /// Flags for cargo: our runner between rustdoc and what it has built. Arguments for rustdoc's
    /// test harness: which tests. It splits them at spaces, so that a name can't be given; its line
    /// can, and what else has that line is passed over when it is told.
    fn arguments(&self) -> Result<(Vec<OsString>, Vec<OsString>), Failure> {
        let own = std::env::current_exe().map_err(|error| {
            Failure::new(ExitCode::Setup, "could not find this program's own executable")
                .because(error)
        })?;
        let own = toml::Value::from(own.to_string_lossy().into_owned());
        let host = self.line.workspace.host.0.to_string();
        let given = self.line.settings.compile.targets.iter().cloned();
        let triples: BTreeSet<String> = given.chain([host]).collect();
        let mut flags: Vec<OsString> = triples
            .into_iter()
            .flat_map(|triple| {
                ["--config".to_owned(), format!("target.{triple}.runner=[{own}, \"runner\"]")]
            })
            .map(OsString::from)
            .collect();
        let execute = &self.line.settings.execute;
        let partial = self.partial || self.open.len() < self.tests.len();
        // What was not selected and fails must not keep the rest from running.
        if partial || execute.max_fail == MaxFail::All {
            flags.push("--no-fail-fast".into());
        }
        let mut args: Vec<OsString> = Vec::new();
        match self.line.settings.select.run_ignored {
            RunIgnored::Default => {}
            RunIgnored::Only => args.push("--ignored".into()),
            RunIgnored::All => args.push("--include-ignored".into()),
        }
        args.extend(execute.test_threads.map(|it| format!("--test-threads={it}").into()));
        if partial {
            let lines: BTreeSet<&str> =
                self.open.iter().filter_map(|(_, name)| name.rsplit(' ').next()).collect();
            args.extend(lines.into_iter().map(OsString::from));
        }
        Ok((flags, args))
    }

    async fn ended(
        &self,
        key: &Key,
        attempt: u32,
        result: AttemptResult,
        duration: Duration,
        will_retry: bool,
        output: String,
    ) {
        let Some(Doctest { index: test, case, library }) = self.tests.get(key) else { return };
        let test = *test;
        let reason = match result {
            AttemptResult::Fail => "rustdoc says it failed".to_owned(),
            AttemptResult::Lost => "a worker was lost".to_owned(),
            _ => String::new(),
        };
        // `src/lib.rs - item (line N)`: rustdoc can't be given the whole of it.
        let item = case.name.0.split(' ').nth(2).filter(|item| !item.starts_with('('));
        let filter = item.map_or_else(String::new, |item| format!(" {}", testenv::quote(item)));
        let total = output.len() as u64;
        let stdout = CapturedOutput { head: output.into(), total, ..CapturedOutput::default() };
        let started = self.line.origin.elapsed().saturating_sub(duration);
        self.line.tell(RunEvent::AttemptStarted { test, attempt, worker: RUSTDOC }).await;
        let ended = AttemptEnded {
            test,
            attempt,
            will_retry,
            worker: RUSTDOC,
            result,
            reason,
            exit: None,
            started,
            duration,
            leak: None,
            usage: Usage::default(),
            stdout,
            stderr: CapturedOutput::default(),
            reproduce: format!("cargo test --doc --package={}{filter}", library.package),
            hints: Vec::new(),
            batch: None,
            reproduce_batch: None,
            only_in_company: false,
            orderly: true,
        };
        self.line.tell(RunEvent::AttemptEnded(Arc::new(ended))).await;
    }

    async fn close(&mut self, key: &Key, verdict: Verdict) {
        if self.open.remove(key) {
            self.tell_verdict(key, verdict).await;
        }
    }

    async fn tell_verdict(&self, key: &Key, verdict: Verdict) {
        let Some(test) = self.tests.get(key) else { return };
        self.line.tell(RunEvent::Verdict { test: test.index, verdict }).await;
    }
}

/// cargo and what it has started, ended when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // Usually nobody is there any more.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGTERM);
        }
    }
}
