//! What the configuration's overrides ask for each test. Pure.

use std::sync::Arc;

use crate::failure::Failure;
use crate::filter::Expressions;
use crate::model::{TestBinary, TestName};
use crate::scheduler::{Group, GroupIndex, Needs, Place};
use crate::settings::{ConstraintSettings, GLOBAL, Network, Override};

/// Groups and overrides, ready to be asked.
#[derive(Debug, Default)]
pub struct Constraints {
    groups: Vec<Group>,
    overrides: Vec<Override>,
    filters: Expressions,
    network: Network,
    forwards: bool,
}

impl Constraints {
    /// Compiles the overrides' filtersets. `metadata_json` is cargo's; it is read only if there
    /// are any.
    ///
    /// # Errors
    ///
    /// As [`Expressions::new`].
    pub fn new(settings: &ConstraintSettings, metadata_json: &str) -> Result<Self, Failure> {
        let groups = settings.groups.iter().map(|(name, group)| Group {
            name: name.clone(),
            threads_max: group.max_threads.filter(|max| *max < u32::MAX),
            per_worker: group.per_worker.filter(|max| *max < u32::MAX),
        });
        let texts: Vec<_> = settings.overrides.iter().map(|it| it.filter.as_str()).collect();
        Ok(Self {
            groups: groups.collect(),
            overrides: settings.overrides.clone(),
            filters: Expressions::new(&texts, metadata_json)?,
            network: settings.network,
            forwards: !settings.forwards.is_empty(),
        })
    }

    /// The groups, as [`Needs`] name them.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// What a test asks of its surroundings; none if it is nothing.
    pub fn needs(&self, binary: &TestBinary, name: &TestName) -> Option<Arc<Needs>> {
        if self.overrides.is_empty() && self.network == Network::Host {
            return None;
        }
        let matching: Vec<_> =
            self.filters.matching(binary, name).map(|index| &self.overrides[index]).collect();
        let matching = || matching.iter().copied();
        let mut needs = Needs::default();
        let group = matching().find_map(|it| it.group.as_deref()).filter(|name| *name != GLOBAL);
        if let Some(group) = group {
            let place = self.groups.iter().position(|it| it.name == group);
            needs.group = place.and_then(|place| u16::try_from(place).ok()).map(GroupIndex);
        }
        needs.threads = matching().find_map(|it| it.threads).unwrap_or(1);
        needs.exclusive = matching().find_map(|it| it.exclusive).unwrap_or(false);
        needs.requires = matching().find_map(|it| it.requires.clone()).unwrap_or_default();
        let network = matching().find_map(|it| it.network).unwrap_or(self.network);
        needs.private_network = network == Network::Private;
        needs.forwards = needs.private_network && self.forwards;
        needs.priority = matching().find_map(|it| it.priority).unwrap_or(0);
        let side = matching().find_map(|it| match (it.local_only, it.remote_only) {
            (Some(true), _) => Some(Place::Local),
            (_, Some(true)) => Some(Place::Remote),
            (Some(false), _) | (_, Some(false)) => Some(Place::Any),
            (None, None) => None,
        });
        needs.place = side.unwrap_or_default();
        (needs != Needs::default()).then(|| Arc::new(needs))
    }
}

#[cfg(test)]
mod tests;
