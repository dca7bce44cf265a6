use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::model::BinaryKind;
use crate::stamp::date;

fn binary(id: &str, harness: Harness, executable: &Path) -> Arc<TestBinary> {
    Arc::new(TestBinary {
        id: BinaryId::new(id),
        package: "pkg".to_owned(),
        package_id: "pkg".to_owned(),
        target_name: "target".to_owned(),
        kind: BinaryKind::Test,
        harness,
        triple: Triple::new("here"),
        for_host: false,
        executable: executable.to_path_buf(),
        cwd: "/".into(),
        env: BTreeMap::from([("GIVEN".into(), "given".into())]),
        companions: Vec::new(),
        companion_dirs: Vec::new(),
        writable_dirs: Vec::new(),
        needs: Default::default(),
    })
}

/// Answers from memory and counts.
#[derive(Default)]
struct Fake {
    runs: RefCell<Vec<String>>,
    parallel: Cell<u32>,
    most_parallel: Cell<u32>,
}

impl Lister for &Fake {
    async fn run(&self, binary: &TestBinary, args: &[&str]) -> Result<RawListing, Failure> {
        self.runs.borrow_mut().push(format!("{} {}", binary.id, args.join(" ")));
        self.parallel.set(self.parallel.get() + 1);
        self.most_parallel.set(self.most_parallel.get().max(self.parallel.get()));
        tokio::task::yield_now().await;
        self.parallel.set(self.parallel.get() - 1);
        let ignored = args.contains(&"--ignored");
        if let Some(log) = args.iter().position(|arg| *arg == "--logfile") {
            fs::write(args[log + 1], "").unwrap();
        }
        let stdout: &[u8] = if ignored { b"b: test\n" } else { b"a: test\nb: test\n" };
        let exit = Exit::Code(if &*binary.id.0 == "broken" { 101 } else { 0 });
        Ok(RawListing {
            exit,
            stdout: stdout.into(),
            stderr: Bytes::from_static(b"no such file\n"),
        })
    }
}

fn names(listing: &Listing) -> Vec<(&str, bool)> {
    listing.cases.iter().map(|case| (&*case.name.0, case.ignored)).collect()
}

/// Something in an executable's place, built an hour ago.
fn build(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    date(path, SystemTime::now() - HOUR);
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn only_libtest_listings_of_the_same_file_are_remembered() {
    let temp = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let executable = temp.path().join("executable");
    let cache = Some(temp.path().join("listings"));
    let list = async |harness, cache: &Option<PathBuf>| {
        let inventory = Inventory::new(&fake, 2, cache.clone(), &[]);
        let listing = inventory.list(binary("pkg", harness, &executable)).await.unwrap();
        assert_eq!(names(&listing), [("a", false), ("b", true)]);
        assert!(!listing.whole);
        inventory.executed()
    };
    build(&executable, "one");
    assert_eq!(list(Harness::Libtest, &cache).await, 1);
    assert_eq!(list(Harness::Libtest, &cache).await, 0);
    assert_eq!(list(Harness::Custom, &cache).await, 1);
    assert_eq!(list(Harness::Libtest, &None).await, 1);
    assert_eq!(list(Harness::Libtest, &cache).await, 0);
    // Replaced by what has the same size and time, as a build system that sets times does.
    fs::remove_file(&executable).unwrap();
    build(&executable, "two");
    assert_eq!(list(Harness::Libtest, &cache).await, 1);
    assert_eq!(list(Harness::Libtest, &cache).await, 0);
    // So young that it could be written to again and look the same.
    date(&executable, SystemTime::now() + HOUR);
    assert_eq!(list(Harness::Libtest, &cache).await, 1);
    assert_eq!(list(Harness::Libtest, &cache).await, 1);
    assert_eq!(fake.runs.borrow().len(), 12);
    assert_eq!(fake.runs.borrow()[1], "pkg --list --format terse --ignored");
}

#[tokio::test]
async fn after_an_edit_what_its_libtest_can_do_is_known() {
    let temp = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let executable = temp.path().join("executable");
    let cache = Some(temp.path().join("listings"));
    let list = async || {
        fake.runs.borrow_mut().clear();
        let inventory = Inventory::new(&fake, 2, cache.clone(), &[]).with_probes(true);
        let listing = inventory.list(binary("pkg", Harness::Libtest, &executable)).await.unwrap();
        (listing.sharing.is_some(), fake.runs.borrow().len())
    };
    build(&executable, "one");
    assert_eq!(list().await, (true, 3), "two lists and a start");
    assert_eq!(list().await, (true, 0));
    build(&executable, "another");
    assert_eq!(list().await, (true, 2));
    assert_eq!(list().await, (true, 0));
    build(&executable, "it knows NEXTEST_RUN_ID");
    assert_eq!(list().await, (false, 2));
    build(&executable, "it forgot");
    assert_eq!(list().await, (true, 3));
}

#[tokio::test]
async fn a_whole_binary_is_one_case_and_never_run() {
    let fake = Fake::default();
    let inventory = Inventory::new(&fake, 2, None, &["pkg::whole".to_owned()]);
    let binary = binary("pkg::whole", Harness::Custom, Path::new("/bin"));
    let listing = inventory.list(binary).await.unwrap();
    assert_eq!(names(&listing), [("target", false)]);
    assert!(listing.whole);
    assert_eq!((inventory.executed(), fake.runs.borrow().len()), (0, 0));
}

#[tokio::test]
async fn runs_at_a_time_are_bounded_over_all_binaries() {
    let fake = Fake::default();
    let inventory = Inventory::new(&fake, 3, None, &[]);
    let binaries = (0..10).map(|i| binary(&format!("pkg::{i}"), Harness::Libtest, Path::new("/")));
    let listings = binaries.map(|binary| inventory.list(binary));
    futures::future::try_join_all(listings).await.unwrap();
    assert_eq!(fake.most_parallel.get(), 3);
    assert_eq!((inventory.executed(), fake.runs.borrow().len()), (10, 20));
}

#[tokio::test]
async fn a_failure_names_binary_executable_status_and_stderr() {
    let fake = Fake::default();
    let inventory = Inventory::new(&fake, 2, None, &[]);
    let broken = |harness| binary("broken", harness, Path::new("/deps/broken-1"));
    let failure = inventory.list(broken(Harness::Libtest)).await.unwrap_err();
    assert_eq!(failure.code, ExitCode::ListFailed);
    assert_eq!(
        failure.to_string(),
        "could not list the tests of broken (/deps/broken-1): \
         it exited with 101 and wrote to stderr:\nno such file"
    );
    let hint = failure.hint.unwrap();
    assert_eq!(hint, "run it by hand: cd / && /deps/broken-1 --list --format terse");
    let custom = inventory.list(broken(Harness::Custom)).await.unwrap_err();
    let hint = custom.hint.unwrap();
    assert!(hint.ends_with("\n[binary.\"broken\"]\nlist = \"whole\""), "{hint}");
}

#[tokio::test]
async fn another_triple_goes_to_the_other_lister() {
    let (here, there) = (Fake::default(), Fake::default());
    let route = ByTriple { host: Triple::new("host"), local: &here, foreign: &there };
    let inventory = Inventory::new(route, 2, None, &[]);
    inventory.list(binary("pkg", Harness::Libtest, Path::new("/"))).await.unwrap();
    assert_eq!((here.runs.borrow().len(), there.runs.borrow().len()), (0, 2));

    let route = ByTriple { host: Triple::new("host"), local: &here, foreign: NoLister };
    let inventory = Inventory::new(route, 2, None, &[]);
    let binary = binary("pkg", Harness::Libtest, Path::new("/"));
    let failure = inventory.list(binary).await.unwrap_err();
    assert_eq!(failure.code, ExitCode::ListFailed);
    assert!(failure.to_string().contains("built for here"), "{failure}");
}

#[cfg(unix)]
mod local {
    use std::time::Duration;

    use super::*;

    async fn run(script: &str, time_max: Duration) -> Result<RawListing, Failure> {
        let binary = binary("pkg", Harness::Custom, Path::new("/bin/sh"));
        LocalLister { time_max }.run(&binary, &["-c", script, "--list", "x y"]).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn runs_in_the_binary_s_folder_and_environment() {
        let raw = run(r#"echo "$PWD $GIVEN $0 $1"; echo why >&2; exit 3"#, LONG).await.unwrap();
        assert_eq!(raw.stdout, "/ given --list x y\n");
        assert_eq!((raw.exit, &raw.stderr[..]), (Exit::Code(3), &b"why\n"[..]));
        let raw = run("kill -9 $$", LONG).await.unwrap();
        assert_eq!(raw.exit, Exit::Signal(9));
    }

    #[tokio::test]
    async fn what_it_leaves_behind_does_not_hold_the_list() {
        let raw = run("sleep 1000 & echo a: test", LONG).await.unwrap();
        assert_eq!((raw.exit, &raw.stdout[..]), (Exit::Code(0), &b"a: test\n"[..]));
    }

    #[tokio::test]
    async fn a_list_that_never_ends_or_is_too_long_is_an_error() {
        let failure = run("exec sleep 1000", Duration::ZERO).await.unwrap_err();
        assert!(failure.to_string().contains("did not end within 0 s"), "{failure}");
        let failure = run("exec yes", LONG).await.unwrap_err();
        assert!(failure.to_string().contains("67108864 bytes or more"), "{failure}");
        let raw = run("yes | head -c 1000000 >&2", LONG).await.unwrap();
        assert_eq!(raw.stderr.len() as u64, LIST_STDERR_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_missing_executable_is_told() {
        let binary = binary("pkg", Harness::Libtest, Path::new("/nowhere/to/be/found"));
        let failure = LocalLister::default().run(&binary, &["--list"]).await.unwrap_err();
        assert_eq!(failure.code, ExitCode::ListFailed);
        assert!(failure.to_string().contains("No such file"), "{failure}");
    }
}
