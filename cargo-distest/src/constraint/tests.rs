//! The manual's example, read as a user's file is.

use super::*;
use crate::cli::RunArgs;
use crate::filter::tests::binary;
use crate::model::BinaryKind;
use crate::settings::{ConfigFiles, ConfigText, Facts, TestGroup, resolve};

const MANUAL: &str = include_str!("../../../docs/constraints.md");
const METADATA: &str = include_str!("../filter/metadata.json");

fn example() -> &'static str {
    let (_, rest) = MANUAL.split_once("```toml\n").expect("it has an example");
    rest.split_once("```\n").expect("which ends").0
}

fn settings() -> ConstraintSettings {
    let file = ConfigText { path: "distest.toml".into(), text: example().to_owned() };
    let files = ConfigFiles { distest: Some(file), ..ConfigFiles::default() };
    let mut args = RunArgs::default();
    args.fleet.worker.push("tcp://127.0.0.1:7777".parse().expect("an address"));
    let facts = Facts { cores: 8, workspace_root: "/ws".into(), cwd: "/ws".into() };
    let resolved = resolve(&args, &|_| None, &files, &facts).expect("the example makes sense");
    assert_eq!(resolved.warnings, []);
    resolved.settings.constraints
}

#[test]
fn the_manuals_example_means_what_it_says() {
    let metadata = METADATA.replace("alpha", "app").replace("beta", "server");
    let constraints = Constraints::new(&settings(), &metadata).expect("its filters can be read");
    let group = |name: &str| {
        let place = constraints.groups().iter().position(|group| group.name == name);
        place.map(|place| GroupIndex(place as u16))
    };
    let check = |id: &str, name: &str, expected: Needs| {
        let binary = binary(id, "target", BinaryKind::Test);
        let needs = constraints.needs(&binary, &TestName::new(name));
        assert_eq!(needs.as_deref().cloned().unwrap_or_default(), expected, "{id} {name}");
    };
    let any = Needs::default;
    check("app", "db_fills", Needs { group: group("database"), priority: 50, ..any() });
    check("app::api", "any", Needs { group: group("simulator"), threads: 2, ..any() });
    // The first that says something of a matter decides it.
    let both = Needs { group: group("database"), priority: 50, threads: 2, ..any() };
    check("app::api", "db_fills", both);
    let labels = [("cpu", "epyc"), ("kind", "metal")];
    let requires = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
    check("app", "bench_sort", Needs { exclusive: true, requires, place: Place::Remote, ..any() });
    check("app", "it::renames_a_folder", Needs { place: Place::Local, ..any() });
    check("server", "it::listens", Needs { private_network: true, ..any() });
    check("app", "it::listens", any());
}

#[test]
fn the_manuals_example_has_every_key_and_its_table_explains_each() {
    let ConstraintSettings { groups, overrides, network: _, forwards: _ } = settings();
    let has = |key: &str, said: bool| {
        assert!(said, "the example has no {key}");
        let rows = MANUAL.lines().filter(|line| line.starts_with(&format!("| `{key}` |")));
        assert_eq!(rows.count(), 1, "rows of {key}");
    };
    let of_groups = |said: fn(&TestGroup) -> bool| groups.values().any(said);
    let of_tests = |said: fn(&Override) -> bool| overrides.iter().any(said);
    // A new key breaks the build here.
    let TestGroup { max_threads: _, per_worker: _ } = TestGroup::default();
    has("max-threads", of_groups(|it| it.max_threads.is_some()));
    has("per-worker", of_groups(|it| it.per_worker.is_some()));
    let Override {
        filter: _,
        group: _,
        threads: _,
        exclusive: _,
        requires: _,
        local_only: _,
        remote_only: _,
        network: _,
        priority: _,
    } = Override::default();
    has("test-group", of_tests(|it| it.group.is_some()));
    has("threads-required", of_tests(|it| it.threads.is_some()));
    has("exclusive", of_tests(|it| it.exclusive.is_some()));
    has("requires", of_tests(|it| it.requires.is_some()));
    has("local-only", of_tests(|it| it.local_only.is_some()));
    has("remote-only", of_tests(|it| it.remote_only.is_some()));
    has("network", of_tests(|it| it.network.is_some()));
    has("priority", of_tests(|it| it.priority.is_some()));
}
