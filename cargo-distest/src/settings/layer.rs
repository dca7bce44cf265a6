//! One source of settings: the flags, the environment, or a profile of a file.
//!
//! What a source doesn't mention is none; [`Layer::or`] asks the next one.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use distest_worker::protocol::Forward;

use super::travel::TravelLayer;
use super::{
    Color, Hedge, Isolation, LocalSlots, MaxFail, MessageFormat, Network, NoTests, OutputWhen,
    ShowProgress, StatusLevel, TestThreads, Writes,
};

/// What one source says.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) retries: Option<u32>,
    pub(super) flaky_fails: Option<bool>,
    pub(super) hedge: Option<Hedge>,
    pub(super) max_fail: Option<MaxFail>,
    pub(super) test_threads: Option<TestThreads>,
    pub(super) slow_timeout: Option<Duration>,
    /// The inner none: never, whatever lower layers say.
    pub(super) test_timeout: Option<Option<Duration>>,
    pub(super) grace: Option<Duration>,
    pub(super) leak_timeout: Option<Duration>,
    pub(super) global_timeout: Option<Duration>,
    pub(super) isolation: Option<Isolation>,
    pub(super) writes: Option<Writes>,
    pub(super) network: Option<Network>,
    pub(super) forward: Option<Vec<Forward>>,
    pub(super) local_slots: Option<LocalSlots>,
    pub(super) default_filter: Option<String>,
    pub(super) no_tests: Option<NoTests>,
    pub(super) message_format: Option<MessageFormat>,
    pub(super) color: Option<Color>,
    pub(super) progress: Option<ShowProgress>,
    pub(super) status_level: Option<StatusLevel>,
    pub(super) final_status_level: Option<StatusLevel>,
    pub(super) success_output: Option<OutputWhen>,
    pub(super) failure_output: Option<OutputWhen>,
    /// Relative to the profile's folder in the store.
    pub(super) junit: Option<PathBuf>,
    pub(super) junit_name: Option<String>,
    pub(super) junit_success_output: Option<bool>,
    pub(super) junit_failure_output: Option<bool>,
    pub(super) travel: TravelLayer,
    pub(super) overrides: Vec<super::Override>,
}

impl Layer {
    /// This layer's values, and the lower one's where this one says nothing.
    pub(super) fn or(self, lower: Self) -> Self {
        Self {
            retries: self.retries.or(lower.retries),
            flaky_fails: self.flaky_fails.or(lower.flaky_fails),
            hedge: self.hedge.or(lower.hedge),
            max_fail: self.max_fail.or(lower.max_fail),
            test_threads: self.test_threads.or(lower.test_threads),
            slow_timeout: self.slow_timeout.or(lower.slow_timeout),
            test_timeout: self.test_timeout.or(lower.test_timeout),
            grace: self.grace.or(lower.grace),
            leak_timeout: self.leak_timeout.or(lower.leak_timeout),
            global_timeout: self.global_timeout.or(lower.global_timeout),
            isolation: self.isolation.or(lower.isolation),
            writes: self.writes.or(lower.writes),
            network: self.network.or(lower.network),
            forward: self.forward.or(lower.forward),
            local_slots: self.local_slots.or(lower.local_slots),
            default_filter: self.default_filter.or(lower.default_filter),
            no_tests: self.no_tests.or(lower.no_tests),
            message_format: self.message_format.or(lower.message_format),
            color: self.color.or(lower.color),
            progress: self.progress.or(lower.progress),
            status_level: self.status_level.or(lower.status_level),
            final_status_level: self.final_status_level.or(lower.final_status_level),
            success_output: self.success_output.or(lower.success_output),
            failure_output: self.failure_output.or(lower.failure_output),
            junit: self.junit.or(lower.junit),
            junit_name: self.junit_name.or(lower.junit_name),
            junit_success_output: self.junit_success_output.or(lower.junit_success_output),
            junit_failure_output: self.junit_failure_output.or(lower.junit_failure_output),
            travel: self.travel.or(lower.travel),
            overrides: [self.overrides, lower.overrides].concat(),
        }
    }
}

/// One of an enum's values, by the name that it has on the command line.
pub(super) fn parse_choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value)
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        format!("expected one of {}", names.join(", "))
    })
}
