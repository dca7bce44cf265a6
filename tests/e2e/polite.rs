//! Workers on machines that others use.

use std::fs::{File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use distest_tests::client::{Client, Finished};
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::worker::{Executable, Worker};
use distest_tests::{DEADLINE, fixture::Fixture};
use libtest_mimic::Trial;

use crate::case;
use crate::drain::{Subject, look, of};
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("polite::tests_have_the_niceness", nice),
        case("polite::nothing_starts_while_the_load_is_high", max_load),
        case("polite::nothing_starts_while_somebody_is_there", idle_only),
        case("polite::what_runs_ends_when_somebody_comes", somebody_comes),
    ]
}

fn polite(scratch: &Scratch, name: &str, slots: u32, args: &[&str]) -> Worker {
    let store = scratch.join(format!("store-{name}"));
    Worker::start_changed(scratch, name, slots, &store, Executable::Worker, |command| {
        command.args(args);
    })
}

fn run_on(scratch: &Scratch, worker: &Worker) -> Finished {
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let client = Client::run(scratch, &Fixture::named("paths"));
    client.args(["--local-slots", "0"]).worker(&worker.address).finish()
}

fn nice(scratch: &Scratch) {
    let own = std::fs::read_to_string("/proc/self/stat").expect("it is there");
    let nice = |stat: &str| -> i32 {
        let fields = stat.rsplit(')').next().expect("a name in parentheses");
        fields.split_whitespace().nth(16).expect("many fields").parse().expect("a number")
    };
    let wanted = (nice(&own) + 3).min(19);
    let folder = package(
        scratch,
        &format!(
            r#"
            #[test]
            fn niceness() {{
                let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
                let fields = stat.rsplit(')').next().unwrap();
                assert_eq!(fields.split_whitespace().nth(16), Some("{wanted}"));
            }}
            "#
        ),
    );
    let worker = polite(scratch, "w1", 1, &["--nice", &wanted.to_string()]);
    let client = Client::call(scratch, &folder, &["run", "--offline"]).json();
    let transcript = client.only_on(std::slice::from_ref(&worker)).finish().transcript(0);
    assert_eq!(transcript.summary.passed, 1);
}

fn max_load(scratch: &Scratch) {
    // A machine that runs this has had more to do in the last minute, and less.
    let busy = polite(scratch, "w1", 1, &["--max-load", "0"]);
    run_on(scratch, &busy).complains(97, &["takes no tests for now", "more than 0"]);
    let shown = &look(scratch, &["--worker", &busy.address])[0];
    assert_eq!(shown["usable"], serde_json::Value::from(false), "{shown:#}");
    assert!(shown["reason"].as_str().expect("a text").contains("load is"), "{shown:#}");
    let free = polite(scratch, "w2", 1, &["--max-load", "1e9"]);
    run_on(scratch, &free).transcript(0);
}

/// Somebody used it so long ago.
fn used(path: &Path, ago: Duration) {
    let then = SystemTime::now() - ago;
    let file = File::options().write(true).create(true).truncate(false).open(path);
    let times = FileTimes::new().set_accessed(then).set_modified(then);
    file.and_then(|file| file.set_times(times)).expect("a file of ours");
}

const LONG_AGO: Duration = Duration::from_secs(3600);

fn idle_only(scratch: &Scratch) {
    let presence = scratch.join("terminal");
    used(&presence, Duration::ZERO);
    let path = presence.display().to_string();
    // Where nobody could ever be seen politeness would be off.
    let args = ["worker", "serve", "--listen", "127.0.0.1:0", "--idle-only", "--presence"];
    let nowhere = Client::call(scratch, scratch.path(), &args).args(["/no/such/terminal"]).finish();
    nowhere.complains(96, &["--presence /no/such/terminal", "hint: name a file or folder"]);
    let worker = polite(scratch, "w1", 1, &["--idle-only", "--presence", &path]);
    run_on(scratch, &worker).complains(97, &["somebody is there", &path]);
    used(&presence, LONG_AGO);
    let unusable = what_stays(DEADLINE, || {
        let mut shown = look(scratch, &["--worker", &worker.address]);
        shown.retain(|worker| worker["usable"].as_bool() != Some(true));
        shown
    });
    assert!(unusable.is_empty(), "{unusable:#?}");
    run_on(scratch, &worker).transcript(0);
}

fn somebody_comes(scratch: &Scratch) {
    let presence = scratch.join("terminal");
    used(&presence, LONG_AGO);
    let path = presence.display().to_string();
    let args = ["--idle-only", "--presence", &path];
    let workers = [polite(scratch, "w1", 1, &args)];
    let subject = Subject::new(scratch);
    let running = subject.run(scratch, &workers);
    let (gate, _) = subject.holds(&workers);
    used(&presence, Duration::ZERO);
    let shown = || look(scratch, &["--worker", &workers[0].address]);
    let there = what_stays(DEADLINE, || {
        let mut shown = shown();
        shown.retain(|worker| worker["usable"].as_bool() == Some(true));
        shown
    });
    assert!(there.is_empty(), "{there:#?}");
    drop(gate);
    let transcript = running.finish().transcript(98);
    let theirs = of(&transcript, "w1");
    assert!(theirs.iter().all(|attempt| attempt.result.passed()), "{theirs:#?}");
    assert_eq!(theirs.last().expect("it held").name, "a_holds", "nothing after it: {theirs:#?}");
}
