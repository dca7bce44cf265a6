//! A real PostgreSQL with a throw-away data folder, on a port and at sockets of its own.
//!
//! It refuses to be root's: then it is nobody's. A server that the machine runs by itself is left
//! alone.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use crate::DEADLINE;
use crate::process::{Owned, lines};
use crate::scratch::Scratch;

/// Debian puts each version's programs into a folder of its own.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Whose server it is if root would start it.
const NOBODY: &str = "nobody";

/// A server that lets everybody in as `tester`, ended when this is dropped.
pub struct Postgres {
    /// Where it listens, at both addresses of loopback.
    pub port: u16,
    /// Where else it listens: in a temporary folder and, if root starts it, in one of `/run`.
    pub sockets: Vec<PathBuf>,
    process: Owned,
    _folders: Vec<TempDir>,
}

/// Why there can be no server here.
///
/// # Errors
/// In words.
pub fn possible() -> Result<(), String> {
    let initdb =
        program("initdb").ok_or("initdb is not installed (Debian's package postgresql)")?;
    match geteuid().is_root() && !matches!(User::from_name(NOBODY), Ok(Some(_))) {
        true => Err(format!("{} refuses root, and there is no user {NOBODY}", initdb.display())),
        false => Ok(()),
    }
}

/// One of the newest version's programs.
fn program(name: &str) -> Option<PathBuf> {
    let number = |folder: &Path| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let entries = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let newest = entries.map(|entry| entry.path()).max_by_key(|folder| number(folder));
    let packaged = newest.map(|folder| folder.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = packaged.into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

impl Postgres {
    /// Starts one and waits until it takes connections.
    pub fn start(scratch: &Scratch) -> Self {
        let user = geteuid().is_root().then(|| {
            User::from_name(NOBODY).expect("users can be looked up").expect("it was there before")
        });
        let own = |parent: &Path| {
            let folder = tempfile::Builder::new().prefix("distest-pg-").tempdir_in(parent);
            let folder = folder.expect("a folder can be made");
            if let Some(user) = &user {
                let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
                chown(folder.path(), Some(uid), Some(gid)).expect("root may");
            }
            // Whoever may not look into the scratch folder reaches the socket.
            let open = Permissions::from_mode(0o755);
            fs::set_permissions(folder.path(), open).expect("a folder of ours");
            folder
        };
        let mut folders = vec![own(&std::env::temp_dir())];
        folders.extend(user.is_some().then(|| own(Path::new("/run"))));
        let data = folders[0].path().join("data");
        let command = |name: &str| {
            let mut command = scratch.command(program(name).expect("it was there before"));
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command.current_dir("/").stdin(Stdio::null());
            command
        };
        let log = scratch.join("initdb.log");
        let mut made = command("initdb");
        made.args(["--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C"]);
        made.args(["--no-sync", "-D"]).arg(&data);
        let output = File::create(&log).expect("a folder of ours");
        made.stdout(output.try_clone().expect("a file of ours")).stderr(output);
        let made = made.status().expect("initdb can be started");
        assert!(made.success(), "{}", fs::read_to_string(&log).unwrap_or_default());

        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
            listener.local_addr().expect("it is bound").port()
        };
        let places: Vec<String> =
            folders.iter().map(|folder| folder.path().display().to_string()).collect();
        let mut server = command("postgres");
        server.arg("-D").arg(&data).args(["-h", "127.0.0.1,::1", "-p", &port.to_string()]);
        server.args(["-k", &places.join(","), "-c", "fsync=off", "-c", "max_connections=100"]);
        server.stdout(Stdio::null()).stderr(Stdio::piped());
        let process = serve(&mut server);
        let name = format!(".s.PGSQL.{port}");
        let sockets = folders.iter().map(|folder| folder.path().join(&name)).collect();
        Self { port, sockets, process, _folders: folders }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // In order, because it would leave shared memory behind. If it doesn't, it is killed.
        self.process.signal(Signal::SIGINT);
        let _ = self.process.wait(DEADLINE);
    }
}

/// Starts the server and waits until it says that it is ready.
fn serve(command: &mut Command) -> Owned {
    let mut process = Owned::start(command).expect("postgres can be started");
    let stderr = process.streams().stderr.take().expect("it is a pipe");
    let lines = lines(stderr);
    let mut said = Vec::new();
    while let Ok(line) = lines.recv_timeout(DEADLINE) {
        if line.contains("database system is ready to accept connections") {
            return process;
        }
        said.push(line);
    }
    panic!("postgres is not ready:\n{}", said.join("\n"));
}
