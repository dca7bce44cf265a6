//! Which workers a fleet has: none twice, and no more than are wanted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distest_worker::hello::Hello;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{Spare, Unusable};

/// The workers that a fleet has, without the embedded one.
#[derive(Debug)]
pub(super) struct Members {
    /// As they name themselves in [`Hello::instance`].
    instances: Mutex<BTreeSet<String>>,
    /// `--max-workers`.
    max: Option<(u32, Arc<Semaphore>)>,
    /// Told whenever one leaves.
    left: watch::Sender<()>,
}

/// A worker's place in the fleet, given up when dropped.
#[derive(Debug)]
pub(super) struct Member {
    members: Arc<Members>,
    instance: String,
    place: Option<OwnedSemaphorePermit>,
}

impl Members {
    /// None yet, and at most `max`.
    pub(super) fn new(max: Option<u32>) -> Arc<Self> {
        let max = max.map(|max| (max, Arc::new(Semaphore::new(max as usize))));
        Arc::new(Self { instances: Mutex::default(), max, left: watch::Sender::new(()) })
    }

    /// Takes in a worker that has greeted, if it is needed.
    pub(super) fn admit(self: &Arc<Self>, hello: &Hello) -> Result<Member, Unusable> {
        let place = match &self.max {
            None => None,
            Some((max, places)) => match Arc::clone(places).try_acquire_owned() {
                Ok(place) => Some(place),
                Err(_) => {
                    let reason = format!("{max} workers are there already, as --max-workers says");
                    return Err(Unusable::spare(Spare::UntilOneLeaves, reason));
                }
            },
        };
        let instance = hello.instance.clone();
        // Its place, if it has got one, goes back without a word: nobody has left.
        if !instance.is_empty() && !self.instances().insert(instance.clone()) {
            let reason = "it is in this run already, by another address";
            return Err(Unusable::spare(Spare::UntilOneLeaves, reason));
        }
        Ok(Member { members: Arc::clone(self), instance, place })
    }

    /// When another worker can be taken in.
    pub(super) async fn wanted(&self) {
        if let Some((_, places)) = &self.max {
            // Never closed. Given back at once: whoever comes first takes it.
            let _ = places.acquire().await;
        }
    }

    /// Changes whenever a worker leaves, from now on.
    pub(super) fn leaving(&self) -> watch::Receiver<()> {
        self.left.subscribe()
    }

    fn instances(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.members.instances().remove(&self.instance);
        // Given up before anybody is told that it is free.
        drop(self.place.take());
        self.members.left.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(instance: &str) -> Hello {
        Hello { instance: instance.to_owned(), ..Hello::default() }
    }

    #[tokio::test]
    async fn none_twice_and_no_more_than_wanted() {
        let members = Members::new(Some(2));
        let mut leaving = members.leaving();
        let a = members.admit(&worker("a")).unwrap();
        let surplus = Some(Spare::UntilOneLeaves);
        assert!(members.admit(&worker("a")).is_err_and(|it| it.spare == surplus));
        assert!(!leaving.has_changed().unwrap(), "a surplus worker that goes makes no room");
        let b = members.admit(&worker("b")).unwrap();
        let refused = members.admit(&worker("c")).unwrap_err();
        assert!(
            refused.spare == surplus && refused.reason.contains("--max-workers"),
            "{refused:?}"
        );
        let mut wanted = Box::pin(members.wanted());
        assert!(futures::poll!(&mut wanted).is_pending());
        drop(a);
        leaving.changed().await.unwrap();
        wanted.await;
        let a = members.admit(&worker("a")).unwrap();
        drop((a, b));
        // An older worker doesn't say which one it is.
        let _both = [worker(""), worker("")].map(|it| members.admit(&it).unwrap());
    }
}
