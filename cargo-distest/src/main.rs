//! `cargo distest`'s executable.
fn main() {}
