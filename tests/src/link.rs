//! Links of virtual interfaces to workers in network namespaces of their own, and their failures.
//! Only root can make them. Needs the program `ip`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No interface has this hardware address.
const NOBODYS: &str = "02:00:00:00:00:01";

/// A pair of virtual interfaces: one stays, one goes into the worker's namespace. Both are gone
/// when that is.
pub struct Link {
    pub(crate) inside: String,
    pub(crate) inner: Ipv4Addr,
    outside: String,
    outer: Ipv4Addr,
    /// Where the worker is if a router is between: the router's address there, and its own.
    pub(crate) far: Option<(Ipv4Addr, Ipv4Addr)>,
    _number: Number,
}

/// Links that one process has at a time.
const LINKS_MAX: u32 = 256;

/// Tells a link from the others of this process. It comes round again when all others have had
/// their turn, since the interfaces of a namespace outlive it a little.
struct Number(u32);

struct Numbers {
    last: u32,
    used: BTreeSet<u32>,
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// All.
    All,
    /// Those that go to the worker.
    ToWorker,
    /// Those that come from the worker.
    FromWorker,
}

impl Link {
    /// Names and addresses that nobody else uses: of this process, and of this link.
    pub(crate) fn next() -> Self {
        let (process, number) = (std::process::id(), Number::take());
        let base = 0x0a40_0000 | ((process & 0x1fff) << 10) | (number.0 << 2);
        let name = |side| format!("d{process}{side}{}", number.0);
        Self {
            outside: name("o"),
            inside: name("i"),
            outer: Ipv4Addr::from(base | 1),
            inner: Ipv4Addr::from(base | 2),
            far: None,
            _number: number,
        }
    }

    /// The same to a router, behind which the worker is in a network of its own.
    pub(crate) fn routed(self) -> Self {
        let beyond = |address: Ipv4Addr| Ipv4Addr::from(u32::from(address) | 0x0080_0000);
        Self { far: Some((beyond(self.outer), beyond(self.inner))), ..self }
    }

    /// Replaces `ADDRESS` by the worker's address, and `GATEWAY` by the one at this end.
    pub(crate) fn fill_in(&self, text: &str) -> String {
        let ours = self.outer.to_string();
        let theirs = self.far.map_or(self.inner, |(_, worker)| worker);
        text.replace("ADDRESS", &theirs.to_string()).replace("GATEWAY", &ours)
    }

    pub(crate) fn join(&self, process: u32) {
        let Self { outside, inside, outer, inner, far, _number } = self;
        let process = process.to_string();
        let peer = ["peer", "name", inside, "netns", &process];
        ip(&[&["link", "add", outside, "type", "veth"][..], &peer].concat());
        ip(&["addr", "add", &format!("{outer}/30"), "dev", outside]);
        ip(&["link", "set", outside, "up"]);
        if let Some((_, worker)) = far {
            let (worker, via) = (worker.to_string(), inner.to_string());
            ip(&["route", "add", &worker, "via", &via, "dev", outside]);
        }
    }

    /// From now on packets are lost, and neither end is told: they go to hardware addresses that
    /// nobody has, so the kernel drops them where they arrive.
    pub fn lose(&self, lost: Lost) {
        let workers = self.worker_address();
        if lost != Lost::ToWorker {
            // The worker goes on sending to the address that this end had, and gets no answer when
            // it asks for the new one.
            ip(&["link", "set", "dev", &self.outside, "arp", "off", "address", NOBODYS]);
        }
        let sent_to = if lost == Lost::FromWorker { &workers } else { NOBODYS };
        let inner = self.inner.to_string();
        let to = ["lladdr", sent_to, "dev", &self.outside, "nud", "permanent"];
        ip(&[&["neigh", "replace", &inner][..], &to].concat());
    }

    /// The hardware address that packets to the worker go to.
    fn worker_address(&self) -> String {
        let told = ip(&["neigh", "show", &self.inner.to_string(), "dev", &self.outside]);
        let words = told.split_whitespace().skip_while(|word| *word != "lladdr");
        words.take(2).last().expect("the worker has been talked to").to_owned()
    }
}

impl Number {
    fn take() -> Self {
        let mut numbers = Numbers::all();
        let mut others = (1..=LINKS_MAX).map(|step| (numbers.last + step) % LINKS_MAX);
        let number = others.find(|number| !numbers.used.contains(number));
        let number = number.expect("fewer than 256 links at once");
        numbers.last = number;
        numbers.used.insert(number);
        Self(number)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        Numbers::all().used.remove(&self.0);
    }
}

impl Numbers {
    fn all() -> MutexGuard<'static, Self> {
        static ALL: Mutex<Numbers> = Mutex::new(Numbers { last: 0, used: BTreeSet::new() });
        ALL.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls `ip`; answers what it says.
pub(crate) fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
