//! Small values as people write them, in flags, variables and files alike.
//!
//! Every parser's error says what was expected; who calls it says where it was found.

use std::str::FromStr;
use std::time::Duration;

use distest_worker::server::SLOTS_MAX;

use super::{LocalSlots, MaxFail, Partition, PartitionBy};

/// `--test-threads` as written: how many tests run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestThreads {
    /// As many as there are slots: `num-cpus`.
    NumCpus,
    /// This many, at least 1.
    Count(u32),
    /// This many fewer than the client has cores: `-2`.
    AllBut(u32),
}

/// `--wait-workers N[:DUR]` as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitWorkers {
    /// How many.
    pub count: u32,
    /// For how long, if given.
    pub within: Option<Duration>,
}

/// A duration in humantime's spelling: `90s`, `1m 30s`, `500ms`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("expected a duration such as `90s` or `1m 30s` ({error})"))
}

/// A duration that is longer than nothing.
pub(crate) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected a duration longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// `K/N` as `--shard` takes it.
pub(crate) fn parse_shard(text: &str) -> Result<Partition, String> {
    let (index, count) = parse_share(text)
        .ok_or_else(|| "expected `K/N` with 1 ≤ K ≤ N, such as `2/5`".to_owned())?;
    Ok(Partition { by: PartitionBy::Timed, index, count })
}

fn parse_share(text: &str) -> Option<(u32, u32)> {
    let (index, count) = text.split_once('/')?;
    let (index, count) = (index.parse().ok()?, count.parse().ok()?);
    (1..=count).contains(&index).then_some((index, count))
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected `hash:K/N`, `slice:K/N` or `timed:K/N` with 1 ≤ K ≤ N, such as `hash:2/5`"
                .to_owned()
        };
        let (by, share) = text.split_once(':').ok_or_else(expected)?;
        let by = match by {
            "hash" => PartitionBy::Hash,
            "slice" => PartitionBy::Slice,
            "timed" => PartitionBy::Timed,
            _ => return Err(expected()),
        };
        let (index, count) = parse_share(share).ok_or_else(expected)?;
        Ok(Self { by, index, count })
    }
}

impl FromStr for MaxFail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let (failures, immediate) = match text.split_once(':') {
            None => (text, Some(false)),
            Some((failures, "wait")) => (failures, Some(false)),
            Some((failures, "immediate")) => (failures, Some(true)),
            Some((failures, _)) => (failures, None),
        };
        match (failures.parse(), immediate) {
            (Ok(failures), Some(immediate)) if failures > 0 => {
                Ok(Self::Count { failures, immediate })
            }
            _ => Err("expected a number from 1, `N:wait`, `N:immediate` or `all`".to_owned()),
        }
    }
}

impl FromStr for TestThreads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<i64>()) {
            ("num-cpus", _) => Some(Self::NumCpus),
            (_, Ok(number)) => Self::from_number(number),
            _ => None,
        }
        .ok_or_else(|| {
            "expected a number from 1, a negative number (cores less that many) or `num-cpus`"
                .to_owned()
        })
    }
}

impl TestThreads {
    /// From a number as a configuration file has it.
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        let magnitude = u32::try_from(number.unsigned_abs()).ok()?;
        match number {
            0 => None,
            1.. => Some(Self::Count(magnitude)),
            _ => Some(Self::AllBut(magnitude)),
        }
    }

    /// How many at once on a client with this many cores; none: as many as there are slots.
    pub(crate) fn limit(self, cores: u32) -> Option<u32> {
        match self {
            Self::NumCpus => None,
            Self::Count(count) => Some(count),
            Self::AllBut(fewer) => Some(cores.saturating_sub(fewer).max(1)),
        }
    }
}

impl FromStr for LocalSlots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(count)) if count <= SLOTS_MAX => Ok(Self::Count(count)),
            _ => Err(format!(
                "expected a number up to {SLOTS_MAX} (0: no embedded worker) or `auto`"
            )),
        }
    }
}

impl FromStr for WaitWorkers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, within) = match text.split_once(':') {
            None => (text, None),
            Some((count, within)) => (count, Some(parse_duration(within)?)),
        };
        let count = count
            .parse()
            .map_err(|_| "expected `N` or `N:DURATION`, such as `3:20s`".to_owned())?;
        Ok(Self { count, within })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr<Err = String> + PartialEq + std::fmt::Debug>(text: &str, expected: T) {
        assert_eq!(text.parse::<T>(), Ok(expected), "{text}");
    }

    fn refuse<T: FromStr<Err = String> + std::fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let message = text.parse::<T>().expect_err(text);
            assert!(message.contains("expected"), "{text}: {message}");
        }
    }

    #[test]
    fn partitions() {
        check("hash:1/3", Partition { by: PartitionBy::Hash, index: 1, count: 3 });
        check("slice:3/3", Partition { by: PartitionBy::Slice, index: 3, count: 3 });
        check("timed:2/3", Partition { by: PartitionBy::Timed, index: 2, count: 3 });
        refuse::<Partition>(&["hash", "hash:0/3", "hash:4/3", "hash:1/0", "count:1/2", "hash:a/b"]);
        assert_eq!(parse_shard("2/5").unwrap(), "timed:2/5".parse().unwrap());
        assert!(parse_shard("hash:2/5").is_err());
    }

    #[test]
    fn failure_limits() {
        check("all", MaxFail::All);
        check("3", MaxFail::Count { failures: 3, immediate: false });
        check("3:wait", MaxFail::Count { failures: 3, immediate: false });
        check("1:immediate", MaxFail::Count { failures: 1, immediate: true });
        refuse::<MaxFail>(&["0", "-1", "1:now", "all:wait", ""]);
    }

    #[test]
    fn threads() {
        check("4", TestThreads::Count(4));
        check("-1", TestThreads::AllBut(1));
        check("num-cpus", TestThreads::NumCpus);
        refuse::<TestThreads>(&["0", "many", "", "1.5", "99999999999"]);
        assert_eq!(TestThreads::AllBut(9).limit(8), Some(1));
        assert_eq!(TestThreads::AllBut(2).limit(8), Some(6));
        assert_eq!(TestThreads::NumCpus.limit(8), None);
    }

    #[test]
    fn fleet_numbers() {
        check("auto", LocalSlots::Auto);
        check("0", LocalSlots::Count(0));
        refuse::<LocalSlots>(&["-1", "some"]);
        check("3", WaitWorkers { count: 3, within: None });
        check("3:20s", WaitWorkers { count: 3, within: Some(Duration::from_secs(20)) });
        refuse::<WaitWorkers>(&["x", "x:1s", "3:"]);
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("soon").unwrap_err().contains("90s"));
        assert!(parse_positive_duration("0s").is_err());
    }
}
