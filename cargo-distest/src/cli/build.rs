//! Flags that are cargo's own.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// What cargo builds, and how. Handed on untouched.
#[derive(Clone, Debug, Default, Args)]
pub struct BuildArgs {
    /// Packages to test
    #[arg(short, long, value_name = "SPEC", help_heading = "Package selection")]
    pub package: Vec<String>,
    /// Test all packages in the workspace
    #[arg(long, visible_alias = "all", help_heading = "Package selection")]
    pub workspace: bool,
    /// Leave packages out
    #[arg(long, value_name = "SPEC", help_heading = "Package selection")]
    pub exclude: Vec<String>,

    /// Test only this package's library unit tests
    #[arg(long, help_heading = "Target selection")]
    pub lib: bool,
    /// Test only the specified binary
    #[arg(long, value_name = "NAME", help_heading = "Target selection")]
    pub bin: Vec<String>,
    /// Test all binaries
    #[arg(long, help_heading = "Target selection")]
    pub bins: bool,
    /// Test only the specified example
    #[arg(long, value_name = "NAME", help_heading = "Target selection")]
    pub example: Vec<String>,
    /// Test all examples
    #[arg(long, help_heading = "Target selection")]
    pub examples: bool,
    /// Test only the specified test target
    #[arg(long, value_name = "NAME", help_heading = "Target selection")]
    pub test: Vec<String>,
    /// Test all targets that have `test = true` set
    #[arg(long, help_heading = "Target selection")]
    pub tests: bool,
    /// Test only the specified bench target
    #[arg(long, value_name = "NAME", help_heading = "Target selection")]
    pub bench: Vec<String>,
    /// Test all bench targets
    #[arg(long, help_heading = "Target selection")]
    pub benches: bool,
    /// Test all targets
    #[arg(long, help_heading = "Target selection")]
    pub all_targets: bool,
    /// Test only this library's documentation
    ///
    /// Without a flag that selects targets, doctests run after all other tests, unless a
    /// configuration of cargo-nextest is in force.
    #[arg(
        long,
        conflicts_with_all = [
            "lib", "bin", "bins", "example", "examples", "test", "tests", "bench", "benches",
            "all_targets",
        ],
        help_heading = "Target selection"
    )]
    pub doc: bool,

    /// Features to activate, separated by spaces or commas
    #[arg(short = 'F', long, value_name = "FEATURES", help_heading = "Feature selection")]
    pub features: Vec<String>,
    /// Activate all available features
    #[arg(long, help_heading = "Feature selection")]
    pub all_features: bool,
    /// Do not activate the `default` feature
    #[arg(long, help_heading = "Feature selection")]
    pub no_default_features: bool,

    /// Number of build jobs
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Compilation options"
    )]
    pub build_jobs: Option<String>,
    /// Build with optimizations: the `release` profile
    #[arg(short, long, conflicts_with = "cargo_profile", help_heading = "Compilation options")]
    pub release: bool,
    /// Build with this profile of cargo's
    #[arg(long, value_name = "NAME", help_heading = "Compilation options")]
    pub cargo_profile: Option<String>,
    /// Build for this target triple (may be repeated)
    #[arg(long, value_name = "TRIPLE", help_heading = "Compilation options")]
    pub target: Vec<String>,
    /// Folder for all that is built
    #[arg(long, value_name = "DIR", help_heading = "Compilation options")]
    pub target_dir: Option<PathBuf>,
    /// Let cargo report how long its work took
    #[arg(
        long,
        value_name = "FORMATS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        help_heading = "Compilation options"
    )]
    pub timings: Option<String>,

    /// Path to Cargo.toml
    #[arg(long, value_name = "PATH", help_heading = "Manifest options")]
    pub manifest_path: Option<PathBuf>,
    /// Require that Cargo.lock is up to date
    #[arg(long, help_heading = "Manifest options")]
    pub locked: bool,
    /// Run without accessing the network
    #[arg(long, help_heading = "Manifest options")]
    pub offline: bool,
    /// Require that Cargo.lock and cache are up to date
    #[arg(long, help_heading = "Manifest options")]
    pub frozen: bool,

    /// Use cargo's verbose output (twice for very verbose), and show what each worker's start took,
    /// step by step, until its first result
    #[arg(
        short = 'v',
        long,
        alias = "verbose",
        action = ArgAction::Count,
        help_heading = "Other cargo options"
    )]
    pub cargo_verbose: u8,
    /// Do not print cargo's log messages
    #[arg(
        short = 'q',
        long,
        alias = "quiet",
        action = ArgAction::Count,
        conflicts_with = "cargo_verbose",
        help_heading = "Other cargo options"
    )]
    pub cargo_quiet: u8,
    /// Ignore `rust-version` of packages
    #[arg(long, help_heading = "Other cargo options")]
    pub ignore_rust_version: bool,
    /// Let cargo report what will not compile in future
    #[arg(long, help_heading = "Other cargo options")]
    pub future_incompat_report: bool,
    /// Override a configuration value of cargo's
    #[arg(long, value_name = "KEY=VALUE|PATH", help_heading = "Other cargo options")]
    pub config: Vec<String>,
    /// Unstable flags of cargo's (nightly only)
    #[arg(short = 'Z', value_name = "FLAG", help_heading = "Other cargo options")]
    pub unstable: Vec<String>,
}
