//! SQLite: timings, outcomes, runs.
