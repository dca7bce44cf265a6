//! What the doctor sees of the workers, and of the network that leads to them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use distest_worker::compat::elf::glibc_version;
use distest_worker::protocol::{Refusal, WorkerStatus};
use distest_worker::sandbox::level::Level;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::built::Built;
use super::{DESCRIPTORS_MIN, DISK_FREE_MIN, Finding, could, fine, wrong};
use crate::fleet::{self, Clock, Said, Source, Trouble, Visited, Wanted};
use crate::settings::{FleetSettings, KeySource, WorkerAddress};

/// A worker's store is nearly full at this many percent.
const STORE_FULL_PERCENT: u64 = 90;
/// Milliseconds by which clocks may differ.
const CLOCK_MS_MAX: u64 = 2_000;

/// What ends a worker's pause.
const UNTIL_OVER: &str = "it takes tests again by itself when that is over; whoever started it chose \
                          so (`--max-load`, `--idle-only`)";

/// Looks at every worker that is named or known; none where the user wants no key.
///
/// # Errors
/// There is no key to look with, or it can't be told who is known.
pub(super) async fn visited(
    settings: &FleetSettings,
    built: &Built,
) -> Result<Vec<Visited>, Trouble> {
    if settings.identity.key == KeySource::Nowhere {
        return Ok(Vec::new());
    }
    let wanted = Wanted { starts: true, joiners: true, libraries: built.libraries.clone() };
    fleet::visit(settings, &wanted).await
}

/// What was seen of them.
pub(super) fn workers(
    settings: &FleetSettings,
    visited: &[Visited],
    built: &Built,
) -> Vec<Finding> {
    let mut findings = vec![mdns(settings.workers.contains(&WorkerAddress::Mdns), visited)];
    if visited.is_empty() && settings.workers.is_empty() {
        findings.push(fine("workers", "none: tests run on this machine".to_owned()));
    }
    // That nobody was found there has been said.
    let mdns = WorkerAddress::Mdns.to_string();
    let seen = visited.iter().filter(|it| it.asked || it.address != mdns);
    findings.extend(seen.flat_map(|it| worker(it, built)));
    findings
}

/// Whether the local network shows its workers, if somebody looked around there.
fn mdns(looked: bool, visited: &[Visited]) -> Finding {
    let found = visited.iter().filter(|it| it.source == Source::Mdns && it.names.key.is_some());
    let found = found.count();
    if found > 0 {
        return fine("mdns", format!("{found} workers say that they are there"));
    }
    let interfaces: Vec<_> = multicast().into_iter().collect();
    match (looked, interfaces.is_empty()) {
        (true, false) => could(
            "mdns",
            "no worker in the local network says that it is there".to_owned(),
            "start workers with `serve --mdns` and let UDP port 5353 through firewalls; where \
             multicast doesn't get through, use `registry` and `serve --register`",
        ),
        (true, true) => could(
            "mdns",
            "no network interface of this machine takes multicast".to_owned(),
            "use `registry` and `serve --register`, or name workers by their addresses",
        ),
        (false, _) if !cfg!(feature = "mdns") => {
            fine("mdns", "this program was built without it".to_owned())
        }
        (false, none) => {
            let takes = match none {
                true => "no network interface of this machine takes".to_owned(),
                false => format!("{} takes", interfaces.join(", ")),
            };
            fine("mdns", format!("{takes} multicast; --worker mdns looks for workers there"))
        }
    }
}

/// Interfaces by which others may be found.
fn multicast() -> BTreeSet<String> {
    let takes_part = getifaddrs().into_iter().flatten().filter(|interface| {
        let flags = InterfaceFlags::IFF_MULTICAST | InterfaceFlags::IFF_UP;
        let address = interface.address.as_ref();
        let v4 = address.and_then(|it| it.as_sockaddr_in()).map(|it| IpAddr::from(it.ip()));
        let v6 = address.and_then(|it| it.as_sockaddr_in6()).map(|it| IpAddr::from(it.ip()));
        interface.flags.contains(flags) && v4.or(v6).is_some_and(|ip| !ip.is_loopback())
    });
    takes_part.map(|interface| interface.interface_name).collect()
}

fn worker(visited: &Visited, built: &Built) -> Vec<Finding> {
    let name = match visited.names.shown() {
        "" => &visited.address,
        name => name,
    };
    let about = match name.parse() {
        Ok(WorkerAddress::Registry { .. }) => name.to_owned(),
        _ => format!("worker {name}"),
    };
    let Said { hello, status, clock, lacks } = match &visited.said {
        Ok(said) => said,
        Err(Trouble { reason, hint }) => {
            let reason = reason.clone();
            let finding = match (visited.asked, hint) {
                (true, hint) => Finding { hint: hint.clone(), ..wrong(&about, reason) },
                // Whoever dials need not be there now.
                (false, Some(hint)) => could(&about, reason, hint),
                (false, None) => fine(&about, reason),
            };
            return vec![finding];
        }
    };
    let mut findings = vec![match hello.refusal.clone() {
        Some(Refusal { message, hint, .. }) => Finding { hint, ..wrong(&about, message) },
        None => fine(&about, format!("{} slots for {}", hello.slots, hello.target)),
    }];
    findings.push(version(&about, &hello.software));
    findings.extend(clock.map(|clock| skew(&about, clock)));
    findings.push(sandbox(&about, hello.sandbox_level, status.as_ref().ok()));
    if !lacks.is_empty() {
        let text = format!("lacks libraries that tests built here need: {}", lacks.join(", "));
        findings.push(could(&about, text, "install them there, or have them linked statically"));
    }
    if let (Some(needed), Some(has)) = (built.glibc, glibc_version(&hello.libc))
        && has < needed
    {
        let (major, minor) = needed;
        let has = &hello.libc;
        let text = format!("has {has}, and tests built here need glibc {major}.{minor}");
        let hint = "build on the oldest system among your workers, or for a musl target";
        findings.push(could(&about, text, hint));
    }
    match status {
        Err(Trouble { reason, hint }) => {
            let text = format!("doesn't tell how it is: {reason}");
            findings.push(could(&about, text, hint.as_deref().unwrap_or("upgrade it")));
        }
        Ok(status) => findings.extend(lacking(&about, status)),
    }
    findings
}

/// What a worker says that is wanting.
fn lacking(about: &str, status: &WorkerStatus) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |text: String, hint: &str| findings.push(could(about, text, hint));
    if status.draining || !status.paused.is_empty() {
        let (why, hint) = match status.draining {
            true => ("it drains", "it ends when what runs has: start it again then"),
            false => (status.paused.as_str(), UNTIL_OVER),
        };
        found(format!("takes no tests: {why}"), hint);
    }
    let full = status.store_bytes_max / 100 * STORE_FULL_PERCENT;
    if full > 0 && status.store_bytes > full {
        let (kept, most) = (status.store_bytes, status.store_bytes_max);
        found(format!("keeps {kept} of at most {most} bytes"), "give it more with --store-max");
    }
    if let Some(free) = status.disk_free_bytes.filter(|free| *free < DISK_FREE_MIN) {
        let text = format!("its disk has {} MiB left for files", free >> 20);
        found(text, "make room there, or name another folder with --store");
    }
    let descriptors = status.descriptors_max;
    if (1..DESCRIPTORS_MIN).contains(&descriptors) {
        let text = format!("may open {descriptors} files");
        found(text, "raise `ulimit -Hn` there (LimitNOFILE= in a systemd unit)");
    }
    findings
}

fn version(about: &str, theirs: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    match theirs == ours {
        true => fine(about, format!("has version {ours}, as this machine")),
        false => {
            let text = format!("has version {theirs}, and {ours} is here");
            could(about, text, "upgrade the older one")
        }
    }
}

/// What a level of sandbox means, and what would raise it.
fn sandbox(about: &str, level: u32, status: Option<&WorkerStatus>) -> Finding {
    let level = Level::from_number(level);
    let (why, hint) = match status {
        Some(status) => (status.sandbox_reason.as_str(), status.sandbox_hint.as_deref()),
        None => ("", None),
    };
    let text = format!("its sandboxes have level {}: {}", level.name(), level.meaning());
    if level.is_enclosed() && why.is_empty() {
        return fine(about, text);
    }
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    let hint =
        hint.unwrap_or("a worker says at its start what stands in the way of a better level");
    could(about, format!("{text}{why}"), hint)
}

/// A clock that differs by more than can be explained, or doesn't.
fn skew(about: &str, Clock { ahead_ms, uncertain_ms }: Clock) -> Finding {
    let off = ahead_ms.unsigned_abs();
    if off <= CLOCK_MS_MAX.saturating_add(uncertain_ms) {
        let within = off.saturating_add(uncertain_ms).div_ceil(10) as f64 / 100.0;
        let text = format!("its clock and this machine's differ by at most {within:.2} s");
        return fine(about, text);
    }
    let which = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let text = format!("its clock is {:.1} s {which} this machine's", off as f64 / 1e3);
    could(about, text, "have both clocks set by NTP: times of files and in output differ")
}

#[cfg(test)]
mod tests {
    use distest_worker::hello::Hello;

    use super::super::Grade;
    use super::*;
    use crate::fleet::Names;

    fn check(change: impl FnOnce(&mut Said), expected: &str) {
        let hello = Hello {
            software: env!("CARGO_PKG_VERSION").to_owned(),
            name: "w1".to_owned(),
            sandbox_level: Level::Namespaces.number(),
            ..Hello::default()
        };
        let status = WorkerStatus {
            store_bytes_max: 100 << 30,
            descriptors_max: 4096,
            disk_free_bytes: Some(100 << 30),
            ..WorkerStatus::default()
        };
        let clock = Some(Clock { ahead_ms: 900, uncertain_ms: 10 });
        let mut said = Said { hello, status: Ok(status), clock, lacks: Vec::new() };
        change(&mut said);
        let names = Names { own: "w1".to_owned(), ..Names::default() };
        let (address, source) = (String::new(), Source::Known);
        let built = Built { glibc: Some((2, 36)), libraries: Vec::new() };
        let visited = Visited { names, address, source, said: Ok(said), asked: true };
        let found = worker(&visited, &built);
        let (all_right, rest): (Vec<_>, Vec<_>) =
            found.iter().partition(|it| it.grade == Grade::Fine);
        assert!(all_right.iter().all(|it| it.hint.is_none()), "{found:?}");
        let told: Vec<_> = rest.iter().map(|it| (it.text.contains(expected), it.grade)).collect();
        let hints = rest.iter().all(|it| it.hint.is_some());
        let one = told == [(true, Grade::Could)] && hints;
        assert!(if expected.is_empty() { rest.is_empty() } else { one }, "{expected}: {found:?}");
        let looked = ["slots", "version", "clock", "sandboxes"];
        let told = looked.map(|it| found.iter().filter(|found| found.text.contains(it)).count());
        assert!(told.iter().all(|count| *count == 1), "{found:?}");
    }

    #[test]
    fn what_is_wrong_with_a_worker_is_said_with_what_to_do() {
        check(|_| {}, "");
        check(|it| it.hello.software = "0.0.1".to_owned(), "version 0.0.1");
        check(|it| it.lacks = vec!["libpq.so.5".to_owned()], "need: libpq.so.5");
        check(|it| it.hello.libc = "glibc 2.31".to_owned(), "need glibc 2.36");
        let clock = |ahead_ms, uncertain_ms| Some(Clock { ahead_ms, uncertain_ms });
        check(|it| it.clock = clock(90_000, 1), "90.0 s ahead of");
        check(|it| it.clock = clock(-2_100, 50), "2.1 s behind");
        check(|it| it.clock = clock(2_100, 500), "");
        check(|it| it.clock = clock(i64::MIN, u64::MAX), "");
        let status = |change: fn(&mut WorkerStatus)| {
            move |it: &mut Said| change(it.status.as_mut().unwrap())
        };
        check(status(|it| it.disk_free_bytes = Some(5 << 20)), "5 MiB left");
        check(status(|it| it.descriptors_max = 256), "may open 256 files");
        check(status(|it| it.store_bytes = 95 << 30), "keeps");
        check(status(|it| it.sandbox_reason = "no namespaces".to_owned()), "(no namespaces)");
        check(|it| it.hello.sandbox_level = 0, "level variables: the client's files lie");
        check(status(|it| it.draining = true), "drains");
        check(status(|it| it.paused = "the machine's load is 9".to_owned()), "load is 9");
    }

    #[test]
    fn who_can_not_be_asked_now_is_not_wrong() {
        let built = Built { glibc: None, libraries: Vec::new() };
        let check = |source, asked, hint: Option<&str>, expected| {
            let names = Names { own: "w1".to_owned(), ..Names::default() };
            let hint = hint.map(str::to_owned);
            let said = Err(Trouble { reason: "it says nothing".to_owned(), hint });
            let found =
                worker(&Visited { names, address: "-".to_owned(), source, said, asked }, &built);
            assert_eq!(found.iter().map(|it| it.grade).collect::<Vec<_>>(), [expected]);
        };
        // One that dials this machine; one that is started for each run; a stranger; one that is gone.
        check(Source::Known, false, Some("say where"), Grade::Could);
        check(Source::Address, false, None, Grade::Fine);
        check(Source::Mdns, false, Some("take an invitation"), Grade::Could);
        check(Source::Known, true, Some("start it"), Grade::Wrong);
    }

    #[test]
    fn a_network_that_shows_nobody_is_told() {
        assert_eq!(mdns(true, &[]).grade, Grade::Could);
        let not_looked = mdns(false, &[]);
        assert!(not_looked.grade == Grade::Fine && not_looked.text.contains("multicast"));
    }
}
