//! The sandbox as bubblewrap's arguments (bwrap(1)): for users who may not create namespaces, where
//! that program may. It is setuid, or a security module lets it.
//!
//! It lays out what [`super::root`] does, from outside, because what it starts has no privileges.
//! For ordinary users it mounts no overlay and bounds no memory. So private folders lie on the
//! worker's disk, and the client's files themselves are there to be written: what is written into
//! those stays for the session.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Enclosure;
use super::layout::{self, Point, below};
use super::plan::{self, Cover};

/// The program, looked for in `PATH`.
pub(crate) const PROGRAM: &str = "bwrap";

/// Arguments that make bubblewrap start a program, which must follow, in the sandbox; and the folder
/// that holds the sandbox's private ones, to be dropped with it.
///
/// # Errors
/// A folder of this machine can't be read, or a private one not be made.
pub(crate) fn prepare(enclosure: &Enclosure) -> io::Result<(Vec<OsString>, TempDir)> {
    let own = tempfile::tempdir_in(&enclosure.mount_point)?;
    Ok((arguments(enclosure, own.path())?, own))
}

fn arguments(enclosure: &Enclosure, own: &Path) -> io::Result<Vec<OsString>> {
    let machine = Path::new("/");
    let points = layout::points(enclosure, machine);
    let covers = plan::covers(points.iter().map(|(path, _)| path.as_path()), |path| {
        layout::look(machine, path)
    });
    let mut arguments = Arguments(Vec::new());
    // What is started is the first process itself, and ends with the socket that it is given.
    arguments.add(["--unshare-pid", "--unshare-ipc", "--as-pid-1"]);
    let mut empty: Vec<PathBuf> = Vec::new();
    for (at, cover) in &covers {
        arguments.cover(at, cover)?;
        empty.push(at.clone());
    }
    for (path, point) in &points {
        match point {
            Point::Hidden { .. } => {
                arguments.empty(path);
                empty.push(path.clone());
            }
            Point::Private { name, mode } => {
                let folder = own.join(name);
                fs::create_dir(&folder)?;
                fs::set_permissions(&folder, fs::Permissions::from_mode(*mode))?;
                arguments.show("--bind", &folder, path);
            }
            Point::Root => {
                let laid_out = below(&enclosure.lower, path);
                arguments.show("--bind", &laid_out, path);
            }
            Point::Shown(shown) => arguments.show("--ro-bind", shown, path),
        }
    }
    arguments.add(["--proc", "/proc"]);
    // Nobody writes into folders that only hold others, or nothing.
    for at in &empty {
        arguments.add([OsStr::new("--remount-ro"), at.as_os_str()]);
    }
    arguments.add(["--chdir", "/", "--"]);
    Ok(arguments.0)
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn add<T: AsRef<OsStr>>(&mut self, words: impl IntoIterator<Item = T>) {
        self.0.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
    }

    fn empty(&mut self, at: &Path) {
        self.add([OsStr::new("--tmpfs"), at.as_os_str()]);
    }

    fn show(&mut self, how: &str, from: &Path, to: &Path) {
        self.add([OsStr::new(how), from.as_os_str(), to.as_os_str()]);
    }

    /// A fresh folder with what was there. The root is one already.
    fn cover(&mut self, at: &Path, cover: &Cover) -> io::Result<()> {
        let is_root = at == Path::new("/");
        if !is_root {
            self.empty(at);
        }
        let entries = match fs::read_dir(&cover.source) {
            // What a worker's user may not look into, its tests could not either.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type()?);
            if cover.without.contains(&name) || (is_root && name == "proc") {
                continue;
            }
            let path = at.join(&name);
            if kind.is_symlink() {
                self.show("--symlink", &fs::read_link(entry.path())?, &path);
            } else if is_root && name == "dev" {
                self.show("--dev-bind", &entry.path(), &path);
            } else {
                // What is gone by then is not missed.
                self.show("--ro-bind-try", &entry.path(), &path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::level::Level;

    /// The words right after a flag, and with them the order of what is mounted.
    fn after(arguments: &[OsString], flag: &str, path: &str) -> Option<usize> {
        let is = |at: usize, text: &str| arguments.get(at).is_some_and(|word| word == text);
        (0..arguments.len()).find(|at| is(*at, flag) && (is(at + 1, path) || is(at + 2, path)))
    }

    #[test]
    fn covers_come_before_what_lies_in_them_and_are_closed_last() {
        let enclosure = Enclosure {
            level: Level::Bubblewrap,
            mount_point: "/store/mount".into(),
            lower: "/store/root".into(),
            roots: vec!["/no-such-folder/of/the/client".into()],
            hidden: vec!["/var".into(), "/no-such-folder-either".into()],
            shown: Vec::new(),
            home: "/var/no-home".into(),
            sockets: Vec::new(),
            writes_bytes_max: 1 << 20,
            check: None,
        };
        let own = tempfile::tempdir().unwrap();
        let arguments = arguments(&enclosure, own.path()).unwrap();
        let at = |flag: &str, path: &str| {
            after(&arguments, flag, path).unwrap_or_else(|| panic!("{flag} {path}: {arguments:?}"))
        };
        let order = [
            at("--ro-bind-try", "/usr"),
            at("--bind", "/no-such-folder/of/the/client"),
            at("--tmpfs", "/var"),
            at("--proc", "/proc"),
            at("--remount-ro", "/"),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert!(at("--tmpfs", "/var") < at("--bind", "/var/no-home"));
        let temporary = fs::metadata(own.path().join("-tmp")).unwrap();
        assert_eq!(temporary.permissions().mode() & 0o7777, 0o1777);
        assert_eq!(arguments[at("--bind", "/no-such-folder/of/the/client") + 1], {
            "/store/root/no-such-folder/of/the/client"
        });
        assert_eq!(after(&arguments, "--ro-bind-try", "/proc"), None);
        assert_eq!(after(&arguments, "--tmpfs", "/no-such-folder-either"), None);
        assert_eq!(arguments.last().unwrap(), "--");
    }
}
