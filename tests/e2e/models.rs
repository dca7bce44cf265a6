//! Every fixture on every kind of fleet: verdicts as in its model, JUnit as in the verdicts.

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{self, NOBODYS_ID, Plan};
use distest_tests::junit::Report;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case_if;

const FIXTURES: [&str; 18] = [
    "basic",
    "build-script",
    "crash",
    "doctests",
    "dynamic",
    "environment",
    "flaky",
    "git-tool",
    "many",
    "mimic",
    "naps",
    "network",
    "output",
    "paths",
    "slow",
    "snapshots",
    "weird-names",
    "workspace",
];

#[derive(Clone, Copy)]
enum Fleet {
    Embedded,
    Workers(u32),
    /// One worker that has never seen the client's files, of an ordinary user or of root.
    Hermetic {
        user: u32,
    },
}

pub(crate) fn cases() -> Vec<Trial> {
    let fleets = [
        ("embedded", Fleet::Embedded),
        ("one_worker", Fleet::Workers(1)),
        ("three_workers", Fleet::Workers(3)),
        ("hermetic", Fleet::Hermetic { user: NOBODYS_ID }),
        ("hermetic_root", Fleet::Hermetic { user: 0 }),
    ];
    let mut trials = Vec::new();
    for fixture in FIXTURES {
        for (label, fleet) in fleets {
            let name = format!("model::{fixture}::{label}");
            let possible = match fleet {
                Fleet::Embedded | Fleet::Workers(_) => || Ok(()),
                Fleet::Hermetic { .. } => hermetic::possible,
            };
            trials.push(case_if(name, possible, move |scratch| check(scratch, fixture, fleet)));
        }
    }
    trials
}

fn check(scratch: &Scratch, fixture: &str, fleet: Fleet) {
    let fixture = Fixture::named(fixture);
    let workers = match fleet {
        Fleet::Embedded => Vec::new(),
        Fleet::Workers(count) => Worker::fleet(scratch, count, 2),
        Fleet::Hermetic { user } => {
            vec![Plan::new(scratch).of(user).start(scratch, "w1", 2)]
        }
    };
    let junit = scratch.join("reports/junit.xml");
    let mut client = Client::run(scratch, &fixture).args(&fixture.model.args);
    client = client.args(["--junit".as_ref(), junit.as_os_str()]);
    if !workers.is_empty() {
        client = client.only_on(&workers);
    }
    let transcript = client.finish().transcript(fixture.model.exit_code);

    assert_eq!(transcript.verdicts, fixture.model.verdicts, "verdicts and the model");
    for (case, results) in &fixture.model.attempts {
        assert_eq!(&transcript.results(case), results, "attempts of {case}");
    }
    let report = Report::read(&junit).expect("the JUnit file can be read");
    report.check(&transcript.verdicts).expect("JUnit says what the run said");

    // Who ran something is who was asked, and everyone was if there was enough to do.
    let mut told: Vec<_> = transcript.summary.workers.iter().map(|worker| &*worker.name).collect();
    // Whose tests ran there rustdoc doesn't say.
    told.retain(|name| *name != "rustdoc");
    told.sort_unstable();
    let given: Vec<_> = workers.iter().map(|worker| &*worker.name).collect();
    assert_eq!(told, if given.is_empty() { vec!["local"] } else { given }, "workers of the run");
    if transcript.verdicts.len() > 500 {
        let idle = transcript.summary.workers.iter().find(|worker| worker.tests == 0);
        assert!(idle.is_none(), "a worker had nothing to do: {idle:?}");
    }
}
