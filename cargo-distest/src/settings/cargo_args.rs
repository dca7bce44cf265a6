//! Build flags, spelled as cargo takes them. Pure.
//!
//! Values are glued to their flags (`--package=a`), so that none can be taken for another flag.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{Color, CompileSettings};
use crate::cli::{BuildArgs, RunArgs};

/// How cargo is to be called.
pub(super) fn compile_settings(args: &RunArgs, cargo: Option<String>) -> CompileSettings {
    let RunArgs { build, execute, report, select: _, fleet: _, travel: _, history: _, config: _ } =
        args;
    let (mut build_args, metadata_args) = cargo_args(build);
    if let Some(color) = report.color {
        build_args.push(glue("--color", color_name(color)));
    }
    CompileSettings {
        cargo: cargo.map_or_else(|| PathBuf::from("cargo"), PathBuf::from),
        manifest_path: build.manifest_path.clone(),
        build_args,
        metadata_args,
        config: build.config.clone(),
        targets: build.target.clone(),
        cargo_profile: match &build.cargo_profile {
            Some(name) => name.clone(),
            None if build.release => "release".to_owned(),
            None => "dev".to_owned(),
        },
        no_run: execute.no_run,
    }
}

/// Arguments for `cargo test` and, of these, what `cargo metadata` understands.
fn cargo_args(args: &BuildArgs) -> (Vec<OsString>, Vec<OsString>) {
    let BuildArgs {
        package,
        workspace,
        exclude,
        lib,
        bin,
        bins,
        example,
        examples,
        test,
        tests,
        bench,
        benches,
        all_targets,
        doc: _,
        features,
        all_features,
        no_default_features,
        build_jobs,
        release,
        cargo_profile,
        target,
        target_dir,
        timings,
        manifest_path,
        locked,
        offline,
        frozen,
        cargo_verbose,
        cargo_quiet,
        ignore_rust_version,
        future_incompat_report,
        config,
        unstable,
    } = args;

    let mut both = Flags::default();
    both.each("--features", features)
        .flag("--all-features", *all_features)
        .flag("--no-default-features", *no_default_features)
        .each("--manifest-path", manifest_path)
        .flag("--locked", *locked)
        .flag("--offline", *offline)
        .flag("--frozen", *frozen)
        .each("--config", config)
        .each("-Z", unstable);

    let mut build = Flags::default();
    build
        .each("--package", package)
        .flag("--workspace", *workspace)
        .each("--exclude", exclude)
        .flag("--lib", *lib)
        .each("--bin", bin)
        .flag("--bins", *bins)
        .each("--example", example)
        .flag("--examples", *examples)
        .each("--test", test)
        .flag("--tests", *tests)
        .each("--bench", bench)
        .flag("--benches", *benches)
        .flag("--all-targets", *all_targets)
        .each("--jobs", build_jobs)
        .flag("--release", *release)
        .each("--profile", cargo_profile)
        .each("--target", target)
        .each("--target-dir", target_dir)
        .flag("--timings", timings.as_deref() == Some(""))
        .each("--timings", timings.iter().filter(|formats| !formats.is_empty()))
        .flag("--ignore-rust-version", *ignore_rust_version)
        .flag("--future-incompat-report", *future_incompat_report);
    for _ in 0..*cargo_verbose {
        build.flag("--verbose", true);
    }
    // cargo takes it once.
    build.flag("--quiet", *cargo_quiet > 0);

    build.0.extend_from_slice(&both.0);
    // cargo metadata tells where everything is put, but knows no `--target-dir`.
    both.each("--config", target_dir.as_ref().and_then(|folder| target_dir_config(folder)));
    (build.0, both.0)
}

/// `--target-dir` as a configuration value. Relative to the current folder, as the flag is. The
/// variable `CARGO_TARGET_DIR` goes before it and must not reach cargo metadata.
fn target_dir_config(folder: &Path) -> Option<String> {
    let folder = toml::Value::String(folder.to_str()?.to_owned());
    Some(format!("build.target-dir={folder}"))
}

#[derive(Default)]
struct Flags(Vec<OsString>);

impl Flags {
    fn flag(&mut self, name: &str, given: bool) -> &mut Self {
        if given {
            self.0.push(name.into());
        }
        self
    }

    fn each<T: AsRef<OsStr>>(
        &mut self,
        name: &str,
        values: impl IntoIterator<Item = T>,
    ) -> &mut Self {
        self.0.extend(values.into_iter().map(|value| glue(name, value.as_ref())));
        self
    }
}

fn glue(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut flag = OsString::from(name);
    if name.starts_with("--") {
        flag.push("=");
    }
    flag.push(value);
    flag
}

fn color_name(color: Color) -> String {
    color.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};

    fn settings(args: &str) -> CompileSettings {
        let args = ["cargo-distest", "run"].into_iter().chain(args.split_whitespace());
        let Command::Run(run) = cli::parse(args.map(OsString::from)).expect("valid").command else {
            panic!("not a run");
        };
        compile_settings(&run, None)
    }

    #[test]
    fn flags_reach_cargo_in_its_own_spelling() {
        let cases = [
            ("-p a --package b", "--package=a --package=b"),
            ("--all --exclude a", "--workspace --exclude=a"),
            (
                "--lib --bin a --bins --example b --examples",
                "--lib --bin=a --bins --example=b --examples",
            ),
            ("--test a --tests --bench b --benches", "--test=a --tests --bench=b --benches"),
            ("--all-targets", "--all-targets"),
            ("--build-jobs -1 -r", "--jobs=-1 --release"),
            ("--cargo-profile dist", "--profile=dist"),
            ("--target a --target b", "--target=a --target=b"),
            ("--timings", "--timings"),
            ("--timings=html", "--timings=html"),
            ("--ignore-rust-version", "--ignore-rust-version"),
            ("--future-incompat-report", "--future-incompat-report"),
            ("-vv", "--verbose --verbose"),
            ("-qq", "--quiet"),
            ("--color always", "--color=always"),
            ("--retries 3 --no-run -j2 filter", ""),
        ];
        for (typed, expected) in cases {
            let settings = settings(typed);
            assert_eq!(settings.build_args.join(OsStr::new(" ")), expected, "{typed}");
            assert!(settings.metadata_args.is_empty(), "{typed}");
        }
    }

    #[test]
    fn what_changes_the_package_graph_reaches_cargo_metadata_too() {
        let typed = "--manifest-path a/Cargo.toml --locked --offline --frozen -F a,b --features c \
                     --all-features --no-default-features --config k=1 -Z flag -r";
        let settings = settings(typed);
        let expected = "--features=a,b --features=c --all-features --no-default-features \
                        --manifest-path=a/Cargo.toml --locked --offline --frozen --config=k=1 \
                        -Zflag";
        assert_eq!(settings.metadata_args.join(OsStr::new(" ")), expected);
        let build = format!("--release {expected}");
        assert_eq!(settings.build_args.join(OsStr::new(" ")), build.as_str());
        assert_eq!(settings.manifest_path, Some(PathBuf::from("a/Cargo.toml")));
        assert_eq!(settings.config, ["k=1"]);
    }

    #[test]
    fn the_target_folder_reaches_cargo_metadata_as_configuration() {
        let settings = settings("--target-dir a\"b --config k=1");
        assert_eq!(settings.build_args.join(OsStr::new(" ")), "--target-dir=a\"b --config=k=1");
        let expected = "--config=k=1 --config=build.target-dir='a\"b'";
        assert_eq!(settings.metadata_args.join(OsStr::new(" ")), expected);
        assert_eq!(settings.config, ["k=1"]);
    }

    #[test]
    fn the_profiles_name_is_cargos() {
        assert_eq!(settings("").cargo_profile, "dev");
        assert_eq!(settings("-r").cargo_profile, "release");
        assert_eq!(settings("--cargo-profile x").cargo_profile, "x");
        assert!(settings("--no-run").no_run);
    }
}
