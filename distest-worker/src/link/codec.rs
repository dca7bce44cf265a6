//! Messages as they travel, for whoever carries them by other means than a stream: simulations.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{Arrival, Assembler};
use super::wire::{self, TwoWay};

/// A message of a peer.
#[derive(Debug)]
pub enum Message<Req, Resp> {
    /// To be answered with the same number.
    Request(u64, Req),
    /// To the request of this number; an error in words if it was not served.
    Answer(u64, Result<Resp, String>),
    /// The request of this number needs no answer any more.
    Cancel(u64),
}

/// Puts messages together from the bytes of a stream, wherever that is cut.
#[derive(Default)]
pub struct Reader {
    assembler: Assembler,
    input: BytesMut,
}

impl Reader {
    /// Takes more bytes; answers the messages that are whole now.
    ///
    /// # Errors
    /// What no peer of ours sends; the stream is of no use after it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Bytes>, String> {
        self.input.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some(arrival) = self.assembler.next(&mut self.input).map_err(|it| it.0)? {
            if let Arrival::Message(message) = arrival {
                whole.push(message);
            }
        }
        Ok(whole)
    }
}

/// A request as bytes.
///
/// # Errors
/// A bug: what can't be encoded.
pub fn request<Req: Serialize>(id: u64, request: &Req) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    wire::request(id, deadline, request).map_err(|error| error.to_string())
}

/// An answer as bytes.
///
/// # Errors
/// A bug: what can't be encoded.
pub fn answer<Resp: Serialize>(id: u64, answer: Resp) -> Result<Vec<u8>, String> {
    let response = tarpc::Response { request_id: id, message: Ok(answer) };
    wire::answer(&response).map_err(|error| error.to_string())
}

/// Reads a message.
///
/// # Errors
/// What no peer of ours sends.
pub fn read<Req, Resp>(bytes: &[u8]) -> Result<Message<Req, Resp>, String>
where
    Req: DeserializeOwned,
    Resp: DeserializeOwned,
{
    match wire::read(bytes).map_err(|violation| violation.0)? {
        TwoWay::Request { id, request, .. } => Ok(Message::Request(id, request?)),
        TwoWay::Cancel(id) => Ok(Message::Cancel(id)),
        TwoWay::Response(response) => {
            let answer = response.message.map_err(|error| error.detail);
            Ok(Message::Answer(response.request_id, answer))
        }
    }
}
