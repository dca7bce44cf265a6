//! What a heartbeat waits while an upload fills a slow link:
//! `cargo run --release -p distest-worker --example upload-latency -- [MEGABYTES] [BYTES_PER_SECOND]`
//!
//! Two ends in TLS over a pipe in memory that carries so much each way (100 MB, 1 MB/s unless told
//! otherwise), with as much between them as sockets buffer. While one uploads, a heartbeat and a
//! cancellation are sent every 100 ms; prints how long they took. Exits with 1 if the worst is above
//! 250 ms.

#![expect(clippy::print_stdout, reason = "it prints its result")]
#![expect(clippy::unwrap_used, reason = "a bench that can't be carried out has failed")]

#[path = "../tests/slow_pipe/mod.rs"]
mod slow_pipe;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distest_worker::digest::Digest;
use distest_worker::identity::PrivateKey;
use distest_worker::link::{
    self, Awaiting, Backlog, DEADLINE, DEADLINE_BULK, Dialling, Pipeline, Renewal, Undialled,
    client_end_lasting, worker_end_lasting,
};
use distest_worker::protocol::{
    BlobChunk, CHUNK_BYTES_MAX, ClientResponse, Encoding, Pong, PutReply, Stop, WorkerRequest,
    WorkerResponse,
};
use distest_worker::tls::{self, Purpose};
use slow_pipe::slow_pipe;

const MEGABYTES: u64 = 100;
const BYTES_PER_SECOND: u64 = 1_000_000;
const WORST: Duration = Duration::from_millis(250);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let number = |place: usize| std::env::args().nth(place).and_then(|text| text.parse().ok());
    let bytes = number(1).unwrap_or(MEGABYTES) * 1_000_000;
    let rate = number(2).unwrap_or(BYTES_PER_SECOND);
    let (near, far) = slow_pipe(rate);
    let [client, worker] = [(); 2].map(|()| PrivateKey::generate().unwrap());
    let only = |key| -> tls::Trust { Arc::new(move |theirs| *theirs == key) };
    let (theirs, ours) = (only(client.public()), only(worker.public()));
    let accepted = tls::accept(far, &worker, |_| Some(Arc::clone(&theirs)));
    let secured = tokio::join!(tls::connect(near, &client, Purpose::Session, ours), accepted);
    let (near, far) = (secured.0.unwrap().stream, secured.1.unwrap().stream);
    // As between a client and a worker that it dialled: what is sent is kept until it has arrived.
    let (_back, awaited) = tokio::sync::mpsc::channel(1);
    let awaits = Renewal::Awaits(Awaiting::new(awaited));
    let _worker = worker_end_lasting(Box::new(far), awaits, &Backlog::default(), |_| {
        |_, request| async move {
            Ok(match request {
                WorkerRequest::Ping {} => WorkerResponse::Ping(Pong::default()),
                WorkerRequest::Put { .. } => WorkerResponse::Put(Ok(PutReply::More)),
                _ => WorkerResponse::Stop(()),
            })
        }
    });
    let dials = Renewal::Dials(Dialling {
        dial: Box::new(|| Box::pin(async { Err(Undialled::Ever) })),
        token: String::new(),
        tell: Box::new(|_| {}),
        tries: 0,
    });
    let (worker, _client) =
        client_end_lasting(Box::new(near), dials, |_, _| async { Ok(ClientResponse::Report(())) });
    let began = Instant::now();
    let uploading = worker.clone();
    let upload = tokio::spawn(async move {
        let data = Bytes::from(vec![7; CHUNK_BYTES_MAX]);
        let mut pipeline = Pipeline::new(8);
        for _ in 0..bytes / CHUNK_BYTES_MAX as u64 {
            let (digest, encoding) = (Digest::of(b""), Encoding::Raw);
            let chunk =
                BlobChunk { digest, size: bytes, encoding, data: data.clone(), last: false };
            if let Some(reply) =
                pipeline.push(uploading.put(link::context(DEADLINE_BULK), chunk)).await
            {
                reply.unwrap().unwrap();
            }
        }
        while pipeline.next().await.is_some() {}
    });
    let (mut heartbeats, mut cancels) = (Vec::new(), Vec::new());
    while !upload.is_finished() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        worker.ping(link::context(DEADLINE)).await.unwrap();
        heartbeats.push(asked.elapsed());
        let asked = Instant::now();
        worker.stop(link::context(DEADLINE), Stop::Kill).await.unwrap();
        cancels.push(asked.elapsed());
    }
    let took = began.elapsed().as_secs_f64();
    println!("{} MB in {took:.1} s, in TLS, {rate} bytes/s", bytes / 1_000_000);
    let mut worst = Duration::ZERO;
    for (name, mut times) in [("heartbeat", heartbeats), ("cancel", cancels)] {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        let count = times.len();
        println!(
            "{name:<10} {count:5} times: median {:5.1} ms, 99 % {:5.1} ms, worst {:5.1} ms",
            at(50),
            at(99),
            at(100)
        );
        worst = worst.max(times[count - 1]);
    }
    if worst <= WORST { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
