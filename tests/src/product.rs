//! The executables under test, built once by the cargo that runs the tests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The executables under test.
#[derive(Debug)]
pub struct Product {
    /// `cargo-distest`.
    pub client: PathBuf,
    /// `distest-worker`.
    pub worker: PathBuf,
    /// Cargo's target directory of this repository.
    pub target_dir: PathBuf,
}

/// The product, in this harness's own profile. Built on first use: listing tests needs none.
pub fn product() -> &'static Product {
    static PRODUCT: OnceLock<Product> = OnceLock::new();
    PRODUCT.get_or_init(build)
}

/// The root of this repository.
pub fn repository() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    // Another package's, if it is another package's tests that run this as a program.
    let package = if package.join("src/product.rs").exists() {
        package
    } else {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
    };
    package.parent().expect("the package lies in the repository").to_owned()
}

/// The cargo that this was started by, else the one in `PATH`.
pub fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn build() -> Product {
    let mut command = Command::new(cargo());
    command
        .args(["build", "--workspace", "--bins", "--message-format", "json-render-diagnostics"])
        .current_dir(repository())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    for (name, _) in env::vars_os() {
        // What cargo set for this test is no business of the build.
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    let output = command.output().expect("cargo can be started");
    assert!(
        output.status.success(),
        "the product could not be built:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let executable = |name| find_executable(&output.stdout, name);
    let client = executable("cargo-distest");
    let target_dir = client.ancestors().nth(2).expect("it lies in target/PROFILE").to_owned();
    Product { worker: executable("distest-worker"), client, target_dir }
}

fn find_executable(messages: &[u8], name: &str) -> PathBuf {
    let lines = messages.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let found = messages
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(|path| Path::new(path).to_owned()));
    found.unwrap_or_else(|| panic!("cargo built no executable called {name}"))
}
