//! What mutations begin with: one valid input of each shape, for each target.

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::hello::{Hello, Role};
use distest_worker::identity::PublicKey;
use distest_worker::link::codec;
use distest_worker::protocol::*;

/// The seeds of a target.
pub(crate) fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "hello" => vec![("worker", greeting(Role::Worker)), ("client", greeting(Role::Client))],
        "frames" => vec![
            ("one", [&[3][..], &frame(0, 1, b"message")].concat()),
            ("interleaved", interleaved()),
        ],
        "to_worker" => to_worker(),
        "to_client" => to_client(),
        "words" => vec![("invite", words())],
        "upload" => uploads(),
        "tree" => trees(),
        // Kept as `main`: an empty program, for which no bytes are to be written by hand.
        "executable" => Vec::new(),
        "listing" => vec![
            ("names", b"a::b: test\nc: benchmark\n".to_vec()),
            ("odd", "gr\u{fc}\u{df}e \u{2603} \t: test\r\n--exact: test\n".as_bytes().to_vec()),
        ],
        "doctests" => vec![
            ("list", b"src/lib.rs - f (line 3): test\n\n1 tests, 0 benchmarks\n".to_vec()),
            (
                "run",
                b"\nrunning 2 tests\ntest src/lib.rs - f (line 3) ... ok\n\
                  test src/lib.rs - g (line 9) ... FAILED\n\nfailures:\n\n\
                  ---- src/lib.rs - g (line 9) stdout ----\nout\n\n\
                  test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n"
                    .to_vec(),
            ),
        ],
        "filterset" => text(&[
            ("names", "test(=a::b) | test(/^slow/) & !package(alpha)"),
            (
                "sets",
                "deps(alpha) + rdeps(beta) - (kind(lib) or binary_id(alpha::*)) and not default()",
            ),
            ("platform", "platform(host) & binary(api) | all() - none()"),
        ]),
        "configuration" => vec![("nextest", nextest()), ("distest", distest()), ("user", user())],
        "addresses" => {
            let mut all = text(&[
                ("tcp", "tcp://[::1]:7777"),
                ("ssh", "ssh://user@host:22"),
                ("listen", "listen://0.0.0.0:7"),
                ("mdns", "mdns"),
            ]);
            let key = key();
            all.push(("pinned", format!("registry://host:7700#{key}").into_bytes()));
            let invitation =
                format!("invite+worker://host:7/{key}/AAECAwQFBgcICQoLDA0ODw/run,view");
            all.push(("invitation", invitation.into_bytes()));
            all
        }
        "keys" => vec![
            ("authorized", format!("# people\n{} run,view alice\n", key()).into_bytes()),
            ("known", format!("{} host:7777 big\n", key()).into_bytes()),
        ],
        "globs" => text(&[("some", "data/**/*.bin\n*.iso\n!docs\n[a-c]?.{x,y}"), ("one", "**")]),
        other => panic!("{other} has no seeds"),
    }
}

fn text(list: &[(&'static str, &str)]) -> Vec<(&'static str, Vec<u8>)> {
    list.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect()
}

/// Always the same one.
fn key() -> String {
    let mut spki = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".to_vec();
    spki.extend(0..32);
    PublicKey::from_spki(&spki).expect("a key").to_string()
}

fn greeting(role: Role) -> Vec<u8> {
    let mut hello = Hello { slots: 4, name: "w".to_owned(), ..Hello::default() };
    hello.role = role;
    let map = rmp_serde::to_vec_named(&hello).expect("it can be written");
    let mut bytes = b"\xd1distest".to_vec();
    bytes.extend(hello.protocol.major.to_be_bytes());
    bytes.extend(hello.protocol.minor.to_be_bytes());
    bytes.extend((map.len() as u32).to_be_bytes());
    bytes.extend(map);
    bytes
}

fn frame(channel: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    [&[channel, flags, high, low], payload].concat()
}

fn interleaved() -> Vec<u8> {
    let frames = [
        frame(1, 0, b"large "),
        frame(0, 1, b"small"),
        frame(2, 0, &7u64.to_be_bytes()),
        frame(1, 1, b"message"),
        frame(2, 1, b"enough"),
    ];
    [vec![1], frames.concat()].concat()
}

fn request<T: serde::Serialize>(request: &T) -> Vec<u8> {
    codec::request(1, request).expect("it can be written")
}

fn answer<T: serde::Serialize>(response: T) -> Vec<u8> {
    codec::answer(1, response).expect("it can be written")
}

fn digest() -> Digest {
    Digest::of(b"contents")
}

fn to_worker() -> Vec<(&'static str, Vec<u8>)> {
    let attempt = AttemptSpec {
        places: 1,
        id: AttemptId(7),
        binary: BinaryKey(1),
        args: vec!["--exact".into(), "a::b".into()],
        env: vec![("K".into(), "v".into())],
        limits: Limits::default(),
        streams: Streams::Capture,
        progress: true,
        unset: vec!["X".into()],
        network: Network::Host,
        label: "a a::b".to_owned(),
    };
    let spec = SessionSpec {
        run: "run".to_owned(),
        slots: 2,
        roots: vec!["/code/a".into()],
        ..SessionSpec::default()
    };
    vec![
        ("ping", request(&WorkerRequest::Ping {})),
        ("open", request(&WorkerRequest::Open { spec })),
        ("missing", request(&WorkerRequest::Missing { digests: vec![digest()] })),
        ("lease", request(&WorkerRequest::Lease { lease: Lease { attempts: vec![attempt] } })),
        ("answer", answer(ClientResponse::Report(()))),
    ]
}

fn to_client() -> Vec<(&'static str, Vec<u8>)> {
    let chunk = OutputChunk {
        attempt: AttemptId(7),
        stream: Stream::Stdout,
        data: Bytes::from_static(b"out"),
    };
    let reports = vec![
        Report::Lost {
            attempt: AttemptId(7),
            reason: LossReason::Dropped,
            detail: "gone".to_owned(),
        },
        Report::Draining {},
    ];
    vec![
        ("output", request(&ClientRequest::Output { chunk })),
        ("report", request(&ClientRequest::Report { reports })),
        ("missing", answer(WorkerResponse::Missing(Ok(vec![digest()])))),
        ("refused", answer(WorkerResponse::Prepare(Err(refusal())))),
    ]
}

fn refusal() -> Refusal {
    Refusal::new(RefusalKind::Forbidden, "no").with_hint("ask")
}

fn words() -> Vec<u8> {
    use distest_worker::serve::control::Ask;
    let ask = Ask::Invite { permissions: Vec::new(), valid_s: 60, address: None };
    let map = rmp_serde::to_vec_named(&ask).expect("it can be written");
    [(map.len() as u32).to_be_bytes().to_vec(), map].concat()
}

fn uploads() -> Vec<(&'static str, Vec<u8>)> {
    let contents = b"some contents that repeat, that repeat, that repeat";
    let head = |kind: u8, length: usize| {
        let [high, low] = (length as u16).to_be_bytes();
        vec![kind, high, low, 9]
    };
    let packed = zstd::encode_all(&contents[..], 3).expect("in memory");
    let bomb = zstd::encode_all(&vec![0; 1 << 20][..], 3).expect("in memory");
    vec![
        ("raw", [head(0, contents.len()), contents.to_vec()].concat()),
        ("zstd", [head(1, contents.len()), packed].concat()),
        ("bomb", [head(1, 100), bomb].concat()),
    ]
}

/// Entries of a tree whose file's contents are there.
fn entries(list: &[(&str, &str)]) -> Vec<u8> {
    let entries = list.iter().map(|(path, node)| {
        let node = match *node {
            "folder" => TreeNode::Folder { mode: 0o755 },
            "file" => {
                let (digest, size) = (digest(), 8);
                TreeNode::File { digest, size, mode: 0o644 }
            }
            target => TreeNode::Link { target: target.into() },
        };
        TreeEntry { path: (*path).into(), node }
    });
    rmp_serde::to_vec_named(&entries.collect::<Vec<_>>()).expect("it can be written")
}

fn trees() -> Vec<(&'static str, Vec<u8>)> {
    let out = "../../../../outside";
    vec![
        ("plain", entries(&[("/code/a/d", "folder"), ("/code/a/d/f", "file"), ("/code/a/l", "d")])),
        ("through", entries(&[("/code/a/l", out), ("/code/a/l/new", "file")])),
        ("over", entries(&[("/code/a/l", out), ("/code/a/l", "folder"), ("/code/a/l/x", "file")])),
        ("up", entries(&[("/code/a/../../../outside/new", "file"), ("/code/c/f", "file")])),
    ]
}

fn nextest() -> Vec<u8> {
    let text = "[store]\ndir = \"target/x\"\n[profile.default]\nretries = { backoff = \"exponential\", \
                count = 3, delay = \"1s\", jitter = true, max-delay = \"10s\" }\nslow-timeout = { period = \
                \"20s\", terminate-after = 3 }\nfail-fast = false\ntest-threads = -1\n\
                [[profile.default.overrides]]\nfilter = \"test(db)\"\ntest-group = \"db\"\n\
                [test-groups]\ndb = { max-threads = 1 }\n[profile.default.junit]\npath = \"junit.xml\"\n";
    [&[0], text.as_bytes()].concat()
}

fn distest() -> Vec<u8> {
    let text = "[fleet]\nworkers = [\"tcp://a:1\"]\n[profile.default]\ninclude = [\"data/*.bin\"]\n\
                env = { pass = [\"APP_*\"] }\nforward = [5432]\nnetwork = \"private\"\n\
                isolation = { mode = \"process\", writes = \"lease\" }\n\
                [[profile.default.overrides]]\nfilter = \"all()\"\nrequires = [\"gpu=yes\"]\n";
    [&[1], text.as_bytes()].concat()
}

fn user() -> Vec<u8> {
    [&[2], &b"[fleet]\nworkers = [\"mdns\"]\nfallback = \"fail\"\n"[..]].concat()
}
