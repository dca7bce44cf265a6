//! The harness of the end-to-end tests: the product as its users see it, from outside.
//!
//! Nothing here knows the product's code. [`product`] builds the executables, [`client`] and
//! [`worker`] run them, [`transcript`] and [`junit`] read what they say, [`fixture`] knows what they
//! should have said. Everything that is started carries the [`scratch`] folder's mark and is ended
//! when its owner is dropped, also by a panic. Failures of the harness itself are panics that say
//! what was attempted: a test that can't be carried out has not passed.

pub mod client;
pub mod crates;
pub mod fixture;
pub mod hermetic;
pub mod impostor;
pub mod junit;
pub mod link;
pub mod measure;
pub mod postgres;
pub mod process;
pub mod product;
pub mod proxy;
pub mod random;
pub mod referee;
pub mod scratch;
pub mod sshd;
pub mod transcript;
pub mod trap;
pub mod worker;

use std::time::Duration;

/// Within this long whatever a test waits for must have happened; only a hang takes longer.
pub const DEADLINE: Duration = Duration::from_secs(240);
