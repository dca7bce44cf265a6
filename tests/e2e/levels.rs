//! The matrix: every fixture on every kind of machine that a worker may find itself on. Whatever
//! the machine denies, verdicts are the model's, which the embedded worker keeps, too; or else it
//! is said which binaries are not taken, and why.

use std::collections::BTreeSet;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{Denied, NOBODYS_ID, Plan, possible, possible_with_bubblewrap};
use distest_tests::postgres;
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case_if;
use crate::forward;
use crate::models::{self, FIXTURES};

/// A machine, and what a worker on it comes to.
struct Machine {
    label: &'static str,
    user: u32,
    plan: fn(Plan) -> Plan,
    /// What the worker says when it starts; nothing if nothing is wanting.
    told: &'static [&'static str],
    /// The client's paths are there, so that whatever is compiled in is found.
    paths: bool,
    /// Why a test can't have a network of its own there; nothing if it can.
    no_network: &'static str,
}

const ROOT: u32 = 0;
const NO_USER_NAMESPACE: &str = "could not create a user namespace";
const PARTIAL: &str = "leak detection: partial";

const MACHINES: [Machine; 11] = [
    Machine {
        label: "namespaces",
        user: NOBODYS_ID,
        plan: |plan| plan,
        told: &[],
        paths: true,
        no_network: "",
    },
    Machine {
        label: "namespaces_as_root",
        user: ROOT,
        plan: |plan| plan,
        told: &[],
        paths: true,
        no_network: "",
    },
    Machine {
        label: "root_without_user_namespaces",
        user: ROOT,
        plan: |plan| plan.denied(Denied::UserNamespaces),
        told: &["by root's namespaces only", NO_USER_NAMESPACE, "seccomp"],
        paths: true,
        no_network: "",
    },
    Machine {
        label: "bubblewrap",
        user: NOBODYS_ID,
        plan: |plan| plan.denied(Denied::UserNamespaces).with_bubblewrap(),
        told: &["by bubblewrap only", NO_USER_NAMESPACE, "seccomp"],
        paths: true,
        no_network: NO_USER_NAMESPACE,
    },
    Machine {
        label: "masked_proc",
        user: NOBODYS_ID,
        plan: |plan| plan.denied(Denied::Proc),
        told: &[
            "without pids and /proc only",
            "could not mount /proc",
            "systempaths=unconfined",
            PARTIAL,
        ],
        paths: true,
        no_network: "",
    },
    Machine {
        label: "masked_proc_as_root",
        user: ROOT,
        plan: |plan| plan.contained().denied(Denied::Proc),
        told: &[
            "without pids and /proc only",
            "could not mount /proc",
            "systempaths=unconfined",
            PARTIAL,
        ],
        paths: true,
        no_network: "",
    },
    Machine {
        label: "same_path",
        user: NOBODYS_ID,
        plan: |plan| plan.denied(Denied::UserNamespaces).owning_hidden(),
        told: &["in plain sight only", NO_USER_NAMESPACE, "seccomp", PARTIAL],
        paths: true,
        no_network: NO_USER_NAMESPACE,
    },
    Machine {
        label: "same_path_as_root",
        user: ROOT,
        plan: |plan| plan.contained().denied(Denied::UserNamespaces).owning_hidden(),
        told: &["in plain sight only", NO_USER_NAMESPACE, "seccomp", PARTIAL],
        paths: true,
        no_network: NO_USER_NAMESPACE,
    },
    Machine {
        label: "variables",
        user: NOBODYS_ID,
        plan: |plan| plan.denied(Denied::UserNamespaces),
        told: &[NO_USER_NAMESPACE, "seccomp", PARTIAL],
        paths: false,
        no_network: NO_USER_NAMESPACE,
    },
    Machine {
        label: "variables_as_root",
        user: ROOT,
        plan: |plan| plan.contained().denied(Denied::UserNamespaces),
        told: &[NO_USER_NAMESPACE, "seccomp", PARTIAL],
        paths: false,
        no_network: NO_USER_NAMESPACE,
    },
    Machine {
        label: "variables_by_a_limit",
        user: NOBODYS_ID,
        plan: |plan| plan.denied(Denied::UserNamespacesByLimit),
        told: &[NO_USER_NAMESPACE, "No space left", "sysctl -w user.max_user_namespaces=15000"],
        paths: false,
        no_network: NO_USER_NAMESPACE,
    },
];

/// Of fixtures with more tests than this, which are about numbers, every machine runs one in
/// [`SHARE`].
const LARGE: usize = 500;
const SHARE: usize = 20;

/// Why a binary is not taken where the client's paths are not.
const COMPILED_IN: &str = "is compiled into it, and that path can't be recreated there";

pub(crate) fn cases() -> Vec<Trial> {
    let mut trials = Vec::new();
    for fixture in FIXTURES {
        for machine in &MACHINES {
            let name = format!("level::{fixture}::{}", machine.label);
            let possible = match machine.label {
                "bubblewrap" => possible_with_bubblewrap,
                _ => possible,
            };
            trials.push(case_if(name, possible, move |scratch| {
                machine.check(scratch, &Fixture::named(fixture));
            }));
        }
    }
    for machine in &MACHINES {
        let with_database = match machine.label {
            "bubblewrap" => || possible_with_bubblewrap().and_then(|()| postgres::possible()),
            _ => || possible().and_then(|()| postgres::possible()),
        };
        let name = format!("level::database::{}", machine.label);
        trials.push(case_if(name, with_database, move |scratch| machine.database(scratch)));
    }
    trials.push(case_if("level::what_is_refused_runs_here", possible, refused_runs_here));
    trials.push(case_if("level::all_that_is_refused_is_told", possible, all_refusals));
    trials
}

impl Machine {
    fn check(&self, scratch: &Scratch, fixture: &Fixture) {
        let plan = (self.plan)(Plan::new(scratch).of(self.user));
        let worker = plan.start(scratch, "w1", 2);
        for text in self.told {
            assert!(worker.log().contains(text), "nothing about {text}:\n{}", worker.log());
        }
        let log = worker.log();
        // Root's says what that means, and else nothing where nothing is wanting.
        assert_eq!(log.contains("this worker is root's"), self.user == ROOT, "{log}");
        let lines = if self.user == ROOT { 2 } else { 0 };
        assert!(!self.told.is_empty() || log.lines().count() == lines, "{log}");
        if fixture.model.private_network && !self.no_network.is_empty() {
            let refused = Self::run(scratch, fixture, &worker).finish();
            let lack = format!("it can't give a test a network of its own: {}", self.no_network);
            return refused.complains(97, &["which needs network = \"private\"", &lack]);
        }
        let nothing = BTreeSet::new();
        let left_out = if self.paths { &nothing } else { &fixture.model.baked };
        // One by one: a run ends when a binary has no place, whatever the others would have.
        for binary in left_out {
            let select = models::tests_of([binary]);
            let refused = Self::run(scratch, fixture, &worker).args(["-E", &select]).finish();
            let not_taken = format!("worker w1 takes no tests of {binary}: ");
            refused.complains(97, &[&not_taken, COMPILED_IN, self.told[0]]);
        }
        if fixture.model.verdicts.keys().any(|case| !left_out.contains(&case.binary)) {
            let one_in = if fixture.model.verdicts.len() > LARGE { SHARE } else { 1 };
            models::check(scratch, fixture, std::slice::from_ref(&worker), left_out, one_in);
        }
    }

    /// The fixture that needs a service of the client's.
    fn database(&self, scratch: &Scratch) {
        let worker = (self.plan)(Plan::new(scratch).of(self.user)).start(scratch, "w1", 2);
        let (_server, client) = forward::with_database(scratch, Some(&worker));
        let fixture = Fixture::named("database");
        let finished = client.finish();
        if self.no_network.is_empty() {
            let transcript = finished.transcript(fixture.model.exit_code);
            assert_eq!(transcript.verdicts, fixture.model.verdicts);
        } else {
            let lack = format!("it can't give a test a network of its own: {}", self.no_network);
            finished.complains(97, &["which needs network = \"private\"", &lack]);
        }
    }

    fn run(scratch: &Scratch, fixture: &Fixture, worker: &Worker) -> Client {
        let client = Client::run(scratch, fixture).args(&fixture.model.args);
        client.only_on(std::slice::from_ref(worker))
    }
}

/// A run that ends at the first binary without a place tells of the others, too.
fn all_refusals(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    let worker = Plan::new(scratch).denied(Denied::UserNamespaces).start(scratch, "w1", 2);
    let finished = Machine::run(scratch, &fixture, &worker).finish();
    finished.complains(97, &[COMPILED_IN]);
    assert!(fixture.model.baked.len() > 1, "of one alone there is nothing to show");
    for binary in &fixture.model.baked {
        assert!(finished.stderr.contains(binary), "{binary}: {}", finished.stderr);
    }
}

fn refused_runs_here(scratch: &Scratch) {
    let fixture = Fixture::named("paths");
    let worker = Plan::new(scratch).denied(Denied::UserNamespaces).start(scratch, "w1", 2);
    let client = Client::run(scratch, &fixture).args(["--local-slots", "1"]);
    let finished = client.worker(&worker.address).finish();
    finished.complains(0, &[COMPILED_IN]);
    let transcript = finished.transcript(0);
    assert_eq!(transcript.verdicts, fixture.model.verdicts);
    let theirs =
        transcript.attempts.iter().filter(|it| fixture.model.baked.contains(&it.binary_id));
    assert!(theirs.clone().count() > 0 && theirs.into_iter().all(|it| it.worker == "local"));
}
