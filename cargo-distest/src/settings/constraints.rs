//! Test groups and overrides: where and beside whom tests may run. The keys that cargo-nextest has
//! too (`test-groups`, `test-group`, `threads-required`, `priority`) mean the same.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;

use clap::ValueEnum;
use distest_worker::protocol::{self, FORWARDS_MAX, Forward};

use super::layer::parse_choice;
use super::reader::node::Node;
use super::{Dialect, LocalSlots};
use crate::failure::{ExitCode, Failure};

/// Test groups, and what overrides say of tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConstraintSettings {
    /// By name.
    pub groups: BTreeMap<String, TestGroup>,
    /// The first that matches a test and says something of a matter decides it.
    pub overrides: Vec<Override>,
    /// The profile's `network`: where overrides say nothing else.
    pub network: Network,
    /// Services of this machine's that tests with a network of their own find in it.
    pub forwards: Vec<Forward>,
}

/// What of the network tests see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// All that their worker has.
    #[default]
    Host,
    /// Each a loopback interface of its own, and nothing else.
    Private,
}

impl From<Network> for protocol::Network {
    fn from(network: Network) -> Self {
        match network {
            Network::Host => Self::Host,
            Network::Private => Self::Private,
        }
    }
}

impl ConstraintSettings {
    /// Whether a test may ask for a network of its own.
    pub fn may_be_private(&self) -> bool {
        let overriding = self.overrides.iter().filter_map(|it| it.network);
        overriding.chain([self.network]).any(|network| network == Network::Private)
    }
}

/// Bounds of a test group; at least one is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestGroup {
    /// Attempts of its tests at once, over the whole fleet.
    pub max_threads: Option<u32>,
    /// Attempts of its tests at once, on each worker.
    pub per_worker: Option<u32>,
}

/// What is said of the tests that a filterset matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// A filterset.
    pub filter: String,
    /// A group's name; [`GLOBAL`] means none.
    pub group: Option<String>,
    /// Slots that it takes; `u32::MAX`: a whole worker.
    pub threads: Option<u32>,
    /// Nothing else runs on its worker meanwhile.
    pub exclusive: Option<bool>,
    /// Labels that the worker must have with these values.
    pub requires: Option<BTreeMap<String, String>>,
    /// On the client's machine only.
    pub local_only: Option<bool>,
    /// On any other machine.
    pub remote_only: Option<bool>,
    /// What of the network it sees.
    pub network: Option<Network>,
    /// From -100 to 100; higher goes first.
    pub priority: Option<i8>,
}

impl Override {
    /// What it is called in messages.
    fn name(&self) -> String {
        format!("the override for `{}`", self.filter)
    }
}

/// The name of the group in which every test is that is in no other.
pub const GLOBAL: &str = "@global";

const GROUP_KEYS: &[&str] = &["max-threads", "per-worker"];
const OVERRIDE_KEYS: &[&str] = &[
    "filter",
    "test-group",
    "threads-required",
    "exclusive",
    "requires",
    "local-only",
    "remote-only",
    "network",
    "priority",
];

/// Reads `[test-groups]`.
pub(super) fn read_groups(node: &Node<'_>) -> Result<BTreeMap<String, TestGroup>, Failure> {
    let mut groups = BTreeMap::new();
    for (name, node) in node.entries()? {
        let mut group = TestGroup::default();
        for (key, node) in node.entries()? {
            match key {
                "max-threads" => group.max_threads = Some(read_threads(&node)?),
                "per-worker" if node.dialect == Dialect::Distest => {
                    group.per_worker = Some(read_threads(&node)?);
                }
                _ => node.unknown(GROUP_KEYS)?,
            }
        }
        if group == TestGroup::default() {
            return Err(node.wrong("a table with `max-threads` or `per-worker`"));
        }
        groups.insert(name.to_owned(), group);
    }
    Ok(groups)
}

fn read_threads(node: &Node<'_>) -> Result<u32, Failure> {
    let number = |number| u32::try_from(number).ok().filter(|number| *number > 0);
    node.number_or(number, named_threads, "a number from 1 or `\"num-cpus\"`")
}

fn named_threads(text: &str) -> Result<u32, String> {
    match text {
        "num-cpus" | "num-test-threads" => Ok(u32::MAX),
        _ => Err("expected a number from 1 or `num-cpus`".to_owned()),
    }
}

/// Reads a profile's `overrides`. Keys of cargo-nextest's that mean nothing here are noted.
pub(super) fn read_overrides(
    node: &Node<'_>,
    without_effect: &mut Vec<String>,
) -> Result<Vec<Override>, Failure> {
    let mut overrides = Vec::new();
    for node in node.items()? {
        let (mut read, ours) = (Override::default(), node.dialect == Dialect::Distest);
        for (key, node) in node.entries()? {
            match key {
                "filter" => node.text()?.clone_into(&mut read.filter),
                "test-group" => read.group = Some(node.text()?.to_owned()),
                "threads-required" => read.threads = Some(read_threads(&node)?),
                "priority" => {
                    let priority = i8::try_from(node.number()?).ok();
                    let priority = priority.filter(|priority| (-100..=100).contains(priority));
                    let expected = "a number from -100 to 100";
                    read.priority = Some(priority.ok_or_else(|| node.wrong(expected))?);
                }
                "exclusive" if ours => read.exclusive = Some(node.flag()?),
                "local-only" if ours => read.local_only = Some(node.flag()?),
                "remote-only" if ours => read.remote_only = Some(node.flag()?),
                "network" if ours => read.network = Some(node.parse(parse_choice)?),
                "requires" if ours => {
                    let labels = node.items()?.into_iter().map(|node| node.parse(label));
                    read.requires = Some(labels.collect::<Result<_, _>>()?);
                }
                "forward" if ours => {
                    let what =
                        format!("unknown key `{}`: services are forwarded to all tests", node.name);
                    let hint = "say `forward` in the profile itself; `network = \"host\"` in an override \
                                leaves its tests out";
                    return Err(node.failure(what).hint(hint));
                }
                _ if ours => node.unknown(OVERRIDE_KEYS)?,
                _ => without_effect.push(node.name.clone()),
            }
        }
        // cargo-nextest also has overrides by platform alone: they say nothing that counts here.
        match read.filter.is_empty() {
            true if ours => return Err(node.wrong("a table with `filter`")),
            true => {}
            false => overrides.push(read),
        }
    }
    Ok(overrides)
}

/// Reads a profile's `forward`.
pub(super) fn read_forwards(node: &Node<'_>) -> Result<Vec<Forward>, Failure> {
    let mut forwards = Vec::new();
    for item in node.items()? {
        let port = |number: i64| u16::try_from(number).ok().filter(|port| *port > 0);
        let forward = item.number_or(
            |number| port(number).map(Forward::Port),
            str::parse,
            "a port from 1 to 65535 or the absolute path of a Unix socket",
        )?;
        if forwards.contains(&forward) {
            return Err(item.wrong(&format!("each service once, and `{forward}` is there before")));
        }
        forwards.push(forward);
    }
    if forwards.len() > FORWARDS_MAX {
        return Err(node.wrong(&format!("at most {FORWARDS_MAX} services")));
    }
    Ok(forwards)
}

/// What the profile forwards and what flags add to it.
pub(super) fn forwards(profile: &[Forward], flags: &[Forward]) -> Result<Vec<Forward>, Failure> {
    let usage = |what: String| Failure::new(ExitCode::Usage, what);
    for (place, forward) in flags.iter().enumerate() {
        if flags[..place].contains(forward) {
            return Err(usage(format!("`--forward {forward}` is given twice")).hint("keep one"));
        }
    }
    let mut all = profile.to_vec();
    all.extend(flags.iter().filter(|forward| !profile.contains(forward)).cloned());
    if all.len() > FORWARDS_MAX {
        let what = format!("{} services are to be forwarded, more than {FORWARDS_MAX}", all.len());
        return Err(usage(what).hint("leave some out"));
    }
    Ok(all)
}

/// Checks that what lies at a socket's path now is a socket. One that isn't there may come yet.
///
/// # Errors
/// [`ExitCode::Setup`] if it is something else.
pub fn check_services(forwards: &[Forward]) -> Result<(), Failure> {
    for forward in forwards {
        let Forward::Socket(path) = forward else { continue };
        let kernels = ["/proc", "/sys"].into_iter().find(|at| path.as_path().starts_with(at));
        let why = match (kernels, std::fs::metadata(path.as_path()).map(|it| it.file_type())) {
            (Some(at), _) => format!("nobody can listen below {at}"),
            (None, Err(_)) => continue,
            (None, Ok(kind)) if kind.is_socket() => continue,
            (None, Ok(kind)) if kind.is_dir() => "it is a folder".to_owned(),
            (None, Ok(_)) => "it is no Unix socket".to_owned(),
        };
        let what = format!("could not forward {forward}");
        let hint = "name the socket that the service listens at, or its port";
        return Err(Failure::new(ExitCode::Setup, what).because(why).hint(hint));
    }
    Ok(())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (label, value) = text
        .split_once('=')
        .filter(|(label, _)| !label.is_empty())
        .ok_or("expected `label=value`")?;
    Ok((label.to_owned(), value.to_owned()))
}

fn wrong(what: String, hint: &str) -> Result<(), Failure> {
    Err(Failure::new(ExitCode::Setup, what).hint(hint))
}

/// What can't be meant, whatever tests and workers there are.
pub(super) fn check(constraints: &ConstraintSettings) -> Result<(), Failure> {
    if !constraints.forwards.is_empty() && !constraints.may_be_private() {
        return wrong(
            "the profile says forward, and network = \"host\" for all tests".to_owned(),
            "leave `network` out: a test finds what is forwarded in a network of its own",
        );
    }
    for it in &constraints.overrides {
        let tests = it.name();
        if let Some(group) = it.group.as_ref().filter(|group| *group != GLOBAL)
            && !constraints.groups.contains_key(group)
        {
            let known: Vec<_> = constraints.groups.keys().map(String::as_str).collect();
            let hint = match known.is_empty() {
                true => "define it under [test-groups]".to_owned(),
                false => format!("define it under [test-groups]; there are: {}", known.join(", ")),
            };
            return wrong(
                format!("{tests} names the test group `{group}`, which is not there"),
                &hint,
            );
        }
        let (local, remote) = (it.local_only == Some(true), it.remote_only == Some(true));
        if local && remote {
            return wrong(format!("{tests} says both local-only and remote-only"), "keep one");
        }
        if local && it.requires.as_ref().is_some_and(|labels| !labels.is_empty()) {
            let what = format!("{tests} says local-only, and requires labels of a worker");
            return wrong(what, "this machine's own worker has no labels: keep one of them");
        }
    }
    Ok(())
}

/// Whether a run has workers on the sides that overrides ask for.
pub(super) fn check_sides(
    constraints: &ConstraintSettings,
    workers_given: bool,
    local_slots: LocalSlots,
) -> Result<(), Failure> {
    for it in &constraints.overrides {
        let tests = it.name();
        if it.local_only == Some(true) && local_slots == LocalSlots::Count(0) {
            let what = format!("{tests} says local-only, and there are no local slots");
            return wrong(what, "allow some with --local-slots");
        }
        if it.remote_only == Some(true) && !workers_given {
            let what = format!("{tests} says remote-only, and no worker is given");
            return wrong(what, "name workers with --worker or under [fleet]");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::reader;
    use crate::settings::{ConfigText, LocalSlots};

    fn read(text: &str, dialect: Dialect) -> Result<ConstraintSettings, Failure> {
        let file = ConfigText { path: "distest.toml".into(), text: text.to_owned() };
        let config = reader::read(&file, dialect)?;
        let overrides =
            config.profiles.get("default").map(|profile| profile.layer.overrides.clone());
        Ok(ConstraintSettings {
            groups: config.groups,
            overrides: overrides.unwrap_or_default(),
            network: Network::Host,
            forwards: Vec::new(),
        })
    }

    fn overriding(line: &str) -> String {
        format!(
            "[test-groups]\ndb = {{ max-threads = 1 }}\n[[profile.default.overrides]]\n\
             filter = 'test(x)'\n{line}\n"
        )
    }

    #[test]
    fn an_override_says_where_and_beside_whom() {
        let text = overriding(
            "test-group = 'db'\nthreads-required = 'num-cpus'\nexclusive = true\n\
             requires = ['gpu=yes']\nremote-only = true\nnetwork = 'private'\npriority = -7",
        );
        let read = read(&text, Dialect::Distest).expect("valid");
        assert_eq!(read.groups["db"], TestGroup { max_threads: Some(1), per_worker: None });
        let expected = Override {
            filter: "test(x)".to_owned(),
            group: Some("db".to_owned()),
            threads: Some(u32::MAX),
            exclusive: Some(true),
            requires: Some(BTreeMap::from([("gpu".to_owned(), "yes".to_owned())])),
            local_only: None,
            remote_only: Some(true),
            network: Some(Network::Private),
            priority: Some(-7),
        };
        assert_eq!(read.overrides, [expected]);
        assert!(read.may_be_private() && !ConstraintSettings::default().may_be_private());
        assert_eq!(check(&read).map_err(|failure| failure.what), Ok(()));
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |line: &str| {
            let read = read(&overriding(line), Dialect::Distest).expect("can be read");
            let failure = check(&read).expect_err(line);
            assert_eq!(failure.code, ExitCode::Setup);
            failure.what
        };
        assert!(refused("test-group = 'dv'").contains("`dv`"));
        assert!(refused("local-only = true\nremote-only = true").contains("both"));
        assert!(refused("local-only = true\nrequires = ['a=b']").contains("labels"));
    }

    #[test]
    fn a_run_has_workers_on_the_sides_that_are_asked_for() {
        let sides = |line: &str, workers, slots| {
            let read = read(&overriding(line), Dialect::Distest).expect("can be read");
            assert!(check(&read).is_ok(), "{line}: who runs nothing needs no worker");
            check_sides(&read, workers, slots).map_err(|failure| (failure.code, failure.what))
        };
        let (auto, none) = (LocalSlots::Auto, LocalSlots::Count(0));
        let refused = |line: &str, workers, slots, why: &str| {
            let (code, what) = sides(line, workers, slots).expect_err(line);
            assert!(code == ExitCode::Setup && what.contains(why), "{what}");
        };
        refused("local-only = true", true, none, "no local slots");
        refused("remote-only = true", false, auto, "no worker is given");
        assert_eq!(sides("local-only = true", false, auto), Ok(()));
        assert_eq!(sides("remote-only = true", true, none), Ok(()));
        assert_eq!(sides("local-only = false\nremote-only = false", false, none), Ok(()));
    }

    #[test]
    fn services_are_read_once_each_and_flags_add_to_them() {
        let read = |list: &str| {
            let text = format!("[profile.default]\nforward = {list}\n");
            let file = ConfigText { path: "distest.toml".into(), text };
            let config = reader::read(&file, Dialect::Distest)?;
            Ok::<_, Failure>(config.profiles["default"].layer.forward.clone().unwrap_or_default())
        };
        let socket = Forward::Socket("/run/db.sock".into());
        let profile = read("[5432, '6379', '/run/db.sock']").expect("valid");
        assert_eq!(profile, [Forward::Port(5432), Forward::Port(6379), socket.clone()]);
        for (list, why) in [
            ("[0]", "from 1 to 65535"),
            ("[65536]", "from 1 to 65535"),
            ("[-1]", "from 1 to 65535"),
            ("['db.sock']", "absolute path"),
            ("['/run/../db.sock']", "without"),
            ("[5432, '5432']", "there before"),
            ("5432", "an array"),
            ("[true]", "a port"),
        ] {
            let failure = read(list).expect_err(list);
            assert_eq!(failure.code, ExitCode::Setup);
            assert!(failure.what.starts_with("distest.toml:2: "), "{}", failure.what);
            assert!(failure.what.contains(why), "{list}: {}", failure.what);
        }

        let all =
            forwards(&profile, &[socket.clone(), Forward::Port(80)]).expect("no contradiction");
        assert_eq!(all[3..], [Forward::Port(80)]);
        let twice = forwards(&[], &[socket.clone(), socket]).expect_err("twice");
        assert_eq!(twice.code, ExitCode::Usage);
        let many: Vec<_> = (1..=FORWARDS_MAX as u16 + 1).map(Forward::Port).collect();
        assert_eq!(forwards(&[], &many).expect_err("too many").code, ExitCode::Usage);
    }

    #[test]
    fn a_forward_needs_a_network_of_its_own() {
        let mut constraints =
            ConstraintSettings { forwards: vec![Forward::Port(1)], ..Default::default() };
        let failure = check(&constraints).expect_err("nobody finds it");
        assert!(failure.what.contains("network"), "{}", failure.what);
        constraints.network = Network::Private;
        assert!(check(&constraints).is_ok());
    }

    #[test]
    fn values_that_make_no_sense_name_their_line() {
        for line in [
            "priority = 200",
            "network = 'own'",
            "requires = ['gpu']",
            "threads-required = 0",
            "x = 1",
        ] {
            let failure = read(&overriding(line), Dialect::Distest).expect_err(line);
            assert!(failure.what.starts_with("distest.toml:5"), "{}", failure.what);
        }
    }
}
