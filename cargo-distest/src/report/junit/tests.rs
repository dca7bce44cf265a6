use proptest::prelude::*;
use quick_xml::events::Event;
use quick_xml::reader::Reader;

use super::*;
use crate::failure::ExitCode;
use crate::model::Verdict;
use crate::report::Reports;
use crate::report::memory::{Memory, settings, tell};
use crate::results::SummarySettings;
use crate::results::script::{Script, every_verdict, output};

fn contents() -> Contents {
    Contents { name: "a <run>".to_owned(), success_output: false, failure_output: true }
}

fn xml(script: &Script, contents: &Contents) -> String {
    String::from_utf8(render(contents, &script.summary).unwrap()).unwrap()
}

/// What an independent reader finds: each element's name with its attributes or text.
fn parse(xml: &str) -> Vec<(String, String)> {
    let mut reader = Reader::from_str(xml);
    reader.config_mut().check_end_names = true;
    let mut open = Vec::new();
    let mut found: Vec<(String, String)> = Vec::new();
    let name_of = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) => {
                let name = name_of(tag.name().as_ref());
                for attribute in tag.attributes() {
                    let attribute = attribute.unwrap();
                    let value = String::from_utf8(attribute.value.to_vec()).unwrap();
                    let value = quick_xml::escape::unescape(&value).unwrap().into_owned();
                    found.push((format!("{name}@{}", name_of(attribute.key.as_ref())), value));
                }
                found.push((name.clone(), String::new()));
                open.push(found.len() - 1);
            }
            Event::Empty(_) => {}
            Event::CData(data) => {
                let text = std::str::from_utf8(&data).unwrap();
                found[*open.last().unwrap()].1.push_str(text);
            }
            Event::Text(text) => assert!(text.iter().all(u8::is_ascii_whitespace)),
            Event::End(_) => drop(open.pop()),
            Event::Decl(_) => {}
            Event::Eof => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(open.is_empty());
    assert!(xml.chars().all(|c| matches!(c, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)), "{xml:?}");
    found
}

#[test]
fn every_verdict_has_its_element() {
    let xml = xml(&every_verdict(SummarySettings::default()), &contents());
    parse(&xml);
    // One element a line, to be read.
    insta::assert_snapshot!(xml.replace("><", ">\n<"));
}

#[test]
fn times_add_up_where_tests_take_microseconds() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let tests = ["a", "b", "c"].map(|name| s.plan("one", name, None));
    s.planned();
    for (test, micros) in tests.into_iter().zip([93, 7, 1_000]) {
        let took = Duration::from_micros(micros);
        s.attempt(test, AttemptResult::Pass, 0, |ended| ended.duration = took);
        s.verdict(test, Verdict::Pass);
    }
    s.finish(ExitCode::Passed, false);
    let told = xml(&s, &contents()).replace("><", ">\n<");
    let time =
        |line: &str| line.split_once(" time=\"")?.1.split_once('"').map(|it| it.0.to_owned());
    let of = |tag: &str| -> Vec<_> {
        told.lines().filter(|it| it.starts_with(tag)).filter_map(time).collect()
    };
    assert_eq!(of("<testcase "), ["0.000093", "0.000007", "0.001"]);
    assert_eq!(of("<testsuite "), ["0.0011"]);
}

#[test]
fn outputs_are_left_out_or_added_as_the_settings_say() {
    let script = every_verdict(SummarySettings { keep_passes: true, ..Default::default() });
    let plain = Contents { success_output: true, failure_output: false, ..contents() };
    let found = parse(&xml(&script, &plain));
    let of = |name: &str| {
        found.iter().filter(|(n, _)| n == name).map(|(_, text)| text.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of("system-out"), ["never shown\n"]);
    assert_eq!(of("system-err").len(), 3, "earlier tries are told, without their output");
}

#[test]
fn tests_that_a_cancelled_run_never_started_are_skipped() {
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.built();
    let (bad, never) = (s.plan("one", "bad", None), s.plan("one", "never", None));
    s.planned();
    s.attempt(bad, AttemptResult::Fail, 3, |_| {});
    s.verdict(bad, Verdict::Fail);
    let reason = crate::event::CancelReason::TestFailure;
    s.push(RunEvent::Cancelling { reason, running: 0 });
    s.verdict(never, Verdict::Lost);
    s.finish(ExitCode::TestsFailed, false);
    let xml = xml(&s, &contents());
    assert!(xml.contains("<skipped type=\"not run\" message=\"not run due to test failure\"/>"));
    assert!(xml.contains("tests=\"2\" skipped=\"1\" failures=\"1\" errors=\"0\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_output_and_name_can_be_parsed(
        stdout: Vec<u8>,
        stderr in "(\\]\\]>|[<&\"'>]|\\PC|[\\x00-\\x1f]){0,40}",
        name in ".{0,20}",
    ) {
        let mut s = Script::new(SummarySettings::default(), &["local"]);
        s.built();
        let test = s.plan("one", &name, None);
        s.planned();
        s.attempt(test, AttemptResult::Fail, 3, |ended| {
            ended.stdout = output(stdout.clone());
            ended.stderr = output(stderr.clone());
            ended.reason = stderr.clone();
        });
        s.verdict(test, Verdict::Fail);
        s.finish(ExitCode::TestsFailed, false);
        let found = parse(&xml(&s, &contents()));
        let text = |wanted: &str| {
            found.iter().filter(|(name, _)| name == wanted).map(|(_, text)| text.clone()).collect::<String>()
        };
        prop_assert_eq!(text("system-out"), clean(&stdout, Escapes::None));
        prop_assert_eq!(text("system-err"), clean(stderr.as_bytes(), Escapes::None));
        prop_assert_eq!(text("testcase@name"), legal(&name));
    }
}

#[test]
fn the_file_is_replaced_whole_and_its_folder_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/junit.xml");
    let junit = ReportSettings { junit: Some(path.clone()), ..settings() };
    let script = every_verdict(SummarySettings::default());
    for _ in 0..2 {
        tell(&script, &mut Junit::new(&junit).unwrap());
        parse(&fs::read_to_string(&path).unwrap());
    }
    let entries: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(entries.len(), 1, "no temporary file is left: {entries:?}");
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link.xml"));
    fs::write(&file, "x".repeat(1 << 20)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let junit = ReportSettings { junit: Some(link.clone()), ..settings() };
    tell(&every_verdict(SummarySettings::default()), &mut Junit::new(&junit).unwrap());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(!parse(&fs::read_to_string(&file).unwrap()).is_empty());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_file_that_cannot_be_written_changes_the_exit_code_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let settings = ReportSettings {
        junit: Some(folder.path().join("file/junit.xml")),
        format: crate::settings::MessageFormat::Json,
        ..settings()
    };
    let mut s = Script::new(SummarySettings::default(), &["local"]);
    s.finish(ExitCode::Passed, false);
    let memory = std::rc::Rc::new(Memory::default());
    let mut reports = Reports::new(&settings, memory.clone());
    for event in &s.events {
        reports.event(event, &s.summary);
    }
    let failure = reports.finish(&s.summary).unwrap_err();
    assert_eq!(failure.code, ExitCode::ReportFailed);
    assert!(failure.to_string().contains("file/junit.xml"), "{failure}");
    assert!(memory.stdout.borrow().contains("\"exit_code\":110"));
}
