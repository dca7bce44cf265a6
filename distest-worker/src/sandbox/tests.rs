use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::digest::Digest;
use crate::protocol::Encoding;
use crate::store::Store;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    sandbox: Sandbox,
}

/// A sandbox for `/code/proj` and `/data/target`, in which `/code/proj/sub` is a nested root.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), 1 << 20).unwrap();
    let roots = ["/code/proj/sub", "/code/proj", "/data/target"].map(OsText::from);
    let sandbox = Sandbox::at(dir.path().join("box"), &roots).unwrap();
    Bench { dir, store, sandbox }
}

impl Bench {
    fn file(&self, path: &str, content: &str, mode: u32) -> TreeEntry {
        let (digest, size) = (Digest::of(content.as_bytes()), content.len() as u64);
        let mut upload = self.store.begin(digest, size, Encoding::Raw).unwrap();
        upload.push(content.as_bytes()).unwrap();
        upload.finish().unwrap();
        TreeEntry { path: path.into(), node: TreeNode::File { digest, size, mode } }
    }

    fn lay(&self, entries: &[TreeEntry]) -> Result<(), Refusal> {
        self.sandbox.lay(&self.store.claim(None), entries)
    }

    fn here(&self, client: &str) -> PathBuf {
        self.sandbox.path(Path::new(client))
    }
}

fn folder(path: &str, mode: u32) -> TreeEntry {
    TreeEntry { path: path.into(), node: TreeNode::Folder { mode } }
}

fn link(path: &str, target: &str) -> TreeEntry {
    TreeEntry { path: path.into(), node: TreeNode::Link { target: target.into() } }
}

#[test]
fn paths_and_values_are_translated_at_boundaries() {
    let bench = bench();
    let base = bench.dir.path().join("box/root");
    assert_eq!(bench.here("/code/proj/a"), base.join("code/proj/a"));
    assert_eq!(bench.here("/code/proj-2/a"), Path::new("/code/proj-2/a"));
    assert_eq!(bench.here("/usr/bin/git"), Path::new("/usr/bin/git"));
    let here = base.to_str().unwrap();
    for (value, expected) in [
        ("/code/proj", "%/code/proj"),
        ("/code/proj/sub/x", "%/code/proj/sub/x"),
        (
            "/data/target/deps:/usr/lib:/code/proj/lib:",
            "%/data/target/deps:/usr/lib:%/code/proj/lib:",
        ),
        ("--flag=/code/proj/x -L/data/target", "--flag=%/code/proj/x -L%/data/target"),
        ("path+file:///code/proj#a@0.1.0", "path+file://%/code/proj#a@0.1.0"),
        (r#"["/code/proj","/code/proj/a"]"#, r#"["%/code/proj","%/code/proj/a"]"#),
        ("/code/proj-2 /code/project /code/proj.old", "/code/proj-2 /code/project /code/proj.old"),
        ("/old/code/proj rel/code/proj //code/proj", "/old/code/proj rel/code/proj //code/proj"),
        ("/code/projé /code /usr/bin/git", "/code/projé /code /usr/bin/git"),
        ("", ""),
    ] {
        let translated = bench.sandbox.value(OsStr::new(value));
        assert_eq!(translated.to_str().unwrap(), expected.replace('%', here), "{value}");
    }
    let bytes = OsStr::from_bytes(b"\xff=/code/proj/\xff");
    assert!(bench.sandbox.value(bytes).as_bytes().ends_with(b"/root/code/proj/\xff"));
    let in_place = Sandbox::in_place();
    assert_eq!(in_place.value(OsStr::new("/code/proj")), "/code/proj");
    assert_eq!(in_place.path(Path::new("/code/proj")), Path::new("/code/proj"));
}

#[test]
fn lays_files_folders_and_links_and_cleans_up() {
    let bench = bench();
    let entries = [
        folder("/code/proj", 0o755),
        link("/code/proj/abs", "/data/target/x"),
        link("/code/proj/dangling", "nowhere"),
        folder("/code/proj/read-only", 0o555),
        bench.file("/code/proj/read-only/run.sh", "#!/bin/sh", 0o555),
        link("/code/proj/shell", "/bin/sh"),
        bench.file("/code/proj/deep/er/file", "text", 0o640),
    ];
    bench.lay(&entries).unwrap();
    bench.lay(&entries).unwrap();
    bench
        .sandbox
        .make_writable(&["/data/target/tmp".into(), "/code/proj/read-only".into()])
        .unwrap();

    let text = fs::read_to_string(bench.here("/code/proj/deep/er/file")).unwrap();
    assert_eq!(text, "text");
    let mode = |path| fs::metadata(bench.here(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("/code/proj/deep/er/file"), 0o640);
    assert_eq!(mode("/code/proj/read-only/run.sh"), 0o555);
    assert!(bench.here("/data/target/tmp").is_dir());
    let target = |path| fs::read_link(bench.here(path)).unwrap();
    assert_eq!(target("/code/proj/abs"), bench.here("/data/target/x"));
    assert_eq!(target("/code/proj/dangling"), Path::new("nowhere"));
    assert_eq!(target("/code/proj/shell"), Path::new("/bin/sh"));

    let read_only = bench.here("/code/proj/read-only");
    fs::set_permissions(read_only, fs::Permissions::from_mode(0o500)).unwrap();
    drop(bench.sandbox);
    assert!(!bench.dir.path().join("box").exists());
}

#[test]
fn folders_get_their_permissions_when_all_is_in_them() {
    let bench = bench();
    let entries = [
        folder("/code/proj/closed", 0o555),
        bench.file("/code/proj/closed/file", "text", 0o444),
        folder("/code/proj/closed/inner", 0o500),
        bench.file("/code/proj/closed/inner/file", "text", 0o444),
        folder("/code/proj/shared", 0o1777),
    ];
    bench.lay(&entries).unwrap();
    let mode = |path: &str| {
        let metadata = fs::metadata(bench.here(&format!("/code/proj/{path}"))).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    let modes = || ["closed", "closed/inner", "shared"].map(mode);
    assert_eq!(modes(), [0o555, 0o500, 0o1777]);
    bench.lay(&[bench.file("/code/proj/closed/inner/more", "text", 0o444)]).unwrap();
    assert_eq!(modes(), [0o555, 0o500, 0o1777]);
    assert_eq!(mode("closed/inner/more"), 0o444);
}

#[test]
fn the_same_again_is_left_alone_and_what_changed_is_replaced() {
    let bench = bench();
    let path = "/code/proj/exe";
    let first = bench.file(path, "first", 0o755);
    bench.lay(std::slice::from_ref(&first)).unwrap();
    let inode =
        |path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(bench.here(path)).unwrap());
    let before = inode(path);
    bench.lay(std::slice::from_ref(&first)).unwrap();
    assert_eq!(inode(path), before, "a running executable keeps its file");

    bench.lay(&[bench.file(path, "second", 0o755)]).unwrap();
    assert_eq!(fs::read_to_string(bench.here(path)).unwrap(), "second");
    bench.lay(&[link(path, "elsewhere")]).unwrap();
    fs::remove_file(bench.here(path)).unwrap();
    bench.lay(&[link(path, "elsewhere")]).unwrap();
    assert_eq!(fs::read_link(bench.here(path)).unwrap(), Path::new("elsewhere"));
}

#[test]
fn hostile_entries_are_refused_and_touch_nothing_outside() {
    let bench = bench();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let out = outside.to_str().unwrap();
    bench
        .lay(&[
            link("/code/proj/leaves", out),
            link("/code/proj/climbs", "../../../../outside"),
            bench.file("/code/proj/file", "x", 0o644),
            folder("/code/proj/folder", 0o755),
        ])
        .unwrap();
    for path in [
        "/etc/passwd",
        out,
        "/code/proj/../../etc/x",
        "/code/proj/sub/..",
        "relative",
        "",
        "/",
        "/code",
        "/code/proj-2/x",
        "/code/proj/leaves/x",
        "/code/proj/climbs/x",
        "/code/proj/file/x",
        "/code/proj/folder",
        "/code/proj/nul\0",
    ] {
        let file = bench.file(path, "evil", 0o644);
        let made = [file, link(path, "evil")];
        for entry in made {
            let refusal = bench.lay(&[entry]).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::Invalid, "{path}: {refusal}");
        }
    }
    for path in ["/code/proj/leaves", "/code/proj/climbs", "/code/proj/file"] {
        let refusal = bench.lay(&[folder(path, 0o777)]).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{path}: {refusal}");
        let refusal = bench.sandbox.make_writable(&[path.into()]).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{path}: {refusal}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // Writing to the name of a link replaces the link, not what it points to.
    bench.lay(&[bench.file("/code/proj/leaves", "x", 0o644)]).unwrap();
    assert!(outside.is_dir());
}

#[test]
fn a_missing_blob_is_told_as_such_and_leaves_no_file() {
    let bench = bench();
    let node = TreeNode::File { digest: Digest::of(b"never sent"), size: 10, mode: 0o644 };
    let refusal = bench.lay(&[TreeEntry { path: "/code/proj/x".into(), node }]).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::MissingBlob, "{refusal}");
    assert!(!bench.here("/code/proj/x").exists());
    assert!(
        Sandbox::in_place().lay(&bench.store.claim(None), &[folder("/code/proj", 0o755)]).is_err()
    );
}

#[test]
fn hostile_roots_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for root in ["/", "", "code", "/code/../etc", "/.."] {
        let made = Sandbox::at(dir.path().join("box"), &[root.into()]);
        assert_eq!(made.err().unwrap().kind, RefusalKind::Invalid, "{root}");
        assert!(!dir.path().join("box").exists());
    }
    fs::create_dir(dir.path().join("box")).unwrap();
    assert!(Sandbox::at(dir.path().join("box"), &["/code".into()]).is_err());
    assert!(dir.path().join("box").exists(), "it was there before");
}

#[test]
fn what_tests_created_is_found_by_comparing() {
    let bench = bench();
    let laid = [
        bench.file("/code/proj/same.out", "same", 0o644),
        bench.file("/code/proj/changed.out", "first", 0o644),
        bench.file("/code/proj/sub/other.txt", "other", 0o644),
    ];
    bench.lay(&laid).unwrap();
    for (path, content) in [
        ("/code/proj/changed.out", "other"),
        ("/code/proj/sub/new.out", "new"),
        ("/code/proj/sub/other.txt", "not asked for"),
        ("/data/target/x.out", "in another root"),
    ] {
        fs::write(bench.here(path), content).unwrap();
    }
    std::os::unix::fs::symlink("new.out", bench.here("/code/proj/sub/link.out")).unwrap();
    let created = |globs: &[&str], limit| {
        let globs = Globs::new(globs).unwrap();
        let mut found: Vec<_> = bench
            .sandbox
            .created(&globs, limit)
            .into_iter()
            .map(|created| (created.path, io::read_to_string(created.file).unwrap()))
            .collect();
        found.sort();
        found
    };
    let found = |path: &str, content: &str| (PathBuf::from(path), content.to_owned());
    let all = [
        found("/code/proj/changed.out", "other"),
        found("/code/proj/sub/new.out", "new"),
        found("/data/target/x.out", "in another root"),
    ];
    assert_eq!(created(&["*.out"], 10), all);
    assert_eq!(created(&["sub/*.out"], 10), all[1..2]);
    assert_eq!(created(&["*.out"], 2).len(), 2);
    assert_eq!(created(&["*.rs"], 10), []);
}
