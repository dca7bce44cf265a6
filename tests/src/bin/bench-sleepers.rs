//! How near a run comes to its bound: `cargo run --release -p distest-tests --bin bench-sleepers -- [WORKERS] [ROUNDS]`
//!
//! On the fixture `sleepers` (1,000 tests of 0.5 to 1.5 s, no processor time), WORKERS worker
//! processes of one slot each on this machine. A round is: a run without history, the same run with
//! it, and two runs in which each worker has a static share (`hash:K/N`, `slice:K/N`), as machines
//! have that can't talk to each other. The bound is what the tests sleep, divided by slots. Building and shipping are done before.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::collections::BTreeMap;
use std::env;

use distest_tests::client::{Client, Finished};
use distest_tests::fixture::Fixture;
use distest_tests::measure::median;
use distest_tests::scratch::Scratch;
use distest_tests::transcript::Line;
use distest_tests::worker::Worker;

const WORKERS: u32 = 25;
const ROUNDS: usize = 3;

/// Seconds: all but building, connecting and laying files out included; and the bound.
struct Run {
    took: f64,
    bound: f64,
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |place: usize| args.get(place).and_then(|text| text.parse().ok());
    let (workers, rounds) =
        (number(0).unwrap_or(WORKERS), number(1).map_or(ROUNDS, |n| n as usize));
    let fixture = Fixture::named("sleepers");
    let scratch = Scratch::new();
    let fleet = Worker::fleet(&scratch, workers, 1);
    // Built, shipped, laid out.
    run(client(&scratch, &fixture, &fleet).args(["--no-history", "sleeps_0000"]).finish(), workers);
    let mut ratios: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        let history = scratch.join(format!("history-{round}")).display().to_string();
        for name in ["1 without history", "2 with history"] {
            let client = client(&scratch, &fixture, &fleet).args(["--history", &history]);
            let Run { took, bound } = run(client.finish(), workers);
            println!("round {round}: {:<16} {took:6.2} s, bound {bound:6.2} s", &name[2..]);
            ratios.entry(name).or_default().push(took / bound);
        }
        let bound = ideal(workers);
        for (name, by) in [("3 static hash", "hash"), ("4 static slice", "slice")] {
            let longest = partitioned(&fixture, workers, by);
            println!("round {round}: {:<16} {longest:6.2} s, bound {bound:6.2} s", &name[2..]);
            ratios.entry(name).or_default().push(longest / bound);
        }
    }
    println!("\n1,000 tests on {workers} workers of one slot; medians of {rounds} rounds");
    for (name, ratios) in ratios {
        println!("{:<16} {:5.3} × the bound", &name[2..], median(ratios.into_iter()));
    }
}

fn client(scratch: &Scratch, fixture: &Fixture, fleet: &[Worker]) -> Client {
    Client::run(scratch, fixture).only_on(fleet).args(["--isolation", "process"])
}

fn run(finished: Finished, workers: u32) -> Run {
    finished.transcript(0);
    let summary = finished.lines.iter().find_map(|line| match line {
        Line::Summary(summary) => Some(summary),
        _ => None,
    });
    let summary = summary.expect("a run ends with its summary");
    let took = summary.elapsed_s - summary.build_s;
    Run { took, bound: ideal(workers) }
}

/// What the tests sleep, by number.
fn sleeps() -> Vec<f64> {
    let mut state: u64 = 2_026;
    let next = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (500 + (z ^ (z >> 31)) % 1_001) as f64 / 1000.0
    };
    (0..1_000).map(next).collect()
}

fn ideal(workers: u32) -> f64 {
    sleeps().iter().sum::<f64>() / f64::from(workers)
}

/// The largest share, as `list --partition` deals them: what the slowest machine would sleep.
fn partitioned(fixture: &Fixture, workers: u32, by: &str) -> f64 {
    let (sleeps, scratch) = (sleeps(), Scratch::new());
    let share = |number: u32| {
        let partition = format!("{by}:{number}/{workers}");
        let list = ["list", "--message-format", "oneline", "--partition", &partition];
        let listed = Client::call(&scratch, &fixture.root, &list)
            .env("CARGO_TARGET_DIR", &fixture.target_dir)
            .finish();
        let names = listed.stdout.lines().filter_map(|line| line.rsplit_once("sleeps_"));
        let numbers = names.filter_map(|(_, number)| number.trim().parse::<usize>().ok());
        numbers.map(|number| sleeps[number]).sum::<f64>()
    };
    (1..=workers).map(share).fold(0.0, f64::max)
}
