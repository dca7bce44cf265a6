//! A whole run in simulated time, from one seed: the shipped scheduler, worker sessions and
//! messages, through the real codec. Only clock, link and what processes do are made up.
//!
//! [`world`] keeps time and connections, [`client`] and [`host`] are the drivers of both ends,
//! [`faults`] breaks things, [`places`] are shared with another client, and [`judge`] knows what really happened: it is the sole judge of
//! verdicts, and of who was alive beside whom. After every step it checks that
//! - queued + leased + done = known, no test has two verdicts, each verdict is the outcome of an
//!   attempt that really ran to its end, tries are told with numbers without gaps, and none after the verdict;
//! - no test is alive twice, unless it is hedged and may be, no more of a group than it may, nothing beside an exclusive test or a
//!   suspect on its worker, under any partition;
//! - nothing outlives its worker's loss, no innocent test is to blame for one, and none counts as lost that waited behind
//!   others there;
//! - the run ends in bounded simulated time, and nothing runs when it has ended.
//!
//! `cargo test -p cargo-distest --lib sim` runs some hundred seeds, with `DISTEST_SIM_SEEDS=100000`
//! as many as that. A seed that breaks an invariant says how to replay it.

mod client;
mod faults;
mod host;
mod judge;
mod places;
mod random;
mod scenario;
#[cfg(test)]
mod tests;
mod world;

use std::collections::BTreeMap;

use crate::scheduler::Mutation;
use world::World;

/// How often each fault met each state of its victim.
type Coverage = BTreeMap<(faults::Fault, host::Doing), u64>;

/// What a seed came to.
#[derive(Debug, Default)]
struct Outcome {
    coverage: Coverage,
    verdicts: BTreeMap<&'static str, u64>,
    steps: u64,
    /// Overdue attempts that were started once more.
    hedges: u64,
    /// Batches that workers ended because another client waited.
    made_room: u64,
    /// Workers that were killed by what they had not said to have started.
    unsaid: u64,
}

/// Runs a seed to its end.
///
/// # Errors
/// Says which invariant was broken, and when.
fn run(seed: u64, mutation: Option<Mutation>, trace: bool) -> Result<Outcome, String> {
    let mut world = World::new(seed, mutation, trace);
    world.run()?;
    Ok(world.outcome())
}
