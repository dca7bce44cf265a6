//! The workspaces that are built.

/// One of each kind of test binary; renamed library, dashes, build script, dynamic library.
pub(crate) const KINDS: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        r#"[workspace]
           members = ["main", "user", "pm", "dyl"]
           resolver = "2"
           [profile.dev]
           debug = 0"#,
    ),
    (
        "main/Cargo.toml",
        r#"[package]
           name = "main-pkg"
           version = "1.2.3-rc.1"
           edition = "2021"
           rust-version = "1.70"
           authors = ["A <a@example.org>", "B"]
           description = "What it is"
           homepage = "https://example.org/home"
           repository = "https://example.org/repository"
           license-file = "LICENCE"
           readme = "READ.md"
           [lib]
           name = "renamed"
           path = "src/other.rs"
           [[bin]]
           name = "never-built"
           path = "src/never.rs"
           required-features = ["never"]
           [features]
           never = []
           [[example]]
           name = "ex-test"
           test = true
           [[bench]]
           name = "be-test"
           test = true
           [[test]]
           name = "custom"
           harness = false"#,
    ),
    (
        "main/build.rs",
        r#"fn main() {
               let out = std::env::var("OUT_DIR").unwrap();
               std::fs::write(format!("{out}/libnative.so.1"), "").unwrap();
               println!("cargo:rustc-env=FROM_BUILD=a=b c");
               println!("cargo:rustc-link-search=native={out}");
               println!("cargo:rustc-link-search=/usr/lib");
           }"#,
    ),
    ("main/LICENCE", ""),
    ("main/READ.md", ""),
    ("main/src/other.rs", "#[test] fn plain() {} #[test] #[ignore] fn left_out() {}"),
    ("main/src/main.rs", "fn main() {} #[test] fn plain() {}"),
    ("main/src/never.rs", "fn main() {}"),
    ("main/src/bin/second-bin.rs", "fn main() {} #[test] fn plain() {}"),
    ("main/tests/it.rs", "#[test] fn plain() {} #[test] fn grüße() {}"),
    (
        "main/tests/custom.rs",
        r#"fn main() {
               if !std::env::args().any(|arg| arg == "--ignored") {
                   println!("a name with spaces: test\n--dashes: test");
               }
           }"#,
    ),
    ("main/examples/ex-test.rs", "fn main() {} #[test] fn plain() {}"),
    ("main/examples/ex-plain.rs", "fn main() {}"),
    ("main/benches/be-test.rs", "#[test] fn plain() {}"),
    (
        "user/Cargo.toml",
        r#"[package]
           name = "user"
           version = "0.1.0"
           edition = "2021"
           [dependencies]
           pm = { path = "../pm" }
           main-pkg = { path = "../main" }"#,
    ),
    ("user/src/lib.rs", "#[test] fn plain() {}"),
    ("user/tests/it.rs", "#[test] fn plain() {}"),
    (
        "pm/Cargo.toml",
        r#"[package]
           name = "pm"
           version = "0.1.0"
           edition = "2021"
           [lib]
           proc-macro = true"#,
    ),
    ("pm/src/lib.rs", "#[test] fn plain() {}"),
    (
        "dyl/Cargo.toml",
        r#"[package]
           name = "dyl"
           version = "0.1.0"
           edition = "2021"
           [lib]
           crate-type = ["dylib"]"#,
    ),
    ("dyl/src/lib.rs", "pub fn there() {} #[test] fn plain() {}"),
    (
        "config/env/variables.toml",
        r#"[env]
           PLAIN = "plain"
           RELATIVE = { value = "below", relative = true }
           HOME = { value = "forced", force = true }
           PATH = "not taken: the client has one"
           CARGO_PKG_NAME = { value = "not taken: cargo has one", force = true }"#,
    ),
];

/// Package `twice` is built with a feature for a build script and without it for its own tests.
pub(crate) const TWICE: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        r#"[workspace]
           members = ["twice", "user"]
           resolver = "2"
           [profile.dev]
           debug = 0"#,
    ),
    (
        "twice/Cargo.toml",
        r#"[package]
           name = "twice"
           version = "0.1.0"
           edition = "2021"
           [features]
           x = []"#,
    ),
    (
        "twice/build.rs",
        r#"fn main() {
               println!("cargo:rustc-env=FEATURE={}", std::env::var("CARGO_FEATURE_X").is_ok());
           }"#,
    ),
    ("twice/src/lib.rs", "#[test] fn plain() {}"),
    ("twice/tests/asks.rs", r#"#[test] fn plain() { assert_eq!(env!("FEATURE"), "false"); }"#),
    ("twice/tests/asks_not.rs", "#[test] fn plain() {}"),
    (
        "user/Cargo.toml",
        r#"[package]
           name = "user"
           version = "0.1.0"
           edition = "2021"
           [build-dependencies]
           twice = { path = "../twice", features = ["x"] }"#,
    ),
    ("user/build.rs", "fn main() {}"),
    ("user/src/lib.rs", "#[test] fn plain() {}"),
];

/// Package `slow` is built when the file `received` is there, and not before. Its build script also
/// ends when the workspace is gone: it may outlive cargo.
pub(crate) const SLOW: &[(&str, &str)] = &[
    ("Cargo.toml", "workspace = { members = ['quick', 'slow'], resolver = '2' }"),
    ("quick/Cargo.toml", "package = { name = 'quick', version = '0.1.0', edition = '2021' }"),
    ("quick/src/lib.rs", ""),
    ("slow/Cargo.toml", "package = { name = 'slow', version = '0.1.0', edition = '2021' }"),
    ("slow/src/lib.rs", ""),
    (
        "slow/build.rs",
        r#"fn main() {
               for _ in 0..6000 {
                   let there = |path| std::path::Path::new(path).exists();
                   if there("../received") || !there("build.rs") { return }
                   std::thread::sleep(std::time::Duration::from_millis(10));
               }
               panic!("nobody received the other binary");
           }"#,
    ),
];

/// A test that is linked with a dynamic library of another package.
pub(crate) const LINKED: &[(&str, &str)] = &[
    ("Cargo.toml", "workspace = { members = ['user', 'dyl'], resolver = '2' }"),
    (
        "dyl/Cargo.toml",
        "package = { name = 'dyl', version = '0.1.0', edition = '2021' }
         lib = { crate-type = ['dylib'] }",
    ),
    ("dyl/src/lib.rs", "pub fn there() {}"),
    (
        "user/Cargo.toml",
        "package = { name = 'user', version = '0.1.0', edition = '2021' }
         dependencies = { dyl = { path = '../dyl' } }",
    ),
    ("user/tests/it.rs", "#[test] fn plain() { dyl::there() }"),
];
