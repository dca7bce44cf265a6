//! `cargo distest`: builds a workspace's test binaries, runs their test cases on workers, merges results.
//!
//! [`model`] and [`event`] are the words; the stages follow the order in which data flows.

pub(crate) mod baked;
pub mod batch;
pub mod cli;
pub mod clues;
pub mod collect;
pub mod compile;
pub mod constraint;
pub mod cost;
pub mod dispatch;
pub mod doctest;
pub mod event;
pub mod failure;
pub mod filter;
pub mod fleet;
pub mod forecast;
pub mod history;
pub mod inventory;
pub mod key;
pub mod model;
pub mod pace;
pub mod parcel;
pub mod parse;
pub mod plan;
pub mod report;
pub mod results;
pub mod run;
pub mod runner;
pub mod scheduler;
pub mod settings;
pub mod shard;
pub mod ship;
#[cfg(test)]
mod sim;
pub mod stamp;
pub mod suits;
pub mod testenv;
pub mod travel;
pub mod tree;
pub mod ui;
pub mod wary;
pub mod workers;
