//! Why something could not be had of a worker.

use super::FleetMessage;

/// Why something could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In words.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Why something that was to be done at a worker was not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undone {
    /// There is no such worker to do it: nobody is called so, or it can't be reached, or doesn't let
    /// this key in.
    NotThere(Trouble),
    /// It is there, and it was not done all the same.
    There(Trouble),
}

/// Why an address yields no worker.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Unusable {
    pub(super) reason: String,
    pub(super) hint: Option<String>,
    /// It may be of use later.
    pub(super) spare: Option<Spare>,
}

/// For how long a worker is of no use that may be used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Spare {
    /// Nobody is there yet.
    UntilItIsThere,
    /// It may take us later.
    ForNow,
    /// There are enough workers, or it is one of them.
    UntilOneLeaves,
}

impl Unusable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None, spare: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(super) fn spare(spare: Spare, reason: impl Into<String>) -> Self {
        Self { spare: Some(spare), ..Self::new(reason) }
    }

    /// Nobody answers there, and somebody may later.
    pub(super) fn absent(reason: impl Into<String>) -> Self {
        Self::spare(Spare::UntilItIsThere, reason)
    }

    pub(super) fn into_message(self, address: String) -> FleetMessage {
        FleetMessage::Unusable { address, reason: self.reason, hint: self.hint }
    }
}

impl From<Unusable> for Trouble {
    fn from(unusable: Unusable) -> Self {
        Self { reason: unusable.reason, hint: unusable.hint }
    }
}

impl Undone {
    /// In words, and what to do.
    pub fn trouble(&self) -> &Trouble {
        match self {
            Self::NotThere(trouble) | Self::There(trouble) => trouble,
        }
    }
}

impl From<Trouble> for Undone {
    fn from(trouble: Trouble) -> Self {
        Self::There(trouble)
    }
}

impl From<Unusable> for Undone {
    fn from(unusable: Unusable) -> Self {
        Self::There(unusable.into())
    }
}
