//! Needs, suspects, culprits and quarantine.

use super::*;

const MUTEX: GroupIndex = GroupIndex(0);

fn with(test: u32, needs: Needs) -> Task {
    Task { needs: Some(Arc::new(needs)), ..task(test, B0, Urgency::Known, 50) }
}

fn plain(test: u32) -> Task {
    task(test, B0, Urgency::Known, 50)
}

fn run(tasks: Vec<Task>) -> Script {
    let group = |name: &str, threads_max, per_worker| {
        let name = name.to_owned();
        Group { name, threads_max, per_worker }
    };
    let groups = vec![group("mutex", Some(1), None), group("spread", None, Some(1))];
    let scheduler = Scheduler::with_groups(RULES, groups);
    let mut script = Script { scheduler, said: Vec::new() };
    script.say(Input::Added(tasks)).say(Input::AllAdded).say(Input::Open);
    script
}

fn embedded(worker: WorkerId, slots: u32) -> Input {
    let traits = Traits { embedded: true, ..Traits::default() };
    Input::Joined { worker, slots, round_trip: MS, traits }
}

fn labelled(worker: WorkerId, label: &str, value: &str) -> Input {
    let labels = std::iter::once((label.to_owned(), value.to_owned())).collect();
    let traits = Traits { labels, ..Traits::default() };
    Input::Joined { worker, slots: 2, round_trip: MS, traits }
}

#[test]
fn a_mutex_holds_over_the_whole_fleet_and_until_its_worker_is_certainly_lost() {
    let in_mutex = || Needs { group: Some(MUTEX), ..Needs::default() };
    let mut script = run(vec![with(0, in_mutex()), with(1, in_mutex())]);
    script.join(W0, 2, B0);
    assert_eq!(script.granted(), [(0, 0)]);
    assert_eq!(script.join(W1, 2, B0).granted(), []);
    script.started(W0, 0).say(Input::Cut { worker: W0 });
    assert_eq!(script.granted(), []);
    script.say(Input::Lost { worker: W0 });
    assert_eq!(script.granted().len(), 1);
}

#[test]
fn a_group_may_be_bounded_on_each_worker() {
    let spread = || Needs { group: Some(GroupIndex(1)), ..Needs::default() };
    let mut script = run(vec![with(0, spread()), with(1, spread())]);
    assert_eq!(script.join(W0, 2, B0).granted(), [(0, 0)]);
    assert_eq!(script.join(W1, 2, B0).granted(), [(1, 1)]);
}

#[test]
fn an_exclusive_test_reserves_a_worker_and_runs_alone_there() {
    let exclusive = Needs { exclusive: true, ..Needs::default() };
    let mut script = run(vec![plain(0), plain(1), plain(2)]);
    script.join(W0, 2, B0);
    let mut script = Script { said: Vec::new(), ..script };
    script.say(Input::Added(vec![with(3, exclusive)]));
    assert_eq!(script.ended(W0, 0, AttemptResult::Pass).granted(), [], "reserved");
    assert_eq!(script.ended(W0, 1, AttemptResult::Pass).granted(), [(0, 3)]);
    assert_eq!(script.ended(W0, 2, AttemptResult::Pass).granted(), [(0, 2)]);
}

#[test]
fn threads_are_clamped_to_the_worker() {
    let mut script = run(vec![with(0, Needs { threads: 9, ..Needs::default() }), plain(1)]);
    assert_eq!(script.join(W0, 2, B0).granted(), [(0, 0)]);
    assert_eq!(script.ended(W0, 0, AttemptResult::Pass).granted(), [(0, 1)]);
}

#[test]
fn seed_12_nothing_is_prefetched_behind_a_heavy_test() {
    let tasks = vec![plain(0), with(1, Needs { threads: 2, ..Needs::default() })];
    let mut script = run(tasks.into_iter().chain((2..20).map(plain)).collect());
    script.join(W0, 3, B0);
    assert_eq!(script.granted(), [(0, 1), (0, 0)]);
    // The worker would start whatever it has as soon as one slot is free, beside the heavy one.
    assert_eq!(script.lasted(W0, 1, AttemptResult::Pass, 1).granted(), [(0, 2)]);
}

#[test]
fn seed_823_what_reserved_a_worker_goes_on_with_it_when_others_become_urgent() {
    let heavy = Needs { threads: 2, priority: -1, ..Needs::default() };
    let group = Scheduler::with_groups(Rules { retries: 1, ..RULES }, Vec::new());
    let mut script = Script { scheduler: group, said: Vec::new() };
    script.say(Input::Added(vec![plain(0), with(1, heavy)]));
    script.say(Input::AllAdded).say(Input::Open).join(W0, 2, B0);
    assert_eq!(script.granted(), [(0, 0)]);
    assert_eq!(script.ended(W0, 0, AttemptResult::Fail).granted(), [(0, 1)]);
    assert_eq!(script.ended(W0, 1, AttemptResult::Pass).granted(), [(0, 0)]);
}

#[test]
fn what_goes_first_is_not_overtaken_by_what_is_prefetched() {
    let first = || Needs { priority: 7, ..Needs::default() };
    let tasks = (0..3).map(|test| with(test, first())).chain((3..20).map(plain));
    let mut script = run(tasks.collect());
    assert_eq!(script.join(W0, 1, B0).granted(), [(0, 0)]);
    // Tests that take a millisecond are prefetched, the urgent ones first.
    let granted = script.lasted(W0, 0, AttemptResult::Pass, 1).granted();
    assert_eq!(granted[..3], [(0, 1), (0, 2), (0, 3)]);
}

#[test]
fn what_nobody_waits_for_is_prefetched_whatever_it_needs() {
    let labelled_test = || {
        let requires = BTreeMap::from([("gpu".to_owned(), "yes".to_owned())]);
        Needs { requires, ..Needs::default() }
    };
    let grouped = || Needs { group: Some(GroupIndex(1)), ..labelled_test() };
    let tasks = (0..8).map(|n| with(n, labelled_test())).chain((8..12).map(|n| with(n, grouped())));
    let mut script = run(tasks.collect());
    let traits = |label: &str| Traits {
        labels: std::iter::once((label.to_owned(), "yes".to_owned())).collect(),
        pace: Pace::remembered(1.0, Some(MS * 100), None),
        ..Traits::default()
    };
    let far = |worker, traits| Input::Joined { worker, slots: 1, round_trip: MS * 100, traits };
    script.say(far(W0, traits("gpu"))).say(Input::Ready { worker: W0, binary: B0 });
    // While an answer is on its way two tests of 50 ms end.
    assert_eq!(script.granted(), [(0, 0), (0, 1), (0, 2)]);
    // Another worker of the kind takes over what waits, once nothing else does; others don't.
    for done in 0..5 {
        script.started(W0, done).ended(W0, done, AttemptResult::Pass);
    }
    script.say(far(W1, traits("none"))).say(Input::Ready { worker: W1, binary: B0 });
    assert_eq!(script.granted(), []);
    assert!(!script.said.iter().any(|it| matches!(it, Effect::Revoke { .. })), "{:?}", script.said);
}

#[test]
fn nothing_is_kept_for_a_group_without_room() {
    let in_mutex = || Needs { group: Some(MUTEX), ..Needs::default() };
    let mut script = run((0..4).map(plain).collect());
    script.join(W0, 1, B0).join(W1, 1, B0);
    script.say(Input::Added(vec![with(4, in_mutex()), with(5, in_mutex())]));
    assert_eq!(script.ended(W0, 0, AttemptResult::Pass).granted(), [(0, 4)]);
    assert_eq!(script.ended(W1, 1, AttemptResult::Pass).granted(), [(1, 2)], "not for test 5");
}

#[test]
fn labels_and_sides_choose_the_worker() {
    let requires = std::iter::once(("gpu".to_owned(), "yes".to_owned())).collect();
    let gpu = Needs { requires, ..Needs::default() };
    let local = Needs { place: Place::Local, ..Needs::default() };
    let mut script = run(vec![with(0, gpu), with(1, local)]);
    script.say(labelled(W0, "gpu", "no")).say(Input::Ready { worker: W0, binary: B0 });
    assert_eq!(script.granted(), []);
    script.say(embedded(W1, 1)).say(Input::Ready { worker: W1, binary: B0 });
    assert_eq!(script.granted(), [(1, 1)]);
    let w2 = WorkerId(2);
    script.say(labelled(w2, "gpu", "yes")).say(Input::Ready { worker: w2, binary: B0 });
    assert_eq!(script.granted(), [(2, 0)]);
}

#[test]
fn a_network_of_its_own_is_had_only_where_there_are_some() {
    let own = Needs { private_network: true, ..Needs::default() };
    assert_eq!(own.to_string(), "network = \"private\"");
    let lack = "no namespaces".to_owned();
    let traits = Traits { private_network_lack: Some(lack.clone()), ..Traits::default() };
    assert_eq!(own.mismatches(&traits), [Mismatch::Network(lack)]);
    let mut script = run(vec![with(0, own), plain(1)]);
    script.say(Input::Joined { worker: W0, slots: 2, round_trip: MS, traits });
    script.say(Input::Ready { worker: W0, binary: B0 });
    assert_eq!(script.granted(), [(0, 1)]);
    script.join(W1, 2, B0);
    assert_eq!(script.granted(), [(1, 0)]);
}

#[test]
fn services_are_found_only_where_they_are_forwarded() {
    let needs = Needs { private_network: true, forwards: true, ..Needs::default() };
    assert_eq!(needs.to_string(), "network = \"private\", forward");
    let lack = "too old".to_owned();
    let traits = Traits { forward_lack: Some(lack.clone()), ..Traits::default() };
    assert_eq!(needs.mismatches(&traits), [Mismatch::Forward(lack)]);
    let own = Needs { forwards: false, ..needs };
    assert!(own.met_by(&traits));
}

#[test]
fn a_test_that_nobody_may_run_ends_the_run_and_is_named() {
    let requires = std::iter::once(("gpu".to_owned(), "yes".to_owned())).collect();
    let needs = Needs { requires, ..Needs::default() };
    let mut script = run((0..3).map(|test| with(test, needs.clone())).collect());
    script.join(W0, 1, B0);
    assert_eq!(script.said, []);
    assert_eq!(script.say(Input::NoMoreWorkers).said, [Effect::NeedWorker]);
    script.say(Input::NoWorker);
    assert!(script.said.contains(&Effect::Unplaceable { test: TestIndex(0), more: 2 }));
    assert_eq!(script.scheduler.cancelled(), Some(CancelReason::Unplaceable));
}

#[test]
fn only_a_test_that_was_alone_twice_is_to_blame() {
    let mut script = run(vec![plain(0), plain(1)]);
    script.join(W0, 2, B0).started(W0, 0).started(W0, 1).say(Input::Lost { worker: W0 });
    assert_eq!(script.verdicts(), [], "both ran: nobody is to blame");
    script.join(W1, 2, B0);
    assert_eq!(script.granted(), [(1, 0)], "one suspect at a time");
    script.started(W1, 2).say(Input::Lost { worker: W1 });
    let w2 = WorkerId(2);
    script.join(w2, 2, B0);
    let attempt = AttemptId(3);
    assert_eq!(script.granted(), [(2, 0)]);
    script.started(w2, 3).say(Input::Lost { worker: w2 });
    assert!(script.said.contains(&Effect::TookDown { attempt, workers: 2 }));
    assert_eq!(script.verdicts(), [(0, Verdict::Lost)]);
}

#[test]
fn a_worker_that_fails_what_others_pass_gets_nothing_more() {
    let rules = Rules { retries: 1, ..RULES };
    let mut script = Script::new(rules);
    script.say(Input::Added((0..8).map(plain).collect())).say(Input::AllAdded).say(Input::Open);
    script.join(W0, 1, B0).join(W1, 1, B0);
    script.say(Input::Ready { worker: W1, binary: B0 });
    // Attempts 0 and 1 are with W0 and W1. Whatever fails on W0 is tried again on W1.
    let mut failing = AttemptId(0);
    let mut other = AttemptId(1);
    let mut quarantined = false;
    for _ in 0..4 {
        script.ended(W0, failing.0, AttemptResult::Fail);
        failing = next(&script, W0).unwrap_or(failing);
        for _ in 0..2 {
            script.ended(W1, other.0, AttemptResult::Pass);
            quarantined |= script.said.contains(&Effect::Quarantined { worker: W0, fails: true });
            other = next(&script, W1).unwrap_or(other);
        }
    }
    assert!(quarantined);
    assert!(script.ended(W0, failing.0, AttemptResult::Fail).granted().iter().all(|it| it.0 == 1));
}

fn next(script: &Script, on: WorkerId) -> Option<AttemptId> {
    script.said.iter().find_map(|effect| match effect {
        Effect::Lease { worker, grants } if *worker == on => Some(grants[0].attempt),
        _ => None,
    })
}
