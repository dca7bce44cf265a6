//! tarpc's messages as bytes: an envelope and, right behind it, the request or answer itself.
//!
//! Both are MessagePack with named fields. The envelope comes apart so that a request that this
//! version doesn't know is answered with an error instead of ending the connection. What tarpc
//! would not survive stays outside: deadlines further away than [`super::DEADLINE_MAX`].

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tarpc::{ClientMessage, Response, ServerError};

use super::frame::Violation;
use crate::protocol::{ClientRequest, ClientResponse, WorkerRequest, WorkerResponse};

/// What the rest of a message is.
#[derive(Serialize, Deserialize, Debug)]
enum Envelope {
    /// A request follows.
    Request {
        id: u64,
        /// Milliseconds that the asker will wait.
        timeout_ms: u64,
    },
    /// Nothing follows: the asker doesn't wait any more.
    Cancel { id: u64 },
    /// The answer to a request follows.
    Answer { id: u64 },
    /// Nothing follows: a request was not understood.
    Failure { id: u64, detail: String },
}

/// A message from the peer.
pub(super) enum TwoWay<Req, Resp> {
    /// To be served here.
    Request {
        /// Its number, chosen by the peer.
        id: u64,
        /// How long the peer waits, in milliseconds.
        timeout_ms: u64,
        /// The request; an error if this version doesn't know it.
        request: Result<Req, String>,
    },
    /// No longer to be served.
    Cancel(u64),
    /// To what was asked here.
    Response(Response<Resp>),
}

/// The requests and answers of a service, as far as the link must tell them apart.
pub(super) trait Method {
    /// Which method, the same number for a request and its answer.
    fn method(&self) -> u8;
    /// Whether it carries blobs, output or forwarded bytes: sent behind all else.
    fn is_bulk(&self) -> bool;
    /// Whether what is bulk is taken in only as fast as it is served. Not if its handler waits for
    /// somebody else and has a bound of its own.
    fn holds_up(&self) -> bool {
        true
    }
}

/// A request as bytes.
pub(super) fn request<Req: Serialize>(
    id: u64,
    deadline: Instant,
    request: &Req,
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    message(&Envelope::Request { id, timeout_ms }, Some(request))
}

/// A cancellation as bytes.
pub(super) fn cancel(id: u64) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    message::<()>(&Envelope::Cancel { id }, None)
}

/// An answer as bytes.
pub(super) fn answer<Resp: Serialize>(
    response: &Response<Resp>,
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let id = response.request_id;
    match &response.message {
        Ok(answer) => message(&Envelope::Answer { id }, Some(answer)),
        Err(error) => failure(id, &error.detail),
    }
}

/// The answer to a request that is not served, as bytes.
pub(super) fn failure(id: u64, detail: &str) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    message::<()>(&Envelope::Failure { id, detail: detail.to_owned() }, None)
}

fn message<T: Serialize>(
    envelope: &Envelope,
    rest: Option<&T>,
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut bytes = Vec::with_capacity(256);
    rmp_serde::encode::write_named(&mut bytes, envelope)?;
    if let Some(rest) = rest {
        rmp_serde::encode::write_named(&mut bytes, rest)?;
    }
    Ok(bytes)
}

/// Reads a message.
pub(super) fn read<Req, Resp>(bytes: &[u8]) -> Result<TwoWay<Req, Resp>, Violation>
where
    Req: DeserializeOwned,
    Resp: DeserializeOwned,
{
    let mut input = crate::packed::reader(bytes);
    let envelope = Envelope::deserialize(&mut input)
        .map_err(|error| Violation(format!("it sent a message that makes no sense: {error}")))?;
    Ok(match envelope {
        Envelope::Request { id, timeout_ms } => {
            let request = Req::deserialize(&mut input).map_err(|error| error.to_string());
            TwoWay::Request { id, timeout_ms, request }
        }
        Envelope::Cancel { id } => TwoWay::Cancel(id),
        Envelope::Answer { id } => {
            let message = Resp::deserialize(&mut input).map_err(|error| {
                ServerError::new(
                    ErrorKind::InvalidData,
                    format!("could not read the peer's answer: {error}"),
                )
            });
            TwoWay::Response(Response { request_id: id, message })
        }
        Envelope::Failure { id, detail } => {
            let message = Err(ServerError::new(ErrorKind::Other, detail));
            TwoWay::Response(Response { request_id: id, message })
        }
    })
}

/// A request as tarpc's server half takes it. `timeout` must be bounded.
pub(super) fn for_tarpc<Req>(id: u64, timeout: Duration, message: Req) -> ClientMessage<Req> {
    ClientMessage::Request(tarpc::Request { context: super::context(timeout), id, message })
}

impl Method for WorkerRequest {
    fn method(&self) -> u8 {
        match self {
            Self::Ping { .. } => 0,
            Self::Open { .. } => 1,
            Self::Missing { .. } => 2,
            Self::Put { .. } => 3,
            Self::LayTree { .. } => 4,
            Self::Prepare { .. } => 5,
            Self::Lease { .. } => 6,
            Self::Revoke { .. } => 7,
            Self::Stop { .. } => 8,
            Self::Stdin { .. } => 9,
            Self::Close { .. } => 10,
            Self::Signal { .. } => 11,
            Self::Status { .. } => 12,
            Self::Drain { .. } => 13,
            Self::ReadFile { .. } => 14,
            Self::WriteFile { .. } => 15,
            Self::Challenge { .. } => 16,
            Self::Prove { .. } => 17,
            Self::ListFolder { .. } => 18,
            Self::WriteTree { .. } => 19,
            Self::Remember { .. } => 20,
            Self::Upgrade { .. } => 21,
            Self::CollectGarbage { .. } => 22,
            Self::LacksLibraries { .. } => 23,
        }
    }

    fn is_bulk(&self) -> bool {
        matches!(
            self,
            Self::Put { .. }
                | Self::Stdin { .. }
                | Self::WriteFile { .. }
                | Self::Prove { .. }
                | Self::WriteTree { .. }
                | Self::Remember { .. }
                | Self::Upgrade { .. }
        )
    }
}

impl Method for WorkerResponse {
    fn method(&self) -> u8 {
        match self {
            Self::Ping(_) => 0,
            Self::Open(_) => 1,
            Self::Missing(_) => 2,
            Self::Put(_) => 3,
            Self::LayTree(_) => 4,
            Self::Prepare(_) => 5,
            Self::Lease(_) => 6,
            Self::Revoke(_) => 7,
            Self::Stop(()) => 8,
            Self::Stdin(_) => 9,
            Self::Close(()) => 10,
            Self::Signal(_) => 11,
            Self::Status(_) => 12,
            Self::Drain(_) => 13,
            Self::ReadFile(_) => 14,
            Self::WriteFile(_) => 15,
            Self::Challenge(_) => 16,
            Self::Prove(_) => 17,
            Self::ListFolder(_) => 18,
            Self::WriteTree(_) => 19,
            Self::Remember(_) => 20,
            Self::Upgrade(_) => 21,
            Self::CollectGarbage(_) => 22,
            Self::LacksLibraries(_) => 23,
        }
    }

    fn is_bulk(&self) -> bool {
        matches!(self, Self::ReadFile(_) | Self::ListFolder(_))
    }
}

impl Method for ClientRequest {
    fn method(&self) -> u8 {
        match self {
            Self::Report { .. } => 0,
            Self::Output { .. } => 1,
            Self::Fetch { .. } => 2,
            Self::Collect { .. } => 3,
            Self::ForwardOpen { .. } => 4,
            Self::ForwardWrite { .. } => 5,
            Self::ForwardRead { .. } => 6,
            Self::ForwardClose { .. } => 7,
        }
    }

    fn is_bulk(&self) -> bool {
        matches!(self, Self::Output { .. } | Self::Collect { .. } | Self::ForwardWrite { .. })
    }

    fn holds_up(&self) -> bool {
        !matches!(self, Self::ForwardWrite { .. })
    }
}

impl Method for ClientResponse {
    fn method(&self) -> u8 {
        match self {
            Self::Report(()) => 0,
            Self::Output(()) => 1,
            Self::Fetch(_) => 2,
            Self::Collect(_) => 3,
            Self::ForwardOpen(_) => 4,
            Self::ForwardWrite(_) => 5,
            Self::ForwardRead(_) => 6,
            Self::ForwardClose(()) => 7,
        }
    }

    fn is_bulk(&self) -> bool {
        matches!(self, Self::Fetch(_) | Self::ForwardRead(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::protocol::{BlobChunk, Encoding};

    #[test]
    fn a_request_survives_and_its_blob_is_bytes_not_numbers() {
        let chunk = BlobChunk {
            digest: Digest::of(b"x"),
            size: 1000,
            encoding: Encoding::Raw,
            data: vec![200; 1000].into(),
            last: true,
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let bytes = request(7, deadline, &WorkerRequest::Put { chunk: chunk.clone() }).unwrap();
        assert!(bytes.len() < 1200, "1000 bytes became {}", bytes.len());
        let TwoWay::Request { id: 7, timeout_ms, request: Ok(WorkerRequest::Put { chunk: read }) } =
            read::<WorkerRequest, ClientResponse>(&bytes).unwrap()
        else {
            panic!("another message")
        };
        assert_eq!(read, chunk);
        assert!(timeout_ms <= 5000);
    }

    #[test]
    fn what_a_later_version_adds_is_ignored_and_an_unknown_method_is_no_violation() {
        #[derive(Serialize)]
        enum Later {
            Revoke { attempts: Vec<u64>, also: String },
            Dance { steps: u32 },
        }
        let deadline = Instant::now();
        let known = Later::Revoke { attempts: vec![1], also: "new".to_owned() };
        let known = request(1, deadline, &known).unwrap();
        assert!(matches!(
            read::<WorkerRequest, ClientResponse>(&known).unwrap(),
            TwoWay::Request { request: Ok(WorkerRequest::Revoke { .. }), .. }
        ));
        let unknown = request(2, deadline, &Later::Dance { steps: 2 }).unwrap();
        assert!(matches!(
            read::<WorkerRequest, ClientResponse>(&unknown).unwrap(),
            TwoWay::Request { id: 2, request: Err(_), .. }
        ));
    }

    #[test]
    fn garbage_is_a_violation() {
        for bytes in [&b""[..], b"\xc1", b"GET / HTTP/1.1", &[0x9f; 64]] {
            assert!(read::<WorkerRequest, ClientResponse>(bytes).is_err());
        }
    }
}
