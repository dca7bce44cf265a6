//! The two in-memory ends of a link: what tarpc takes for a transport each.

use std::marker::PhantomData;
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
    responses: mpsc::UnboundedReceiver<Response<Resp>>,
    requests: PhantomData<fn(Req)>,
}

/// The end that serves: requests come in, responses go out.
pub(super) struct ServingHalf<Req, Resp> {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<ClientMessage<Carried<Req>>>,
    responses: PhantomData<fn(Resp)>,
}

impl<Req, Resp> AskingHalf<Req, Resp> {
    pub(super) fn new(
        shared: Arc<Shared>,
        responses: mpsc::UnboundedReceiver<Response<Resp>>,
    ) -> Self {
        Self { shared, responses, requests: PhantomData }
    }
}

impl<Req, Resp> ServingHalf<Req, Resp> {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: mpsc::UnboundedReceiver<ClientMessage<Carried<Req>>>,
    ) -> Self {
        Self { shared, requests, responses: PhantomData }
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
        self.shared.send_request(message)
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
        self.shared.send_response(&response)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }
}
