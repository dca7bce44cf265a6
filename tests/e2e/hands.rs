//! Remote hands: commands on workers, outside of their sandboxes.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use distest_tests::client::{Client, Finished};
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::case;
use crate::drain::authorize;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("exec::on_all_with_names_before_lines", on_all),
        case("exec::on_one_in_no_sandbox", on_one),
        case("exec::tells_how_each_ended", ends),
        case("exec::needs_its_own_permission", permission),
        case("exec::a_killed_client_leaves_nothing", killed),
        case("exec::on_nobody", nobody),
        case("exec::copies_files_both_ways", copies),
        case("exec::copying_needs_its_own_permission", copies_by_permission),
    ]
}

fn exec(scratch: &Scratch, workers: &[Worker], args: &[&str]) -> Client {
    let addresses: Vec<&str> = workers.iter().map(|worker| worker.address.as_str()).collect();
    let client = Client::call(scratch, scratch.path(), &["exec"]);
    client.env("DISTEST_WORKERS", addresses.join(",")).args(args)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn on_all(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 2, 1);
    let script = "echo one; printf two; echo wrong >&2";
    let finished = exec(scratch, &workers, &["--all", "--", "sh", "-c", script]).finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(sorted(&finished.stdout), ["w1 | one", "w1 | two", "w2 | one", "w2 | two"]);
    assert_eq!(sorted(&finished.stderr), ["w1 | wrong", "w2 | wrong"]);
}

fn on_one(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 2, 1);
    let file = scratch.join("written here");
    let script = "echo \"$DISTEST_TEST_WORKER\" > \"$1\"; cat \"$1\"";
    let path = file.display().to_string();
    let args = ["--on", "w2", "--", "sh", "-c", script, "sh", &path];
    let finished = exec(scratch, &workers, &args).finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(finished.stdout, "w2\n", "as it is, from one");
    // What a test writes would be gone.
    assert_eq!(std::fs::read_to_string(file).expect("it is kept"), "w2\n");
}

fn ends(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 2, 1);
    let script = "test $DISTEST_TEST_WORKER = w1 && exit 3; kill -9 $$";
    let finished = exec(scratch, &workers, &["--all", "--", "sh", "-c", script]).finish();
    finished.complains(1, &["w1 exited with 3", "w2 was killed by signal 9"]);
    let finished = exec(scratch, &workers, &["--on", "w1", "--", "no-such-program"]).finish();
    finished.complains(1, &["w1 exited with 127", "no-such-program"]);
}

fn permission(scratch: &Scratch) {
    let other = Scratch::new();
    let workers = [Worker::start(&other, "w1", 1)];
    let run = || exec(scratch, &workers, &["--on", "w1", "--", "echo", "there"]).finish();
    authorize(&other, scratch, "run,view,copy");
    let refused = run();
    refused.complains(1, &["permission `exec`", "authorized_keys"]);
    assert_eq!(refused.stdout, "");
    authorize(&other, scratch, "exec");
    assert_eq!(run().stdout, "there\n");
    // Which is not the one to run tests.
    let address = workers[0].address.as_str();
    let tests = ["run", "--local-slots", "0", "--worker", address];
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let folder = crate::travel::package(scratch, "#[test] fn t() {}");
    let tests = Client::call(scratch, &folder, &tests).finish();
    tests.complains(97, &["permission `run`"]);
}

fn killed(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let running = exec(scratch, &workers, &["--on", "w1", "--", "sleep", "12345"]).start();
    let is_it = |line: &str| line.trim_end() == "sleep 12345";
    scratch.wait_for("the command", |stray| is_it(&stray.command_line));
    running.signal(Signal::SIGKILL);
    let left = scratch.left_after(crate::GONE_WITHIN, |stray| is_it(&stray.command_line));
    assert!(left.is_empty(), "{left:#?}");
}

fn cp(scratch: &Scratch, worker: &Worker, from: &str, to: &str) -> Finished {
    let args = ["cp", "--worker", &worker.address, from, to];
    Client::call(scratch, scratch.path(), &args).finish()
}

fn copies(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 1);
    // More than one piece, and a whole number of them.
    let sizes = [0, 7, 256 * 1024, 600_000];
    let there = scratch.join("there");
    std::fs::create_dir(&there).expect("a folder of ours");
    for size in sizes {
        let contents: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        let source = scratch.join("source");
        std::fs::write(&source, &contents).expect("a folder of ours");
        std::fs::set_permissions(&source, Permissions::from_mode(0o750)).expect("ours");
        let remote = format!("w1:{}/", there.display());
        let copied = cp(scratch, &worker, "source", &remote);
        assert_eq!(copied.code(), 0, "{}", copied.stderr);
        let copied = cp(scratch, &worker, &format!("{remote}source"), "back");
        assert_eq!(copied.code(), 0, "{}", copied.stderr);
        for path in [there.join("source"), scratch.join("back")] {
            assert!(std::fs::read(&path).expect("it is there") == contents, "{path:?}");
            let mode = path.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o750);
        }
    }
    assert_eq!(std::fs::read_dir(&there).expect("ours").count(), 1, "no other file");
    cp(scratch, &worker, "w1:/no/such", "x").complains(1, &["could not read /no/such there"]);
    cp(scratch, &worker, "source", "w1:/no/such").complains(1, &["could not write /no/such"]);
    cp(scratch, &worker, "source", "w2:/tmp/x").complains(1, &["no worker is called w2"]);
    cp(scratch, &worker, "source", "other").complains(2, &["NAME:/PATH"]);
    assert!(!scratch.join("x").exists());
}

fn copies_by_permission(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 1);
    let secret = other.write("secret", "a secret");
    let remote = format!("w1:{}", secret.display());
    authorize(&other, scratch, "run,exec,view,admin");
    let refused = || cp(scratch, &worker, &remote, "mine");
    refused().complains(1, &["permission `copy`", "authorized_keys"]);
    scratch.write("mine", "mine");
    cp(scratch, &worker, "mine", &remote).complains(1, &["permission `copy`"]);
    assert_eq!(std::fs::read_to_string(secret).expect("it is there"), "a secret");
}

fn nobody(scratch: &Scratch) {
    let told = |args: &[&str]| -> Finished { exec(scratch, &[], args).finish() };
    told(&["--all", "--", "true"]).complains(97, &["no worker is there"]);
    let workers = Worker::fleet(scratch, 1, 1);
    let finished = exec(scratch, &workers, &["--on", "w7", "--", "true"]).finish();
    finished.complains(97, &["no worker is called w7"]);
    told(&["--", "true"]).complains(2, &["--on"]);
}
