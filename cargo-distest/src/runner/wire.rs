//! What a shim and whoever serves it say to each other: frames `{kind u8, length u32 BE, bytes}`.
//!
//! Both ends are the same executable, so there is no version. The server greets with one byte,
//! [`GREETING`], once it has taken the connection in. Then a shim sends one [`Call`], then
//! signals, and a piece of standard input each time it is asked for one; so input that nobody reads
//! never stands in a signal's way.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use bytes::Bytes;
use distest_worker::protocol::{AttemptSignal, Exit, OsText};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The first byte on every connection, from the server.
pub const GREETING: &[u8] = b"d";
/// The most bytes of one frame: an environment has at most a few MiB.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// The most bytes of one piece of standard input.
pub const STDIN_BYTES_MAX: usize = 128 * 1024;
/// Bytes before a frame's own.
const HEAD_BYTES: usize = 5;

/// An executable to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its absolute path.
    pub program: OsText,
    /// Its arguments.
    pub args: Vec<OsText>,
    /// Absolute path of its working directory.
    pub cwd: OsText,
    /// Its environment, all of it.
    pub env: Vec<Variable>,
    /// Which tool called: the same for all calls of one `cargo test`, another for the next. None if
    /// it is none that we know.
    pub caller: Option<String>,
}

/// A variable of a call's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: OsText,
    /// Its value.
    pub value: OsText,
    /// The caller was started with it: it is the user's, not cargo's.
    pub inherited: bool,
}

/// From the shim.
#[derive(Clone, Debug, PartialEq)]
pub enum FromShim {
    /// The first frame.
    Call(Box<Call>),
    /// Standard input, at most [`STDIN_BYTES_MAX`]; empty at its end. Answers
    /// [`ToShim::WantsStdin`].
    Stdin(Bytes),
    /// Pass this on.
    Signal(AttemptSignal),
}

/// To the shim.
#[derive(Clone, Debug, PartialEq)]
pub enum ToShim {
    /// Send the next piece of standard input. Answered by [`FromShim::Stdin`].
    WantsStdin,
    /// The executable wrote this to standard output.
    Stdout(Bytes),
    /// The executable wrote this to standard error.
    Stderr(Bytes),
    /// It has ended. The last frame.
    Exited(Exit),
    /// Run it here instead, and say why if there is something to say. The first and last frame.
    RunHere(Option<String>),
    /// It can't be run, or came to no end. The last frame.
    Failed(Refused),
}

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What the shim exits with.
    pub code: u8,
    /// What we were doing, to what, and why it failed.
    pub what: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Call {
    /// A variable of its environment, as a path.
    pub fn variable(&self, name: &str) -> Option<PathBuf> {
        let found = self.env.iter().find(|variable| variable.name.as_os_str() == name);
        found.map(|variable| variable.value.as_path().to_owned())
    }
}

impl FromShim {
    /// The frame's kind and bytes.
    fn encode(&self) -> io::Result<(u8, Bytes)> {
        Ok(match self {
            Self::Call(call) => (0, pack(call)?),
            Self::Stdin(data) => (1, data.clone()),
            Self::Signal(signal) => (2, pack(signal)?),
        })
    }

    fn decode(kind: u8, bytes: Bytes) -> io::Result<Self> {
        Ok(match kind {
            0 => Self::Call(Box::new(unpack(&bytes)?)),
            1 => Self::Stdin(bytes),
            2 => Self::Signal(unpack(&bytes)?),
            _ => return Err(garbled(format!("a frame of kind {kind}"))),
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = self.encode()?;
        to.write_all(&framed(kind, &bytes)?)
    }

    /// Reads the next; none at the end of the stream.
    ///
    /// # Errors
    /// The stream breaks, or makes no sense.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD_BYTES];
        if from.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[1..]).await?;
        let (kind, length) = opened(head)?;
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await?;
        Self::decode(kind, bytes.into()).map(Some)
    }
}

impl ToShim {
    /// The whole frame.
    ///
    /// # Errors
    /// It is longer than any may be.
    pub fn frame(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::WantsStdin => framed(0, &[]),
            Self::Stdout(data) => framed(1, data),
            Self::Stderr(data) => framed(2, data),
            Self::Exited(exit) => framed(3, &pack(exit)?),
            Self::RunHere(why) => framed(4, &pack(why)?),
            Self::Failed(refused) => framed(5, &pack(refused)?),
        }
    }

    fn decode(kind: u8, bytes: Bytes) -> io::Result<Self> {
        Ok(match kind {
            0 => Self::WantsStdin,
            1 => Self::Stdout(bytes),
            2 => Self::Stderr(bytes),
            3 => Self::Exited(unpack(&bytes)?),
            4 => Self::RunHere(unpack(&bytes)?),
            5 => Self::Failed(unpack(&bytes)?),
            _ => return Err(garbled(format!("a frame of kind {kind}"))),
        })
    }

    /// Reads the next; none at the end of the stream.
    ///
    /// # Errors
    /// The stream breaks, or makes no sense.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD_BYTES];
        if from.read(&mut head[..1])? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[1..])?;
        let (kind, length) = opened(head)?;
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Self::decode(kind, bytes.into()).map(Some)
    }
}

fn framed(kind: u8, bytes: &[u8]) -> io::Result<Vec<u8>> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(garbled(format!("a frame of {} bytes", bytes.len())));
    }
    let mut frame = Vec::with_capacity(HEAD_BYTES + bytes.len());
    frame.push(kind);
    frame.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    frame.extend_from_slice(bytes);
    Ok(frame)
}

fn opened([kind, length @ ..]: [u8; HEAD_BYTES]) -> io::Result<(u8, usize)> {
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(garbled(format!("a frame of {length} bytes")));
    }
    Ok((kind, length))
}

fn pack(message: &impl Serialize) -> io::Result<Bytes> {
    rmp_serde::to_vec(message).map(Bytes::from).map_err(io::Error::other)
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    distest_worker::packed::read(bytes).map_err(|error| garbled(error.to_string()))
}

fn garbled(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the runner's other end sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_both_ways() {
        let variable = Variable { name: "A".into(), value: "b".into(), inherited: true };
        let call = Call {
            program: "/p".into(),
            args: vec!["--list".into()],
            cwd: "/".into(),
            env: vec![variable],
            caller: Some("7".to_owned()),
        };
        let said = [
            FromShim::Call(Box::new(call)),
            FromShim::Stdin(Bytes::from_static(b"\0\xff")),
            FromShim::Stdin(Bytes::new()),
            FromShim::Signal(AttemptSignal::Interrupt),
        ];
        let mut stream = Vec::new();
        said.iter().for_each(|frame| frame.write(&mut stream).unwrap());
        let mut stream = &stream[..];
        for frame in said {
            assert_eq!(FromShim::read(&mut stream).await.unwrap(), Some(frame));
        }
        assert_eq!(FromShim::read(&mut stream).await.unwrap(), None);

        let answers = [
            ToShim::WantsStdin,
            ToShim::Stdout(Bytes::from_static(b"out")),
            ToShim::Stderr(Bytes::from_static(b"err")),
            ToShim::RunHere(Some("nobody is there".to_owned())),
            ToShim::Exited(Exit::Signal(9)),
            ToShim::Failed(Refused { code: 98, what: "gone".to_owned(), hint: None }),
        ];
        let stream: Vec<u8> = answers.iter().flat_map(|frame| frame.frame().unwrap()).collect();
        let mut stream = &stream[..];
        for frame in answers {
            assert_eq!(ToShim::read(&mut stream).unwrap(), Some(frame));
        }
        assert_eq!(ToShim::read(&mut stream).unwrap(), None);
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_or_unknown_is_an_error_before_it_is_memory() {
        for bytes in [&b"\x01\xff\xff\xff\xff"[..], b"\x09\0\0\0\0", b"\0\0\0\0\x02{}", b"\x01\0"] {
            assert!(FromShim::read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
            assert!(ToShim::read(&mut &bytes[..]).is_err() || bytes[0] == 0, "{bytes:?}");
        }
    }
}
