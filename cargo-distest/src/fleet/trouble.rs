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

/// Why an address yields no worker.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Unusable {
    pub(super) reason: String,
    pub(super) hint: Option<String>,
    /// It could be used, but not now.
    pub(super) spare: Option<Spare>,
}

/// For how long a worker is of no use that could be used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Spare {
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

    pub(super) fn into_message(self, address: String) -> FleetMessage {
        FleetMessage::Unusable { address, reason: self.reason, hint: self.hint }
    }
}

impl From<Unusable> for Trouble {
    fn from(unusable: Unusable) -> Self {
        Self { reason: unusable.reason, hint: unusable.hint }
    }
}
