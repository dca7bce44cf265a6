//! Hands the target triple on, which only a build script is told.

fn main() {
    let target = std::env::var("TARGET").unwrap_or_else(|_| "unknown".to_owned());
    println!("cargo::rustc-env=DISTEST_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
}
