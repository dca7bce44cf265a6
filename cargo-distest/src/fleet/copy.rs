//! Remote hands: one file to a worker, or from it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use distest_worker::link;
use distest_worker::protocol::{CHUNK_BYTES_MAX, FilePiece};

use super::Unusable;
use super::keys::Keys;
use super::visit::{self, Talk, Trouble, answered, find};
use crate::settings::FleetSettings;

/// How long one piece may take.
const PIECE: Duration = Duration::from_secs(60);

/// Copies a file to a worker, with its permission bits. It appears there when it is whole.
///
/// # Errors
/// In words; nothing is left there.
pub async fn put(
    settings: &FleetSettings,
    worker: &str,
    from: &Path,
    to: &Path,
) -> Result<u64, Trouble> {
    let could_not = |error| here("read", from, &error);
    let mut file = File::open(from).map_err(could_not)?;
    let about = file.metadata().map_err(could_not)?;
    if !about.is_file() {
        return Err(Unusable::new(format!("{} is no file", from.display())).into());
    }
    let mode = about.permissions().mode() & 0o777;
    let talk = reach(settings, worker).await?;
    let mut offset = 0;
    loop {
        let mut data = Vec::new();
        let read = Read::by_ref(&mut file).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut data);
        let read = read.map_err(could_not)? as u64;
        let last = read < CHUNK_BYTES_MAX as u64;
        let piece = FilePiece { path: to.into(), mode, offset, data: data.into(), last };
        answered(talk.worker.write_file(link::context(PIECE), piece).await)?;
        offset += read;
        if last {
            return Ok(offset);
        }
    }
}

/// Copies a file from a worker, with its permission bits. It appears here when it is whole.
///
/// # Errors
/// In words; nothing is left here.
pub async fn get(
    settings: &FleetSettings,
    worker: &str,
    from: &Path,
    to: &Path,
) -> Result<u64, Trouble> {
    let talk = reach(settings, worker).await?;
    let could_not = |error| here("write", to, &error);
    let folder = to.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".distest-").tempfile_in(folder);
    let mut file = file.map_err(could_not)?;
    let mut offset = 0;
    loop {
        let piece = talk.worker.read_file(link::context(PIECE), from.into(), offset).await;
        let piece = answered(piece)?;
        // An empty piece that isn't the last would never end.
        if piece.data.is_empty() && !piece.last || piece.offset != offset {
            return Err(Unusable::new("it answers what was not asked").into());
        }
        file.write_all(&piece.data).map_err(could_not)?;
        offset += piece.data.len() as u64;
        if piece.last {
            let mode = std::fs::Permissions::from_mode(piece.mode & 0o777);
            file.as_file().set_permissions(mode).map_err(could_not)?;
            file.persist(to).map_err(|error| here("write", to, &error.error))?;
            return Ok(offset);
        }
    }
}

async fn reach(settings: &FleetSettings, worker: &str) -> Result<Talk, Trouble> {
    let address = find(settings, worker).await?;
    visit::reach(&Keys::load(&settings.identity)?, &address).await
}

fn here(what: &str, path: &Path, error: &std::io::Error) -> Trouble {
    Unusable::new(format!("could not {what} {} here: {error}", path.display())).into()
}
