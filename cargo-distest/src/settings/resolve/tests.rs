use std::collections::BTreeMap;
use std::ffi::OsString;

use super::*;
use crate::cli::{self, Command};
use crate::settings::{
    Color, ConfigText, Fallback, LocalSlots, MessageFormat, NoTests, Partition, PartitionBy,
};

/// What a run is started with.
#[derive(Clone, Copy, Default)]
struct Given<'a> {
    args: &'a str,
    env: &'a [(&'a str, &'a str)],
    distest: &'a str,
    nextest: Option<&'a str>,
    user: &'a str,
}

fn resolve_given(given: Given<'_>) -> Result<Resolved, Failure> {
    let args = ["cargo-distest", "run"].into_iter().chain(given.args.split_whitespace());
    let Command::Run(args) = cli::parse(args.map(OsString::from)).expect("valid").command else {
        panic!("not a run");
    };
    let env: BTreeMap<&str, &str> = given.env.iter().copied().collect();
    let file = |path: &str, text: &str| ConfigText { path: path.into(), text: text.to_owned() };
    let files = ConfigFiles {
        distest: Some(file("distest.toml", given.distest)),
        nextest: given.nextest.map(|text| file("nextest.toml", text)),
        user: Some(file("user.toml", given.user)),
    };
    let facts = Facts { cores: 8, workspace_root: "/ws".into(), cwd: "/ws/member".into() };
    resolve(&args, &|name| env.get(name).map(ToString::to_string), &files, &facts)
}

fn settings(given: Given<'_>) -> Settings {
    resolve_given(given).expect("resolves").settings
}

fn of_args(args: &str) -> Settings {
    settings(Given { args, ..Given::default() })
}

fn refusal(given: Given<'_>) -> (ExitCode, String) {
    let failure = resolve_given(given).expect_err("refused");
    (failure.code, failure.what)
}

#[test]
fn defaults() {
    insta::assert_debug_snapshot!(of_args(""), @r##"
    Settings {
        profile: "default",
        compile: CompileSettings {
            cargo: "cargo",
            manifest_path: None,
            build_args: [],
            metadata_args: [],
            config: [],
            targets: [],
            cargo_profile: "dev",
            no_run: false,
        },
        select: SelectSettings {
            filters: [],
            filtersets: [],
            default_filter: None,
            ignore_default_filter: false,
            skip: [],
            exact: false,
            run_ignored: Default,
            no_tests: Fail,
            partition: None,
            whole: [],
        },
        doctests: After,
        execute: ExecuteSettings {
            isolation: Auto,
            writes: Binary,
            seed: None,
            retries: 0,
            flaky_fails: false,
            hedge: Off,
            max_fail: Count {
                failures: 1,
                immediate: false,
            },
            test_threads: None,
            slow_timeout: 60s,
            test_timeout: None,
            grace: 10s,
            leak_timeout: 200ms,
            global_timeout: None,
            no_capture: false,
        },
        constraints: ConstraintSettings {
            groups: {},
            overrides: [],
            network: Host,
            forwards: [],
        },
        fleet: FleetSettings {
            workers: [],
            wait_workers: 1,
            wait_for: 30s,
            wait_given: false,
            max_workers: None,
            on: None,
            local_slots: Auto,
            fallback: Embedded,
            identity: IdentitySettings {
                key: User,
                known_workers: None,
            },
            ssh_program: "ssh",
        },
        travel: TravelSettings {
            include: [],
            exclude: [],
            tree_files_max: 200000,
            tree_bytes_max: 2147483648,
            pass: [],
            collect: [
                "*.snap.new",
                "*.pending-snap",
                "proptest-regressions",
                "*.proptest-regressions",
                "**/wip/*.stderr",
                "*.profraw",
            ],
        },
        report: ReportSettings {
            format: Human,
            color: Auto,
            progress: Auto,
            verbose: false,
            status_level: Pass,
            final_status_level: Flaky,
            success_output: Never,
            failure_output: ImmediateFinal,
            junit: None,
            junit_name: "nextest-run",
            junit_success_output: false,
            junit_failure_output: true,
        },
        history: HistorySettings {
            path: None,
            enabled: true,
        },
    }
    "##);
}

#[test]
fn flags_go_before_variables_before_files_before_defaults() {
    let nextest = Some("[profile.default]\nretries = 1\n[profile.ci]\nretries = 2");
    let distest = "[profile.default]\nretries = 3\n[profile.ci]\nretries = 4";
    let env: &[_] = &[("DISTEST_RETRIES", "5")];
    let cases = [
        (Given { args: "--retries 6 -P ci", env, distest, nextest, user: "" }, 6),
        (Given { args: "-P ci", env, distest, nextest, user: "" }, 5),
        (Given { args: "-P ci", env: &[], distest, nextest, user: "" }, 4),
        (Given { args: "", env: &[], distest, nextest, user: "" }, 3),
        // A profile goes before the one that it inherits from, whichever file it is in.
        (
            Given {
                args: "-P ci",
                distest: "[profile.default]\nretries = 3",
                nextest,
                ..Given::default()
            },
            2,
        ),
        (Given { nextest, ..Given::default() }, 1),
        (Given { env: &[("DISTEST_PROFILE", "ci")], nextest, ..Given::default() }, 2),
        (Given { env: &[("DISTEST_RETRIES", "")], ..Given::default() }, 0),
    ];
    for (number, (given, expected)) in cases.into_iter().enumerate() {
        assert_eq!(settings(given).execute.retries, expected, "case {number}");
    }
}

#[test]
fn profiles_inherit_and_unknown_ones_are_refused() {
    let distest = r#"
        [profile.base]
        retries = 1
        test-threads = 2
        [profile.nightly]
        inherits = "base"
        retries = 7
        [profile.default]
        global-timeout = "1h"
        [profile.a]
        inherits = "b"
        [profile.b]
        inherits = "a"
        [profile.orphan]
        inherits = "gone"
    "#;
    let given = |args| Given { args, distest, ..Given::default() };
    let execute = settings(given("-P nightly")).execute;
    assert_eq!((execute.retries, execute.test_threads), (7, Some(2)));
    assert_eq!(execute.global_timeout, Some(Duration::from_secs(3600)));

    let failure = resolve_given(given("-P nigthly")).expect_err("unknown");
    assert_eq!(failure.code, ExitCode::Setup);
    assert_eq!(failure.what, "there is no profile `nigthly`");
    let known = "known profiles: a, b, base, default, nightly, orphan";
    assert_eq!(failure.hint.as_deref(), Some(known));
    assert!(refusal(given("-P a")).1.contains("inherits from itself"));
    assert!(refusal(given("-P orphan")).1.contains("no profile `gone`"));
}

#[test]
fn a_nextest_configuration_means_a_process_per_test_and_warns() {
    let nextest = Some("[profile.default]\n[profile.ci]\nthreads-required = 2");
    let plain = resolve_given(Given { nextest, ..Given::default() }).expect("resolves");
    assert_eq!(plain.settings.execute.isolation, Isolation::Process);
    assert_eq!(plain.warnings, []);
    let auto = Given { args: "--isolation auto -P ci", nextest, ..Given::default() };
    let auto = resolve_given(auto).expect("resolves");
    assert_eq!(auto.settings.execute.isolation, Isolation::Auto);
    let [warning] = &auto.warnings[..] else { panic!("one warning: {:?}", auto.warnings) };
    let expected = "nextest.toml has keys without effect here: profile.ci.threads-required";
    assert_eq!(warning.text, expected);
}

#[test]
fn the_end_of_runs_and_tests() {
    let execute = |args| of_args(args).execute;
    assert_eq!(execute("--nff").max_fail, MaxFail::All);
    assert_eq!(execute("--ff").max_fail, MaxFail::Count { failures: 1, immediate: false });
    let max_fail = MaxFail::Count { failures: 3, immediate: true };
    assert_eq!(execute("--max-fail 3:immediate").max_fail, max_fail);

    let distest = "[profile.default.slow-timeout]\nperiod = \"10s\"\nterminate-after = 3";
    let timeouts = |args| {
        let execute = settings(Given { args, distest, ..Given::default() }).execute;
        (execute.slow_timeout.as_secs(), execute.test_timeout.map(|timeout| timeout.as_secs()))
    };
    assert_eq!(timeouts(""), (10, Some(30)));
    assert_eq!(timeouts("--slow-timeout 5s"), (5, Some(30)));
    assert_eq!(timeouts("--test-timeout 90s"), (10, Some(90)));
}

#[test]
fn threads_and_capture() {
    let threads = |args| of_args(args).execute.test_threads;
    assert_eq!(threads(""), None);
    assert_eq!(threads("-j num-cpus"), None);
    assert_eq!(threads("-j4"), Some(4));
    assert_eq!(threads("-j-2"), Some(6));
    assert_eq!(threads("-- --test-threads=2"), Some(2));
    assert_eq!(threads("-j4 --no-capture"), Some(1));
    let execute = of_args("-- --nocapture").execute;
    assert_eq!((execute.test_threads, execute.no_capture), (Some(1), true));
    let report = of_args("--no-capture --failure-output final --show-progress bar").report;
    assert_eq!(
        (report.failure_output, report.progress),
        (OutputWhen::Never, ShowProgress::Counter)
    );
}

#[test]
fn which_tests() {
    let select = of_args("a -E all() --shard 2/3 --no-tests warn -- b --skip c --exact --ignored");
    let select = select.select;
    assert_eq!(select.filters, ["a", "b"]);
    assert_eq!(select.filtersets, ["all()"]);
    assert_eq!(select.skip, ["c"]);
    assert!(select.exact);
    assert_eq!(select.run_ignored, RunIgnored::Only);
    assert_eq!(select.no_tests, NoTests::Warn);
    let share = Partition { by: PartitionBy::Timed, index: 2, count: 3 };
    assert_eq!(select.partition, Some(share));

    let contradiction = Given { args: "--run-ignored all -- --ignored", ..Given::default() };
    assert_eq!(refusal(contradiction).0, ExitCode::Usage);
    assert_eq!(of_args("--run-ignored only -- --ignored").select.run_ignored, RunIgnored::Only);

    let distest =
        "[profile.default]\ndefault-filter = \"test(x)\"\n[binary.\"a::b\"]\nlist = \"whole\"";
    let args = "--ignore-default-filter";
    let select = settings(Given { args, distest, ..Given::default() }).select;
    assert_eq!(select.default_filter.as_deref(), Some("test(x)"));
    assert!(select.ignore_default_filter);
    assert_eq!(select.whole, ["a::b"]);
}

#[test]
fn the_fleet_comes_from_the_nearest_source() {
    let user = "[fleet]\nworkers = [\"tcp://user:1\"]\nfallback = \"fail\"";
    let distest = "[fleet]\nworkers = [\"tcp://repo:1\"]";
    let env: &[_] = &[("DISTEST_WORKERS", "tcp://env:1, tcp://env:2")];
    let workers = |given| {
        let workers = settings(given).fleet.workers;
        workers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let args = "--worker tcp://flag:1 --worker tcp://flag:2";
    let all = Given { args, env, distest, user, nextest: None };
    assert_eq!(workers(all), "tcp://flag:1 tcp://flag:2");
    assert_eq!(workers(Given { args: "", ..all }), "tcp://env:1 tcp://env:2");
    assert_eq!(workers(Given { args: "", env: &[], ..all }), "tcp://repo:1");
    let users = Given { user, ..Given::default() };
    assert_eq!(workers(users), "tcp://user:1");
    assert_eq!(settings(users).fleet.fallback, Fallback::Fail);

    let fleet = of_args("--wait-workers 3:5s --max-workers 4 --on a --local-slots 0").fleet;
    assert_eq!((fleet.wait_workers, fleet.wait_for), (3, Duration::from_secs(5)));
    assert_eq!((fleet.max_workers, fleet.on.as_deref()), (Some(4), Some("a")));
    assert_eq!(fleet.local_slots, LocalSlots::Count(0));
    // Only whoever is named, unless nobody can be used at all.
    for (args, key, fallback, on) in [
        ("--on a", "k", Fallback::Fail, Some("a")),
        ("--on local", "k", Fallback::Embedded, Some("local")),
        ("--on a", "", Fallback::Embedded, None),
        ("--on a --local-slots 0", "", Fallback::Fail, Some("a")),
    ] {
        let env: &[_] = &[("DISTEST_KEY", key)];
        let fleet = settings(Given { args, env, ..Given::default() }).fleet;
        assert_eq!((fleet.fallback, fleet.on.as_deref()), (fallback, on), "{args} {key}");
    }
}

#[test]
fn reports_lie_where_nextest_puts_them() {
    let junit = |given| settings(given).report.junit.map(|path| path.display().to_string());
    let nextest = Some("[profile.ci.junit]\npath = \"junit.xml\"");
    let configured = Given { args: "-P ci", nextest, ..Given::default() };
    assert_eq!(junit(configured).as_deref(), Some("/ws/target/nextest/ci/junit.xml"));
    let distest = "[store]\ndir = \"out\"";
    assert_eq!(junit(Given { distest, ..configured }).as_deref(), Some("/ws/out/ci/junit.xml"));
    let flag = Given { args: "-P ci --junit x.xml", ..configured };
    assert_eq!(junit(flag).as_deref(), Some("/ws/member/x.xml"));
    assert_eq!(junit(Given { args: "", ..configured }), None);

    let history = of_args("--history h").history;
    assert_eq!(history.path, Some("/ws/member/h".into()));
    assert!(!of_args("--no-history").history.enabled);
    let env: &[_] = &[
        ("DISTEST_MESSAGE_FORMAT", "json"),
        ("CARGO_TERM_COLOR", "never"),
        ("DISTEST_HISTORY", "/h"),
    ];
    let from_env = settings(Given { env, ..Given::default() });
    assert_eq!(from_env.report.format, MessageFormat::Json);
    assert_eq!(from_env.report.color, Color::Never);
    assert_eq!(from_env.history.path, Some("/h".into()));
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value) in [
        ("DISTEST_RETRIES", "many"),
        ("DISTEST_TEST_THREADS", "0"),
        ("DISTEST_NO_TESTS", "maybe"),
        ("DISTEST_WORKERS", "tcp://a:1,nonsense"),
        ("DISTEST_STATUS_LEVEL", "loud"),
    ] {
        let (code, what) = refusal(Given { env: &[(name, value)], ..Given::default() });
        assert_eq!(code, ExitCode::Usage);
        assert!(what.contains(name) && what.contains("expected"), "{what}");
    }
}

#[test]
fn what_travels_and_what_comes_back() {
    let distest = r#"
        [profile.default]
        include = ["data/*.bin"]
        tree-files-max = 10
        tree-bytes-max = "1 MiB"
        env = { pass = ["DATABASE_URL"] }
        collect = ["*.out"]
        [profile.ci]
        include = []
    "#;
    let travel = |args| settings(Given { args, distest, ..Given::default() }).travel;
    let plain = travel("--collect *.log --collect x/y");
    assert_eq!(plain.include, ["data/*.bin"]);
    assert_eq!((plain.tree_files_max, plain.tree_bytes_max), (10, 1 << 20));
    assert_eq!(plain.pass, ["DATABASE_URL"]);
    assert_eq!(plain.collect, ["*.out", "*.log", "x/y"], "flags add");
    let ci = travel("-P ci");
    assert_eq!((ci.include, ci.collect), (vec![], vec!["*.out".to_owned()]));
    let flag = of_args("--collect *.log").travel.collect;
    assert!(flag.contains(&"*.snap.new".to_owned()) && flag.contains(&"*.log".to_owned()));

    for wrong in ["include = [\"a[\"]", "tree-files-max = 0", "env = { past = [] }", "collect = 3"]
    {
        let distest = format!("[profile.default]\n{wrong}");
        let given = Given { distest: &distest, ..Given::default() };
        let (code, what) = refusal(given);
        assert!(code == ExitCode::Setup && what.contains("distest.toml:2"), "{wrong}: {what}");
    }
}
