use distest_worker::protocol::{AttemptId, Exit, LossReason, RefusalKind, SlotId};
use proptest::prelude::*;

use super::*;
use crate::model::AttemptResult;
use crate::results::script::Script;
use crate::results::{Ending, SummarySettings};

/// What begins lines of its own and steers the terminal, at any length.
const FORGED: &str = "w\nPASS [0.1s] a::b\r\u{1b}[2J\u{2028}\u{202e}";

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just(FORGED.to_owned()), Just(FORGED.repeat(500)), ".*"]
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::MAX),
        Just(TIME_MAX),
        any::<u32>().prop_map(|ms| Duration::from_millis(ms.into())),
        any::<Duration>(),
    ]
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), any::<u64>()]
}

fn ended() -> impl Strategy<Value = Finished> {
    let output = || {
        (count(), count()).prop_map(|(total, dropped)| Output {
            inline: vec![b'x'; (total % 100_000) as usize].into(),
            total,
            dropped,
        })
    };
    let exit = prop_oneof![any::<i32>().prop_map(Exit::Code), any::<i32>().prop_map(Exit::Signal)];
    let texts = || proptest::collection::vec(text(), 0..8);
    let usage = (time(), time(), count());
    let parts = (time(), usage, output(), output(), exit, texts(), texts(), any::<bool>());
    parts.prop_map(|(duration, usage, stdout, stderr, exit, notes, processes, timed_out)| {
        Finished {
            attempt: AttemptId(1),
            exit,
            timed_out,
            duration,
            leak: Some(Leak { processes, output_open: true }),
            out_of_memory: timed_out,
            usage: Usage { user: usage.0, system: usage.1, memory_bytes: usage.2 },
            stdout,
            stderr,
            notes,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_end_of_an_attempt_breaks_a_summary(
        ends in proptest::collection::vec((ended(), time()), 1..6),
        given in any::<u32>(),
    ) {
        let mut script = Script::new(SummarySettings::default(), &["a", "b"]);
        script.built();
        let tests: Vec<_> =
            (0..ends.len()).map(|n| script.plan("p", &format!("t{n}"), Some(10))).collect();
        script.planned();
        for ((said, started), test) in ends.into_iter().zip(tests) {
            let Report::Finished(it) = report(Report::Finished(said)) else { panic!("another") };
            prop_assert!(it.stdout.inline.len() <= INLINE_OUTPUT_BYTES_MAX);
            script.attempt(test, AttemptResult::Fail, 1, |ended| {
                ended.started = started.min(TIME_MAX);
                ended.duration = it.duration;
                ended.usage = it.usage;
                ended.stdout.total = it.stdout.total;
                ended.stderr.total = it.stderr.total;
            });
            script.verdict(test, crate::model::Verdict::Fail);
        }
        prop_assert!(slots(given) <= SLOTS_MAX);
        let summary = &script.summary;
        let (_, _, _) = (summary.bound(), summary.remaining(), summary.longest());
        let ending = Ending {
            exit_code: summary.exit_code(),
            elapsed: script.now,
            built_at: Some(script.now),
            failed_early: false,
        };
        prop_assert!(summary.ending(ending).testing <= TIME_MAX * 2);
    }
}

#[test]
fn no_text_of_a_worker_leaves_its_line() {
    proptest!(|(text in text())| stays_in_its_line(text));
}

/// Of everything that may be shown.
fn stays_in_its_line(text: String) {
    let said = Hello {
        name: text.clone(),
        target: text.clone(),
        software: text.clone(),
        libc: text.clone(),
        labels: [(text.clone(), text.clone())].into(),
        tools: vec![text.clone()],
        cpu_features: vec![text.clone()],
        private_network_lack: text.clone(),
        instance: text.clone(),
        refusal: Some(Refusal::new(RefusalKind::Closed, text.clone()).with_hint(text.clone())),
        slots: u32::MAX,
        ..Hello::default()
    };
    let lost = Report::Lost {
        attempt: AttemptId(1),
        reason: LossReason::HelperDied,
        detail: text.clone(),
    };
    let session = SessionStatus { client: text.clone(), run: text.clone(), ..Default::default() };
    let status = status(WorkerStatus {
        paused: text.clone(),
        sandbox_reason: text.clone(),
        sandbox_hint: Some(text.clone()),
        sessions: vec![session],
        ..WorkerStatus::default()
    });
    let ready = ready(SessionReady {
        slots: u32::MAX,
        sandbox_reason: text.clone(),
        sandbox_hint: Some(text.clone()),
        ..SessionReady::default()
    });
    let hello = hello(said);
    assert_eq!((hello.slots, ready.slots), (SLOTS_MAX, SLOTS_MAX));
    // As `{:?}` would hide what is in them, each by itself.
    let Report::Lost { detail, .. } = report(lost) else { panic!("another") };
    let refusal = hello.refusal.unwrap();
    let (key, value) = hello.labels.into_iter().next().unwrap();
    let SessionStatus { client, run, .. } = status.sessions[0].clone();
    for shown in [
        hello.name,
        hello.target,
        hello.software,
        hello.libc,
        key,
        value,
        detail,
        client,
        run,
        hello.tools[0].clone(),
        hello.cpu_features[0].clone(),
        hello.private_network_lack,
        hello.instance,
        refusal.message,
        refusal.hint.unwrap(),
        status.paused,
        status.sandbox_reason,
        status.sandbox_hint.unwrap(),
        ready.sandbox_reason,
        ready.sandbox_hint.unwrap(),
    ] {
        assert!(!shown.contains(shown::acts), "{shown:?}");
        assert!(shown.chars().count() <= SENTENCE_CHARS_MAX);
    }
}

#[test]
fn what_is_honest_stays_as_it_is() {
    let said = Hello {
        name: "größe 7".to_owned(),
        slots: 64,
        labels: [("gpu".to_owned(), "a100".to_owned())].into(),
        ..Hello::default()
    };
    assert_eq!(hello(said.clone()), said);
    let started = Report::Started { attempt: AttemptId(1), slot: SlotId(0) };
    assert_eq!(report(started.clone()), started);
    let slow = Report::Slow { attempt: AttemptId(1), elapsed: Duration::from_secs(60) };
    assert_eq!(report(slow.clone()), slow);
    let most = Report::Slow { attempt: AttemptId(1), elapsed: TIME_MAX };
    assert_eq!(report(Report::Slow { attempt: AttemptId(1), elapsed: Duration::MAX }), most);
}
