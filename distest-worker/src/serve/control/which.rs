//! Which of this user's workers is meant, where several run.

use std::path::PathBuf;
use std::str::FromStr;

use super::{Answer, Ask, talk};
use crate::log::Complaint;

/// What is said of the worker that is meant.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// What it is called.
    pub name: Option<String>,
    /// Where it listens.
    pub at: Option<At>,
    /// Its process.
    pub process: Option<u32>,
}

/// Where a worker listens, as it says when it is ready, or its port alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum At {
    /// `HOST:PORT`.
    Place(String),
    /// At whatever address.
    Port(u16),
}

/// A worker that may be meant.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) name: String,
    /// `HOST:PORT`.
    pub(super) address: Option<String>,
    pub(super) process: Option<u32>,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.strip_prefix("tcp://").unwrap_or(text);
        let place = place.split_once('#').map_or(place, |(place, _)| place);
        if let Ok(port) = place.parse() {
            return Ok(Self::Port(port));
        }
        match place.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Place(place.to_owned()))
            }
            _ => Err("expected the address that it printed when it was ready, or its port".into()),
        }
    }
}

impl At {
    fn is(&self, address: &str) -> bool {
        match self {
            Self::Place(place) => place == address,
            Self::Port(port) => {
                address.rsplit_once(':').is_some_and(|(_, its)| its == port.to_string())
            }
        }
    }
}

impl Candidate {
    /// The worker at a socket, if it answers.
    pub(super) async fn at(path: PathBuf) -> Option<Self> {
        let Ok(Answer::Name(name)) = talk(&path, &Ask::Name {}).await else { return None };
        let address = match talk(&path, &Ask::Address {}).await {
            Ok(Answer::Address(address)) => address,
            // An older one doesn't say.
            _ => None,
        };
        let process = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        Some(Self { path, name, address, process })
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name
    }

    fn is_at(&self, at: &At) -> bool {
        self.address.as_deref().is_some_and(|address| at.is(address))
    }

    fn shown(&self) -> String {
        let process = self.process.map(|process| format!("process {process}"));
        let parts = [Some(self.name.clone()), self.address.clone(), process];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// What to type for this one of several.
    fn typed(&self, several: &[&Self]) -> Option<String> {
        let alone = |is: &dyn Fn(&Self) -> bool| several.iter().filter(|it| is(it)).count() == 1;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.name.chars().all(plain) && alone(&|it| it.name == self.name) {
            return Some(format!("--name {}", self.name));
        }
        match (&self.address, self.process) {
            (Some(address), _) if alone(&|it| it.address == self.address) => {
                Some(format!("--at {address}"))
            }
            (_, Some(process)) => Some(format!("--process {process}")),
            _ => None,
        }
    }
}

impl Which {
    /// The only one that is meant.
    pub(super) fn choose<'a>(&self, all: &'a [Candidate]) -> Result<&'a Candidate, Complaint> {
        let Self { name, at, process } = self;
        let meant: Vec<&Candidate> = all
            .iter()
            .filter(|it| name.as_ref().is_none_or(|name| it.is_called(name)))
            .filter(|it| at.as_ref().is_none_or(|at| it.is_at(at)))
            .filter(|it| process.is_none_or(|process| it.process == Some(process)))
            .collect();
        match (&meant[..], all) {
            ([it], _) => Ok(it),
            ([], []) => Err(Complaint::from("no worker of this user runs on this machine")
                .hint("start one with: distest-worker serve --listen IP:PORT")),
            ([], all) => {
                let all: Vec<_> = all.iter().collect();
                Err(Complaint::from(self.nobody()).hint(format!("these run here\n{}", list(&all))))
            }
            (several, _) => Err(Complaint::from(match name {
                Some(name) => format!("several workers of this user are called `{name}` here"),
                None => "several workers of this user run here".to_owned(),
            })
            .hint(format!("choose one\n{}", list(several)))),
        }
    }

    fn nobody(&self) -> String {
        let Self { name, at, process } = self;
        let name = name.as_ref().map(|name| format!("is called `{name}`"));
        let at = at.as_ref().map(|at| match at {
            At::Place(place) => format!("listens at {place}"),
            At::Port(port) => format!("listens at port {port}"),
        });
        let process = process.map(|process| format!("is process {process}"));
        let said: Vec<_> = [name, at, process].into_iter().flatten().collect();
        format!("no worker of this user on this machine {}", said.join(" and "))
    }
}

/// A line each: what to type, and who it is.
fn list(candidates: &[&Candidate]) -> String {
    let lines = candidates.iter().map(|it| match it.typed(candidates) {
        Some(typed) => format!("  {typed}  ({})", it.shown()),
        None => format!("  {}", it.shown()),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, address: Option<&str>, process: u32) -> Candidate {
        let (name, address) = (name.to_owned(), address.map(str::to_owned));
        Candidate { path: PathBuf::new(), name, address, process: Some(process) }
    }

    #[test]
    fn a_worker_is_chosen_by_name_place_port_or_process() {
        let all = [
            candidate("a", Some("10.0.0.1:7000"), 1),
            candidate("a", Some("10.0.0.1:7001"), 2),
            candidate("b c", Some("127.0.0.1:7001"), 3),
            candidate("d", None, 4),
        ];
        let at = |text: &str| Which { at: Some(text.parse().unwrap()), ..Which::default() };
        let chosen = |which: &Which| which.choose(&all).map(|it| it.process.unwrap());
        assert_eq!(chosen(&at("tcp://10.0.0.1:7001#ed25519:x")), Ok(2));
        assert_eq!(chosen(&at("127.0.0.1:7001")), Ok(3));
        assert_eq!(chosen(&at("7000")), Ok(1));
        assert_eq!(chosen(&Which { process: Some(4), ..Which::default() }), Ok(4));
        let which = Which { name: Some("a".to_owned()), ..at("7001") };
        assert_eq!(chosen(&which), Ok(2), "all of it holds");

        let hint = |which: &Which| chosen(which).unwrap_err().hint.unwrap();
        let two = "choose one\n  --at 10.0.0.1:7000  (a, 10.0.0.1:7000, process 1)\n  \
                   --at 10.0.0.1:7001  (a, 10.0.0.1:7001, process 2)";
        assert_eq!(hint(&Which { name: Some("a".to_owned()), ..Which::default() }), two);
        let all = hint(&Which::default());
        assert!(all.ends_with("\n  --name d  (d, process 4)"), "{all}");
        assert!(all.contains("\n  --at 127.0.0.1:7001  (b c, "), "{all}");
        let none = chosen(&at("9")).unwrap_err();
        assert!(none.why.ends_with("listens at port 9") && none.hint.unwrap().contains("--name d"));
        // Workers in networks of their own.
        let twins = [1, 2].map(|process| candidate("a", Some("10.0.0.1:7000"), process));
        let told = Which::default().choose(&twins).unwrap_err().hint.unwrap();
        assert!(told.contains("--process 1") && told.contains("--process 2"), "{told}");
        assert!("x".parse::<At>().is_err());
    }
}
