//! What travels to workers and what comes back: the profile's keys `include`, `exclude`, `env`,
//! `collect` and the bounds of the tree.

use super::layer::Layer;
use super::reader::node::Node;
use crate::cli::TravelArgs;
use crate::failure::Failure;
use distest_worker::globs;

/// What goes there and what comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TravelSettings {
    /// Patterns of files that travel although git ignores them or they lie outside the workspace.
    pub include: Vec<String>,
    /// Patterns of files that stay here.
    pub exclude: Vec<String>,
    /// More workspace files than this are a mistake.
    pub tree_files_max: u64,
    /// Bytes of workspace files that travel at most.
    pub tree_bytes_max: u64,
    /// Patterns of variables that remote tests get beside those that always travel.
    pub pass: Vec<String>,
    /// Patterns of files that come back when a remote test creates or changes them.
    pub collect: Vec<String>,
}

/// What one source says of it.
#[derive(Clone, Debug, Default)]
pub(super) struct TravelLayer {
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    tree_files_max: Option<u64>,
    tree_bytes_max: Option<u64>,
    pass: Option<Vec<String>>,
    collect: Option<Vec<String>>,
}

/// The profile's keys.
pub(super) const KEYS: [&str; 6] =
    ["include", "exclude", "tree-files-max", "tree-bytes-max", "env", "collect"];
const ENV_KEYS: &[&str] = &["pass"];

/// What tools leave beside the code for their user to look at.
const COLLECT: [&str; 6] = [
    "*.snap.new",
    "*.pending-snap",
    "proptest-regressions",
    "*.proptest-regressions",
    "**/wip/*.stderr",
    "*.profraw",
];
const TREE_FILES_MAX: u64 = 200_000;
const TREE_BYTES_MAX: u64 = 2 << 30;

impl TravelLayer {
    /// This layer's values, and the lower one's where this one says nothing.
    pub(super) fn or(self, lower: Self) -> Self {
        Self {
            include: self.include.or(lower.include),
            exclude: self.exclude.or(lower.exclude),
            tree_files_max: self.tree_files_max.or(lower.tree_files_max),
            tree_bytes_max: self.tree_bytes_max.or(lower.tree_bytes_max),
            pass: self.pass.or(lower.pass),
            collect: self.collect.or(lower.collect),
        }
    }

    /// Reads one of [`KEYS`].
    pub(super) fn read(&mut self, key: &str, node: &Node<'_>) -> Result<(), Failure> {
        match key {
            "include" => self.include = Some(patterns(node)?),
            "exclude" => self.exclude = Some(patterns(node)?),
            "collect" => self.collect = Some(patterns(node)?),
            "tree-files-max" => self.tree_files_max = Some(count(node)?),
            "tree-bytes-max" => self.tree_bytes_max = Some(bytes(node)?),
            "env" => {
                for (key, node) in node.entries()? {
                    match key {
                        "pass" => self.pass = Some(patterns(&node)?),
                        _ => node.unknown(ENV_KEYS)?,
                    }
                }
            }
            _ => node.unknown(&KEYS)?,
        }
        Ok(())
    }
}

/// Flags add to what the profile says.
pub(super) fn settings(args: &TravelArgs, layer: &Layer) -> TravelSettings {
    let TravelArgs { forward: _, collect } = args;
    let layer = layer.travel.clone();
    let mut all = layer.collect.unwrap_or_else(|| COLLECT.map(str::to_owned).to_vec());
    all.extend_from_slice(collect);
    TravelSettings {
        include: layer.include.unwrap_or_default(),
        exclude: layer.exclude.unwrap_or_default(),
        tree_files_max: layer.tree_files_max.unwrap_or(TREE_FILES_MAX),
        tree_bytes_max: layer.tree_bytes_max.unwrap_or(TREE_BYTES_MAX),
        pass: layer.pass.unwrap_or_default(),
        collect: all,
    }
}

/// A pattern, as flags take it.
pub(crate) fn parse_pattern(text: &str) -> Result<String, String> {
    globs::check(text).map(|()| text.to_owned())
}

fn patterns(node: &Node<'_>) -> Result<Vec<String>, Failure> {
    node.items()?.into_iter().map(|node| node.parse(parse_pattern)).collect()
}

fn count(node: &Node<'_>) -> Result<u64, Failure> {
    let number = node.number()?;
    u64::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| node.wrong("a number from 1"))
}

fn bytes(node: &Node<'_>) -> Result<u64, Failure> {
    let expected = "a number of bytes or a size such as `4 GiB`";
    node.number_or(|number| u64::try_from(number).ok().filter(|it| *it > 0), parse_bytes, expected)
}

/// `512 MiB`, `4GiB`, `4 GB`: powers of 1024 or 1000, as they say.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "tb" => Some(1_000_000_000_000),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1 << 40),
        _ => None,
    };
    let number = number.parse::<u64>().ok().filter(|number| *number > 0);
    let bytes = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| "expected a size such as `512 MiB` or `4 GiB`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("7", Some(7)),
            ("4 GiB", Some(4 << 30)),
            ("512MiB", Some(512 << 20)),
            ("2 kb", Some(2000)),
        ] {
            assert_eq!(parse_bytes(text).ok(), bytes, "{text}");
        }
        for text in ["", "GiB", "0", "-1", "4 light-years", "99999999999 TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
