//! What the user should know of what tests meet, each thing once in a run, whichever fleet it is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

/// Notices of one run at most.
const NOTICES_MAX: usize = 100;

/// Takes notices.
#[derive(Debug)]
pub struct Notices {
    heard: mpsc::UnboundedSender<Notice>,
    told: Mutex<BTreeSet<String>>,
}

/// Something that the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What, and why.
    pub text: String,
    /// What to do; empty if there is nothing.
    pub hint: String,
}

impl Notices {
    /// Where to tell them, and where they are heard.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (heard, notices) = mpsc::unbounded_channel();
        (Arc::new(Self { heard, told: Mutex::default() }), notices)
    }

    /// Nobody hears them.
    pub fn unheard() -> Arc<Self> {
        Self::new().0
    }

    /// Tells one, if it has not been told.
    pub fn tell(&self, text: String, hint: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < NOTICES_MAX && told.insert(text.clone()) {
            // Nobody listens once the run is over.
            let _ = self.heard.send(Notice { text, hint: hint.to_owned() });
        }
    }
}
