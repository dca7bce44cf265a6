//! The workspace files that travel.
