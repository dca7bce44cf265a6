//! A real sshd on loopback, with throw-away keys and a home of its own for who logs in.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::DEADLINE;
use crate::process::Owned;
use crate::scratch::Scratch;

/// Debian puts it where only root's `PATH` leads.
const PROGRAM: &str = "/usr/sbin/sshd";

/// An sshd, ended when this is dropped.
pub struct Sshd {
    /// Its address, as `--worker` takes it.
    pub address: String,
    /// The `ssh` that gets in, for `DISTEST_SSH`.
    pub client: PathBuf,
    /// The home that it gives to who logs in.
    pub home: PathBuf,
    process: Owned,
    log: Arc<Mutex<String>>,
}

/// Why there can be no sshd here.
pub fn possible() -> Result<(), String> {
    if !Path::new(PROGRAM).exists() {
        return Err(format!("{PROGRAM} is not installed (openssh-server)"));
    }
    let user = nix::unistd::geteuid();
    if !matches!(nix::unistd::User::from_uid(user), Ok(Some(_))) {
        return Err(format!("ssh knows no user {user}, who runs this"));
    }
    Ok(())
}

impl Sshd {
    /// Starts one.
    pub fn start(scratch: &Scratch) -> Self {
        let folder = scratch.join("ssh");
        let home = scratch.join("far-home");
        for folder in [&folder, &home] {
            fs::create_dir(folder).expect("a folder of ours can be made");
        }
        if nix::unistd::geteuid().is_root() {
            // What Debian's init script does: sshd as root wants it.
            fs::create_dir_all("/run/sshd").expect("root can");
        }
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(name))
                .status();
            assert!(made.expect("ssh-keygen can be started").success());
        }
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
            listener.local_addr().expect("it is bound").port()
        };
        let path = |name: &str| folder.join(name).display().to_string();
        let mut config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n\
             KbdInteractiveAuthentication no\nLogLevel VERBOSE\n",
            path("host"),
            path("user.pub"),
        );
        // Who logs in has this home and this test's mark, and no other trace of the developer.
        let _ = writeln!(
            config,
            "SetEnv HOME={home} XDG_CACHE_HOME={home}/cache XDG_CONFIG_HOME={home}/config \
             XDG_STATE_HOME={home}/state E2E_SCRATCH={}",
            scratch.path().display(),
            home = home.display(),
        );
        fs::write(folder.join("sshd_config"), config).expect("a folder of ours");
        let client = format!(
            "#!/bin/sh\nexec ssh -F none -o IdentityFile={} -o IdentitiesOnly=yes \
             -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR \"$@\"\n",
            path("user")
        );
        fs::write(folder.join("ssh"), client).expect("a folder of ours");
        let client = folder.join("ssh");
        fs::set_permissions(&client, fs::Permissions::from_mode(0o700)).expect("a file of ours");

        let mut command = scratch.command(PROGRAM);
        command.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Owned::start(&mut command).expect("sshd can be started");
        let stderr = process.streams().stderr.take().expect("it is a pipe");
        let log = Arc::new(Mutex::new(String::new()));
        let (listening, ready) = channel();
        let kept = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("Server listening") {
                    let _ = listening.send(());
                }
                let mut kept = kept.lock().expect("no holder panics");
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        if ready.recv_timeout(DEADLINE).is_err() {
            panic!("sshd does not listen:\n{}", log.lock().expect("no holder panics"));
        }
        let address = format!("ssh://127.0.0.1:{port}");
        Self { address, client, home, process, log }
    }

    /// Connections that logged in so far.
    pub fn logins(&self) -> usize {
        self.log.lock().expect("no holder panics").matches("Accepted publickey").count()
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The executables that were copied here, by what their entries are called.
    pub fn copies(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.join("cache/cargo-distest/bin"));
        let names = entries.into_iter().flatten().flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}
