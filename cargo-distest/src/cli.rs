//! clap's structs, and nothing else.
