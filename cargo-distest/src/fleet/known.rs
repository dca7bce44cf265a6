//! Workers that this user knows from invitations, and that `--on NAME` means without an address.

use distest_worker::identity::{KnownWorker, KnownWorkers, PublicKey};
use distest_worker::registry::place;

use super::Trouble;
use super::keys::Keys;
use crate::settings::{FleetSettings, WorkerAddress};

/// Known workers that are looked at for one name.
const KNOWN_MAX: usize = 256;

/// Adds the addresses of known workers that `--on` may mean to those that are given; answers why
/// nobody can be looked for, if so.
pub fn add_known(settings: &mut FleetSettings) -> Option<Trouble> {
    let on = settings.on.as_deref().filter(|_| settings.is_on_another())?;
    let (mut found, trouble) = match Keys::load(&settings.identity) {
        Ok(keys) => meant(keys.known(), on, &settings.workers),
        // Where an address is given, that is told of it.
        Err(_) if !settings.workers.is_empty() => return None,
        Err(unusable) => return Some(unusable.into()),
    };
    settings.workers.append(&mut found);
    trouble
}

/// Where the known workers are that may be meant, beside those at `given` addresses. If nobody is
/// known by that name, it may be what one of them calls itself, which only they can tell.
fn meant(
    known: &KnownWorkers,
    on: &str,
    given: &[WorkerAddress],
) -> (Vec<WorkerAddress>, Option<Trouble>) {
    let (called, others): (Vec<_>, Vec<_>) =
        known.iter().partition(|(key, known)| known.name == on || key.to_string() == on);
    let dials =
        !called.is_empty() && called.iter().all(|(_, known)| place(&known.address).is_none());
    let candidates = if called.is_empty() { others } else { called };
    let found = candidates.into_iter().filter_map(|(key, known)| address(*key, known));
    let is_given = |it: &WorkerAddress| given.iter().any(|given| is_same_place(given, it));
    let found: Vec<_> = found.filter(|it| !is_given(it)).take(KNOWN_MAX).collect();
    let trouble =
        |reason: String, hint: &str| Some(Trouble { reason, hint: Some(hint.to_owned()) });
    let listens = given.iter().any(|it| matches!(it, WorkerAddress::Listen(_)));
    let trouble = match (dials && !listens, given.is_empty() && found.is_empty()) {
        (true, _) => trouble(
            format!("{on} dials this machine, and nothing says where"),
            "say it with --worker listen://IP:PORT",
        ),
        (false, true) => trouble(
            format!("no worker is known that could be called {on}"),
            "take an invitation with `cargo distest workers add`, or name the worker's address \
             with --worker; `cargo distest workers` shows which are known",
        ),
        (false, false) => None,
    };
    (found, trouble)
}

fn address(key: PublicKey, known: &KnownWorker) -> Option<WorkerAddress> {
    let (host, port) = place(&known.address)?;
    Some(WorkerAddress::Tcp { host, port, key: Some(key) })
}

fn is_same_place(one: &WorkerAddress, other: &WorkerAddress) -> bool {
    use WorkerAddress::Tcp;
    match (one, other) {
        (Tcp { host, port, .. }, Tcp { host: other, port: at, .. }) => host == other && port == at,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use distest_worker::identity::PrivateKey;

    use super::*;

    /// Three are known: `a` and `b`, who listen, and `j`, who dials.
    fn check(given: &[&str], on: &str, expected: &[&str], why: &str) {
        let key = || PrivateKey::generate().unwrap().public();
        let keys = [key(), key(), key()];
        let text = format!("{} h:1 a\n{} h:2 b\n{} - j\n", keys[0], keys[1], keys[2]);
        let (known, _) = KnownWorkers::parse(&text);
        let given: Vec<WorkerAddress> = given.iter().map(|it| it.parse().unwrap()).collect();
        let on = if on == "key of b" { keys[1].to_string() } else { on.to_owned() };
        let (found, trouble) = meant(&known, &on, &given);
        let mut found: Vec<_> = found.iter().map(ToString::to_string).collect();
        found.sort();
        let mut expected: Vec<_> = expected
            .iter()
            .map(|at| format!("tcp://{at}#{}", keys[usize::from(at.ends_with('2'))]))
            .collect();
        expected.sort();
        assert_eq!(found, expected, "--on {on}");
        let told = trouble.map(|it| it.reason).unwrap_or_default();
        assert!(told.contains(why) && told.is_empty() == why.is_empty(), "--on {on}: {told}");
    }

    #[test]
    fn who_is_known_by_a_name_is_looked_for_there() {
        check(&[], "a", &["h:1"], "");
        check(&[], "key of b", &["h:2"], "");
        check(&["mdns"], "a", &["h:1"], "");
        // One of them may call itself so.
        check(&[], "x", &["h:1", "h:2"], "");
        check(&["tcp://h:2"], "x", &["h:1"], "");
        check(&["tcp://h:1"], "a", &[], "");
        check(&[], "j", &[], "dials this machine");
        check(&["listen://127.0.0.1:7"], "j", &[], "");
        let nobody = KnownWorkers::default();
        assert!(meant(&nobody, "a", &[]).1.is_some());
        assert!(meant(&nobody, "a", &["mdns".parse().unwrap()]).1.is_none());
    }
}
