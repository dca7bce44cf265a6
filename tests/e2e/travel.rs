//! What travels to a worker, what can't and is told, and what is told when it was needed.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use distest_tests::accept;
use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Verdict;
use distest_tests::worker::{Executable, Worker};
use libtest_mimic::Trial;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("travel::odd_files_arrive_or_are_told", odd_files),
        case("travel::a_package_outside_of_the_workspace_travels", outside_package),
        case("travel::who_sees_what_tests_write", writes),
        case("travel::tests_that_write_one_file_differently_are_told", disputes),
        case("travel::a_test_that_makes_too_many_files_fails_alone", too_many_files),
        case("travel::a_pattern_replaces_no_variable_of_the_workers", passed_patterns),
        case("travel::files_from_elsewhere_cannot_be_asked_for", collect_elsewhere),
        case("travel::from_a_relative_target_folder", relative_target_folder),
        case("travel::a_test_that_spoils_its_executable_spoils_its_own", own_executable),
        case("travel::the_user_includes_and_excludes", include_and_exclude),
        case("travel::a_workspace_that_changes_is_told", changing_workspace),
        case("travel::a_failure_names_what_did_not_travel", hints),
        case("travel::tests_that_call_cargo_run_where_it_is", needs_cargo),
        case("travel::files_of_tests_come_back", come_back),
        case("travel::passed_values_are_written_nowhere", passed_values),
    ]
}

/// A package in the scratch folder whose tests are `tests`, and its folder.
pub(crate) fn package(scratch: &Scratch, tests: &str) -> PathBuf {
    let manifest =
        "[workspace]\n[package]\nname = \"subject\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    scratch.write("subject/Cargo.toml", manifest);
    scratch.write("subject/src/lib.rs", "");
    scratch.write("subject/tests/it.rs", tests);
    scratch.join("subject")
}

/// A run of it on one worker alone.
pub(crate) fn on_a_worker(scratch: &Scratch, folder: &Path, worker: &[Worker]) -> Client {
    Client::call(scratch, folder, &["run", "--offline"]).json().only_on(worker)
}

fn odd_files(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, os::unix::fs::PermissionsExt, path::Path};

        #[test]
        fn everything_is_there() {
            assert_eq!(fs::read_to_string("odd/Name").unwrap(), "upper");
            assert_eq!(fs::read_to_string("odd/name").unwrap(), "lower");
            assert_eq!(fs::read_to_string("odd/two\nlines 'n \"quotes\"").unwrap(), "newline");
            let raw = Path::new("odd").join(OsStr::from_bytes(b"raw\xff\xfe"));
            assert_eq!(fs::read_to_string(raw).unwrap(), "raw");
            assert_eq!(fs::read_dir("odd/empty").unwrap().count(), 0);
            assert_eq!(fs::read_link("odd/dangling").unwrap(), Path::new("nowhere"));
            for (name, expected) in
                [("program", 0o751), ("closed", 0o555), ("closed/file", 0o444), ("shared", 0o1777)]
            {
                let mode = fs::metadata(format!("odd/{name}")).unwrap().permissions().mode();
                assert_eq!(mode & 0o7777, expected, "{name}");
            }
            for absent in ["odd/pipe", "odd/socket", "odd/huge"] {
                assert!(fs::symlink_metadata(absent).is_err(), "{absent}");
            }
        }
        "#,
    );
    let odd = folder.join("odd");
    let write = |name: &OsStr, content: &str| {
        fs::write(odd.join(name), content).unwrap();
    };
    fs::create_dir_all(odd.join("empty")).unwrap();
    write("Name".as_ref(), "upper");
    write("name".as_ref(), "lower");
    write("two\nlines 'n \"quotes\"".as_ref(), "newline");
    write(OsStr::from_bytes(b"raw\xff\xfe"), "raw");
    write("program".as_ref(), "#!/bin/sh\n");
    write("secret".as_ref(), "nobody may read this");
    let mode = |name: &str, mode| {
        fs::set_permissions(odd.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("program", 0o751);
    fs::create_dir(odd.join("closed")).unwrap();
    fs::create_dir(odd.join("shared")).unwrap();
    write("closed/file".as_ref(), "");
    mode("closed/file", 0o444);
    mode("closed", 0o555);
    mode("shared", 0o1777);
    mode("secret", 0o000);
    symlink("nowhere", odd.join("dangling")).unwrap();
    scratch.write("outside/file", "");
    symlink("../../outside", odd.join("out")).unwrap();
    mkfifo(&odd.join("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(odd.join("socket")).unwrap();
    fs::File::create(odd.join("huge")).unwrap().set_len(3 << 30).unwrap();

    let workers = Worker::fleet(scratch, 1, 1);
    let finished = on_a_worker(scratch, &folder, &workers).finish();
    assert_eq!(finished.transcript(0).summary.passed, 1);
    finished.complains(
        0,
        &[
            "odd/pipe does not travel: it is a named pipe",
            "odd/socket does not travel: it is a socket",
            "odd/huge does not travel: it has 3.0 GiB",
            "`tree-bytes-max`",
            "odd/out is a link to",
        ],
    );
}

fn relative_target_folder(scratch: &Scratch) {
    let fixture = Fixture::copied("paths", scratch);
    let workers = hermetic::fleet(scratch, 1, 2);
    let client = || Client::call(scratch, &fixture.root, &["run", "--no-fail-fast"]).json();
    // A test that compares the folder with its own path finds another spelling, with cargo, too.
    let verdicts = |client: Client| client.finish().transcript(100).verdicts;
    let here = verdicts(client().env("CARGO_TARGET_DIR", "../elsewhere"));
    let failed = here.iter().filter(|(_, verdict)| **verdict == Verdict::Fail);
    let failed: Vec<_> = failed.map(|(case, _)| &*case.name).collect();
    assert_eq!(failed, ["run_time_and_compile_time_agree"]);
    let there = client().only_on(&workers).env("CARGO_TARGET_DIR", "../elsewhere");
    assert_eq!(verdicts(there), here);
    let there = client().only_on(&workers).args(["--target-dir", "src/../../elsewhere"]);
    assert_eq!(verdicts(there), here);
}

fn own_executable(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        use std::{env, fs};
        #[test]
        fn a_deletes_it() {
            fs::remove_file(env::current_exe().unwrap()).unwrap();
        }
        #[test]
        fn b_passes() {}
        #[test]
        fn c_replaces_it() {
            let own = env::current_exe().unwrap();
            let other = own.with_extension("new");
            fs::write(&other, "nonsense").unwrap();
            fs::rename(other, own).unwrap();
        }
        #[test]
        fn d_passes() {}
        #[test]
        fn e_may_not_execute_it() {
            let own = env::current_exe().unwrap();
            fs::set_permissions(own, std::os::unix::fs::PermissionsExt::from_mode(0)).unwrap();
        }
        #[test]
        fn f_passes() {}
        "#,
    );
    let workers = Worker::fleet(scratch, 1, 1);
    let client = on_a_worker(scratch, &folder, &workers).args(["--isolation", "process"]);
    let transcript = client.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 6);
    assert!(transcript.attempts.iter().all(|attempt| attempt.attempt == 1));
}

fn outside_package(scratch: &Scratch) {
    let folder = package(
        scratch,
        "#[test]\nfn reads() {\n    assert_eq!(neighbour::data(), \"of the neighbour\");\n}\n",
    );
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let dependency = "[dependencies]\nneighbour = { path = \"../elsewhere/neighbour\" }\n";
    fs::write(folder.join("Cargo.toml"), manifest + dependency).unwrap();
    scratch.write(
        "elsewhere/neighbour/Cargo.toml",
        "[package]\nname = \"neighbour\"\nversion = \"1.0.0\"\nedition = \"2024\"\n",
    );
    scratch.write(
        "elsewhere/neighbour/src/lib.rs",
        "pub fn data() -> String {\n    \
         std::fs::read_to_string(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/data\")).unwrap()\n}\n",
    );
    scratch.write("elsewhere/neighbour/data", "of the neighbour");
    let workers = hermetic::fleet(scratch, 1, 1);
    let finished = on_a_worker(scratch, &folder, &workers).finish();
    assert_eq!(finished.transcript(0).summary.passed, 1);
}

fn writes(scratch: &Scratch) {
    let tests: String = (0..6)
        .map(|number| format!("#[test]\nfn t{number}() {{\n    write(\"{number}\");\n}}\n"))
        .collect();
    let folder = package(
        scratch,
        &format!(
            r#"
            use std::{{fs, io::Write}};
            /// Leaves word of how many have written here, this one included.
            fn write(own: &str) {{
                let mut file = fs::File::options().append(true).create(true).open("all").unwrap();
                writeln!(file, "line").unwrap();
                let seen = fs::read_to_string("all").unwrap().lines().count();
                fs::write(format!("seen-{{own}}"), seen.to_string()).unwrap();
            }}
            {tests}
            "#
        ),
    );
    let workers = Worker::fleet(scratch, 1, 1);
    let seen = |writes: &str| -> Vec<usize> {
        let profile = format!("[profile.default]\nisolation.writes = {writes:?}\n");
        scratch.write("subject/.config/distest.toml", &profile);
        let client = on_a_worker(scratch, &folder, &workers).args(["--isolation", "process"]);
        // However far away the worker seems, a lease takes no more than two.
        let finished = client.args(["-j", "2", "--collect", "seen-*"]).finish();
        assert_eq!(finished.transcript(0).summary.passed, 6);
        let files = (0..6).map(|number| folder.join(format!("seen-{number}")));
        let read = |file: PathBuf| {
            let seen = fs::read_to_string(&file).unwrap().parse().unwrap();
            fs::remove_file(file).unwrap();
            seen
        };
        let mut seen: Vec<usize> = files.map(read).collect();
        seen.sort_unstable();
        seen
    };
    assert_eq!(seen("binary"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(seen("test"), [1; 6]);
    // A lease takes as many as there are slots, and one ahead; the next one takes the next.
    let in_leases = seen("lease");
    assert_eq!(in_leases[..2], [1, 1], "several leases");
    assert!(in_leases[5] > 1, "of several tests");
}

fn disputes(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        use std::{fs, io::Write};
        fn write(name: &str, own: &str) {
            fs::write(name, own).unwrap();
            fs::write("same.out", "same").unwrap();
            let mut file = fs::File::options().append(true).create(true).open("log.out").unwrap();
            writeln!(file, "{own}").unwrap();
        }
        #[test]
        fn one() {
            write("differs.out", "one");
        }
        #[test]
        fn other() {
            write("differs.out", "other");
        }
        "#,
    );
    let workers = Worker::fleet(scratch, 1, 1);
    let client = on_a_worker(scratch, &folder, &workers).args(["--isolation", "process"]);
    let finished = client.args(["--collect", "*.out"]).finish();
    assert_eq!(finished.transcript(0).summary.passed, 2);
    let kept = fs::read_to_string(folder.join("differs.out")).unwrap();
    let told = format!(
        "differs.out was written by subject::it one and subject::it other, differently: what is \
         here is of subject::it {kept}"
    );
    finished.complains(0, &[&told]);
    assert_eq!(finished.stderr.matches("was written by").count(), 1, "{}", finished.stderr);
    assert_eq!(fs::read_to_string(folder.join("log.out")).unwrap().lines().count(), 2);
}

fn too_many_files(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        use std::fs;
        #[test]
        fn a_makes_too_many() {
            for number in 0..1_000_000 {
                fs::write(format!("file-{number}"), "").unwrap();
            }
        }
        #[test]
        fn b_makes_one() {
            assert!(!fs::exists("file-0").unwrap());
            fs::write("file-0", "").unwrap();
        }
        "#,
    );
    let store = scratch.join("store-small");
    let small =
        [Worker::start_changed(scratch, "small", 1, &store, Executable::Worker, |command| {
            command.args(["--writes-max", "8388608"]);
        })];
    let client = on_a_worker(scratch, &folder, &small);
    let finished = client.args(["--isolation", "process", "--no-fail-fast"]).finish();
    let summary = finished.transcript(100).summary;
    assert_eq!((summary.passed, summary.failed), (1, 1));
    let hint = "a bound on bytes and on files: `serve --writes-max` there raises both";
    assert!(finished.stdout.contains(hint), "{}", finished.stdout);
}

fn passed_patterns(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        use std::env;
        #[test]
        fn has_what_is_of_no_machine() {
            assert_eq!(env::var("MINE").unwrap(), "passed");
            assert_eq!(env::var("CARGO_PKG_NAME").unwrap(), "subject");
            for name in ["USER", "LOGNAME"] {
                assert_ne!(env::var(name).as_deref(), Ok("/of/the/client"), "{name}");
            }
        }
        "#,
    );
    scratch.write("subject/.config/distest.toml", "[profile.default]\nenv.pass = [\"*\"]\n");
    let workers = Worker::fleet(scratch, 1, 1);
    let client = on_a_worker(scratch, &folder, &workers)
        .env("MINE", "passed")
        .env("CARGO_PKG_NAME", "other")
        .env("USER", "/of/the/client")
        .env("LOGNAME", "/of/the/client");
    assert_eq!(client.finish().transcript(0).summary.passed, 1);
}

fn collect_elsewhere(scratch: &Scratch) {
    let folder = package(scratch, "#[test]\nfn passes() {}\n");
    for pattern in ["../x", "/tmp/*.log"] {
        let refused = Client::call(scratch, &folder, &["run", "--offline", "--collect", pattern]);
        let what = format!("could not use the pattern `{pattern}` of `collect`");
        refused.finish().complains(96, &[&what, "hint: "]);
    }
}

fn include_and_exclude(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        #[test]
        fn reads() {
            assert_eq!(std::fs::read_to_string("data/model.bin").unwrap(), "ignored by git");
            assert!(!std::path::Path::new("docs").exists());
        }
        "#,
    );
    scratch.write("subject/.gitignore", "/target\n/data\n");
    scratch.write("subject/data/model.bin", "ignored by git");
    scratch.write("subject/docs/book", "");
    let workers = Worker::fleet(scratch, 1, 1);
    let run = |exit_code| on_a_worker(scratch, &folder, &workers).finish().transcript(exit_code);
    assert_eq!(run(100).summary.failed, 1, "without configuration");
    scratch.write(
        "subject/.config/distest.toml",
        "[profile.default]\ninclude = [\"data/*.bin\"]\nexclude = [\"docs\"]\n",
    );
    assert_eq!(run(0).summary.passed, 1);
}

fn changing_workspace(scratch: &Scratch) {
    // The sandbox has a folder for temporary files of its own, but the network is the same.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let folder = package(
        scratch,
        &format!(
            r#"
            #[test]
            fn first() {{}}
            #[test]
            fn second() {{
                let mut stream = std::net::TcpStream::connect({address:?}).unwrap();
                let _ = std::io::Read::read(&mut stream, &mut [0]);
                assert_eq!(std::fs::read_to_string("data").unwrap(), "before");
            }}
            "#
        ),
    );
    scratch.write("subject/data", "before");
    let workers = Worker::fleet(scratch, 1, 2);
    let mut running = on_a_worker(scratch, &folder, &workers).start();
    running.until_attempts(1);
    scratch.write("subject/data", "after");
    // The test waits for the end of the connection.
    drop(accept(&listener));
    let finished = running.finish();
    assert_eq!(finished.transcript(0).summary.passed, 2);
    finished.complains(0, &["data changed during the run; workers had what was there before"]);
}

/// A value that would be found wherever it is written.
const SECRET: &str = "hunter2-must-stay-in-memory";

fn hints(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        #[test]
        fn reads() {
            let path = concat!("data/", "model.bin");
            std::fs::read(path).unwrap_or_else(|error| panic!("could not read {path}: {error}"));
        }
        #[test]
        fn asks() {
            std::env::var("SERVICE_URL").unwrap();
        }
        "#,
    );
    scratch.write("subject/.gitignore", "/target\n/data\n");
    scratch.write("subject/data/model.bin", "ignored by git");
    let workers = Worker::fleet(scratch, 1, 1);
    let junit = scratch.join("junit.xml");
    let finished = on_a_worker(scratch, &folder, &workers)
        .args(["--no-fail-fast".as_ref(), "--junit".as_ref(), junit.as_os_str()])
        .env("SERVICE_URL", SECRET)
        .finish();
    assert_eq!(finished.transcript(100).summary.failed, 2);
    let include = "data/model.bin exists here but did not travel: include = [\"data/model.bin\"]";
    let pass =
        "names SERVICE_URL, which is set here but was not passed: env.pass = [\"SERVICE_URL\"]";
    let junit = fs::read_to_string(junit).unwrap();
    for text in [include, pass] {
        assert!(finished.stdout.contains(&text.replace('"', "\\\"")), "{}", finished.stdout);
        assert!(junit.contains(text), "{junit}");
    }
    let human = Client::call(scratch, &folder, &["run", "--offline", "--no-fail-fast"])
        .only_on(&workers)
        .env("SERVICE_URL", SECRET);
    human.finish().complains(100, &[include, pass, "hint:"]);

    // Both hints help.
    scratch.write(
        "subject/.config/distest.toml",
        "[profile.default]\ninclude = [\"data/model.bin\"]\nenv.pass = [\"SERVICE_URL\"]\n",
    );
    let helped = on_a_worker(scratch, &folder, &workers).env("SERVICE_URL", SECRET).finish();
    assert_eq!(helped.transcript(0).summary.passed, 2);
}

fn passed_values(scratch: &Scratch) {
    let folder = package(
        scratch,
        &format!(
            r#"
            #[test]
            fn has_it() {{
                let value = std::env::var("APP_TOKEN").unwrap();
                // The value itself must not stand in the executable.
                let reversed: String = value.chars().rev().collect();
                assert!(reversed == {reversed:?} && std::env::var_os("OTHER").is_none());
            }}
            #[test]
            fn fails() {{
                panic!("for the report");
            }}
            "#,
            reversed = SECRET.chars().rev().collect::<String>()
        ),
    );
    let config = "[profile.default]\nenv = { pass = [\"APP_*\"] }\n";
    scratch.write("subject/.config/distest.toml", config);
    let workers = Worker::fleet(scratch, 1, 1);
    let (junit, history) = (scratch.join("junit.xml"), scratch.join("history.sqlite"));
    let finished = on_a_worker(scratch, &folder, &workers)
        .args(["--no-fail-fast".as_ref(), "--junit".as_ref(), junit.as_os_str()])
        .args(["--history".as_ref(), history.as_os_str()])
        .env("APP_TOKEN", SECRET)
        .env("OTHER", "stays here")
        .finish();
    let summary = finished.transcript(100).summary;
    assert_eq!((summary.passed, summary.failed), (1, 1));
    assert!(junit.exists() && history.exists());
    drop(workers);
    let found = files_with(scratch.path(), SECRET.as_bytes());
    assert!(found.is_empty(), "files with the value: {found:?}");
    assert!(!finished.stdout.contains(SECRET) && !finished.stderr.contains(SECRET));
}

/// Files below a folder that contain some bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(path);
            }
        }
    }
    found
}

fn needs_cargo(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        #[test]
        fn calls_cargo() {
            assert!(trybuild::cargo_is_there());
        }
        "#,
    );
    // Stands for the real one, which is known by its name.
    scratch.write(
        "subject/trybuild/Cargo.toml",
        "[package]\nname = \"trybuild\"\nversion = \"1.0.0\"\nedition = \"2024\"\n",
    );
    scratch.write(
        "subject/trybuild/src/lib.rs",
        "pub fn cargo_is_there() -> bool {\n\
         let cargo = std::env::var_os(\"CARGO\").expect(\"it is set\");\n\
         std::process::Command::new(cargo).arg(\"-V\").status().is_ok_and(|it| it.success())\n}\n",
    );
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let dependency = "[dev-dependencies]\ntrybuild = { path = \"trybuild\" }\n";
    fs::write(folder.join("Cargo.toml"), manifest + dependency).unwrap();

    let without = |scratch: &Scratch| {
        let store = scratch.join("store-bare");
        Worker::start_changed(scratch, "bare", 1, &store, Executable::Worker, |command| {
            command.env("PATH", "/no/cargo/here");
        })
    };
    let workers = [without(scratch), Worker::start(scratch, "w1", 1)];
    let finished = on_a_worker(scratch, &folder, &workers).finish();
    let transcript = finished.transcript(0);
    let ran: Vec<_> = transcript.summary.workers.iter().filter(|it| it.tests > 0).collect();
    assert_eq!(ran.iter().map(|worker| &*worker.name).collect::<Vec<_>>(), ["w1"]);
    let reason = "worker bare takes no tests of subject::it: its tests call cargo (trybuild does)";
    finished.complains(0, &[reason]);

    // Nowhere but here: it runs here.
    let client = Client::call(scratch, &folder, &["run", "--offline"]).json();
    let transcript = client.worker(&workers[0].address).finish().transcript(0);
    assert!(transcript.summary.workers.iter().any(|it| it.name == "local" && it.tests == 1));
}

fn come_back(scratch: &Scratch) {
    let folder = package(
        scratch,
        r#"
        use std::{fs, os::unix::fs::symlink};

        #[test]
        fn writes() {
            fs::create_dir_all("tests/snapshots").unwrap();
            fs::write("tests/snapshots/it__a.snap.new", "to review").unwrap();
            fs::create_dir("proptest-regressions").unwrap();
            fs::write("proptest-regressions/lib.txt", "cc 0123").unwrap();
            fs::write("large.profraw", vec![b'x'; 1_000_000]).unwrap();
            fs::File::create("huge.profraw").unwrap().set_len(300 << 20).unwrap();
            fs::write("state.txt", "after").unwrap();
            fs::write("unasked.txt", "stays there").unwrap();
            symlink("/etc/passwd", "link.snap.new").unwrap();
            assert_eq!(fs::read_to_string("same.snap").unwrap(), "same");
        }
        "#,
    );
    scratch.write("subject/state.txt", "before");
    scratch.write("subject/same.snap", "same");
    let workers = Worker::fleet(scratch, 1, 1);
    let run = || {
        let client = Client::call(scratch, &folder, &["run", "--offline"]).only_on(&workers);
        client.args(["--collect", "state.txt", "--collect", "*.snap"]).finish()
    };
    let too_large = "huge.profraw was not brought back from a worker: it has 300 MiB";
    run().complains(0, &["collected 4 files from workers: large.profraw", too_large]);
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    assert_eq!(read("tests/snapshots/it__a.snap.new").as_deref(), Some("to review"));
    assert_eq!(read("proptest-regressions/lib.txt").as_deref(), Some("cc 0123"));
    assert_eq!(read("large.profraw").map(|content| content.len()), Some(1_000_000));
    assert_eq!(read("state.txt").as_deref(), Some("after"));
    assert_eq!(read("same.snap").as_deref(), Some("same"));
    for absent in ["unasked.txt", "link.snap.new", "huge.profraw"] {
        assert!(folder.join(absent).symlink_metadata().is_err(), "{absent}");
    }
}
