//! `cargo distest runner EXE ARGS…`: a cargo target runner. One executable runs on the fleet as if
//! it ran here.
//!
//! Two processes share the work. The [`shim`] is what cargo starts: small, synchronous, it stands
//! for the executable: its standard streams, its signals, its end. A short-lived local [`agent`],
//! started on demand, keeps the workers' connections, so that a call costs milliseconds. They speak
//! [`wire`] over a Unix socket that only this user can reach. Within an agent, [`site`] knows a
//! workspace and its files, [`pool`] the workers that serve it, [`pack`] what an executable needs
//! beside itself, and [`call`] carries one call from its request to its end.
//!
//! `cargo distest run` serves the same socket for doctests ([`Server`]): rustdoc calls the shim
//! for each, and the run's own workers run it.

pub mod agent;
mod call;
mod connect;
mod environment;
mod folder;
mod pack;
mod pool;
pub mod server;
pub mod shim;
mod site;
pub mod wire;

pub use server::Server;
pub use site::Surroundings;

/// Where a shim finds whoever serves it, if it shall not look for an agent.
pub const SOCKET_VARIABLE: &str = "DISTEST_RUNNER_SOCKET";
/// Seconds without a call after which an agent ends.
pub const IDLE_VARIABLE: &str = "DISTEST_RUNNER_IDLE";
/// The argument that makes `cargo distest runner` an agent, followed by its socket's path.
pub const AGENT_WORD: &str = "--agent";
