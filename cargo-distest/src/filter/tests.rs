use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::model::{BinaryId, Harness, TestName, Triple};

const METADATA: &str = include_str!("metadata.json");

/// A test binary of the package that its id begins with.
pub(crate) fn binary(id: &str, target: &str, kind: BinaryKind) -> TestBinary {
    let package = id.split("::").next().expect("an id starts with its package").to_owned();
    TestBinary {
        id: BinaryId::new(id),
        package_id: format!("path+file:///w/{package}#0.1.0"),
        package,
        target_name: target.to_owned(),
        kind,
        harness: Harness::Libtest,
        triple: Triple::new("x86_64-unknown-linux-gnu"),
        for_host: kind == BinaryKind::ProcMacro,
        executable: PathBuf::new(),
        cwd: PathBuf::new(),
        env: BTreeMap::new(),
        companions: Vec::new(),
        companion_dirs: Vec::new(),
        writable_dirs: Vec::new(),
        needs: Default::default(),
    }
}

fn binaries() -> [TestBinary; 3] {
    [
        binary("alpha", "alpha", BinaryKind::Lib),
        binary("alpha::api", "api", BinaryKind::Test),
        binary("beta", "beta", BinaryKind::ProcMacro),
    ]
}

/// `BINARY TEST` of all that run, out of three binaries with the same tests.
fn selected(select: &SelectSettings) -> Vec<String> {
    let filter = Filter::new(select, METADATA).unwrap();
    let names = ["parse", "parse::deep", "render", "slow"];
    let cases = names.map(|name| ListedCase { name: TestName::new(name), ignored: name == "slow" });
    let mut selected = Vec::new();
    for binary in &binaries() {
        let before = selected.len();
        for case in &cases {
            if filter.decide(binary, case).is_ok() {
                selected.push(format!("{} {}", binary.id, case.name));
            }
        }
        if filter.wants_binary(binary) == Some(false) {
            assert_eq!(selected.len(), before, "{} needs a listing", binary.id);
        }
    }
    selected
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn expressions(texts: &[&str]) -> SelectSettings {
    SelectSettings { filtersets: strings(texts), ..SelectSettings::default() }
}

fn names(texts: &[&str]) -> SelectSettings {
    SelectSettings { filters: strings(texts), ..SelectSettings::default() }
}

#[test]
fn names_are_parts_or_whole() {
    let of_alpha = |select| {
        let names = selected(&select).into_iter();
        names.filter_map(|name| name.strip_prefix("alpha ").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(of_alpha(names(&[])), ["parse", "parse::deep", "render"]);
    assert_eq!(of_alpha(names(&["deep", "rend"])), ["parse::deep", "render"]);
    assert_eq!(of_alpha(SelectSettings { exact: true, ..names(&["parse"]) }), ["parse"]);
    assert_eq!(of_alpha(SelectSettings { skip: strings(&["parse"]), ..names(&[]) }), ["render"]);
    assert_eq!(
        of_alpha(SelectSettings { skip: strings(&["parse"]), exact: true, ..names(&[]) }),
        ["parse::deep", "render"]
    );
    let ignored = |run_ignored| SelectSettings { run_ignored, ..names(&[]) };
    assert_eq!(of_alpha(ignored(RunIgnored::Only)), ["slow"]);
    assert_eq!(of_alpha(ignored(RunIgnored::All)).len(), 4);
}

#[test]
fn filtersets_are_unions_that_names_narrow() {
    assert_eq!(
        selected(&expressions(&["kind(test) and test(=parse)", "platform(host) & test(render)"])),
        ["alpha::api parse", "beta render"]
    );
    assert_eq!(
        selected(&SelectSettings {
            filters: strings(&["deep"]),
            ..expressions(&["package(alpha)"])
        }),
        ["alpha parse::deep", "alpha::api parse::deep"]
    );
    assert_eq!(
        selected(&expressions(&["binary_id(alpha::api) - test(parse)"])),
        ["alpha::api render"]
    );
    assert_eq!(selected(&expressions(&["rdeps(beta) and test(=parse)"])).len(), 3);
    assert_eq!(selected(&expressions(&["group(@global) and not test(parse)"])).len(), 3);
}

#[test]
fn the_default_filter_narrows_everything_unless_ignored() {
    let select = SelectSettings {
        default_filter: Some("package(alpha)".to_owned()),
        ..expressions(&["test(=parse)"])
    };
    assert_eq!(selected(&select), ["alpha parse", "alpha::api parse"]);
    let ignoring = SelectSettings { ignore_default_filter: true, ..select.clone() };
    assert_eq!(selected(&ignoring).len(), 3);
    let complement =
        SelectSettings { filtersets: strings(&["test(=parse) - default()"]), ..ignoring };
    assert_eq!(selected(&complement), ["beta parse"]);

    let filter = Filter::new(&select, METADATA).unwrap();
    let case = |name| ListedCase { name: TestName::new(name), ignored: false };
    let [alpha, _, beta] = binaries();
    assert_eq!(filter.decide(&beta, &case("parse")), Err(SkipReason::DefaultFilter));
    assert_eq!(filter.decide(&alpha, &case("render")), Err(SkipReason::Filter));
    assert_eq!(filter.wants_binary(&beta), Some(false));
    assert_eq!(filter.wants_binary(&alpha), None);
}

#[test]
fn metadata_are_read_only_for_expressions() {
    assert!(Filter::new(&names(&["x"]), "no JSON").is_ok());
    let failure = Filter::new(&expressions(&["all()"]), "no JSON").unwrap_err();
    assert_eq!(failure.code, ExitCode::MetadataFailed);
}

fn refusal(select: &SelectSettings) -> String {
    let failure = Filter::new(select, METADATA).unwrap_err();
    assert_eq!(failure.code, ExitCode::InvalidFilterset);
    failure.what
}

#[test]
fn a_wrong_filterset_is_told_with_the_place() {
    let wrong = [
        "test(a) and package(gamma)",
        "test(/ü(/)",
        "test(a) AND test(b)",
        "",
        "group(mine)",
        "all()\n or binary(nope)",
    ];
    let mut told: Vec<String> = wrong.map(|text| refusal(&expressions(&[text]))).into();
    let default_filter = Some("default()".to_owned());
    told.push(refusal(&SelectSettings { default_filter, ..SelectSettings::default() }));
    insta::assert_snapshot!(told.join("\n\n"), @r"
    invalid filterset `test(a) and package(gamma)`
      operator didn't match any packages
        test(a) and package(gamma)
                            ^^^^^ no packages matched this

    invalid filterset `test(/ü(/)`
      invalid regex
        test(/ü(/)
               ^ unclosed group

    invalid filterset `test(a) AND test(b)`
      invalid AND operator
        test(a) AND test(b)
                ^^^ expected `&` or `and`

    invalid filterset ``
      expected expression

        ^ missing expression

    invalid filterset `group(mine)`
      operator didn't match any test groups
        group(mine)
              ^^^^ no test groups matched this

    invalid filterset `all()
     or binary(nope)`
      operator didn't match any binary names
         or binary(nope)
                   ^^^^ no binary names matched this

    invalid default-filter `default()`
      predicate not allowed in `default-filter` expressions
        default()
        ^^^^^^^^^ default() causes infinite recursion
    ");
}

#[test]
fn absurd_nesting_is_refused_and_long_unions_are_not() {
    for (open, close) in [("(", ")"), ("not ", ""), ("!", ""), ("not (", ")"), ("(", "")] {
        let deep = format!("{}all(){}", open.repeat(20_000), close.repeat(20_000));
        assert!(refusal(&expressions(&[&deep])).contains("levels deep"), "{open}");
    }
    let long = vec!["not test(=parse)"; 3_000].join(" and ");
    assert_eq!(selected(&expressions(&[&long])).len(), 6);
}

/// The command that reproduces a failure selects its test and no other.
#[test]
fn any_name_can_be_selected_by_its_literal() {
    let binary = &binaries()[0];
    for name in ["plain", "add(1, 2)", r"back\slash", "bell\u{7}", "tab\t", "ünï çödé", "/x/", "#1"]
    {
        let literal = literal(name);
        let filtersets = vec![format!("binary_id(=alpha) & test(={literal})")];
        let select = SelectSettings { filtersets, ..SelectSettings::default() };
        let filter = Filter::new(&select, METADATA).unwrap();
        let decide = |name: &str| {
            filter.decide(binary, &ListedCase { name: TestName::new(name), ignored: false }).is_ok()
        };
        assert!(decide(name), "{name:?} by {literal}");
        assert!(!decide(&format!("{name}x")), "{name:?}x by {literal}");
    }
}
