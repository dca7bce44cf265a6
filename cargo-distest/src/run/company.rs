//! Which tests share a process, from the settings, the history and what binaries can do.

use std::sync::Arc;

use distest_worker::protocol::Network;
use tokio::sync::mpsc;

use crate::batch::{self, Candidate, Mode, Selected, Standings};
use crate::dispatch::{Order, Planned};
use crate::model::TestIndex;
use crate::settings::{Isolation, OutputWhen, Settings, Writes};

/// The choice that this run makes; none: each test has its own process.
#[derive(Debug)]
pub(super) struct Choice {
    mode: Mode,
    seed: u64,
    slots: u32,
    standings: Arc<Standings>,
}

/// Test cases that are planned, as far as the choice needs to know them.
#[derive(Default)]
pub(super) struct Candidates(Vec<Candidate>);

/// Who may share a process; none: nobody.
pub(super) fn mode(settings: &Settings) -> Option<Mode> {
    let execute = &settings.execute;
    // libtest keeps what passing tests print to itself.
    let shows_passes = settings.report.success_output != OutputWhen::Never
        || (settings.report.junit.is_some() && settings.report.junit_success_output);
    match execute.isolation {
        _ if execute.no_capture || shows_passes => None,
        // Tests that must not see what others wrote have no company.
        _ if execute.writes == Writes::Test => None,
        Isolation::Process => None,
        Isolation::Batch => Some(Mode::All { whole: execute.test_threads == Some(1) }),
        Isolation::Auto => Some(Mode::Auto),
    }
}

impl Choice {
    pub(super) fn new(settings: &Settings, standings: Standings) -> Option<Self> {
        let seed = settings.execute.seed.unwrap_or(standings.runs);
        // A fleet has more: then batches are longer than need be, and there are more of them.
        let slots = settings.execute.test_threads.unwrap_or_else(super::cores);
        Some(Self { mode: mode(settings)?, seed, slots, standings: Arc::new(standings) })
    }

    /// Takes note of test cases that get the numbers from `first` on.
    pub(super) fn note(&self, first: u32, planned: &[Planned], candidates: &mut Candidates) {
        candidates.0.extend((first..).zip(planned).map(|(number, it)| {
            let (standing, recalled) = self.standings.get(&it.case.binary, &it.case.name);
            Candidate {
                test: TestIndex(number),
                case: it.case.clone(),
                binary: it.runnable.key,
                place: it.place,
                // A process is in one network.
                sharing: it.runnable.sharing.filter(|_| it.network() == Network::Host),
                ignored: it.ignored,
                expected: it.expected,
                standing,
                recalled,
            }
        }));
    }

    /// Tells who shares a process with whom, now that all are known.
    pub(super) async fn tell(&self, candidates: Candidates, orders: &mpsc::Sender<Order>) {
        let Selected { batches, acquainted } =
            batch::select(self.mode, self.seed, self.slots, &candidates.0);
        let standings = Arc::clone(&self.standings);
        // Nobody takes orders once the run is cancelled.
        let _ = orders.send(Order::Batches { batches, acquainted, standings }).await;
    }
}
