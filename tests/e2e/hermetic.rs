//! The hermetic harness proves itself.

use std::fs;
use std::path::PathBuf;

use distest_tests::client::Client;
use distest_tests::fixture::Fixture;
use distest_tests::hermetic::{Plan, possible};
use distest_tests::product::{product, repository};
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Verdict;
use libtest_mimic::Trial;

use crate::case_if;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case_if("hermetic::hides_what_is_the_clients", possible, hides),
        case_if("hermetic::without_the_tree_tests_fail", possible, without_the_tree),
    ]
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
