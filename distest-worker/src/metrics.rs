//! What goes on at a worker, for monitoring: OpenMetrics text over HTTP.
//!
//! Whoever reaches the port may read it: names of clients are in it, nothing of their tests.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::accept::accept_again;
use crate::protocol::WorkerStatus;
use crate::server::{Counted, WorkerShared};

/// The most bytes of a request.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// How long a peer may take to ask, and to take the answer.
const TIME: Duration = Duration::from_secs(5);
/// Requests at once; more wait.
const REQUESTS_MAX: usize = 16;

/// Answers requests for `/metrics`.
pub struct Metrics {
    listener: TcpListener,
    worker: Arc<WorkerShared>,
}

impl Metrics {
    /// Listens at an address; port 0 picks a free one.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn at(address: SocketAddr, worker: Arc<WorkerShared>) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, worker })
    }

    /// Where.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers for as long as it is polled.
    pub async fn serve(self) {
        let mut answering = JoinSet::new();
        loop {
            if answering.len() >= REQUESTS_MAX {
                answering.join_next().await;
                continue;
            }
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let worker = Arc::clone(&self.worker);
                        answering.spawn(async move {
                            // Whoever asks oddly or slowly gets no answer.
                            let _ = timeout(TIME, answer(stream, &worker)).await;
                        });
                    }
                    Err(_) => accept_again().await,
                },
                Some(_) = answering.join_next() => {}
            }
        }
    }
}

async fn answer<S>(mut stream: S, worker: &WorkerShared) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let read = stream.read(&mut piece).await?;
        if read == 0 || request.len() + read > REQUEST_BYTES_MAX {
            return Ok(());
        }
        request.extend_from_slice(&piece[..read]);
    }
    let (status, body) = match is_for_metrics(&request) {
        true => ("200 OK", text(&worker.status(), worker.evicted(), worker.counted())),
        false => ("404 Not Found", "ask for /metrics\n".to_owned()),
    };
    let length = body.len();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn is_for_metrics(request: &[u8]) -> bool {
    ["/metrics ", "/metrics?"]
        .iter()
        .any(|path| request.strip_prefix(b"GET ").is_some_and(|it| it.starts_with(path.as_bytes())))
}

/// As OpenMetrics writes it.
fn text(status: &WorkerStatus, evicted: u64, counted: Counted) -> String {
    let mut text = String::new();
    let flag = |holds: bool| u64::from(holds);
    let gauges = [
        ("slots", "Places for attempts that run.", u64::from(status.slots)),
        ("slots_used", "Those that are taken.", status.used.into()),
        ("draining", "1 if it takes nothing more.", flag(status.draining)),
        ("paused", "1 if it takes nothing for now.", flag(!status.paused.is_empty())),
        ("store_bytes", "Bytes of received files that are kept.", status.store_bytes),
        ("store_max_bytes", "The most that are kept.", status.store_bytes_max),
        ("sessions", "Open sessions.", status.sessions.len() as u64),
    ];
    for (name, help, value) in gauges {
        let unit = if name.ends_with("_bytes") { "bytes" } else { "" };
        head(&mut text, name, "gauge", help, unit);
        _ = writeln!(text, "distest_{name} {value}");
    }
    let Counted { started, finished, stopped, lost, refused, come_back } = counted;
    let counters = [
        ("attempts_started", "Attempts that got a slot.", started),
        ("attempts", "Those that ended by themselves, or by their timeout.", finished),
        ("attempts_stopped", "Those that were ended as nobody wanted them any more.", stopped),
        ("attempts_lost", "Those that came to no end by a fault of this worker's.", lost),
        ("store_evictions", "Received files that were removed to make room.", evicted),
        ("connections_refused", "Connections that nobody let in.", refused),
        ("connections_resumed", "Sessions that went on after a connection broke.", come_back),
    ];
    for (name, help, value) in counters {
        head(&mut text, name, "counter", help, "");
        _ = writeln!(text, "distest_{name}_total {value}");
    }
    for (name, help) in [("running", "Attempts that run, by client."), ("queued", "And wait.")] {
        head(&mut text, name, "gauge", help, "");
        for (number, session) in status.sessions.iter().enumerate() {
            let value = if name == "running" { session.running } else { session.queued };
            let (client, run) = (escaped(&session.client), escaped(&session.run));
            _ = writeln!(
                text,
                "distest_{name}{{session=\"{number}\",client=\"{client}\",run=\"{run}\"}} {value}"
            );
        }
    }
    text + "# EOF\n"
}

fn head(text: &mut String, name: &str, kind: &str, help: &str, unit: &str) {
    _ = writeln!(text, "# TYPE distest_{name} {kind}");
    if !unit.is_empty() {
        _ = writeln!(text, "# UNIT distest_{name} {unit}");
    }
    _ = writeln!(text, "# HELP distest_{name} {help}");
}

/// A label's value, which comes from outside.
fn escaped(value: &str) -> String {
    let plain: String = value.chars().filter(|c| !c.is_control()).collect();
    plain.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SessionStatus;

    #[test]
    fn labels_from_outside_stay_labels() {
        let session = SessionStatus {
            client: "a\"} 1\nevil 2 \\".to_owned(),
            run: "r".to_owned(),
            running: 2,
            queued: 5,
        };
        let status = WorkerStatus { slots: 4, sessions: vec![session], ..Default::default() };
        let text = text(&status, 0, Counted { finished: 7, ..Default::default() });
        let line = "distest_queued{session=\"0\",client=\"a\\\"} 1evil 2 \\\\\",run=\"r\"} 5";
        assert!(text.lines().any(|it| it == line), "{text}");
        assert!(text.contains("\ndistest_attempts_total 7\n") && text.ends_with("# EOF\n"));
        let plain = |line: &str| line.starts_with("# ") || line.starts_with("distest_");
        assert!(text.lines().all(plain), "{text}");
    }

    /// What the manual says of each.
    #[test]
    fn every_metric_is_explained() {
        let manual = include_str!("../../docs/monitoring.md");
        let text = text(&WorkerStatus::default(), 0, Counted::default());
        let metrics = text.lines().filter_map(|line| line.strip_prefix("# TYPE distest_"));
        for metric in metrics {
            let row = match metric.split_once(' ').unwrap() {
                (name, "counter") => format!("| `{name}_total` | counter |"),
                (name, kind) => format!("| `{name}` | {kind} |"),
            };
            assert!(manual.contains(&row), "no {row}");
        }
    }

    #[test]
    fn only_one_path_is_answered() {
        for (request, fine) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", true),
            ("GET /metrics?x HTTP/1.1\r\n\r\n", true),
            ("GET /metricsx HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("POST /metrics HTTP/1.1\r\n\r\n", false),
        ] {
            assert_eq!(is_for_metrics(request.as_bytes()), fine, "{request}");
        }
    }
}
