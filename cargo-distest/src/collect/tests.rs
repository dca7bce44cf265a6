use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use super::*;
use crate::tree::copies::Copies;
use crate::tree::statcache::StatCache;
use crate::tree::{TreeRoots, TreeRules, collect};

struct Bench {
    dir: tempfile::TempDir,
    collector: Arc<Collector>,
}

const ONE: WorkerId = WorkerId(1);
const TWO: WorkerId = WorkerId(2);

/// A workspace `ws` whose file `x.out` has travelled; `*.out` and what lies in `d` comes back.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("ws");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("x.out"), "travelled").unwrap();
    let stats = Arc::new(StatCache::open(&dir.path().join("stats")));
    let copies = Copies::new(&dir.path().join("target"), stats);
    let roots = TreeRoots { workspace: root.clone(), ..TreeRoots::default() };
    let tree = collect(&roots, &TreeRules::new(100, 1 << 20), &copies).unwrap();
    let globs = Globs::new(["*.out", "d"]).unwrap();
    let collector = Arc::new(Collector::new(vec![root], globs, dir.path().join("state")));
    collector.know(Arc::new(tree));
    Bench { dir, collector }
}

impl Bench {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("ws").join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.at(name)).ok()
    }

    fn piece(&self, path: &Path, offset: u64, data: &str, last: bool) -> CollectedPiece {
        let data = data.to_owned().into();
        let (path, writers) = (path.into(), Vec::new());
        CollectedPiece { path, mode: 0o4777, offset, data, last, too_large: None, writers }
    }

    fn bring(&self, worker: WorkerId, name: &str, content: &str) -> Result<(), RefusalKind> {
        self.bring_to(worker, &self.at(name), content)
    }

    fn bring_to(&self, worker: WorkerId, path: &Path, content: &str) -> Result<(), RefusalKind> {
        let piece = self.piece(path, 0, content, true);
        self.collector.take(worker, &piece).map_err(|refusal| refusal.kind)
    }

    fn check(&self, files: &[&str], notices: &[&str]) {
        let Collected { files: written, notices: told } = self.collector.finish();
        let expected: Vec<PathBuf> = files.iter().map(|name| self.at(name)).collect();
        assert_eq!(written, expected);
        assert_eq!(told.len(), notices.len(), "{told:?}");
        for (told, expected) in told.iter().zip(notices) {
            assert!(told.contains(expected), "{told}");
        }
        let left = fs::read_dir(self.dir.path().join("ws")).unwrap();
        let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|name| !name.starts_with(".distest")), "nothing half-done");
    }
}

#[test]
fn new_and_changed_files_come_back() {
    let bench = bench();
    bench.bring(ONE, "x.out", "changed").unwrap();
    bench.bring(ONE, "deep/er/y.out", "created").unwrap();
    bench.collector.take(ONE, &bench.piece(&bench.at("d/long"), 0, "one ", false)).unwrap();
    bench.collector.take(ONE, &bench.piece(&bench.at("d/long"), 4, "two", true)).unwrap();
    assert_eq!(bench.read("x.out").as_deref(), Some("changed"));
    assert_eq!(bench.read("deep/er/y.out").as_deref(), Some("created"));
    assert_eq!(bench.read("d/long").as_deref(), Some("one two"));
    let mode = fs::metadata(bench.at("x.out")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "no odd bits");
    bench.check(&["d/long", "deep/er/y.out", "x.out"], &[]);
}

#[test]
fn what_changed_here_is_left_alone() {
    let bench = bench();
    fs::write(bench.at("x.out"), "mine").unwrap();
    fs::write(bench.at("new.out"), "also mine").unwrap();
    bench.bring(ONE, "x.out", "theirs").unwrap();
    bench.bring(ONE, "new.out", "theirs").unwrap();
    assert_eq!(bench.read("x.out").as_deref(), Some("mine"));
    assert_eq!(bench.read("new.out").as_deref(), Some("also mine"));
    // The same is no conflict, and a deleted file stays deleted.
    bench.bring(ONE, "new.out", "also mine").unwrap();
    fs::remove_file(bench.at("x.out")).unwrap();
    bench.bring(ONE, "x.out", "theirs").unwrap();
    assert_eq!(bench.read("x.out"), None);
    bench.check(&[], &["new.out was not brought back", "x.out was not brought back"]);
}

#[test]
fn left_overs_of_earlier_runs_are_replaced() {
    let bench = bench();
    fs::write(bench.at("old.out"), "of an earlier run").unwrap();
    bench.collector.state().started = SystemTime::now() + Duration::from_secs(10);
    bench.bring(ONE, "old.out", "new").unwrap();
    assert_eq!(bench.read("old.out").as_deref(), Some("new"));
    bench.check(&["old.out"], &[]);
}

#[test]
fn the_first_of_two_workers_wins_and_may_say_more() {
    let bench = bench();
    bench.bring(ONE, "x.out", "one").unwrap();
    bench.bring(TWO, "x.out", "two").unwrap();
    assert_eq!(bench.read("x.out").as_deref(), Some("one"));
    bench.bring(ONE, "x.out", "one and more").unwrap();
    assert_eq!(bench.read("x.out").as_deref(), Some("one and more"));
    let why = "x.out was written by several tests, differently";
    bench.check(&["x.out"], &[why]);
}

#[test]
fn a_call_is_judged_by_what_was_here_when_it_began() {
    let bench = bench();
    let told = "y.out was not brought back from a worker: it has changed here meanwhile";
    for content in ["1", "2", "2"] {
        let _underway = bench.collector.call();
        bench.bring(ONE, "y.out", content).unwrap();
        assert_eq!(bench.read("y.out").as_deref(), Some(content));
        // Whoever deletes it while the call is under way keeps it deleted, and is told each time.
        fs::remove_file(bench.at("y.out")).unwrap();
        bench.bring(ONE, "y.out", "more").unwrap();
        assert_eq!(bench.read("y.out"), None);
        assert_eq!(bench.collector.news(), [told]);
    }
    // At the same time the first wins, whichever of them ends first.
    let first = bench.collector.call();
    bench.bring(ONE, "y.out", "one").unwrap();
    let second = bench.collector.call();
    bench.bring(TWO, "y.out", "two").unwrap();
    drop(first);
    let third = bench.collector.call();
    bench.bring(TWO, "y.out", "two").unwrap();
    assert_eq!(bench.read("y.out").as_deref(), Some("one"));
    drop((second, third));
    let _fourth = bench.collector.call();
    bench.bring(TWO, "y.out", "two").unwrap();
    assert_eq!(bench.read("y.out").as_deref(), Some("two"));
}

#[test]
fn a_file_that_is_too_large_is_told_of_and_leaves_nothing() {
    let bench = bench();
    let begun = bench.piece(&bench.at("x.out"), 0, "begun", false);
    bench.collector.take(ONE, &begun).unwrap();
    let (data, size) = (Vec::new().into(), COLLECTED_FILE_BYTES_MAX + 1);
    let told = CollectedPiece { data, too_large: Some(size), ..begun };
    bench.collector.take(ONE, &told).unwrap();
    assert!(bench.collector.state().partial.is_empty());
    assert_eq!(bench.read("x.out").as_deref(), Some("travelled"));
    let told = "x.out was not brought back from a worker: it has 257 MiB, and at most 256 MiB";
    bench.check(&[], &[told]);
}

#[test]
fn a_hostile_worker_writes_nowhere_else() {
    let bench = bench();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bench.at("link")).unwrap();
    symlink(outside.join("target.out"), bench.at("link.out")).unwrap();
    let forbidden = Err(RefusalKind::Forbidden);
    for path in [
        outside.join("a.out"),
        bench.at("../outside/a.out"),
        bench.at("d/../../outside/a.out"),
        bench.at("src/lib.rs"),
        bench.at(".git/hooks.out"),
        bench.at("d/.git/config"),
        bench.at(""),
        PathBuf::from("a.out"),
        PathBuf::from("/etc/a.out"),
    ] {
        assert_eq!(bench.bring_to(ONE, &path, "evil"), forbidden, "{path:?}");
    }
    // Allowed by their names, but links lead elsewhere.
    bench.bring(ONE, "link/a.out", "evil").unwrap();
    bench.bring(ONE, "link.out", "evil").unwrap();
    fs::create_dir(bench.at("folder.out")).unwrap();
    bench.bring(ONE, "folder.out", "evil").unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_link(bench.at("link.out")).unwrap(), outside.join("target.out"));
    bench.check(&[], &["folder.out could not", "link.out could not", "link/a.out could not"]);
}

#[test]
fn pieces_come_in_order_and_files_are_bounded() {
    let bench = bench();
    let path = bench.at("x.out");
    let invalid = |piece| bench.collector.take(ONE, &piece).unwrap_err().kind;
    assert_eq!(invalid(bench.piece(&path, 4, "late", true)), RefusalKind::Invalid);
    bench.collector.take(ONE, &bench.piece(&path, 0, "one", false)).unwrap();
    assert_eq!(invalid(bench.piece(&path, 9, "gap", true)), RefusalKind::Invalid);
    for number in 0..PARTIAL_MAX {
        let path = bench.at(&format!("{number}.out"));
        bench.collector.take(ONE, &bench.piece(&path, 0, "begun", false)).unwrap();
    }
    assert_eq!(invalid(bench.piece(&path, 0, "one more", false)), RefusalKind::Invalid);
    bench.collector.state().bytes = BYTES_MAX;
    assert_eq!(invalid(bench.piece(&bench.at("0.out"), 5, "x", true)), RefusalKind::OutOfResources);
    bench.collector.state().files = COLLECTED_FILES_MAX;
    assert_eq!(invalid(bench.piece(&path, 0, "x", true)), RefusalKind::OutOfResources);
    bench.check(&[], &["more than 10000 files", "tests created more than 1024 MiB"]);
}

#[test]
fn a_worker_that_does_not_say_that_this_was_all_is_told() {
    let bench = bench();
    let before = bench.collector.progress();
    bench.bring(ONE, "y.out", "created").unwrap();
    assert_ne!(bench.collector.progress(), before);
    bench.collector.cut_short("w1", "it is gone");
    bench.check(&["y.out"], &["on worker w1 may be missing here: it is gone"]);
    let nothing = Collector::nothing();
    nothing.cut_short("w1", "it is gone");
    assert_eq!(nothing.finish(), Collected::default());
}
