//! Which targets of a package have a harness of their own: cargo tells it nowhere but in the
//! manifest.

use std::collections::BTreeSet;
use std::path::Path;

use crate::model::{BinaryKind, Harness};

/// The targets of one package that say `harness = false`.
#[derive(Debug, Default)]
pub(super) struct CustomHarnesses {
    library: bool,
    named: BTreeSet<(BinaryKind, String)>,
}

impl CustomHarnesses {
    /// Reads a package's manifest. One that can't be read has none: cargo, which has just built the
    /// package, knows better than we do.
    pub(super) fn read(manifest: &Path) -> Self {
        std::fs::read_to_string(manifest).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(manifest: &str) -> Self {
        let manifest: toml::Table = manifest.parse().unwrap_or_default();
        let custom = |target: &toml::Value| {
            target.get("harness").and_then(toml::Value::as_bool) == Some(false)
        };
        let kinds = [
            ("bin", BinaryKind::Bin),
            ("test", BinaryKind::Test),
            ("example", BinaryKind::Example),
            ("bench", BinaryKind::Bench),
        ];
        let mut named = BTreeSet::new();
        for (key, kind) in kinds {
            let targets = manifest.get(key).and_then(toml::Value::as_array).into_iter().flatten();
            for target in targets.filter(|target| custom(target)) {
                let name = target.get("name").and_then(toml::Value::as_str);
                named.extend(name.map(|name| (kind, name.to_owned())));
            }
        }
        Self { library: manifest.get("lib").is_some_and(custom), named }
    }

    /// Who parses the command line of a target.
    pub(super) fn of(&self, kind: BinaryKind, target: &str) -> Harness {
        let custom = match kind {
            BinaryKind::Lib | BinaryKind::ProcMacro => self.library,
            kind => self.named.contains(&(kind, target.to_owned())),
        };
        if custom { Harness::Custom } else { Harness::Libtest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_the_manifest_says_of_each_kind() {
        let custom = CustomHarnesses::parse(
            r#"
            [package]
            name = "p"
            [lib]
            harness = false
            [[test]]
            name = "data"
            harness = false
            [[test]]
            name = "plain"
            [[bench]]
            name = "data-bench"
            harness = false
            "#,
        );
        assert_eq!(custom.of(BinaryKind::Lib, "p"), Harness::Custom);
        assert_eq!(custom.of(BinaryKind::Test, "data"), Harness::Custom);
        assert_eq!(custom.of(BinaryKind::Bench, "data-bench"), Harness::Custom);
        assert_eq!(custom.of(BinaryKind::Test, "plain"), Harness::Libtest);
        assert_eq!(custom.of(BinaryKind::Test, "inferred"), Harness::Libtest);
        assert_eq!(custom.of(BinaryKind::Bench, "data"), Harness::Libtest);
    }
}
