//! Flags that say what travels.

use clap::Args;
use distest_worker::protocol::Forward;

use crate::settings::parse_pattern;

/// What is forwarded to workers and comes back from them.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Fleet options")]
pub struct TravelArgs {
    /// Let tests find a service of this machine where it is here: a port of loopback or a Unix
    /// socket, beside those of the profile's `forward` (may be repeated). Each test then has a
    /// network of its own
    #[arg(long, value_name = "PORT|SOCKET", value_parser = parse_forward)]
    pub forward: Vec<Forward>,
    /// Bring files that match back when tests on a worker create or change them, beside those of
    /// the profile's `collect` (may be repeated)
    #[arg(long, value_name = "GLOB", value_parser = parse_pattern)]
    pub collect: Vec<String>,
}

fn parse_forward(text: &str) -> Result<Forward, String> {
    text.parse()
}
