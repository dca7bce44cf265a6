//! The worker's executable.
fn main() {}
