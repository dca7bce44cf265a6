//! Looking at workers, without running anything there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use distest_worker::hello::Hello;
use distest_worker::identity::{KnownWorker, PublicKey};
use distest_worker::link;
use distest_worker::protocol::WorkerStatus;
use distest_worker::registry::{Asker, RegistryPlace, place};
use futures::{StreamExt, stream};

use super::connection::{self, format_place};
use super::discover::{self, ADDRESSES_MAX, Found};
use super::greeting::{Greeted, Names};
use super::joiners::{JOINERS_WITHIN, Joined, START_JOINER, Take, joiners};
use super::keys::Keys;
use super::talk::{self, Talk, answered};
use super::turns::Turns;
use super::{Trouble, Unusable};
use crate::settings::{FleetSettings, WorkerAddress};
use crate::wary;

/// How long to look around in the local network. A question is asked again after 1 s, and the second
/// one counts: whoever has answered somebody less than 1 s ago keeps silent (RFC 6762, section 6).
#[cfg(feature = "mdns")]
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// An answer to a question.
const ANSWER: Duration = Duration::from_secs(5);
/// Workers that are asked at a time.
const VISITED_MAX: usize = 256;

/// Of those of one key that are found and don't answer, and of those with unknown keys, so many are shown.
const FAILED_SHOWN_MAX: usize = 4;
const STRANGERS_SHOWN_MAX: usize = 16;

/// Where a worker is that has no address.
const NO_ADDRESS: &str = "-";

/// A worker, as far as it can be seen from here.
#[derive(Clone, Debug)]
pub struct Visited {
    /// What it may be called.
    pub names: Names,
    /// Where it is, as `--worker` takes it.
    pub address: String,
    /// Who named it.
    pub source: Source,
    /// What it says.
    pub said: Result<Said, Trouble>,
    /// It can be asked. One that is started for each run, or dials us when there is one, can't: that it says
    /// nothing is no trouble.
    pub asked: bool,
}

/// What a worker says.
#[derive(Clone, Debug)]
pub struct Said {
    /// What it is.
    pub hello: Hello,
    /// What goes on there, or why it doesn't tell.
    pub status: Result<WorkerStatus, Trouble>,
    /// How its clock differs from ours, if it tells.
    pub clock: Option<Clock>,
    /// Which libraries it lacks of those that were asked for.
    pub lacks: Vec<String>,
}

/// What is asked of workers beside how they are.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Workers behind ssh are started.
    pub starts: bool,
    /// Those that dial this machine are waited for where the settings say so.
    pub joiners: bool,
    /// Shared libraries that tests need, at most [`distest_worker::protocol::LIBRARIES_MAX`].
    pub libraries: Vec<String>,
}

/// What a worker's clock showed, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds by which it is ahead; negative if it is behind.
    pub ahead_ms: i64,
    /// By which that may be wrong: half of the time that the answer took.
    pub uncertain_ms: u64,
}

impl Clock {
    /// It showed this at some time between these two; 0 says nothing.
    fn told(shown_ms: u64, asked: SystemTime, answered: SystemTime) -> Option<Self> {
        let since = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            i64::try_from(since.as_millis()).ok()
        };
        let (asked, answered) = (since(asked)?, since(answered)?);
        let half = (answered - asked) / 2;
        let shown = i64::try_from(shown_ms).ok().filter(|shown| *shown > 0)?;
        Some(Self { ahead_ms: shown.checked_sub(asked + half)?, uncertain_ms: half.unsigned_abs() })
    }
}

/// Who named a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// Its address, on the command line, in the environment or in a configuration.
    Address,
    /// A registry.
    Registry,
    /// It says itself that it is there, in the local network.
    Mdns,
    /// This user's known workers.
    Known,
}

impl Source {
    /// As shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Registry => "registry",
            Self::Mdns => "mdns",
            Self::Known => "known",
        }
    }
}

/// Looks at every worker that the settings name or this user knows.
///
/// # Errors
/// There is no key to look with.
pub async fn visit(settings: &FleetSettings, wanted: &Wanted) -> Result<Vec<Visited>, Trouble> {
    let keys = Keys::load(&settings.identity)?;
    let visitor = Visitor { settings, keys: &keys, wanted };
    let named = settings.workers.iter().map(|address| visitor.at_address(address));
    let listens = settings.dialled_at().next().is_some();
    // Of a key alone there is nothing to be seen: whoever has it is found somewhere, or given.
    let seen = |known: &KnownWorker| place(&known.address).is_some() || !known.name.is_empty();
    let known = keys.known().iter().filter(|(_, known)| seen(known)).take(VISITED_MAX);
    let known = known.map(|(key, known)| {
        let (visitor, names) = (&visitor, keys.names(*key));
        let address = known.address.clone();
        async move {
            let source = Source::Known;
            match place(&address) {
                Some((host, port)) => {
                    let seen = visitor.ask(&host, port, Some(*key)).await;
                    Visited::new(names, format!("tcp://{address}#{key}"), source, seen)
                }
                None => {
                    let nothing = match (listens, wanted.joiners) {
                        (false, _) => {
                            Unusable::new("it dials this machine, and nothing says where")
                                .hint("say it with --worker listen://IP:PORT")
                        }
                        (true, true) => nobody_dialled("it has not"),
                        (true, false) => Unusable::new("it dials this machine"),
                    };
                    let nothing = Err(nothing.into());
                    Visited::new(names, NO_ADDRESS.to_owned(), source, nothing).unasked()
                }
            }
        }
    });
    // All at once: a worker that doesn't answer holds up no other.
    let (named, known) =
        futures::future::join(futures::future::join_all(named), futures::future::join_all(known))
            .await;
    Ok(once_each(named.into_iter().flatten().chain(known).collect()))
}

/// Each worker as what it was first: named, if it was. One that doesn't answer where it was when it
/// became known is not told of where it is seen elsewhere.
fn once_each(mut visited: Vec<Visited>) -> Vec<Visited> {
    let mut told = BTreeSet::new();
    visited.retain(|it| it.instance().is_none_or(|instance| told.insert(instance)));
    let answer = visited.iter().filter(|it| it.said.is_ok()).filter_map(|it| it.names.key);
    let answer: BTreeSet<PublicKey> = answer.collect();
    let seen_elsewhere = |it: &Visited| it.names.key.is_some_and(|key| answer.contains(&key));
    visited.retain(|it| it.said.is_ok() || it.source != Source::Known || !seen_elsewhere(it));
    visited
}

/// Goes to workers.
struct Visitor<'a> {
    settings: &'a FleetSettings,
    keys: &'a Keys,
    wanted: &'a Wanted,
}

impl Visitor<'_> {
    async fn at_address(&self, address: &WorkerAddress) -> Vec<Visited> {
        let keys = self.keys;
        let here =
            |names, seen| vec![Visited::new(names, address.to_string(), Source::Address, seen)];
        let later = |text: &str| {
            let nothing = Err(Unusable::new(text).into());
            let names = Names::default();
            vec![Visited::new(names, address.to_string(), Source::Address, nothing).unasked()]
        };
        match address {
            WorkerAddress::Tcp { host, port, key } => {
                let names = key.map(|key| keys.names(key)).unwrap_or_default();
                here(names, self.ask(host, *port, *key).await)
            }
            WorkerAddress::Ssh { .. } if self.wanted.starts => {
                let started = talk::at(self.settings, keys, address).await;
                let seen = match started {
                    Ok(talk) => Ok(self.listen_to(talk).await),
                    Err(trouble) => Err(trouble),
                };
                here(Names::default(), seen)
            }
            WorkerAddress::Ssh { .. } => later("not asked: it is started for each run"),
            WorkerAddress::Listen(place) if self.wanted.joiners => {
                match joiners(&[*place], keys, JOINERS_WITHIN, |_| Take::Another).await {
                    Ok(joined) => self.joined(joined, address).await,
                    Err(unusable) => here(Names::default(), Err(unusable.into())),
                }
            }
            WorkerAddress::Listen(_) => later("workers dial this address while a run lasts"),
            WorkerAddress::Registry { host, port, key } => {
                let at = RegistryPlace { place: format_place(host, *port), key: *key };
                let listed = async { Asker::dial(&at, keys.ours()).await?.list().await };
                match listed.await {
                    Ok(entries) if entries.is_empty() => {
                        let none = Unusable::new("it answers, and shows this key no worker").hint(
                            "a registry shows the workers that let this key in: start them with \
                             `serve --register HOST:PORT`, and add an invitation of each",
                        );
                        let shown = here(Names::default(), Err(none.into()));
                        shown.into_iter().map(Visited::unasked).collect()
                    }
                    Ok(entries) => self.all(discover::of_entries(entries), Source::Registry).await,
                    Err(error) => here(Names::default(), Err(discover::explain(&error).into())),
                }
            }
            #[cfg(feature = "mdns")]
            WorkerAddress::Mdns => {
                let wanted = keys.clone();
                match distest_worker::mdns::Browser::new(move |key| wanted.may_know(key)) {
                    Ok(mut browser) => {
                        let end = tokio::time::Instant::now() + LOOK_AROUND;
                        let mut found = Vec::new();
                        while tokio::time::Instant::now() < end {
                            let left = end.saturating_duration_since(tokio::time::Instant::now());
                            found = browser.look(left).await;
                        }
                        if found.is_empty() {
                            let none = Unusable::new(
                                "no worker in the local network says that it is there",
                            )
                            .hint("start workers with `serve --mdns`, or use a registry");
                            let seen = here(Names::default(), Err(none.into()));
                            return seen.into_iter().map(Visited::unasked).collect();
                        }
                        self.all(discover::of_mdns(found), Source::Mdns).await
                    }
                    Err(why) => here(Names::default(), Err(Unusable::new(why).into())),
                }
            }
            #[cfg(not(feature = "mdns"))]
            WorkerAddress::Mdns => {
                let why = "this program was built without mDNS";
                here(Names::default(), Err(Unusable::new(why).into()))
            }
        }
    }

    /// All that are found: those that may be known are asked, of the others some are shown.
    async fn all(&self, found: BTreeSet<Found>, source: Source) -> Vec<Visited> {
        let keys = self.keys;
        let (known, strangers): (BTreeSet<_>, BTreeSet<_>) =
            found.into_iter().partition(|found| keys.may_be(found));
        let known = Turns::default().next(&known, usize::MAX);
        let asking = known.into_iter().map(|found| self.ask_found(found, source));
        let asked: Vec<_> = stream::iter(asking).buffered(VISITED_MAX).collect().await;
        let strangers = strangers.into_iter().map(|found| {
            let key = found.key;
            let unknown =
                Unusable::new("its key is not known here, and nobody has named it").hint(format!(
                    "{key}: run `distest-worker invite` there and `cargo distest workers add \
                 INVITATION` here"
                ));
            let address = found.addresses.first();
            let address = address.map_or_else(|| NO_ADDRESS.to_owned(), |at| at_key(at, key));
            let names = Names { own: found.name, ..keys.names(key) };
            Visited::new(names, address, source, Err(unknown.into())).unasked()
        });
        some_of(asked.into_iter().chain(strangers), source)
    }

    async fn ask_found(&self, found: Found, source: Source) -> Visited {
        let Found { key, name, addresses } = &found;
        let mut seen = Err(Unusable::new("it has no address").into());
        // The likeliest, unless another one answers.
        let mut address = NO_ADDRESS.to_owned();
        for (number, place) in addresses.iter().take(ADDRESSES_MAX).enumerate() {
            let told = self.ask(&place.0, place.1, Some(*key)).await;
            let answered = told.is_ok();
            if answered || number == 0 {
                (address, seen) = (at_key(place, *key), told);
            }
            if answered {
                break;
            }
        }
        let names = Names { own: name.clone(), ..self.keys.names(*key) };
        Visited::new(names, address, source, seen)
    }

    /// All that dialled there, and why others were sent away.
    async fn joined(
        &self,
        Joined { came, refused }: Joined,
        address: &WorkerAddress,
    ) -> Vec<Visited> {
        let none = came.is_empty() && refused.is_empty();
        let visited = |names, seen| Visited::new(names, address.to_string(), Source::Address, seen);
        let asked = came.into_iter().map(|talk| self.listen_to(talk));
        let asked = futures::future::join_all(asked).await.into_iter();
        let mut all: Vec<_> = asked.map(|seen| visited(Names::default(), Ok(seen))).collect();
        let refused = refused.into_iter().map(|(ip, unusable)| Unusable {
            reason: format!("who dialled from {ip}: {}", unusable.reason),
            ..unusable
        });
        let nobody = none.then(|| nobody_dialled("no worker has"));
        let not = refused.chain(nobody);
        all.extend(not.map(|it| visited(Names::default(), Err(it.into())).unasked()));
        all
    }

    async fn ask(
        &self,
        host: &str,
        port: u16,
        key: Option<PublicKey>,
    ) -> Result<(Names, Said), Trouble> {
        let secured = connection::reach(self.keys, host, port, key).await?;
        let talk = Talk::with(Greeted::proved(self.keys, secured).await?);
        Ok(self.listen_to(talk).await)
    }

    async fn listen_to(&self, talk: Talk) -> (Names, Said) {
        // What an older worker doesn't know would end the connection.
        let asked = SystemTime::now();
        let status = match talk.hello.protocol.minor {
            0 => Err(Unusable::new("it is too old to tell what goes on there").into()),
            _ => answered(talk.worker.status(link::context(ANSWER)).await).map(wary::status),
        };
        let clock =
            status.as_ref().ok().and_then(|it| Clock::told(it.clock_ms, asked, SystemTime::now()));
        let mut lacks = Vec::new();
        if status.is_ok() && !self.wanted.libraries.is_empty() {
            let names = self.wanted.libraries.clone();
            let told = answered(talk.worker.lacks_libraries(link::context(ANSWER), names).await);
            // Nothing but what was asked for.
            lacks = told.unwrap_or_default();
            lacks.retain(|name| self.wanted.libraries.contains(name));
        }
        let said = Said { hello: talk.hello.clone(), status, clock, lacks };
        (talk.names.clone(), said)
    }
}

fn nobody_dialled(who: &str) -> Unusable {
    let within = JOINERS_WITHIN.as_secs();
    Unusable::new(format!("{who} dialled this machine within {within} s")).hint(START_JOINER)
}

/// All that answer, and some of the others: anybody can say that there are more.
fn some_of(visited: impl Iterator<Item = Visited>, source: Source) -> Vec<Visited> {
    let (mut of_keys, mut strangers, mut left_out) = (BTreeMap::new(), 0, 0);
    let mut shown = Vec::new();
    for it in visited {
        let count = match it.asked {
            true => of_keys.entry(it.names.key).or_insert(0),
            false => &mut strangers,
        };
        let max = if it.asked { FAILED_SHOWN_MAX } else { STRANGERS_SHOWN_MAX };
        *count += usize::from(it.said.is_err());
        match it.said.is_ok() || *count <= max {
            true => shown.push(it),
            false => left_out += 1,
        }
    }
    if left_out > 0 {
        let reason = format!("{left_out} more are said to be there, and can't be used, either");
        let nothing = Err(Unusable::new(reason).into());
        let rest = Visited::new(Names::default(), NO_ADDRESS.to_owned(), source, nothing);
        shown.push(rest.unasked());
    }
    shown
}

fn at_key((host, port): &(String, u16), key: PublicKey) -> String {
    format!("tcp://{}#{key}", format_place(host, *port))
}

impl Visited {
    /// With the names that it says, if it says something.
    fn new(
        names: Names,
        address: String,
        source: Source,
        seen: Result<(Names, Said), Trouble>,
    ) -> Self {
        match seen {
            Ok((names, said)) => Self { names, address, source, said: Ok(said), asked: true },
            Err(trouble) => Self { names, address, source, said: Err(trouble), asked: true },
        }
    }

    fn unasked(self) -> Self {
        Self { asked: false, ..self }
    }

    /// Whether workers dial this machine there, or it is known as one that does and not seen
    /// otherwise.
    pub fn dials(&self) -> bool {
        let listens = || matches!(self.address.parse(), Ok(WorkerAddress::Listen(_)));
        !self.asked && (self.source == Source::Known || listens())
    }

    fn instance(&self) -> Option<String> {
        let said = self.said.as_ref().ok()?;
        Some(said.hello.instance.clone()).filter(|instance| !instance.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use distest_worker::identity::PrivateKey;

    use super::*;

    #[test]
    fn a_worker_that_is_seen_is_not_looked_for_where_it_was() {
        let [moved, other] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let seen = |key, source, instance: Option<&str>| {
            let said = instance.map(|instance| {
                let hello = Hello { instance: instance.to_owned(), ..Hello::default() };
                Said { hello, status: Ok(WorkerStatus::default()), clock: None, lacks: Vec::new() }
            });
            let said = said.ok_or_else(|| Unusable::new("nobody listens there").into());
            let names = Names { key: Some(key), ..Names::default() };
            Visited { names, address: String::new(), source, said, asked: true }
        };
        let visited = once_each(vec![
            seen(other, Source::Address, None),
            seen(moved, Source::Mdns, Some("a")),
            seen(moved, Source::Registry, Some("a")),
            seen(moved, Source::Known, None),
            seen(other, Source::Known, None),
        ]);
        let left: Vec<_> = visited.iter().map(|it| (it.names.key, it.source)).collect();
        let expected = [(other, Source::Address), (moved, Source::Mdns), (other, Source::Known)];
        assert_eq!(left, expected.map(|(key, source)| (Some(key), source)));
    }

    #[test]
    fn of_a_flood_some_are_shown_and_all_that_answer() {
        let [known, quiet] = [(); 2].map(|()| PrivateKey::generate().unwrap().public());
        let visited = |key, asked, answers| Visited {
            names: Names { key: Some(key), ..Names::default() },
            address: String::new(),
            source: Source::Mdns,
            said: match answers {
                true => Ok(Said {
                    hello: Hello::default(),
                    status: Ok(WorkerStatus::default()),
                    clock: None,
                    lacks: Vec::new(),
                }),
                false => Err(Unusable::new("nobody listens there").into()),
            },
            asked,
        };
        let mut all: Vec<_> = (0..700).map(|_| visited(known, true, false)).collect();
        all.push(visited(known, true, true));
        all.push(visited(quiet, true, false));
        all.extend((0..500).map(|_| visited(quiet, false, false)));
        let shown = some_of(all.into_iter(), Source::Mdns);
        let count =
            |wanted: &dyn Fn(&Visited) -> bool| shown.iter().filter(|it| wanted(it)).count();
        assert_eq!(count(&|it| it.said.is_ok()), 1);
        assert_eq!(count(&|it| it.asked), FAILED_SHOWN_MAX + 2);
        assert_eq!(shown.len(), FAILED_SHOWN_MAX + 2 + STRANGERS_SHOWN_MAX + 1);
        let left_out = 700 - FAILED_SHOWN_MAX + 500 - STRANGERS_SHOWN_MAX;
        let Err(rest) = &shown.last().unwrap().said else { panic!("it says how many more") };
        assert!(rest.reason.starts_with(&left_out.to_string()), "{}", rest.reason);
    }

    #[test]
    fn a_clock_is_compared_with_the_middle_of_question_and_answer() {
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let check = |shown, ahead_ms, uncertain_ms| {
            let clock = Some(Clock { ahead_ms, uncertain_ms });
            assert_eq!(Clock::told(shown, at(1_000), at(1_200)), clock);
        };
        check(1_100, 0, 100);
        check(9_100, 8_000, 100);
        check(100, -1_000, 100);
        assert_eq!(Clock::told(0, at(1_000), at(1_200)), None);
        assert_eq!(Clock::told(u64::MAX, at(1_000), at(1_200)), None);
    }
}
