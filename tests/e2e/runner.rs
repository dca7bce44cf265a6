//! `cargo distest runner`: an executable on a worker behaves as if it ran here.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use distest_tests::DEADLINE;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic;
use distest_tests::process::Owned;
use distest_tests::product::{cargo, product};
use distest_tests::scratch::Scratch;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::travel::package;
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("runner::streams_and_status_are_the_executables", streams_and_status),
        case("runner::stdin_of_100_mb_arrives", long_stdin),
        case("runner::ends_by_the_signal_that_ended_the_executable", ends_by_signal),
        case("runner::passes_signals_on", passes_signals),
        case("runner::a_killed_runner_leaves_nothing_on_the_worker", killed),
        case("runner::a_reader_that_leaves_ends_it", reader_leaves),
        case("runner::without_workers_it_becomes_the_executable", no_workers),
        case("runner::without_a_key_it_says_that_it_runs_here", empty_key),
        case("runner::falls_back_or_says_why", falls_back),
        case("runner::the_agents_socket_is_private", private_socket),
        case("runner::cargo_test_says_the_same", cargo_test),
        case("runner::cargo_test_of_dynamic_libraries", |scratch| same_verdicts(scratch, "dylib")),
        case("runner::cargo_test_with_a_relative_target_folder", |scratch| {
            let fixture = Fixture::copied("paths", scratch);
            same_verdicts_of(scratch, &Fixture { target_dir: "../elsewhere".into(), ..fixture });
        }),
        case("runner::cargo_run_in_a_subfolder", cargo_run),
        case("runner::files_that_change_travel_again", changed_files),
        case("runner::files_that_rest_are_not_looked_for_again", resting_files),
        case("runner::files_that_executables_leave_come_back", |scratch| {
            leaves_files(scratch, &hermetic::fleet(scratch, 1, 1));
        }),
        case("runner::files_come_back_from_where_nothing_is_enclosed", |scratch| {
            leaves_files(scratch, &[plain_worker(scratch)]);
        }),
        case("runner::files_that_are_deleted_here_come_back_again", brings_again),
        case("runner::too_many_files_to_bring_back_are_told", too_many_files),
        case("runner::processes_that_are_left_behind_are_told", leaves_processes),
        case("runner::compiled_in_paths_decide_where_it_runs", compiled_in),
        case_if("runner::nextest_says_the_same", nextest_is_there, nextest),
    ]
}

/// The runner, with these workers.
fn runner(scratch: &Scratch, workers: &[Worker]) -> Command {
    let mut command = scratch.command(&product().client);
    let addresses: Vec<&str> = workers.iter().map(|worker| &*worker.address).collect();
    command
        .arg("runner")
        .env("DISTEST_WORKERS", addresses.join(" "))
        .env("DISTEST_RUNNER_IDLE", "1")
        .current_dir(scratch.path())
        .stdin(Stdio::null());
    command
}

/// cargo, with the runner set.
fn cargo_with(scratch: &Scratch, workers: &[Worker], fixture: &Fixture) -> Command {
    let mut command = scratch.command(cargo());
    let addresses: Vec<&str> = workers.iter().map(|worker| &*worker.address).collect();
    if !workers.is_empty() {
        let runner = format!("{} runner", product().client.display());
        let triple = host().to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{triple}_RUNNER"), runner);
    }
    command
        .env("DISTEST_WORKERS", addresses.join(" "))
        .env("DISTEST_RUNNER_IDLE", "1")
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TARGET_DIR", &fixture.target_dir)
        .current_dir(&fixture.root)
        .stdin(Stdio::null());
    command
}

/// What rustc builds for here.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let told = text(&output.stdout);
    told.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

/// Has the agent stay for as long as a case takes, which ends it.
const STAYS: (&str, &str) = ("DISTEST_RUNNER_IDLE", "600");

fn end_agent(scratch: &Scratch) {
    let clients = scratch.processes().into_iter().filter(|it| it.executable == product().client);
    let agents = clients.filter(|it| it.command_line.contains(" --agent "));
    let ended = agents.map(|it| kill(Pid::from_raw(it.pid.cast_signed()), Signal::SIGKILL));
    assert_eq!(ended.collect::<Vec<_>>(), [Ok(())], "one agent");
}

fn shell(scratch: &Scratch, workers: &[Worker], script: &str) -> Command {
    let mut command = runner(scratch, workers);
    command.args(["/bin/sh", "-c", script]);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn streams_and_status(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let script = "echo $DISTEST_TEST_WORKER; echo from stderr >&2; cat; exit 7";
    let mut command = shell(scratch, &workers, script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Owned::start(&mut command).unwrap();
    let mut stdin = process.streams().stdin.take().unwrap();
    stdin.write_all(b"typed\0by hand").unwrap();
    drop(stdin);
    let mut out = String::new();
    let mut err = String::new();
    use std::io::Read;
    process.streams().stdout.take().unwrap().read_to_string(&mut out).unwrap();
    process.streams().stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((&*out, &*err), ("w1\ntyped\0by hand", "from stderr\n"));
    assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(7));
}

fn long_stdin(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    const BYTES: u64 = 100_000_000;
    let file = fs::File::create(scratch.join("zeros")).unwrap();
    file.set_len(BYTES).unwrap();
    let mut command = shell(scratch, &workers, "wc -c");
    command.stdin(fs::File::open(scratch.join("zeros")).unwrap());
    let output = command.output().unwrap();
    assert_eq!(text(&output.stdout).trim(), BYTES.to_string(), "{}", text(&output.stderr));
}

fn ends_by_signal(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    for signal in [Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGTERM, Signal::SIGINT] {
        let script = format!("kill -{} $$; sleep 600", signal as i32);
        let status = shell(scratch, &workers, &script).status().unwrap();
        assert_eq!(status.signal(), Some(signal as i32), "{signal}: {status}");
    }
}

fn passes_signals(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    for (signal, name) in [(Signal::SIGINT, "INT"), (Signal::SIGTERM, "TERM")] {
        let script =
            format!("trap 'echo caught; exit 3' {name}; echo ready; while :; do sleep 0.05; done");
        let mut command = shell(scratch, &workers, &script);
        command.stdout(Stdio::piped());
        let mut process = Owned::start(&mut command).unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            process.streams().stdout.take().unwrap(),
        ));
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        process.signal(signal);
        assert_eq!(lines.next().unwrap().unwrap(), "caught");
        assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(3), "{name}");
    }
}

fn killed(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let mut process = Owned::start(&mut shell(scratch, &workers, "sleep 654 & wait")).unwrap();
    let sleeps =
        |stray: &distest_tests::scratch::Stray| stray.command_line.starts_with("sleep 654");
    scratch.wait_for("the executable's own child", sleeps);
    process.signal(Signal::SIGKILL);
    assert!(process.wait(DEADLINE).is_some());
    let left = scratch.left_after(crate::GONE_WITHIN, sleeps);
    assert!(left.is_empty(), "still there: {left:?}");
}

fn reader_leaves(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let mut command = runner(scratch, &workers);
    command.args(["yes", "no"]).stdout(Stdio::piped());
    let mut process = Owned::start(&mut command).unwrap();
    let stdout = process.streams().stdout.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    assert_eq!(lines.next().unwrap().unwrap(), "no");
    drop(lines);
    assert_eq!(process.wait(DEADLINE).unwrap().signal(), Some(Signal::SIGPIPE as i32));
}

fn no_workers(scratch: &Scratch) {
    // The same process: nothing of ours is in between.
    let mut process = Owned::start(shell(scratch, &[], "echo $$; exit 5").stdout(Stdio::piped()));
    let process = process.as_mut().unwrap();
    let mut told = String::new();
    let mut stdout = process.streams().stdout.take().unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut told).unwrap();
    assert_eq!(told.trim(), process.pid().to_string());
    assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(5));
}

fn falls_back(scratch: &Scratch) {
    let address = {
        let worker = Worker::start(scratch, "w1", 1);
        worker.address.clone()
    };
    let run = |scratch: &Scratch| -> Output {
        let mut command = shell(scratch, &[], "echo here; exit 4");
        command.env("DISTEST_WORKERS", &address).output().unwrap()
    };
    let output = run(scratch);
    assert_eq!((output.status.code(), &*text(&output.stdout)), (Some(4), "here\n"));
    let told = text(&output.stderr);
    assert!(told.contains("runs on this machine") && told.contains(&address), "{told}");

    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let output = run(scratch);
    assert_eq!(output.status.code(), Some(97), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

fn empty_key(scratch: &Scratch) {
    let mut command = shell(scratch, &[], "echo here");
    command.env("DISTEST_WORKERS", "tcp://127.0.0.1:1").env("DISTEST_KEY", "");
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), &*text(&output.stdout)), (Some(0), "here\n"));
    let told = "cargo distest runner: warning: DISTEST_KEY is empty, so no worker can be used: \
                /bin/sh runs on this machine\n";
    assert_eq!(text(&output.stderr), told);
}

fn private_socket(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let status = shell(scratch, &workers, "true").env(STAYS.0, STAYS.1).status();
    assert!(status.unwrap().success());
    let folder = scratch.join("cache/cargo-distest/runner");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    end_agent(scratch);

    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let output = shell(scratch, &workers, "true").output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(96), "{told}");
    assert!(told.contains("others can enter it"), "{told}");
}

/// `test NAME ... RESULT` lines, counted: several binaries may have tests of one name.
fn verdicts(output: &Output) -> BTreeMap<String, usize> {
    let mut verdicts = BTreeMap::new();
    let told = text(&output.stdout);
    let lines = told.lines().filter(|line| line.starts_with("test ") && line.contains(" ... "));
    for line in lines {
        *verdicts.entry(line.to_owned()).or_default() += 1;
    }
    verdicts
}

fn cargo_test(scratch: &Scratch) {
    for fixture in ["basic", "paths", "workspace", "environment"] {
        same_verdicts(scratch, fixture);
    }
}

/// `cargo test` with and without the runner, on a worker that has never seen these files.
fn same_verdicts(scratch: &Scratch, fixture: &str) {
    same_verdicts_of(scratch, &Fixture::named(fixture));
}

fn same_verdicts_of(scratch: &Scratch, fixture: &Fixture) {
    let workers = hermetic::fleet(scratch, 1, 2);
    let run = |workers: &[Worker]| {
        let mut command = cargo_with(scratch, workers, fixture);
        command.args(["test", "--workspace", "--no-fail-fast"]).output().unwrap()
    };
    let (here, there) = (run(&[]), run(&workers));
    let all = verdicts(&here);
    assert!(!all.is_empty(), "no tests:\n{}", text(&here.stderr));
    assert_eq!(verdicts(&there), all, "{}\n{}", text(&there.stdout), text(&there.stderr));
    assert_eq!(there.status.code(), here.status.code());
}

fn cargo_run(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    let workers = Worker::fleet(scratch, 1, 1);
    let mut command = cargo_with(scratch, &workers, &fixture);
    command.args(["run", "--quiet", "--bin", "paths-tool", "--", "data/hello.txt"]);
    let output = command.current_dir(fixture.root.join("tests")).output().unwrap();
    assert_eq!(text(&output.stdout), "hello from a data file\n", "{}", text(&output.stderr));
}

fn compiled_in(scratch: &Scratch) {
    let folder = package(scratch, "");
    let program = r#"fn main() {
        assert!(std::fs::exists(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap());
        println!("{}", std::env::var("DISTEST_TEST_WORKER").as_deref().unwrap_or("here"));
    }"#;
    scratch.write("subject/src/main.rs", program);
    let (root, target_dir) = (folder.clone(), folder.join("target"));
    let fixture = Fixture { root, target_dir, ..Fixture::named("paths") };
    let plain = plain_worker(scratch);
    let run = |workers: &[Worker]| {
        let mut command = cargo_with(scratch, workers, &fixture);
        let output = command.args(["run", "--quiet", "--offline"]).output().unwrap();
        (text(&output.stdout), text(&output.stderr))
    };
    let plain = [plain];
    let (ran, told) = run(&plain);
    assert_eq!(ran, "here\n");
    let reason = "is compiled into it, and that path can't be recreated there";
    assert!(told.contains("worker plain does not take") && told.contains(reason), "{told}");
    let [plain] = plain;
    let (ran, told) = run(&[plain, Worker::start(scratch, "w1", 1)]);
    assert_eq!((&*ran, &*told), ("w1\n", ""));
}

/// A worker that has no sandbox.
fn plain_worker(scratch: &Scratch) -> Worker {
    let (store, executable) = (scratch.join("store-plain"), Executable::Worker);
    Worker::start_changed(scratch, "plain", 1, &store, executable, |command| {
        command.args(["--sandbox", "variables"]);
    })
}

fn changed_files(scratch: &Scratch) {
    let fixture = Fixture::copied("paths", scratch);
    let workers = Worker::fleet(scratch, 1, 1);
    let file = fixture.root.join("tests/data/hello.txt");
    let extra = fixture.root.join("tests/data/extra.txt");
    let show = || {
        let mut command = cargo_with(scratch, &workers, &fixture);
        command.args(["run", "--quiet", "--bin", "paths-tool", "--"]).arg(&file);
        text(&command.output().unwrap().stdout)
    };
    assert_eq!(show(), "hello from a data file\n");
    fs::write(&file, "changed\n").unwrap();
    assert_eq!(show(), "changed\n");

    let there = || {
        let mut command = cargo_with(scratch, &workers, &fixture);
        command.args(["run", "--quiet", "--bin", "paths-tool", "--"]).arg(&extra);
        let output = command.output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    fs::write(&extra, "new\n").unwrap();
    let (found, told) = there();
    assert!(found, "a new file is not there: {told}");
    fs::remove_file(&extra).unwrap();
    let (found, told) = there();
    assert!(!found, "a removed file is still there: {told}");
}

fn resting_files(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    scratch.write("project/Cargo.toml", "[package]\nname = \"project\"\nedition = \"2024\"\n");
    scratch.write("project/src/lib.rs", "");
    let (project, asked) = (scratch.join("project"), scratch.join("asked"));
    let git = scratch.join("bin/git");
    scratch.write("bin/git", &format!("#!/bin/sh\necho >> {}\nexit 128\n", asked.display()));
    fs::set_permissions(&git, Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", scratch.join("bin").display());
    // How often git was asked for files.
    let call = || {
        let mut command = shell(scratch, &workers, "true");
        command.current_dir(&project).env("PATH", &path).env(STAYS.0, STAYS.1);
        assert!(command.status().unwrap().success());
        fs::read_to_string(&asked).unwrap().lines().count()
    };
    let set = |time: SystemTime| {
        for folder in [&project, &project.join("src"), &project.join("target")] {
            File::open(folder).unwrap().set_modified(time).unwrap();
        }
    };
    let hour = Duration::from_secs(3600);
    let first = call();
    // It may have changed after it was looked at, so it must be looked at again.
    set(SystemTime::now() + hour);
    let second = call();
    assert!(second > first, "{second} {first}");
    set(SystemTime::now() - hour);
    let third = call();
    assert!(third > second, "{third} {second}");
    assert_eq!(call(), third, "a folder at rest was listed again");
    end_agent(scratch);
}

/// A package whose `*.out` come back, and a call in it.
fn call_for_out(scratch: &Scratch, workers: &[Worker], script: &str) -> (PathBuf, Command) {
    let folder = package(scratch, "");
    let collect = "[profile.default]\ncollect = [\"*.out\"]\n";
    scratch.write("subject/.config/distest.toml", collect);
    let mut command = shell(scratch, workers, script);
    command.current_dir(&folder);
    (folder, command)
}

fn brings_again(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    for content in ["1", "2", "2"] {
        let script = format!("echo {content} > x.out");
        let (folder, mut command) = call_for_out(scratch, &workers, &script);
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), ""));
        let path = folder.join("x.out");
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{content}\n"));
        fs::remove_file(path).unwrap();
    }
}

fn too_many_files(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let script = "i=0; while [ $i -lt 10001 ]; do : > $i.out; i=$((i + 1)); done";
    let (folder, mut command) = call_for_out(scratch, &workers, script);
    let output = command.output().unwrap();
    let told = "cargo distest runner: warning: more than 10000 files were created on workers: \
                the rest stays there\n";
    assert_eq!((output.status.code(), &*text(&output.stderr)), (Some(0), told));
    let files = fs::read_dir(folder).unwrap().flatten();
    assert_eq!(files.filter(|it| it.path().extension() == Some("out".as_ref())).count(), 10_000);
}

fn leaves_files(scratch: &Scratch, workers: &[Worker]) {
    let test = r#"
        use std::{env, fs, path::Path, process};
        #[test]
        fn leaves() {
            // As the runtime of instrumented programs does.
            let pattern = env::var("LLVM_PROFILE_FILE").unwrap();
            assert!(pattern.ends_with("%p-%m.profraw"), "{pattern}");
            let profile = pattern.replace("%p", &process::id().to_string()).replace("%m", "0");
            fs::create_dir_all(Path::new(&profile).parent().unwrap()).unwrap();
            fs::write(profile, env!("CARGO_CRATE_NAME")).unwrap();
            let snapshot = concat!("tests/", env!("CARGO_CRATE_NAME"), ".snap.new");
            fs::write(snapshot, format!("{:?}", fs::read_to_string(snapshot).is_ok())).unwrap();
        }
    "#;
    let folder = package(scratch, test);
    scratch.write("subject/tests/other.rs", test);
    let (root, target_dir) = (folder.clone(), folder.join("target"));
    let fixture = Fixture { root, target_dir: target_dir.clone(), ..Fixture::named("paths") };
    let profiles = || {
        let files = fs::read_dir(target_dir.join("cov")).into_iter().flatten().flatten();
        let mut files: Vec<_> = files.map(|file| file.path()).collect();
        files.sort();
        files
    };
    for expected in [2, 4] {
        let mut command = cargo_with(scratch, workers, &fixture);
        command.args(["test", "--offline"]);
        command.env("LLVM_PROFILE_FILE", target_dir.join("cov/subject-%p-%m.profraw"));
        let output = command.output().unwrap();
        let told = text(&output.stderr);
        assert!(output.status.success(), "{}\n{told}", text(&output.stdout));
        assert!(!told.contains("cargo distest runner:"), "{told}");
        // All is there when cargo has ended.
        let files = profiles();
        assert_eq!(files.len(), expected, "{files:?}");
        let of_it = files.iter().filter(|file| fs::read_to_string(file).unwrap() == "it");
        assert_eq!(of_it.count(), expected / 2);
        for name in ["it", "other"] {
            let snapshot = folder.join(format!("tests/{name}.snap.new"));
            let existed = fs::read_to_string(snapshot).unwrap();
            assert_eq!(existed, (expected == 4).to_string(), "what came back travels again");
        }
    }
}

fn leaves_processes(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let output = shell(scratch, &workers, "sleep 600 > /dev/null 2>&1 &").output().unwrap();
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    let what = "warning: /bin/sh left processes behind, which were ended: sleep (pid ";
    assert!(told.contains(what), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    let output = shell(scratch, &workers, "sleep 0.01").output().unwrap();
    assert_eq!(text(&output.stderr), "");
}

fn nextest_is_there() -> Result<(), String> {
    let mut command = Command::new(cargo());
    command.args(["nextest", "--version"]).stderr(Stdio::null()).stdout(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err("cargo-nextest is not installed".to_owned()),
    }
}

fn nextest(scratch: &Scratch) {
    let fixture = Fixture::named("workspace");
    let workers = hermetic::fleet(scratch, 2, 2);
    let run = |workers: &[Worker]| {
        let mut command = cargo_with(scratch, workers, &fixture);
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
        command.args(["--status-level", "all", "--final-status-level", "none"]);
        let output = command.output().unwrap();
        let told = text(&output.stderr);
        let mut lines: Vec<String> = told.lines().filter_map(verdict).collect();
        lines.sort();
        (lines, output.status.code(), told)
    };
    let (here, code, told) = run(&[]);
    assert!(here.len() > 5, "{told}");
    let (there, there_code, told) = run(&workers);
    assert_eq!((there, there_code), (here, code), "{told}");
}

/// `PASS binary name` out of nextest's `PASS [   0.005s] (1/9) binary name`.
fn verdict(line: &str) -> Option<String> {
    let line = line.trim();
    let word = line.split(' ').next().filter(|word| ["PASS", "FAIL", "SIGABRT"].contains(word))?;
    let rest = line.split_once(']')?.1.trim();
    let rest = if rest.starts_with('(') { rest.split_once(')')?.1 } else { rest };
    Some(format!("{word} {}", rest.trim()))
}
