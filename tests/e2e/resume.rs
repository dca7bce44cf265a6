//! Connections that break in the middle of a run, and what of it anybody notices.

use std::fs;
use std::path::Path;

use distest_tests::DEADLINE;
use distest_tests::client::Client;
use distest_tests::proxy::Proxy;
use distest_tests::referee::{Referee, Sighting};
use distest_tests::scratch::{Scratch, what_stays};
use distest_tests::transcript::{Attempt, AttemptResult, Line, Transcript};
use distest_tests::worker::Worker;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::case;
use crate::travel::package;

pub(crate) fn cases() -> Vec<Trial> {
    vec![
        case("resume::connections_are_reset_again_and_again", reset_again_and_again),
        case("resume::output_arrives_once_over_broken_connections", output),
        case("resume::a_connection_is_forgotten_on_the_way", forgotten),
        case("resume::a_break_beyond_the_fence_loses_the_worker", |scratch| {
            // Nobody answers there any more.
            beyond_the_fence(scratch, |proxy, _| drop(proxy.take()));
        }),
        case("resume::a_worker_that_stands_still_runs_nothing_beyond_the_fence", |scratch| {
            // Its helpers, and what they run, go on.
            beyond_the_fence(scratch, |_, worker| worker.process.signal(Signal::SIGSTOP));
        }),
    ]
}

/// How often a test may be kept from its processor.
const TRIES: u32 = 3;
const HELD: u32 = 3;
const WRITERS: u32 = 12;
const FILE_BYTES: usize = 600_000;
const ASSET_BYTES: usize = 6_000_000;

/// A function for this side, and its text for tests that need the same on theirs.
macro_rules! on_both_sides {
    (const $text:ident; $function:item) => {
        const $text: &str = stringify!($function);
        $function
    };
}

on_both_sides! {
    const NOISE;

    /// Bytes that can't be made smaller, the same wherever they are made.
    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }
}

fn proxied(scratch: &Scratch, folder: &Path, proxy: &Proxy) -> Client {
    Client::call(scratch, folder, &["run", "--offline", "--isolation", "process"])
        .args(["--local-slots", "0", "--wait-workers", "1"])
        .worker(&proxy.address)
}

/// Each passed at its first attempt, and none was begun twice, whatever the client says.
fn nothing_lost(transcript: &Transcript, seen: &[Sighting], tests: u32) {
    assert_eq!(transcript.summary.passed, tests, "{:?}", transcript.verdicts);
    let firsts = transcript.attempts.iter().filter(|it| it.attempt == 1);
    assert_eq!((firsts.count(), transcript.attempts.len()), (tests as usize, tests as usize));
    begun_once(seen);
}

fn begun_once(seen: &[Sighting]) {
    let mut names: Vec<_> = seen.iter().map(|it| &it.test.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), seen.len(), "each once: {seen:#?}");
}

/// While files go to the worker, while tests run there, and while what they wrote comes back.
fn reset_again_and_again(scratch: &Scratch) {
    let referee = Referee::new().together("held", usize::MAX);
    let writers: String = (0..WRITERS)
        .map(|number| {
            let name = format!("writes_{number}");
            format!(
                "#[test]\nfn {name}() {{ attend({name:?}); \
                 std::fs::write(\"{name}.out\", noise({number}, {FILE_BYTES})).unwrap(); }}\n"
            )
        })
        .collect();
    let asset = format!(
        "#[test]\nfn sees_all() {{ attend(\"sees_all\"); \
         assert!(std::fs::read(\"asset\").unwrap() == noise(99, {ASSET_BYTES})); }}\n"
    );
    let tests = referee.tests("held", HELD);
    let folder = package(scratch, &[&referee.prelude(), NOISE, &tests, &writers, &asset].concat());
    fs::write(folder.join("asset"), noise(99, ASSET_BYTES)).unwrap();
    let worker = Worker::start(scratch, "w1", 4);
    let proxy = Proxy::reset_every(worker.socket(), 700_000);
    let run = proxied(scratch, &folder, &proxy).json().args(["--collect", "*.out"]).start();
    for number in 0..HELD {
        referee.wait_for(|it| it.test.name == format!("held_{number}"));
    }
    let shipping = proxy.connections();
    assert!(shipping > 5, "the asset went over {shipping} connections");
    // Nothing passes but signs of life.
    for _ in 0..3 {
        let before = proxy.connections();
        proxy.reset();
        proxy.wait_for_connections(before + 1);
    }
    referee.let_go("held");
    let transcript = run.finish().transcript(0);
    nothing_lost(&transcript, &referee.seen(), HELD + WRITERS + 1);
    for number in 0..WRITERS {
        let written = fs::read(folder.join(format!("writes_{number}.out"))).unwrap();
        assert!(written == noise(number.into(), FILE_BYTES), "writes_{number}.out");
    }
    let log = worker.log();
    assert!(log.contains("resumed: its connection had broken"), "{log}");
}

fn output(scratch: &Scratch) {
    let lines = 60_000;
    let folder = package(
        scratch,
        &format!(
            "#[test]\nfn prints() {{ for i in 0..{lines} {{ println!(\"line {{i}}\"); }} }}\n"
        ),
    );
    let worker = Worker::start(scratch, "w2", 1);
    let proxy = Proxy::reset_every(worker.socket(), 100_000);
    let run = proxied(scratch, &folder, &proxy).args(["--no-capture", "-v"]);
    let finished = run.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let all = format!("{}{}", finished.stdout, finished.stderr);
    assert!(all.contains("w2 is connected again after"), "{}", finished.stderr);
    let told: Vec<_> = all.lines().filter(|line| line.starts_with("line ")).collect();
    let expected: Vec<_> = (0..lines).map(|i| format!("line {i}")).collect();
    assert!(told == expected, "{} lines, not {lines} in order", told.len());
    assert!(proxy.connections() > 5, "{} connections", proxy.connections());
}

/// Neither end is told: the client doubts what is silent, and looks for another way.
///
/// It has until the fence. Where others keep this machine from it for so long the worker is lost, as it
/// is to be, and that says nothing of resuming.
fn forgotten(scratch: &Scratch) {
    let resumed = (0..TRIES).any(|_| forgotten_once(scratch));
    assert!(resumed, "the worker was lost {TRIES} times");
}

/// Answers whether the worker was kept.
fn forgotten_once(scratch: &Scratch) -> bool {
    const LOST: &str = "worker w1 was lost";
    let referee = Referee::new().together("held", usize::MAX);
    let folder = package(scratch, &(referee.prelude() + &referee.tests("held", 2)));
    let worker = Worker::start(scratch, "w1", 2);
    let proxy = Proxy::to(worker.socket());
    let run = proxied(scratch, &folder, &proxy).args(["-v"]).start();
    for number in 0..2 {
        referee.wait_for(|it| it.test.name == format!("held_{number}"));
    }
    for times in 1..=2 {
        proxy.forget();
        // Not before the session goes on there: for a handshake in vain and another connection there
        // is no time.
        let silent = what_stays(DEADLINE, || {
            let told = run.stderr();
            let goes_on = told.matches("w1 is connected again after").count() >= times;
            if goes_on || told.contains(LOST) { vec![] } else { vec![told] }
        });
        assert!(silent.is_empty(), "neither resumed nor lost: {silent:?}");
    }
    referee.let_go("held");
    let finished = run.finish();
    finished.complains(0, &["2 tests run: 2 passed"]);
    let is_kept = !finished.stderr.contains(LOST);
    if is_kept {
        begun_once(&referee.seen());
    }
    is_kept
}

/// A worker is lost with a test under way, which begins elsewhere when it has ended there.
fn beyond_the_fence(scratch: &Scratch, lose: impl FnOnce(&mut Option<Proxy>, &Worker)) {
    let referee = Referee::new().together("held", usize::MAX);
    let folder = package(scratch, &(referee.prelude() + &referee.tests("held", 1)));
    let workers = Worker::fleet(scratch, 2, 2);
    let mut proxies: Vec<_> =
        workers.iter().map(|worker| Some(Proxy::to(worker.socket()))).collect();
    let mut client = Client::call(scratch, &folder, &["run", "--offline"]).json().args([
        "--isolation",
        "process",
        "--local-slots",
        "0",
        "--wait-workers",
        "2",
    ]);
    for proxy in proxies.iter().flatten() {
        client = client.worker(&proxy.address);
    }
    let mut run = client.start();
    let victim = referee.wait_for(|_| true).test.worker;
    let index = workers.iter().position(|worker| worker.name == victim).unwrap();
    lose(&mut proxies[index], &workers[index]);
    run.until(|line| {
        let Line::Test(Attempt { worker, result, .. }) = line else { return false };
        *worker == victim && *result == AttemptResult::Lost
    });
    let again = referee.wait_for(|it| it.test.worker != victim);
    assert_eq!(again.beside, [], "it ran twice at once");
    referee.let_go("held");
    let transcript = run.finish().transcript(0);
    assert_eq!(transcript.summary.passed, 1, "{:?}", transcript.verdicts);
}
