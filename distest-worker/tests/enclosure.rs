//! What processes in a sandbox find and can do, with real zygotes. A level that can't be had here is
//! named as ignored.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use distest_worker::executor::{
    Deadline, ExecutorOptions, Listener, SlotCommand, SlotEvent, SlotExit, Slots, SpawnRequest,
};
use distest_worker::probe::probe;
use distest_worker::protocol::{AttemptId, Exit, FORWARDS_MAX, Forward, Network, SlotId, Streams};
use distest_worker::sandbox::changes::ChangeKind;
use distest_worker::sandbox::enclosure::{Enclosure, can_fence};
use distest_worker::sandbox::host::Host;
use distest_worker::sandbox::level::Level;
use distest_worker::zygote::ZygoteProgram;
use libtest_mimic::{Arguments, Completion, Trial};
use nix::unistd::geteuid;
use tokio::sync::mpsc;

const SLOT: SlotId = SlotId(0);
const PATIENCE: Duration = Duration::from_secs(60);
const WRITES_BYTES_MAX: u64 = 8 << 20;
/// Where a client's services listen: in folders that exist here or don't, can be written or not.
const SOCKETS: [&str; 5] = [
    "/etc/distest-test.sock",
    "/nowhere/at all/proj/of the tree.sock",
    "/run/distest test/a folder/s",
    "/srv of nobody/s",
    "/tmp/a folder/s",
];

struct Rig {
    dir: tempfile::TempDir,
    slots: Slots,
    events: mpsc::Receiver<SlotEvent>,
    attempts: u64,
    /// What attempts see from now on.
    network: Network,
    forwards: Vec<Forward>,
    /// Where the attempt before looked for services.
    listeners: Vec<Listener>,
}

macro_rules! cases {
    ($($test:ident if $possible:expr,)*) => {
        [$(at_each_level(stringify!($test), $possible, $test)),*]
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = cases![
        nobody_outside_is_within_a_signals_reach if fenced,
        the_clients_paths_are_there_and_writes_are_discarded if at_all,
        what_was_written_is_told if at_all,
        private_folders_are_empty_and_can_be_written if at_all,
        terminals_can_be_made if at_all,
        a_folder_that_has_travelled_can_be_renamed if lets_rename,
        nothing_of_the_machine_can_be_written if at_all,
        shared_memory_of_system_v_is_not_the_machines if at_all,
        what_is_hidden_is_empty if at_all,
        a_full_layer_is_one_tests_misfortune if at_all,
        survivors_are_named_and_gone if at_all,
        a_root_may_lie_in_a_private_folder if at_all,
        an_attempt_has_a_network_of_its_own_if_it_is_to if at_all,
        services_are_where_an_attempt_looks_and_nowhere_once_it_has_ended if at_all,
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// A case for each level that it is about. Where `possible`, or this machine, says why it can't be
/// carried out, it is named as ignored; with `CI=true` and as root that is a failure.
fn at_each_level<T>(name: &str, possible: Possible, test: T) -> Vec<Trial>
where
    T: AsyncFn(&mut Rig, Level) + Copy + Send + 'static,
{
    let levels = [Level::Namespaces, Level::Root, Level::Mounts].into_iter();
    let trial = |level| {
        let (possible, name) = (possible(level)?, format!("{name}::{level:?}"));
        Some(Trial::ignorable_test(name, move || match possible.and_then(|()| host_at(level)) {
            Ok((dir, host)) => {
                at(level, dir, host, test);
                Ok(Completion::Completed)
            }
            Err(why) if geteuid().is_root() && env::var("CI").is_ok_and(|ci| ci == "true") => {
                Err(format!("may not be left out here: {why}").into())
            }
            Err(why) => Ok(Completion::ignored_with(why)),
        }))
    };
    levels.filter_map(trial).collect()
}

/// None where there is nothing to show at a level; else whether it can be shown here.
type Possible = fn(Level) -> Option<Result<(), String>>;

fn at_all(_: Level) -> Option<Result<(), String>> {
    Some(Ok(()))
}

fn fenced(level: Level) -> Option<Result<(), String>> {
    Some(match level.has_pid_namespace() || can_fence() {
        true => Ok(()),
        false => Err("this kernel fences nobody: Landlock does since Linux 6.12".to_owned()),
    })
}

/// Others can't keep a folder of the client's from being renamed by halves.
fn lets_rename(level: Level) -> Option<Result<(), String>> {
    (level == Level::Root).then_some(Ok(()))
}

/// This machine as a worker at that level sees it, with something secret in a folder of its own.
fn host_at(level: Level) -> Result<(tempfile::TempDir, Host), String> {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "secret").unwrap();
    let mut host = Host::of_this_process(std::slice::from_ref(&secret));
    probe(&mut host, &zygote(), dir.path(), level);
    match host.level == level {
        true => Ok((dir, host)),
        false => Err(format!("{level} can't be had: {:?}", host.shortfall)),
    }
}

fn zygote() -> ZygoteProgram {
    ZygoteProgram::new(env!("CARGO_BIN_EXE_distest-worker"))
}

/// A slot at one level; the client's root `/nowhere/at all/proj` holds a file and a script.
fn at(level: Level, dir: tempfile::TempDir, host: Host, test: impl AsyncFnOnce(&mut Rig, Level)) {
    let proj = dir.path().join("lower/nowhere/at all/proj");
    fs::create_dir_all(&proj).unwrap();
    fs::create_dir(dir.path().join("mount")).unwrap();
    fs::write(proj.join("file"), "old").unwrap();
    fs::create_dir_all(dir.path().join("lower/tmp/of the client")).unwrap();
    fs::write(dir.path().join("lower/tmp/of the client/file"), "in tmp\n").unwrap();
    let enclosure = Enclosure {
        level,
        mount_point: dir.path().join("mount"),
        lower: dir.path().join("lower"),
        roots: vec!["/nowhere/at all/proj".into(), "/tmp/of the client".into()],
        hidden: host.hidden,
        shown: host.shown,
        home: host.home,
        sockets: SOCKETS.map(PathBuf::from).to_vec(),
        writes_bytes_max: WRITES_BYTES_MAX,
        check: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ExecutorOptions {
            scratch: dir.path().into(),
            zygote: zygote(),
            enclosure: Some(Arc::new(enclosure)),
            wanted: None,
            deadline: Arc::new(Deadline::new().unwrap()),
        };
        let (sender, events) = mpsc::channel(16);
        let slots = Slots::start(1, options, sender);
        let (network, forwards, listeners) = (Network::Host, Vec::new(), Vec::new());
        let mut rig = Rig { dir, slots, events, attempts: 0, network, forwards, listeners };
        tokio::time::timeout(PATIENCE, test(&mut rig, level)).await.expect("the test hangs");
        tokio::time::timeout(PATIENCE, rig.slots.end()).await.expect("the slot doesn't end");
    });
}

impl Rig {
    async fn run(&mut self, layer: u64, script: &str) -> SlotExit {
        self.attempts += 1;
        let request = SpawnRequest {
            attempt: AttemptId(self.attempts),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: ["PATH", "HOME"]
                .map(|name| (name.into(), env::var_os(name).unwrap_or_default()))
                .into_iter()
                .collect(),
            cwd: "/nowhere/at all/proj".into(),
            streams: Streams::Capture,
            progress: false,
            leak_timeout: Duration::from_millis(50),
            layer,
            network: self.network,
            forwards: self.forwards.clone(),
        };
        self.slots.command(SLOT, SlotCommand::Spawn(Box::new(request)));
        loop {
            match self.events.recv().await.unwrap() {
                SlotEvent::Exited(exit) => return *exit,
                SlotEvent::Spawned { listeners, .. } => {
                    self.listeners = listeners;
                    self.listeners.iter().for_each(answer_once);
                }
                SlotEvent::Ready { .. } => {}
                other => panic!("{other:?} instead of an exit"),
            }
        }
    }

    /// Runs a script that must end well, and gives what it printed.
    async fn output(&mut self, layer: u64, script: &str) -> String {
        let exit = self.run(layer, script).await;
        let (stdout, stderr) = (text(&exit.stdout), text(&exit.stderr));
        assert_eq!(exit.exit, Exit::Code(0), "{script}:\n{stdout}\n{stderr}");
        stdout
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}

/// Answers the next line that comes in at a port, before it is closed.
fn answer_once(listener: &Listener) {
    let Forward::Port(42) = listener.forward else { return };
    let listener = TcpListener::from(listener.socket.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut line = String::new();
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        write!(stream, "heard {line}").unwrap();
    });
}

fn text(capture: &distest_worker::output::Capture) -> String {
    String::from_utf8_lossy(&capture.to_output().inline).into_owned()
}

async fn nobody_outside_is_within_a_signals_reach(rig: &mut Rig, level: Level) {
    let outside = std::process::id();
    let mut script = format!("! kill -0 {outside} && {{ sleep 60 & }} && kill $! && ! wait $!");
    if level == Level::Mounts {
        script.push_str(" && ! kill -0 $PPID");
        // What it is copied from, from the third on.
        script.push_str(" && for other in $(cat /proc/$PPID/task/$PPID/children); do");
        script.push_str(" [ $other = $$ ] || ! kill -0 $other || exit 1; done");
    }
    for _ in 0..3 {
        rig.output(0, &script).await;
    }
}

async fn the_clients_paths_are_there_and_writes_are_discarded(rig: &mut Rig, level: Level) {
    let script =
        "pwd; cat '/nowhere/at all/proj/file'; echo new > file; cat file; mkdir d; rm file";
    let expected = "/nowhere/at all/proj\noldnew\n";
    assert_eq!(rig.output(1, script).await, expected, "{level}");
    let shared = rig.output(1, "test -d d && test ! -e file && echo shared").await;
    assert_eq!(shared, "shared\n", "an equal layer");
    assert_eq!(rig.output(2, script).await, expected, "another layer");
    let lower = rig.outside("lower/nowhere/at all/proj/file");
    assert_eq!(fs::read_to_string(lower).unwrap(), "old");
    assert!(!Path::new("/nowhere").exists());
}

async fn what_was_written_is_told(rig: &mut Rig, level: Level) {
    let exit = rig.run(1, "echo new > file; echo more > 'b ö'; mkdir d").await;
    let written = exit.written.unwrap();
    // It can be read when the sandbox is gone, too.
    rig.output(2, "true").await;
    let changes = written.list().unwrap();
    let told: Vec<_> = changes.iter().map(|change| change.path.to_str().unwrap()).collect();
    let proj = "/nowhere/at all/proj";
    let names = ["", "/b ö", "/d", "/file"].map(|name| format!("{proj}{name}"));
    let expected = [&["/nowhere".into(), "/nowhere/at all".into()][..], &names].concat();
    assert_eq!(told, expected, "{level}");
    let file = changes.last().unwrap();
    assert!(matches!(file.kind, ChangeKind::File { size: 4, .. }), "{:?}", file.kind);
    let mut text = String::new();
    written.open(&file.path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "new\n");
}

async fn private_folders_are_empty_and_can_be_written(rig: &mut Rig, level: Level) {
    for folder in ["/tmp", "/var/tmp", "/dev/shm", "\"$HOME\""] {
        // Programs of PATH that lie in the home, and what holds the client's, are there.
        let found = "grep -v -e '^.cargo$' -e '^.rustup$' -e '^.pyenv$' -e '^of the client$'";
        let script = format!("ls -A {folder} | {found}; echo x > {folder}/x && cat {folder}/x");
        assert_eq!(rig.output(1, &script).await, "x\n", "{folder} at {level}");
    }
    let tools = "command -v ls; echo > /dev/null; head -c 1 /dev/urandom | wc -c";
    assert!(rig.output(1, tools).await.ends_with("1\n"), "{level}");
}

async fn terminals_can_be_made(rig: &mut Rig, level: Level) {
    // Whoever opens the first makes the second.
    let script = "exec 3<>/dev/ptmx && ls /dev/pts | grep -c '^[0-9]'";
    let count = rig.output(1, script).await;
    assert!(count.trim().parse::<u32>().is_ok_and(|count| count > 0), "{level}: {count}");
    if geteuid().is_root() {
        assert_eq!(count.trim(), "1", "{level}: none of the machine's");
    }
}

async fn a_folder_that_has_travelled_can_be_renamed(rig: &mut Rig, _: Level) {
    let folder = rig.outside("lower/nowhere/at all/proj/folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("within"), "travelled").unwrap();
    // A shell's own way would copy it.
    let script = "perl -e 'rename(\"folder\", \"renamed\") or die $!' && cat renamed/within";
    assert_eq!(rig.output(1, script).await, "travelled");
    assert_eq!(rig.output(1, "ls -d folder 2>/dev/null; true").await, "");
}

async fn nothing_of_the_machine_can_be_written(rig: &mut Rig, level: Level) {
    let here = env!("CARGO_MANIFEST_DIR");
    let script = format!(
        "for d in / /usr /etc /nowhere '/nowhere/at all' '{here}'; do \
         touch \"$d/distest-was-here\" 2>/dev/null && echo \"$d\"; done; true"
    );
    assert_eq!(rig.output(1, &script).await, "", "{level}");
    let unmount = "umount /tmp 2>/dev/null && echo unmounted; \
                   mount -o remount,rw /usr 2>/dev/null && echo remounted; true";
    assert_eq!(rig.output(1, unmount).await, "", "{level}");
    // Opened, not written: should it succeed, this machine stays as it is.
    let settings = "for f in sys/kernel/core_pattern sys/vm/drop_caches sysrq-trigger; do \
                    (: >> /proc/$f) 2>/dev/null && echo $f; done; true";
    assert_eq!(rig.output(1, settings).await, "", "{level}");
}

async fn shared_memory_of_system_v_is_not_the_machines(rig: &mut Rig, level: Level) {
    let here = fs::read_link("/proc/self/ns/ipc").unwrap().display().to_string();
    let inside = rig.output(1, "readlink /proc/self/ns/ipc").await;
    assert!(inside.starts_with("ipc:") && inside.trim() != here, "{level}: {inside}");
}

async fn what_is_hidden_is_empty(rig: &mut Rig, level: Level) {
    // It lies in /tmp, which is another inside.
    let secret = rig.outside("secret/key");
    assert!(secret.exists());
    let script =
        format!("cat '{}' 2>/dev/null; ls -A /.distest 2>/dev/null; true", secret.display());
    assert_eq!(rig.output(1, &script).await, "", "{level}");
    // Neither through this process, which has the same user.
    let through =
        format!("cat /proc/{}/root/{} 2>/dev/null; true", std::process::id(), secret.display());
    assert_eq!(rig.output(1, &through).await, "", "{level}");
}

async fn a_full_layer_is_one_tests_misfortune(rig: &mut Rig, level: Level) {
    let fill = "head -c 100000000 /dev/zero > big";
    let exit = rig.run(1, fill).await;
    assert_eq!(exit.exit, Exit::Code(1), "{level}");
    assert!(text(&exit.stderr).contains("No space left"), "{}", text(&exit.stderr));
    let next = rig.output(1, "test ! -e big; head -c 1000000 /dev/zero > big && echo fits").await;
    assert_eq!(next, "fits\n", "the same layer at {level}");
    // 8 MiB hold a thousand files, however small.
    let many = "i=0; while [ $i -lt 2000 ]; do : > f$i || exit 1; i=$((i+1)); done";
    let exit = rig.run(1, many).await;
    assert_ne!(exit.exit, Exit::Code(0), "{level}");
    assert!(text(&exit.stderr).contains("No space left"), "{}", text(&exit.stderr));
    assert_eq!(rig.output(1, "test ! -e f0 && : > f0 && echo fits").await, "fits\n");
}

async fn survivors_are_named_and_gone(rig: &mut Rig, level: Level) {
    let script = "setsid sh -c 'sleep 600 & sleep 600' > /dev/null 2>&1 < /dev/null & sleep 0.01";
    let leak = rig.run(1, script).await.leak.unwrap();
    let sleeps = leak.processes.iter().filter(|it| it.starts_with("sleep (pid ")).count();
    assert_eq!(sleeps, 2, "{:?} at {level}", leak.processes);
    let left = "for p in /proc/[0-9]*/comm; do cat $p 2>/dev/null; done | grep -c sleep; true";
    if level.has_pid_namespace() {
        assert_eq!(rig.output(1, left).await, "0\n", "{level}");
    }
    // No test is pid 1, which ignores signals.
    assert_ne!(rig.output(1, "echo $$").await, "1\n");
    let exit = rig.run(1, "kill -ABRT $$").await;
    assert_eq!(exit.exit, Exit::Signal(6), "{level}");
    assert_eq!(exit.leak, None);
}

async fn a_root_may_lie_in_a_private_folder(rig: &mut Rig, level: Level) {
    let script = "cat '/tmp/of the client/file'; stat -c %a /tmp; ls /tmp";
    assert_eq!(rig.output(1, script).await, "in tmp\n1777\nof the client\n", "{level}");
}

/// What a network has: its interfaces, and what it is.
const INTERFACES: &str =
    "sed -n 's/^ *\\([^ ]*\\):.*/\\1/p' /proc/net/dev; readlink /proc/self/ns/net";

async fn an_attempt_has_a_network_of_its_own_if_it_is_to(rig: &mut Rig, level: Level) {
    let here = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let of_host = rig.output(1, INTERFACES).await;
    assert!(of_host.ends_with(&format!("{here}\n")), "{level}: {of_host}");
    rig.output(1, "echo kept > file").await;
    rig.network = Network::Private;
    let first = rig.output(1, INTERFACES).await;
    let second = rig.output(1, "cat file").await;
    assert_eq!(second, "kept\n", "{level}: the sandbox is the same");
    let third = rig.output(1, INTERFACES).await;
    for own in [&first, &third] {
        assert!(own.starts_with("lo\nnet:") && *own != of_host, "{level}: {own}");
    }
    for _ in 0..2 {
        let shown = "cat /sys/class/net/lo/operstate; ls /sys/class/net /sys/devices/virtual/net";
        let expected = "unknown\n/sys/class/net:\nlo\n\n/sys/devices/virtual/net:\nlo\n";
        assert_eq!(rig.output(1, shown).await, expected, "{level}");
    }
    // Three for the interfaces, whatever else there is.
    let mounts = "grep -c -e ' /sys/class/net ' -e ' /sys/devices/virtual/net ' /proc/self/mounts";
    assert_eq!(rig.output(1, mounts).await, "3\n", "{level}");
    let written = rig.run(1, "echo 1 > /sys/class/net/lo/mtu").await;
    assert_ne!(written.exit, Exit::Code(0), "{level}");
    // A loopback interface has this address as soon as it is up.
    let addresses = rig.output(1, "cat /proc/net/fib_trie").await;
    assert!(addresses.contains("127.0.0.1"), "{level}: {addresses}");
    rig.network = Network::Host;
    // The host's interfaces come and go, its network stays.
    let back = rig.output(1, INTERFACES).await;
    assert!(back.ends_with(&format!("{here}\n")), "{level}: and back: {back}");
}

async fn services_are_where_an_attempt_looks_and_nowhere_once_it_has_ended(
    rig: &mut Rig,
    level: Level,
) {
    let sockets = |test: &str| {
        let tests = SOCKETS.map(|path| format!("{test} '{path}' || echo 'not so: {path}'"));
        tests.join("\n")
    };
    let call = "bash -c 'for host in 127.0.0.1 ::1; do exec 3<>/dev/tcp/$host/42; \
                echo $host >&3; read -r answer <&3; echo $answer; done'";
    assert_eq!(rig.output(1, &sockets("test ! -e")).await, "", "{level}");
    rig.network = Network::Private;
    let forwards = SOCKETS.map(|path| Forward::Socket(path.into()));
    // As many as there may be.
    let ports = (42..42 + (FORWARDS_MAX - SOCKETS.len()) as u16).map(Forward::Port);
    rig.forwards = forwards.into_iter().chain(ports).collect();
    for attempt in 0..2 {
        let told = rig.output(1, &format!("{}\n{call}", sockets("test -S"))).await;
        assert_eq!(told, "heard 127.0.0.1\nheard ::1\n", "{level}, attempt {attempt}");
        // One for each socket, and two for each port.
        let named = rig.listeners.iter().map(|listener| listener.forward.clone());
        let expected = rig.forwards.iter().flat_map(|forward| match forward {
            Forward::Port(_) => vec![forward.clone(), forward.clone()],
            Forward::Socket(_) => vec![forward.clone()],
        });
        assert!(named.eq(expected), "{level}: {:?}", rig.listeners);
    }
    // What it finds is its own to remove; the next one's is there all the same.
    rig.output(1, "rm '/tmp/a folder/s' && mkdir -p '/tmp/a folder/x'").await;
    assert_eq!(rig.output(1, &sockets("test -S")).await, "", "{level}");
    rig.forwards.clear();
    assert_eq!(rig.output(1, &sockets("test ! -e")).await, "", "{level}");
}
