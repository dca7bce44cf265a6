//! Which test cases run: names, filtersets, `#[ignore]`. Pure.
//!
//! Follows cargo-nextest: a test runs if it matches one of the names (if any are given), *and* one
//! of the filtersets (if any), *and* the profile's default filter (unless it is switched off). The
//! filterset language is nextest's own, by its crate. Shares of a partition are dealt afterwards
//! ([`crate::shard`]).

mod message;

use std::collections::HashSet;

use guppy::PackageId;
use guppy::graph::PackageGraph;
use guppy::graph::cargo::BuildPlatform;
use nextest_filtering::{
    BinaryQuery, CompiledExpr, EvalContext, Filterset, FiltersetKind, GroupLookup, KnownGroups,
    NameMatcher, ParseContext, TestQuery,
};
use nextest_metadata::{GLOBAL_TEST_GROUP, RustBinaryId, RustTestBinaryKind, TestCaseName};

use crate::event::SkipReason;
use crate::failure::{ExitCode, Failure};
use crate::model::{BinaryKind, ListedCase, TestBinary, TestName};
use crate::settings::{RunIgnored, SelectSettings};
use distest_worker::shown;

/// Decides, test case by test case, what runs.
#[derive(Debug)]
pub struct Filter {
    names: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    run_ignored: RunIgnored,
    filtersets: Vec<CompiledExpr>,
    /// What `default()` means in a filterset.
    default_filter: CompiledExpr,
    /// Whether the default filter also holds by itself.
    default_filter_holds: bool,
}

impl Filter {
    /// Compiles what was asked for. `metadata_json` is what `cargo metadata --format-version 1`
    /// printed, dependencies included; it is read only if there is an expression to compile.
    ///
    /// # Errors
    ///
    /// [`ExitCode::InvalidFilterset`] if an expression can't be parsed or names a package or binary
    /// that isn't there; [`ExitCode::MetadataFailed`] if the metadata make no sense.
    pub fn new(select: &SelectSettings, metadata_json: &str) -> Result<Self, Failure> {
        let mut filter = Self {
            names: select.filters.clone(),
            skip: select.skip.clone(),
            exact: select.exact,
            run_ignored: select.run_ignored,
            filtersets: Vec::new(),
            default_filter: CompiledExpr::ALL,
            default_filter_holds: !select.ignore_default_filter,
        };
        if select.filtersets.is_empty() && select.default_filter.is_none() {
            return Ok(filter);
        }
        let graph = PackageGraph::from_json(metadata_json).map_err(|error| {
            let what = "could not make sense of what cargo metadata printed";
            Failure::new(ExitCode::MetadataFailed, what).because(error)
        })?;
        let context = ParseContext::new(&graph);
        if let Some(expression) = &select.default_filter {
            filter.default_filter = compile(expression, &context, FiltersetKind::DefaultFilter)?;
        }
        filter.filtersets = select
            .filtersets
            .iter()
            .map(|expression| compile(expression, &context, FiltersetKind::Test))
            .collect::<Result<_, _>>()?;
        Ok(filter)
    }

    /// Whether a test case runs, or why not.
    pub fn decide(&self, binary: &TestBinary, case: &ListedCase) -> Result<(), SkipReason> {
        let ignored_fits = match self.run_ignored {
            RunIgnored::Default => !case.ignored,
            RunIgnored::Only => case.ignored,
            RunIgnored::All => true,
        };
        if !ignored_fits {
            return Err(SkipReason::Ignored);
        }
        if !self.name_fits(&case.name.0) {
            return Err(SkipReason::Filter);
        }
        let needs_expressions = !self.filtersets.is_empty()
            || (self.default_filter_holds && self.default_filter != CompiledExpr::ALL);
        if !needs_expressions {
            return Ok(());
        }
        let names = BinaryNames::new(binary);
        let test_name = TestCaseName::new(&case.name.0);
        let query = TestQuery { binary_query: names.query(binary), test_name: &test_name };
        let context = self.context();
        let matches = |filterset: &CompiledExpr| {
            filterset.matches_test_with_groups(&query, &context, &OnlyGlobalGroup)
        };
        if !self.filtersets.is_empty() && !self.filtersets.iter().any(matches) {
            return Err(SkipReason::Filter);
        }
        if self.default_filter_holds && !matches(&self.default_filter) {
            return Err(SkipReason::DefaultFilter);
        }
        Ok(())
    }

    /// Whether a binary has tests that run, as far as that can be told without listing it: no
    /// ([`Some(false)`]: it needn't be listed), all that match by name, or unknown.
    pub fn wants_binary(&self, binary: &TestBinary) -> Option<bool> {
        let names = BinaryNames::new(binary);
        let query = names.query(binary);
        let context = self.context();
        let mut wanted = match self.filtersets.is_empty() {
            true => Some(true),
            false => Some(false),
        };
        for filterset in &self.filtersets {
            wanted = match (wanted, filterset.matches_binary(&query, &context)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            };
        }
        if !self.default_filter_holds {
            return wanted;
        }
        match (wanted, self.default_filter.matches_binary(&query, &context)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }

    fn name_fits(&self, name: &str) -> bool {
        let fits = |pattern: &String| match self.exact {
            true => name == pattern,
            false => name.contains(pattern.as_str()),
        };
        (self.names.is_empty() || self.names.iter().any(fits)) && !self.skip.iter().any(fits)
    }

    fn context(&self) -> EvalContext<'_> {
        EvalContext { default_filter: &self.default_filter }
    }
}

/// Filtersets that are asked one by one.
#[derive(Debug, Default)]
pub struct Expressions(Vec<CompiledExpr>);

impl Expressions {
    /// Compiles them. `metadata_json` as for [`Filter::new`].
    ///
    /// # Errors
    ///
    /// As [`Filter::new`].
    pub fn new(texts: &[&str], metadata_json: &str) -> Result<Self, Failure> {
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let graph = PackageGraph::from_json(metadata_json).map_err(|error| {
            let what = "could not make sense of what cargo metadata printed";
            Failure::new(ExitCode::MetadataFailed, what).because(error)
        })?;
        let context = ParseContext::new(&graph);
        let compiled = texts.iter().map(|text| compile(text, &context, FiltersetKind::Test));
        Ok(Self(compiled.collect::<Result<_, _>>()?))
    }

    /// Places of those that match a test, in their order.
    pub fn matching(&self, binary: &TestBinary, name: &TestName) -> impl Iterator<Item = usize> {
        let names = BinaryNames::new(binary);
        let test_name = TestCaseName::new(&name.0);
        let query = TestQuery { binary_query: names.query(binary), test_name: &test_name };
        let context = EvalContext { default_filter: &CompiledExpr::ALL };
        let matches = |expression: &CompiledExpr| {
            expression.matches_test_with_groups(&query, &context, &OnlyGlobalGroup)
        };
        let places = self.0.iter().enumerate().filter(|(_, expression)| matches(expression));
        places.map(|(place, _)| place).collect::<Vec<_>>().into_iter()
    }
}

fn compile(
    expression: &str,
    context: &ParseContext<'_>,
    kind: FiltersetKind,
) -> Result<CompiledExpr, Failure> {
    // `group(@global)` is every test; there are no other groups.
    let groups = KnownGroups::Known { custom_groups: HashSet::new() };
    if message::is_too_deep(expression) {
        return Err(message::too_deep(expression));
    }
    match Filterset::parse(expression.to_owned(), context, kind, &groups) {
        Ok(filterset) => Ok(filterset.compiled),
        Err(errors) => Err(message::invalid(&errors, kind)),
    }
}

/// A binary's names in nextest's types.
struct BinaryNames {
    package: PackageId,
    id: RustBinaryId,
    kind: RustTestBinaryKind,
}

impl BinaryNames {
    fn new(binary: &TestBinary) -> Self {
        let kind = match binary.kind {
            BinaryKind::Lib => RustTestBinaryKind::LIB,
            BinaryKind::Bin => RustTestBinaryKind::BIN,
            BinaryKind::Test => RustTestBinaryKind::TEST,
            BinaryKind::Example => RustTestBinaryKind::EXAMPLE,
            BinaryKind::Bench => RustTestBinaryKind::BENCH,
            BinaryKind::ProcMacro => RustTestBinaryKind::PROC_MACRO,
        };
        let package = PackageId::new(binary.package_id.as_str());
        Self { package, id: RustBinaryId::new(&binary.id.0), kind }
    }

    fn query<'a>(&'a self, binary: &'a TestBinary) -> BinaryQuery<'a> {
        BinaryQuery {
            package_id: &self.package,
            binary_id: &self.id,
            binary_name: &binary.target_name,
            kind: &self.kind,
            platform: match binary.for_host {
                true => BuildPlatform::Host,
                false => BuildPlatform::Target,
            },
        }
    }
}

#[derive(Debug)]
struct OnlyGlobalGroup;

impl GroupLookup for OnlyGlobalGroup {
    fn is_member_test(&self, _: &TestQuery<'_>, matcher: &NameMatcher) -> bool {
        matcher.is_match(GLOBAL_TEST_GROUP)
    }
}

/// A name as a filterset's `=` matcher takes it, legible on a terminal.
pub fn literal(name: &str) -> String {
    let mut literal = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '\\' | ')' | ',' => literal.extend(['\\', c]),
            c if shown::acts(c) => literal += &format!("\\u{{{:x}}}", u32::from(c)),
            c => literal.push(c),
        }
    }
    literal
}

#[cfg(test)]
pub(crate) mod tests;
