use std::sync::atomic::AtomicBool;

use super::*;
use crate::proof::Nonce;
use crate::protocol::Proof;

const MAX: u64 = 1 << 20;

fn store(max: u64) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), max).unwrap();
    (dir, store)
}

fn take_in(store: &Store, data: &[u8]) -> Digest {
    let digest = Digest::of(data);
    let mut upload = store.begin(digest, data.len() as u64, Encoding::Raw).unwrap();
    upload.push(data).unwrap();
    upload.finish().unwrap();
    digest
}

/// Which of these are not in the store, whoever asks.
fn missing(store: &Store, digests: &[Digest]) -> Vec<Digest> {
    store.owned(None).missing(digests)
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

/// Sends `encoded` in small pieces; answers the kind and text of the refusal.
fn send(
    store: &Store,
    digest: Digest,
    size: u64,
    encoding: Encoding,
    encoded: &[u8],
) -> Result<(), Refusal> {
    let mut upload = store.begin(digest, size, encoding)?;
    for piece in encoded.chunks(1000) {
        upload.push(piece)?;
    }
    upload.finish()
}

/// Files in the folders of live processes that are uploads.
fn uploads(dir: &Path) -> usize {
    let live = fs::read_dir(dir.join("v1/live")).unwrap();
    live.flat_map(|process| fs::read_dir(process.unwrap().path()).unwrap())
        .filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().starts_with("upload"))
        .count()
}

/// Deterministic bytes that don't compress.
fn noise(len: usize) -> Vec<u8> {
    (0_u32..).flat_map(|i| *Digest::of(&i.to_le_bytes()).as_bytes()).take(len).collect()
}

#[test]
fn blobs_come_back_after_a_restart() {
    let (dir, store) = store(MAX);
    let data = noise(300_000);
    let digest = Digest::of(&data);
    send(&store, digest, 300_000, Encoding::Zstd, &zstd(&data)).unwrap();
    let empty = Digest::of(b"");
    send(&store, empty, 0, Encoding::Zstd, &zstd(b"")).unwrap();
    let other = Digest::of(b"other");
    drop(store);

    let store = Store::open(dir.path(), MAX).unwrap();
    assert_eq!(missing(&store, &[digest, other, empty]), [other]);
    let dest = dir.path().join("dest");
    store.place(digest, 300_000, 0o4755, &dest).unwrap();
    assert_eq!(fs::read(&dest).unwrap(), data);
    let mode = fs::metadata(&dest).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "never set-user-id");
    assert_eq!(uploads(dir.path()), 0);
    let private = fs::metadata(dir.path().join("v1")).unwrap().permissions().mode();
    assert_eq!(private & 0o777, 0o700);
}

#[test]
fn only_what_was_declared_gets_in() {
    let (dir, store) = store(MAX);
    let data = noise(50_000);
    let (digest, size) = (Digest::of(&data), 50_000);
    let frame = zstd(&data);
    let bomb = zstd(&vec![0; 64 << 20]);
    let (twice, cut) = (frame.repeat(2), &frame[..frame.len() - 3]);
    for (name, digest, size, encoding, sent, says) in [
        ("wrong digest", Digest::of(b"x"), size, Encoding::Zstd, &frame[..], "have digest"),
        ("bomb", digest, size, Encoding::Zstd, &bomb, "longer than that"),
        ("truncated frame", digest, size, Encoding::Zstd, cut, "no end"),
        ("nothing", digest, size, Encoding::Zstd, &[], "no end"),
        ("two frames", digest, size, Encoding::Zstd, &twice, "follow its zstd frame"),
        ("no frame", digest, size, Encoding::Zstd, &data, "no zstd frame"),
        ("too short", digest, size, Encoding::Raw, &data[..49_000], "1000 bytes lack"),
        ("too long", digest, 49_999, Encoding::Raw, &data, "longer than that"),
    ] {
        let refusal = send(&store, digest, size, encoding, sent).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Corrupt, "{name}");
        assert!(refusal.message.contains(says), "{name}: {}", refusal.message);
        assert_eq!(missing(&store, &[digest]), [digest], "{name}");
    }
    assert_eq!(uploads(dir.path()), 0);
    assert_eq!(store.usage().reserved, 0);
}

#[test]
fn a_flipped_bit_on_disk_is_noticed() {
    let (dir, store) = store(MAX);
    let data = noise(5000);
    let digest = take_in(&store, &data);
    let mut flipped = data.clone();
    flipped[4000] ^= 4;
    fs::write(store.blob(digest), flipped).unwrap();

    let dest = dir.path().join("dest");
    let refusal = store.place(digest, 5000, 0o644, &dest).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::MissingBlob, "{}", refusal.message);
    assert!(!dest.exists());
    assert_eq!(missing(&store, &[digest]), [digest], "the client sends it again");

    take_in(&store, &data);
    store.place(digest, 5000, 0o644, &dest).unwrap();
    assert_eq!(fs::read(dest).unwrap(), data);
}

#[test]
fn what_was_sent_again_is_not_removed_for_what_it_replaced() {
    let (_dir, store) = store(MAX);
    let data = noise(5000);
    let digest = take_in(&store, &data);
    let path = store.blob(digest);
    fs::write(&path, "damaged").unwrap();
    // Two read it; one finds the damage at once and gets it again, the other is slower.
    let slow = File::open(&path).unwrap();
    discard(&path, &File::open(&path).unwrap()).unwrap();
    take_in(&store, &data);
    discard(&path, &slow).unwrap_err();
    assert_eq!(missing(&store, &[digest]), []);
}

#[test]
fn a_blob_of_another_size_than_named_is_refused() {
    let (dir, store) = store(MAX);
    let digest = take_in(&store, b"hello");
    for wrong in [4, 6] {
        let refusal = store.place(digest, wrong, 0o644, &dir.path().join("dest")).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{}", refusal.message);
        assert!(store.contains(digest), "others may use it");
    }
    fs::write(store.blob(digest), "hell").unwrap();
    let refusal = store.place(digest, 5, 0o644, &dir.path().join("dest")).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::MissingBlob, "{}", refusal.message);
    assert!(!store.contains(digest));
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let (dir, store) = store(MAX);
    let data = noise(5000);
    let mut upload = store.begin(Digest::of(&data), 5000, Encoding::Raw).unwrap();
    // Whatever is written to this device fails with ENOSPC.
    upload.sink().file = File::options().write(true).open("/dev/full").unwrap();
    let refusal = upload.push(&data).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::OutOfResources);
    assert!(refusal.message.contains("No space left on device"), "{}", refusal.message);
    assert!(refusal.hint.is_some());
    drop(upload);
    assert_eq!(uploads(dir.path()), 0);
    assert_eq!(store.usage().reserved, 0);

    let full = File::options().write(true).open("/dev/full").unwrap();
    let digest = take_in(&store, &data);
    let refusal = store.copy_to(digest, 5000, &full).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::OutOfResources);
    assert!(store.contains(digest), "the blob is not to blame");
}

#[test]
fn the_bound_holds_and_pins_count_in_every_process() {
    // Each open store counts as a process of its own.
    let (dir, ours) = store(110_000);
    let theirs = Store::open(dir.path(), 110_000).unwrap();
    let blobs: Vec<Vec<u8>> = (0..4_u8).map(|i| vec![i; 30_000]).collect();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let digests: Vec<_> = (0..3)
        .map(|i| {
            let digest = take_in(&ours, &blobs[i as usize]);
            let file = File::options().write(true).open(ours.blob(digest)).unwrap();
            file.set_modified(hour_ago + Duration::from_secs(i)).unwrap();
            digest
        })
        .collect();
    let pin = theirs.pin(&digests[..1]);
    assert!(ours.contains(digests[1]), "counts as a use");

    let fourth = take_in(&ours, &blobs[3]);
    let all = [digests[0], digests[1], digests[2], fourth];
    assert_eq!(missing(&ours, &all), [digests[2]], "the oldest is pinned, the next was used");

    let _everything = ours.pin(all);
    let more = || {
        let mut upload = ours.begin(Digest::of(b"more"), 30_000, Encoding::Raw).unwrap();
        upload.push(&[0; 30_000])
    };
    let refused = more().unwrap_err();
    assert_eq!(refused.kind, RefusalKind::OutOfResources, "{}", refused.message);
    drop((pin, _everything));
    assert_eq!(more(), Ok(()));
    assert!(ours.begin(Digest::of(b"huge"), 110_001, Encoding::Raw).is_err());
}

#[test]
fn a_size_that_is_only_declared_takes_nothing_from_anybody() {
    let (_dir, store) = store(MAX);
    let theirs = take_in(&store, &noise(500_000));
    let mut upload = store.begin(Digest::of(b"?"), MAX, Encoding::Raw).unwrap();
    upload.push(b"a little").unwrap();
    assert!(store.usage().reserved <= 4096);
    assert!(store.contains(theirs));
    // What comes does.
    upload.push(&noise(700_000)).unwrap();
    assert!(!store.contains(theirs));
    drop(upload);
    assert_eq!(store.usage().reserved, 0);
}

#[test]
fn tiny_blobs_take_a_block_each() {
    let (_dir, store) = store(10 * 4096);
    for i in 0..30_u8 {
        take_in(&store, &[i]);
    }
    assert!(store.bytes() <= 10 * 4096, "{}", store.bytes());
    assert!(store.evicted() >= 20, "{}", store.evicted());
}

#[test]
fn what_a_client_takes_beside_blobs_is_bounded_over_all_its_connections() {
    let (_dir, store) = store(100 * 4096);
    let [one, other] = [store.claim(Some("alice")), store.claim(Some("alice"))];
    one.file(300 * 4096, None).unwrap();
    let refused = other.file(200 * 4096, None).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::OutOfResources, "{}", refused.message);
    assert_eq!(store.claim(Some("bob")).file(400 * 4096, None), Ok(()));
    assert_eq!(store.claim(None).file(u64::MAX / 2, None), Ok(()));
    // A file in place of another one counts once.
    for _ in 0..9 {
        one.file(300 * 4096, Some(300 * 4096)).unwrap();
    }
    drop(one);
    assert_eq!(other.file(200 * 4096, None), Ok(()));
}

#[test]
fn all_goes_that_no_process_has_pinned() {
    let (dir, store) = store(MAX);
    let [used, unused] = [b"used".as_slice(), b"unused"].map(|data| take_in(&store, data));
    let other = Store::open(dir.path(), MAX).unwrap();
    let pin = other.pin([used]);
    assert_eq!(store.evict_unused().unwrap(), Freed { blobs: 1, bytes: 4096 });
    assert_eq!((missing(&store, &[used, unused]), store.bytes()), (vec![unused], 4096));
    assert_eq!(store.evict_unused().unwrap(), Freed::default());
    drop(pin);
    assert_eq!(store.evict_unused().unwrap(), Freed { blobs: 1, bytes: 4096 });
    assert_eq!((store.bytes(), store.evicted()), (0, 2));
}

#[test]
fn what_dead_processes_left_is_removed_and_what_live_ones_have_stays() {
    let (dir, store) = store(MAX);
    let upload = store.begin(Digest::of(b"x"), 1, Encoding::Raw).unwrap();
    let dead = dir.path().join("v1/live/4711-dead");
    fs::create_dir_all(dead.join("scratch/read-only")).unwrap();
    fs::write(dead.join("scratch/read-only/file"), "x").unwrap();
    fs::write(dead.join("owner"), "").unwrap();
    fs::set_permissions(dead.join("scratch/read-only"), fs::Permissions::from_mode(0o500)).unwrap();

    let other = Store::open(dir.path(), MAX).unwrap();
    assert!(!dead.exists());
    assert!(upload.temp.exists());
    assert!(other.scratch().is_dir());
    let gone = other.scratch().to_owned();
    drop(other);
    assert!(!gone.exists());
}

const CHILD: &str = "DISTEST_STORE_TEST_DIR";

/// What each process of the test below does.
fn upload_and_place(dir: &Path) {
    let store = Store::open(dir, 64 << 20).unwrap();
    for round in 0..20_u8 {
        let data = vec![round; 100_000];
        let digest = Digest::of(&data);
        let frame = zstd(&data);
        send(&store, digest, 100_000, Encoding::Zstd, &frame).unwrap();
        let dest = store.scratch().join(round.to_string());
        store.place(digest, 100_000, 0o600, &dest).unwrap();
        assert_eq!(fs::read(dest).unwrap(), data);
    }
}

#[test]
fn several_processes_upload_the_same_blobs() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return upload_and_place(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "store::tests::several_processes_upload_the_same_blobs"])
                .env(CHILD, dir.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let store = Store::open(dir.path(), 64 << 20).unwrap();
    let digests: Vec<_> = (0..20).map(|round| Digest::of(&vec![round; 100_000])).collect();
    assert_eq!(missing(&store, &digests), []);
    assert_eq!(store.usage().stored, 20 * 25 * 4096);
    assert_eq!(fs::read_dir(dir.path().join("v1/live")).unwrap().count(), 1, "only ours");
}

#[test]
fn what_is_known_to_be_a_clients_survives_and_is_bounded() {
    let (dir, store) = store(MAX);
    let digests = [b"a", b"b"].map(|data| take_in(&store, data));
    let [alice, bob] = ["alice", "bob"].map(|key| store.owned(Some(key)));
    assert_eq!(alice.missing(&digests), digests);
    assert!(!alice.others_have_some());
    alice.add(&digests);
    bob.add(&digests[1..]);
    assert!(alice.others_have_some());
    assert_eq!(alice.missing(&digests), []);
    assert_eq!(bob.missing(&digests), digests[..1]);
    assert_eq!(bob.lacks(&digests), Some(digests[0]));
    assert_eq!(store.owned(None).lacks(&digests), None);
    // Another connection, and another process, one of which was killed while it wrote.
    let path = dir.path().join("v1/owners/alice");
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&[7; 31]);
    fs::write(&path, bytes).unwrap();
    let other = Store::open(dir.path(), MAX).unwrap();
    assert_eq!(other.owned(Some("alice")).missing(&digests), []);
    other.owned(Some("alice")).add(&[Digest::of(b"c")]);
    let read_anew = Store::open(dir.path(), MAX).unwrap().owned(Some("alice"));
    assert_eq!(read_anew.lacks(&[digests[0], digests[1], Digest::of(b"c")]), None);
    // What is added elsewhere is known here.
    let late = take_in(&store, b"late");
    other.owned(Some("bob")).add(&[late]);
    assert_eq!(bob.missing(&[late]), []);
}

#[test]
fn blobs_from_before_are_nobodys() {
    let (dir, store) = store(MAX);
    let digest = take_in(&store, b"a");
    drop(store);
    fs::remove_dir_all(dir.path().join("v1/owners")).unwrap();
    let store = Store::open(dir.path(), MAX).unwrap();
    let alice = store.owned(Some("alice"));
    assert_eq!(alice.missing(&[digest]), [digest]);
    assert!(alice.others_have_some(), "proving is worth the while");
}

#[tokio::test]
async fn proofs_are_looked_at_one_call_after_another_and_for_nobody_who_is_gone() {
    let (_dir, store) = store(MAX);
    let nonce = Nonce::new().unwrap();
    let digest = take_in(&store, b"a");
    let mac = nonce.prove(&b"a"[..]).unwrap().as_bytes().to_vec().into();
    let proofs = [Proof { digest, size: 1, mac }];
    let alice = store.owned(Some("alice"));
    assert_eq!(alice.prove(&nonce, &proofs, &AtomicBool::new(true)), []);
    assert_eq!(alice.prove(&nonce, &proofs, &AtomicBool::new(false)), [digest]);
    let turn = store.proving().await;
    let other = store.clone();
    let next = other.proving();
    tokio::pin!(next);
    assert!(futures::poll!(&mut next).is_pending());
    drop(turn);
    next.await;
}
