//! Small workspaces without dependencies, built by the real cargo: what is found, named, listed and
//! given to tests is compared with what `cargo test` and cargo-nextest make of the same workspace.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(clippy::print_stderr, reason = "a comparison that is skipped is named")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cargo_distest::compile;
use cargo_distest::failure::ExitCode;
use cargo_distest::inventory::{Inventory, LocalLister};
use cargo_distest::model::{BinaryKind, Harness, TestBinary};
use cargo_distest::settings::CompileSettings;
use tokio::sync::mpsc;

mod compare;
mod project;
mod workspaces;

use compare::{compare_environments, compare_lists, sorted_cases};
use project::Project;
use workspaces::{KINDS, LINKED, SLOW, TWICE};

#[tokio::test]
async fn every_kind_is_found_listed_and_given_what_cargo_gives() {
    let project = Project::new(KINDS);
    let config = project.root().join("config/env/variables.toml");
    let args = ["--workspace", "--config", config.to_str().unwrap()];
    let (workspace, binaries) = project.build(&args).await.unwrap();
    assert_eq!(workspace.root, project.root());
    assert_eq!(workspace.local_roots, [project.root()]);

    let found: Vec<_> = binaries.values().map(|b| (&*b.id.0, b.kind, b.harness)).collect();
    use {BinaryKind::*, Harness::*};
    assert_eq!(
        found,
        [
            ("dyl", Lib, Libtest),
            ("main-pkg", Lib, Libtest),
            ("main-pkg::bench/be-test", Bench, Libtest),
            ("main-pkg::bin/main-pkg", Bin, Libtest),
            ("main-pkg::bin/second-bin", Bin, Libtest),
            ("main-pkg::custom", Test, Custom),
            ("main-pkg::example/ex-test", Example, Libtest),
            ("main-pkg::it", Test, Libtest),
            ("pm", ProcMacro, Libtest),
            ("user", Lib, Libtest),
            ("user::it", Test, Libtest),
        ]
    );
    let it = &binaries["main-pkg::it"];
    assert_eq!(names(&it.companions), ["ex-plain", "main-pkg", "second-bin"]);
    assert_eq!(names(&it.companion_dirs), ["out"]);
    assert_eq!(names(&binaries["user::it"].companion_dirs), ["out"]);
    assert_eq!(names(&binaries["pm"].companions), ["libstd-*.so"]);
    assert_eq!(names(&binaries["main-pkg::bin/main-pkg"].writable_dirs), [""; 0]);
    assert!(it.writable_dirs[0].is_dir());

    compare_environments(&project, &args, &workspace, &binaries);
    compare_lists(&project, &args, &binaries).await;
}

#[tokio::test]
async fn of_two_runs_of_a_build_script_the_right_one_counts() {
    let project = Project::new(TWICE);
    // The second time nothing is built, and cargo reports in another order.
    for _ in 0..2 {
        let (workspace, binaries) = project.build(&["--workspace"]).await.unwrap();
        for id in ["twice", "twice::asks", "twice::asks_not"] {
            let feature = &binaries[id].env[OsStr::new("FEATURE")];
            assert_eq!(feature, "false", "{id}");
        }
        compare_environments(&project, &["--workspace"], &workspace, &binaries);
    }
}

#[tokio::test]
async fn triple_and_build_folder_move_things_as_in_cargo() {
    let project = Project::new(KINDS);
    let build_dir = format!("build.build-dir={:?}", project.root().join("elsewhere"));
    let host = project.metadata(&[]).await.unwrap().host.to_string();
    let args = ["--config", &build_dir, "--target", &host, "-p", "main-pkg", "-p", "pm"];
    let (workspace, binaries) = project.build(&args).await.unwrap();
    assert_eq!(workspace.target_dir, project.root().join("target"));
    assert_eq!(workspace.build_dir, project.root().join("elsewhere"));
    assert!(binaries.values().all(|binary| *binary.triple.0 == *host));
    assert!(binaries["pm"].for_host && !binaries["main-pkg"].for_host);

    let it = &binaries["main-pkg::it"];
    let outputs = workspace.target_dir.join(&host).join("debug");
    let below = |folder: PathBuf| move |path: &PathBuf| path.starts_with(&folder);
    assert!(it.executable.starts_with(workspace.build_dir.join(&host).join("debug/deps")));
    assert!(it.companions.contains(&outputs.join("main-pkg")), "{:?}", it.companions);
    assert!(it.writable_dirs.iter().all(below(workspace.build_dir.join(&host))));
    assert!(it.companion_dirs.iter().all(below(workspace.build_dir.join(&host))));
    compare_environments(&project, &args, &workspace, &binaries);
}

#[tokio::test]
async fn libraries_that_are_loaded_at_run_time_come_along() {
    let project = Project::new(LINKED);
    let args = ["--config", "build.rustflags=['-Cprefer-dynamic']", "-p", "user"];
    let (workspace, binaries) = project.build(&args).await.unwrap();
    let it = &binaries["user::it"];
    assert_eq!(names(&it.companions), ["libdyl.so", "libstd-*.so"]);
    compare_environments(&project, &args, &workspace, &binaries);
    let inventory = Inventory::new(LocalLister::default(), 2, None, &[]);
    let listing = inventory.list(Arc::new(it.clone())).await.unwrap();
    assert_eq!(sorted_cases(&listing), [("plain".to_owned(), false)]);
}

#[tokio::test]
async fn a_binary_arrives_while_others_are_still_being_built() {
    let project = Project::new(SLOW);
    let settings = project.settings(&["--workspace", "-j2"]);
    let workspace = Arc::new(compile::metadata(&settings).await.unwrap());
    let (sender, mut receiver) = mpsc::channel::<TestBinary>(1);
    let receive = async {
        let first = receiver.recv().await.unwrap();
        std::fs::write(project.root().join("received"), "").unwrap();
        (first.id, receiver.recv().await.unwrap().id, receiver.recv().await.is_none())
    };
    let (done, received) = tokio::join!(
        compile::Building::start(&settings).unwrap().follow(&settings, &workspace, sender),
        receive
    );
    assert_eq!(done.unwrap().binaries, 2);
    assert_eq!((&*received.0.0, &*received.1.0, received.2), ("quick", "slow", true));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_build_that_nobody_waits_for_is_ended() {
    let project = Project::new(SLOW);
    let settings = project.settings(&["--workspace", "-j2"]);
    let workspace = Arc::new(compile::metadata(&settings).await.unwrap());
    let (sender, mut receiver) = mpsc::channel::<TestBinary>(1);
    let is_cargo = |command: &[u8]| {
        let command = String::from_utf8_lossy(command);
        command.contains("--no-run") && command.contains(project.root().to_str().unwrap())
    };
    let runs = || {
        let processes = std::fs::read_dir("/proc").unwrap();
        let mut commands =
            processes.filter_map(|entry| std::fs::read(entry.unwrap().path().join("cmdline")).ok());
        commands.any(|command| is_cargo(&command))
    };
    tokio::select! {
        done = compile::Building::start(&settings).unwrap().follow(&settings, &workspace, sender) => panic!("{done:?}"),
        first = receiver.recv() => assert_eq!(&*first.unwrap().id.0, "quick"),
    }
    let gone = async {
        while runs() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("cargo was not killed");
}

#[tokio::test]
async fn what_cargo_tells_is_not_told_again() {
    let manifest = "package = { name = 'bad', version = '0.1.0', edition = '2021' }";
    let project = Project::new(&[("Cargo.toml", manifest), ("src/lib.rs", "not rust")]);
    let failure = project.build(&[]).await.map(drop).unwrap_err();
    assert_eq!((failure.code, failure.silent), (ExitCode::BuildFailed, true));

    let project = Project::new(&[("Cargo.toml", "package = {")]);
    let failure = project.metadata(&[]).await.unwrap_err();
    assert_eq!((failure.code, failure.silent), (ExitCode::MetadataFailed, true));

    let settings = CompileSettings { cargo: "/no/such/cargo".into(), ..project.settings(&[]) };
    let failure = compile::metadata(&settings).await.unwrap_err();
    assert_eq!((failure.code, failure.silent), (ExitCode::Setup, false));
    assert_eq!(failure.to_string(), "could not run `/no/such/cargo`: there is no such program");
}

/// File names, sorted; hashes of Rust's own libraries left out.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let mut names: Vec<_> = paths
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .map(|name| if name.starts_with("libstd-") { "libstd-*.so" } else { name }.to_owned())
        .collect();
    names.sort();
    names
}
