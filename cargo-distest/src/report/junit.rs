//! The run as a JUnit file, through the crate `junit-report`.
//!
//! Shape as cargo-nextest's: one suite per test binary, named by its id, which is also the class
//! name of its test cases; skipped tests are left out. A test that was lost is an `error`; one
//! that never started because the run was cancelled is `skipped`. What the crate has no element
//! for (the failed attempts of a flaky test) stands in `system-err`. The file is complete or not
//! there: it is written beside its place and renamed. A link, a device or a pipe is written to.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use junit_report::{
    Duration as Seconds, OffsetDateTime, Report, ReportBuilder, TestCase, TestResult, TestSuite,
};

use super::Reporter;
use super::text::{Escapes, Part, because, clean, parts};
use crate::event::{AttemptEnded, CapturedOutput, RunEvent};
use crate::failure::{ExitCode, Failure};
use crate::model::{AttemptResult, BinaryId, Triple, Verdict};
use crate::results::{Attempt, Summary, TestState};
use crate::settings::{ReportSettings, is_replaced, open_in_place};

/// The most bytes of one output stream in the file: half from each end.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// The most bytes of all outputs together; beyond it each gets [`OUTPUT_BYTES_LATE`].
const ALL_OUTPUT_BYTES_MAX: usize = 256 << 20;
const OUTPUT_BYTES_LATE: usize = 16 << 10;

/// Writes the JUnit file when the run has ended.
pub struct Junit {
    path: PathBuf,
    contents: Contents,
}

/// What goes into the file.
#[derive(Clone, Debug)]
struct Contents {
    name: String,
    success_output: bool,
    failure_output: bool,
}

impl Junit {
    /// None if the settings name no file.
    pub fn new(settings: &ReportSettings) -> Option<Self> {
        let contents = Contents {
            name: settings.junit_name.clone(),
            success_output: settings.junit_success_output,
            failure_output: settings.junit_failure_output,
        };
        Some(Self { path: settings.junit.clone()?, contents })
    }
}

impl Reporter for Junit {
    fn event(&mut self, _event: &RunEvent, _summary: &Summary) {}

    fn finish(&mut self, summary: &Summary) -> Result<(), Failure> {
        render(&self.contents, summary).and_then(|xml| write(&self.path, &xml)).map_err(|error| {
            let what = format!("could not write the JUnit report {}", self.path.display());
            let hint =
                "check the folder's permissions and free space, or give --junit another path";
            Failure::new(ExitCode::ReportFailed, what).because(error).hint(hint)
        })
    }
}

/// Replaces the file in one step, if it is one; folders are made as needed.
fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    if !is_replaced(path) {
        let mut file = open_in_place(path)?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        return file.write_all(contents);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".junit-").suffix(".tmp");
    // Readable by whoever the umask allows: CI systems collect reports as another user.
    builder.permissions(Permissions::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(contents)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn render(contents: &Contents, summary: &Summary) -> io::Result<Vec<u8>> {
    let mut suites: BTreeMap<(&BinaryId, &Triple), TestSuite> = BTreeMap::new();
    let mut writer = Writer { contents, summary, output_bytes: 0 };
    for test in summary.tests() {
        let Some(verdict) = test.verdict.filter(|verdict| *verdict != Verdict::Skipped) else {
            continue;
        };
        let suite = suites.entry((&test.case.binary, &test.triple));
        let suite = suite.or_insert_with(|| writer.suite(&test.case.binary));
        if let Some(first) = test.attempts.first() {
            suite.timestamp = suite.timestamp.min(writer.wall_clock(first.started));
        }
        suite.add_testcase(writer.case(test, verdict));
    }
    let mut report = ReportBuilder::new();
    report.add_testsuites(suites.into_values());
    let report = report.build();
    let mut xml = Vec::new();
    report.write_xml(&mut xml).map_err(io::Error::other)?;
    xml.push(b'\n');
    Ok(with_totals(xml, &root_attributes(contents, summary, &report, &writer)))
}

struct Writer<'a> {
    contents: &'a Contents,
    summary: &'a Summary,
    /// Of all outputs so far.
    output_bytes: usize,
}

impl Writer<'_> {
    fn suite(&self, binary: &BinaryId) -> TestSuite {
        let mut suite = TestSuite::new(&legal(&binary.0));
        let package = binary.0.split("::").next().unwrap_or_default();
        package.clone_into(&mut suite.package);
        suite.timestamp = self.wall_clock(self.elapsed());
        suite
    }

    fn case(&mut self, test: &TestState, verdict: Verdict) -> TestCase {
        let name = legal(&test.case.name.0);
        let last = test.last();
        let time = seconds(last.map_or(Duration::ZERO, |last| last.duration));
        let message = last.map_or_else(String::new, |last| message(verdict, last));
        let kind = last.map_or_else(|| verdict.as_str().to_owned(), kind);
        let failed = self.summary.is_failure(verdict);
        let not_run = self.summary.cancelled().filter(|_| self.summary.not_run(test));
        let mut case = match verdict {
            Verdict::Pass | Verdict::Flaky | Verdict::Skipped if !failed => {
                TestCase::success(&name, time)
            }
            _ if let Some(reason) = not_run => {
                let message = format!("not run due to {}", because(reason));
                TestCase::skipped_with_cause(&name, "not run", &message)
            }
            Verdict::Lost => TestCase::error(&name, time, "lost", &message),
            Verdict::Flaky => {
                TestCase::failure(&name, time, "flaky", "flaky, and flaky tests are to fail")
            }
            _ => TestCase::failure(&name, time, &kind, &message),
        };
        if let TestResult::Failure { cause, .. } = &mut case.result {
            let full = last.and_then(|last| last.full.as_ref());
            let full = full.filter(|_| verdict == Verdict::Fail && self.contents.failure_output);
            *cause = full.and_then(|full| panic_text(full)).map(unbroken);
            for hint in full.into_iter().flat_map(|full| &full.hints) {
                let text = cause.get_or_insert_default();
                *text += &unbroken(format!("\nhint: {}", legal(hint)));
            }
        }
        case.set_classname(&legal(&test.case.binary.0));
        case.system_out = self.stdout(last, failed, test.failed_in_company());
        case.system_err = self.stderr(test, failed);
        case
    }

    fn stdout(&mut self, last: Option<&Attempt>, failed: bool, both: bool) -> Option<String> {
        let ended = last?.full.as_ref().filter(|_| self.wants_output(failed) || both)?;
        self.output(&ended.stdout)
    }

    /// The last attempt's stderr, after what there is to say of the attempts before it.
    fn stderr(&mut self, test: &TestState, failed: bool) -> Option<String> {
        let mut text = String::new();
        let (last, earlier) = test.attempts.split_last()?;
        if let Some(batch) = last.batch {
            text += &format!("=== try {} ran in batch {batch}\n", last.number);
        }
        for attempt in earlier {
            let full = attempt.full.as_ref();
            text += &attempt_title(attempt, self.summary);
            for (stream, output) in [
                ("stdout", full.map(|full| &full.stdout)),
                ("stderr", full.map(|full| &full.stderr)),
            ] {
                // What made a test flaky is a failure's output, though the test passed.
                let output = output.filter(|_| self.contents.failure_output);
                if let Some(output) = output.and_then(|output| self.output(output)) {
                    text += &format!("--- {stream} of try {}\n{output}", attempt.number);
                    text += if output.ends_with('\n') { "" } else { "\n" };
                }
            }
        }
        let both = test.failed_in_company();
        if let Some(full) = last.full.as_ref().filter(|_| self.wants_output(failed) || both) {
            let output = self.output(&full.stderr);
            if let Some(output) = output {
                if !text.is_empty() {
                    text += &format!("--- stderr of try {}\n", last.number);
                }
                text += &output;
            }
        }
        (!text.is_empty()).then_some(text)
    }

    fn wants_output(&self, failed: bool) -> bool {
        if failed { self.contents.failure_output } else { self.contents.success_output }
    }

    fn output(&mut self, output: &CapturedOutput) -> Option<String> {
        let late = self.output_bytes > ALL_OUTPUT_BYTES_MAX;
        let bytes_max = if late { OUTPUT_BYTES_LATE } else { OUTPUT_BYTES_MAX };
        let mut text = String::new();
        for part in parts(output, bytes_max) {
            match part {
                Part::Text(raw) => text += &clean(raw, Escapes::None),
                Part::LeftOut(note) => text += &format!("\n{}\n", legal(&note)),
            }
        }
        self.output_bytes += text.len();
        (!text.is_empty()).then(|| unbroken(text))
    }

    fn wall_clock(&self, since_start: Duration) -> OffsetDateTime {
        let start = self.summary.started().map_or(SystemTime::UNIX_EPOCH, |started| started.at);
        milliseconds(OffsetDateTime::from(start + since_start))
    }

    fn elapsed(&self) -> Duration {
        self.summary.finished().map_or(Duration::ZERO, |finished| finished.elapsed)
    }
}

/// The attributes that nextest gives to `testsuites` and junit-report doesn't.
fn root_attributes(
    contents: &Contents,
    summary: &Summary,
    report: &Report,
    writer: &Writer<'_>,
) -> Vec<(&'static str, String)> {
    let sum =
        |of: fn(&TestSuite) -> usize| report.testsuites().iter().map(of).sum::<usize>().to_string();
    let run = summary.started().map_or("", |started| started.run.as_str());
    vec![
        ("name", legal(&contents.name)),
        ("tests", sum(TestSuite::tests)),
        ("skipped", sum(TestSuite::skipped)),
        ("failures", sum(TestSuite::failures)),
        ("errors", sum(TestSuite::errors)),
        ("id", legal(run)),
        ("timestamp", rfc3339(writer.wall_clock(Duration::ZERO))),
        ("time", format!("{:.3}", writer.elapsed().as_secs_f64())),
    ]
}

/// Puts attributes into the document's root element.
fn with_totals(xml: Vec<u8>, attributes: &[(&'static str, String)]) -> Vec<u8> {
    const ROOT: &[u8] = b"<testsuites";
    let Some(at) = xml.windows(ROOT.len()).position(|window| window == ROOT) else { return xml };
    let (before, after) = xml.split_at(at + ROOT.len());
    let mut whole = before.to_vec();
    for (name, value) in attributes {
        whole.extend_from_slice(format!(" {name}=\"{}\"", escape(value)).as_bytes());
    }
    whole.extend_from_slice(after);
    whole
}

/// `test failure with exit code 101`, in nextest's words.
fn kind(last: &Attempt) -> String {
    use distest_worker::protocol::Exit;
    let exit = last.full.as_ref().and_then(|full| full.exit);
    match (last.result, exit) {
        (AttemptResult::Timeout, _) => "test timeout".to_owned(),
        (AttemptResult::Lost, _) => "lost".to_owned(),
        (_, Some(Exit::Code(code))) => format!("test failure with exit code {code}"),
        (_, Some(Exit::Signal(signal))) => match super::text::signal(signal) {
            Some(name) => format!("test abort with signal {signal}: SIG{name}"),
            None => format!("test abort with signal {signal}"),
        },
        (_, None) => "test failure".to_owned(),
    }
}

/// What went wrong, in one line: the panic's first words where there is a panic.
fn message(verdict: Verdict, last: &Attempt) -> String {
    let Some(full) = &last.full else { return verdict.as_str().to_owned() };
    let panic = if verdict == Verdict::Fail { panic_message(full) } else { None };
    let text = panic.unwrap_or_else(|| full.reason.clone());
    legal(if text.is_empty() { verdict.as_str() } else { &text })
}

/// `thread 'x' panicked at src/lib.rs:3:5: boom`, from a panic's first two lines.
fn panic_message(ended: &AttemptEnded) -> Option<String> {
    const MESSAGE_CHARS_MAX: usize = 500;
    let text = panic_text(ended)?;
    let text = text.lines().take(2).collect::<Vec<_>>().join(" ");
    Some(text.trim_end().chars().take(MESSAGE_CHARS_MAX).collect())
}

/// A panic's message and its backtrace: where CI systems show one thing, this is it.
fn panic_text(ended: &AttemptEnded) -> Option<String> {
    const PANIC_LINES_MAX: usize = 100;
    let text = clean(&ended.stderr.head, Escapes::None);
    let is_panic = |line: &&str| line.starts_with("thread '") && line.contains(" panicked at ");
    let lines = text.lines().skip_while(|line| !is_panic(line)).take(PANIC_LINES_MAX);
    let text = lines.collect::<Vec<_>>().join("\n");
    (!text.is_empty()).then_some(text)
}

fn attempt_title(attempt: &Attempt, summary: &Summary) -> String {
    let reason = attempt.full.as_ref().map_or("", |full| full.reason.as_str());
    let result = match attempt.result {
        AttemptResult::Lost => "was lost",
        AttemptResult::Timeout => "timed out",
        AttemptResult::Crashed => "crashed",
        AttemptResult::Fail => "failed",
        AttemptResult::Pass | AttemptResult::Leak => "passed",
    };
    let (number, worker) = (attempt.number, summary.worker_name(attempt.worker));
    let time = attempt.duration.as_secs_f64();
    let place = attempt.batch.map_or(String::new(), |batch| format!(" in batch {batch}"));
    legal(&format!("=== try {number} {result}{place} on {worker} after {time:.3}s: {reason}"))
        + "\n"
}

/// One line of text that XML allows.
fn legal(text: &str) -> String {
    clean(text.as_bytes(), Escapes::None).replace('\n', " ")
}

/// The text with every end of a CDATA section split over two: junit-report writes it as it is.
fn unbroken(text: String) -> String {
    if text.contains("]]>") { text.replace("]]>", "]]]]><![CDATA[>") } else { text }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// junit-report prints and sums up times as they are. Microseconds are as fine as anything here is
/// measured, and a quick test of a batch takes no millisecond.
fn seconds(duration: Duration) -> Seconds {
    Seconds::microseconds(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

fn milliseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_millisecond(time.millisecond()).unwrap_or(time)
}

/// `2026-11-22T10:15:00.123Z`, from the crate's own rendering of a suite's timestamp.
fn rfc3339(time: OffsetDateTime) -> String {
    let (date, clock) = (time.date(), time.time());
    format!(
        "{date}T{:02}:{:02}:{:02}.{:03}Z",
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

#[cfg(test)]
mod tests;
