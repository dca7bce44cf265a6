//! A TCP relay that counts: what a connection carries, whatever either end says of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use crate::DEADLINE;

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
    /// Reset every connection each time that so many bytes have come, either way over all.
    reset_every: Option<u64>,
    /// What comes from the target is passed on so much later, and not at all if the target has closed
    /// by then.
    late: Duration,
    closed: AtomicBool,
    relayed: Mutex<Relayed>,
    accepted: Condvar,
}

/// The connections so far.
#[derive(Default)]
struct Relayed {
    count: usize,
    open: Vec<Arc<Connection>>,
}

/// Both ends of one.
struct Connection {
    streams: [TcpStream; 2],
    /// They have been reset.
    reset: AtomicBool,
    /// Whatever comes is swallowed.
    forgotten: AtomicBool,
}

impl Proxy {
    /// Relays to `HOST:PORT`.
    pub fn to(target: &str) -> Self {
        Self::start(target, None, None, None, Duration::ZERO)
    }

    /// The same, and what the target says is so long under way. What is under way when the target closes
    /// is lost.
    pub fn late(target: &str, late: Duration) -> Self {
        Self::start(target, None, None, None, late)
    }

    /// The same, and resets all connections each time that so many bytes have come, either way.
    pub fn reset_every(target: &str, bytes: u64) -> Self {
        Self::start(target, None, None, Some(bytes), Duration::ZERO)
    }

    /// The same, and cuts all connections when `bytes` have gone to the target.
    pub fn cut_after(target: &str, bytes: u64) -> Self {
        Self::start(target, Some(bytes), None, None, Duration::ZERO)
    }

    /// The same, and passes only `bytes` of each connection on to the target: who connects falls
    /// silent then, and neither end is told.
    pub fn stall_after(target: &str, bytes: usize) -> Self {
        Self::start(target, None, Some(bytes), None, Duration::ZERO)
    }

    /// Bytes that went to the target.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Bytes that came from the target.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }

    /// Resets all connections, as a router does that knows nothing of them any more.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Passes nothing more on all connections that there are, and tells neither end.
    pub fn forget(&self) {
        for connection in &self.shared.relayed().open {
            connection.forgotten.store(true, Ordering::SeqCst);
        }
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.shared.relayed().count
    }

    /// Waits until there have been so many.
    pub fn wait_for_connections(&self, count: usize) {
        let too_few = |relayed: &mut Relayed| relayed.count < count;
        let relayed = self.shared.relayed();
        let waited = self.shared.accepted.wait_timeout_while(relayed, DEADLINE, too_few);
        let (relayed, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(relayed.count >= count, "{} connections, not {count}", relayed.count);
    }

    fn start(
        target: &str,
        cut_after: Option<u64>,
        stall_after: Option<usize>,
        reset_every: Option<u64>,
        late: Duration,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            cut_after,
            stall_after,
            reset_every,
            late,
            closed: AtomicBool::new(false),
            relayed: Mutex::default(),
            accepted: Condvar::new(),
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
    fn relayed(&self) -> MutexGuard<'_, Relayed> {
        self.relayed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        for connection in self.relayed().open.drain(..) {
            connection.shut(Shutdown::Both);
        }
    }

    fn reset(&self) {
        for connection in self.relayed().open.drain(..) {
            connection.reset.store(true, Ordering::SeqCst);
            for stream in &connection.streams {
                // Closing it is then a reset, when whoever reads it has learned of this.
                let at_once = linger { l_onoff: 1, l_linger: 0 };
                let _ = setsockopt(stream, sockopt::Linger, &at_once);
            }
            connection.shut(Shutdown::Read);
        }
    }
}

impl Connection {
    fn shut(&self, how: Shutdown) {
        for stream in &self.streams {
            let _ = stream.shutdown(how);
        }
    }
}

fn relay(shared: &Arc<Shared>, client: TcpStream) {
    let Ok(worker) = TcpStream::connect(&shared.target) else { return };
    let (reset, forgotten) = (AtomicBool::new(false), AtomicBool::new(false));
    let streams = [client, worker];
    let connection = Arc::new(Connection { streams, reset, forgotten });
    for upstream in [true, false] {
        let (shared, connection) = (Arc::clone(shared), Arc::clone(&connection));
        thread::spawn(move || pump(&shared, &connection, upstream));
    }
    let mut relayed = shared.relayed();
    relayed.count += 1;
    relayed.open.push(connection);
    shared.accepted.notify_all();
}

fn pump(shared: &Shared, connection: &Connection, upstream: bool) {
    let [client, worker] = &connection.streams;
    let (mut from, mut to) = if upstream { (client, worker) } else { (worker, client) };
    let mut buffer = vec![0; 64 * 1024];
    let later = (!upstream && !shared.late.is_zero()).then(|| Later::new(to, shared.late));
    let mut passes = shared.stall_after.filter(|_| upstream).unwrap_or(usize::MAX);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if connection.forgotten.load(Ordering::SeqCst) {
            continue;
        }
        let counter = if upstream { &shared.sent } else { &shared.received };
        let total = counter.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
        if upstream && shared.cut_after.is_some_and(|limit| total >= limit) {
            shared.cut();
        }
        if let Some(every) = shared.reset_every
            && (total - read as u64) / every < total / every
        {
            shared.reset();
            break;
        }
        let passed = read.min(passes);
        passes -= passed;
        let sent = match &later {
            Some(later) => later.pass(&buffer[..passed]),
            None => to.write_all(&buffer[..passed]).is_ok(),
        };
        if !sent {
            break;
        }
    }
    if !connection.reset.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}

/// Takes bytes that are to arrive some time after they came.
struct Later {
    under_way: Sender<(Instant, Vec<u8>)>,
    late: Duration,
}

impl Later {
    fn new(to: &TcpStream, late: Duration) -> Self {
        let (under_way, arrives) = channel();
        let to = to.try_clone().expect("a socket can be shared");
        thread::spawn(move || deliver(&arrives, &to));
        Self { under_way, late }
    }

    /// False if nobody takes them any more.
    fn pass(&self, bytes: &[u8]) -> bool {
        self.under_way.send((Instant::now() + self.late, bytes.to_vec())).is_ok()
    }
}

/// Until there is an end: nothing arrives behind it.
fn deliver(arrives: &Receiver<(Instant, Vec<u8>)>, mut to: &TcpStream) {
    for (due, bytes) in arrives {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}
