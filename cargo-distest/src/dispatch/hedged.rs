//! What is told of tests of which two attempts are under way: of one that another has decided
//! before nothing more, and of one that goes on alone under which number it counts from now on.

use distest_worker::protocol::AttemptId;

use super::{Dispatch, Ending};
use crate::event::RunEvent;
use crate::model::TestIndex;

impl Dispatch {
    /// Keeps how an attempt ended until the scheduler says how that counts, if it ever will.
    pub(super) fn keep_ending(
        &mut self,
        attempt: AttemptId,
        test: TestIndex,
        abandoned: bool,
        ending: Ending,
    ) {
        if !abandoned {
            self.endings.insert((attempt, test), Box::new(ending));
        }
    }

    /// Another attempt has decided.
    pub(super) fn abandoned(&mut self, attempt: AttemptId, test: TestIndex) {
        match self.in_flight.get_mut(&attempt) {
            Some(flight) => flight.abandoned = true,
            // It has ended meanwhile.
            None => _ = self.endings.remove(&(attempt, test)),
        }
    }

    /// The other attempt of its test came to an end that decides nothing.
    pub(super) async fn goes_on(&mut self, attempt: AttemptId, number: u32) {
        let Some(flight) = self.in_flight.get_mut(&attempt) else { return };
        flight.number = number;
        let (test, worker) = (flight.test, flight.worker);
        if flight.started.is_some() {
            self.tell(RunEvent::AttemptGoesOn { test, attempt: number, worker }).await;
        }
    }
}
