//! Networks of tests' own: what they keep apart, and where they can't be had.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{Denied, NOBODYS_ID, Plan, possible};
use distest_tests::scratch::Scratch;
use libtest_mimic::Trial;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::travel::package;
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("network::two_tests_hold_one_port_at_once", one_port),
        case("network::only_those_that_ask_for_it", overrides),
        case_if("network::an_ordinary_user_needs_no_sandbox", possible, |scratch| {
            unsandboxed(scratch, NOBODYS_ID);
        }),
        case_if("network::root_needs_no_sandbox", possible, |scratch| unsandboxed(scratch, 0)),
        case_if("network::a_worker_without_takes_no_such_test", possible, without),
    ]
}

fn configure(scratch: &Scratch, config: &str) {
    scratch.write("subject/.config/distest.toml", config);
}

/// Two tests that each bind a port and let go of it only when the other has it, too.
fn rivals(scratch: &Scratch, port: u16) -> PathBuf {
    let meeting = scratch.join("meeting");
    mkfifo(&meeting, Mode::S_IRWXU).expect("a folder of ours");
    package(
        scratch,
        &format!(
            r#"
            use std::{{fs::File, net::TcpListener}};
            const MEETING: &str = {meeting:?};

            #[test]
            fn one() {{
                let _held = TcpListener::bind(("127.0.0.1", {port})).expect("it is free");
                // Waits for the other.
                File::options().write(true).open(MEETING).unwrap();
            }}

            #[test]
            fn other() {{
                let _held = TcpListener::bind(("127.0.0.1", {port})).expect("it is free");
                File::open(MEETING).unwrap();
            }}
            "#
        ),
    )
}

fn one_port(scratch: &Scratch) {
    // Held here, too, for as long as the runs take.
    let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let folder = rivals(scratch, held.local_addr().expect("it is bound").port());
    let run = || {
        let client = Client::call(scratch, &folder, &["run", "--offline", "--no-fail-fast"]);
        client.json().args(["--local-slots", "2", "--isolation", "batch"]).finish()
    };
    let summary = run().transcript(100).summary;
    assert_eq!(summary.failed, 2, "in the machine's network");
    configure(scratch, "[profile.default]\nnetwork = \"private\"\n");
    let summary = run().transcript(0).summary;
    assert_eq!((summary.passed, summary.batched), (2, 0), "each in its own");
}

fn overrides(scratch: &Scratch) {
    let here = fs::read_link("/proc/self/ns/net").expect("it is there").display().to_string();
    let folder = package(
        scratch,
        &format!(
            r#"
            fn network() -> String {{
                std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string()
            }}
            #[test]
            fn private_one() {{
                assert_ne!(network(), {here:?});
            }}
            #[test]
            fn private_but_not_this() {{
                assert_eq!(network(), {here:?});
            }}
            #[test]
            fn private_other() {{
                assert_ne!(network(), {here:?});
            }}
            #[test]
            fn usual() {{
                assert_eq!(network(), {here:?});
            }}
            "#
        ),
    );
    configure(
        scratch,
        "[[profile.default.overrides]]\nfilter = 'test(not_this)'\nnetwork = 'host'\n\
         [[profile.default.overrides]]\nfilter = 'test(private)'\nnetwork = 'private'\n",
    );
    // One slot, so that they follow each other in it.
    let client = Client::call(scratch, &folder, &["run", "--offline", "--no-fail-fast"]);
    let finished = client.json().args(["--local-slots", "1"]).finish();
    assert_eq!(finished.transcript(0).summary.passed, 4);
}

/// As the embedded worker starts them.
fn unsandboxed(scratch: &Scratch, user: u32) {
    let fixture = Fixture::named("network");
    let plan = Plan::new(scratch).of(user).with(&["--sandbox", "variables"]);
    let worker = plan.start(scratch, "w1", 2);
    let client = Client::run(scratch, &fixture).only_on(std::slice::from_ref(&worker));
    let transcript = client.finish().transcript(fixture.model.exit_code);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
}

fn without(scratch: &Scratch) {
    let fixture = Fixture::named("network");
    let worker = Plan::new(scratch).denied(Denied::UserNamespaces).start(scratch, "w1", 2);
    let warning = "tests that are to have a network of their own are not taken";
    assert!(worker.log().contains(warning), "{}", worker.log());
    let select = ["-E", "binary(surroundings)"];
    let nowhere =
        Client::run(scratch, &fixture).only_on(std::slice::from_ref(&worker)).args(select).finish();
    nowhere.complains(
        97,
        &[
            "which needs network = \"private\"",
            "the nearest is w1: it can't give a test a network of its own: could not create a user \
             namespace",
        ],
    );
    // Where it can be had, they run.
    let here = Client::run(scratch, &fixture).worker(&worker.address).args(["--local-slots", "1"]);
    let transcript = here.args(select).finish().transcript(0);
    assert!(transcript.attempts.iter().all(|attempt| attempt.worker == "local"));
    assert_eq!(transcript.summary.passed, 4);
}
