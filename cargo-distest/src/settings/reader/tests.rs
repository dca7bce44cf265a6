use super::*;
use crate::failure::ExitCode;
use crate::settings::{Hedge, LocalSlots, Network, OutputWhen, StatusLevel};

fn file(name: &str, text: &str) -> ConfigText {
    ConfigText { path: PathBuf::from(name), text: text.to_owned() }
}

fn read_ours(text: &str) -> Result<FileConfig, Failure> {
    read(&file("distest.toml", text), Dialect::Distest)
}

fn read_theirs(text: &str) -> FileConfig {
    read(&file("nextest.toml", text), Dialect::Nextest).expect("valid")
}

/// One valid value for every key that is suggested.
const EVERY_KEY: &str = r#"
[store]
dir = "target/reports"

[fleet]
workers = ["tcp://a:1", "tcp://[::1]:2"]
fallback = "fail"

[binary."api::harness"]
list = "whole"

[profile.ci]
inherits = "default"
retries = { count = 2, backoff = "fixed" }
flaky-result = "fail"
hedge = "tail"
fail-fast = { max-fail = 5, terminate = "immediate" }
test-threads = -1
slow-timeout = { period = "20s", terminate-after = 3, grace-period = "1s", on-timeout = "fail" }
leak-timeout = { period = "500ms", result = "pass" }
global-timeout = "2h"
default-filter = "not test(slow)"
status-level = "retry"
final-status-level = "flaky"
success-output = "final"
failure-output = "immediate-final"
isolation = { mode = "process", writes = "lease" }
network = "private"
forward = [5432, "/run/postgresql/.s.PGSQL.5432"]
local-slots = 3
include = ["data/*.bin", "/opt/models"]
exclude = ["*.iso"]
tree-files-max = 1000
tree-bytes-max = "4 GiB"
env = { pass = ["DATABASE_URL", "APP_*"] }
collect = ["*.snap.new"]

[profile.ci.junit]
path = "junit.xml"
report-name = "nightly"
store-success-output = true
store-failure-output = false

[[profile.ci.overrides]]
filter = "test(db)"
test-group = "db"
threads-required = 2

[profile.plain]
max-fail = "all"

[test-groups]
db = { max-threads = 1, per-worker = 1 }
"#;

#[test]
fn every_suggested_key_is_understood() {
    let config = read_ours(EVERY_KEY).expect("valid");
    for key in TOP_KEYS.iter().chain(FLEET_KEYS).chain(PROFILE_KEYS).chain(JUNIT_KEYS) {
        assert!(EVERY_KEY.contains(key), "{key} is in no test");
    }
    assert_eq!(config.store, Some(PathBuf::from("target/reports")));
    assert_eq!(config.workers.as_ref().map(Vec::len), Some(2));
    assert_eq!(config.fallback, Some(Fallback::Fail));
    assert_eq!(config.whole, ["api::harness"]);
    let ci = &config.profiles["ci"];
    assert_eq!(ci.without_effect, [""; 0]);
    let layer = &ci.layer;
    assert_eq!(layer.retries, Some(2));
    assert_eq!(layer.flaky_fails, Some(true));
    assert_eq!(layer.hedge, Some(Hedge::Tail));
    assert_eq!(layer.max_fail, Some(MaxFail::Count { failures: 5, immediate: true }));
    assert_eq!(layer.test_threads, Some(TestThreads::AllBut(1)));
    assert_eq!(layer.slow_timeout, Some(Duration::from_secs(20)));
    assert_eq!(layer.test_timeout, Some(Some(Duration::from_secs(60))));
    assert_eq!(layer.grace, Some(Duration::from_secs(1)));
    assert_eq!(layer.leak_timeout, Some(Duration::from_millis(500)));
    assert_eq!(layer.global_timeout, Some(Duration::from_secs(7200)));
    assert_eq!(layer.default_filter.as_deref(), Some("not test(slow)"));
    assert_eq!(layer.status_level, Some(StatusLevel::Retry));
    assert_eq!(layer.final_status_level, Some(StatusLevel::Flaky));
    assert_eq!(layer.success_output, Some(OutputWhen::Final));
    assert_eq!(layer.failure_output, Some(OutputWhen::ImmediateFinal));
    assert_eq!(layer.isolation, Some(Isolation::Process));
    assert_eq!(layer.writes, Some(Writes::Lease));
    assert_eq!(layer.network, Some(Network::Private));
    assert_eq!(layer.forward.as_ref().map(Vec::len), Some(2));
    assert_eq!(layer.local_slots, Some(LocalSlots::Count(3)));
    assert_eq!(layer.junit, Some(PathBuf::from("junit.xml")));
    assert_eq!(layer.junit_name.as_deref(), Some("nightly"));
    assert_eq!(layer.junit_success_output, Some(true));
    assert_eq!(layer.junit_failure_output, Some(false));
    assert_eq!(layer.overrides.len(), 1);
    assert_eq!(config.groups["db"].per_worker, Some(1));
    assert_eq!(config.profiles["plain"].layer.max_fail, Some(MaxFail::All));
}

#[test]
fn short_forms_mean_what_the_long_ones_mean() {
    let layer = |line: &str| {
        let config = read_ours(&format!("[profile.default]\n{line}")).expect(line);
        config.profiles["default"].layer.clone()
    };
    let one = MaxFail::Count { failures: 1, immediate: false };
    assert_eq!(layer("fail-fast = true").max_fail, Some(one));
    assert_eq!(layer("fail-fast = false").max_fail, Some(MaxFail::All));
    assert_eq!(layer("fail-fast = { max-fail = \"all\" }").max_fail, Some(MaxFail::All));
    assert_eq!(layer("retries = 3").retries, Some(3));
    assert_eq!(layer("test-threads = \"num-cpus\"").test_threads, Some(TestThreads::NumCpus));
    assert_eq!(layer("leak-timeout = \"1s\"").leak_timeout, Some(Duration::from_secs(1)));
    assert_eq!(layer("isolation = \"process\"").isolation, Some(Isolation::Process));
    assert_eq!(layer("isolation.writes = \"test\"").writes, Some(Writes::Test));
    assert_eq!(layer("local-slots = \"auto\"").local_slots, Some(LocalSlots::Auto));
    // A period alone takes back a lower profile's end.
    let slow = layer("slow-timeout = \"5s\"");
    assert_eq!((slow.slow_timeout, slow.test_timeout), (Some(Duration::from_secs(5)), Some(None)));
}

#[test]
fn errors_name_the_line_and_the_nearest_key() {
    let wrong = [
        "[profile.ci]\nretires = 2",
        "[profile.ci]\n\nretries = \"many\"",
        "[profile.ci]\nretries = -1",
        "[profile.ci]\nslow-timeout = { terminate-after = 2 }",
        "[profile.ci]\nslow-timeout = \"soon\"",
        "[profile.ci]\nstatus-level = \"loud\"",
        "[profile.ci]\nfail-fast = { max-fail = 0 }",
        "[profile.ci.junit]\npth = \"x\"",
        "profile = 3",
        "[fleet]\nworkers = [\n  \"tcp://a:1\",\n  \"reapi://b:1\",\n]",
        "[fleet]\nfallback = \"none\"",
        "[binary.\"a::b\"]\nlist = \"some\"",
        "[[profile.ci.overrides]]\nfilter = \"all()\"\nforward = [1]",
        "[profil.ci]",
        "[profile.ci",
        "x = 1\nx = 2",
    ];
    let told = wrong.map(|text| {
        let failure = read_ours(text).expect_err(text);
        assert_eq!(failure.code, ExitCode::Setup, "{text}");
        match failure.hint {
            Some(hint) => format!("{} ({hint})", failure.what),
            None => failure.what,
        }
    });
    insta::assert_snapshot!(told.join("\n"), @r##"
    distest.toml:2: unknown key `retires` in [profile.ci] (did you mean `retries`?)
    distest.toml:3: invalid value of `profile.ci.retries`: expected a whole number
    distest.toml:2: invalid value of `profile.ci.retries`: expected a number from 0
    distest.toml:2: invalid value of `profile.ci.slow-timeout`: expected a duration or a table with `period`
    distest.toml:2: invalid value `soon` of `profile.ci.slow-timeout`: expected a duration such as `90s` or `1m 30s` (expected number at 0)
    distest.toml:2: invalid value `loud` of `profile.ci.status-level`: expected one of `none`, `fail`, `retry`, `flaky`, `slow`, `leak`, `pass`, `skip`, `all`
    distest.toml:2: invalid value of `profile.ci.fail-fast.max-fail`: expected a number from 1 or `"all"`
    distest.toml:2: unknown key `pth` in [profile.ci.junit] (did you mean `path`?)
    distest.toml:1: invalid value of `profile`: expected a table
    distest.toml:4: invalid value `reapi://b:1` of `fleet.workers`: this version does not support `reapi` addresses yet; expected tcp://HOST:PORT[#KEY], ssh://[USER@]HOST[:PORT], listen://IP:PORT, registry://HOST:PORT[#KEY] or mdns, such as tcp://10.0.0.7:7077 or tcp://[::1]:7077
    distest.toml:2: invalid value `none` of `fleet.fallback`: expected one of `embedded`, `fail`
    distest.toml:2: invalid value of `binary.a::b.list`: expected `"whole"`
    distest.toml:3: unknown key `profile.ci.overrides.forward`: services are forwarded to all tests (say `forward` in the profile itself; `network = "host"` in an override leaves its tests out)
    distest.toml:1: unknown key `profil` (did you mean `profile`?)
    distest.toml:1: unclosed table, expected `]`
    distest.toml:2: duplicate key
    "##);
}

#[test]
fn nextests_unknown_keys_are_ignored_and_known_ones_without_effect_are_told() {
    let config = read_theirs(
        r#"
        nextest-version = "0.9.50"
        experimental = ["setup-scripts"]
        brand-new = { x = 1 }

        [test-groups]
        serial = { max-threads = 1 }

        [scripts.setup.db]
        command = "true"

        [profile.default]
        retries = { backoff = "exponential", count = 3, delay = "1s", jitter = true }
        leak-timeout = { period = "1s", result = "fail" }
        slow-timeout = { period = "1s", on-timeout = "pass" }
        isolation = "unknown to nextest"
        brand-new = 1

        [[profile.default.overrides]]
        filter = "test(x)"
        retries = 9
        "#,
    );
    assert_eq!(config.without_effect, ["scripts"]);
    let serial = TestGroup { max_threads: Some(1), per_worker: None };
    assert_eq!(config.groups, BTreeMap::from([("serial".to_owned(), serial)]));
    let default = &config.profiles["default"];
    assert_eq!(default.layer.retries, Some(3));
    assert_eq!(default.layer.isolation, None);
    let expected = [
        "leak-timeout.result",
        "overrides.retries",
        "retries.backoff",
        "retries.delay",
        "retries.jitter",
        "slow-timeout.on-timeout",
    ];
    assert_eq!(default.without_effect, expected.map(|key| format!("profile.default.{key}")));
}

#[test]
fn a_users_file_holds_a_fleet_only() {
    let read_user = |text| read(&file("config.toml", text), Dialect::User);
    let config = read_user("[fleet]\nworkers = [\"tcp://a:1\"]").expect("valid");
    assert_eq!(config.workers.map(|workers| workers.len()), Some(1));
    let failure = read_user("[profile.default]").expect_err("no fleet");
    assert!(failure.hint.is_some_and(|hint| hint.contains("fleet")));
}
