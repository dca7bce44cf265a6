//! What history can say of a test that fails by itself: with whom it passed.

use std::sync::Arc;

/// Who shared a process, in the order in which they were to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members(Arc<str>);

/// How a test that has failed by itself passed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// Passes in a row, up to the last run, that were in company.
    pub passes: u32,
    /// It was found to pass only in company.
    pub found: bool,
    /// With whom it passed in company last, if that is still known.
    pub members: Option<Members>,
}

impl Members {
    /// From names, one a line, which is how history keeps them.
    pub fn from_lines(lines: &str) -> Self {
        Self(lines.into())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('\n')
    }

    /// The same for all copies, so that what depends on them needs to be found out once.
    pub(super) fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

impl Recalled {
    /// What there is to add to the reason of a failure.
    pub fn words(&self) -> String {
        match self.passes {
            _ if self.found => "it passed only in company before".to_owned(),
            1 => "its last pass was in company".to_owned(),
            passes => format!("its last {passes} passes were in company"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_often_and_what_is_known() {
        let words = |passes, found| Recalled { passes, found, members: None }.words();
        assert_eq!(words(1, false), "its last pass was in company");
        assert_eq!(words(15, false), "its last 15 passes were in company");
        assert_eq!(words(0, true), "it passed only in company before");
    }

    #[test]
    fn members_are_names_one_a_line() {
        let members = Members::from_lines("b::one\na");
        assert_eq!(members.names().collect::<Vec<_>>(), ["b::one", "a"]);
    }
}
