//! What can go wrong for a user: kind, cause, hint, exit code.

use std::error::Error;
use std::fmt;

/// Exit codes, as in the command line contract. cargo-nextest's where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// All selected tests passed.
    Passed = 0,
    /// A command of `exec` failed, or `cp`, at a worker that is there.
    CommandFailed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No test was left to run.
    NoTests = 4,
    /// A filterset can't be parsed or compiled.
    InvalidFilterset = 94,
    /// Set-up or configuration.
    Setup = 96,
    /// No usable worker, or one that was named isn't there.
    NoWorker = 97,
    /// The whole fleet was lost before the end.
    FleetLost = 98,
    /// Some test failed.
    TestsFailed = 100,
    /// `cargo build` failed.
    BuildFailed = 101,
    /// `cargo metadata` failed.
    MetadataFailed = 102,
    /// A test binary could not be listed.
    ListFailed = 104,
    /// A setup script failed.
    SetupScriptFailed = 105,
    /// A report could not be written.
    ReportFailed = 110,
    /// Interrupted.
    Interrupted = 130,
}

impl ExitCode {
    /// The number that the process exits with.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The one of two that a run exits with when both hold:
    /// 130 > 101 > 98 > 105 > 100 > 110 > 4, and anything else before a pass.
    #[must_use]
    pub fn or_worse(self, other: Self) -> Self {
        let rank = |code| match code {
            Self::Interrupted => 9,
            Self::Usage | Self::InvalidFilterset | Self::Setup | Self::MetadataFailed => 8,
            Self::BuildFailed => 7,
            Self::ListFailed => 6,
            Self::NoWorker | Self::FleetLost => 5,
            Self::SetupScriptFailed => 4,
            Self::TestsFailed => 3,
            Self::ReportFailed => 2,
            Self::NoTests | Self::CommandFailed => 1,
            Self::Passed => 0,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// An error as a user is told of it.
///
/// Says what we were doing, to what, and why it failed; what to do next is data.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with if this ends the run.
    pub code: ExitCode,
    /// `could not list tests in target/debug/deps/api-3f`.
    pub what: String,
    /// Why, if something else reported it.
    pub cause: Option<Box<dyn Error + Send + Sync>>,
    /// What to do next.
    pub hint: Option<String>,
    /// The user has been told already (cargo printed its own error): only exit.
    pub silent: bool,
}

impl Failure {
    /// A failure without cause or hint.
    pub fn new(code: ExitCode, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), cause: None, hint: None, silent: false }
    }

    /// The same with what caused it.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The same with what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failure that has been told already, by cargo on the terminal that it shares with us.
    pub fn told(code: ExitCode, what: impl Into<String>) -> Self {
        Self { silent: true, ..Self::new(code, what) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut cause = self.cause.as_deref().map(|cause| cause as &dyn Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_code_wins_whichever_comes_first() {
        use ExitCode::*;
        let order = [
            Interrupted,
            BuildFailed,
            FleetLost,
            SetupScriptFailed,
            TestsFailed,
            ReportFailed,
            NoTests,
            Passed,
        ];
        for (i, worse) in order.iter().enumerate() {
            for better in &order[i..] {
                assert_eq!(worse.or_worse(*better), *worse);
                assert_eq!(better.or_worse(*worse), *worse);
            }
        }
    }

    #[test]
    fn prints_the_chain_of_causes() {
        let failure = Failure::new(ExitCode::Setup, "could not read a")
            .because(std::io::Error::other("gone"));
        assert_eq!(failure.to_string(), "could not read a: gone");
    }
}
