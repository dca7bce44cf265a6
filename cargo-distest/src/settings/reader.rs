//! What a configuration file says: TOML → [`Layer`]s by profile, the fleet, the store.
//!
//! Keys are matched by hand, so that every complaint names its line and unknown keys of
//! cargo-nextest, which may be newer than we know, can be told from typing errors in our own file.

pub(super) mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::constraints::{self, TestGroup};
use super::layer::{Layer, parse_choice};
use super::travel;
use super::values::{parse_duration, parse_positive_duration};
use super::{
    ConfigText, Dialect, Fallback, Isolation, MaxFail, TestThreads, WorkerAddress, Writes,
};
use crate::cli::FlakyResult;
use crate::failure::Failure;
use node::Node;

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct FileConfig {
    pub(super) profiles: BTreeMap<String, FileProfile>,
    pub(super) store: Option<PathBuf>,
    pub(super) workers: Option<Vec<WorkerAddress>>,
    pub(super) fallback: Option<Fallback>,
    /// Test groups.
    pub(super) groups: BTreeMap<String, TestGroup>,
    /// Binary ids with `list = "whole"`.
    pub(super) whole: Vec<String>,
    /// Keys that mean something to cargo-nextest and nothing here.
    pub(super) without_effect: Vec<String>,
}

/// What a file says of a profile.
#[derive(Debug, Default)]
pub(super) struct FileProfile {
    pub(super) inherits: Option<String>,
    pub(super) layer: Layer,
    /// Keys that mean something to cargo-nextest and nothing here.
    pub(super) without_effect: Vec<String>,
}

const TOP_KEYS: &[&str] = &["profile", "store", "fleet", "binary", "test-groups"];
const FLEET_KEYS: &[&str] = &["workers", "fallback"];
const PROFILE_KEYS: &[&str] = &[
    "inherits",
    "retries",
    "flaky-result",
    "fail-fast",
    "max-fail",
    "hedge",
    "test-threads",
    "slow-timeout",
    "leak-timeout",
    "global-timeout",
    "default-filter",
    "status-level",
    "final-status-level",
    "success-output",
    "failure-output",
    "junit",
    "isolation",
    "network",
    "forward",
    "local-slots",
    "include",
    "exclude",
    "tree-files-max",
    "tree-bytes-max",
    "env",
    "collect",
    "overrides",
];
const JUNIT_KEYS: &[&str] =
    &["path", "report-name", "store-success-output", "store-failure-output"];

/// Reads a file.
///
/// # Errors
///
/// [`crate::failure::ExitCode::Setup`] with file and line: no TOML, an unknown key in a dialect of
/// our own, or a value that makes no sense.
pub(super) fn read(file: &ConfigText, dialect: Dialect) -> Result<FileConfig, Failure> {
    let mut config = FileConfig::default();
    let document = node::parse(file)?;
    for (key, node) in Node::root(file, dialect, &document).entries()? {
        match (key, dialect) {
            ("fleet", Dialect::Distest | Dialect::User) => read_fleet(&node, &mut config)?,
            (_, Dialect::User) => node.unknown(&["fleet"])?,
            ("profile", _) => {
                for (name, node) in node.entries()? {
                    config.profiles.insert(name.to_owned(), read_profile(&node)?);
                }
            }
            ("store", _) => {
                for (key, node) in node.entries()? {
                    match key {
                        "dir" => config.store = Some(PathBuf::from(node.text()?)),
                        _ => node.unknown(&["dir"])?,
                    }
                }
            }
            ("binary", Dialect::Distest) => read_binaries(&node, &mut config)?,
            ("test-groups", _) => config.groups = constraints::read_groups(&node)?,
            ("scripts" | "script", Dialect::Nextest) => {
                config.without_effect.push(node.name.clone());
            }
            _ => node.unknown(TOP_KEYS)?,
        }
    }
    Ok(config)
}

fn read_fleet(node: &Node<'_>, config: &mut FileConfig) -> Result<(), Failure> {
    for (key, node) in node.entries()? {
        match key {
            "workers" => {
                let workers = node.items()?.into_iter().map(|node| node.parse(str::parse));
                config.workers = Some(workers.collect::<Result<_, _>>()?);
            }
            "fallback" => config.fallback = Some(node.parse(parse_choice)?),
            _ => node.unknown(FLEET_KEYS)?,
        }
    }
    Ok(())
}

fn read_binaries(node: &Node<'_>, config: &mut FileConfig) -> Result<(), Failure> {
    for (id, node) in node.entries()? {
        for (key, node) in node.entries()? {
            match (key, node.text()) {
                ("list", Ok("whole")) => config.whole.push(id.to_owned()),
                ("list", _) => return Err(node.wrong("`\"whole\"`")),
                _ => node.unknown(&["list"])?,
            }
        }
    }
    Ok(())
}

fn read_profile(node: &Node<'_>) -> Result<FileProfile, Failure> {
    let mut profile = FileProfile::default();
    let ours = node.dialect == Dialect::Distest;
    for (key, node) in node.entries()? {
        let layer = &mut profile.layer;
        match key {
            "inherits" => profile.inherits = Some(node.text()?.to_owned()),
            "retries" => read_retries(&node, &mut profile)?,
            "flaky-result" => {
                layer.flaky_fails =
                    Some(node.parse(parse_choice::<FlakyResult>)? == FlakyResult::Fail);
            }
            "fail-fast" => layer.max_fail = Some(read_fail_fast(&node)?),
            "max-fail" if ours => layer.max_fail = Some(read_max_fail(&node)?),
            "test-threads" => layer.test_threads = Some(read_test_threads(&node)?),
            "slow-timeout" => read_slow_timeout(&node, &mut profile)?,
            "leak-timeout" => read_leak_timeout(&node, &mut profile)?,
            "global-timeout" => {
                layer.global_timeout = Some(node.parse(parse_positive_duration)?);
            }
            "default-filter" => layer.default_filter = Some(node.text()?.to_owned()),
            "status-level" => layer.status_level = Some(node.parse(parse_choice)?),
            "final-status-level" => layer.final_status_level = Some(node.parse(parse_choice)?),
            "success-output" => layer.success_output = Some(node.parse(parse_choice)?),
            "failure-output" => layer.failure_output = Some(node.parse(parse_choice)?),
            "junit" => read_junit(&node, layer)?,
            "hedge" if ours => layer.hedge = Some(node.parse(parse_choice)?),
            "isolation" if ours => read_isolation(&node, layer)?,
            "network" if ours => layer.network = Some(node.parse(parse_choice)?),
            "forward" if ours => layer.forward = Some(constraints::read_forwards(&node)?),
            "local-slots" if ours => {
                layer.local_slots = Some(node.number_or(
                    |number| number.to_string().parse().ok(),
                    str::parse,
                    "a number from 0 or `\"auto\"`",
                )?);
            }
            key if ours && travel::KEYS.contains(&key) => layer.travel.read(key, &node)?,
            "overrides" => {
                layer.overrides = constraints::read_overrides(&node, &mut profile.without_effect)?;
            }
            "scripts" | "threads-required" | "run-extra-args" | "test-group" | "archive"
            | "bench" | "priority"
                if !ours =>
            {
                profile.without_effect.push(node.name.clone());
            }
            _ => node.unknown(PROFILE_KEYS)?,
        }
    }
    Ok(profile)
}

/// `"process"`, or a table of `mode` and `writes`.
fn read_isolation(node: &Node<'_>, layer: &mut Layer) -> Result<(), Failure> {
    if !node.is_table() {
        layer.isolation = Some(node.parse(parse_choice::<Isolation>)?);
        return Ok(());
    }
    for (key, node) in node.entries()? {
        match key {
            "mode" => layer.isolation = Some(node.parse(parse_choice::<Isolation>)?),
            "writes" => layer.writes = Some(node.parse(parse_choice::<Writes>)?),
            _ => node.unknown(&["mode", "writes"])?,
        }
    }
    Ok(())
}

fn read_retries(node: &Node<'_>, profile: &mut FileProfile) -> Result<(), Failure> {
    let count =
        |node: &Node<'_>| u32::try_from(node.number()?).map_err(|_| node.wrong("a number from 0"));
    if !node.is_table() {
        profile.layer.retries = Some(count(node)?);
        return Ok(());
    }
    for (key, node) in node.entries()? {
        match key {
            "count" => profile.layer.retries = Some(count(&node)?),
            // A failing test is tried again as soon as a slot is free.
            "backoff" if node.text()? == "fixed" => {}
            "backoff" | "delay" | "jitter" | "max-delay" => {
                profile.without_effect.push(node.name.clone());
            }
            _ => node.unknown(&["count", "backoff", "delay", "jitter", "max-delay"])?,
        }
    }
    Ok(())
}

fn read_fail_fast(node: &Node<'_>) -> Result<MaxFail, Failure> {
    if !node.is_table() {
        return Ok(match node.flag()? {
            true => MaxFail::Count { failures: 1, immediate: false },
            false => MaxFail::All,
        });
    }
    let (mut max_fail, mut at_once) = (MaxFail::Count { failures: 1, immediate: false }, false);
    for (key, node) in node.entries()? {
        match key {
            "max-fail" => max_fail = read_max_fail(&node)?,
            "terminate" => {
                at_once = match node.text()? {
                    "wait" => false,
                    "immediate" => true,
                    _ => return Err(node.wrong("`\"wait\"` or `\"immediate\"`")),
                }
            }
            _ => node.unknown(&["max-fail", "terminate"])?,
        }
    }
    Ok(match max_fail {
        MaxFail::All => MaxFail::All,
        MaxFail::Count { failures, immediate } => {
            MaxFail::Count { failures, immediate: immediate || at_once }
        }
    })
}

fn read_max_fail(node: &Node<'_>) -> Result<MaxFail, Failure> {
    let count = |number| match u32::try_from(number) {
        Ok(failures) if failures > 0 => Some(MaxFail::Count { failures, immediate: false }),
        _ => None,
    };
    node.number_or(count, str::parse, "a number from 1 or `\"all\"`")
}

fn read_test_threads(node: &Node<'_>) -> Result<TestThreads, Failure> {
    let expected = "a number from 1, a negative number or `\"num-cpus\"`";
    node.number_or(TestThreads::from_number, str::parse, expected)
}

fn read_slow_timeout(node: &Node<'_>, profile: &mut FileProfile) -> Result<(), Failure> {
    let (mut period, mut periods, mut grace) = (None, None, None);
    if !node.is_table() {
        period = Some(node.parse(parse_positive_duration)?);
    } else {
        for (key, node) in node.entries()? {
            match key {
                "period" => period = Some(node.parse(parse_positive_duration)?),
                "terminate-after" => match u32::try_from(node.number()?) {
                    Ok(count) if count > 0 => periods = Some(count),
                    _ => return Err(node.wrong("a number from 1")),
                },
                "grace-period" => grace = Some(node.parse(parse_duration)?),
                "on-timeout" if node.text()? == "fail" => {}
                "on-timeout" => profile.without_effect.push(node.name.clone()),
                _ => node.unknown(&["period", "terminate-after", "grace-period", "on-timeout"])?,
            }
        }
    }
    let Some(period) = period else {
        return Err(node.wrong("a duration or a table with `period`"));
    };
    // The three belong together: a profile that gives a period alone ends no test.
    profile.layer.slow_timeout = Some(period);
    profile.layer.test_timeout = Some(periods.map(|count| period.saturating_mul(count)));
    profile.layer.grace = Some(grace.unwrap_or(Duration::from_secs(10)));
    Ok(())
}

fn read_leak_timeout(node: &Node<'_>, profile: &mut FileProfile) -> Result<(), Failure> {
    if !node.is_table() {
        profile.layer.leak_timeout = Some(node.parse(parse_duration)?);
        return Ok(());
    }
    for (key, node) in node.entries()? {
        match key {
            "period" => profile.layer.leak_timeout = Some(node.parse(parse_duration)?),
            "result" if node.text()? == "pass" => {}
            "result" => profile.without_effect.push(node.name.clone()),
            _ => node.unknown(&["period", "result"])?,
        }
    }
    Ok(())
}

fn read_junit(node: &Node<'_>, layer: &mut Layer) -> Result<(), Failure> {
    for (key, node) in node.entries()? {
        match key {
            "path" => layer.junit = Some(PathBuf::from(node.text()?)),
            "report-name" => layer.junit_name = Some(node.text()?.to_owned()),
            "store-success-output" => layer.junit_success_output = Some(node.flag()?),
            "store-failure-output" => layer.junit_failure_output = Some(node.flag()?),
            _ => node.unknown(JUNIT_KEYS)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
