//! Single messages on a stream of their own: a length of four bytes, big endian, and a MessagePack
//! map. For what is said outside of sessions: invitations, registries, the worker's own socket.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::packed;

/// Sends one.
///
/// # Errors
/// Writing failed.
pub async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    stream.write_all(&bytes(message)?).await?;
    stream.flush().await
}

/// One as bytes.
///
/// # Errors
/// A bug: what can't be encoded.
pub fn bytes(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let message = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&message);
    Ok(bytes)
}

/// Receives one of at most `bytes_max` bytes.
///
/// # Errors
/// Reading failed; [`io::ErrorKind::InvalidData`] if it is longer, or none of the expected kind.
pub async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: u32,
) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > bytes_max {
        let what = format!("a message of {length} bytes, more than {bytes_max}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message).await?;
    packed::read(&message).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("an odd message: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_received_and_anything_else_is_not() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        send(&mut near, &"hello".to_owned()).await.unwrap();
        assert_eq!(receive::<String>(&mut far, 6).await.unwrap(), "hello");
        for (bytes, max) in
            [(&[0, 0, 0, 7, 0xa6][..], 6), (&[0, 0, 0, 1, 0xc1], 6), (&[0xff, 0xff, 0xff, 0xff], 6)]
        {
            let (mut near, mut far) = tokio::io::duplex(1024);
            near.write_all(bytes).await.unwrap();
            let error = receive::<String>(&mut far, max).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
