//! Workers that come back: which of those that are gone a worker was that joins. Pure.

use crate::model::WorkerId;

/// A worker, whenever it is there.
#[derive(Debug)]
struct Known {
    name: String,
    address: String,
    /// Its number when it joined first.
    first: WorkerId,
    /// Its number while it is there.
    here: Option<WorkerId>,
}

/// All workers that are or were there.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    known: Vec<Known>,
}

impl Returns {
    /// A worker joins. Answers under which number it did so first, if it has come back.
    ///
    /// Those who dial us have another address each time, so a name will do; but several machines
    /// may have the same name, and who is there is another one.
    pub(crate) fn joined(
        &mut self,
        worker: WorkerId,
        name: &str,
        address: &str,
    ) -> Option<WorkerId> {
        let gone = self.known.iter_mut().filter(|it| it.here.is_none() && it.name == name);
        if let Some(known) = gone.min_by_key(|it| it.address != address) {
            known.here = Some(worker);
            address.clone_into(&mut known.address);
            return Some(known.first);
        }
        let (name, address) = (name.to_owned(), address.to_owned());
        self.known.push(Known { name, address, first: worker, here: Some(worker) });
        None
    }

    /// A worker's connection is gone.
    pub(crate) fn left(&mut self, worker: WorkerId) {
        if let Some(known) = self.known.iter_mut().find(|it| it.here == Some(worker)) {
            known.here = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_is_known_by_name_and_told_from_others_of_that_name() {
        let mut returns = Returns::default();
        let id = WorkerId;
        assert_eq!(returns.joined(id(0), "box", "tcp://a:1"), None);
        assert_eq!(returns.joined(id(1), "box", "tcp://a:2"), None, "the other one is there");
        assert_eq!(returns.joined(id(2), "else", "tcp://b:1"), None);
        returns.left(id(0));
        returns.left(id(1));
        assert_eq!(returns.joined(id(3), "box", "tcp://a:2"), Some(id(1)));
        assert_eq!(returns.joined(id(4), "box", "[::1]:4711"), Some(id(0)), "it dials us");
        returns.left(id(4));
        assert_eq!(returns.joined(id(5), "box", "[::1]:4712"), Some(id(0)), "and again");
        assert_eq!(returns.joined(id(6), "box", "[::1]:4713"), None);
    }
}
