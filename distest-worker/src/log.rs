//! What a worker tells its operator: a line of text, or a JSON object a line.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::shown;

/// Whether this process writes JSON. A log is one for the whole process, as its stderr is.
static JSON: AtomicBool = AtomicBool::new(false);

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Something to tell.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Line {
    /// In words.
    pub message: String,
    /// Where the peer is that it is about: `IP:PORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What the worker calls the client that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The run that it is about, by its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
}

/// A line with its time, in seconds since 1970.
#[derive(Serialize)]
struct Timed<'a> {
    time: f64,
    #[serde(flatten)]
    line: &'a Line,
}

impl Format {
    /// From now on.
    pub fn begin(self) {
        JSON.store(self == Self::Json, Ordering::Relaxed);
    }

    fn now() -> Self {
        if JSON.load(Ordering::Relaxed) { Self::Json } else { Self::Text }
    }

    fn write(self, line: &Line, time: f64) -> String {
        match self {
            // Only numbers and strings: it can always be written.
            Self::Json => serde_json::to_string(&Timed { time, line }).unwrap_or_default(),
            Self::Text => {
                let Line { message, peer, client, run } = line;
                let about = [("", peer), ("", client), ("run ", run)];
                let about = about.into_iter().filter_map(|(what, which)| {
                    Some(format!("{what}{}: ", shown::word(which.as_deref()?)))
                });
                // Only what begins a line here begins one in the log.
                about.collect::<String>() + &shown::lines(message).replace('\n', "\n  ")
            }
        }
    }
}

impl Line {
    /// Writes it to stderr.
    pub fn tell(&self) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = Format::now().write(self, time.as_secs_f64());
        // A worker whose stderr is closed has nobody to tell.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

impl From<String> for Line {
    fn from(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_what_it_is_about_in_both_formats() {
        let line = Line {
            message: "over\n\"ok\"".to_owned(),
            peer: Some("[::1]:5".to_owned()),
            client: Some("alice".to_owned()),
            run: Some("r-1".to_owned()),
        };
        assert_eq!(
            Format::Json.write(&line, 1.5),
            r#"{"time":1.5,"message":"over\n\"ok\"","peer":"[::1]:5","client":"alice","run":"r-1"}"#
        );
        assert_eq!(Format::Text.write(&line, 1.5), "[::1]:5: alice: run r-1: over\n  \"ok\"");
        let run = Some("\u{202e}r\n\x1b[2J".to_owned());
        let line = Line { run, message: "gone \x07".to_owned(), ..Line::default() };
        assert_eq!(
            Format::Text.write(&line, 0.0),
            r"run \u{202e}r\n\u{1b}[2J: gone \u{7}",
            "what others say does nothing to a terminal"
        );
        let line = Line::from("ready".to_owned());
        assert_eq!(Format::Json.write(&line, 0.0), r#"{"time":0.0,"message":"ready"}"#);
        assert_eq!(Format::Text.write(&line, 0.0), "ready");
    }
}
