//! What the test executables need that were built here before.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use distest_worker::compat::{elf::Elf, lacking};
use distest_worker::protocol::LIBRARIES_MAX;
use object::ReadCache;

use super::{Finding, fine};
use crate::compile;

/// Executables that are looked at: the newest.
const EXECUTABLES_MAX: usize = 200;

/// What they need of a system, all together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Built {
    /// The oldest glibc that all run with.
    pub(super) glibc: Option<(u32, u32)>,
    /// Libraries of this system's: others travel with the executables.
    pub(super) libraries: Vec<String>,
}

/// Looks at what lies in this workspace's target folder.
pub(super) fn look(cargo: &std::ffi::OsStr) -> (Built, Option<Finding>) {
    let Some(target) = compile::target_folder(cargo) else { return (Built::default(), None) };
    let executables = executables(&target.join("debug/deps"));
    let parsed = executables.iter().filter_map(|path| {
        let elf = Elf::parse(&ReadCache::new(File::open(path).ok()?))?;
        elf.interpreter.is_some().then_some(elf)
    });
    let (mut needed, mut glibc, mut count) = (BTreeSet::new(), None, 0_u32);
    for elf in parsed {
        count += 1;
        glibc = glibc.max(elf.glibc());
        needed.extend(elf.needed);
    }
    let absent: BTreeSet<_> = lacking(needed.iter().cloned().collect()).into_iter().collect();
    let mut libraries: Vec<_> = needed.difference(&absent).cloned().collect();
    libraries.truncate(LIBRARIES_MAX);
    let text = match count {
        0 => "none is built here: what they need of workers is not known yet".to_owned(),
        _ => format!("{count} executables here need {} of a system", libraries.join(", ")),
    };
    (Built { glibc, libraries }, Some(fine("libraries", text)))
}

fn executables(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(|entry| {
            let (about, path) = (entry.metadata().ok()?, entry.path());
            let runs = about.is_file() && about.permissions().mode() & 0o111 != 0;
            (runs && path.extension().is_none()).then_some((about.modified().ok()?, path))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().take(EXECUTABLES_MAX).map(|(_, path)| path).collect()
}
