use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;

use distest_worker::protocol::TreeNode;

use super::statcache::StatCache;
use super::*;

struct Bench {
    dir: tempfile::TempDir,
    roots: TreeRoots,
    rules: TreeRules,
}

/// A workspace `ws` in a temporary folder, with its target directory.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let workspace = dir.path().join("ws");
    let excluded = vec![workspace.join("target")];
    let roots = TreeRoots { workspace, excluded, ..TreeRoots::default() };
    let bench = Bench { dir, roots, rules: TreeRules::new(1000, 1 << 30) };
    bench.write("ws/Cargo.toml", "[package]");
    bench.write("ws/target/debug/exe", "built");
    bench
}

impl Bench {
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: impl AsRef<Path>, content: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Independent of the user's configuration, and of a repository that this one may be in.
    fn git(&self, dir: &str, args: &[&str]) {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.at(dir))
            .args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"])
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([("GIT_CEILING_DIRECTORIES", self.dir.path())])
            .env_remove("GIT_DIR")
            .env_remove("GIT_INDEX_FILE")
            .env_remove("GIT_WORK_TREE")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {output:?}");
    }

    /// A repository that the user's own ignore file says nothing about.
    fn init(&self, dir: &str) {
        self.git(".", &["init", "-q", dir]);
        self.git(dir, &["config", "core.excludesFile", "/dev/null"]);
    }

    fn collect(&self) -> Tree {
        self.try_collect().unwrap()
    }

    fn try_collect(&self) -> Result<Tree, Failure> {
        collect(&self.roots, &self.rules, &self.copies())
    }

    fn copies(&self) -> Copies {
        let stats = Arc::new(StatCache::open(&self.at("stats")));
        Copies::new(&self.at("ws/target"), stats)
    }

    fn include(&mut self, patterns: &[&str]) {
        for pattern in patterns {
            let include = Include::parse(pattern, &self.roots.workspace).unwrap();
            let roots = [self.roots.workspace.clone()];
            self.roots.included.extend(include.root(&roots).unwrap());
            self.rules.include.push(include);
        }
    }

    /// The tree's paths, relative to the temporary folder: folders end in `/`, links in `@`.
    fn check(&self, expected: &[&str]) -> Tree {
        let tree = self.collect();
        let paths = tree.entries.iter().map(|entry| {
            let path = entry.path.as_path().strip_prefix(self.dir.path()).unwrap();
            let mark = match entry.node {
                TreeNode::Folder { .. } => "/",
                TreeNode::Link { .. } => "@",
                TreeNode::File { .. } => "",
            };
            format!("{}{mark}", path.to_string_lossy())
        });
        assert_eq!(paths.collect::<Vec<_>>(), expected);
        tree
    }
}

#[test]
fn git_says_what_travels() {
    let bench = bench();
    bench.init("ws");
    bench.write("ws/.gitignore", "/target\n*.log\nbuilt/\n");
    bench.write("ws/.config/tracked", "dot");
    bench.write("ws/forced.log", "ignored but tracked");
    bench.write("ws/deleted", "");
    bench.write("ws/gone/deleted", "");
    bench.git("ws", &["add", "-f", "."]);
    bench.git("ws", &["rm", "-q", "--cached", "-r", "target"]);
    fs::remove_file(bench.at("ws/deleted")).unwrap();
    fs::remove_dir_all(bench.at("ws/gone")).unwrap();
    bench.write("ws/new file é", "untracked");
    bench.write("ws/x.log", "ignored");
    bench.write("ws/built/x", "ignored");
    fs::create_dir(bench.at("ws/empty")).unwrap();
    symlink("nowhere", bench.at("ws/dangling")).unwrap();
    bench.write("elsewhere", "not in the workspace");
    fs::write(bench.at("ws").join(OsStr::from_bytes(b"\xff")), "not UTF-8").unwrap();
    fs::set_permissions(bench.at("ws/forced.log"), fs::Permissions::from_mode(0o754)).unwrap();
    let tree = bench.check(&[
        "ws/",
        "ws/.config/",
        "ws/.config/tracked",
        "ws/.gitignore",
        "ws/Cargo.toml",
        "ws/dangling@",
        "ws/empty/",
        "ws/forced.log",
        "ws/new file é",
        "ws/\u{fffd}",
    ]);
    assert_eq!(tree.notices, <[String; 0]>::default());
    let forced = tree.entries.iter().find(|entry| entry.path.as_path().ends_with("forced.log"));
    let content = "ignored but tracked";
    let (digest, size) = (Digest::of(content.as_bytes()), content.len() as u64);
    assert_eq!(forced.unwrap().node, TreeNode::File { digest, size, mode: 0o754 });
    assert_eq!(fs::read_to_string(&tree.files[&digest]).unwrap(), content);
    let last = &tree.entries[tree.entries.len() - 1];
    assert!(last.path.as_bytes().ends_with(b"/\xff"));
}

#[test]
fn submodules_and_nested_repositories_travel() {
    let bench = bench();
    for repository in ["upstream", "ws", "ws/nested", "ws/ignored"] {
        bench.init(repository);
    }
    bench.write("upstream/lib.c", "int x;");
    bench.git("upstream", &["add", "."]);
    bench.git("upstream", &["commit", "-qm", "first"]);
    bench.write("ws/.gitignore", "target\nignored\n");
    bench.git("ws", &["submodule", "--quiet", "add", "../upstream", "sub"]);
    bench.git("ws", &["submodule", "--quiet", "add", "../upstream", "not-there"]);
    bench.git("ws", &["submodule", "--quiet", "deinit", "-f", "not-there"]);
    bench.write("ws/sub/new.c", "untracked in the submodule");
    bench.write("ws/nested/.gitignore", "*.o");
    bench.write("ws/nested/forced.o", "tracked");
    bench.git("ws/nested", &["add", "-f", "forced.o"]);
    bench.write("ws/nested/x.o", "ignored");
    let paths = [
        "ws/",
        "ws/.gitignore",
        "ws/.gitmodules",
        "ws/Cargo.toml",
        "ws/nested/",
        "ws/nested/.gitignore",
        "ws/nested/forced.o",
        "ws/not-there/",
        "ws/sub/",
        "ws/sub/lib.c",
        "ws/sub/new.c",
    ];
    let tree = bench.check(&paths);
    assert_eq!(tree.notices.len(), 1);
    assert!(tree.notices[0].contains("not-there: the submodule is not checked out"));

    // The same without a repository around it: the ones inside are still repositories.
    fs::remove_dir_all(bench.at("ws/.git")).unwrap();
    bench.check(&paths);
}

#[test]
fn a_workspace_in_a_bigger_repository_travels_alone() {
    let mut bench = bench();
    bench.init(".");
    bench.write(".gitignore", "target\n/ignored\n");
    bench.write("other/Cargo.toml", "[package]");
    bench.write("other/lib.rs", "");
    bench.write("unrelated/x", "");
    bench.git(".", &["add", "ws", "other", "unrelated"]);
    bench.check(&["ws/", "ws/Cargo.toml"]);
    bench.roots.packages = vec![bench.at("other"), bench.at("ws")];
    bench.check(&["other/", "other/Cargo.toml", "other/lib.rs", "ws/", "ws/Cargo.toml"]);

    // One that the repository ignores is not the repository's.
    fs::rename(bench.at("other"), bench.at("ignored")).unwrap();
    bench.roots.packages = vec![bench.at("ignored")];
    bench.check(&["ignored/", "ignored/Cargo.toml", "ignored/lib.rs", "ws/", "ws/Cargo.toml"]);
}

#[test]
fn without_git_all_but_the_ignored_travels() {
    let mut bench = bench();
    bench.roots.excluded.push(bench.at("ws/out"));
    bench.write(".gitignore", "*");
    bench.write("ws/.gitignore", "*.log\n/sub/x\n");
    bench.write("ws/.hidden/file", "");
    bench.write("ws/a.log", "");
    bench.write("ws/out/x", "");
    bench.write("ws/sub/x", "");
    bench.write("ws/sub/target/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
    bench.write("ws/sub/target/debug/x", "");
    bench.write("ws/data/target/x", "no build directory");
    fs::create_dir(bench.at("ws/empty")).unwrap();
    fs::create_dir(bench.at("outside")).unwrap();
    symlink("../outside", bench.at("ws/link")).unwrap();
    nix::unistd::mkfifo(&bench.at("ws/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.at("ws/socket")).unwrap();
    let tree = bench.check(&[
        "ws/",
        "ws/.gitignore",
        "ws/.hidden/",
        "ws/.hidden/file",
        "ws/Cargo.toml",
        "ws/data/",
        "ws/data/target/",
        "ws/data/target/x",
        "ws/empty/",
        "ws/link@",
        "ws/sub/",
    ]);
    let [link, pipe, socket] = &tree.notices[..] else { panic!("{:?}", tree.notices) };
    assert!(link.contains("link is a link to") && link.contains("include"), "{link}");
    assert!(pipe.ends_with("pipe does not travel: it is a named pipe"), "{pipe}");
    assert!(socket.ends_with("socket does not travel: it is a socket"), "{socket}");
}

#[test]
fn what_lies_behind_links_does_not_travel() {
    let mut bench = bench();
    bench.init("ws");
    bench.write("ws/real/a", "");
    bench.write("ws/dir/b", "");
    bench.write("ws/target/tracked", "");
    bench.git("ws", &["add", "-f", "real", "dir", "target/tracked", "Cargo.toml"]);
    fs::remove_dir_all(bench.at("ws/dir")).unwrap();
    symlink("real", bench.at("ws/dir")).unwrap();
    bench.write("elsewhere/x", "");
    symlink("../elsewhere", bench.at("ws/build")).unwrap();
    bench.roots.excluded.push(bench.at("ws/build"));
    bench.check(&[
        "ws/",
        "ws/Cargo.toml",
        "ws/dir@",
        "ws/real/",
        "ws/real/a",
        "ws/target/",
        "ws/target/tracked",
    ]);
}

#[test]
fn an_unreadable_repository_is_walked_with_a_notice() {
    let bench = bench();
    bench.init("ws");
    fs::write(bench.at("ws/.git/index"), "no index").unwrap();
    let tree = bench.check(&["ws/", "ws/Cargo.toml"]);
    assert_eq!(tree.notices.len(), 1, "{:?}", tree.notices);
    assert!(tree.notices[0].contains("git can't list its files"), "{}", tree.notices[0]);
}

#[test]
fn an_unreadable_file_is_a_notice() {
    let bench = bench();
    bench.write("ws/secret", "x");
    fs::set_permissions(bench.at("ws/secret"), fs::Permissions::from_mode(0o000)).unwrap();
    let readable_anyway = fs::read(bench.at("ws/secret")).is_ok();
    let tree = bench.collect();
    assert_eq!(tree.notices.is_empty(), readable_anyway, "{:?}", tree.notices);
    assert_eq!(tree.entries.len(), if readable_anyway { 3 } else { 2 });
}

#[test]
fn a_workspace_that_is_not_there_is_an_error() {
    let mut bench = bench();
    bench.roots.workspace = bench.at("nowhere");
    let failure = bench.try_collect().unwrap_err();
    assert_eq!(failure.code, ExitCode::Setup);
    assert!(failure.to_string().contains("nowhere"), "{failure}");
}

#[test]
fn empty_folders_travel_unless_they_are_ignored() {
    let bench = bench();
    bench.init("ws");
    bench.write("ws/.gitignore", "target\nignored\n/scratch/*\n");
    bench.write("ws/tests/data/file", "");
    bench.git("ws", &["add", "tests", "Cargo.toml"]);
    bench.write("ws/new/file", "");
    bench.write("ws/scratch/old", "ignored");
    for folder in [
        "tests/data/empty",
        "outer/inner",
        "new/deep/empty",
        "new/ignored/x",
        "ignored/x",
        "sub.git/x",
        ":top",
    ] {
        fs::create_dir_all(bench.at("ws").join(folder)).unwrap();
    }
    let sticky = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(bench.at("ws/tests/data/empty"), sticky).unwrap();
    let entries = bench.collect().entries;
    let empty = entries.iter().find(|it| it.path.as_path().ends_with("data/empty")).unwrap();
    assert_eq!(empty.node, TreeNode::Folder { mode: 0o1777 });
    bench.check(&[
        "ws/",
        "ws/.gitignore",
        "ws/:top/",
        "ws/Cargo.toml",
        "ws/new/",
        "ws/new/deep/",
        "ws/new/deep/empty/",
        "ws/new/file",
        "ws/outer/",
        "ws/outer/inner/",
        "ws/scratch/",
        "ws/sub.git/",
        "ws/sub.git/x/",
        "ws/tests/",
        "ws/tests/data/",
        "ws/tests/data/empty/",
        "ws/tests/data/file",
    ]);
}

#[test]
fn the_user_includes_and_excludes() {
    let mut bench = bench();
    bench.init("ws");
    bench.write("ws/.gitignore", "target\n/data\n*.env\n");
    bench.write("ws/data/a.bin", "ignored");
    bench.write("ws/data/a.txt", "ignored");
    bench.write("ws/data/deep/b.bin", "ignored");
    bench.write("ws/test.env", "ignored");
    bench.write("ws/target/fixtures/x", "built");
    bench.write("ws/docs/huge", "");
    bench.write("ws/docs/small", "");
    bench.write("shared/set/one", "");
    bench.write("shared/set/two", "");
    bench.write("shared/other", "");
    bench.include(&["data/**/*.bin", "target/fixtures", "**/*.env", "../shared/set/o*"]);
    bench.rules.exclude = Globs::new(["docs/h*", "**/.gitignore"]).unwrap();
    bench.check(&[
        "shared/set/",
        "shared/set/one",
        "ws/",
        "ws/Cargo.toml",
        "ws/data/",
        "ws/data/a.bin",
        "ws/data/deep/",
        "ws/data/deep/b.bin",
        "ws/docs/",
        "ws/docs/small",
        "ws/target/",
        "ws/target/fixtures/",
        "ws/target/fixtures/x",
        "ws/test.env",
    ]);
}

#[test]
fn names_that_differ_only_in_case_are_two() {
    let bench = bench();
    bench.write("ws/Name", "upper");
    bench.write("ws/name", "lower");
    let tree = bench.check(&["ws/", "ws/Cargo.toml", "ws/Name", "ws/name"]);
    assert_eq!(tree.files.len(), 3);
}

#[test]
fn a_file_that_is_too_large_stays_here_unread() {
    let mut bench = bench();
    bench.write("ws/small", "1234");
    let huge = fs::File::create(bench.at("ws/huge")).unwrap();
    huge.set_len(3 << 30).unwrap();
    let tree = bench.check(&["ws/", "ws/Cargo.toml", "ws/small"]);
    let [notice] = &tree.notices[..] else { panic!("{:?}", tree.notices) };
    assert!(notice.contains("huge does not travel: it has 3.0 GiB"), "{notice}");
    assert!(notice.contains("1.0 GiB (`tree-bytes-max`"), "{notice}");

    bench.rules.bytes_max = 12;
    assert_eq!(bench.check(&["ws/", "ws/small"]).notices.len(), 2);
}

#[test]
fn too_many_files_are_an_error_that_names_the_key() {
    let mut bench = bench();
    for name in ["a", "b", "c"] {
        bench.write(format!("ws/{name}"), "");
    }
    bench.rules.files_max = 3;
    let failure = bench.try_collect().unwrap_err();
    assert_eq!(failure.code, ExitCode::Setup);
    assert!(failure.hint.is_some_and(|hint| hint.contains("`tree-files-max`")));
    bench.rules.files_max = 4;
    bench.check(&["ws/", "ws/Cargo.toml", "ws/a", "ws/b", "ws/c"]);
}

#[test]
fn what_travels_is_what_was_read() {
    let bench = bench();
    bench.write("ws/file", "first");
    let tree = bench.collect();
    assert_eq!(tree.changed(), <[&Path; 0]>::default());
    // In place, as some editors do: a hard link would show it.
    fs::write(bench.at("ws/file"), "other").unwrap();
    fs::remove_file(bench.at("ws/Cargo.toml")).unwrap();
    let first = Digest::of(b"first");
    assert_eq!(fs::read_to_string(&tree.files[&first]).unwrap(), "first");
    assert_eq!(tree.changed(), [bench.at("ws/Cargo.toml"), bench.at("ws/file")]);
    assert!(bench.collect().files.contains_key(&Digest::of(b"other")));
}

#[test]
fn what_git_does_not_speak_of_is_told() {
    let bench = bench();
    bench.init("ws");
    bench.write("ws/.gitignore", "/target\n*.ignored\n");
    bench.write("ws/sub/file", "");
    let mode = nix::sys::stat::Mode::S_IRWXU;
    for pipe in ["ws/pipe", "ws/sub/pipe", "ws/sub/pipe.ignored", "ws/target/pipe"] {
        nix::unistd::mkfifo(&bench.at(pipe), mode).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(bench.at("ws/sub/socket")).unwrap();
    let tree = bench.collect();
    let told: Vec<_> = tree
        .notices
        .iter()
        .map(|notice| notice.replace(&format!("{}/", bench.dir.path().display()), ""))
        .collect();
    assert_eq!(
        told,
        [
            "ws/pipe does not travel: it is a named pipe",
            "ws/sub/pipe does not travel: it is a named pipe",
            "ws/sub/socket does not travel: it is a socket",
        ]
    );
    assert_eq!(tree.left_out(&bench.at("ws/pipe")), Some("it is a named pipe"));
}

#[test]
fn what_appears_later_is_found_and_nothing_else() {
    let bench = bench();
    bench.init("ws");
    bench.write("ws/.gitignore", "/target\n*.log\n");
    nix::unistd::mkfifo(&bench.at("ws/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let tree = bench.collect();
    let appeared = || appeared(&tree, &bench.roots, &bench.rules);
    assert!(appeared().is_empty(), "{:?}", appeared());
    bench.write("ws/x.log", "ignored");
    bench.write("ws/target/more", "built");
    bench.write("ws/sub/new", "");
    assert_eq!(appeared(), [bench.at("ws/sub/new")]);
}

#[test]
fn a_pattern_that_matches_nothing_is_told() {
    let mut bench = bench();
    bench.include(&["data/*.bin", "Cargo.toml"]);
    let told = "the pattern `data/*.bin` of `include` in the profile matches nothing here";
    assert_eq!(bench.collect().notices, [told]);
}
