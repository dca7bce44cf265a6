//! Workers that dial this machine, taken for a while without a run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use distest_worker::accept::accept_again;
use distest_worker::serve::HalfOpen;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::connection::GREETING_TIME;
use super::greeting::{Greeted, Names};
use super::keys::{Keys, Place};
use super::listen::could_not_listen;
use super::talk::Talk;
use super::{HEARTBEAT, Unusable};

/// What to do where none dials.
pub(super) const START_JOINER: &str =
    "start one with: distest-worker join HOST:PORT, with this machine's address";
/// How long workers that dial are waited for where all are meant: each that is there dials at least
/// every 8 s.
pub const JOINERS_WITHIN: Duration = Duration::from_secs(9);
/// Workers that are taken, and that have greeted us and wait for that.
const JOINERS_MAX: usize = 64;
/// One that doesn't say within this long that it is awake is as good as gone.
const AWAKE_WITHIN: Duration = Duration::from_secs(2);
/// Of those that could not be greeted, so many are told of.
const REFUSED_MAX: usize = 16;

/// What to do about a worker that has dialled.
pub(super) enum Take {
    /// It dials again later.
    Nobody,
    /// It is meant, and there may be more.
    Another,
    /// It is meant, and nobody else.
    Last,
}

/// Who has dialled.
pub(super) struct Joined {
    /// Those that are meant.
    pub(super) came: Vec<Talk>,
    /// Some of those that could not be greeted, each once.
    pub(super) refused: BTreeSet<(IpAddr, Unusable)>,
}

/// Lets workers dial this machine at these places; ends after some time, or with the last one that
/// is meant. Each once.
///
/// # Errors
/// There is a place where we can't listen.
pub(super) async fn joiners(
    places: &[SocketAddr],
    keys: &Keys,
    within: Duration,
    mut take: impl FnMut(&Names) -> Take,
) -> Result<Joined, Unusable> {
    let (greeted, mut greetings) = mpsc::channel(JOINERS_MAX);
    let mut listening = JoinSet::new();
    for place in places {
        let listener =
            TcpListener::bind(place).await.map_err(|error| could_not_listen(*place, &error))?;
        listening.spawn(greet_all(listener, keys.clone(), greeted.clone()));
    }
    drop(greeted);
    let end = Instant::now() + within;
    let mut awake = tokio::time::interval(HEARTBEAT);
    let (mut taken, mut refused): (Vec<Talk>, _) = (Vec::new(), BTreeSet::new());
    loop {
        tokio::select! {
            next = greetings.recv() => {
                // Nobody listens anywhere.
                let Some(next) = next else { return Ok(Joined { came: taken, refused }) };
                let talk = match next {
                    Ok(talk) => talk,
                    Err(why) if refused.len() < REFUSED_MAX => {
                        refused.insert(why);
                        continue;
                    }
                    Err(_) => continue,
                };
                let again = |it: &Talk| {
                    it.hello.instance == talk.hello.instance && !it.hello.instance.is_empty()
                };
                if taken.iter().any(again) {
                    continue;
                }
                match take(&talk.names) {
                    Take::Nobody => {}
                    Take::Another => {
                        let keys: Vec<_> = taken.iter().map(|it| &it.names.key).collect();
                        match room_for(&&talk.names.key, &keys, JOINERS_MAX) {
                            Some(place) if place < taken.len() => taken[place] = talk,
                            Some(_) => taken.push(talk),
                            None => {}
                        }
                    }
                    Take::Last => {
                        taken.push(talk);
                        return Ok(Joined { came: taken, refused });
                    }
                }
            }
            _ = awake.tick() => {
                let by = end.min(Instant::now() + AWAKE_WITHIN);
                let awake = taken.iter().map(|it| timeout_at(by, it.is_awake()));
                let awake = futures::future::join_all(awake).await;
                let mut awake = awake.into_iter();
                // At the end nobody is left out for being asked late.
                let late = by == end;
                taken.retain(|_| awake.next().is_some_and(|it| it.unwrap_or(late)));
            }
            () = sleep_until(end) => return Ok(Joined { came: taken, refused }),
        }
    }
}

/// The place of another worker with this key among so many: the next one, or that of one whose key
/// has more, so that who makes up workers hides nobody else's.
fn room_for<K: Ord>(key: &K, taken: &[K], max: usize) -> Option<usize> {
    if taken.len() < max {
        return Some(taken.len());
    }
    let mut of_key: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (place, key) in taken.iter().enumerate() {
        of_key.entry(key).or_default().push(place);
    }
    let own = of_key.get(key).map_or(0, Vec::len);
    let most = of_key.into_values().max_by_key(Vec::len)?;
    (most.len() > own + 1).then(|| most.last().copied()).flatten()
}

/// Greets whoever dials and is known, several at once, for as long as somebody takes them.
async fn greet_all(
    listener: TcpListener,
    keys: Keys,
    greeted: mpsc::Sender<Result<Talk, (IpAddr, Unusable)>>,
) {
    let (half_open, keys) = (HalfOpen::new(), Arc::new(keys));
    let mut greeting = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else {
                    accept_again().await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (keys, greeted) = (Arc::clone(&keys), greeted.clone());
                half_open.spawn(&mut greeting, peer.ip(), move |place| async move {
                    // One that says nothing keeps nobody out.
                    let talk = timeout(GREETING_TIME, joiner(&keys, stream, peer)).await;
                    drop(place);
                    let silent = |_| Err(Unusable::new("it says nothing"));
                    let talk = talk.unwrap_or_else(silent);
                    let _ = greeted.send(talk.map_err(|why| (peer.ip(), why))).await;
                });
            }
            Some(_) = greeting.join_next() => {}
        }
    }
}

async fn joiner(
    keys: &Keys,
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
) -> Result<Talk, Unusable> {
    let loopback = peer.ip().to_canonical().is_loopback();
    let place = Place { address: "-", pinned: None, loopback };
    let secured = keys.accept_joiner(stream, place).await?;
    Talk::with(Greeted::proved(keys, secured).await?).recent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_poses_as_many_hides_nobody() {
        let mut taken: Vec<char> = Vec::new();
        for key in "aaaaaaaabbaccda".chars() {
            match room_for(&key, &taken, 8) {
                Some(place) if place < taken.len() => taken[place] = key,
                Some(_) => taken.push(key),
                None => {}
            }
        }
        taken.sort_unstable();
        assert_eq!(String::from_iter(taken), "aaabbccd");
    }
}
