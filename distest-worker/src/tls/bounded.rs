//! A stream that listens to a stranger only so long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::UNPROVED_BYTES_MAX;

/// Bytes of the beginning that are kept for an error message.
const BEGINNING_BYTES: usize = 8;
const TOO_MUCH: &str = "more bytes than a stranger may send";

/// Counts what is read until it is [unbound](Self::unbind).
#[derive(Debug)]
pub struct Bounded<S> {
    inner: S,
    /// None: no bound any more.
    left: Option<usize>,
    beginning: Vec<u8>,
}

impl<S> Bounded<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, left: Some(UNPROVED_BYTES_MAX), beginning: Vec::new() }
    }

    /// The peer is no stranger any more.
    pub(super) fn unbind(&mut self) {
        self.left = None;
    }

    /// What is below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The first bytes that were read.
    pub(super) fn beginning(&self) -> &[u8] {
        &self.beginning
    }
}

pub(super) fn is_too_much(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.to_string() == TOO_MUCH)
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(left) = self.left else {
            return Pin::new(&mut self.inner).poll_read(cx, buffer);
        };
        if left == 0 {
            return Poll::Ready(Err(io::Error::other(TOO_MUCH)));
        }
        // What comes right behind the handshake stays where it is until the bound is lifted.
        let mut some = [0; UNPROVED_BYTES_MAX];
        let room = left.min(buffer.remaining());
        let mut some = ReadBuf::new(&mut some[..room]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut some))?;
        let read = some.filled().len();
        let missing = BEGINNING_BYTES.saturating_sub(self.beginning.len());
        self.beginning.extend_from_slice(&some.filled()[..read.min(missing)]);
        buffer.put_slice(some.filled());
        self.left = Some(left - read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
