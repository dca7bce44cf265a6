//! Workers that have never seen this machine's files: the honest harness.
//!
//! A worker on the same machine finds the client's files where they are, and a test would pass for
//! the wrong reason. A [`HermeticWorker`] runs as another user, in a mount namespace in which the
//! workspace, its target folder, cargo's home and this user's home don't exist, and in a network
//! namespace of its own, which a pair of virtual interfaces joins to this one. Everything of that
//! is the kernel's to clean up: it goes with the worker's process, however that ends.
//!
//! Only root can do this. Needs the program `ip`.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, chdir, geteuid, pivot_root, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use crate::DEADLINE;
use crate::client::Client;
use crate::link::{Link, ip};
use crate::process::{Owned, lines};
use crate::product::{product, repository};
use crate::scratch::Scratch;
use crate::worker::{self, Worker};

/// Has no account anywhere.
pub const NOBODYS_ID: u32 = 54_321;
/// All that the worker has of its own lies here, in memory: its home, store and executable.
const OWN: &str = "/mnt";
/// Top-level folders that a machine can't do without. Others that hold something of the client's
/// are hidden as a whole, so that not even a parent folder exists.
const NEEDED: [&str; 12] =
    ["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var"];

/// The users of a machine whose limits are its own: all that the worker's may be.
const USERS: &str = "0 0 65536";

/// What a hermetic worker is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Who runs it: [`NOBODYS_ID`], or 0.
    user: u32,
    /// What it may not do.
    denied: Denied,
    /// Root is one without `CAP_SYS_ADMIN`.
    contained: bool,
    /// Another system's files, instead of this machine's.
    root: Option<PathBuf>,
    /// It finds these programs of Rust's, for tests that call them.
    toolchain: Option<PathBuf>,
    /// It finds a bubblewrap that may do more than it may itself: one that is setuid.
    bubblewrap: Option<PathBuf>,
    /// The hidden folders belong to it, so that it can create what is missing there.
    owns_hidden: bool,
    /// More arguments of `serve`.
    arguments: Vec<String>,
    /// What an invitation permits.
    permits: String,
    hidden: Vec<PathBuf>,
    executable: PathBuf,
    authorized: String,
    /// A router is between.
    routed: bool,
    far: Option<(Ipv4Addr, Ipv4Addr)>,
    mark: PathBuf,
    interface: String,
    address: String,
}

/// What a worker's machine denies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denied {
    /// Nothing.
    Nothing,
    /// User namespaces, as a container's seccomp filter does.
    UserNamespaces,
    /// User namespaces, by a limit of none of them.
    UserNamespacesByLimit,
    /// A `/proc` of its own, as a container does that masks parts of it.
    Proc,
}

/// Why nothing hermetic can be had here.
///
/// # Errors
/// In words.
pub fn possible() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("only root can hide files and join networks".to_owned());
    }
    let found = Command::new("ip").arg("-V").stdout(Stdio::null()).status();
    found.map_err(|error| format!("the program ip (iproute2) is needed: {error}"))?;
    Ok(())
}

/// The same for [`Plan::with_bubblewrap`].
///
/// # Errors
/// In words.
pub fn possible_with_bubblewrap() -> Result<(), String> {
    possible().and_then(|()| bubblewrap().map(drop))
}

/// Workers that have never seen this machine's files, but have Rust, where such can be had; else on
/// loopback.
pub fn fleet(scratch: &Scratch, count: u32, slots: u32) -> Vec<Worker> {
    match possible() {
        Ok(()) => Plan::new(scratch).with_toolchain().fleet(scratch, count, slots),
        Err(_) => Worker::fleet(scratch, count, slots),
    }
}

fn bubblewrap() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = env::split_paths(&path).map(|folder| folder.join("bwrap"));
    found.find(|file| file.is_file()).ok_or_else(|| "bwrap (bubblewrap) is needed".to_owned())
}

impl Plan {
    /// A worker of an ordinary user that lets in this scratch folder's client and is denied nothing.
    pub fn new(scratch: &Scratch) -> Self {
        let shown = Client::call(scratch, scratch.path(), &["key", "show"]).finish();
        assert_eq!(shown.code(), 0, "{}", shown.stderr);
        Self {
            user: NOBODYS_ID,
            denied: Denied::Nothing,
            contained: false,
            root: None,
            toolchain: None,
            bubblewrap: None,
            owns_hidden: false,
            arguments: Vec::new(),
            permits: "run".to_owned(),
            hidden: hidden(scratch),
            executable: product().worker.clone(),
            authorized: format!("{} run harness\n", shown.stdout.trim()),
            routed: false,
            far: None,
            mark: scratch.path().to_owned(),
            interface: String::new(),
            address: String::new(),
        }
    }

    /// The same of another user.
    #[must_use]
    pub fn of(mut self, user: u32) -> Self {
        self.user = user;
        self
    }

    /// The same denied something.
    #[must_use]
    pub fn denied(mut self, denied: Denied) -> Self {
        self.denied = denied;
        self
    }

    /// The same without the capability that makes root the master of mounts, as in a container.
    #[must_use]
    pub fn contained(mut self) -> Self {
        self.contained = true;
        self
    }

    /// The same on another system, whose files lie in a folder, with a worker that was built for it.
    #[must_use]
    pub fn on(mut self, root: &Path, worker: &Path) -> Self {
        self.root = Some(root.to_owned());
        self.executable = worker.to_owned();
        self
    }

    /// The same with a bubblewrap that is setuid.
    #[must_use]
    pub fn with_bubblewrap(mut self) -> Self {
        self.bubblewrap = Some(bubblewrap().expect("whoever asks for it has looked"));
        self
    }

    /// The same on a machine where Rust is installed: the toolchain in force here, elsewhere.
    #[must_use]
    pub fn with_toolchain(mut self) -> Self {
        let printed = Command::new("rustc").args(["--print", "sysroot"]).output();
        let printed = printed.expect("whoever tests has a compiler").stdout;
        self.toolchain = Some(String::from_utf8_lossy(&printed).trim().into());
        self
    }

    /// The same owning the folders in which everything is hidden, and so free to fill them.
    #[must_use]
    pub fn owning_hidden(mut self) -> Self {
        self.owns_hidden = true;
        self
    }

    /// The same with more arguments of `serve`.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The same permitting this to whom it invites, and not only to run tests.
    #[must_use]
    pub fn permitting(mut self, permissions: &str) -> Self {
        permissions.clone_into(&mut self.permits);
        self
    }

    /// The same behind a router, which lets no multicast through.
    #[must_use]
    pub fn behind_a_router(mut self) -> Self {
        self.routed = true;
        self
    }

    /// Starts a worker that knows nobody and invites one client; answers it and the invitation.
    /// `GATEWAY` in its arguments stands for this end of its link.
    pub fn start_inviting(mut self, scratch: &Scratch, name: &str) -> (Worker, Link, String) {
        self.authorized = String::new();
        let log = scratch.join(format!("worker-{name}.log"));
        let stderr = File::create(&log).expect("a folder of ours can be written");
        let (more, permits) = (self.arguments.join(" "), &self.permits);
        // The worker is the process that is ended at last; what it says comes through a pipe.
        let script = format!(
            "mkfifo {OWN}/home/said || exit
            {{ read -r ready < {OWN}/home/said; echo \"$ready\"; \
               {OWN}/bin/worker invite --permit {permits}; }} &
            exec {OWN}/bin/worker serve --listen 0.0.0.0:0 --name {name} --slots 2 \
                --store {OWN}/store {more} > {OWN}/home/said"
        );
        let (process, lines, link) =
            self.enter(&["/bin/sh", "-c", &script].map(str::to_owned), stderr);
        let address = worker::address(&lines, name, &log);
        let invitation = lines.recv_timeout(DEADLINE).unwrap_or_default();
        (Worker { name: name.to_owned(), address, process, log }, link, invitation)
    }

    /// Starts a worker and waits until it is ready.
    pub fn start(&self, scratch: &Scratch, name: &str, slots: u32) -> Worker {
        self.start_linked(scratch, name, slots).0
    }

    /// The same, with its link to this machine.
    pub fn start_linked(&self, scratch: &Scratch, name: &str, slots: u32) -> (Worker, Link) {
        let log = scratch.join(format!("worker-{name}.log"));
        let stderr = File::create(&log).expect("a folder of ours can be written");
        let mut command: Vec<String> = vec![format!("{OWN}/bin/worker"), "serve".to_owned()];
        command.extend(["--listen".to_owned(), "ADDRESS:0".to_owned()]);
        command.extend(["--name", name, "--slots", &slots.to_string()].map(str::to_owned));
        command.extend(["--store".to_owned(), format!("{OWN}/store")]);
        command.extend(self.arguments.clone());
        let (process, lines, link) = self.enter(&command, stderr);
        let address = worker::address(&lines, name, &log);
        (Worker { name: name.to_owned(), address, process, log }, link)
    }

    /// Starts workers called `w1`, `w2`…
    pub fn fleet(&self, scratch: &Scratch, count: u32, slots: u32) -> Vec<Worker> {
        (1..=count).map(|number| self.start(scratch, &format!("w{number}"), slots)).collect()
    }

    /// What a shell script prints where a worker would run.
    pub fn shell(&self, scratch: &Scratch, script: &str) -> String {
        let log = scratch.join("shell.log");
        let stderr = File::create(&log).expect("a folder of ours can be written");
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let (mut process, lines, _) = self.enter(&command, stderr);
        let printed: Vec<String> = lines.iter().collect();
        let status = process.wait(DEADLINE).expect("it ends when its output does");
        let log = fs::read_to_string(&log).unwrap_or_default();
        assert!(status.success(), "{script}: {printed:?}\n{log}");
        printed.join("\n")
    }

    /// Starts a command where a worker runs, `ADDRESS` in it replaced, and gives what it prints.
    fn enter(&self, command: &[String], stderr: File) -> (Owned, Receiver<String>, Link) {
        let link = if self.routed { Link::next().routed() } else { Link::next() };
        let plan = Self {
            interface: link.inside.clone(),
            address: link.inner.to_string(),
            far: link.far,
            ..self.clone()
        };
        let command: Vec<String> = command.iter().map(|word| link.fill_in(word)).collect();
        // Built with the product, which is all programs of this repository.
        let helper = product().worker.with_file_name("hermetic-enter");
        let mut start = Command::new(helper);
        start.arg(serde_json::to_string(&(&plan, &command)).expect("plain data"));
        start.env("E2E_SCRATCH", &self.mark);
        start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut process = Owned::start(&mut start).expect("a program of ours can be started");
        let mut stdin = process.streams().stdin.take().expect("it is a pipe");
        let stdout = process.streams().stdout.take().expect("it is a pipe");
        let lines = lines(stdout);
        let line = lines.recv_timeout(DEADLINE).unwrap_or_default();
        assert_eq!(line, "unshared", "the helper enters its namespaces");
        if self.denied == Denied::UserNamespacesByLimit {
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{}/{map}", process.pid()), USERS)
                    .expect("root may speak for everyone");
            }
        }
        link.join(process.pid());
        writeln!(stdin, "joined").expect("the helper reads");
        drop(stdin);
        (process, lines, link)
    }
}

/// What must not be there for a worker: everything of the client's.
fn hidden(scratch: &Scratch) -> Vec<PathBuf> {
    let folder = |name| env::var_os(name).map(PathBuf::from);
    let mut paths = vec![repository(), product().target_dir.clone(), scratch.path().to_owned()];
    paths.extend(env::home_dir());
    paths.extend(folder("CARGO_HOME"));
    paths.extend(folder("RUSTUP_HOME"));
    paths.extend(folder("CARGO_TARGET_DIR").filter(|path| path.is_absolute()));
    paths.push("/tmp".into());
    let mut hidden: Vec<PathBuf> = paths.iter().map(|path| outermost(path)).collect();
    hidden.sort();
    hidden.dedup_by(|inner, outer| inner.starts_with(outer));
    hidden
}

/// The outermost folder on the way to a path that can be hidden.
fn outermost(path: &Path) -> PathBuf {
    let top = path.iter().nth(1).unwrap_or_default();
    let needed = NEEDED.iter().any(|needed| top == *needed) || Path::new(OWN).ends_with(top);
    if needed { path.to_owned() } else { Path::new("/").join(top) }
}

/// What the `hermetic-enter` executable does: becomes a command in the worker's surroundings.
///
/// # Errors
/// A step failed.
pub fn enter(given: &str) -> io::Result<()> {
    let (plan, command): (Plan, Vec<String>) = serde_json::from_str(given)?;
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    // Limits are a user namespace's: this machine's stay as they are.
    namespaces.set(CloneFlags::CLONE_NEWUSER, plan.denied == Denied::UserNamespacesByLimit);
    unshare(namespaces)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let mut stdout = io::stdout();
    writeln!(stdout, "unshared")?;
    stdout.flush()?;
    io::stdin().read_line(&mut String::new())?;
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["addr", "add", &format!("{}/30", plan.address), "dev", &plan.interface],
        &["link", "set", &plan.interface, "up"],
    ] {
        ip(arguments);
    }
    if let Some(far) = plan.far {
        go_behind_router(far)?;
    }
    // Read before it may be covered.
    let executable = fs::read(&plan.executable)?;
    if let Some(root) = &plan.root {
        change_root(root)?;
    }
    make_own(&plan, &executable)?;
    for folder in plan.hidden.iter().filter(|folder| folder.is_dir()) {
        let owner = if plan.owns_hidden { plan.user } else { 0 };
        let temporary = folder == Path::new("/tmp");
        // Root's home is closed to everyone else, as it is on most machines.
        let home = env::home_dir().is_some_and(|home| home == *folder) && !plan.owns_hidden;
        let mode = match () {
            () if temporary => "1777",
            () if home => "700",
            () => "755",
        };
        mount_memory(folder, &format!("mode={mode},uid={owner},gid={owner}"))?;
        if !plan.owns_hidden && !temporary {
            // Root could fill what belongs to nobody, too.
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
            mount(none, folder, none, read_only, none)?;
        }
    }
    if plan.denied == Denied::Proc {
        mount(Some("/dev/null"), "/proc/cmdline", none, MsFlags::MS_BIND, none)?;
    }
    match plan.denied {
        Denied::Nothing | Denied::Proc => {}
        Denied::UserNamespaces => deny_user_namespaces()?,
        Denied::UserNamespacesByLimit => fs::write("/proc/sys/user/max_user_namespaces", "0")?,
    }
    if plan.contained {
        give_up_administration()?;
    }
    if plan.user != 0 {
        setgroups(&[])?;
        setgid(Gid::from_raw(plan.user))?;
        setuid(Uid::from_raw(plan.user))?;
    }
    let mut worker = Command::new(&command[0]);
    worker.args(&command[1..]).current_dir(OWN).env_clear();
    worker.env("PATH", format!("{OWN}/setuid:{OWN}/toolchain/bin:/usr/local/bin:/usr/bin:/bin"));
    worker.env("HOME", format!("{OWN}/home"));
    worker.env("E2E_SCRATCH", &plan.mark).stdin(Stdio::null());
    Err(worker.exec())
}

/// Leaves this network namespace, as a router, for another one behind it.
fn go_behind_router((router, worker): (Ipv4Addr, Ipv4Addr)) -> io::Result<()> {
    let network = || File::open("/proc/self/ns/net");
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let before = network()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let behind = network()?;
    let descriptor = format!("/proc/{}/fd/{}", std::process::id(), before.as_raw_fd());
    let peer = ["peer", "name", "near", "netns", &descriptor];
    ip(&[&["link", "add", "far", "type", "veth"][..], &peer].concat());
    setns(&before, CloneFlags::CLONE_NEWNET)?;
    ip(&["addr", "add", &format!("{router}/30"), "dev", "near"]);
    ip(&["link", "set", "near", "up"]);
    setns(&behind, CloneFlags::CLONE_NEWNET)?;
    ip(&["addr", "add", &format!("{worker}/30"), "dev", "far"]);
    for interface in ["lo", "far"] {
        ip(&["link", "set", interface, "up"]);
    }
    ip(&["route", "add", "default", "via", &router.to_string()]);
    // The router lasts as long as the worker, which inherits this.
    let _ = nix::unistd::dup(&before)?.into_raw_fd();
    Ok(())
}

/// Makes a folder the root, with this machine's devices and processes in it. Not by chroot: who is
/// in one may create no user namespaces.
fn change_root(root: &Path) -> io::Result<()> {
    let bind = |from: &Path, to: &Path| {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
    };
    bind(root, root)?;
    for name in ["dev", "proc", "sys"] {
        bind(&Path::new("/").join(name), &root.join(name))?;
    }
    chdir(root)?;
    pivot_root(".", ".")?;
    // What is below it now is the old root.
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

/// The worker's executable, home and keys.
fn make_own(plan: &Plan, executable: &[u8]) -> io::Result<()> {
    let Plan { user, authorized, bubblewrap, .. } = plan;
    mount_memory(Path::new(OWN), &format!("mode=755,uid={user},gid={user}"))?;
    let own = |name: &str| Path::new(OWN).join(name);
    let config = own("home/.config/distest");
    fs::create_dir_all(&config)?;
    fs::create_dir(own("bin"))?;
    fs::write(own("bin/worker"), executable)?;
    fs::set_permissions(own("bin/worker"), fs::Permissions::from_mode(0o755))?;
    fs::write(config.join("authorized_keys"), authorized)?;
    fs::set_permissions(config.join("authorized_keys"), fs::Permissions::from_mode(0o600))?;
    for name in ["home", "home/.config", "home/.config/distest"] {
        chown(own(name), Some(*user), Some(*user))?;
    }
    chown(config.join("authorized_keys"), Some(*user), Some(*user))?;
    if let Some(toolchain) = &plan.toolchain {
        let (none, at) = (None::<&str>, own("toolchain"));
        fs::create_dir(&at)?;
        mount(Some(toolchain), &at, none, MsFlags::MS_BIND, none)?;
    }
    let Some(bubblewrap) = bubblewrap else { return Ok(()) };
    let folder = own("setuid");
    fs::create_dir(&folder)?;
    // Unlike all else in memory this one lets programs be setuid.
    mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::MS_NODEV, Some("mode=755"))?;
    fs::copy(bubblewrap, folder.join("bwrap"))?;
    fs::set_permissions(folder.join("bwrap"), fs::Permissions::from_mode(0o4755))
}

fn mount_memory(at: &Path, options: &str) -> io::Result<()> {
    Ok(mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options))?)
}

/// A filter for system calls: making a user namespace is not permitted, all else is.
#[expect(unsafe_code, reason = "a filter is handed to the kernel by its address")]
fn deny_user_namespaces() -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
    let step = |code: u32, k: u32, jt: u8, jf: u8| sock_filter { code: code as u16, jt, jf, k };
    let is = |call: i64, yes, no| step(BPF_JMP | BPF_JEQ | BPF_K, call as u32, yes, no);
    let answer = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    // Of the structure that seccomp(2) describes: the call's number, and its first argument.
    let (number, argument) = (0, 16);
    let mut filter = [
        step(BPF_LD | BPF_W | BPF_ABS, number, 0, 0),
        // What it is asked for lies where a filter can't look: callers go back to the older call.
        is(libc::SYS_clone3, 6, 0),
        is(libc::SYS_unshare, 1, 0),
        is(libc::SYS_clone, 0, 3),
        step(BPF_LD | BPF_W | BPF_ABS, argument, 0, 0),
        step(BPF_JMP | BPF_JSET | BPF_K, libc::CLONE_NEWUSER as u32, 0, 1),
        step(BPF_RET | BPF_K, answer(libc::EPERM), 0, 0),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(BPF_RET | BPF_K, answer(libc::ENOSYS), 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the call returns, which copies them.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What is executed from now on has no `CAP_SYS_ADMIN`, whoever runs it.
#[expect(unsafe_code, reason = "nix has no call for this")]
fn give_up_administration() -> io::Result<()> {
    /// As capabilities(7) numbers it.
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    // SAFETY: takes no pointer.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
