//! Instructions that a build may use beyond its target's baseline: `-C target-cpu=native` and its
//! kin make executables that not every machine of the same target can run.

use std::ffi::OsStr;

use super::cargo_config::CargoConfig;
use super::toolchain;
use crate::failure::Failure;

/// Features that are in force because of the user's compiler flags; none if no flag is about them.
pub(super) async fn features(
    rustc: &OsStr,
    config: &CargoConfig,
    targets: &[String],
) -> Result<Vec<String>, Failure> {
    let flags = flags(config, targets, |name| std::env::var(name).ok());
    let about: Vec<String> = about_the_cpu(&flags);
    if about.is_empty() {
        return Ok(Vec::new());
    }
    // The compiler knows what a processor's name stands for.
    let args = ["--print", "cfg"].map(str::to_owned).into_iter().chain(about);
    let printed = toolchain::ask(rustc, &args.collect::<Vec<_>>()).await?;
    Ok(parse(&printed))
}

/// All flags that some unit may be compiled with, wherever they are said.
fn flags(
    config: &CargoConfig,
    targets: &[String],
    env: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // The first source that says something is the only one.
    if let Some(encoded) = env("CARGO_ENCODED_RUSTFLAGS") {
        return encoded.split('\x1f').map(str::to_owned).collect();
    }
    if let Some(flags) = env("RUSTFLAGS") {
        return words(flags);
    }
    let variable = |target: &String| {
        let name = target.to_uppercase().replace(['-', '.'], "_");
        env(&format!("CARGO_TARGET_{name}_RUSTFLAGS"))
    };
    let mut all: Vec<String> = targets.iter().filter_map(variable).flat_map(words).collect();
    all.extend(config.target_rustflags(targets).into_iter().flat_map(words));
    if all.is_empty() {
        all = match env("CARGO_BUILD_RUSTFLAGS") {
            Some(flags) => words(flags),
            None => config.strings("build", "rustflags").into_iter().flat_map(words).collect(),
        };
    }
    all
}

/// The flags that choose a processor or its features, each as one word.
fn about_the_cpu(flags: &[String]) -> Vec<String> {
    let mut about = Vec::new();
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        let option = match flag.as_str() {
            "-C" | "--codegen" => flags.next().map(String::as_str),
            glued => glued.strip_prefix("-C").or_else(|| glued.strip_prefix("--codegen=")),
        };
        let chooses = |option: &&str| {
            option.starts_with("target-cpu=") || option.starts_with("target-feature=")
        };
        about.extend(option.filter(chooses).map(|option| format!("-C{option}")));
    }
    about
}

/// The values of `target_feature` in what `rustc --print cfg` prints.
fn parse(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter_map(|line| line.strip_prefix("target_feature=\""));
    lines.filter_map(|line| line.strip_suffix('"')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: &str, expected: &[&str]) {
        let flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        assert_eq!(about_the_cpu(&flags), expected, "{flags:?}");
    }

    #[test]
    fn finds_the_flags_about_the_processor() {
        check("-C target-cpu=native -Copt-level=3", &["-Ctarget-cpu=native"]);
        check("-Ctarget-cpu=haswell", &["-Ctarget-cpu=haswell"]);
        check("--codegen target-feature=+avx2 -g", &["-Ctarget-feature=+avx2"]);
        check("--codegen=target-cpu=x86-64-v3", &["-Ctarget-cpu=x86-64-v3"]);
        check("-C link-arg=-fuse-ld=lld -C", &[]);
    }

    #[test]
    fn the_first_source_counts() {
        let config = CargoConfig::load_from(
            std::path::Path::new("/nowhere"),
            None,
            &[
                "build.rustflags = '-C target-cpu=b'".to_owned(),
                "target.x86_64-unknown-linux-gnu.rustflags = ['-C', 'target-cpu=t']".to_owned(),
                "target.'cfg(unix)'.rustflags = ['-Ctarget-cpu=u']".to_owned(),
                "target.other.rustflags = ['-Ctarget-cpu=o']".to_owned(),
            ],
        )
        .unwrap();
        let targets = ["x86_64-unknown-linux-gnu".to_owned()];
        let from = |set: &[(&str, &str)]| {
            let env = |name: &str| {
                set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned())
            };
            about_the_cpu(&flags(&config, &targets, env)).join(" ")
        };
        assert_eq!(from(&[]), "-Ctarget-cpu=u -Ctarget-cpu=t");
        let variable = ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-cpu=v");
        assert_eq!(from(&[variable]), "-Ctarget-cpu=v -Ctarget-cpu=u -Ctarget-cpu=t");
        assert_eq!(from(&[variable, ("RUSTFLAGS", "-C target-cpu=e")]), "-Ctarget-cpu=e");
        let encoded = ("CARGO_ENCODED_RUSTFLAGS", "-C\x1ftarget-cpu=x");
        assert_eq!(from(&[encoded, ("RUSTFLAGS", "")]), "-Ctarget-cpu=x");
    }

    #[test]
    fn reads_what_the_compiler_prints() {
        let printed = "debug_assertions\ntarget_feature=\"avx2\"\ntarget_os=\"linux\"\n";
        assert_eq!(parse(printed), ["avx2"]);
    }
}
