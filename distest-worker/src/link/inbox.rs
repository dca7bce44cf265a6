//! Takes frames off streams and hands each message to the half of tarpc that it is for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use serde::de::DeserializeOwned;
use tarpc::{ClientMessage, Response};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::frame::{Arrival, Assembler, Violation};
use super::pump::{Carried, Hold, SendError, Shared};
use super::wire::{self, Method, TwoWay};
use super::{DEADLINE_MAX, LinkEnd};

/// Bytes read at once.
const READ_BYTES: usize = 128 * 1024;
/// Requests of the peer that may be under way at once.
const SERVING_MAX: usize = 1024;

/// Reads one link's streams, one after the other: each goes on at the byte where the last broke off.
pub(super) struct Inbox<Req, Resp> {
    shared: Arc<Shared>,
    to_server: mpsc::UnboundedSender<ClientMessage<Carried<Req>>>,
    to_caller: mpsc::UnboundedSender<Response<Resp>>,
    input: BytesMut,
    assembler: Assembler,
}

impl<Req, Resp> Inbox<Req, Resp>
where
    Req: DeserializeOwned + Method,
    Resp: DeserializeOwned + Method,
{
    pub(super) fn new(
        shared: Arc<Shared>,
        to_server: mpsc::UnboundedSender<ClientMessage<Carried<Req>>>,
        to_caller: mpsc::UnboundedSender<Response<Resp>>,
    ) -> Self {
        let (input, assembler) = (BytesMut::new(), Assembler::default());
        Self { shared, to_server, to_caller, input, assembler }
    }

    /// Reads a stream to its end. Whoever stops polling loses nothing that was read.
    pub(super) async fn run(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> LinkEnd {
        loop {
            self.input.reserve(READ_BYTES);
            let bytes = match stream.read_buf(&mut self.input).await {
                Ok(0) => return LinkEnd::PeerClosed,
                Ok(bytes) => bytes,
                Err(error) => return LinkEnd::of_io(&error),
            };
            self.shared.stats.add_received(bytes);
            match self.take(bytes) {
                Ok(None) => {}
                Ok(Some(goodbye)) => return LinkEnd::Goodbye(goodbye),
                Err(Violation(what)) => return LinkEnd::Violation(what),
            }
        }
    }

    /// Takes all whole frames, `bytes` of which have just arrived. Answers a last word, if there was
    /// one.
    fn take(&mut self, bytes: usize) -> Result<Option<String>, Violation> {
        while let Some(arrival) = self.assembler.next(&mut self.input)? {
            match arrival {
                Arrival::Part => {}
                Arrival::Message(bytes) => self.message(&bytes)?,
                Arrival::Goodbye(why) => return Ok(Some(why)),
                Arrival::Received(total) => {
                    self.shared.outbox().acknowledged(total)?;
                    self.shared.wake.notify_one();
                }
                Arrival::Credit(total) => {
                    let now = self.shared.now();
                    self.shared.outbox().window.credit(total, now).ok_or_else(|| {
                        Violation("it gave credit for what was never sent".to_owned())
                    })?;
                    self.shared.wake.notify_one();
                }
            }
        }
        self.shared.received(bytes, self.assembler.bulk_bytes())?;
        Ok(None)
    }

    fn message(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        match wire::read::<Req, Resp>(bytes)? {
            TwoWay::Request { id, timeout_ms, request } => {
                self.request(id, timeout_ms, request, bytes.len())
            }
            TwoWay::Cancel(request_id) => {
                let trace_context = tarpc::trace::Context::default();
                // A half that is gone serves nothing: no error of the connection.
                let _ = self.to_server.send(ClientMessage::Cancel { trace_context, request_id });
                Ok(())
            }
            TwoWay::Response(response) => self.response(response),
        }
    }

    fn request(
        &mut self,
        id: u64,
        timeout_ms: u64,
        request: Result<Req, String>,
        bytes: usize,
    ) -> Result<(), Violation> {
        let request = match request {
            Ok(request) if timeout_ms <= DEADLINE_MAX.as_millis() as u64 => request,
            Ok(_) => return self.refuse(id, "a deadline days away is not served"),
            Err(why) => return self.refuse(id, &format!("this request is not known here: {why}")),
        };
        if self.shared.serving.fetch_add(1, Ordering::Relaxed) >= SERVING_MAX {
            return Err(Violation(format!("it asked for more than {SERVING_MAX} things at once")));
        }
        let bytes = if request.holds_up() { bytes as u64 } else { 0 };
        self.shared.outbox().held += bytes;
        let hold = Some(Hold { shared: self.shared.clone(), bytes });
        let carried = Carried { request, hold };
        let timeout = Duration::from_millis(timeout_ms);
        let _ = self.to_server.send(wire::for_tarpc(id, timeout, carried));
        Ok(())
    }

    fn refuse(&self, id: u64, why: &str) -> Result<(), Violation> {
        wire::failure(id, why)
            .map_err(SendError::from)
            .and_then(|bytes| self.shared.send(bytes, false))
            .map_err(|error| Violation(error.to_string()))
    }

    /// tarpc panics at an answer to another method, so it must not see one.
    fn response(&mut self, response: Response<Resp>) -> Result<(), Violation> {
        let Some(asked) = self.shared.asked().remove(&response.request_id) else {
            return Ok(()); // Too late: nobody waits any more.
        };
        if let Ok(answer) = &response.message
            && answer.method() != asked.method
        {
            return Err(Violation("it answered another question than the one asked".to_owned()));
        }
        let _ = self.to_caller.send(response);
        Ok(())
    }
}
