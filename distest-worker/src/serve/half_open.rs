//! Connections whose peer has not proved its key: few, and the newest first.
//!
//! When too many are half open the oldest is dropped. Somebody who opens connections and says
//! nothing thereby displaces their own; who has something to prove does so within a few round trips.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{AbortHandle, JoinSet};

/// Connections at once whose peer has not proved its key. Each costs some 20 KiB.
pub(super) const HALF_OPEN_MAX: usize = 256;

/// The connections that are half open.
#[derive(Clone, Default)]
pub struct HalfOpen {
    shared: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    tasks: BTreeMap<u64, AbortHandle>,
}

/// A connection's place among those that are half open; given up when dropped.
pub struct Place {
    half_open: HalfOpen,
    number: u64,
}

impl HalfOpen {
    /// None are.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task for a connection, which drops its place when its peer has proved its key. May
    /// end the oldest of those that haven't.
    pub fn spawn<F>(&self, tasks: &mut JoinSet<F::Output>, task: impl FnOnce(Place) -> F)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let number = {
            let mut waiting = self.waiting();
            waiting.next += 1;
            waiting.next
        };
        let handle = tasks.spawn(task(Place { half_open: self.clone(), number }));
        let mut waiting = self.waiting();
        // It can't have given its place up: it starts when this task waits.
        waiting.tasks.insert(number, handle);
        if waiting.tasks.len() > HALF_OPEN_MAX
            && let Some((_, oldest)) = waiting.tasks.pop_first()
        {
            oldest.abort();
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.half_open.waiting().tasks.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_goes_and_who_has_proved_their_key_stays() {
        let half_open = HalfOpen::new();
        let mut tasks = JoinSet::new();
        let (release, proved) = tokio::sync::oneshot::channel::<()>();
        half_open.spawn(&mut tasks, |place| async move {
            drop(place);
            let _ = proved.await;
            0
        });
        tokio::task::yield_now().await;
        for number in 1..=HALF_OPEN_MAX + 10 {
            half_open.spawn(&mut tasks, |place| async move {
                let _place = place;
                std::future::pending::<()>().await;
                number
            });
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        }
        assert_eq!(half_open.waiting().tasks.len(), HALF_OPEN_MAX);
        assert_eq!(half_open.waiting().tasks.first_key_value().unwrap().0, &12);
        release.send(()).unwrap();
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), 0);
    }
}
