//! Answers of cargo that were given before: one file each, named by the question.
//!
//! A line with the version; a line of JSON, what the answer depends on; the answer; the SHA-256 of
//! all of that. Nothing here can fail a run: what can't be read is asked again, what can't be
//! written is forgotten.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use distest_worker::digest::Digest;
use etcetera::BaseStrategy;

use super::seen::Seen;

/// First line of a file, raised when its meaning changes.
const VERSION: &[u8] = b"cargo-distest metadata 1\n";
/// A larger answer isn't kept, in bytes.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Files beyond these are removed, those first that were not used for longest.
const FILES_MAX: usize = 64;
const BYTES_MAX: u64 = 64 << 20;
/// How exactly it is known when a file was last used.
const USED_WITHIN: Duration = Duration::from_secs(60 * 60);
const DIGEST_BYTES: usize = 32;

/// Paths, and what was there when cargo answered.
pub(super) type Watched = Vec<(PathBuf, Seen)>;

/// A folder of answers.
#[derive(Clone, Debug)]
pub(in crate::compile) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// In this user's cache folder; none if there is no such folder.
    pub(in crate::compile) fn of_this_user() -> Option<Self> {
        let cache = etcetera::base_strategy::Xdg::new().ok()?.cache_dir();
        Some(Self::at(cache.join("cargo-distest/metadata")))
    }

    pub(super) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The answer to a question, if everything that it depends on is as it was.
    pub(super) fn answer(&self, question: Digest) -> Option<String> {
        let path = self.file(question);
        let about = fs::metadata(&path).ok().filter(|it| it.len() <= FILE_BYTES_MAX)?;
        let (watched, answer) = decode(fs::read(&path).ok()?)?;
        if !watched.iter().all(|(path, seen)| seen.holds(path)) {
            return None;
        }
        let unused = about.modified().ok().and_then(|time| time.elapsed().ok());
        if unused.is_some_and(|unused| unused > USED_WITHIN) {
            let used = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            // It goes earlier than it might.
            used.ok();
        }
        Some(answer)
    }

    /// Keeps an answer.
    pub(super) fn keep(&self, question: Digest, watched: &Watched, answer: &str) -> io::Result<()> {
        let bytes = encode(watched, answer)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        let mut temp = tempfile::NamedTempFile::new_in(&self.folder)?;
        temp.write_all(&bytes)?;
        temp.persist(self.file(question))?;
        sweep(&self.folder, FILES_MAX, BYTES_MAX)
    }

    fn file(&self, question: Digest) -> PathBuf {
        self.folder.join(question.to_string())
    }
}

fn encode(watched: &Watched, answer: &str) -> io::Result<Vec<u8>> {
    let mut bytes = VERSION.to_vec();
    serde_json::to_writer(&mut bytes, watched)?;
    bytes.push(b'\n');
    bytes.extend(answer.as_bytes());
    let seal = Digest::of(&bytes);
    bytes.extend(seal.as_bytes());
    Ok(bytes)
}

fn decode(mut bytes: Vec<u8>) -> Option<(Watched, String)> {
    let (body, seal) = bytes.split_last_chunk::<DIGEST_BYTES>()?;
    let rest = body.strip_prefix(VERSION)?;
    if Digest::of(body).as_bytes() != seal {
        return None;
    }
    let line = rest.iter().position(|&byte| byte == b'\n')?;
    let watched = serde_json::from_slice(&rest[..line]).ok()?;
    bytes.truncate(bytes.len() - DIGEST_BYTES);
    bytes.drain(..VERSION.len() + line + 1);
    Some((watched, String::from_utf8(bytes).ok()?))
}

/// Removes what was not used for longest until the rest is within both bounds.
fn sweep(folder: &Path, files_max: usize, bytes_max: u64) -> io::Result<()> {
    let about = |entry: fs::DirEntry| {
        let about = entry.metadata().ok()?;
        Some((about.modified().ok()?, about.len(), entry.path()))
    };
    let mut files: Vec<(SystemTime, u64, PathBuf)> =
        fs::read_dir(folder)?.filter_map(Result::ok).filter_map(about).collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    let mut bytes = 0;
    for (place, (_, size, path)) in files.iter().enumerate() {
        bytes += size;
        if place >= files_max || bytes > bytes_max {
            fs::remove_file(path).ok();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_file_of_this_version_is_an_answer() {
        let temp = tempfile::tempdir().unwrap();
        let (kept, question) = (Kept::at(temp.path().join("new")), Digest::of(b"question"));
        let watched = vec![(temp.path().join("absent"), Seen::Absent)];
        kept.keep(question, &watched, "line\nline").unwrap();
        assert_eq!(kept.answer(question).as_deref(), Some("line\nline"));
        assert_eq!(kept.answer(Digest::of(b"another")), None);

        let path = kept.file(question);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 1;
            fs::write(&path, &spoilt).unwrap();
            assert_eq!(kept.answer(question), None, "a spoilt byte at {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(kept.answer(question), None, "only {at} bytes");
        }
        kept.keep(question, &watched, "again").unwrap();
        assert_eq!(kept.answer(question).as_deref(), Some("again"));

        fs::write(temp.path().join("absent"), "").unwrap();
        assert_eq!(kept.answer(question), None);
    }

    #[test]
    fn both_bounds_are_kept_and_what_was_used_last_stays() {
        let temp = tempfile::tempdir().unwrap();
        for number in 0..6_u64 {
            let path = temp.path().join(number.to_string());
            fs::write(&path, "12345678").unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            // Names and times in different orders.
            let used = Duration::from_secs((number * 5) % 6);
            file.set_modified(SystemTime::UNIX_EPOCH + used).unwrap();
        }
        let left = || {
            let names = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort_unstable();
            names.concat()
        };
        sweep(temp.path(), 4, 1000).unwrap();
        assert_eq!(left(), "1234");
        sweep(temp.path(), 4, 23).unwrap();
        assert_eq!(left(), "12");
    }
}
