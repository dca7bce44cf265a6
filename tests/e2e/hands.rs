//! Remote hands: commands on workers, outside of their sandboxes.

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

fn nobody(scratch: &Scratch) {
    let told = |args: &[&str]| -> Finished { exec(scratch, &[], args).finish() };
    told(&["--all", "--", "true"]).complains(97, &["no worker is there"]);
    let workers = Worker::fleet(scratch, 1, 1);
    let finished = exec(scratch, &workers, &["--on", "w7", "--", "true"]).finish();
    finished.complains(97, &["no worker is called w7"]);
    told(&["--", "true"]).complains(2, &["--on"]);
}
