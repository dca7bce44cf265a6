//! A TCP relay that counts: what a connection carries, whatever either end says of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A relay to one address, closed when dropped.
pub struct Proxy {
    /// Where it listens, as `--worker` takes it.
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    sent: AtomicU64,
    received: AtomicU64,
    /// Cut every connection once this many bytes went to the target over all.
    cut_after: Option<u64>,
    /// Pass on this many bytes of each connection to the target, and swallow the rest.
    stall_after: Option<usize>,
    closed: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Relays to `HOST:PORT`.
    pub fn to(target: &str) -> Self {
        Self::start(target, None, None)
    }

    /// The same, and cuts all connections when `bytes` have gone to the target.
    pub fn cut_after(target: &str, bytes: u64) -> Self {
        Self::start(target, Some(bytes), None)
    }

    /// The same, and passes only `bytes` of each connection on to the target: who connects falls
    /// silent then, and neither end is told.
    pub fn stall_after(target: &str, bytes: usize) -> Self {
        Self::start(target, None, Some(bytes))
    }

    /// Bytes that went to the target.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Bytes that came from the target.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }

    fn start(target: &str, cut_after: Option<u64>, stall_after: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            cut_after,
            stall_after,
            closed: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                relay(&accepting, stream);
            }
        });
        Self { address: format!("tcp://{address}"), shared }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address.trim_start_matches("tcp://"));
    }
}

impl Shared {
    fn cut(&self) {
        for stream in self.streams.lock().expect("no holder panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn relay(shared: &Arc<Shared>, client: TcpStream) {
    let Ok(worker) = TcpStream::connect(&shared.target) else { return };
    for (from, to, upstream) in [(&client, &worker, true), (&worker, &client, false)] {
        let pair = from.try_clone().and_then(|from| Ok((from, to.try_clone()?)));
        let (from, to) = pair.expect("a descriptor is free");
        let shared = Arc::clone(shared);
        thread::spawn(move || pump(&shared, from, to, upstream));
    }
    shared.streams.lock().expect("no holder panics").extend([client, worker]);
}

fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream, upstream: bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut passes = shared.stall_after.filter(|_| upstream).unwrap_or(usize::MAX);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let counter = if upstream { &shared.sent } else { &shared.received };
        let total = counter.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
        if upstream && shared.cut_after.is_some_and(|limit| total >= limit) {
            shared.cut();
        }
        let passed = read.min(passes);
        passes -= passed;
        if to.write_all(&buffer[..passed]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
