//! The fleet as a table, or as JSON.

use distest_worker::hello::Hello;
use distest_worker::protocol::{Refusal, WorkerStatus};
use distest_worker::sandbox::level::Level;
use serde_json::{Value, json};

use crate::fleet::{Said, Trouble, Visited};
use distest_worker::shown;

/// Characters that are shown of a name, and of a reason or a hint.
const PLAIN_CHARS_MAX: usize = 300;
const SENTENCE_CHARS_MAX: usize = 1000;

/// Sessions that people are shown of one worker, and programs: as many as one serves.
const SESSIONS_SHOWN_MAX: usize = 16;
const SESSIONS_MAX: usize = 1024;

/// One JSON object in a line, with every worker.
pub(super) fn json(visited: &[Visited]) -> String {
    let workers: Vec<Value> = visited.iter().map(json_of).collect();
    format!("{}\n", json!({ "workers": workers }))
}

/// Whether a worker is one of those that are looked for: any of the names, all of the labels.
pub(super) fn is_meant(visited: &Visited, names: &[String], labels: &[String]) -> bool {
    let named = names.is_empty() || names.iter().any(|name| visited.names.include(name));
    named
        && labels.iter().all(|wanted| {
            let Ok(Said { hello, .. }) = &visited.said else { return false };
            match wanted.split_once('=') {
                Some((key, value)) => hello.labels.get(key).is_some_and(|it| it == value),
                None => hello.labels.contains_key(wanted),
            }
        })
}

fn json_of(visited: &Visited) -> Value {
    let Visited { names, address, source, said, asked: _ } = visited;
    let mut value = json!({
        "name": names.shown(),
        "alias": names.other(),
        "address": address,
        "source": source.word(),
    });
    let more = match said {
        Err(trouble) => json!({ "usable": false, "reason": trouble.reason, "hint": trouble.hint }),
        Ok(Said { hello, status, .. }) => {
            let mut more = json!({
                "usable": true,
                "target": hello.target,
                "version": hello.software,
                "labels": hello.labels,
                "sandbox": level(hello).map(Level::name),
                "slots": hello.slots,
                "tools": hello.tools,
            });
            merge(&mut more, status_json(status));
            if let Some(Refusal { message, hint, .. }) = &hello.refusal {
                merge(&mut more, json!({ "usable": false, "reason": message, "hint": hint }));
            }
            more
        }
    };
    merge(&mut value, more);
    value
}

fn status_json(status: &Result<WorkerStatus, Trouble>) -> Value {
    let status = match status {
        Ok(status) => status,
        Err(trouble) => return json!({ "status_reason": trouble.reason }),
    };
    let sessions = status.sessions.iter().take(SESSIONS_MAX).map(|session| {
        json!({
            "client": session.client,
            "run": session.run,
            "running": session.running,
            "queued": session.queued,
        })
    });
    json!({
        "usable": !status.draining && status.paused.is_empty(),
        "reason": match status.draining {
            true => Some(DRAINS),
            false => Some(status.paused.as_str()).filter(|why| !why.is_empty()),
        },
        "used": status.used,
        "free": status.slots.saturating_sub(status.used),
        "draining": status.draining,
        "short_of_memory": status.short_of_memory,
        "one_client": status.one_client,
        "store_bytes": status.store_bytes,
        "store_bytes_max": status.store_bytes_max,
        "sandbox_reason": Some(&status.sandbox_reason).filter(|reason| !reason.is_empty()),
        "sandbox_hint": status.sandbox_hint,
        "sessions": sessions.collect::<Vec<_>>(),
    })
}

const ONE_CLIENT: &str = "serves one client only: its sandboxes hide no client's files from another's \
                          tests (`serve --trust-clients` serves all that it lets in)";

const DRAINS: &str = "it finishes what runs and takes nothing more";

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn level(hello: &Hello) -> Option<Level> {
    Level::ALL.into_iter().find(|level| level.number() == hello.sandbox_level)
}

const HEADINGS: [&str; 9] =
    ["NAME", "USED", "SLOTS", "TARGET", "SANDBOX", "VERSION", "STORE", "LABELS", "ADDRESS"];

/// A table for people, with what is to be said of each worker below its line. So many others were
/// not looked for.
pub(super) fn human(visited: &[Visited], others: usize) -> String {
    if visited.is_empty() && others > 0 {
        return format!(
            "no worker has these names and labels: leave out --on and --label to see all \
             ({others})\n"
        );
    }
    if visited.is_empty() {
        return "no workers: name some with --worker, DISTEST_WORKERS or in the configuration, or \
                take an invitation with `cargo distest workers add`\n"
            .to_owned();
    }
    let rows: Vec<[String; 9]> = visited.iter().map(cells).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&HEADINGS.map(str::to_owned), &widths);
    for (row, visited) in rows.iter().zip(visited) {
        text += &line(row, &widths);
        for note in notes(visited) {
            text += &format!("  {note}\n");
        }
    }
    text
}

fn line(cells: &[String; 9], widths: &[usize; 9]) -> String {
    let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
}

fn cells(visited: &Visited) -> [String; 9] {
    let none = || "-".to_owned();
    let Visited { names, address, source, said, asked: _ } = visited;
    let name = match (names.shown(), names.other()) {
        ("", _) => none(),
        (name, Some(alias)) => format!("{} ({})", plain(name), plain(alias)),
        (name, None) => plain(name),
    };
    let address = format!("{} ({})", plain(address), source.word());
    let Ok(Said { hello, status, .. }) = said else {
        return [name, none(), none(), none(), none(), none(), none(), none(), address];
    };
    let status = status.as_ref().ok();
    let labels = hello.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let labels = labels.collect::<Vec<_>>().join(",");
    [
        name,
        status.map_or_else(none, |status| status.used.to_string()),
        hello.slots.to_string(),
        plain(&hello.target),
        level(hello).map_or_else(none, |level| level.name().to_owned()),
        plain(&hello.software),
        status.map_or_else(none, |status| size(status.store_bytes)),
        if labels.is_empty() { none() } else { plain(&labels) },
        address,
    ]
}

/// What is to be said beside the table.
fn notes(visited: &Visited) -> Vec<String> {
    let of_trouble = |what: &str, trouble: &Trouble| {
        let hint = trouble.hint.iter().map(|hint| format!("  hint: {}", sentence(hint)));
        let told = format!("{what}{}", sentence(&trouble.reason));
        [told].into_iter().chain(hint).collect::<Vec<_>>()
    };
    let Said { hello, status, .. } = match &visited.said {
        // What is started for each run is no trouble.
        Err(trouble) if !visited.asked && trouble.hint.is_none() => return of_trouble("", trouble),
        Err(trouble) => return of_trouble("can't be used: ", trouble),
        Ok(said) => said,
    };
    let mut notes = Vec::new();
    if let Some(Refusal { message, hint, .. }) = hello.refusal.clone() {
        notes.extend(of_trouble("can't be used: ", &Trouble { reason: message, hint }));
    }
    let status = match status {
        Ok(status) => status,
        Err(trouble) => {
            notes.extend(of_trouble("", trouble));
            return notes;
        }
    };
    if status.draining {
        notes.push(DRAINS.to_owned());
    }
    if status.short_of_memory {
        notes.push("is short of memory: runs one test at a time".to_owned());
    }
    if !status.paused.is_empty() {
        notes.push(format!("takes no tests for now: {}", plain(&status.paused)));
    }
    if status.one_client {
        notes.push(ONE_CLIENT.to_owned());
    }
    for session in status.sessions.iter().take(SESSIONS_SHOWN_MAX) {
        notes.push(format!(
            "{}: {} running, {} queued (run {})",
            plain(&session.client),
            session.running,
            session.queued,
            plain(&session.run)
        ));
    }
    if let more @ 1.. = status.sessions.len().saturating_sub(SESSIONS_SHOWN_MAX) {
        notes.push(format!("and {more} more sessions"));
    }
    if !status.sandbox_reason.is_empty() {
        let (reason, hint) = (status.sandbox_reason.clone(), status.sandbox_hint.clone());
        notes.extend(of_trouble("no better sandbox: ", &Trouble { reason, hint }));
    }
    notes
}

/// Foreign text, safe to print: a name, or something else that is short.
pub(super) fn plain(text: &str) -> String {
    shown::word(text).chars().take(PLAIN_CHARS_MAX).collect()
}

/// The same for what is said, or is to be done.
pub(super) fn sentence(text: &str) -> String {
    shown::word(text).chars().take(SENTENCE_CHARS_MAX).collect()
}

fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use distest_worker::hello::Role;
    use distest_worker::protocol::{Labels, SessionStatus};

    use super::*;
    use crate::fleet::{Names, Source};

    fn visited() -> Vec<Visited> {
        let hello = Hello {
            target: "x86_64-unknown-linux-gnu".to_owned(),
            software: "0.1.0".to_owned(),
            labels: Labels::from([("gpu".to_owned(), "none".to_owned())]),
            sandbox_level: Level::Namespaces.number(),
            slots: 8,
            name: "big".to_owned(),
            role: Role::Worker,
            ..Hello::default()
        };
        let session = SessionStatus {
            client: "alice@\u{1b}[2Jhost".to_owned(),
            run: "20261122T101500Z-1a2b3c4d".to_owned(),
            running: 3,
            queued: 2,
        };
        let status = WorkerStatus {
            slots: 8,
            used: 3,
            store_bytes: 3 << 29,
            store_bytes_max: 10 << 30,
            sessions: vec![session],
            ..WorkerStatus::default()
        };
        let hidden = Trouble { reason: "this key may not look".to_owned(), hint: None };
        let trouble = Trouble {
            reason: "nobody listens there".to_owned(),
            hint: Some("start it".to_owned()),
        };
        let named = |name: &str, address: &str, source, said| Visited {
            names: Names { own: name.to_owned(), ..Names::default() },
            address: address.to_owned(),
            source,
            said,
            asked: true,
        };
        let said = |hello: &Hello, status| {
            Ok(Said { hello: hello.clone(), status, clock: None, lacks: Vec::new() })
        };
        let other = Hello { name: "other".to_owned(), labels: Labels::new(), ..hello.clone() };
        vec![
            named("big", "tcp://10.0.0.7:7777", Source::Registry, said(&hello, Ok(status))),
            named("other", "tcp://10.0.0.8:7777", Source::Known, said(&other, Err(hidden))),
            named("", "ssh://build", Source::Address, Err(trouble)),
        ]
    }

    #[test]
    fn people_see_a_table() {
        insta::assert_snapshot!(human(&visited(), 0));
    }

    #[test]
    fn programs_see_all_of_it() {
        let value: Value = serde_json::from_str(&json(&visited())).unwrap();
        let [big, other, ssh] = &value["workers"].as_array().unwrap()[..] else {
            panic!("{value}")
        };
        assert_eq!((&big["used"], &big["free"], &big["slots"]), (&json!(3), &json!(5), &json!(8)));
        assert_eq!((&big["usable"], &big["source"]), (&json!(true), &json!("registry")));
        assert_eq!(big["sessions"][0]["queued"], json!(2));
        assert_eq!(other["status_reason"], json!("this key may not look"));
        assert_eq!((&ssh["usable"], &ssh["hint"]), (&json!(false), &json!("start it")));
    }

    #[test]
    fn of_many_sessions_some_are_shown_and_how_many_more() {
        let mut all = visited();
        let Ok(Said { status: Ok(status), .. }) = &mut all[0].said else { panic!("it says") };
        let session = status.sessions[0].clone();
        status.sessions = vec![session; 80_000];
        let text = human(&all, 0);
        assert_eq!(text.matches(" queued (run ").count(), SESSIONS_SHOWN_MAX);
        assert!(text.contains(&format!("and {} more sessions", 80_000 - SESSIONS_SHOWN_MAX)));
        let value: Value = serde_json::from_str(&json(&all)).unwrap();
        let shown = value["workers"][0]["sessions"].as_array().unwrap().len();
        assert_eq!(shown, SESSIONS_MAX);
    }

    #[test]
    fn names_and_labels_find_workers() {
        let mut all = visited();
        all[1].names.alias = Some("mine".to_owned());
        let found = |names: &[&str], labels: &[&str]| -> Vec<String> {
            let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
            let (names, labels) = (owned(names), owned(labels));
            let found = all.iter().filter(|it| is_meant(it, &names, &labels));
            found.map(|it| it.names.shown().to_owned()).collect()
        };
        assert_eq!(found(&[], &[]).len(), 3);
        assert_eq!(found(&["big", "mine"], &[]), ["big", "other"]);
        for labels in [&["gpu"][..], &["gpu=none"], &["gpu", "gpu=none"]] {
            assert_eq!(found(&[], labels), ["big"], "{labels:?}");
        }
        for labels in [&["gpu=yes"][..], &["gpu=none", "os"]] {
            assert!(found(&[], labels).is_empty(), "{labels:?}");
        }
        assert!(
            human(&[], 3).contains("--label to see all (3)") && human(&[], 0).contains("--worker")
        );
        assert!(human(&all, 0).contains("other (mine)"));
        assert!(!human(&all, 0).contains("serves one client only"));
        let status = all[0].said.as_mut().map(|said| said.status.as_mut());
        status.unwrap().unwrap().one_client = true;
        assert!(human(&all, 0).contains("serves one client only"));
    }
}
