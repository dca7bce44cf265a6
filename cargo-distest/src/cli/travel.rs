//! Flags that say what travels.

use clap::Args;

use crate::settings::parse_pattern;

/// What comes back from workers.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Fleet options")]
pub struct TravelArgs {
    /// Bring files that match back when tests on a worker create or change them, beside those of
    /// the profile's `collect` (may be repeated)
    #[arg(long, value_name = "GLOB", value_parser = parse_pattern)]
    pub collect: Vec<String>,
}
