//! How long each step takes until a worker can be used.

use std::time::{Duration, Instant};

use crate::model::Step;

/// Measures steps that follow each other.
#[derive(Debug)]
pub(super) struct Stopwatch {
    since: Instant,
    steps: Vec<(Step, Duration)>,
}

impl Stopwatch {
    /// The first step begins.
    pub(super) fn start() -> Self {
        Self { since: Instant::now(), steps: Vec::new() }
    }

    /// A step is done, and the next one begins. One that is done again took both times.
    pub(super) fn done(&mut self, step: Step) {
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        match self.steps.iter_mut().find(|(known, _)| *known == step) {
            Some((_, before)) => *before += took,
            None => self.steps.push((step, took)),
        }
    }

    /// What each took, in order.
    pub(super) fn steps(self) -> Vec<(Step, Duration)> {
        self.steps
    }
}
