//! What one key can take of a worker: never so much that nothing is left for others.

use super::*;

/// Bytes of a text that takes nearly all of a message.
const LARGE: usize = 7 << 20;
/// More than what a worker keeps for one session, by far less than what it was made to keep.
const MEMORY_BYTES_MAX: u64 = 300 << 20;

impl Served {
    /// Bytes of memory that the worker has used at most.
    fn memory_bytes(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Served {
    /// How many processes it has started that are there.
    fn children(&self) -> usize {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        std::fs::read_to_string(children).unwrap().split_whitespace().count()
    }
}

impl Peer {
    async fn prepare(&self, number: u32, env: Vec<(OsText, OsText)>) -> Result<(), Refusal> {
        let (label, program, cwd) = (format!("b{number}"), "/bin/sh".into(), "/".into());
        let (key, files, writable) = (BinaryKey(number), Vec::new(), Vec::new());
        let binary = BinarySpec { key, label, program, cwd, env, files, writable };
        self.worker.prepare(link::context(DEADLINE), binary).await.unwrap()
    }
}

/// How many times it goes well before the worker refuses more, for want of memory.
async fn taken<F>(what: impl Fn(u32) -> F) -> u32
where
    F: Future<Output = Result<(), Refusal>>,
{
    for number in 0.. {
        match what(number).await {
            Ok(()) => {}
            Err(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::OutOfResources, "{refusal}");
                return number;
            }
        }
    }
    unreachable!("there are enough numbers");
}

#[tokio::test]
async fn what_a_client_says_takes_little_of_a_workers_memory() {
    let served = Served::start();
    let peer = connect(served.stream_of(&served.our_key).await).await;
    let large = || vec![("LARGE".into(), "x".repeat(LARGE).into())];
    let (roots, env) = (vec!["/client".into()], large());
    let spec = SessionSpec { roots, env, ..SessionSpec::default() };
    // Few bytes on the wire, many in memory.
    let many = SessionSpec { env: vec![("".into(), "".into()); 1_000_000], ..spec.clone() };
    let refusal = peer.worker.open(link::context(DEADLINE), many).await.unwrap().unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::OutOfResources, "{refusal}");
    peer.worker.open(link::context(DEADLINE), spec).await.unwrap().unwrap();

    // The session's environment is there once, however many binaries have it.
    let small = taken(|number| peer.prepare(number, Vec::new())).await;
    assert!(small >= 1000, "{small} binaries");
    peer.prepare(0, Vec::new()).await.expect("it may be prepared again");
    let binaries = taken(|number| peer.prepare(number % small, large())).await;
    assert!((1..20).contains(&binaries), "{binaries} binaries with a large environment");
    // Two run, which couldn't with a variable like that, for as long as all others wait.
    peer.prepare(0, Vec::new()).await.unwrap();
    let lease = |number: u32| {
        let runs = attempt(number.into(), "sleep 1000", Streams::Capture);
        let mut args = runs.args.clone();
        args.extend((number > 1).then(|| OsText::from("x".repeat(LARGE))));
        let attempts = vec![AttemptSpec { args, unset: vec!["LARGE".into()], ..runs }];
        let worker = &peer.worker;
        async move { worker.lease(link::context(DEADLINE), Lease { attempts }).await.unwrap() }
    };
    let attempts = taken(lease).await;
    assert!((3..20).contains(&attempts), "{attempts} attempts with large arguments");
    let memory = served.memory_bytes();
    assert!(memory < MEMORY_BYTES_MAX, "{} MiB", memory >> 20);
}

/// Connections that one key gets, as documented.
const OF_ONE_KEY: usize = 128;

#[tokio::test]
async fn a_key_with_all_its_connections_keeps_nobody_else_out_and_is_told() {
    let served = Served::start();
    let key = PrivateKey::generate().unwrap();
    std::fs::write(served.authorized_keys(), format!("{} view x\n", key.public())).unwrap();
    let mut peers = Vec::new();
    for _ in 0..OF_ONE_KEY {
        peers.push(connect(served.stream_of(&key).await).await);
    }
    let Err(HelloError::Refused(refusal)) = greets(&served, &key).await else {
        panic!("one more was let in");
    };
    assert_eq!(refusal.kind, RefusalKind::OutOfResources);
    assert!(refusal.message.contains("128 connections of this key"), "{refusal}");
    assert!(refusal.hint.is_some_and(|hint| hint.contains("another worker")));
    greets(&served, &served.our_key).await.expect("another key has its own");
    // What has ended is the next one's.
    let ended = peers.pop().unwrap();
    ended.link.close("enough").await;
    while greets(&served, &key).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_session_has_as_many_helpers_as_it_ran_attempts_at_once() {
    let served = Served::start();
    let mut peers = Vec::new();
    for _ in 0..10 {
        let peer = session_of(&served, &served.our_key).await;
        peer.prepare_sh("/", vec![], vec![]).await.unwrap();
        peers.push(peer);
    }
    assert_eq!(served.children(), 0, "none runs anything");
    let peer = &mut peers[0];
    for id in 0..3 {
        peer.lease(&[(id, "true", Streams::Capture)]).await;
        peer.started(id).await;
        assert_eq!(peer.finished(id).await.exit, Exit::Code(0));
    }
    assert_eq!(served.children(), 1, "it ran one after the other");
}

#[tokio::test]
async fn an_attempt_with_limits_beyond_all_time_runs() {
    let (mut peer, _served) = session(&shared(1, None)).await;
    let most = Duration::MAX;
    let limits = Limits { slow_after: most, timeout: Some(most), grace: most, leak_timeout: most };
    let spec = AttemptSpec { limits, ..attempt(1, "exit 3", Streams::Capture) };
    let lease = Lease { attempts: vec![spec] };
    peer.worker.lease(link::context(DEADLINE), lease).await.unwrap().unwrap();
    peer.started(1).await;
    assert_eq!(peer.finished(1).await.exit, Exit::Code(3));
}
