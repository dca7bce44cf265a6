//! The two in-memory ends of a link: what tarpc takes for a transport each.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Sink, Stream};
use serde::Serialize;
use tarpc::{ClientMessage, Response};
use tokio::sync::mpsc;

use super::pump::{Carried, SendError, Shared};
use super::wire::Method;

/// The end that asks: requests go out, responses come in.
pub(super) struct AskingHalf<Req, Resp> {
    shared: Arc<Shared>,
    requests: Way<ClientMessage<Carried<Req>>>,
    responses: mpsc::UnboundedReceiver<Response<Resp>>,
}

/// The end that serves: requests come in, responses go out.
pub(super) struct ServingHalf<Req, Resp> {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<ClientMessage<Carried<Req>>>,
    responses: Way<Response<Resp>>,
}

/// How messages get to the other end.
pub(super) enum Way<T> {
    /// As bytes of a stream.
    Stream,
    /// As they are, to an end within this process.
    Near(mpsc::UnboundedSender<T>),
}

impl<Req, Resp> AskingHalf<Req, Resp> {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: Way<ClientMessage<Carried<Req>>>,
        responses: mpsc::UnboundedReceiver<Response<Resp>>,
    ) -> Self {
        Self { shared, requests, responses }
    }
}

impl<Req, Resp> ServingHalf<Req, Resp> {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: mpsc::UnboundedReceiver<ClientMessage<Carried<Req>>>,
        responses: Way<Response<Resp>>,
    ) -> Self {
        Self { shared, requests, responses }
    }
}

impl<Req, Resp> Stream for AskingHalf<Req, Resp> {
    type Item = Result<Response<Resp>, SendError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.responses.poll_recv(cx).map(|response| response.map(Ok))
    }
}

impl<Req, Resp> Stream for ServingHalf<Req, Resp> {
    type Item = Result<ClientMessage<Carried<Req>>, SendError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.requests.poll_recv(cx).map(|request| request.map(Ok))
    }
}

impl<Req: Serialize + Method, Resp> Sink<ClientMessage<Req>> for AskingHalf<Req, Resp> {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(self.shared.check_open())
    }

    fn start_send(self: Pin<&mut Self>, message: ClientMessage<Req>) -> Result<(), SendError> {
        match &self.requests {
            Way::Stream => self.shared.send_request(message),
            Way::Near(peer) => {
                // An end that is gone is heard of.
                carried(message).map_or(Ok(()), |message| Ok(_ = peer.send(message)))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }
}

impl<Req, Resp: Serialize + Method> Sink<Response<Resp>> for ServingHalf<Req, Resp> {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(self.shared.check_open())
    }

    fn start_send(self: Pin<&mut Self>, response: Response<Resp>) -> Result<(), SendError> {
        match &self.responses {
            Way::Stream => self.shared.send_response(&response),
            // An end that is gone is heard of.
            Way::Near(peer) => Ok(_ = peer.send(response)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }
}

/// A message as the other end takes it, which counts nothing for it. None for one that it needn't
/// know.
fn carried<Req>(message: ClientMessage<Req>) -> Option<ClientMessage<Carried<Req>>> {
    Some(match message {
        ClientMessage::Request(tarpc::Request { context, id, message }) => {
            let message = Carried { request: message, hold: None };
            ClientMessage::Request(tarpc::Request { context, id, message })
        }
        ClientMessage::Cancel { trace_context, request_id } => {
            ClientMessage::Cancel { trace_context, request_id }
        }
        _ => return None,
    })
}
