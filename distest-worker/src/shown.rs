//! Words of others among ours: names, reasons and hints that somebody else has chosen. Pure.
//!
//! What a terminal would act on is written out as Rust writes it (`\n`, `\u{202e}`): control
//! characters, and those that turn around the direction in which text is read, so that a line shows
//! what it says.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A name, or anything else that belongs in one line.
pub fn word(text: &str) -> Cow<'_, str> {
    escaped(text, false)
}

/// Text that may have several lines. Colours are taken out.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, true)
}

fn escaped(text: &str, several: bool) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let acts = |c: char| acts(c) && !(several && matches!(c, '\n' | '\t'));
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find(acts) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        if several && let Some(behind) = behind_color(rest) {
            rest = behind;
            continue;
        }
        let mut characters = rest.chars();
        if let Some(character) = characters.next() {
            match character {
                '\n' | '\r' | '\t' => shown.extend(character.escape_default()),
                other => _ = write!(shown, "{}", other.escape_unicode()),
            }
        }
        rest = characters.as_str();
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// Whether it does something to a terminal beside being shown, or to what is shown around it.
pub fn acts(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// What follows a sequence that does no more than change colours.
fn behind_color(text: &str) -> Option<&str> {
    let sequence = text.strip_prefix("\x1b[")?;
    let end = sequence.find(|c: char| !(c.is_ascii_digit() || matches!(c, ';' | ':')))?;
    sequence[end..].strip_prefix('m')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_written_out() {
        for (text, in_a_line, in_lines) in [
            ("tests::größe \u{5d0}", "tests::größe \u{5d0}", "tests::größe \u{5d0}"),
            ("a\nb\tc\r", r"a\nb\tc\r", "a\nb\tc\\r"),
            ("\u{202e}fdp.exe\u{2069}", r"\u{202e}fdp.exe\u{2069}", r"\u{202e}fdp.exe\u{2069}"),
            ("\x1b[1;31mred\x1b[0m", r"\u{1b}[1;31mred\u{1b}[0m", "red"),
            (
                "\x1b]0;title\x07\x1b[2J",
                r"\u{1b}]0;title\u{7}\u{1b}[2J",
                r"\u{1b}]0;title\u{7}\u{1b}[2J",
            ),
            ("\u{9b}2J", r"\u{9b}2J", r"\u{9b}2J"),
        ] {
            assert_eq!(word(text), in_a_line);
            assert_eq!(lines(text), in_lines);
        }
    }
}
