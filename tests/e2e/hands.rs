//! Remote hands: commands on workers, outside of their sandboxes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use distest_tests::DEADLINE;
use distest_tests::client::{Client, Finished};
use distest_tests::hermetic::{self, NOBODYS_ID, Plan};
use distest_tests::process::Owned;
use distest_tests::product::product;
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::sshd::Sshd;
use distest_tests::worker::{Executable, Registry, Worker};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::drain::authorize;
use crate::fleet::free_port;
use crate::{case, case_if};

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("exec::on_all_with_names_before_lines", on_all),
        case("exec::on_one_in_no_sandbox", on_one),
        case("exec::tells_how_each_ended", ends),
        case("exec::needs_its_own_permission", permission),
        case("exec::a_killed_client_leaves_nothing", killed),
        case("exec::on_nobody", nobody),
        case("exec::through_a_registry", exec_through_registry),
        case("exec::on_workers_that_dial", exec_on_joiners),
        case_if("exec::through_ssh", distest_tests::sshd::possible, exec_through_ssh),
        case("exec::copies_files_both_ways", copies),
        case("exec::copies_folders_as_cp_does", nests),
        case("exec::copies_folders_both_ways", folders),
        case("exec::a_copied_folder_stays_in_its_target", stays_in_target),
        case("exec::copying_needs_its_own_permission", copies_by_permission),
        case("exec::copies_through_a_registry", through_registry),
        case("exec::copies_with_a_worker_that_dials", from_joiner),
        case_if("exec::and_copies_in_the_local_network", hermetic::possible, in_local_network),
        case_if("exec::copies_through_ssh", distest_tests::sshd::possible, through_ssh),
    ]
}

fn exec(scratch: &Scratch, workers: &[Worker], args: &[&str]) -> Client {
    let addresses: Vec<&str> = workers.iter().map(|worker| worker.address.as_str()).collect();
    let client = Client::call(scratch, scratch.path(), &["exec"]);
    client.env("DISTEST_WORKERS", addresses.join(",")).args(args)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn on_all(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 2, 1);
    let script = "echo one; printf 'two\\rover'; echo wrong >&2";
    let finished = exec(scratch, &workers, &["--all", "--", "sh", "-c", script]).finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let lines = ["w1 | one", "w1 | over", "w1 | two", "w2 | one", "w2 | over", "w2 | two"];
    assert_eq!(sorted(&finished.stdout), lines, "nothing lies over a name");
    assert_eq!(sorted(&finished.stderr), ["w1 | wrong", "w2 | wrong"]);
    // As it is, from one.
    let finished = exec(scratch, &workers, &["--on", "w1", "--", "sh", "-c", script]).finish();
    assert_eq!(finished.stdout, "one\ntwo\rover");
    // Who can't be reached is not passed over in silence.
    let gone = exec(scratch, &workers, &["--all", "--worker", "tcp://127.0.0.1:9"]);
    let gone = gone.args(["--worker", &workers[0].address, "--", "echo", "there"]).finish();
    assert_eq!((gone.code(), gone.stdout.as_str()), (0, "there\n"), "{}", gone.stderr);
    assert!(gone.stderr.contains("left out tcp://127.0.0.1:9: nobody listens"), "{}", gone.stderr);
}

fn on_one(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 2, 1);
    let file = scratch.join("written here");
    let script = "echo \"$DISTEST_TEST_WORKER\" > \"$1\"; cat \"$1\"";
    let path = file.display().to_string();
    let args = ["--on", "w2", "--", "sh", "-c", script, "sh", &path];
    let finished = exec(scratch, &workers, &args).finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(finished.stdout, "w2\n", "as it is, from one");
    // What a test writes would be gone.
    assert_eq!(std::fs::read_to_string(file).expect("it is kept"), "w2\n");
}

fn ends(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 2, 1);
    let script = "test $DISTEST_TEST_WORKER = w1 && exit 3; kill -9 $$";
    let finished = exec(scratch, &workers, &["--all", "--", "sh", "-c", script]).finish();
    finished.complains(1, &["w1 exited with 3", "w2 was killed by signal 9"]);
    let finished = exec(scratch, &workers, &["--on", "w1", "--", "no-such-program"]).finish();
    finished.complains(1, &["w1 exited with 127", "no-such-program"]);
}

fn permission(scratch: &Scratch) {
    let other = Scratch::new();
    let workers = [Worker::start(&other, "w1", 1)];
    let run = || exec(scratch, &workers, &["--on", "w1", "--", "echo", "there"]).finish();
    authorize(&other, scratch, "run,view,copy");
    let refused = run();
    refused.complains(1, &["permission `exec`", "authorized_keys"]);
    assert_eq!(refused.stdout, "");
    authorize(&other, scratch, "exec");
    assert_eq!(run().stdout, "there\n");
    // Which is not the one to run tests.
    let address = workers[0].address.as_str();
    let tests = ["run", "--local-slots", "0", "--worker", address];
    scratch.write("config/distest/config.toml", "[fleet]\nfallback = \"fail\"\n");
    let folder = crate::travel::package(scratch, "#[test] fn t() {}");
    let tests = Client::call(scratch, &folder, &tests).finish();
    tests.complains(97, &["permission `run`"]);
}

fn killed(scratch: &Scratch) {
    let workers = Worker::fleet(scratch, 1, 1);
    let running = exec(scratch, &workers, &["--on", "w1", "--", "sleep", "12345"]).start();
    let is_it = |line: &str| line.trim_end() == "sleep 12345";
    scratch.wait_for("the command", |stray| is_it(&stray.command_line));
    running.signal(Signal::SIGKILL);
    let left = scratch.left_after(crate::GONE_WITHIN, |stray| is_it(&stray.command_line));
    assert!(left.is_empty(), "{left:#?}");
}

fn cp(scratch: &Scratch, worker: &Worker, from: &str, to: &str) -> Finished {
    let args = ["cp", "--worker", &worker.address, from, to];
    Client::call(scratch, scratch.path(), &args).finish()
}

fn copies(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 1);
    // More than one piece, and a whole number of them.
    let sizes = [0, 7, 256 * 1024, 600_000];
    let there = scratch.join("there");
    std::fs::create_dir(&there).expect("a folder of ours");
    for size in sizes {
        let contents: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        let source = scratch.join("source");
        std::fs::write(&source, &contents).expect("a folder of ours");
        std::fs::set_permissions(&source, Permissions::from_mode(0o750)).expect("ours");
        let remote = format!("w1:{}/", there.display());
        let copied = cp(scratch, &worker, "source", &remote);
        assert_eq!(copied.code(), 0, "{}", copied.stderr);
        let copied = cp(scratch, &worker, &format!("{remote}source"), "back");
        assert_eq!(copied.code(), 0, "{}", copied.stderr);
        for path in [there.join("source"), scratch.join("back")] {
            assert!(std::fs::read(&path).expect("it is there") == contents, "{path:?}");
            let mode = path.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o750);
        }
    }
    assert_eq!(std::fs::read_dir(&there).expect("ours").count(), 1, "no other file");
    cp(scratch, &worker, "w1:/no/such", "x").complains(1, &["could not read /no/such there"]);
    cp(scratch, &worker, "source", "w1:/no/such").complains(1, &["could not write /no/such"]);
    cp(scratch, &worker, "source", "w2:/tmp/x").complains(97, &["no worker is called w2"]);
    cp(scratch, &worker, "source", "other").complains(2, &["NAME:/PATH"]);
    assert!(!scratch.join("x").exists());
}

/// A folder with whatever a folder may have, none of it readable by names alone.
fn folder(scratch: &Scratch, name: &str) -> PathBuf {
    let root = scratch.join(name);
    scratch.write(&format!("{name}/a file"), "one");
    scratch.write(&format!("{name}/deep/er/run.sh"), "two");
    scratch.write(&format!("{name}/closed/secret"), &"three".repeat(100_000));
    fs::create_dir(root.join("empty")).expect("ours");
    symlink("deep/er", root.join("inner")).expect("ours");
    symlink("/no/such/place", root.join("dangling")).expect("ours");
    for (path, mode) in [("deep/er/run.sh", 0o750), ("closed/secret", 0o400), ("closed", 0o500)] {
        fs::set_permissions(root.join(path), Permissions::from_mode(mode)).expect("ours");
    }
    root
}

/// All that lies in a folder: path, permissions, and a link's text or a file's contents.
fn listed(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("ours") {
            let path = entry.expect("ours").path();
            let about = fs::symlink_metadata(&path).expect("ours");
            let contents = if about.is_symlink() {
                fs::read_link(&path).expect("ours").into_os_string().into_encoded_bytes()
            } else if about.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).expect("ours")
            };
            let path = path.strip_prefix(root).expect("it lies there").to_owned();
            all.push((path, about.permissions().mode() & 0o777, contents));
        }
    }
    all.sort();
    all
}

/// So that a scratch folder can be removed by an ordinary user.
fn open_again(root: &Path) {
    fs::set_permissions(root.join("closed"), Permissions::from_mode(0o700)).expect("ours");
}

fn folders(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 1);
    let source = folder(scratch, "source");
    fs::create_dir(scratch.join("there")).expect("ours");
    let there = scratch.join("there").display().to_string();
    for to in [format!("w1:{there}/"), format!("w1:{there}")] {
        // The second time everything is there already.
        let copied = cp(scratch, &worker, "source", &to);
        assert_eq!(copied.code(), 0, "{}", copied.stderr);
    }
    let copied = cp(scratch, &worker, &format!("w1:{there}/source"), "back");
    assert_eq!(copied.code(), 0, "{}", copied.stderr);
    let expected = listed(&source);
    assert_eq!(expected.len(), 9);
    for copy in [scratch.join("there/source"), scratch.join("back")] {
        assert_eq!(listed(&copy), expected);
    }
    for root in [source, scratch.join("there/source"), scratch.join("back")] {
        open_again(&root);
    }
    // What is neither is told before anything is copied.
    let pipe = scratch.join("odd/pipe");
    fs::create_dir(scratch.join("odd")).expect("ours");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("ours");
    let odd = cp(scratch, &worker, "odd", &format!("w1:{there}/odd"));
    odd.complains(1, &["pipe is no file, folder or link"]);
    assert!(!scratch.join("there/odd").exists());
    cp(scratch, &worker, &format!("w1:{}", scratch.join("odd").display()), "odd2")
        .complains(1, &["pipe is no file, folder or link"]);
    assert!(!scratch.join("odd2").exists());
}

/// What `cp -r` does, there and here.
fn nests(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 1);
    scratch.write("source/sub/file", "new");
    scratch.write("file", "alone");
    let mode = |path: &str, mode: Option<u32>| {
        let path = scratch.join(path);
        if let Some(mode) = mode {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
        }
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    };
    mode("source", Some(0o755));
    for (side, from_there) in [("there", false), ("here", true)] {
        let far = |name: &str| format!("w1:{}", scratch.join(name).display());
        let copy = |from: &str, to: &str| {
            let to = format!("{side}/{to}");
            let (from, to) = match from_there {
                true => (far(from), to),
                false => (from.to_owned(), far(&to)),
            };
            let copied = cp(scratch, &worker, &from, &to);
            assert_eq!(copied.code(), 0, "{from} to {to}: {}", copied.stderr);
        };
        fs::create_dir(scratch.join(side)).expect("ours");
        let read = |name: &str| fs::read_to_string(scratch.join(side).join(name)).ok();
        // What isn't there becomes the copy; what is there has it inside.
        copy("source", "copy");
        assert_eq!(read("copy/sub/file").as_deref(), Some("new"));
        mode(&format!("{side}/copy"), Some(0o711));
        copy("source", "copy");
        copy("source", "copy/");
        assert_eq!(read("copy/source/sub/file").as_deref(), Some("new"));
        // What is inside already is merged, and what was there keeps its permissions.
        mode(&format!("{side}/copy/source/sub"), Some(0o750));
        copy("source", "copy");
        assert_eq!(mode(&format!("{side}/copy"), None), 0o711);
        assert_eq!(mode(&format!("{side}/copy/source/sub"), None), 0o750);
        assert_eq!(read("copy/source/source/sub/file"), None);
        copy("file", "copy");
        copy("file", "renamed");
        assert_eq!(
            (read("copy/file"), read("renamed")),
            (Some("alone".into()), Some("alone".into()))
        );
    }
    cp(scratch, &worker, "file", &format!("w1:{}/no/", scratch.path().display()))
        .complains(1, &["could not write"]);
}

fn stays_in_target(scratch: &Scratch) {
    let worker = Worker::start(scratch, "w1", 1);
    scratch.write("source/sub/file", "new");
    fs::create_dir(scratch.join("outside")).expect("ours");
    for target in ["target/source", "mine/source"] {
        fs::create_dir_all(scratch.join(target)).expect("ours");
        symlink(scratch.join("outside"), scratch.join(target).join("sub")).expect("ours");
    }
    let remote = |name: &str| format!("w1:{}", scratch.join(name).display());
    let to = cp(scratch, &worker, "source", &remote("target"));
    to.complains(1, &["could not write", "target/source/sub"]);
    let from = cp(scratch, &worker, &remote("source"), "mine");
    from.complains(1, &["could not write mine/source/sub"]);
    assert_eq!(fs::read_dir(scratch.join("outside")).expect("ours").count(), 0);
}

/// There and back, by whatever leads to a worker of that name.
fn there_and_back(scratch: &Scratch, args: &[&str], name: &str, change: &[(&str, &Path)]) {
    let there = scratch.join("copied");
    to_and_from(scratch, args, &format!("{name}:{}", there.display()), change);
    open_again(&there);
}

/// The same by a path there that may be another machine's.
fn to_and_from(scratch: &Scratch, args: &[&str], remote: &str, change: &[(&str, &Path)]) {
    let source = folder(scratch, "source");
    for (from, to) in [("source", remote), (remote, "back")] {
        let args = [&["cp"], args, &[from, to]].concat();
        let mut client = Client::call(scratch, scratch.path(), &args);
        for (name, value) in change {
            client = client.env(name, value.as_os_str());
        }
        let finished = client.finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
    }
    assert_eq!(listed(&scratch.join("back")), listed(&source));
    for root in [source, scratch.join("back")] {
        open_again(&root);
    }
}

/// A worker that a registry names.
fn registered(scratch: &Scratch) -> (Registry, Worker) {
    let registry = Registry::start(scratch, "127.0.0.1:0", &[]);
    let store = scratch.join("store");
    let worker = Worker::start_changed(scratch, "w1", 1, &store, Executable::Worker, |command| {
        command.args(["--register", registry.socket()]);
    });
    assert_eq!(worker.name, "w1");
    let registered = what_stays(DEADLINE, || {
        let args = ["workers", "--worker", &registry.address, "--on", "w1"];
        let told = Client::call(scratch, scratch.path(), &args).finish().stdout;
        if told.contains("registry") { vec![] } else { vec![told] }
    });
    assert!(registered.is_empty(), "{registered:?}");
    (registry, worker)
}

fn exec_through_registry(scratch: &Scratch) {
    let (registry, _worker) = registered(scratch);
    for which in [&["--on", "w1"][..], &["--all"]] {
        let args = [&["exec", "--worker", &registry.address], which, &["--", "echo", "there"]];
        let told = Client::call(scratch, scratch.path(), &args.concat()).finish();
        assert_eq!((told.code(), told.stdout.as_str()), (0, "there\n"), "{}", told.stderr);
    }
}

/// A worker that dials this port, again and again.
fn joiner(scratch: &Scratch, port: u16, name: &str) -> Owned {
    let mut command = scratch.command(&product().worker);
    command.args(["join", &format!("127.0.0.1:{port}"), "--name", name, "--slots", "1"]);
    command.args(["--store".as_ref(), scratch.join(format!("store-{name}")).as_os_str()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Owned::start(&mut command).expect("a program of ours")
}

fn exec_on_joiners(scratch: &Scratch) {
    // Two on one address, one on another.
    let ports = [free_port(), free_port()];
    let _joiners = [(ports[0], "w1"), (ports[0], "w2"), (ports[1], "w3")]
        .map(|(port, name)| joiner(scratch, port, name));
    let addresses = ports.map(|port| format!("listen://127.0.0.1:{port}"));
    // Somebody who says nothing keeps nobody out.
    let call = |which: &[&str]| {
        let workers = ["--worker", &addresses[0], "--worker", &addresses[1]];
        let command = ["--", "sh", "-c", "echo $DISTEST_TEST_WORKER"];
        Client::call(scratch, scratch.path(), &[&["exec"], &workers[..], which, &command].concat())
            .finish()
    };
    for name in ["w1", "w2", "w3"] {
        let told = call(&["--on", name]);
        assert_eq!((told.code(), told.stdout), (0, format!("{name}\n")), "{}", told.stderr);
    }
    let told = call(&["--all"]);
    assert_eq!(told.code(), 0, "{}", told.stderr);
    assert_eq!(sorted(&told.stdout), ["w1 | w1", "w2 | w2", "w3 | w3"]);
}

fn exec_through_ssh(scratch: &Scratch) {
    let sshd = Sshd::start(scratch);
    let call = |which: &[&str], ssh: &Path| {
        let command = ["--", "sh", "-c", "echo there; exit 3"];
        let args = [&["exec", "--worker", &sshd.address], which, &command].concat();
        let client = Client::call(scratch, scratch.path(), &args);
        client.env("DISTEST_SSH", ssh.as_os_str()).finish()
    };
    let own = nix::sys::utsname::uname().expect("it has a name").nodename().to_owned();
    let own = own.to_str().expect("readable");
    for which in [&["--on", "127.0.0.1"][..], &["--on", own], &["--all"]] {
        let told = call(which, &sshd.client);
        assert_eq!(told.stdout, "there\n", "{which:?}: {}", told.stderr);
        told.complains(1, &["exited with 3"]);
    }
    call(&["--on", "w7"], Path::new("/no/such/ssh"))
        .complains(97, &["no worker is called w7", "behind ssh", "/no/such/ssh"]);
    let left = scratch.left_after(crate::GONE_WITHIN, |stray| stray.pid != sshd.pid());
    assert!(left.is_empty(), "processes left behind: {left:#?}");
}

fn through_registry(scratch: &Scratch) {
    let (registry, _worker) = registered(scratch);
    there_and_back(scratch, &["--worker", &registry.address], "w1", &[]);
}

fn from_joiner(scratch: &Scratch) {
    let port = free_port();
    let _joiner = joiner(scratch, port, "w1");
    let address = format!("listen://127.0.0.1:{port}");
    there_and_back(scratch, &["--worker", &address], "w1", &[]);
}

/// A worker of another user, on a machine of its own, whose address nobody has typed or kept.
fn in_local_network(scratch: &Scratch) {
    let plan = Plan::new(scratch).with(&["--mdns"]).permitting("exec,copy");
    let (_worker, _link, invitation) = plan.start_inviting(scratch, "w1");
    let call = |args: &[&str]| Client::call(scratch, scratch.path(), args).finish();
    let added = call(&["workers", "add", &invitation]);
    assert_eq!(added.code(), 0, "{}", added.stderr);
    let list = scratch.join("config/distest/known_workers");
    let known = fs::read_to_string(&list).expect("it was added");
    let words: Vec<&str> = known.split_whitespace().collect();
    let [key, _, "w1"] = words[..] else { panic!("odd: {known}") };
    fs::write(&list, format!("{key} - w1\n")).expect("ours");
    call(&["exec", "--on", "w1", "--", "true"]).complains(97, &["it dials this machine"]);
    for which in [&["--on", "w1"][..], &["--all"]] {
        let command = ["--", "sh", "-c", "echo $DISTEST_TEST_WORKER of $(id -u)"];
        let told = call(&[&["exec", "--worker", "mdns"], which, &command].concat());
        let expected = format!("w1 of {NOBODYS_ID}\n");
        assert_eq!((told.code(), told.stdout), (0, expected), "{}", told.stderr);
    }
    to_and_from(scratch, &["--worker", "mdns"], "w1:/mnt/home/copied", &[]);
    // It lies there, not here.
    assert!(!Path::new("/mnt/home/copied").exists());
    let listed =
        ["exec", "--worker", "mdns", "--on", "w1", "--", "cat", "/mnt/home/copied/inner/run.sh"];
    assert_eq!(call(&listed).stdout, "two");
}

fn through_ssh(scratch: &Scratch) {
    let sshd = Sshd::start(scratch);
    let change = [("DISTEST_SSH", sshd.client.as_path())];
    there_and_back(scratch, &["--worker", &sshd.address], "127.0.0.1", &change);
    let left = scratch.left_after(crate::GONE_WITHIN, |stray| stray.pid != sshd.pid());
    assert!(left.is_empty(), "processes left behind: {left:#?}");
}

fn copies_by_permission(scratch: &Scratch) {
    let other = Scratch::new();
    let worker = Worker::start(&other, "w1", 1);
    let secret = other.write("secret", "a secret");
    let remote = format!("w1:{}", secret.display());
    authorize(&other, scratch, "run,exec,view,admin");
    let refused = || cp(scratch, &worker, &remote, "mine");
    refused().complains(1, &["permission `copy`", "authorized_keys"]);
    scratch.write("mine", "mine");
    cp(scratch, &worker, "mine", &remote).complains(1, &["permission `copy`"]);
    scratch.write("folder/f", "mine");
    let folder = format!("w1:{}", other.join("folder").display());
    cp(scratch, &worker, "folder", &folder).complains(1, &["permission `copy`"]);
    assert!(!other.join("folder").exists());
    assert_eq!(std::fs::read_to_string(secret).expect("it is there"), "a secret");
}

fn nobody(scratch: &Scratch) {
    let told = |args: &[&str]| -> Finished { exec(scratch, &[], args).finish() };
    told(&["--all", "--", "true"]).complains(97, &["no worker is there"]);
    let workers = Worker::fleet(scratch, 1, 1);
    let finished = exec(scratch, &workers, &["--on", "w7", "--", "true"]).finish();
    finished.complains(97, &["no worker is called w7"]);
    told(&["--", "true"]).complains(2, &["--on", "--all"]);
}
