//! Workspaces in folders of their own, and building them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cargo_distest::compile::{self, Workspace};
use cargo_distest::failure::Failure;
use cargo_distest::model::TestBinary;
use cargo_distest::settings::CompileSettings;
use tokio::sync::mpsc;

/// A workspace in a folder of its own.
pub(crate) struct Project {
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Project {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self { root, _folder: folder }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `args` in front of what every call of cargo needs here.
    pub(crate) fn args(&self, args: &[&str]) -> Vec<OsString> {
        let manifest = self.root.join("Cargo.toml").into_os_string();
        let common = ["--offline".into(), "--manifest-path".into(), manifest];
        args.iter().map(OsString::from).chain(common).collect()
    }

    pub(crate) fn settings(&self, args: &[&str]) -> CompileSettings {
        let value = |flag| {
            let at = args.iter().position(|&arg| arg == flag);
            at.map(|i| args[i + 1].to_owned()).into_iter().collect::<Vec<_>>()
        };
        let config: Vec<&str> = args
            .iter()
            .position(|&arg| arg == "--config")
            .map_or(Vec::new(), |i| args[i..i + 2].to_vec());
        CompileSettings {
            cargo: cargo().into(),
            manifest_path: Some(self.root.join("Cargo.toml")),
            build_args: self.args(args),
            metadata_args: self.args(&config),
            config: value("--config"),
            targets: value("--target"),
            cargo_profile: "dev".to_owned(),
            no_run: false,
        }
    }

    pub(crate) async fn metadata(&self, args: &[&str]) -> Result<Workspace, Failure> {
        compile::metadata(&self.settings(args)).await
    }

    /// Builds it; whatever a binary needs must be there when it arrives.
    pub(crate) async fn build(
        &self,
        args: &[&str],
    ) -> Result<(Arc<Workspace>, BTreeMap<String, TestBinary>), Failure> {
        let settings = self.settings(args);
        let workspace = Arc::new(compile::metadata(&settings).await?);
        let (sender, mut receiver) = mpsc::channel::<TestBinary>(1);
        let receive = async {
            let mut binaries = BTreeMap::new();
            while let Some(binary) = receiver.recv().await {
                let needed = [&binary.companions, &binary.companion_dirs, &binary.writable_dirs];
                for path in needed.into_iter().flatten().chain([&binary.executable]) {
                    assert!(path.exists(), "{}: {}", binary.id, path.display());
                }
                assert!(binaries.insert(binary.id.to_string(), binary).is_none());
            }
            binaries
        };
        let (done, binaries) = tokio::join!(
            compile::Building::start(&settings).unwrap().follow(&settings, &workspace, sender),
            receive
        );
        assert_eq!(done?.binaries as usize, binaries.len());
        Ok((workspace, binaries))
    }
}

pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
