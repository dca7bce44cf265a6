//! What reads bytes from outside, each as a function of bytes alone.
//!
//! The one definition of each target: `fuzz_targets/` hands it to libFuzzer, and the test
//! `fuzz_smoke` of `cargo-distest` to a small mutator that works with any toolchain. A target
//! panics when something is wrong. It answers whether it made sense of its input, so that a corpus
//! from which nothing is understood is noticed.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use cargo_distest::cli::RunArgs;
use cargo_distest::filter::Filter;
use cargo_distest::settings::{
    self, ConfigFiles, ConfigText, Facts, SelectSettings, WorkerAddress,
};
use distest_worker::compat::elf::Elf;
use distest_worker::digest::Digest;
use distest_worker::globs::Globs;
use distest_worker::hello::{self, Hello, Role};
use distest_worker::identity::{AuthorizedKeys, KnownWorkers};
use distest_worker::invitation::Invitation;
use distest_worker::link::codec::{self, Message, Reader};
use distest_worker::protocol::{
    ClientRequest, ClientResponse, Encoding, TreeEntry, WorkerRequest, WorkerResponse,
};
use distest_worker::sandbox::Sandbox;
use distest_worker::serve::control::Ask;
use distest_worker::store::{Pin, Store};
use distest_worker::{message, packed};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// A target.
pub(crate) type Target = fn(&[u8]) -> bool;

/// All, by name.
pub(crate) const TARGETS: &[(&str, Target)] = &[
    ("hello", hello),
    ("frames", frames),
    ("to_worker", to_worker),
    ("to_client", to_client),
    ("words", words),
    ("upload", upload),
    ("tree", tree),
    ("executable", executable),
    ("listing", listing),
    ("doctests", doctests),
    ("filterset", filterset),
    ("configuration", configuration),
    ("addresses", addresses),
    ("keys", keys),
    ("globs", globs),
];

/// The most decoded bytes of an upload that are worth comparing.
const UPLOAD_BYTES_MAX: u64 = 1 << 20;
/// Bytes of blobs that stay in the targets' store.
const STORE_BYTES_MAX: u64 = 4 << 20;
/// What the tree's files are made of.
const BLOB: &[u8] = b"contents";

/// A stranger's greeting, as either end reads it.
fn hello(data: &[u8]) -> bool {
    let exchange = async |role| {
        let mut stream = tokio::io::join(data, tokio::io::sink());
        hello::exchange(&mut stream, &Hello::new(role, "fuzz"), Duration::from_secs(5)).await
    };
    blocked(async {
        let [worker, client] = [exchange(Role::Worker).await, exchange(Role::Client).await];
        for error in [worker.as_ref().err(), client.as_ref().err()].into_iter().flatten() {
            let _ = (error.to_string(), error.hint());
        }
        worker.is_ok() || client.is_ok()
    })
}

/// A link's frames: the same messages wherever the stream is cut.
fn frames(data: &[u8]) -> bool {
    let Some((&piece, stream)) = data.split_first() else { return false };
    let whole = Reader::default().push(stream);
    let mut reader = Reader::default();
    let mut cut = Ok(Vec::new());
    for piece in stream.chunks(usize::from(piece).max(1)) {
        match (&mut cut, reader.push(piece)) {
            (Ok(all), Ok(more)) => all.extend(more),
            (_, Err(error)) => {
                cut = Err(error);
                break;
            }
            (Err(_), Ok(_)) => unreachable!("the loop has ended"),
        }
    }
    assert_eq!(whole, cut);
    whole.is_ok_and(|messages| !messages.is_empty())
}

/// What a client says to a worker.
fn to_worker(data: &[u8]) -> bool {
    two_way::<WorkerRequest, ClientResponse>(data)
}

/// What a worker says to a client.
fn to_client(data: &[u8]) -> bool {
    two_way::<ClientRequest, WorkerResponse>(data)
}

/// Whatever is understood is still the same when it has been written and read again.
fn two_way<Req, Resp>(data: &[u8]) -> bool
where
    Req: Serialize + DeserializeOwned + Debug,
    Resp: Serialize + DeserializeOwned + Debug,
{
    let again = |bytes: Result<Vec<u8>, String>| {
        let bytes = bytes.expect("what was read can be written");
        codec::read::<Req, Resp>(&bytes).expect("it was written by us")
    };
    match codec::read::<Req, Resp>(data) {
        Ok(Message::Request(id, request)) => {
            match again(codec::request(id, &request)) {
                Message::Request(_, told) => same(&request, &told),
                _ => panic!("a request became something else"),
            }
            true
        }
        Ok(Message::Answer(id, Ok(response))) => {
            let shown = format!("{response:?}");
            match again(codec::answer(id, response)) {
                Message::Answer(_, Ok(told)) => assert_eq!(shown, format!("{told:?}")),
                _ => panic!("an answer became something else"),
            }
            true
        }
        Ok(Message::Answer(_, Err(_)) | Message::Cancel(_)) => true,
        Err(_) => false,
    }
}

fn same(one: &impl Debug, other: &impl Debug) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

/// Single messages: what is asked at a worker's own socket stands for all.
fn words(data: &[u8]) -> bool {
    let mut data = data;
    blocked(async { message::receive::<Ask>(&mut data, 64 * 1024).await.is_ok() })
}

/// A blob on its way in: kept only if it is what was declared.
fn upload(data: &[u8]) -> bool {
    let Some(([kind, high, low, piece], data)) = data.split_first_chunk::<4>() else {
        return false;
    };
    let declared = u64::from(u16::from_be_bytes([*high, *low]));
    let encoding = if kind % 2 == 0 { Encoding::Raw } else { Encoding::Zstd };
    let contents = match encoding {
        Encoding::Zstd => {
            let mut contents = Vec::new();
            let decoder = zstd::stream::read::Decoder::new(data).expect("it has read nothing yet");
            // What can't be decoded can't be what was declared.
            let _ = decoder.take(UPLOAD_BYTES_MAX).read_to_end(&mut contents);
            contents
        }
        _ => data.to_vec(),
    };
    let digest = Digest::of(&contents);
    let store = store();
    let had = store.contains(digest);
    let Ok(mut upload) = store.begin(digest, declared, encoding) else { return false };
    let pieces = data.chunks(usize::from(*piece) + 1).try_for_each(|piece| upload.push(piece));
    let taken = pieces.and_then(|()| upload.finish()).is_ok();
    if taken {
        assert_eq!(declared, contents.len() as u64, "it is as long as declared");
    } else {
        assert!(had || !store.contains(digest), "nothing is kept that was refused");
    }
    taken
}

/// A tree manifest: nothing outside of the sandbox is touched.
fn tree(data: &[u8]) -> bool {
    let Ok(entries) = packed::read::<Vec<TreeEntry>>(data) else { return false };
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).expect("a folder of ours");
    fs::write(outside.join("file"), "untouched").expect("a folder of ours");
    let before = listed(&outside);
    let absolute: Vec<PathBuf> = entries
        .iter()
        .map(|entry| entry.path.as_path().to_owned())
        // What exists here already proves nothing.
        .filter(|path| path.is_absolute() && fs::symlink_metadata(path).is_err())
        .collect();
    let roots = ["/code/a".into(), "/code/b".into()];
    let sandbox = Sandbox::at(folder.path().join("inside"), &roots).expect("these are fine roots");
    let laid = sandbox.lay(&store().claim(None), &entries).is_ok();
    assert_eq!(listed(&outside), before, "something outside was touched");
    let here: BTreeSet<_> = listed(folder.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(here.len(), 2, "{here:?}");
    for path in absolute {
        assert!(fs::symlink_metadata(&path).is_err(), "{} was made", path.display());
    }
    laid && !entries.is_empty()
}

fn listed(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let entries = fs::read_dir(folder).expect("a folder of ours").flatten();
    let mut all: Vec<_> = entries.map(|it| (it.path(), fs::read(it.path()).ok())).collect();
    all.sort();
    all
}

/// A program that a client sent.
fn executable(data: &[u8]) -> bool {
    Elf::parse(data).is_some_and(|elf| {
        let _ = elf.glibc();
        true
    })
}

/// What a test binary lists.
fn listing(data: &[u8]) -> bool {
    let half = data.len() / 2;
    let _ = cargo_distest::parse::cases(&data[..half], &data[half..]);
    cargo_distest::parse::names(data).is_ok_and(|names| !names.is_empty())
}

/// What rustdoc prints.
fn doctests(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let _ = cargo_distest::doctest::parse::may_have_some(&text);
    let mut reader = cargo_distest::doctest::parse::Reader::default();
    let said: usize = text.lines().map(|line| reader.line(line).len()).sum();
    said + reader.finish().len() + cargo_distest::doctest::parse::list(&text).len() > 0
}

/// An expression that selects tests.
fn filterset(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let select = SelectSettings { filtersets: vec![text.to_owned()], ..SelectSettings::default() };
    match Filter::new(&select, include_str!("../cargo-distest/src/filter/metadata.json")) {
        Ok(_) => true,
        Err(failure) => {
            let _ = failure.to_string();
            false
        }
    }
}

/// A configuration, of ours or of cargo-nextest.
fn configuration(data: &[u8]) -> bool {
    let Some((kind, text)) = data.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let file = Some(ConfigText { path: PathBuf::from("file.toml"), text: text.to_owned() });
    let files = match kind % 3 {
        0 => ConfigFiles { nextest: file, ..ConfigFiles::default() },
        1 => ConfigFiles { distest: file, ..ConfigFiles::default() },
        _ => ConfigFiles { user: file, ..ConfigFiles::default() },
    };
    let root = PathBuf::from("/code");
    let facts = Facts { cores: 2, workspace_root: root.clone(), cwd: root };
    settings::resolve(&RunArgs::default(), &|_| None, &files, &facts).is_ok()
}

/// Addresses and invitations: what is understood is written as it was read.
fn addresses(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let invitation = text.parse::<Invitation>();
    if let Ok(invitation) = &invitation {
        assert_eq!(invitation.to_string().parse::<Invitation>().as_ref(), Ok(invitation));
    }
    let address = text.parse::<WorkerAddress>();
    if let Ok(address) = &address {
        assert_eq!(address.to_string().parse::<WorkerAddress>().as_ref(), Ok(address));
    }
    invitation.is_ok() || address.is_ok()
}

/// The lists of keys that people edit.
fn keys(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (authorized, _) = AuthorizedKeys::parse(&text);
    for (key, about) in authorized.iter() {
        let line = about.line(key);
        let (again, told) = AuthorizedKeys::parse(&line);
        assert!(told.is_empty(), "{line:?}: {told:?}");
        assert_eq!(again.get(key), Some(about), "{line:?}");
    }
    let (known, _) = KnownWorkers::parse(&text);
    !authorized.is_empty() || known.iter().next().is_some()
}

/// Patterns of files.
fn globs(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let patterns: Vec<&str> = text.lines().collect();
    match Globs::new(&patterns) {
        Ok(globs) => {
            let _ = globs.matches(Path::new("/code/a/b.rs"), Some(Path::new("a/b.rs")));
            !patterns.is_empty()
        }
        Err(_) => false,
    }
}

/// A store that has [`BLOB`], for as long as the process.
fn store() -> &'static Store {
    static STORE: OnceLock<(TempDir, Store, Pin)> = OnceLock::new();
    let (_, store, _) = STORE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let store = Store::open(folder.path(), STORE_BYTES_MAX).expect("a folder of ours");
        let size = BLOB.len() as u64;
        let mut upload = store.begin(Digest::of(BLOB), size, Encoding::Raw).expect("there is room");
        upload.push(BLOB).and_then(|()| upload.finish()).expect("it is what was declared");
        let kept = store.pin([Digest::of(BLOB)]);
        (folder, store, kept)
    });
    store
}

fn blocked<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime can be made").block_on(work)
}
