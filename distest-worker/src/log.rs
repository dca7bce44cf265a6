//! What a worker tells its operator: a line of text, or a JSON object a line.
//!
//! One event is one [`Line`]: what is to be done about it, and whom it concerns, are fields of its.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::repeats::{Again, Repeats};
use crate::shown;

/// Whether this process writes JSON. A log is one for the whole process, as its stderr is.
static JSON: AtomicBool = AtomicBool::new(false);

/// Runs of a client that are told one by one within a minute.
const RUNS_MAX: u64 = 30;
/// Clients of which runs are told within a minute.
const CLIENTS_MAX: usize = 1000;
/// The most characters of what others say that are told.
const WORDS_MAX: usize = 200;

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much something matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What happens where all is well.
    #[default]
    Info,
    /// Something is less than it could be, or somebody was turned away.
    Warning,
    /// This process ends for it.
    Error,
}

/// Something to tell.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// In words.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
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

/// Why something could not be done, before anybody is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Complaint {
    /// In words.
    pub why: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Where lines go. Clones share it.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    sink: Box<dyn Fn(&Line) + Send + Sync>,
    repeats: Mutex<Repeats<Line>>,
    /// By what the worker calls the client.
    runs: Mutex<Repeats<String>>,
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
                let Line { level, message, hint, peer, client, run } = line;
                let level = match level {
                    Level::Info => "",
                    Level::Warning => "warning: ",
                    Level::Error => "error: ",
                };
                let about = [("", peer), ("", client), ("run ", run)];
                let about = about.into_iter().filter_map(|(what, which)| {
                    Some(format!("{what}{}: ", shown::word(which.as_deref()?)))
                });
                let hint = hint.iter().map(|hint| format!("\nhint: {hint}"));
                let said = message.clone() + &hint.collect::<String>();
                // Only what begins a line here begins one in the log.
                let said = shown::lines(&said).replace('\n', "\n  ");
                about.fold(level.to_owned(), |text, about| text + &about) + &said
            }
        }
    }
}

impl Log {
    /// To stderr, as [`Format::begin`] said.
    pub fn stderr() -> Self {
        Self::to(Line::tell)
    }

    /// To somebody who listens.
    pub fn to(sink: impl Fn(&Line) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            sink: Box::new(sink),
            repeats: Mutex::default(),
            runs: Mutex::new(Repeats::new(RUNS_MAX, CLIENTS_MAX)),
        }))
    }

    /// Tells it.
    pub fn tell(&self, line: impl Into<Line>) {
        (self.0.sink)(&line.into());
    }

    /// Tells what others can cause as often as they like: the first at once, and how often it came
    /// again by [`Log::catch_up`]. It is told as `what` and `why`; what follows a colon in that may be
    /// the other side's own words, so all that is alike before is of one kind.
    pub fn often(&self, what: &str, why: &str, about: Line) {
        let known = why.split_once(": ").map_or(why, |(known, _)| known);
        let line = |why: &str| Line { message: format!("{what}{}", brief(why)), ..about.clone() };
        let is_new = locked(&self.0.repeats).happens(Instant::now(), line(known).of_any_port());
        if is_new {
            self.tell(line(why));
        }
    }

    /// Tells that a run of this client begins, unless too many did lately; those are summed up by
    /// [`Log::catch_up`]. Answers whether it did.
    pub fn begins(&self, client: &str, line: Line) -> bool {
        let is_told = locked(&self.0.runs).happens(Instant::now(), client.to_owned());
        if is_told {
            self.tell(line);
        }
        is_told
    }

    /// Tells what was not told before and is due.
    pub fn catch_up(&self) {
        let now = Instant::now();
        let due = locked(&self.0.repeats).due(now);
        due.into_iter().for_each(|again| self.tell(again));
        let due = locked(&self.0.runs).due(now);
        due.into_iter().for_each(|again| self.tell(more_runs(again)));
    }
}

/// What others say, or as much of it as a log has room for.
pub fn brief(words: &str) -> String {
    match words.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.to_owned(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn more_runs(again: Again<String>) -> Line {
    match again {
        Again::Of(client, more) => Line {
            client: Some(client),
            ..Line::from(format!("{more} more runs began in the last minute"))
        },
        Again::OfOthers(more) => {
            Line::from(format!("{more} more runs of other clients began in the last minute"))
        }
    }
}

impl Line {
    /// A warning.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::from(message.into()) }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same of any connection from there: each has a port of its own.
    fn of_any_port(self) -> Self {
        let host = |peer: String| match peer.parse::<SocketAddr>() {
            Ok(address) => address.ip().to_string(),
            Err(_) => peer,
        };
        Self { peer: self.peer.map(host), ..self }
    }

    /// Writes it to stderr.
    pub fn tell(&self) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = Format::now().write(self, time.as_secs_f64());
        // In one piece, since others of the same stderr write, too. If it is closed there is nobody to
        // tell.
        let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
    }
}

impl From<String> for Line {
    fn from(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

impl Complaint {
    /// The same with what to do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same as the reason of something else.
    #[must_use]
    pub fn after(self, what: &str) -> Self {
        Self { why: format!("{what}: {}", self.why), ..self }
    }
}

impl From<String> for Complaint {
    fn from(why: String) -> Self {
        Self { why, hint: None }
    }
}

impl From<&str> for Complaint {
    fn from(why: &str) -> Self {
        Self::from(why.to_owned())
    }
}

impl From<io::Error> for Complaint {
    fn from(error: io::Error) -> Self {
        Self::from(error.to_string())
    }
}

impl From<Complaint> for Line {
    fn from(Complaint { why, hint }: Complaint) -> Self {
        Self { hint, ..Self::from(why) }
    }
}

impl From<Again<Line>> for Line {
    fn from(again: Again<Self>) -> Self {
        match again {
            Again::Of(line, more) => {
                let message = format!("{}; {more} more in the last minute", line.message);
                Self { message, ..line }
            }
            Again::OfOthers(more) => Self::warning(format!(
                "{more} more connections ended in other ways in the last minute"
            )),
        }
    }
}

impl From<&str> for Line {
    fn from(message: &str) -> Self {
        Self::from(message.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_what_it_is_about_in_both_formats() {
        let line = Line {
            level: Level::Warning,
            message: "over\n\"ok\"".to_owned(),
            hint: Some("again".to_owned()),
            peer: Some("[::1]:5".to_owned()),
            client: Some("alice".to_owned()),
            run: Some("r-1".to_owned()),
        };
        assert_eq!(
            Format::Json.write(&line, 1.5),
            r#"{"time":1.5,"level":"warning","message":"over\n\"ok\"","hint":"again","peer":"[::1]:5","client":"alice","run":"r-1"}"#
        );
        assert_eq!(
            Format::Text.write(&line, 1.5),
            "warning: [::1]:5: alice: run r-1: over\n  \"ok\"\n  hint: again"
        );
        let run = Some("\u{202e}r\n\x1b[2J".to_owned());
        let line = Line { run, message: "gone \x07".to_owned(), ..Line::default() };
        assert_eq!(
            Format::Text.write(&line, 0.0),
            r"run \u{202e}r\n\u{1b}[2J: gone \u{7}",
            "what others say does nothing to a terminal"
        );
        let line = Line::from("ready");
        assert_eq!(
            Format::Json.write(&line, 0.0),
            r#"{"time":0.0,"level":"info","message":"ready"}"#
        );
        assert_eq!(Format::Text.write(&line, 0.0), "ready");
    }

    #[test]
    fn what_comes_again_from_the_same_host_is_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let log = Log::to(move |line| heard.lock().unwrap().push(line.clone()));
        let refused = |peer: &str| Line { peer: Some(peer.into()), ..Line::warning("refused: no") };
        for peer in ["10.0.0.1:1", "10.0.0.1:2", "[::1]:1", "[::1]:2", "host:1"] {
            log.often("refused: ", "no", Line { message: String::new(), ..refused(peer) });
        }
        let expected = ["10.0.0.1:1", "[::1]:1", "host:1"].map(refused);
        assert_eq!(*told.lock().unwrap(), expected);
        let again = Line::from(Again::Of(refused("10.0.0.1"), 7));
        assert_eq!(
            Format::Text.write(&again, 0.0),
            "warning: 10.0.0.1: refused: no; 7 more in the last minute"
        );
    }

    #[test]
    fn what_others_say_makes_no_new_kind_and_has_little_room() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let log = Log::to(move |line| heard.lock().unwrap().push(line.message.clone()));
        for number in 0..100 {
            let why = format!("no peer: it began with {number}{}", "x".repeat(1000));
            log.often("refused: ", &why, Line::default());
        }
        log.often("refused: ", "its key is not known", Line::default());
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 2, "{told:#?}");
        assert!(told[0].starts_with("refused: no peer: it began with 0xxx"), "{}", told[0]);
        assert!(told[0].chars().count() < 250, "{}", told[0]);
        assert_eq!(told[1], "refused: its key is not known");
    }

    #[test]
    fn of_runs_without_end_some_are_told_and_the_rest_of_that_client_summed_up() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let log = Log::to(move |line| heard.lock().unwrap().push(line.run.clone()));
        let begins = |client: &str, run: u32| {
            log.begins(client, Line { run: Some(run.to_string()), ..Line::from("begins") })
        };
        assert_eq!((0..1000).filter(|run| begins("busy", *run)).count(), 30);
        assert!(begins("other", 1000));
        let expected = (0..30).chain([1000]).map(|run: u32| Some(run.to_string()));
        assert_eq!(*told.lock().unwrap(), expected.collect::<Vec<_>>());
        assert_eq!(
            Format::Text.write(&more_runs(Again::Of("busy".to_owned(), 970)), 0.0),
            "busy: 970 more runs began in the last minute"
        );
    }
}
