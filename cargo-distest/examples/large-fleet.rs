//! The scheduler on a fleet that nobody has at hand: `cargo run --release -p cargo-distest --example large-fleet`
//!
//! Simulated time: 1,000 workers of 8 slots, 100,000 tests (log-normal), speeds within 4 ×, round
//! trips of 20 ms, 2 % of the workers die at some time. Prints the makespan against the bound (all
//! work by all speed, or the longest test on the fastest worker), the processor time of the
//! scheduler per test, and the memory of the whole.
#![expect(clippy::print_stdout, reason = "a command that measures")]

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use cargo_distest::forecast::{Machine, Question, play};
use cargo_distest::model::TestIndex;
use cargo_distest::plan::{Rank, Urgency};
use cargo_distest::scheduler::{Rules, Task};
use distest_worker::protocol::BinaryKey;

const WORKERS: usize = 1_000;
const SLOTS: u32 = 8;
const TESTS: u32 = 100_000;
/// Median of a test, and the deviation of its logarithm.
const MEDIAN_S: f64 = 20.0;
const SIGMA: f64 = 0.6;

struct Random(u64);

impl Random {
    /// From 0 to 1. SplitMix64.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller, 1958.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.unit().max(1e-12), self.unit());
        (-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()
    }
}

fn main() {
    for speed_known in [true, false] {
        let mut random = Random(4);
        let tests: Vec<_> = (0..TESTS)
            .map(|index| {
                let takes = Duration::from_secs_f64(MEDIAN_S * (SIGMA * random.normal()).exp());
                let rank = Rank { urgency: Urgency::Known, expected: Reverse(takes) };
                let binary = BinaryKey(index % 20);
                (Task { test: TestIndex(index), binary, rank, needs: None }, takes)
            })
            .collect();
        let speeds: Vec<_> = (0..WORKERS).map(|_| 0.5 * 4f64.powf(random.unit())).collect();
        let power: f64 = speeds.iter().map(|speed| speed * f64::from(SLOTS)).sum();
        let work: f64 = tests.iter().map(|(_, takes)| takes.as_secs_f64()).sum();
        let longest = tests.iter().map(|(_, takes)| takes.as_secs_f64()).fold(0.0, f64::max);
        let fastest = speeds.iter().copied().fold(0.0, f64::max);
        let bound = (work / power).max(longest / fastest);
        let machines = speeds.into_iter().map(|speed| Machine {
            slots: SLOTS,
            speed,
            speed_known,
            round_trip: Duration::from_millis(20),
            prepare: Duration::ZERO,
            rate: None,
            dies_at: (random.unit() < 0.02).then(|| Duration::from_secs_f64(random.unit() * bound)),
        });
        let rules = Rules::default();
        let question = Question {
            rules,
            groups: Vec::new(),
            batches: Vec::new(),
            acquainted: Vec::new(),
            tests,
            machines: machines.collect(),
            overhead: Duration::ZERO,
            sizes: std::collections::BTreeMap::new(),
        };
        let (mut spent, mut steps) = (Duration::ZERO, 0u64);
        let forecast = play(&question, |scheduler, input, effects| {
            let began = Instant::now();
            scheduler.step(input, effects);
            spent += began.elapsed();
            steps += 1;
        });
        let makespan = forecast.makespan.as_secs_f64();
        let known = if speed_known { "known from earlier runs" } else { "learnt on the way" };
        println!("{WORKERS} workers × {SLOTS} slots, {TESTS} tests, speeds {known}");
        println!("  makespan {makespan:.1} s, bound {bound:.1} s: {:.3} ×", makespan / bound);
        println!(
            "  scheduler {:.2} µs per test, {steps} steps",
            spent.as_secs_f64() * 1e6 / f64::from(TESTS)
        );
        println!("  complete: {}, {} attempts ended", forecast.complete, forecast.attempts);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    println!("peak memory of this process: {}", peak.trim_start_matches("VmHWM:").trim());
}
