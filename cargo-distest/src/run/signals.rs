//! Ctrl-C and its kin, and the run's own time limit.

use std::future;
use std::time::Duration;

use distest_worker::protocol::Stop;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::dispatch::Order;
use crate::event::CancelReason;
use crate::failure::{ExitCode, Failure};

/// SIGINT, SIGTERM and SIGHUP, from the moment when this is made.
pub(super) struct Interrupts([Signal; 3]);

/// Turns interrupts into orders until it is dropped.
pub(super) struct Watch {
    task: JoinHandle<()>,
    interrupted: watch::Receiver<bool>,
}

impl Interrupts {
    /// Takes these signals over: they no longer end the process.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(ExitCode::Setup, "could not listen for Ctrl-C").because(error)
            })
        };
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(listen);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// Ends when the next signal arrives.
    pub(super) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The first signal cancels in order, the second kills, the third ends this process at once. The
/// time limit is one of the tests: as cargo-nextest's it begins when everything is `built`.
pub(super) fn watch(
    mut interrupts: Interrupts,
    global_timeout: Option<Duration>,
    mut built: watch::Receiver<bool>,
    orders: mpsc::Sender<Order>,
) -> Watch {
    let (tell, interrupted) = watch::channel(false);
    let task = tokio::spawn(async move {
        let timeout = async {
            match global_timeout {
                Some(timeout) if built.wait_for(|built| *built).await.is_ok() => {
                    tokio::time::sleep(timeout).await;
                }
                _ => future::pending().await,
            }
        };
        let mut reason = CancelReason::Interrupt;
        tokio::select! {
            () = interrupts.next() => {}
            () = timeout => reason = CancelReason::GlobalTimeout,
        }
        tell.send_replace(true);
        for how in [Stop::Terminate, Stop::Kill] {
            // The dispatcher may have ended: then there is nothing to cancel.
            let _ = orders.send(Order::Cancel(reason, how)).await;
            interrupts.next().await;
            reason = CancelReason::Interrupt;
        }
        // Zygotes end what runs as soon as this process is gone.
        std::process::exit(i32::from(ExitCode::Interrupted.number()));
    });
    Watch { task, interrupted }
}

impl Watch {
    /// Becomes true with the first signal.
    pub(super) fn interrupted(&self) -> watch::Receiver<bool> {
        self.interrupted.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
