//! What is started again and again is copied from a template, and can't tell.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::iter;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgrp, getpid};

use super::*;

/// Bytes of an argument and of a variable that are too many for a template, together.
const TOO_LONG: usize = 100_000;
const TELL: &str = "DISTEST_TEST_TELL";

/// Everything that a process can find out about itself and that was given to it.
#[test]
fn a_copy_is_as_what_was_executed() {
    if std::env::var_os(TELL).is_some() {
        return tell();
    }
    with_slot(async |rig| {
        // Longer and shorter than before: nothing may remain of the one before.
        let lengths = [10, 10, 3_000, 5, 9_000, 10, TOO_LONG, 10];
        let mut known: Option<Told> = None;
        for (round, length) in lengths.into_iter().enumerate() {
            let mut request = telling(rig);
            request.args.push("x".repeat(length).into());
            request.env.set("LENGTH", "y".repeat(length));
            let args = request.args.iter().map(|arg| arg.to_str().unwrap());
            let cmdline = iter::once(request.program.to_str().unwrap())
                .chain(args)
                .fold(String::new(), |text, arg| text + arg + "\0");
            let environ = request.env.iter().fold(String::new(), |text, (name, value)| {
                format!("{text}{}={}\0", name.display(), value.display())
            });
            let told = told_by(&rig.run_request(request).await);
            assert_eq!(told.cmdline, summary(&cmdline), "round {round}");
            assert_eq!(told.environ, summary(&environ), "round {round}");
            let before = known.get_or_insert_with(|| told.clone());
            assert_eq!(told.same, before.same, "round {round}");
            // Addresses are drawn anew for what is executed, and not for what is copied.
            if cfg!(target_arch = "x86_64") && round > 1 && length < TOO_LONG {
                assert_eq!(told.loader, before.loader, "round {round} was not copied");
            }
            if round == 1 {
                known = Some(told);
            }
        }
    });
}

#[test]
fn what_is_replaced_is_executed_anew() {
    with_slot(async |rig| {
        let program = rig.scratch.path().join("program");
        for name in ["true", "false"] {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(name))
                .find(|path| path.exists())
                .unwrap();
            let fresh = rig.scratch.path().join("fresh");
            fs::copy(found, &fresh).unwrap();
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(&fresh, &program).unwrap();
            for round in 0..3 {
                let mut request = rig.script("", Streams::Capture);
                request.program.clone_from(&program);
                request.args.clear();
                let code = i32::from(name == "false");
                assert_eq!(rig.run_request(request).await.exit, Exit::Code(code), "{name} {round}");
            }
        }
    });
}

/// A test may kill whatever runs as its user.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "there are no templates")]
fn a_killed_template_is_made_anew() {
    with_slot(async |rig| {
        let mut loaders = BTreeSet::new();
        for _ in 0..3 {
            for _ in 0..4 {
                let told = told_by(&run_telling(rig).await);
                loaders.insert(told.loader);
                let own = told.pid;
                let siblings = told.siblings.into_iter().filter(|pid| *pid != own);
                for sibling in siblings.filter(|_| loaders.len() % 2 == 0) {
                    kill(Pid::from_raw(sibling), Signal::SIGKILL).unwrap();
                    wait_until_dead(sibling);
                }
            }
        }
        assert!(loaders.len() > 2, "{loaders:?}");
    });
}

/// Nothing is heard of it, so the next start is an execution, in which nobody waits for long.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "there are no templates")]
fn a_stopped_template_is_given_up() {
    with_slot(async |rig| {
        let (_, second) = (run_telling(rig).await, told_by(&run_telling(rig).await));
        let template = second.siblings.iter().find(|pid| **pid != second.pid).copied().unwrap();
        kill(Pid::from_raw(template), Signal::SIGSTOP).unwrap();
        let third = told_by(&run_telling(rig).await);
        assert_ne!(third.loader, second.loader);
        assert_eq!(third.siblings, [third.pid], "and there is none any more");
        assert!(!is_alive(template));
    });
}

/// A leak is the attempt's processes, and the template is none of them.
#[test]
fn a_template_is_no_leak() {
    with_slot(async |rig| {
        for round in 0..4 {
            let leak = rig.run("sleep 1000 & exit 3").await.leak.expect("it has left something");
            let names: Vec<_> =
                leak.processes.iter().filter_map(|name| name.split(' ').next()).collect();
            assert_eq!(names, ["sleep"], "round {round}");
            let quiet = rig.run("exit 4").await;
            assert_eq!((quiet.exit, quiet.leak), (Exit::Code(4), None), "round {round}");
        }
    });
}

async fn run_telling(rig: &mut Rig) -> SlotExit {
    let request = telling(rig);
    rig.run_request(request).await
}

/// This executable, as the one of [`tell`].
fn telling(rig: &mut Rig) -> SpawnRequest {
    let mut request = rig.script("", Streams::Capture);
    request.program = std::env::current_exe().unwrap();
    let name = "template::a_copy_is_as_what_was_executed";
    request.args = ["--exact", name, "--nocapture"].map(OsString::from).into();
    request.env.set(TELL, "yes");
    request
}

#[derive(Clone, Debug)]
struct Told {
    cmdline: String,
    environ: String,
    same: String,
    loader: String,
    pid: i32,
    siblings: Vec<i32>,
}

/// Prints a line for each field of [`Told`].
fn tell() {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap();
    // Of this thread: another may be starting one just now, for which it blocks signals.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let kept = ["Umask", "TracerPid", "Uid", "Gid", "Groups", "Threads", "SigPnd", "ShdPnd"];
    let more =
        ["SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"];
    let mut same = String::new();
    for line in status.lines() {
        let name = line.split(':').next().unwrap();
        // The C library's own two signals are ignored in what posix_spawn starts.
        let line = line.replace("0000000180000000", "0000000000000000");
        if kept.contains(&name) || more.contains(&name) {
            write!(same, "{} ", line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
                .unwrap();
        }
    }
    let mut descriptors: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    descriptors.sort();
    let exe = fs::read_link("/proc/self/exe").unwrap();
    let cwd = std::env::current_dir().unwrap();
    let leads = getpgrp() == getpid();
    let own_args = std::env::args().next().unwrap();
    assert_eq!(nix::sys::prctl::get_dumpable(), Ok(true));
    // The C library knows its threads.
    let other = std::thread::spawn(|| std::thread::current().id());
    assert_ne!(other.join().unwrap(), std::thread::current().id());
    let limits = read("limits").split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    write!(
        same,
        "{descriptors:?} {exe:?} {cwd:?} {leads} {own_args} {} {} {limits}",
        read("comm").trim(),
        read("oom_score_adj").trim(),
    )
    .unwrap();
    let maps = read("maps");
    let loader = maps.lines().find(|line| line.contains("/ld-")).unwrap_or_default();
    let loader = loader.split('-').next().unwrap();
    let parent = std::os::unix::process::parent_id();
    let siblings = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let lines = [
        ("cmdline", summary(&read("cmdline"))),
        ("environ", summary(&read("environ"))),
        ("same", same),
        ("loader", loader.to_owned()),
        ("pid", std::process::id().to_string()),
        ("siblings", siblings),
    ];
    let mut stdout = std::io::stdout();
    for (name, value) in lines {
        writeln!(stdout, "\ntold {name}={value}").unwrap();
    }
}

/// A long text in short: its beginning, length and hash.
fn summary(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let begin: String = text.replace('\0', " ").chars().take(100).collect();
    format!("{begin:?} {} {:x}", text.len(), hasher.finish())
}

fn told_by(exit: &SlotExit) -> Told {
    let printed = text(&exit.stdout);
    assert_eq!(exit.exit, Exit::Code(0), "{printed}\n{}", text(&exit.stderr));
    let told = |name: &str| {
        let line = printed.lines().find_map(|line| line.strip_prefix(&format!("told {name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {printed}")).to_owned()
    };
    Told {
        cmdline: told("cmdline"),
        environ: told("environ"),
        same: told("same"),
        loader: told("loader"),
        pid: told("pid").parse().unwrap(),
        siblings: told("siblings")
            .split_ascii_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect(),
    }
}
