//! What is known of a binary's tests, as one text: thousands of rows would cost more to read and
//! write than quick tests to run.
//!
//! One line for each test, words apart by a space, `-` where nothing is known: mean and spread in
//! microseconds, timed runs, last verdict, when it was seen last in seconds of the Unix epoch, the
//! fields of its [`Standing`] in their order (times in microseconds), run and number of the batch
//! in which it passed in company last, and its name, which may have spaces of its own. A line that
//! can't be read says nothing of its test.

use std::collections::BTreeMap;
use std::time::Duration;

use super::lines::{Text, Words};
use super::{duration, micros, verdict};
use crate::batch::Standing;
use crate::cost::Past;
use crate::model::Verdict;

/// What is known of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) past: Past,
    pub(super) seen_s: i64,
    pub(super) standing: Standing,
    /// Run and number of a batch.
    pub(super) company: Option<(i64, u32)>,
}

impl Known {
    /// Of a test that was not heard of before.
    pub(super) fn nothing() -> Self {
        let past =
            Past { mean: Duration::ZERO, spread: Duration::ZERO, runs: 0, last: Verdict::Lost };
        Self { past, seen_s: 0, standing: Standing::default(), company: None }
    }

    fn read<'a>(words: &mut Words<'a>) -> Option<(&'a str, Self)> {
        let past = Past {
            mean: duration(words.number()?),
            spread: duration(words.number()?),
            runs: words.number()?,
            last: verdict(words.word()?),
        };
        let seen_s = words.number()?;
        let standing = Standing {
            streak: words.number()?,
            failed_before: words.flag()?,
            kept_out: words.maybe()?,
            only_in_company: words.flag()?,
            in_company: words.number()?,
            alone: words.maybe()?.map(duration),
            batched: words.maybe()?.map(duration),
            gains: words.maybe()?.map(|gains: u8| gains != 0),
            printed: words.number()?,
        };
        let company = words.maybe()?.zip(words.maybe()?);
        Some((words.rest(), Self { past, seen_s, standing, company }))
    }

    fn write(&self, name: &str, text: &mut Text) {
        let Self { past, seen_s, standing, company } = self;
        text.number(micros(past.mean));
        text.number(micros(past.spread));
        text.number(past.runs);
        text.word(past.last.as_str());
        text.number(*seen_s);
        let Standing {
            streak,
            failed_before,
            kept_out,
            only_in_company,
            in_company,
            alone,
            batched,
            gains,
            printed,
        } = standing;
        text.number(*streak);
        text.number(u8::from(*failed_before));
        text.maybe(*kept_out);
        text.number(u8::from(*only_in_company));
        text.number(*in_company);
        text.maybe(alone.map(micros));
        text.maybe(batched.map(micros));
        text.maybe(gains.map(u8::from));
        text.number(*printed);
        text.maybe(company.map(|(run, _)| run));
        text.maybe(company.map(|(_, number)| number));
        text.end_line(name);
    }
}

/// The tests of a binary by name.
pub(super) fn read(text: &str) -> impl Iterator<Item = (&str, Known)> {
    text.split('\n').filter_map(|line| Known::read(&mut Words::new(line)))
}

/// The same as one text.
pub(super) fn write(tests: &BTreeMap<&str, Known>) -> String {
    let mut text = Text::with_room_for(tests.keys().copied());
    for (name, known) in tests {
        text.begin_line();
        known.write(name, &mut text);
    }
    text.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Known {
        Known {
            past: Past {
                mean: Duration::from_micros(1_234),
                spread: Duration::from_micros(7),
                runs: 3,
                last: Verdict::Flaky,
            },
            seen_s: 1_795_342_500,
            standing: Standing {
                streak: 4,
                failed_before: true,
                kept_out: Some(5),
                only_in_company: true,
                in_company: 6,
                alone: Some(Duration::from_micros(800)),
                batched: Some(Duration::from_micros(50)),
                gains: Some(false),
                printed: 90,
            },
            company: Some((12, 2)),
        }
    }

    #[test]
    fn all_that_is_known_comes_back() {
        let tests = BTreeMap::from([("", Known::nothing()), ("a b - c", full())]);
        let text = write(&tests);
        assert_eq!(
            text,
            "0 0 0 lost 0 0 0 - 0 0 - - - 0 - - \n\
             1234 7 3 flaky 1795342500 4 1 5 1 6 800 50 0 90 12 2 a b - c"
        );
        assert_eq!(read(&text).collect::<BTreeMap<_, _>>(), tests);
    }

    #[test]
    fn a_line_that_cannot_be_read_says_nothing() {
        let good = write(&BTreeMap::from([("good", full())]));
        for bad in ["", "1 2", "-1 7 3 pass 0 -4 1 5 1 6 800 50 0 90 12 2 x", "\u{fffd} - -"] {
            let text = format!("{bad}\n{good}");
            assert_eq!(read(&text).map(|(name, _)| name).collect::<Vec<_>>(), ["good"], "{bad}");
        }
    }
}
