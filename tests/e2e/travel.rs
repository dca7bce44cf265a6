//! What travels to a worker, what can't and is told, and what is told when it was needed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use distest_tests::client::Client;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::case;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("travel::odd_files_arrive_or_are_told", odd_files),
        case("travel::the_user_includes_and_excludes", include_and_exclude),
        case("travel::a_workspace_that_changes_is_told", changing_workspace),
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
            let mode = fs::metadata("odd/program").unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o751);
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
    let go = scratch.join("go");
    let folder = package(
        scratch,
        &format!(
            r#"
            #[test]
            fn first() {{}}
            #[test]
            fn second() {{
                while !std::path::Path::new({go:?}).exists() {{
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }}
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
    fs::write(&go, "").unwrap();
    let finished = running.finish();
    assert_eq!(finished.transcript(0).summary.passed, 2);
    finished.complains(0, &["data changed during the run; workers had what was there before"]);
}
