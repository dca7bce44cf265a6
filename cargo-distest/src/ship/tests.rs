use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::AtomicBool;

use distest_worker::proof::Nonce;
use distest_worker::protocol::{
    AttemptId, BinaryKey, Challenge, ExecutablePiece, FilePiece, FolderPage, Freed, Lease, OsText,
    Pong, Proof, SessionReady, SessionSpec, StdinChunk, Stop, TestTime, TreePiece, UpgradeReply,
    Worker, WorkerStatus,
};
use distest_worker::sandbox::Sandbox;
use distest_worker::store::{Owned, Store, Upload};
use tarpc::server::{BaseChannel, Channel};

use super::*;
use crate::tree::copies::Copies;
use crate::tree::statcache::StatCache;
use crate::tree::{TreeRoots, TreeRules, collect};

/// A worker with a real store and sandbox, that does wrong when it is told to.
#[derive(Clone)]
struct FakeWorker {
    store: Store,
    /// What this client may use of it.
    owned: Owned,
    sandbox: Arc<Sandbox>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    uploads: BTreeMap<Digest, Upload>,
    /// Times that each blob was begun.
    begun: BTreeMap<Digest, u32>,
    asked: usize,
    /// What proofs are to be made with, if they are wanted, and how many there were.
    nonce: Option<Nonce>,
    proofs: usize,
    refuses_challenges: bool,
    refuses_proofs: bool,
    prepared: Vec<BinarySpec>,
    /// Refusals of the next pieces, of `lay_tree` and of `prepare`.
    refuse_puts: VecDeque<RefusalKind>,
    refuse_lays: VecDeque<RefusalKind>,
}

fn refusal(kind: Option<RefusalKind>) -> Result<(), Refusal> {
    kind.map_or(Ok(()), |kind| Err(Refusal::new(kind, "told to")))
}

impl FakeWorker {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn put_now(&self, chunk: &BlobChunk) -> Result<PutReply, Refusal> {
        let mut seen = self.seen();
        let BlobChunk { digest, size, encoding, .. } = *chunk;
        if self.owned.missing(&[digest]).is_empty() {
            return Ok(PutReply::Stored);
        }
        let mut upload = match seen.uploads.remove(&digest) {
            Some(upload) => upload,
            None => {
                *seen.begun.entry(digest).or_default() += 1;
                self.store.begin(digest, size, encoding)?
            }
        };
        refusal(seen.refuse_puts.pop_front())?;
        upload.push(&chunk.data)?;
        if chunk.last {
            upload.finish()?;
            self.owned.add(&[digest]);
            return Ok(PutReply::Stored);
        }
        seen.uploads.insert(digest, upload);
        Ok(PutReply::More)
    }
}

impl Worker for FakeWorker {
    async fn ping(self, _: Context) -> Pong {
        Pong::default()
    }
    async fn open(self, _: Context, _: SessionSpec) -> Result<SessionReady, Refusal> {
        Ok(SessionReady::default())
    }
    async fn missing(self, _: Context, digests: Vec<Digest>) -> Result<Vec<Digest>, Refusal> {
        self.seen().asked += digests.len();
        Ok(self.owned.missing(&digests))
    }
    async fn put(self, _: Context, chunk: BlobChunk) -> Result<PutReply, Refusal> {
        self.put_now(&chunk)
    }
    async fn lay_tree(self, _: Context, tree: TreeSpec) -> Result<(), Refusal> {
        refusal(self.seen().refuse_lays.pop_front())?;
        self.sandbox.lay(&self.store.claim(None), &tree.entries)
    }
    async fn prepare(self, _: Context, binary: BinarySpec) -> Result<(), Refusal> {
        refusal(self.seen().refuse_lays.pop_front())?;
        self.sandbox.lay(&self.store.claim(None), &binary.files)?;
        self.seen().prepared.push(binary);
        Ok(())
    }
    async fn lease(self, _: Context, _: Lease) -> Result<(), Refusal> {
        Ok(())
    }
    async fn revoke(self, _: Context, _: Vec<AttemptId>) -> Vec<AttemptId> {
        Vec::new()
    }
    async fn stop(self, _: Context, _: Stop) {}
    async fn stdin(self, _: Context, _: StdinChunk) -> Result<(), Refusal> {
        Ok(())
    }
    async fn signal(
        self,
        _: Context,
        _: distest_worker::protocol::AttemptId,
        _: distest_worker::protocol::AttemptSignal,
    ) -> Result<(), Refusal> {
        Ok(())
    }

    async fn status(self, _: Context) -> Result<WorkerStatus, Refusal> {
        Ok(WorkerStatus::default())
    }

    async fn drain(self, _: Context) -> Result<(), Refusal> {
        Ok(())
    }

    async fn challenge(self, _: Context) -> Result<Challenge, Refusal> {
        if self.seen().refuses_challenges {
            return Err(Refusal::new(RefusalKind::Invalid, "no challenges today"));
        }
        let nonce = self.seen().nonce.as_ref().map(|nonce| nonce.as_bytes().to_vec().into());
        Ok(Challenge { nonce: nonce.unwrap_or_default() })
    }

    async fn prove(self, _: Context, proofs: Vec<Proof>) -> Result<Vec<Digest>, Refusal> {
        let mut seen = self.seen();
        let nonce = seen.nonce.clone().expect("a challenge came first");
        seen.proofs += proofs.len();
        if seen.refuses_proofs {
            return Err(Refusal::new(RefusalKind::Invalid, "no proofs today"));
        }
        Ok(self.owned.prove(&nonce, &proofs, &AtomicBool::new(false)))
    }

    async fn read_file(self, _: Context, path: OsText, _: u64) -> Result<FilePiece, Refusal> {
        Err(Refusal::new(RefusalKind::Invalid, format!("there is no {path:?}")))
    }

    async fn write_file(self, _: Context, _: FilePiece) -> Result<(), Refusal> {
        Ok(())
    }

    async fn list_folder(self, _: Context, _: OsText, _: OsText) -> Result<FolderPage, Refusal> {
        Ok(FolderPage::default())
    }

    async fn write_tree(self, _: Context, _: TreePiece) -> Result<(), Refusal> {
        Ok(())
    }

    async fn remember(self, _: Context, _: Vec<TestTime>) -> Result<(), Refusal> {
        Ok(())
    }

    async fn upgrade(self, _: Context, _: ExecutablePiece) -> Result<UpgradeReply, Refusal> {
        Ok(UpgradeReply::Same {})
    }

    async fn collect_garbage(self, _: Context) -> Result<Freed, Refusal> {
        Ok(Freed::default())
    }

    async fn lacks_libraries(self, _: Context, _: Vec<String>) -> Result<Vec<String>, Refusal> {
        Ok(Vec::new())
    }

    async fn close(self, _: Context) {}
}

struct Bench {
    dir: tempfile::TempDir,
    worker: FakeWorker,
    shipper: Shipper,
}

impl Bench {
    /// Runs `test` with a worker for files in `dir/files`.
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("files")).unwrap();
            let store = Store::open(&dir.path().join("store"), 1 << 30).unwrap();
            let roots = [OsText::from(dir.path().join("files"))];
            let sandbox = Arc::new(Sandbox::at(dir.path().join("box"), &roots).unwrap());
            let owned = store.owned(Some("us"));
            let worker = FakeWorker { store, owned, sandbox, seen: Arc::default() };
            let (client, server) = tarpc::transport::channel::unbounded();
            let requests = BaseChannel::with_defaults(server).execute(worker.clone().serve());
            tokio::spawn(requests.for_each(|answer| async {
                tokio::spawn(answer);
            }));
            let client = WorkerClient::new(Default::default(), client).spawn();
            test(Self { dir, worker, shipper: Shipper::new(client, true) }).await;
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    /// A binary made of files with these names and contents.
    fn binary(&self, files: &[(&str, &[u8])]) -> (BinarySpec, BTreeMap<Digest, PathBuf>) {
        let mut sources = BTreeMap::new();
        let entries = files.iter().map(|(name, content)| {
            fs::write(self.path(name), content).unwrap();
            let (digest, size) = (Digest::of(content), content.len() as u64);
            sources.insert(digest, self.path(name));
            let node = TreeNode::File { digest, size, mode: 0o755 };
            TreeEntry { path: self.path(name).into(), node }
        });
        let spec = BinarySpec {
            key: BinaryKey(1),
            label: "a::b".into(),
            program: self.path(files[0].0).into(),
            cwd: self.dir.path().into(),
            env: Vec::new(),
            files: entries.collect(),
            writable: Vec::new(),
        };
        (spec, sources)
    }

    fn laid(&self, name: &str) -> Vec<u8> {
        fs::read(self.worker.sandbox.path(&self.path(name))).unwrap()
    }

    fn begun(&self) -> Vec<u32> {
        self.worker.seen().begun.values().copied().collect()
    }
}

/// Deterministic bytes that don't compress.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    (seed..).flat_map(|i| *Digest::of(&i.to_le_bytes()).as_bytes()).take(len).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, ShipError>) -> RefusalKind {
    match result {
        Err(ShipError::Refused(refusal)) => refusal.kind,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn what_others_have_sent_is_proved_and_not_sent() {
    Bench::run(|bench| async move {
        let (theirs, ours) = (noise(0, 300_000), noise(1, 1000));
        let mut upload = {
            let (digest, size) = (Digest::of(&theirs), theirs.len() as u64);
            bench.worker.store.begin(digest, size, distest_worker::protocol::Encoding::Raw).unwrap()
        };
        upload.push(&theirs).unwrap();
        upload.finish().unwrap();
        bench.worker.seen().nonce = Nonce::new();
        let (spec, files) = bench.binary(&[("theirs", &theirs), ("ours", &ours)]);
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert!(bench.laid("theirs") == theirs && bench.laid("ours") == ours);
        assert_eq!(bench.shipper.shipped().blobs, 1);
        assert_eq!(bench.worker.seen().proofs, 2);
        // What we have proved is ours.
        let other = Shipper::new(bench.shipper.worker.clone(), true);
        other.binary(&spec, &files).await.unwrap();
        assert_eq!((other.shipped(), bench.worker.seen().proofs), (Shipped::default(), 2));
    });
}

#[test]
fn a_worker_that_refuses_a_proof_gets_all_and_is_shown_no_more() {
    Bench::run(|bench| async move {
        bench.worker.seen().nonce = Nonce::new();
        bench.worker.seen().refuses_proofs = true;
        let (spec, files) = bench.binary(&[("a", b"b")]);
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!((bench.shipper.shipped().blobs, bench.worker.seen().proofs), (1, 1));
        let (spec, files) = bench.binary(&[("c", b"d")]);
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!((bench.shipper.shipped().blobs, bench.worker.seen().proofs), (2, 1));
    });
}

#[test]
fn a_worker_that_refuses_a_challenge_gets_all() {
    Bench::run(|bench| async move {
        bench.worker.seen().refuses_challenges = true;
        let (spec, files) = bench.binary(&[("a", b"b")]);
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!((bench.shipper.shipped().blobs, bench.worker.seen().proofs), (1, 0));
    });
}

#[test]
fn a_worker_that_takes_no_proofs_gets_all() {
    Bench::run(|bench| async move {
        bench.worker.seen().nonce = Nonce::new();
        let shipper = Shipper::new(bench.shipper.worker.clone(), false);
        let (spec, files) = bench.binary(&[("a", b"b")]);
        shipper.binary(&spec, &files).await.unwrap();
        assert_eq!((shipper.shipped().blobs, bench.worker.seen().proofs), (1, 0));
    });
}

#[test]
fn a_binary_arrives_and_the_second_time_sends_nothing() {
    Bench::run(|bench| async move {
        let told = Arc::new(Mutex::new(Shipped::default()));
        let shipper = bench.shipper.clone().with_progress({
            let told = Arc::clone(&told);
            move |more| {
                let mut told = told.lock().unwrap();
                told.bytes += more.bytes;
                told.blobs += more.blobs;
            }
        });
        let (big, zeros) = (noise(0, 700_001), vec![0; 3_000_000]);
        let (spec, files) =
            bench.binary(&[("big", &big), ("zeros", &zeros), ("small", b"x"), ("empty", b"")]);
        shipper.binary(&spec, &files).await.unwrap();
        for (name, content) in
            [("big", &big[..]), ("zeros", &zeros), ("small", b"x"), ("empty", b"")]
        {
            assert!(bench.laid(name) == content, "{name}");
        }
        assert_eq!(bench.worker.seen().prepared, std::slice::from_ref(&spec));
        let shipped = shipper.shipped();
        assert_eq!((shipped, shipped.blobs), (*told.lock().unwrap(), 4));
        assert!((700_001..710_000).contains(&shipped.bytes), "zeros compress: {shipped:?}");

        shipper.binary(&spec, &files).await.unwrap();
        assert_eq!(shipper.shipped(), shipped);
        assert_eq!(bench.worker.seen().asked, 4, "we know what we sent");
        // Another connection asks, and sends nothing either.
        let other = Shipper::new(shipper.worker.clone(), true);
        other.binary(&spec, &files).await.unwrap();
        assert_eq!(other.shipped(), Shipped::default());
        assert_eq!(bench.worker.seen().asked, 8);
    });
}

#[test]
fn a_tree_arrives() {
    Bench::run(|bench| async move {
        for i in 0..300 {
            let path = bench.path(&format!("d{}/f{i}", i % 7));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("content {}", i / 2)).unwrap();
        }
        std::os::unix::fs::symlink("d1", bench.path("link")).unwrap();
        let roots = TreeRoots { workspace: bench.dir.path().join("files"), ..Default::default() };
        let stats = Arc::new(StatCache::open(&bench.dir.path().join("stats")));
        let copies = Copies::new(&bench.dir.path().join("target"), stats);
        let tree = collect(&roots, &TreeRules::new(1000, 1 << 30), &copies).unwrap();
        // What was copied travels, whatever has become of the files.
        fs::write(bench.path("d1/f134"), "changed").unwrap();
        bench.shipper.tree(&tree).await.unwrap();
        assert_eq!(bench.laid("link/f134"), b"content 67");
        assert_eq!(bench.shipper.shipped().blobs, 150, "equal contents travel once");
    });
}

#[test]
fn binaries_that_are_shipped_at_once_share_their_blobs() {
    Bench::run(|bench| async move {
        let (a, b, c) = (noise(1, 400_000), noise(2, 400_000), noise(3, 400_000));
        let (first, first_files) = bench.binary(&[("a", &a), ("b", &b)]);
        let (second, second_files) = bench.binary(&[("c", &c), ("b", &b), ("a", &a)]);
        let (one, two) = tokio::join!(
            bench.shipper.binary(&first, &first_files),
            bench.shipper.binary(&second, &second_files),
        );
        one.unwrap();
        two.unwrap();
        assert_eq!(bench.begun(), [1, 1, 1]);
        assert_eq!(bench.shipper.shipped().blobs, 3);
    });
}

#[test]
fn a_spoilt_blob_is_sent_once_more_and_then_told() {
    Bench::run(|bench| async move {
        let (spec, files) = bench.binary(&[("a", &noise(1, 600_000))]);
        bench.worker.seen().refuse_puts = [RefusalKind::Corrupt].into();
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!(bench.begun(), [2]);

        let (spec, files) = bench.binary(&[("b", b"b")]);
        bench.worker.seen().refuse_puts = [RefusalKind::Corrupt; 2].into();
        assert_eq!(kind(bench.shipper.binary(&spec, &files).await), RefusalKind::Corrupt);
        // The next caller isn't made to believe that it is there.
        bench.shipper.binary(&spec, &files).await.unwrap();
    });
}

#[test]
fn a_lost_blob_is_sent_once_more() {
    Bench::run(|bench| async move {
        let content = noise(1, 1000);
        let (mut spec, files) = bench.binary(&[("a", &content)]);
        bench.shipper.binary(&spec, &files).await.unwrap();
        // The worker finds out that its copy is damaged when it uses it at another place.
        let hex = Digest::of(&content).to_string();
        let blob = bench.dir.path().join("store/v1/blobs").join(&hex[..2]).join(&hex);
        fs::write(&blob, "damaged").unwrap();
        spec.files[0].path = bench.path("elsewhere").into();
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!(bench.laid("elsewhere"), content);
        assert_eq!(bench.begun(), [2]);

        bench.worker.seen().refuse_lays = [RefusalKind::MissingBlob; 2].into();
        assert_eq!(kind(bench.shipper.binary(&spec, &files).await), RefusalKind::MissingBlob);
    });
}

#[test]
fn a_blob_that_was_abandoned_half_way_is_sent_again() {
    Bench::run(|bench| async move {
        let content = noise(1, 2_000_000);
        let (spec, files) = bench.binary(&[("a", &content)]);
        {
            let mut abandoned = std::pin::pin!(bench.shipper.binary(&spec, &files));
            while bench.worker.seen().uploads.is_empty() {
                tokio::select! {
                    biased;
                    done = &mut abandoned => panic!("it was to be abandoned before {done:?}"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!(bench.laid("a"), content);
    });
}

#[test]
fn a_full_worker_is_told_as_such() {
    Bench::run(|bench| async move {
        let contents: Vec<_> = (0..20).map(|i| (i.to_string(), noise(i * 1000, 9000))).collect();
        let named: Vec<_> = contents.iter().map(|(name, c)| (name.as_str(), &c[..])).collect();
        let (spec, files) = bench.binary(&named);
        bench.worker.seen().refuse_puts = [RefusalKind::OutOfResources].into();
        assert_eq!(kind(bench.shipper.binary(&spec, &files).await), RefusalKind::OutOfResources);
        let begun = bench.begun().len();
        assert!(begun <= BLOBS_IN_FLIGHT, "nothing is begun after that: {begun}");
        assert!(bench.worker.seen().uploads.is_empty(), "and nothing is left half-sent");
        bench.shipper.binary(&spec, &files).await.unwrap();
        assert_eq!(bench.laid("7"), contents[7].1);
    });
}

#[test]
fn a_file_that_changed_is_not_passed_off_as_what_it_was() {
    Bench::run(|bench| async move {
        let content = noise(1, 600_000);
        for replacement in [noise(2, 600_000), noise(2, 500_000), b"x".to_vec(), Vec::new()] {
            let (spec, files) = bench.binary(&[("a", &content)]);
            fs::write(bench.path("a"), &replacement).unwrap();
            let error = bench.shipper.binary(&spec, &files).await.unwrap_err();
            assert!(matches!(error, ShipError::Changed { .. }), "{error}");
            assert!(bench.worker.seen().uploads.is_empty());
        }
        let (spec, mut files) = bench.binary(&[("a", &content)]);
        fs::remove_file(bench.path("a")).unwrap();
        let error = bench.shipper.binary(&spec, &files).await.unwrap_err();
        assert!(matches!(error, ShipError::Read { .. }), "{error}");
        files.clear();
        let error = bench.shipper.binary(&spec, &files).await.unwrap_err();
        assert!(matches!(error, ShipError::Unknown(_)), "{error}");
        let (spec, files) = bench.binary(&[("a", &content)]);
        bench.shipper.binary(&spec, &files).await.unwrap();
    });
}

#[test]
fn many_entries_go_in_several_messages() {
    let entry = |i: u32| TreeEntry {
        path: format!("/code/{i}").into(),
        node: TreeNode::Folder { mode: 0o755 },
    };
    let entries: Vec<_> = (0..50_000).map(entry).collect();
    let batches = batches(&entries);
    assert_eq!(batches.concat(), entries);
    assert!((5..20).contains(&batches.len()), "{}", batches.len());
    assert!(super::batches(&[]).is_empty());
}
