//! The hermetic harness proves itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{Denied, Plan, possible};
use distest_tests::product::{product, repository};
use distest_tests::scratch::Scratch;
use distest_tests::transcript::{AttemptResult, Verdict};
use libtest_mimic::Trial;

use crate::case_if;
use crate::travel::{on_a_worker, package};

pub(crate) fn cases() -> Vec<Trial> {
    let mut trials = vec![
        case_if("hermetic::hides_what_is_the_clients", possible, hides),
        case_if("hermetic::without_the_tree_tests_fail", possible, without_the_tree),
    ];
    trials.extend(ROWS.iter().map(|row| {
        case_if(format!("sandbox::{}", row.label), possible, move |scratch| row.check(scratch))
    }));
    trials
}

/// A machine, and what a worker on it must come to.
struct Row {
    label: &'static str,
    machine: fn(Plan) -> Plan,
    /// What the worker says when it starts; nothing if nothing is wanting.
    told: &'static [&'static str],
    /// Why a binary with a path compiled in is not sent there. If none, its tests run there.
    refused: Option<&'static str>,
}

const ROWS: [Row; 6] = [
    Row { label: "namespaces_of_a_user", machine: |plan| plan, told: &[], refused: None },
    Row { label: "namespaces_of_root", machine: |plan| plan.of(0), told: &[], refused: None },
    Row {
        label: "root_without_user_namespaces",
        machine: |plan| plan.of(0).denied(Denied::UserNamespaces),
        told: &["by root's namespaces only", "could not create a user namespace", "seccomp"],
        refused: None,
    },
    Row {
        label: "masked_proc",
        machine: |plan| plan.denied(Denied::Proc),
        told: &["without pids and /proc only", "could not mount /proc", "systempaths=unconfined"],
        refused: None,
    },
    Row {
        label: "same_path",
        machine: |plan| plan.denied(Denied::UserNamespaces).owning_hidden(),
        told: &["in plain sight only", "could not create a user namespace", "seccomp"],
        refused: None,
    },
    Row {
        label: "variables_only",
        machine: |plan| plan.denied(Denied::UserNamespaces),
        told: &["could not create a user namespace", "seccomp"],
        refused: Some("is compiled into it, and that path can't be recreated there"),
    },
];

const SUBJECT: &str = r#"
    use std::process::{Command, Stdio};

    #[test]
    fn finds_what_is_compiled_in() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs");
        assert!(std::fs::exists(path).unwrap());
    }

    #[test]
    fn finds_no_file_that_is_not_there() {
        assert!(std::fs::exists(concat!(env!("CARGO_MANIFEST_DIR"), "/src/absent.rs")).unwrap());
    }

    #[test]
    fn leaves_a_process() {
        let mut sleep = Command::new("setsid");
        sleep.args(["sleep", "600"]).stdin(Stdio::null()).stdout(Stdio::null());
        sleep.stderr(Stdio::null()).spawn().unwrap();
    }
"#;

impl Row {
    fn check(&self, scratch: &Scratch) {
        let folder = package(scratch, SUBJECT);
        let worker = (self.machine)(Plan::new(scratch)).start(scratch, "w1", 2);
        for text in self.told {
            assert!(worker.log().contains(text), "nothing about {text}:\n{}", worker.log());
        }
        assert!(!self.told.is_empty() || worker.log().is_empty(), "{}", worker.log());
        let finished = on_a_worker(scratch, &folder, std::slice::from_ref(&worker))
            .args(["--no-fail-fast"])
            .finish();
        if let Some(refused) = self.refused {
            finished.complains(97, &[refused, self.told[0]]);
            // Where it can be had, it runs.
            let local =
                Client::call(scratch, &folder, &["run", "--offline", "--no-fail-fast"]).json();
            let finished = local.worker(&worker.address).args(["--local-slots", "1"]).finish();
            assert!(finished.stderr.contains(refused), "{}", finished.stderr);
            return Self::come_to(&finished, "local");
        }
        Self::come_to(&finished, "w1");
    }

    /// Each test's result and what is said of it, and where it ran.
    fn come_to(finished: &Finished, worker: &str) {
        let transcript = finished.transcript(100);
        let told: Vec<_> = transcript
            .attempts
            .iter()
            .map(|it| (it.name.as_str(), it.result, it.worker.as_str()))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let expected = [
            ("finds_no_file_that_is_not_there", AttemptResult::Fail, worker),
            ("finds_what_is_compiled_in", AttemptResult::Pass, worker),
            ("leaves_a_process", AttemptResult::Leak, worker),
        ];
        assert_eq!(told, expected);
        let leak = transcript.attempts.iter().find(|it| it.result == AttemptResult::Leak);
        let reason = leak.map(|it| it.reason.as_str()).unwrap_or_default();
        assert!(reason.contains("sleep"), "the leak is named: {reason}");
    }
}

/// A file that is removed when this is dropped.
struct Canary(PathBuf);

impl Canary {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).expect("a folder of this user's");
        let path = folder.join(format!(".distest-canary-{}", std::process::id()));
        fs::write(&path, "sings").expect("a folder of this user's can be written");
        Self(path)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn hides(scratch: &Scratch) {
    let home = std::env::home_dir().expect("root has a home");
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let folders = [
        Fixture::named("paths").root,
        repository(),
        product().target_dir.clone(),
        cargo.join("registry"),
        home,
        scratch.path().to_owned(),
    ];
    let canaries = folders.map(Canary::new);
    for user in [distest_tests::hermetic::NOBODYS_ID, 0] {
        let plan = Plan::new(scratch).of(user);
        for Canary(path) in &canaries {
            assert_eq!(fs::read_to_string(path).expect("it is there"), "sings");
            let script = format!("cat '{}' 2>/dev/null || echo silence", path.display());
            assert_eq!(plan.shell(scratch, &script), "silence", "{} for {user}", path.display());
        }
        assert_eq!(plan.shell(scratch, "id -u"), user.to_string());
    }
    // What is hidden is so by nothing else: without hiding, the same surroundings show it.
    assert!(Plan::new(scratch).shell(scratch, "ip -o link").contains(": lo:"));
}

/// A fixture whose files don't travel fails here, so those that pass elsewhere had them sent.
fn without_the_tree(scratch: &Scratch) {
    let fixture = Fixture::copied("paths", scratch);
    let config = fixture.root.join(".config");
    fs::create_dir_all(&config).expect("a folder of ours");
    let nothing = "[profile.default]\nexclude = [\"tests/data\", \"tests/data/**\"]\n";
    fs::write(config.join("distest.toml"), nothing).expect("a folder of ours");
    let workers = Plan::new(scratch).fleet(scratch, 1, 2);
    let client = Client::run(scratch, &fixture).args(["--no-fail-fast"]).only_on(&workers);
    let transcript = client.finish().transcript(100);
    let failed = |name: &str| {
        let mut found = transcript.verdicts.iter().filter(|(case, _)| case.name == name);
        found.next().map(|(_, verdict)| *verdict)
    };
    for name in ["by_manifest_dir_at_run_time", "by_working_directory", "hidden_file"] {
        assert_eq!(failed(name), Some(Verdict::Fail), "{name}");
    }
    assert_eq!(failed("out_dir_at_run_time"), Some(Verdict::Pass), "what was built did travel");
}
