//! Targets for cargo-fuzz. What they are: `targets.rs`.

mod targets;

/// Runs a target on one input.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = targets::TARGETS.iter().find(|(it, _)| *it == name).expect("it is a target");
    target(data);
}
