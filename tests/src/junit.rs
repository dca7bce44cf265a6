//! Reads a JUnit file as a CI server would.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use crate::transcript::{Case, Verdict};

/// What a report says of a test.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// `classname` attribute.
    pub class: String,
    /// It has a `failure` or `error`.
    pub failed: bool,
    /// It has a `skipped`.
    pub skipped: bool,
    /// Text of its failure, error, system-out and system-err, and their messages.
    pub text: String,
}

/// What a report says of each test; the suite is the binary id.
#[derive(Debug, Default)]
pub struct Report {
    /// By suite and name.
    pub cases: BTreeMap<Case, Told>,
}

impl Report {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| format!("in {}: {error}", path.display());
        let bytes = fs::read(path).map_err(|error| told(&error))?;
        let text = String::from_utf8(bytes).map_err(|error| told(&error))?;
        if let Some(odd) = text.chars().find(|letter| !is_legal(*letter)) {
            return Err(told(&format!("{odd:?} is no legal character of XML")));
        }
        Self::parse(&text).map_err(|error| told(&error))
    }

    /// Compares it with the verdicts of the same run.
    pub fn check(&self, verdicts: &BTreeMap<Case, Verdict>) -> Result<(), String> {
        for case in self.cases.keys() {
            if !verdicts.contains_key(case) {
                return Err(format!("JUnit tells of {case}, the run does not"));
            }
        }
        for (case, verdict) in verdicts {
            match self.cases.get(case) {
                // As in cargo-nextest, what didn't run needn't be there.
                None if *verdict == Verdict::Skipped => {}
                None => return Err(format!("JUnit lacks {case}, which is {verdict:?}")),
                Some(told) => {
                    let skipped = *verdict == Verdict::Skipped;
                    if told.failed != verdict.failed() || told.skipped != skipped {
                        return Err(format!("{case} is {verdict:?}, JUnit says {told:?}"));
                    }
                    if told.class != case.binary {
                        return Err(format!("{case} has the class name {}", told.class));
                    }
                }
            }
        }
        Ok(())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut report = Self::default();
        let mut reader = Reader::from_str(text);
        let (mut suite, mut case) = (None, None::<(Case, Told)>);
        loop {
            match reader.read_event().map_err(|error| error.to_string())? {
                Event::Eof => break,
                Event::Start(tag) => match tag.name().as_ref() {
                    b"testsuite" => suite = Some(attribute(&tag, "name")?.unwrap_or_default()),
                    b"testcase" => case = Some(open(&tag, suite.as_deref())?),
                    _ => note(&tag, case.as_mut())?,
                },
                Event::Empty(tag) if tag.name().as_ref() == b"testcase" => {
                    report.insert(open(&tag, suite.as_deref())?)?;
                }
                Event::Empty(tag) => note(&tag, case.as_mut())?,
                Event::End(tag) if tag.name().as_ref() == b"testcase" => {
                    report.insert(case.take().ok_or("a test case ends that never began")?)?;
                }
                Event::Text(text) => {
                    add(case.as_mut(), &text.decode().map_err(|error| error.to_string())?);
                }
                Event::CData(text) => {
                    add(case.as_mut(), &text.decode().map_err(|error| error.to_string())?);
                }
                Event::GeneralRef(name) => {
                    if let Some(letter) =
                        name.resolve_char_ref().map_err(|error| error.to_string())?
                    {
                        if !is_legal(letter) {
                            return Err(format!("a reference to {letter:?}"));
                        }
                        add(case.as_mut(), letter.encode_utf8(&mut [0; 4]));
                    }
                }
                _ => {}
            }
        }
        Ok(report)
    }

    fn insert(&mut self, (case, told): (Case, Told)) -> Result<(), String> {
        match self.cases.insert(case.clone(), told) {
            None => Ok(()),
            Some(_) => Err(format!("{case} is there twice")),
        }
    }
}

fn open(tag: &BytesStart<'_>, suite: Option<&str>) -> Result<(Case, Told), String> {
    let suite = suite.ok_or("a test case outside any suite")?;
    let name = attribute(tag, "name")?.ok_or("a test case without name")?;
    attribute(tag, "time")?
        .and_then(|time| time.parse::<f64>().ok())
        .ok_or_else(|| format!("{name} has no time"))?;
    let class = attribute(tag, "classname")?.unwrap_or_default();
    Ok((Case::new(suite, &name), Told { class, ..Told::default() }))
}

fn note(tag: &BytesStart<'_>, case: Option<&mut (Case, Told)>) -> Result<(), String> {
    let Some((_, told)) = case else { return Ok(()) };
    match tag.name().as_ref() {
        b"failure" | b"error" => told.failed = true,
        b"skipped" => told.skipped = true,
        _ => {}
    }
    if let Some(message) = attribute(tag, "message")? {
        told.text.push_str(&message);
        told.text.push('\n');
    }
    Ok(())
}

fn add(case: Option<&mut (Case, Told)>, text: &str) {
    if let Some((_, told)) = case {
        told.text.push_str(text);
    }
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let found = tag.try_get_attribute(name).map_err(|error| error.to_string())?;
    let Some(found) = found else { return Ok(None) };
    let value =
        found.normalized_value(XmlVersion::Implicit1_0).map_err(|error| error.to_string())?;
    Ok(Some(value.into_owned()))
}

/// The characters of XML 1.0, section 2.2.
fn is_legal(letter: char) -> bool {
    matches!(letter, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_failures_and_text() {
        let report = Report::parse(
            r#"<testsuites><testsuite name="a"><testcase name="x &lt;y" classname="a" time="0.1"/>
            <testcase name="z" classname="a" time="1"><failure message="m">&amp; <![CDATA[t]]></failure></testcase>
            </testsuite></testsuites>"#,
        )
        .unwrap();
        assert!(!report.cases[&Case::new("a", "x <y")].failed);
        let failed = &report.cases[&Case::new("a", "z")];
        assert!(failed.failed && failed.text.starts_with("m\n") && failed.text.ends_with('t'));
    }

    #[test]
    fn refuses_references_to_control_characters() {
        let text =
            r#"<testsuite name="a"><testcase name="x" time="0">&#x1b;</testcase></testsuite>"#;
        assert!(Report::parse(text).unwrap_err().contains("reference"));
    }
}
