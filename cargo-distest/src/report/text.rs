//! Makes what tests write, and what we measure, fit to be read. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use distest_worker::shown;

use crate::event::{CancelReason, CapturedOutput};

/// Which escape sequences survive [`clean`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escapes {
    /// Colours and the like (SGR), which move nothing.
    Colors,
    /// None.
    None,
}

/// What can be shown of an output, in order.
pub(super) enum Part<'a> {
    /// Bytes as the test wrote them.
    Text(&'a [u8]),
    /// Instead of the bytes in the middle: how many, and where all of it lies.
    LeftOut(String),
}

/// An output within `bytes_max`: everything, or its beginning, a note, and its end.
pub(super) fn parts(output: &CapturedOutput, bytes_max: usize) -> Vec<Part<'_>> {
    let (mut head, mut tail) = (&output.head[..], &output.tail[..]);
    if head.len() + tail.len() > bytes_max {
        if tail.is_empty() {
            (head, tail) = head.split_at(head.len() - bytes_max / 2);
        }
        head = &head[..head.len().min(bytes_max - tail.len().min(bytes_max / 2))];
        tail = &tail[tail.len() - tail.len().min(bytes_max - head.len())..];
    }
    let left_out = output.total.saturating_sub((head.len() + tail.len()) as u64);
    let mut parts = vec![Part::Text(head)];
    if left_out > 0 {
        let place = output.spill.as_ref().map(|path| format!("; all of it in {}", path.display()));
        parts.push(Part::LeftOut(format!(
            "[{} left out{}]",
            bytes(left_out),
            place.unwrap_or_default()
        )));
    }
    parts.push(Part::Text(tail));
    parts
}

/// Text that does nothing to a terminal and is legal in XML 1.0: escape sequences other than
/// `escapes` are removed, a carriage return ends a line, what turns text around is written out, and
/// any other control character, and whatever isn't UTF-8, becomes U+FFFD.
pub(super) fn clean(raw: &[u8], escapes: Escapes) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut clean = String::with_capacity(text.len());
    let mut rest = &*text;
    // Most of a text needs nothing: copy up to the next character that does.
    while let Some(at) = rest.find(needs_care) {
        clean.push_str(&rest[..at]);
        let mut chars = rest[at..].chars();
        let special = chars.next();
        rest = chars.as_str();
        match special {
            Some('\x1b') => rest = escape_sequence(rest, escapes, &mut clean),
            Some('\u{9b}') => rest = control_sequence(rest, escapes, &mut clean),
            Some('\r') if rest.starts_with('\n') => {}
            Some('\r') => clean.push('\n'),
            // It would turn around what is read.
            Some(other) if shown::acts(other) && !other.is_control() => {
                clean.extend(other.escape_unicode());
            }
            _ => clean.push(char::REPLACEMENT_CHARACTER),
        }
    }
    clean.push_str(rest);
    clean
}

/// `0.04 s`, `2.9 s`, `11 s`, `3 min 20 s`.
pub(super) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.095 {
        format!("{seconds:.2} s")
    } else if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < 99.5 {
        format!("{seconds:.0} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {} s", whole / 60, whole % 60)
    }
}

/// `17 bytes`, `4 kB`, `199 MB`: decimal, rounded.
pub(super) fn bytes(count: u64) -> String {
    match count {
        1 => "1 byte".to_owned(),
        0..10_000 => format!("{count} bytes"),
        10_000..10_000_000 => format!("{} kB", (count + 500) / 1_000),
        10_000_000..10_000_000_000 => format!("{} MB", (count + 500_000) / 1_000_000),
        _ => format!("{} GB", (count + 500_000_000) / 1_000_000_000),
    }
}

/// `1 test`, `2 tests`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A signal's name without `SIG`, as nextest prints it; none if it has no name.
pub(super) fn signal(number: i32) -> Option<&'static str> {
    let signal = nix::sys::signal::Signal::try_from(number).ok()?;
    signal.as_str().strip_prefix("SIG")
}

/// Why no more tests were started, in words.
pub(super) fn because(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::TestFailure => "test failure",
        CancelReason::Interrupt => "interrupt",
        CancelReason::GlobalTimeout => "the global timeout",
        CancelReason::FleetLost => "the lack of a worker",
        CancelReason::Unplaceable => "a test that no worker may run",
        CancelReason::Failure => "an error",
    }
}

fn needs_care(c: char) -> bool {
    // U+FFFE and U+FFFF are no characters, and not allowed in XML.
    (shown::acts(c) && c != '\n' && c != '\t') || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// Reads what follows an ESC (ECMA-48); returns what follows the sequence.
fn escape_sequence<'a>(rest: &'a str, escapes: Escapes, clean: &mut String) -> &'a str {
    let mut chars = rest.chars();
    match chars.next() {
        Some('[') => control_sequence(chars.as_str(), escapes, clean),
        // Strings for the terminal (titles, links, images): up to BEL or ESC \, or the line's end.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            let string = chars.as_str();
            let end = string.find(['\x07', '\x1b', '\n']).unwrap_or(string.len());
            let after = &string[end..];
            after.strip_prefix('\x07').or(after.strip_prefix("\x1b\\")).unwrap_or(after)
        }
        Some(' '..='/') => {
            let after = chars.as_str().trim_start_matches(|c| matches!(c, ' '..='/'));
            let is_final = after.starts_with(|c| matches!(c, '0'..='~'));
            if is_final { &after[1..] } else { after }
        }
        Some('0'..='~') => chars.as_str(),
        // No sequence: the ESC alone goes.
        _ => rest,
    }
}

/// Reads what follows ESC [; returns what follows the sequence.
fn control_sequence<'a>(rest: &'a str, escapes: Escapes, clean: &mut String) -> &'a str {
    let end = rest.find(|c| !matches!(c, ' '..='?')).unwrap_or(rest.len());
    let (parameters, after) = rest.split_at(end);
    if !after.starts_with(|c| matches!(c, '@'..='~')) {
        return after;
    }
    let (last, after) = after.split_at(1);
    let plain = parameters.chars().all(|c| matches!(c, '0'..=';'));
    if last == "m" && plain && escapes == Escapes::Colors {
        // Infallible: writing to a String.
        let _ = write!(clean, "\x1b[{parameters}m");
    }
    after
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn check(raw: &[u8], plain: &str, colored: &str) {
        assert_eq!(clean(raw, Escapes::None), plain);
        assert_eq!(clean(raw, Escapes::Colors), colored);
    }

    #[test]
    fn keeps_colours_only_where_they_are_wanted() {
        check(b"a\x1b[1;31mred\x1b[0m\n", "ared\n", "a\x1b[1;31mred\x1b[0m\n");
    }

    #[test]
    fn removes_what_moves_the_cursor_or_talks_to_the_terminal() {
        check(b"\x1b[2J\x1b[10;1Hx\x1b[?25ly\x1b(Bz", "xyz", "xyz");
        check(b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b]0;open\nc", "ab\nc", "ab\nc");
        check("\u{9b}31mx\x1b".as_bytes(), "x", "\x1b[31mx");
    }

    #[test]
    fn control_characters_and_broken_utf8_become_visible() {
        check(
            b"a\0b\x08c\xffd\r\ne\rf\tg",
            "a\u{fffd}b\u{fffd}c\u{fffd}d\ne\nf\tg",
            "a\u{fffd}b\u{fffd}c\u{fffd}d\ne\nf\tg",
        );
    }

    #[test]
    fn what_turns_text_around_is_written_out() {
        let expected = r"a\u{202e}b\u{2066}c";
        check("a\u{202e}b\u{2066}c".as_bytes(), expected, expected);
    }

    proptest! {
        #[test]
        fn nothing_that_needs_care_is_left(raw: Vec<u8>) {
            prop_assert!(!clean(&raw, Escapes::None).contains(needs_care));
        }
    }

    fn shown(output: &CapturedOutput, bytes_max: usize) -> String {
        let show = |part| match part {
            Part::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
            Part::LeftOut(note) => note,
        };
        parts(output, bytes_max).into_iter().map(show).collect()
    }

    #[test]
    fn a_large_output_is_shown_from_both_ends() {
        let mut output =
            CapturedOutput { head: "0123456789".into(), total: 10, ..Default::default() };
        assert_eq!(shown(&output, 10), "0123456789");
        assert_eq!(shown(&output, 4), "01[6 bytes left out]89");
        output.tail = "abcdefghij".into();
        output.total = 199_000_020;
        output.spill = Some(PathBuf::from("/tmp/out"));
        assert_eq!(
            shown(&output, 20),
            "0123456789[199 MB left out; all of it in /tmp/out]abcdefghij"
        );
        assert_eq!(shown(&output, 4), "01[199 MB left out; all of it in /tmp/out]ij");
        assert_eq!(shown(&output, 14), "0123456[199 MB left out; all of it in /tmp/out]defghij");
    }

    #[test]
    fn figures_are_rounded_for_people() {
        let shown =
            [0.0, 0.04, 0.4, 2.94, 11.2, 200.4].map(|s| seconds(Duration::from_secs_f64(s)));
        assert_eq!(shown, ["0.00 s", "0.04 s", "0.4 s", "2.9 s", "11 s", "3 min 20 s"]);
        assert_eq!(
            [1, 999, 12_345, 199_400_000].map(bytes),
            ["1 byte", "999 bytes", "12 kB", "199 MB"]
        );
    }
}
