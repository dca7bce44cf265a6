//! Files that several tests wrote, and not the same. Pure.
//!
//! Tests that run one after the other in one sandbox see what those before them wrote, as they would
//! here: who only adds to it overwrites nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use distest_worker::digest::Digest;
use distest_worker::protocol::{WRITERS_MAX, Writer};

/// Tests that are named of one file.
const NAMED_MAX: usize = 3;
/// Tests that are kept of one file.
const LABELS_MAX: usize = 1_000;
/// Characters of a test's name that are kept.
const LABEL_CHARS_MAX: usize = 200;

/// What is known of who wrote which file.
#[derive(Debug, Default)]
pub(super) struct Disputes {
    /// Whose file is here.
    kept: BTreeMap<PathBuf, (String, Digest)>,
    disputed: BTreeMap<PathBuf, BTreeSet<String>>,
    fresh: BTreeSet<PathBuf>,
    /// Files that were deleted or changed here and then came again: by whom.
    again: BTreeMap<PathBuf, (String, Option<Digest>)>,
}

/// What a worker says of writers, within bounds.
pub(super) fn bounded(writers: &[Writer]) -> Vec<Writer> {
    let bounded = |writer: &Writer| Writer {
        label: writer.label.chars().take(LABEL_CHARS_MAX).collect(),
        ..writer.clone()
    };
    writers.iter().take(WRITERS_MAX).map(bounded).collect()
}

impl Disputes {
    /// What has come before is gone: `writers`' last one begins anew.
    pub(super) fn begin_again(&mut self, path: &Path, writers: &[Writer]) {
        self.kept.remove(path);
        if let Some(Writer { label, digest, .. }) = writers.last() {
            self.again.insert(path.to_owned(), (label.clone(), *digest));
        }
    }

    /// Those of a file's writers that wrote what has not gone since.
    fn since<'a>(&self, path: &Path, writers: &'a [Writer]) -> &'a [Writer] {
        let first = self.again.get(path).and_then(|(label, digest)| {
            writers.iter().rposition(|it| it.label == *label && it.digest == *digest)
        });
        &writers[first.unwrap_or(0)..]
    }

    /// A file with this digest has come, which `writers` wrote one after the other. `here`: it is
    /// the one that is here now.
    pub(super) fn judge(&mut self, path: &Path, writers: &[Writer], digest: Digest, here: bool) {
        let writers = self.since(path, writers);
        for pair in writers.windows(2) {
            let [before, after] = pair else { continue };
            let same = before.digest.is_some() && before.digest == after.digest;
            if !same && !after.adds && before.label != after.label {
                self.dispute(path, [&*before.label, &*after.label]);
            }
        }
        let last = writers.last().map_or("", |writer| &*writer.label);
        if let Some((label, kept)) = self.kept.get(path) {
            // It goes on with what came before: then that was looked at above.
            let earlier = writers.split_last().map_or(&[][..], |(_, earlier)| earlier);
            let continues = earlier.iter().any(|it| it.label == *label && it.digest == Some(*kept));
            if *kept != digest && !continues {
                let label = label.clone();
                self.dispute(path, [&*label, last]);
            }
        }
        if here {
            self.kept.insert(path.to_owned(), (last.to_owned(), digest));
        }
    }

    fn dispute(&mut self, path: &Path, labels: [&str; 2]) {
        let named = self.disputed.entry(path.to_owned()).or_insert_with(|| {
            self.fresh.insert(path.to_owned());
            BTreeSet::new()
        });
        for label in labels.into_iter().filter(|label| !label.is_empty()) {
            if named.len() < LABELS_MAX {
                named.insert(label.to_owned());
            }
        }
    }

    /// All of them in words.
    pub(super) fn told<'a>(&'a self, shown: impl Fn(&'a Path) -> &'a Path) -> Vec<String> {
        let tell =
            |(path, named): (&'a PathBuf, &BTreeSet<String>)| self.tell(path, shown(path), named);
        self.disputed.iter().map(tell).collect()
    }

    /// Those that were not asked for before, in words.
    pub(super) fn fresh(&mut self, shown: impl Fn(&Path) -> &Path) -> Vec<String> {
        let fresh = std::mem::take(&mut self.fresh);
        let tell = |path: &PathBuf| Some(self.tell(path, shown(path), self.disputed.get(path)?));
        fresh.iter().filter_map(tell).collect()
    }

    fn tell(&self, path: &Path, shown: &Path, named: &BTreeSet<String>) -> String {
        let shown = shown.display();
        let kept = self.kept.get(path).map_or("", |(label, _)| label);
        let names: Vec<&str> = named.iter().map(String::as_str).take(NAMED_MAX).collect();
        let who = match (&names[..], named.len().saturating_sub(NAMED_MAX)) {
            ([], _) => "several tests".to_owned(),
            ([one], _) => format!("{one} and another"),
            ([first @ .., last], 0) => format!("{} and {last}", first.join(", ")),
            (names, more) => format!("{} and {more} more", names.join(", ")),
        };
        let whose = match kept {
            "" => "one of them".to_owned(),
            kept => kept.to_owned(),
        };
        format!("{shown} was written by {who}, differently: what is here is of {whose}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files come, each with its writers (`NAME`, `+NAME` if it adds) and their contents; `!` before
    /// the first: it is not the one that is here.
    fn check(files: &[&[(&str, &str)]], expected: &[&str]) {
        let mut disputes = Disputes::default();
        let path = Path::new("/w/x.out");
        for file in files {
            let here = !file[0].0.starts_with('!');
            let writers = file.iter().map(|(name, content)| Writer {
                label: name.trim_start_matches(['!', '+']).to_owned(),
                digest: Some(Digest::of(content.as_bytes())),
                adds: name.starts_with('+'),
            });
            let digest = Digest::of(file.last().unwrap().1.as_bytes());
            disputes.judge(path, &writers.collect::<Vec<_>>(), digest, here);
        }
        assert_eq!(disputes.told(|path| path.strip_prefix("/w").unwrap()), expected);
        assert_eq!(disputes.fresh(|path| path.strip_prefix("/w").unwrap()), expected);
        assert!(disputes.fresh(|path| path).is_empty(), "told once");
    }

    #[test]
    fn who_overwrites_another_is_named() {
        check(
            &[&[("a", "1"), ("b", "2")]],
            &["x.out was written by a and b, differently: what is here is of b"],
        );
        check(
            &[&[("a", "1")], &[("b", "2")]],
            &["x.out was written by a and b, differently: what is here is of b"],
        );
        check(
            &[&[("a", "1")], &[("!b", "2")]],
            &["x.out was written by a and b, differently: what is here is of a"],
        );
        let five = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")];
        check(
            &[&five],
            &["x.out was written by a, b, c and 2 more, differently: what is here is of e"],
        );
        // A second attempt of one test, elsewhere.
        check(
            &[&[("a", "1")], &[("!a", "2")]],
            &["x.out was written by a and another, differently: what is here is of a"],
        );
        check(
            &[&[("", "1")], &[("", "2")]],
            &["x.out was written by several tests, differently: what is here is of one of them"],
        );
    }

    #[test]
    fn what_was_deleted_here_since_overwrites_nobody() {
        let mut disputes = Disputes::default();
        let path = Path::new("/w/x.out");
        let writers = [("a", "1"), ("b", "2"), ("c", "3")].map(|(label, content)| Writer {
            label: label.to_owned(),
            digest: Some(Digest::of(content.as_bytes())),
            adds: false,
        });
        let mut judge = |count: usize, again: bool| {
            let writers = &writers[..count];
            if again {
                disputes.begin_again(path, writers);
            }
            disputes.judge(path, writers, writers[count - 1].digest.unwrap(), true);
            disputes.told(|path| path.strip_prefix("/w").unwrap())
        };
        assert!(judge(1, false).is_empty());
        assert!(judge(2, true).is_empty(), "of its sandbox's earlier writers one is left");
        let told = "x.out was written by b and c, differently: what is here is of c";
        assert_eq!(judge(3, false), [told]);
    }

    #[test]
    fn what_is_equal_or_added_disturbs_nobody() {
        check(&[&[("a", "1"), ("b", "1")], &[("c", "1")]], &[]);
        check(&[&[("a", "1"), ("+b", "12")]], &[]);
        // Brought after each attempt.
        check(&[&[("a", "1")], &[("a", "1"), ("+b", "12")]], &[]);
        check(&[&[("a", "1"), ("a", "2")]], &[]);
    }
}
