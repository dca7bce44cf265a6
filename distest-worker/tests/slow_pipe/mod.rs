//! A slow link, for the tests of links and for the example `upload-latency`.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A pipe that carries `rate` bytes per second each way.
pub(crate) fn slow_pipe(rate: u64) -> (DuplexStream, DuplexStream) {
    // As much as a socket buffers.
    let (near, near_far) = duplex(256 * 1024);
    let (far, far_near) = duplex(256 * 1024);
    let (near_read, near_write) = tokio::io::split(near_far);
    let (far_read, far_write) = tokio::io::split(far_near);
    tokio::spawn(carry(near_read, far_write, rate));
    tokio::spawn(carry(far_read, near_write, rate));
    (near, far)
}

async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, rate: u64) {
    let mut piece = vec![0; 1500];
    let mut free = tokio::time::Instant::now();
    while let Ok(bytes @ 1..) = from.read(&mut piece).await {
        // The timer counts in milliseconds; what it rounds up is caught up with.
        free = free.max(tokio::time::Instant::now() - Duration::from_millis(2));
        free += Duration::from_micros(bytes as u64 * 1_000_000 / rate);
        tokio::time::sleep_until(free).await;
        if to.write_all(&piece[..bytes]).await.is_err() {
            return;
        }
    }
}
