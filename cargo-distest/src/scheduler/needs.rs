//! What tests ask of where and beside whom they run, and what workers offer.

use std::collections::BTreeMap;

use distest_worker::protocol::Labels;

use crate::model::WorkerId;
use crate::pace::Pace;

/// A group of tests, by its place in [`super::Scheduler::with_groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupIndex(pub u16);

/// How many attempts of a group's tests may be alive at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// As users write it.
    pub name: String,
    /// Over the whole fleet; 1 makes it a mutex. None: no bound.
    pub threads_max: Option<u32>,
    /// On each worker. None: no bound.
    pub per_worker: Option<u32>,
}

/// On which side a test runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Anywhere.
    #[default]
    Any,
    /// On the client's machine only.
    Local,
    /// On any other machine.
    Remote,
}

/// What a test asks of its surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whose bounds it obeys.
    pub group: Option<GroupIndex>,
    /// Slots that it takes; clamped to the worker's.
    pub threads: u32,
    /// Nothing else runs on its worker meanwhile.
    pub exclusive: bool,
    /// Labels that the worker must have with these values.
    pub requires: BTreeMap<String, String>,
    /// On which side.
    pub place: Place,
    /// A network of its own.
    pub private_network: bool,
    /// Services of the client's in it.
    pub forwards: bool,
    /// Higher goes first; 0 is usual, below 0 waits for all others.
    pub priority: i8,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            group: None,
            threads: 1,
            exclusive: false,
            requires: BTreeMap::new(),
            place: Place::Any,
            private_network: false,
            forwards: false,
            priority: 0,
        }
    }
}

/// What is true of a worker for as long as it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Under which number it joined first, if it was gone since and has come back.
    pub formerly: Option<WorkerId>,
    /// It runs on the client's machine, as part of the client.
    pub embedded: bool,
    /// What it says of itself.
    pub labels: Labels,
    /// Why it can't give a test a network of its own; none if it can.
    pub private_network_lack: Option<String>,
    /// Why a test there can't find services of the client's; none if it can.
    pub forward_lack: Option<String>,
    /// How fast it is and what handing out to it costs, as far as earlier runs have found out.
    pub pace: Pace,
}

/// Why a worker won't do for a test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mismatch {
    /// It is on the wrong side.
    Place,
    /// A label is missing or has another value.
    Label {
        /// `key=value`, as required.
        required: String,
        /// What the worker has instead.
        has: Option<String>,
    },
    /// It can't give a test a network of its own, and why.
    Network(String),
    /// Tests there can't find services of the client's, and why.
    Forward(String),
}

impl Needs {
    /// What is missing of a worker, the nearest to a match first; empty if it will do.
    pub fn mismatches(&self, traits: &Traits) -> Vec<Mismatch> {
        let mut missing = Vec::new();
        let misplaced = match self.place {
            Place::Any => false,
            Place::Local => !traits.embedded,
            Place::Remote => traits.embedded,
        };
        if misplaced {
            missing.push(Mismatch::Place);
        }
        for (label, value) in &self.requires {
            let has = traits.labels.get(label);
            if has != Some(value) {
                let required = format!("{label}={value}");
                missing.push(Mismatch::Label { required, has: has.cloned() });
            }
        }
        if let (true, Some(lack)) = (self.private_network, &traits.private_network_lack) {
            missing.push(Mismatch::Network(lack.clone()));
        }
        if let (true, Some(lack)) = (self.forwards, &traits.forward_lack) {
            missing.push(Mismatch::Forward(lack.clone()));
        }
        missing
    }

    /// Whether a worker will do.
    pub fn met_by(&self, traits: &Traits) -> bool {
        self.mismatches(traits).is_empty()
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Place => f.write_str("it is on the wrong side"),
            Self::Label { required, has: Some(has) } => {
                write!(f, "{required} is required and it has {has}")
            }
            Self::Label { required, has: None } => write!(f, "it has no label {required}"),
            Self::Network(lack) => write!(f, "it can't give a test a network of its own: {lack}"),
            Self::Forward(lack) => write!(f, "it can't forward the client's services: {lack}"),
        }
    }
}

impl std::fmt::Display for Needs {
    /// The constraints on a worker, as the configuration writes them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match self.place {
            Place::Any => None,
            Place::Local => Some("local-only".to_owned()),
            Place::Remote => Some("remote-only".to_owned()),
        };
        let labels = self.requires.iter().map(|(label, value)| format!("{label}={value}"));
        let network = self.private_network.then(|| "network = \"private\"".to_owned());
        let forwards = self.forwards.then(|| "forward".to_owned());
        let all: Vec<_> = place.into_iter().chain(labels).chain(network).chain(forwards).collect();
        write!(f, "{}", all.join(", "))
    }
}
