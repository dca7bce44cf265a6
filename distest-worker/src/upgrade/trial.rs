//! Whether an executable would do as a worker: asked before anything is given up for it.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::CLIENT_WORD;
use crate::sandbox::level::Level;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is read of what it says.
const SAID_BYTES_MAX: u64 = 16 * 1024;
/// Before trying again to execute what is still open for writing in a process that was being
/// started meanwhile, and how often.
const BUSY_NAP: Duration = Duration::from_millis(20);
const BUSY_TRIES: u32 = 100;

/// The argument that makes a worker look whether it could serve, and end.
const CHECK: &str = "--check";
/// Begins the line in which it says that, with the number of its sandboxes' level.
pub(crate) const CHECKED: &str = "checked";

/// Starts it with the arguments that it will have. Answers whether it is `cargo-distest`, or why it
/// won't do.
pub(super) async fn try_out(
    path: &Path,
    arguments: &[OsString],
    level: Level,
) -> Result<bool, String> {
    let said = ask(Command::new(path).arg("--version")).await?;
    let is_client = match said.split_whitespace().next() {
        Some("distest-worker") => false,
        Some("cargo-distest") => true,
        _ => return Err(format!("it is another program, which calls itself {}", shown(&said))),
    };
    let mut command = Command::new(path);
    command.args(is_client.then_some(CLIENT_WORD)).args(arguments).arg(CHECK);
    let said = ask(&mut command).await?;
    let line = said.lines().find_map(|line| line.strip_prefix(CHECKED));
    let number = line.and_then(|rest| rest.trim().parse().ok());
    match number.map(Level::from_number) {
        Some(theirs) if theirs >= level => Ok(is_client),
        Some(theirs) => Err(format!(
            "it would recreate clients' paths by {theirs} only, and the old one does by {level}"
        )),
        None => Err(format!("it does not say that it could serve, but {}", shown(&said))),
    }
}

/// What it says, if it ends with success.
async fn ask(command: &mut Command) -> Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A socket that was handed to us is not for it.
    command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS").env_remove("LISTEN_FDNAMES");
    command.process_group(0).kill_on_drop(true);
    let child = start(command).await.map_err(|error| format!("it can't be started: {error}"))?;
    let answer = tokio::time::timeout(PATIENCE, answer(child)).await;
    let answer = answer.map_err(|_| format!("it did not end within {} s", PATIENCE.as_secs()))?;
    let (status, out, err) = answer.map_err(|error| format!("it can't be heard: {error}"))?;
    match status.success() {
        true => Ok(out),
        false => Err(format!("it ended with {status}: {}", shown(&err))),
    }
}

async fn start(command: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY_TRIES {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(BUSY_NAP).await;
            }
            done => return done,
        }
    }
    command.spawn()
}

async fn answer(mut child: Child) -> io::Result<(ExitStatus, String, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) = tokio::join!(hear(stdout), hear(stderr), child.wait());
    Ok((status?, out?, err?))
}

/// All that it says, of which the beginning is kept.
async fn hear(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut kept = Vec::new();
    (&mut pipe).take(SAID_BYTES_MAX).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

/// In one line that is safe to print.
fn shown(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("; ");
    match text.is_empty() {
        true => "nothing".to_owned(),
        false => text.chars().filter(|c| !c.is_control()).take(500).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn check(script: &str, expected: Result<bool, &str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let arguments = ["serve".into(), "--slots".into(), "2".into()];
        let tried = try_out(&path, &arguments, Level::Mounts).await;
        match (tried, expected) {
            (Ok(tried), Ok(expected)) => assert_eq!(tried, expected, "{script}"),
            (Err(why), Err(part)) => assert!(why.contains(part), "{script}: {why}"),
            (tried, _) => panic!("{script}: {tried:?}"),
        }
    }

    #[tokio::test]
    async fn only_what_says_that_it_could_serve_will_do() {
        let program = |name: &str, args: &str, answer: &str| {
            format!(
                "#!/bin/sh\ncase \"$*\" in --version) echo {name} 1;; '{args}') {answer};; \
                 *) echo odd: $* >&2; exit 2;; esac\n"
            )
        };
        let worker = |answer: &str| program("distest-worker", "serve --slots 2 --check", answer);
        let client = program("cargo-distest", "worker serve --slots 2 --check", "echo checked 50");
        check(&worker("echo so; echo checked 20"), Ok(false)).await;
        check(&client, Ok(true)).await;
        check(&worker("echo checked 10"), Err("plain sight only")).await;
        check(&worker("echo fine"), Err("does not say that it could serve, but fine")).await;
        check(&worker("echo no store >&2; exit 96"), Err("exit status: 96: no store")).await;
        check(&worker("kill -9 $$"), Err("signal: 9")).await;
        let other = program("distest-worker", "serve", "exit 0");
        check(&other, Err("odd: serve --slots 2 --check")).await;
        check("#!/bin/sh\necho sh 5\n", Err("calls itself sh 5")).await;
        check("\u{7f}ELF", Err("can't be started")).await;
        check("#!/no/such/loader\n", Err("can't be started")).await;
    }
}
