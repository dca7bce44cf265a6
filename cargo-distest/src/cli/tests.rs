use clap::CommandFactory;

use super::*;
use crate::failure::ExitCode;

fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
    let args = ["cargo-distest", "run"].iter().chain(args).map(OsString::from);
    match parse(args)?.command {
        Command::Run(run) => Ok(*run),
        other => panic!("not a run: {other:?}"),
    }
}

/// Every flag that `run` documents, with a value that it takes. `run_accepts_what_it_documents`
/// fails if one is missing here.
const FLAGS: &[&str] = &[
    "--package=a",
    "-pa",
    "--workspace",
    "--all",
    "--exclude=a",
    "--lib",
    "--bin=a",
    "--bins",
    "--example=a",
    "--examples",
    "--test=a",
    "--tests",
    "--bench=a",
    "--benches",
    "--all-targets",
    "--features=a,b",
    "-Fa",
    "--all-features",
    "--no-default-features",
    "--build-jobs=-1",
    "--release",
    "-r",
    "--cargo-profile=dist",
    "--target=x86_64-unknown-linux-gnu",
    "--target-dir=t",
    "--timings",
    "--timings=html",
    "--manifest-path=Cargo.toml",
    "--locked",
    "--offline",
    "--frozen",
    "--cargo-verbose",
    "-vv",
    "--cargo-quiet",
    "-q",
    "--ignore-rust-version",
    "--future-incompat-report",
    "--config=build.jobs=1",
    "-Zunstable-options",
    "--filterset=all()",
    "--filter-expr=all()",
    "-Eall()",
    "--ignore-default-filter",
    "--run-ignored=default",
    "--run-ignored=only",
    "--run-ignored=ignored-only",
    "--run-ignored=all",
    "--no-tests=pass",
    "--no-tests=warn",
    "--no-tests=fail",
    "--no-tests=auto",
    "--partition=hash:1/2",
    "--partition=slice:1/2",
    "--partition=timed:1/2",
    "--shard=1/2",
    "--no-run",
    "--test-threads=-1",
    "--jobs=num-cpus",
    "-j4",
    "--isolation=auto",
    "--isolation=process",
    "--isolation=batch",
    "--seed=7",
    "--retries=2",
    "--flaky-result=fail",
    "--fail-fast",
    "--ff",
    "--no-fail-fast",
    "--nff",
    "--max-fail=3:immediate",
    "--max-fail=all",
    "--slow-timeout=10s",
    "--test-timeout=1m",
    "--global-timeout=1h",
    "--no-capture",
    "--nocapture",
    "--worker=tcp://localhost:7077",
    "--wait-workers=2:10s",
    "--max-workers=3",
    "--on=name",
    "--local-slots=0",
    "--local-slots=auto",
    "--forward=5432",
    "--collect=*.snap.new",
    "--doc",
    "--junit=junit.xml",
    "--message-format=human",
    "--message-format=json",
    "--show-progress=auto",
    "--show-progress=none",
    "--show-progress=bar",
    "--show-progress=counter",
    "--status-level=leak",
    "--final-status-level=flaky",
    "--success-output=never",
    "--failure-output=immediate-final",
    "--color=always",
    "--history=h.sqlite",
    "--no-history",
    "--profile=ci",
    "-Pci",
    "--config-file=c.toml",
];

#[test]
fn clap_finds_no_fault_with_its_structs() {
    Cli::command().debug_assert();
    LibtestArgs::command().debug_assert();
}

#[test]
fn run_accepts_what_it_documents() {
    for flag in FLAGS {
        run(&[flag]).unwrap_or_else(|error| panic!("{flag}: {error}"));
    }
    let mut command = Cli::command();
    command.build();
    let documented = command.find_subcommand("run").expect("there is a run");
    for arg in documented.get_arguments().filter(|arg| !arg.is_positional()) {
        let name = match (arg.get_long(), arg.get_short()) {
            (Some(long), _) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => continue,
        };
        let listed = FLAGS.iter().any(|flag| {
            flag.split('=').next() == Some(&name)
                || (!name.starts_with("--") && flag.starts_with(&name))
        });
        assert!(listed || name == "--help", "{name} is in no test");
    }
}

#[test]
fn cargos_extra_argument_is_ignored_once() {
    let parse_all = |args: &[&str]| parse(args.iter().map(OsString::from));
    for args in [["cargo-distest", "distest", "r"], ["cargo-distest", "r", "distest"]] {
        let Command::Run(run) = parse_all(&args).expect("valid").command else {
            panic!("not a run");
        };
        let filters: &[&str] = if args[1] == "r" { &["distest"] } else { &[] };
        assert_eq!(run.select.filters, filters);
    }
    assert!(parse_all(&["cargo-distest", "distest", "distest", "run"]).is_err());
}

#[test]
fn arguments_behind_dashes_mean_what_libtest_means() {
    let args = ["a", "--", "b", "--skip", "-c", "--exact", "--include-ignored", "--nocapture"];
    let select = run(&args).expect("valid").select;
    assert_eq!(select.filters, ["a"]);
    let expected = LibtestArgs {
        filters: vec!["b".to_owned()],
        skip: vec!["-c".to_owned()],
        exact: true,
        ignored: false,
        include_ignored: true,
        nocapture: true,
        test_threads: None,
    };
    assert_eq!(select.libtest, expected);
    let threads = run(&["--", "--test-threads=1"]).expect("valid").select.libtest.test_threads;
    assert_eq!(threads, Some(crate::settings::TestThreads::Count(1)));
}

#[test]
fn refusals_exit_with_2_and_name_the_culprit() {
    let refused: &[(&[&str], &str)] = &[
        (&["--frobnicate"], "--frobnicate"),
        (&["--worker", "reapi://build:1"], "does not support `reapi` addresses yet"),
        (&["--worker", "build:7077"], "tcp://HOST:PORT[#"),
        (&["--max-fail", "0"], "expected a number from 1"),
        (&["--shard", "3/2"], "1 ≤ K ≤ N"),
        (&["--retries", "-1"], "-1"),
        (&["--slow-timeout", "soon"], "`90s`"),
        (&["--isolation", "some"], "process"),
        (&["--fail-fast", "--no-fail-fast"], "--no-fail-fast"),
        (&["--release", "--cargo-profile=x"], "--cargo-profile"),
        (&["--no-history", "--history=x"], "--history"),
        (&["--", "--frobnicate"], "supported there: FILTER, --skip X"),
        (&["--", "--ignored", "--include-ignored"], "behind `--`"),
    ];
    for (args, expected) in refused {
        let error = run(args).expect_err("refused");
        let message = error.to_string();
        assert!(message.contains(expected), "{args:?}: {message}");
        assert_eq!(error.exit_code(), i32::from(ExitCode::Usage.number()), "{args:?}");
    }
}

#[test]
fn help_documents_every_exit_code() {
    use ExitCode::*;
    let all = [
        Passed,
        CommandFailed,
        Usage,
        NoTests,
        InvalidFilterset,
        Setup,
        NoWorker,
        FleetLost,
        TestsFailed,
        BuildFailed,
        MetadataFailed,
        ListFailed,
        SetupScriptFailed,
        ReportFailed,
        Interrupted,
    ];
    let documented: Vec<u8> = EXIT_CODES
        .lines()
        .filter_map(|line| line.strip_prefix(' ')?.split_whitespace().next()?.parse().ok())
        .collect();
    assert_eq!(documented, all.map(ExitCode::number));
    for command in ["run", "list"] {
        let error = parse(["x", command, "--help"].map(OsString::from)).expect_err("help");
        assert!(error.to_string().contains("101  the build failed"), "{command}");
        assert_eq!(error.exit_code(), 0);
    }
}

#[test]
fn completions_and_manual_page_know_the_commands() {
    for shell in Shell::value_variants() {
        let mut script = Vec::new();
        write_completions(*shell, &mut script);
        let script = String::from_utf8(script).expect("UTF-8");
        assert!(script.contains("cargo-distest") && script.contains("local-slots"), "{shell}");
    }
    let mut page = Vec::new();
    write_man(&mut page).expect("written to memory");
    let page = String::from_utf8(page).expect("UTF-8");
    assert!(page.contains(r"\-\-local\-slots") && page.contains("fleet was lost"));
}

#[test]
fn list_selects_as_run_does() {
    let args = ["x", "list", "--message-format=oneline", "-pa", "-Eall()", "b", "--", "--ignored"];
    let Command::List(list) = parse(args.map(OsString::from)).expect("valid").command else {
        panic!("not a list");
    };
    assert_eq!(list.message_format, ListFormat::Oneline);
    let run = list.as_run();
    assert_eq!(run.build.package, ["a"]);
    assert_eq!(
        (run.select.filters, run.select.filterset),
        (vec!["b".to_owned()], vec!["all()".to_owned()])
    );
    assert!(run.select.libtest.ignored);
}
