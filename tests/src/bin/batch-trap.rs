//! Tries many compositions of batches: `cargo run -p distest-tests --bin batch-trap -- [SEEDS] [FIRST]`
//!
//! On the fixture `batch-trap`, whose tests do to their process what only a process of one's own
//! survives. For each seed all of them may share processes, dealt by that seed, and each verdict is
//! compared with what the fixture's model says of a process of its own. A seed that breaks it ends
//! the command, which names it.
#![expect(clippy::print_stdout, reason = "a command that prints its findings")]

use std::env;

use distest_tests::scratch::Scratch;
use distest_tests::trap::Trap;

const SEEDS: u64 = 200;

fn main() {
    let mut numbers = env::args().skip(1).map(|text| text.parse().ok());
    let (seeds, first) =
        (numbers.next().flatten().unwrap_or(SEEDS), numbers.next().flatten().unwrap_or(0));
    let scratch = Scratch::new();
    let trap = Trap::set(&scratch);
    let (mut batched, mut again, mut hidden) = (0, 0, 0);
    for seed in first..first + seeds {
        println!("seed {seed}: to replay, cargo run -p distest-tests --bin batch-trap -- 1 {seed}");
        let sprung = trap.spring(&scratch, seed);
        batched += sprung.transcript.summary.batched;
        again += sprung.transcript.summary.rerun_alone;
        hidden += u32::from(sprung.company_hidden);
    }
    println!(
        "{seeds} seeds: {batched} tests ran in batches and {again} of them again alone; none \
         passed plainly that fails in its own process, but {hidden} times the one that passes \
         only in company"
    );
    let runs = trap.until_company_is_found(&scratch);
    println!("in good company its turn to run alone came in run {runs}, and it was found out");
}
