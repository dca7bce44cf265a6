//! How messages are cut into frames and put together again. Pure.
//!
//! A frame is `{channel u8, flags u8, length u16 big endian}` and up to [`PAYLOAD_BYTES_MAX`] bytes.
//! On [`Channel::Control`] and [`Channel::Bulk`] the payloads up to one flagged [`LAST`] are one
//! message. Frames of [`Channel::Own`] are the link's own: returned credit, how far it has got, and a
//! last word.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most bytes in one frame's payload: what a control message may have to wait for.
pub(super) const PAYLOAD_BYTES_MAX: usize = 32 * 1024;
/// The most bytes of one message.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most bytes of one message on [`Channel::Control`], for which nobody gives credit: larger ones
/// go on the bulk channel, whatever they are.
pub(super) const CONTROL_BYTES_MAX: usize = 16 * 1024;
/// Bytes before a frame's payload.
const HEADER_BYTES: usize = 4;
/// Flag of the frame that ends a message.
const LAST: u8 = 1;
/// Flags of [`Channel::Own`] frames: which kind.
const CREDIT: u8 = 0;
const GOODBYE: u8 = 1;
const RECEIVED: u8 = 2;
/// What to reserve when a message turns out to have more than one frame.
const LIKELY_MESSAGE_BYTES: usize = crate::protocol::CHUNK_BYTES_MAX + PAYLOAD_BYTES_MAX;

/// Where a frame belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Channel {
    /// Small messages, always sent first.
    Control = 0,
    /// Large messages, sent as far as the receiver gave credit.
    Bulk = 1,
    /// The link's own.
    Own = 2,
}

/// What a frame brought.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// A frame that doesn't end its message.
    Part,
    /// A whole message.
    Message(Bytes),
    /// The peer has taken this many bulk bytes since the connection began.
    Credit(u64),
    /// The peer has received this many bytes of any kind since the link began.
    Received(u64),
    /// Why the peer is about to close the connection.
    Goodbye(String),
}

/// Something that no distest peer sends. Ends the connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(pub(super) String);

/// Appends a piece of a message.
pub(super) fn put_message(out: &mut impl BufMut, channel: Channel, payload: &[u8], last: bool) {
    put(out, channel, if last { LAST } else { 0 }, payload);
}

/// Appends returned credit.
pub(super) fn put_credit(out: &mut impl BufMut, total: u64) {
    put(out, Channel::Own, CREDIT, &total.to_be_bytes());
}

/// Appends how far this end has got.
pub(super) fn put_received(out: &mut impl BufMut, total: u64) {
    put(out, Channel::Own, RECEIVED, &total.to_be_bytes());
}

/// Appends a last word.
pub(super) fn put_goodbye(out: &mut impl BufMut, why: &str) {
    put(out, Channel::Own, GOODBYE, &why.as_bytes()[..why.len().min(1024)]);
}

fn put(out: &mut impl BufMut, channel: Channel, flags: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let [high, low] = (payload.len() as u16).to_be_bytes();
    out.put_slice(&[channel as u8, flags, high, low]);
    out.put_slice(payload);
}

/// Puts messages together from the bytes of a stream.
#[derive(Default)]
pub(super) struct Assembler {
    control: BytesMut,
    bulk: BytesMut,
    bulk_bytes: u64,
}

impl Assembler {
    /// Payload bytes that arrived on [`Channel::Bulk`] since the connection began.
    pub(super) fn bulk_bytes(&self) -> u64 {
        self.bulk_bytes
    }

    /// Takes the next frame off `input`, if all of it is there.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Arrival>, Violation> {
        let Some(&[channel, flags, high, low]) = input.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if channel > Channel::Own as u8 {
            return Err(Violation(format!("it sent a frame on channel {channel}, there is none")));
        }
        if length > PAYLOAD_BYTES_MAX {
            return Err(Violation(format!("it sent a frame of {length} bytes")));
        }
        if input.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        input.advance(HEADER_BYTES);
        let payload = input.split_to(length);
        match channel {
            0 => join(&mut self.control, payload, flags, CONTROL_BYTES_MAX).map(Some),
            1 => {
                self.bulk_bytes += length as u64;
                join(&mut self.bulk, payload, flags, MESSAGE_BYTES_MAX).map(Some)
            }
            _ => own(&payload, flags).map(Some),
        }
    }
}

fn join(
    message: &mut BytesMut,
    payload: BytesMut,
    flags: u8,
    most: usize,
) -> Result<Arrival, Violation> {
    if message.len() + payload.len() > most {
        let channel = if most == CONTROL_BYTES_MAX { "control" } else { "bulk" };
        let what = format!("it sent a message of more than {most} bytes on the {channel} channel");
        return Err(Violation(what));
    }
    let last = flags & LAST != 0;
    if last && message.is_empty() {
        return Ok(Arrival::Message(payload.freeze()));
    }
    if message.is_empty() {
        message.reserve(LIKELY_MESSAGE_BYTES.min(most));
    }
    message.extend_from_slice(&payload);
    Ok(if last { Arrival::Message(message.split().freeze()) } else { Arrival::Part })
}

fn own(payload: &[u8], kind: u8) -> Result<Arrival, Violation> {
    match kind {
        CREDIT => total(payload).map(Arrival::Credit),
        RECEIVED => total(payload).map(Arrival::Received),
        GOODBYE => Ok(Arrival::Goodbye(String::from_utf8_lossy(payload).into_owned())),
        // A later minor version may say more here.
        _ => Ok(Arrival::Part),
    }
}

fn total(payload: &[u8]) -> Result<u64, Violation> {
    let total = payload.try_into().map(u64::from_be_bytes);
    total.map_err(|_| Violation("it sent a count of the wrong size".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Arrival>, Violation> {
        let (mut assembler, mut input) = (Assembler::default(), BytesMut::new());
        let mut arrivals = Vec::new();
        // One byte at a time: a frame may be cut anywhere.
        for byte in bytes {
            input.extend_from_slice(&[*byte]);
            while let Some(arrival) = assembler.next(&mut input)? {
                arrivals.push(arrival);
            }
        }
        Ok(arrivals)
    }

    #[test]
    fn channels_interleave_without_mixing() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, Channel::Bulk, b"large ", false);
        put_message(&mut bytes, Channel::Control, b"small", true);
        put_credit(&mut bytes, 7);
        put_received(&mut bytes, 70);
        put_message(&mut bytes, Channel::Bulk, b"message", true);
        put_goodbye(&mut bytes, "enough");
        assert_eq!(
            all(&bytes).unwrap(),
            [
                Arrival::Part,
                Arrival::Message(Bytes::from_static(b"small")),
                Arrival::Credit(7),
                Arrival::Received(70),
                Arrival::Message(Bytes::from_static(b"large message")),
                Arrival::Goodbye("enough".to_owned()),
            ]
        );
    }

    #[test]
    fn what_no_peer_sends_is_a_violation() {
        for bytes in
            [&[0, 0, 0xff, 0xff][..], &[9, 0, 0, 0], &[2, CREDIT, 0, 1, 5], &[2, RECEIVED, 0, 0]]
        {
            all(bytes).unwrap_err();
        }
    }

    #[test]
    fn a_message_without_end_is_refused_at_its_bound() {
        let (mut assembler, mut frame) = (Assembler::default(), Vec::new());
        put_message(&mut frame, Channel::Bulk, &[0; PAYLOAD_BYTES_MAX], false);
        for _ in 0..MESSAGE_BYTES_MAX / PAYLOAD_BYTES_MAX {
            let mut input = BytesMut::from(&frame[..]);
            assert_eq!(assembler.next(&mut input).unwrap(), Some(Arrival::Part));
        }
        assembler.next(&mut BytesMut::from(&frame[..])).unwrap_err();
    }

    #[test]
    fn nothing_large_comes_where_no_credit_is_needed() {
        let message = |pieces: &[usize]| {
            let mut bytes = Vec::new();
            for (index, length) in pieces.iter().enumerate() {
                let last = index + 1 == pieces.len();
                put_message(&mut bytes, Channel::Control, &vec![0; *length], last);
            }
            all(&bytes)
        };
        for good in [&[CONTROL_BYTES_MAX][..], &[CONTROL_BYTES_MAX - 1, 1]] {
            message(good).unwrap();
        }
        for bad in [&[CONTROL_BYTES_MAX + 1][..], &[CONTROL_BYTES_MAX, 1, 1]] {
            let Violation(what) = message(bad).unwrap_err();
            assert!(what.contains("16384 bytes on the control channel"), "{what}");
        }
    }
}
