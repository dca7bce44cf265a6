//! A test that attacks the worker that runs it gets nothing: no key, no stored blob, no other
//! client's file, no process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use distest_tests::client::Client;
use distest_tests::hermetic::{Denied, Plan, possible, possible_with_bubblewrap};
use distest_tests::scratch::Scratch;
use distest_tests::worker::Worker;
use libtest_mimic::Trial;

use crate::case_if;
use crate::travel::package;

/// A label, what is done to the plan, and which attacks are left out.
type Machine = (&'static str, fn(Plan) -> Plan, &'static [&'static str]);

pub(crate) fn cases() -> Vec<Trial> {
    let machines: [Machine; 6] = [
        ("namespaces_of_a_user", |plan| plan, &[]),
        ("namespaces_of_root", |plan| plan.of(0), &[]),
        ("root_without_user_namespaces", |plan| plan.of(0).denied(Denied::UserNamespaces), &[]),
        ("bubblewrap", |plan| plan.denied(Denied::UserNamespaces).with_bubblewrap(), &[]),
        ("masked_proc", |plan| plan.denied(Denied::Proc), &[]),
        // Root could reach whoever else uses this machine, if it went wrong.
        (
            "masked_proc_as_root",
            |plan| plan.of(0).contained().denied(Denied::Proc),
            &["--skip", "signals"],
        ),
    ];
    let case = |(label, machine, left_out): Machine| {
        let body =
            move |scratch: &Scratch| gets_nothing(scratch, &machine(Plan::new(scratch)), left_out);
        let possible = if label == "bubblewrap" { possible_with_bubblewrap } else { possible };
        case_if(format!("hostile::gets_nothing_with_{label}"), possible, body)
    };
    machines.into_iter().map(case).collect()
}

/// What the attacker knows: everything about where a hermetic worker keeps what.
const ATTACKS: &str = r#"
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    const SECRETS: [&str; 4] = ["worker-key", "authorized_keys", "blobs", "others-secret.txt"];
    const ENTRIES_MAX: usize = 500_000;

    /// Everything with a secret's name that is in sight below a folder.
    fn in_sight(folder: &Path) -> Vec<PathBuf> {
        let (mut found, mut folders, mut seen) = (Vec::new(), vec![folder.to_owned()], 0);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                seen += 1;
                let (path, name) = (entry.path(), entry.file_name());
                if SECRETS.iter().any(|secret| name == *secret) {
                    found.push(path.clone());
                }
                let skipped = ["/proc", "/sys", "/usr"].iter().any(|it| path == Path::new(it));
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !skipped && seen < ENTRIES_MAX {
                    folders.push(path);
                }
            }
        }
        found
    }

    fn others() -> BTreeSet<u32> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut pids: BTreeSet<u32> =
            all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        pids.remove(&std::process::id());
        assert!(!pids.is_empty(), "the helper process at least");
        pids
    }

    #[test]
    fn files_in_sight() {
        assert_eq!(in_sight(Path::new("/")), [PathBuf::new(); 0]);
    }

    #[test]
    fn files_through_processes() {
        for pid in others() {
            for way in ["root", "cwd"] {
                for place in ["mnt/store/v1", "mnt/home/.config/distest/worker-key"] {
                    let path = PathBuf::from(format!("/proc/{pid}/{way}/{place}"));
                    assert!(fs::symlink_metadata(&path).is_err(), "{path:?}");
                }
            }
            for name in ["environ", "mem"] {
                let path = format!("/proc/{pid}/{name}");
                assert!(!fs::read(&path).is_ok_and(|bytes| !bytes.is_empty()), "{path}");
            }
            // That there are open files may be seen, not which.
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                assert!(fs::read_link(entry.path()).is_err(), "{entry:?}");
                assert!(File::open(entry.path()).is_err(), "{entry:?}");
            }
        }
    }

    #[test]
    fn writes() {
        for path in ["/mnt/home/.config/distest/authorized_keys", "/mnt/store/v1/blobs/00/0000"] {
            // It may think that it succeeds.
            let _ = fs::create_dir_all(Path::new(path).parent().unwrap());
            if let Ok(mut file) = File::options().append(true).create(true).open(path) {
                let _ = writeln!(file, "ed25519:evil admin evil");
            }
        }
        assert!(File::options().write(true).open("/mnt/bin/worker").is_err());
        assert!(fs::remove_file("/mnt/bin/worker").is_err());
        let way_out = "umount /mnt/store; umount -l /mnt/home; mount -t proc proc /proc; \
                       mount -o remount,rw,bind /mnt; mknod /tmp/disk b 254 0; cat /tmp/disk | head -c 1 | wc -c";
        let output = Command::new("sh").args(["-c", way_out]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
        fs::remove_dir_all("/mnt/store/v1").ok();
        fs::remove_dir_all("/mnt/home/.config").ok();
        assert_eq!(in_sight(Path::new("/mnt")), [PathBuf::new(); 0]);
    }

    #[test]
    fn signals() {
        for pid in others() {
            for signal in ["KILL", "TERM", "STOP"] {
                let _ = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).output();
            }
        }
    }
"#;

fn gets_nothing(scratch: &Scratch, plan: &Plan, left_out: &[&str]) {
    let worker = plan.start(scratch, "w1", 2);
    // An older kernel has nothing to prevent it where there is no pid namespace, and that is told.
    let left_out = match worker.log().contains("tests can signal this user's processes") {
        true => &["--skip", "signals"],
        false => left_out,
    };
    let another = another_client(scratch);
    let mut others = Client::call(scratch, &another, &["run", "--offline", "--no-capture"])
        .json()
        .only_on(std::slice::from_ref(&worker))
        .start();
    others.until_attempts(1);

    let folder = package(scratch, ATTACKS);
    // Its words are for people, because they say what an attack got.
    let run = || {
        let client = Client::call(scratch, &folder, &["run", "--offline", "--no-fail-fast"]);
        let client = client.only_on(std::slice::from_ref(&worker));
        let client = client.args(["--isolation", "process", "--failure-output", "immediate"]);
        client.args(["--"]).args(left_out).finish()
    };
    let secrets = |worker: &Worker| {
        let own = PathBuf::from(format!("/proc/{}/root/mnt", worker.process.pid()));
        [contents(&own.join("home/.config/distest")), contents(&own.join("store/v1/blobs"))]
    };
    let kept = secrets(&worker)[0].clone();
    for _ in 0..2 {
        let before = secrets(&worker);
        let finished = run();
        assert_eq!(finished.code(), 0, "{}\n{}", finished.stdout, finished.stderr);
        let after = secrets(&worker);
        assert_eq!(after[0], kept, "keys and whom the worker lets in");
        for (path, content) in &before[1] {
            assert!(after[1].get(path) == Some(content), "a blob was changed: {}", path.display());
        }
    }
    drop(others);
}

/// A workspace of somebody else, whose second test runs on.
fn another_client(scratch: &Scratch) -> PathBuf {
    let manifest =
        "[workspace]\n[package]\nname = \"other\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    scratch.write("other/Cargo.toml", manifest);
    scratch.write("other/others-secret.txt", "secret");
    let tests = "#[test] fn a_reads() { assert!(std::fs::exists(\"others-secret.txt\").unwrap()); }\n\
                 #[test] fn b_stays() { std::thread::sleep(std::time::Duration::from_secs(600)); }\n";
    scratch.write("other/src/lib.rs", tests);
    scratch.join("other")
}

/// All files below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("root may look everywhere").flatten() {
            match entry.file_type().expect("it has a type").is_dir() {
                true => folders.push(entry.path()),
                false => _ = found.insert(entry.path(), fs::read(entry.path()).unwrap_or_default()),
            }
        }
    }
    assert!(!found.is_empty(), "{} holds something", folder.display());
    found
}
