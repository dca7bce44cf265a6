//! The worker of `cargo distest`: takes in test binaries, runs their test cases, streams results back.
//!
//! One session per connection. [`protocol`] is what both ends say; this crate knows nothing of the
//! client (`cargo-distest`), which depends on it for the protocol and for its embedded worker.

pub mod accept;
pub mod cli;
pub mod compat;
pub mod copying;
pub mod digest;
pub mod evict;
pub mod executor;
pub mod globs;
pub mod hello;
pub mod identity;
pub mod invitation;
pub mod lexical;
pub mod link;
pub mod log;
#[cfg(feature = "mdns")]
pub mod mdns;
mod memory;
pub mod message;
pub mod metrics;
pub mod output;
pub mod packed;
pub mod pipes;
pub mod polite;
pub mod probe;
pub mod proof;
pub mod protocol;
pub mod registry;
pub mod repeats;
pub mod sandbox;
pub mod serve;
pub mod server;
pub mod session;
pub mod share;
pub mod shown;
pub mod store;
pub mod tls;
pub mod tools;
pub mod upgrade;
pub mod zygote;
