//! Parses what test binaries print. Pure.
