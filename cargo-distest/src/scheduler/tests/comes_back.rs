//! Workers that are lost, whatever they run, and come back.

use super::*;

const W2: WorkerId = WorkerId(2);
const W3: WorkerId = WorkerId(3);
const W4: WorkerId = WorkerId(4);

impl Script {
    /// A worker with one slot is back that joined first under another number.
    fn back(&mut self, worker: WorkerId, first: WorkerId) -> &mut Self {
        let traits = Traits { formerly: Some(first), ..Traits::default() };
        self.say(Input::Joined { worker, slots: 1, round_trip: MS, traits });
        self.say(Input::Ready { worker, binary: B0 })
    }

    fn lost(&mut self, worker: WorkerId) -> &mut Self {
        self.say(Input::Lost { worker })
    }

    /// How many workers a test was said to have taken down.
    fn took_down(&self) -> Option<u32> {
        self.said.iter().find_map(|effect| match effect {
            Effect::TookDown { workers, .. } => Some(*workers),
            _ => None,
        })
    }
}

#[test]
fn a_suspect_waits_for_another_worker_than_the_one_that_comes_back() {
    let mut script = Script::running(RULES, 2, 1);
    assert_eq!(script.join(W1, 1, B0).granted(), [(1, 1)]);
    script.started(W0, 0).started(W1, 1).lost(W0);
    assert_eq!(script.back(W2, W0).granted(), [], "it is the emptiest, and was lost with it");
    assert_eq!(script.ended(W1, 1, AttemptResult::Pass).granted(), [(1, 0)]);
    // That one is lost, too, as often as the other: rather where it was not alone.
    script.started(W1, 2).lost(W1);
    assert_eq!(script.granted(), [(2, 0)], "the only one that is there");
    script.started(W2, 3).lost(W2);
    assert_eq!(script.took_down(), Some(2));
}

#[test]
fn where_no_other_is_a_worker_that_comes_back_is_used_and_counts_twice() {
    let mut script = Script::running(RULES, 1, 1);
    script.started(W0, 0).lost(W0);
    assert_eq!(script.back(W1, W0).granted(), [(1, 0)]);
    script.started(W1, 1).lost(W1);
    assert_eq!(script.took_down(), None);
    assert_eq!(script.back(W2, W0).granted(), [(2, 0)]);
    script.started(W2, 2).lost(W2);
    assert_eq!(script.took_down(), Some(2));
    assert_eq!(script.verdicts(), [(0, Verdict::Lost)]);
}

#[test]
fn the_same_worker_twice_proves_nothing_while_another_is_there() {
    let mut script = Script::running(RULES, 1, 1);
    script.started(W0, 0).lost(W0).back(W1, W0).started(W1, 1).lost(W1).back(W2, W0);
    script.started(W2, 2).say(joined(W3, 1)).lost(W2);
    assert_eq!((script.took_down(), script.verdicts()), (None, vec![]));
    assert_eq!(script.back(W4, W0).granted(), [], "it waits for the other to be made ready");
    assert_eq!(script.say(Input::Ready { worker: W3, binary: B0 }).granted(), [(3, 0)]);
    script.started(W3, 3).lost(W3);
    assert_eq!(script.took_down(), Some(3), "wherever it goes");
    assert_eq!(script.verdicts(), [(0, Verdict::Lost)]);
}

#[test]
fn a_refusal_leaves_a_suspect_to_the_worker_that_comes_back() {
    let mut script = Script::running(RULES, 1, 1);
    script.started(W0, 0).lost(W0).say(joined(W1, 1));
    assert_eq!(script.back(W2, W0).granted(), []);
    assert_eq!(script.say(Input::Refused { worker: W1, binary: B0 }).granted(), [(2, 0)]);
}

#[test]
fn a_suspect_goes_where_few_were_lost() {
    let mut script = Script::running(RULES, 3, 1);
    script.join(W1, 1, B0).join(W2, 1, B0).started(W0, 0).started(W1, 1).started(W2, 2);
    // One that has nothing is lost again and again.
    let unsteady = WorkerId(10);
    script.join(unsteady, 1, B0).lost(unsteady).back(WorkerId(11), unsteady);
    script.lost(WorkerId(11)).back(WorkerId(12), unsteady);
    let ready = Input::Ready { worker: WorkerId(12), binary: B0 };
    assert_eq!(script.lost(W0).say(ready).granted(), [], "rather a steady one that is busy");
    assert_eq!(script.ended(W2, 2, AttemptResult::Pass).granted(), [(2, 0)]);
}

#[test]
fn who_leaves_by_its_own_word_is_as_steady_as_before() {
    let mut script = Script::running(RULES, 2, 1);
    script.join(W1, 1, B0).started(W0, 0).started(W1, 1);
    let leaving = [10, 11, 12].map(WorkerId);
    for worker in leaving {
        script.back(worker, leaving[0]).say(Input::Leaving { worker }).lost(worker);
    }
    script.back(WorkerId(13), leaving[0]);
    let ready = Input::Ready { worker: WorkerId(13), binary: B0 };
    assert_eq!(script.lost(W0).say(ready).granted(), [(13, 0)]);
}
