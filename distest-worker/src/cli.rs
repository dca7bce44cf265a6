//! The worker's command line: clap's structs, and nothing else.
