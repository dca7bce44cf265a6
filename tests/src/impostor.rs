//! Things that listen where a worker should.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Something else than a worker, closed when dropped.
pub struct Impostor {
    /// Where it listens, as `--worker` takes it.
    pub address: String,
    closed: Arc<AtomicBool>,
}

/// What it does.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Accepts and never says a word.
    Silent,
    /// Accepts and closes.
    Closes,
    /// Says these bytes at once, then reads to the end.
    Says(Vec<u8>),
    /// Reads something, answers these bytes, and closes.
    Answers(Vec<u8>),
}

impl Impostor {
    /// Starts one.
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let address = format!("tcp://{}", listener.local_addr().expect("it is bound"));
        let closed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&closed);
        thread::spawn(move || {
            // Keeps silent connections open until the end.
            let mut open = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                open.extend(serve(&manner, stream));
            }
        });
        Self { address, closed }
    }

    /// Speaks HTTP.
    pub fn http() -> Self {
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        Self::start(Manner::Answers(answer.to_vec()))
    }

    /// Says what means nothing to anyone.
    pub fn garbage() -> Self {
        let bytes = (0..4096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8);
        Self::start(Manner::Says(bytes.collect()))
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address.trim_start_matches("tcp://"));
    }
}

/// An address of loopback where nobody listens.
pub fn refusing_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
    format!("tcp://{}", listener.local_addr().expect("it is bound"))
}

/// Returns the stream if it is to stay open.
fn serve(manner: &Manner, mut stream: TcpStream) -> Option<TcpStream> {
    match manner {
        Manner::Silent => return Some(stream),
        Manner::Closes => {}
        Manner::Says(bytes) => {
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
        Manner::Answers(bytes) => {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
        }
    }
    None
}
