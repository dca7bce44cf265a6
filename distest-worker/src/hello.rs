//! The fixed greeting before tarpc: who is there, which version.
//!
//! Each side sends `{magic 8 bytes, major u16, minor u16, length u32}`, big endian, and `length`
//! bytes of a MessagePack map ([`Hello`]). Whatever else a stream says first is no distest peer. The
//! worker then answers the client's greeting with a verdict, so that a client that isn't let in
//! learns why, and is "connected" only after it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::protocol::{Labels, Refusal};

/// The version spoken here.
///
/// 1.1: a worker's status, and that it drains.
pub const PROTOCOL: Version = Version { major: 1, minor: 1 };
/// How long a peer may take to greet.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The first bytes on every connection. Not text, so that no text protocol is mistaken for it.
const MAGIC: [u8; 8] = *b"\xd1distest";
/// Bytes before the map.
const HEAD_BYTES: usize = 16;
/// The most bytes of the map, and of a verdict.
const HELLO_BYTES_MAX: usize = 64 * 1024;

/// A version of the protocol.
///
/// A major version changes what is there; a minor one only adds. Peers one minor version apart
/// work together and use what the older one has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Version {
    /// Changes when peers can't talk any more.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
}

/// Which end a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Role {
    /// It has tests to run.
    #[default]
    Client,
    /// It runs tests.
    Worker,
}

/// What a peer says of itself. A field that it doesn't send has its default.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// Version of the protocol. Sent ahead of the map.
    #[serde(skip)]
    pub protocol: Version,
    /// Version of the software: `0.1.0`.
    pub software: String,
    /// Name that people know it by.
    pub name: String,
    /// Which end it is.
    pub role: Role,
    /// What it was built for: `x86_64-unknown-linux-gnu`.
    pub target: String,
    /// Instructions beyond the target's baseline: `avx2`.
    pub cpu_features: Vec<String>,
    /// Name and version of its C library: `glibc 2.36`. Empty if unknown.
    pub libc: String,
    /// Labels given to a worker.
    pub labels: Labels,
    /// How a worker recreates the client's paths: the number of a
    /// [`Level`](crate::sandbox::level::Level).
    pub sandbox_level: u32,
    /// Slots of a worker.
    pub slots: u32,
    /// Programs of a worker's that some tests need: `cargo`.
    pub tools: Vec<String>,
    /// Whether a worker gives attempts that ask for it a network of their own.
    pub private_network: bool,
    /// Why it doesn't, in words; empty if it knows nothing of that.
    pub private_network_lack: String,
    /// Whether a worker carries connections of such attempts to services of the client's.
    pub forwards: bool,
    /// Whether a worker takes proofs that a client holds a blob, in place of the blob.
    pub proofs: bool,
    /// Which process of a worker this is, whatever address it was reached at: random. Empty if it
    /// doesn't say.
    pub instance: String,
    /// Why a worker gives the client that it greets no session for tests, as it would answer if asked
    /// for one now. None from one that would, or doesn't say.
    pub refusal: Option<Refusal>,
    /// Whether a client comes back on another connection if this one breaks, to a worker that says
    /// what to call it then.
    pub comes_back: bool,
    /// What a worker calls this connection, for a client that comes back: random, and secret. Empty if
    /// it ends with its stream.
    pub comeback: String,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// Something else answers there.
    #[error("this is no distest peer: it began with {0}")]
    NotDistest(String),
    /// It speaks a version that this end doesn't.
    #[error(
        "the other side speaks version {theirs} of distest's protocol, this one version {PROTOCOL}"
    )]
    Version {
        /// Its version.
        theirs: Version,
    },
    /// It said nothing, or not all.
    #[error("the other side said nothing for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It closed the connection.
    #[error("the other side closed the connection before it said who it is")]
    Closed,
    /// Its greeting is larger than any.
    #[error("the other side's greeting has {0} bytes, more than {HELLO_BYTES_MAX}")]
    TooLarge(u32),
    /// Its greeting can't be read.
    #[error("the other side's greeting makes no sense: {0}")]
    Garbled(String),
    /// Both ends are workers, or both clients.
    #[error("the other side is a {0} like this one")]
    SameRole(Role),
    /// It doesn't let us in.
    #[error("{0}")]
    Refused(Refusal),
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Io(io::Error),
}

/// What a worker makes of a client's greeting.
#[derive(Serialize, Deserialize)]
enum Verdict {
    Accepted {},
    Refused(Refusal),
}

/// Greets the peer and reads its greeting.
///
/// For a client this includes the worker's verdict: it is connected after it. A worker sends its
/// verdict by [`accept`] or [`refuse`]. Takes at most `timeout`.
///
/// # Errors
/// See [`HelloError`]; the stream is of no use after one.
pub async fn exchange<S>(
    stream: &mut S,
    ours: &Hello,
    timeout: Duration,
) -> Result<Hello, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        let greeting = greeting(ours)?;
        let (mut read, mut write) = tokio::io::split(&mut *stream);
        // Both at once: neither end may wait for the other to read first. Ours goes out whole even
        // if theirs is wrong, so that they can say so too.
        let sent = async {
            write.write_all(&greeting).await?;
            write.flush().await
        };
        let (sent, theirs) = tokio::join!(sent, read_greeting(&mut read));
        let theirs = theirs?;
        if theirs.role == ours.role {
            return Err(HelloError::SameRole(ours.role));
        }
        sent?;
        if ours.role == Role::Client {
            read_verdict(stream).await?;
        }
        Ok(theirs)
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(result) => result,
        Err(_) => Err(HelloError::Silent(timeout)),
    }
}

/// A worker lets the client in.
///
/// # Errors
/// [`HelloError::Io`].
pub async fn accept(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), HelloError> {
    write_verdict(stream, &Verdict::Accepted {}).await
}

/// A worker doesn't let the client in.
///
/// # Errors
/// [`HelloError::Io`].
pub async fn refuse(
    stream: &mut (impl AsyncWrite + Unpin),
    refusal: Refusal,
) -> Result<(), HelloError> {
    write_verdict(stream, &Verdict::Refused(refusal)).await
}

impl Hello {
    /// What this process says of itself.
    pub fn new(role: Role, name: impl Into<String>) -> Self {
        Self {
            protocol: PROTOCOL,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            name: name.into(),
            role,
            target: env!("DISTEST_TARGET").to_owned(),
            cpu_features: cpu_features(),
            libc: libc_version(),
            labels: BTreeMap::new(),
            sandbox_level: 0,
            slots: 0,
            tools: Vec::new(),
            private_network: false,
            private_network_lack: String::new(),
            forwards: false,
            proofs: false,
            instance: String::new(),
            refusal: None,
            comes_back: false,
            comeback: String::new(),
        }
    }
}

impl Default for Hello {
    /// A peer that says nothing of itself.
    fn default() -> Self {
        Self {
            protocol: PROTOCOL,
            software: String::new(),
            name: String::new(),
            role: Role::Client,
            target: String::new(),
            cpu_features: Vec::new(),
            libc: String::new(),
            labels: BTreeMap::new(),
            sandbox_level: 0,
            slots: 0,
            tools: Vec::new(),
            private_network: false,
            private_network_lack: String::new(),
            forwards: false,
            proofs: false,
            instance: String::new(),
            refusal: None,
            comes_back: false,
            comeback: String::new(),
        }
    }
}

impl Version {
    /// The version that two ends speak with each other, if there is one.
    pub fn agreed(self, theirs: Self) -> Option<Self> {
        let near = self.major == theirs.major && self.minor.abs_diff(theirs.minor) <= 1;
        near.then(|| self.min(theirs))
    }
}

impl HelloError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotDistest(what) if what.contains("SSH-") => {
                Some("an ssh server answers there: use ssh://HOST instead of tcp://".to_owned())
            }
            Self::NotDistest(_) => {
                Some("check host and port: a worker prints its address when it is ready".to_owned())
            }
            Self::Version { theirs } => {
                let older = if *theirs < PROTOCOL { "the other side" } else { "this side" };
                Some(format!("upgrade cargo-distest on {older}"))
            }
            Self::Silent(_) => {
                Some("check that a distest worker listens there and is not stopped".to_owned())
            }
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::Closed
            | Self::TooLarge(_)
            | Self::Garbled(_)
            | Self::SameRole(_)
            | Self::Io(_) => None,
        }
    }
}

impl From<io::Error> for HelloError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Worker => "worker",
        })
    }
}

fn greeting(ours: &Hello) -> Result<Vec<u8>, HelloError> {
    let map = encode(ours)?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + map.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&ours.protocol.major.to_be_bytes());
    bytes.extend_from_slice(&ours.protocol.minor.to_be_bytes());
    bytes.extend_from_slice(&(map.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&map);
    Ok(bytes)
}

async fn read_greeting(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let mut magic = [0; MAGIC.len()];
    let mut read = 0;
    while read < magic.len() {
        match stream.read(&mut magic[read..]).await? {
            0 if read == 0 => return Err(HelloError::Closed),
            0 => return Err(HelloError::NotDistest(shown(&magic[..read]))),
            more => read += more,
        }
        // As soon as it is wrong: a peer may say little and then wait.
        if magic[..read] != MAGIC[..read] {
            return Err(HelloError::NotDistest(shown(&magic[..read])));
        }
    }
    let theirs = Version { major: stream.read_u16().await?, minor: stream.read_u16().await? };
    if PROTOCOL.agreed(theirs).is_none() {
        return Err(HelloError::Version { theirs });
    }
    let hello: Hello = read_map(stream).await?;
    Ok(Hello { protocol: theirs, ..hello })
}

async fn read_verdict(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), HelloError> {
    match read_map(stream).await? {
        Verdict::Accepted {} => Ok(()),
        Verdict::Refused(refusal) => Err(HelloError::Refused(refusal)),
    }
}

async fn write_verdict(
    stream: &mut (impl AsyncWrite + Unpin),
    verdict: &Verdict,
) -> Result<(), HelloError> {
    let map = encode(verdict)?;
    let mut bytes = (map.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&map);
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, HelloError> {
    let map =
        rmp_serde::to_vec_named(value).map_err(|error| HelloError::Garbled(error.to_string()))?;
    if map.len() > HELLO_BYTES_MAX {
        return Err(HelloError::TooLarge(map.len() as u32));
    }
    Ok(map)
}

async fn read_map<T: serde::de::DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, HelloError> {
    let length = stream.read_u32().await?;
    if length as usize > HELLO_BYTES_MAX {
        return Err(HelloError::TooLarge(length));
    }
    let mut map = vec![0; length as usize];
    stream.read_exact(&mut map).await?;
    crate::packed::read(&map).map_err(|error| HelloError::Garbled(error.to_string()))
}

/// Foreign bytes, safe to print.
fn shown(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// Defines what is looked for and the looking.
macro_rules! cpu_features {
    ($($feature:tt),* $(,)?) => {
        /// Processor features that a greeting can tell of, in the compiler's spelling. What every
        /// processor of a target has is not among them.
        #[cfg(target_arch = "x86_64")]
        pub const KNOWN_CPU_FEATURES: &[&str] = &[$($feature),*];

        #[cfg(target_arch = "x86_64")]
        fn cpu_features() -> Vec<String> {
            let features = [$(($feature, std::arch::is_x86_feature_detected!($feature))),*];
            let there = features.iter().filter(|(_, there)| *there);
            there.map(|(name, _)| (*name).to_owned()).collect()
        }
    };
}

cpu_features!(
    "sse3",
    "ssse3",
    "sse4.1",
    "sse4.2",
    "popcnt",
    "aes",
    "pclmulqdq",
    "avx",
    "avx2",
    "bmi1",
    "bmi2",
    "f16c",
    "fma",
    "lzcnt",
    "movbe",
    "sha",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "adx",
    "gfni",
    "rdrand",
    "rdseed",
    "vaes",
    "vpclmulqdq",
    "xsave",
    "avx512vbmi",
    "avx512ifma",
    "avx512vnni",
    "avx512bf16",
);

/// None are known.
#[cfg(not(target_arch = "x86_64"))]
pub const KNOWN_CPU_FEATURES: &[&str] = &[];

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<String> {
    Vec::new()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc tells its version only to a C call")]
fn libc_version() -> String {
    // SAFETY: takes nothing, and returns a static, NUL-terminated string.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    format!("glibc {}", version.to_string_lossy())
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn libc_version() -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::RefusalKind;

    /// What a client makes of a peer that says `bytes` and closes, if `closes`.
    async fn client_hears(bytes: &[u8], closes: bool) -> HelloError {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(bytes).await.unwrap();
        let far = (!closes).then_some(far);
        let ours = Hello::new(Role::Client, "me");
        let error = exchange(&mut near, &ours, Duration::from_millis(50)).await.unwrap_err();
        drop(far);
        error
    }

    fn worker(version: Version) -> Hello {
        Hello { protocol: version, slots: 4, ..Hello::new(Role::Worker, "w") }
    }

    #[tokio::test]
    async fn two_ends_meet_and_the_client_waits_for_the_verdict() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let next = Version { minor: PROTOCOL.minor + 1, ..PROTOCOL };
        let worker = async {
            let client = exchange(&mut far, &worker(next), HELLO_TIMEOUT).await.unwrap();
            assert_eq!(client.name, "me");
            accept(&mut far).await.unwrap();
        };
        let ours = Hello::new(Role::Client, "me");
        let (hello, ()) = tokio::join!(exchange(&mut near, &ours, HELLO_TIMEOUT), worker);
        let hello = hello.unwrap();
        assert_eq!((hello.slots, hello.protocol), (4, next));
        assert_eq!(PROTOCOL.agreed(next), Some(PROTOCOL));
    }

    #[tokio::test]
    async fn a_refused_client_learns_why() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let worker = async {
            exchange(&mut far, &worker(PROTOCOL), HELLO_TIMEOUT).await.unwrap();
            let refusal = Refusal::new(RefusalKind::Forbidden, "unknown key").with_hint("ask");
            refuse(&mut far, refusal).await.unwrap();
        };
        let ours = Hello::new(Role::Client, "me");
        let (hello, ()) = tokio::join!(exchange(&mut near, &ours, HELLO_TIMEOUT), worker);
        let error = hello.unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_deref()),
            ("unknown key", Some("ask"))
        );
    }

    #[tokio::test]
    async fn each_wrong_peer_is_told_apart() {
        let http = client_hears(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).await;
        assert_eq!(http.to_string(), "this is no distest peer: it began with \"HTTP/1.1\"");
        let ssh = client_hears(b"SSH-2.0-OpenSSH_9.2\r\n", false).await;
        assert!(ssh.hint().unwrap().contains("ssh://"));
        assert!(matches!(client_hears(b"\xd1dis", true).await, HelloError::NotDistest(_)));
        assert!(matches!(client_hears(b"", true).await, HelloError::Closed));
        assert!(matches!(client_hears(b"", false).await, HelloError::Silent(_)));
        assert!(matches!(client_hears(&MAGIC, false).await, HelloError::Silent(_)));

        let mut other = greeting(&worker(Version { major: 9, minor: 3 })).unwrap();
        let error = client_hears(&other, false).await;
        assert_eq!(
            error.to_string(),
            format!(
                "the other side speaks version 9.3 of distest's protocol, this one version {PROTOCOL}"
            )
        );
        assert_eq!(error.hint().as_deref(), Some("upgrade cargo-distest on this side"));

        other[8..12].copy_from_slice(&[0, 1, 0, 0]);
        other[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(client_hears(&other, false).await, HelloError::TooLarge(u32::MAX)));
        other[12..16].copy_from_slice(&8u32.to_be_bytes());
        other[16..24].copy_from_slice(&[0xc1; 8]);
        assert!(matches!(client_hears(&other, true).await, HelloError::Garbled(_)));
        let client = greeting(&Hello::new(Role::Client, "another")).unwrap();
        assert!(matches!(client_hears(&client, true).await, HelloError::SameRole(_)));
    }
}
