//! Workers that are found: by a registry, or in the local network.
//!
//! Whoever names a worker here is believed in nothing but where it may be. Only workers whose keys
//! are known already are dialled, and each must prove the key under which it was found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use distest_worker::identity::PublicKey;
use distest_worker::registry::{Asker, Entry, RegistryError, RegistryPlace, place};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::{self, Connection};
use super::turns::Turns;
use super::{Fleet, FleetMessage, Spare, Unusable};
use crate::wary;

/// Between two looks at who is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Before a worker is dialled again that could not be used.
const REDIAL_AFTER: Duration = Duration::from_secs(3);
/// Between two attempts to reach a registry that was lost.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Workers that are dialled, of all that are found.
const DIALLED_MAX: usize = 256;
/// Troubles that are kept until it is clear that nobody can be used.
const TROUBLES_MAX: usize = 64;
/// Troubles of one key that are told.
const TOLD_MAX: usize = 4;
/// What to do about many.
const ENOUGH: &str = "somebody may announce it who has not got that key: name the worker's address, or a registry, instead";
/// Addresses that are tried of one worker.
pub(super) const ADDRESSES_MAX: usize = 8;

/// A worker that somebody says is there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Found {
    /// The key that it must prove.
    pub(super) key: PublicKey,
    /// What it calls itself, by what is said.
    pub(super) name: String,
    /// Where it may be: host and port, the likeliest first.
    pub(super) addresses: Vec<(String, u16)>,
}

/// All that are there now; changes as long as somebody looks.
pub(super) type Sight = watch::Receiver<BTreeSet<Found>>;

/// Asks a registry, again and again for as long as the answer is wanted.
pub(super) async fn registry(fleet: &Fleet, at: RegistryPlace) -> Result<Sight, Unusable> {
    let key = fleet.keys().await?.ours().clone();
    let mut asker = Asker::dial(&at, &key).await.map_err(|error| explain(&error))?;
    let listed = asker.list().await.map_err(|error| explain(&error))?;
    let (seen, sight) = watch::channel(of_entries(listed));
    let asking = async move {
        loop {
            sleep(LOOK_EVERY).await;
            match asker.list().await {
                Ok(listed) => tell(&seen, of_entries(listed)),
                // Whoever was found is still worth an attempt.
                Err(_) => loop {
                    sleep(ASK_AGAIN_AFTER).await;
                    if let Ok(again) = Asker::dial(&at, &key).await {
                        asker = again;
                        break;
                    }
                },
            }
        }
    };
    tokio::spawn(while_wanted(fleet.clone(), asking));
    Ok(sight)
}

/// Looks around in the local network for as long as the answer is wanted.
#[cfg(feature = "mdns")]
pub(super) async fn mdns(fleet: &Fleet) -> Result<Sight, Unusable> {
    use distest_worker::mdns::Browser;
    let keys = fleet.keys().await?.clone();
    let mut browser = Browser::new(move |key| keys.may_know(key)).map_err(Unusable::new)?;
    let (seen, sight) = watch::channel(BTreeSet::new());
    let looking = async move {
        loop {
            tell(&seen, of_mdns(browser.look(LOOK_EVERY).await));
        }
    };
    tokio::spawn(while_wanted(fleet.clone(), looking));
    Ok(sight)
}

/// Says who is there, if that is news.
fn tell(seen: &watch::Sender<BTreeSet<Found>>, found: BTreeSet<Found>) {
    seen.send_if_modified(|before| {
        let news = *before != found;
        if news {
            *before = found;
        }
        news
    });
}

/// This program can't.
#[cfg(not(feature = "mdns"))]
pub(super) async fn mdns(_: &Fleet) -> Result<Sight, Unusable> {
    Err(Unusable::new("this program was built without mDNS")
        .hint("build it with the feature `mdns`, or name workers by their addresses"))
}

/// Uses what is in sight, and goes on when the first worker has joined or too much time has passed;
/// workers may come as long as the run lasts.
pub(super) async fn follow(fleet: &Fleet, sight: Sight) -> Result<(), Unusable> {
    fleet.keys().await?;
    let first = Arc::new(Notify::new());
    let (troubles, mut troubled) = mpsc::channel(TROUBLES_MAX);
    let following = Following { fleet: fleet.clone(), first: Arc::clone(&first), troubles };
    tokio::spawn(while_wanted(fleet.clone(), following.follow(sight.clone())));
    let wait = fleet.shared.settings.wait_for;
    if timeout(wait, first.notified()).await.is_ok() {
        return Ok(());
    }
    let mut why = BTreeSet::new();
    while let Ok(trouble) = troubled.try_recv() {
        why.insert(trouble);
    }
    Err(nobody(fleet, &sight, &why).await)
}

struct Following {
    fleet: Fleet,
    first: Arc<Notify>,
    troubles: mpsc::Sender<String>,
}

impl Following {
    async fn follow(self, mut sight: Sight) {
        let mut tasks = JoinSet::new();
        let mut turns = Turns::default();
        let mut told = Told::default();
        loop {
            let Ok(keys) = self.fleet.keys().await else { return };
            let mut known = sight.borrow_and_update().clone();
            known.retain(|found| keys.may_be(found));
            for found in turns.next(&known, DIALLED_MAX) {
                tasks.spawn(keep(self.fleet.clone(), Arc::clone(&self.first), found));
            }
            let ended = tokio::select! {
                changed = sight.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                Some(ended) = tasks.join_next() => ended,
            };
            let Ok((found, trouble)) = ended else { continue };
            if let Some(Unusable { reason, hint, spare }) = trouble {
                let address = format!("{} {}", found.name, found.key);
                // What is not needed now, or not to be used now, is no trouble yet.
                let news = match spare {
                    None | Some(Spare::UntilItIsThere) => told.of(&found, &reason),
                    Some(Spare::ForNow | Spare::UntilOneLeaves) => News::Old,
                };
                let unusable = match news {
                    News::Old => None,
                    News::New => Some(FleetMessage::Unusable {
                        address: address.clone(),
                        reason: reason.clone(),
                        hint,
                    }),
                    News::Enough => Some(FleetMessage::Unusable {
                        address: found.key.to_string(),
                        reason: "more is announced under this key, and can't be used, either"
                            .into(),
                        hint: Some(ENOUGH.to_owned()),
                    }),
                };
                // Nobody counts them once a worker is there.
                let _ = self.troubles.try_send(format!("{address}: {reason}"));
                if let Some(unusable) = unusable {
                    self.fleet.say(unusable).await;
                }
            }
            turns.over(&found);
        }
    }
}

/// What was said of those that could not be used.
#[derive(Default)]
struct Told {
    of_keys: BTreeMap<PublicKey, BTreeSet<(Found, String)>>,
}

/// Whether a trouble is worth a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum News {
    New,
    Old,
    /// Many of one key were told of: it is said once that there are more.
    Enough,
}

impl Told {
    /// Keys are those that are known, which are bounded.
    fn of(&mut self, found: &Found, reason: &str) -> News {
        let told = self.of_keys.entry(found.key).or_default();
        let full = told.len() > TOLD_MAX;
        let new = !full && told.insert((found.clone(), reason.to_owned()));
        match (new, told.len() > TOLD_MAX) {
            (true, true) => News::Enough,
            (true, false) => News::New,
            (false, _) => News::Old,
        }
    }
}

/// Dials a worker, and keeps it until it is lost; answers why it could not be used.
async fn keep(fleet: Fleet, first: Arc<Notify>, found: Found) -> (Found, Option<Unusable>) {
    let mut trouble = None;
    let mut leaving = fleet.shared.members.leaving();
    for (host, port) in found.addresses.iter().take(ADDRESSES_MAX) {
        match connection::dial(&fleet, host, *port, Some(found.key)).await {
            Ok(connection) => {
                used(&fleet, &first, connection).await;
                return (found, None);
            }
            Err(unusable) => trouble = Some(unusable),
        }
    }
    match trouble {
        // A dial before that could only be refused again.
        Some(Unusable { spare: Some(Spare::UntilOneLeaves), .. }) => _ = leaving.changed().await,
        _ => sleep(REDIAL_AFTER).await,
    }
    (found, trouble)
}

async fn used(fleet: &Fleet, first: &Notify, connection: Connection) {
    let mut gone = connection.gone();
    fleet.joined(connection).await;
    first.notify_one();
    // The sender goes with the connection.
    let _ = gone.wait_for(|_| false).await;
}

/// Ends with the run.
async fn while_wanted(fleet: Fleet, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = fleet.shared.messages.closed() => {}
    }
}

/// Why nobody came of what is in sight.
async fn nobody(fleet: &Fleet, sight: &Sight, troubles: &BTreeSet<String>) -> Unusable {
    let wait = fleet.shared.settings.wait_for.as_secs_f64();
    let found = sight.borrow().len();
    let known = match fleet.keys().await {
        Ok(keys) => sight.borrow().iter().filter(|found| keys.may_be(found)).count(),
        Err(_) => 0,
    };
    let text = format!("no worker was found within {wait} s");
    match (found, known, troubles.is_empty()) {
        (0, _, _) => Unusable::new(text).hint(
            "start workers with `serve --mdns` or `serve --register`; a registry shows those that \
             let this key in",
        ),
        (_, 0, _) => Unusable::new(format!(
            "{text} whose key is known here; {found} others are there"
        ))
        .hint("run `distest-worker invite` there and `cargo distest workers add INVITATION` here"),
        (_, _, true) => {
            Unusable::new(format!("none of the {known} workers answered within {wait} s"))
        }
        (_, _, false) => {
            let troubles: Vec<_> = troubles.iter().map(String::as_str).collect();
            Unusable::new(troubles.join("; "))
        }
    }
}

pub(super) fn explain(error: &RegistryError) -> Unusable {
    let hint = error.hint().map(str::to_owned);
    let there = !matches!(error, RegistryError::NoConnection(_) | RegistryError::Silent);
    let spare = (!there).then_some(Spare::UntilItIsThere);
    Unusable { hint, spare, ..Unusable::new(error.to_string()) }
}

pub(super) fn of_entries(entries: Vec<Entry>) -> BTreeSet<Found> {
    let found = entries.into_iter().filter_map(|entry| {
        let Entry { key, name, address, labels: _ } = entry;
        let (host, port) = place(&address)?;
        Some(Found { key, name: wary::name(&name), addresses: vec![(host, port)] })
    });
    found.collect()
}

#[cfg(feature = "mdns")]
pub(super) fn of_mdns(found: Vec<distest_worker::mdns::Found>) -> BTreeSet<Found> {
    let found = found.into_iter().map(|it| Found {
        key: it.key,
        name: wary::name(&it.name),
        addresses: it.addresses.iter().map(|at| (at.ip().to_string(), at.port())).collect(),
    });
    found.collect()
}

impl Found {
    /// It can only be on this machine.
    pub(super) fn is_here(&self) -> bool {
        let loopback = |host: &str| host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        self.addresses.iter().all(|(host, _)| loopback(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distest_worker::identity::PrivateKey;

    #[test]
    fn who_looks_is_told_news_only() {
        let entry = |name: &str| Found {
            key: PrivateKey::generate().unwrap().public(),
            name: name.to_owned(),
            addresses: Vec::new(),
        };
        let (seen, mut sight) = watch::channel(BTreeSet::new());
        let one = BTreeSet::from([entry("a")]);
        tell(&seen, one.clone());
        assert!(sight.has_changed().unwrap());
        sight.mark_unchanged();
        tell(&seen, one);
        assert!(!sight.has_changed().unwrap());
        tell(&seen, BTreeSet::new());
        assert!(sight.has_changed().unwrap());
    }

    #[test]
    fn of_many_troubles_under_one_key_some_are_told_and_that_there_are_more() {
        let [one, other] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let found = |key, name: usize| Found { key, name: name.to_string(), addresses: vec![] };
        let mut told = Told::default();
        for number in 0..100 {
            let expected = match number {
                0..TOLD_MAX => News::New,
                TOLD_MAX => News::Enough,
                _ => News::Old,
            };
            assert_eq!(told.of(&found(one, number), "gone"), expected, "{number}");
            assert_eq!(told.of(&found(one, number), "gone"), News::Old, "{number}");
        }
        assert_eq!(told.of(&found(other, 0), "gone"), News::New);
        assert_eq!(told.of(&found(other, 0), "it has no room"), News::New);
        assert_eq!(told.of_keys[&one].len(), TOLD_MAX + 1, "it is bounded");
    }

    #[test]
    fn entries_that_make_no_sense_are_left_out() {
        let key = PrivateKey::generate().unwrap().public();
        let entry = |address: &str| Entry {
            key,
            name: "w\u{1b}[2J".to_owned(),
            address: address.to_owned(),
            labels: Default::default(),
        };
        let listed = ["[::1]:7", "h:8", "h", "h:0", "h:x", "h:70000"].map(entry).to_vec();
        let found: Vec<_> = of_entries(listed).into_iter().collect();
        let places: Vec<_> = found.iter().flat_map(|it| &it.addresses).collect();
        assert_eq!(places, [&("::1".to_owned(), 7), &("h".to_owned(), 8)]);
        assert_eq!(found[0].name, r"w\u{1b}[2J");
        assert!(found[0].is_here() && !found[1].is_here());
    }
}
