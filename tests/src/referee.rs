//! Who runs beside whom, as the tests themselves tell it: each reports to a [`Referee`] when it
//! begins, goes on when it is told to, and reports its end before it ends.
//!
//! Nothing here is a matter of time: a test that dies without a word has left when the kernel
//! closes its connection.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::DEADLINE;

/// A test, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Present {
    /// Its name: what comes before the first `_` is its kind.
    pub name: String,
    /// Its worker's.
    pub worker: String,
}

/// A test began.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Which.
    pub test: Present,
    /// Who was running then.
    pub beside: Vec<Present>,
}

/// Hears from tests on this machine, until the process ends.
pub struct Referee {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Vec<Sighting>,
    present: BTreeMap<usize, Present>,
    /// Those of `present` that have not been told to go on.
    waiting: BTreeSet<usize>,
    /// Tests of a kind go on when so many of them wait.
    together: BTreeMap<String, usize>,
}

impl Present {
    /// What comes before the first `_` of its name.
    pub fn kind(&self) -> &str {
        self.name.split('_').next().unwrap_or_default()
    }
}

impl Sighting {
    /// Those beside it that are of this kind.
    pub fn of_kind(&self, kind: &str) -> Vec<&Present> {
        self.beside.iter().filter(|it| it.kind() == kind).collect()
    }

    /// Those beside it on the same worker.
    pub fn there(&self) -> Vec<&Present> {
        self.beside.iter().filter(|it| it.worker == self.test.worker).collect()
    }
}

impl Referee {
    /// Begins to listen.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of ours can be had");
        let address = listener.local_addr().expect("it has one");
        let shared = Arc::new(Shared::default());
        let hearing = Arc::clone(&shared);
        thread::spawn(move || {
            for (number, stream) in (0..).zip(listener.incoming().map_while(Result::ok)) {
                let shared = Arc::clone(&hearing);
                thread::spawn(move || {
                    // A connection that breaks is a test that has left.
                    let _ = shared.hear(number, stream);
                    shared.leaves(number);
                });
            }
        });
        Self { address, shared }
    }

    /// Tests of a kind wait for each other until so many are there; `usize::MAX`: for ever.
    #[must_use]
    pub fn together(self, kind: &str, count: usize) -> Self {
        self.shared.lock().together.insert(kind.to_owned(), count);
        self
    }

    /// Lets tests of a kind go on, those that wait and those that come.
    pub fn let_go(&self, kind: &str) {
        let mut state = self.shared.lock();
        state.together.remove(kind);
        state.tell(kind);
        self.shared.changed.notify_all();
    }

    /// The source of a test of this name, which takes part.
    pub fn test(&self, name: &str) -> String {
        format!("#[test]\nfn {name}() {{ attend({name:?}) }}\n")
    }

    /// The source of several, called `KIND_0` and so on.
    pub fn tests(&self, kind: &str, count: u32) -> String {
        (0..count).map(|number| self.test(&format!("{kind}_{number}"))).collect()
    }

    /// The source of what tests call.
    pub fn prelude(&self) -> String {
        let address = self.address.to_string();
        format!(
            r#"
            fn attend(name: &str) {{
                use std::io::{{BufRead, BufReader, Write}};
                let mut stream = std::net::TcpStream::connect({address:?}).unwrap();
                let worker = std::env::var("DISTEST_TEST_WORKER").unwrap();
                let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
                writeln!(stream, "{{name}} {{worker}}").unwrap();
                assert_eq!(answers.next().unwrap().unwrap(), "go on");
                // Long enough to be met by others.
                std::thread::sleep(std::time::Duration::from_millis(20));
                writeln!(stream, "over").unwrap();
                assert_eq!(answers.next().unwrap().unwrap(), "seen");
            }}
            "#
        )
    }

    /// Waits for a beginning that is `wanted`.
    pub fn wait_for(&self, wanted: impl Fn(&Sighting) -> bool) -> Sighting {
        let state = self.shared.lock();
        let none = |state: &mut State| !state.seen.iter().any(&wanted);
        let waited = self.shared.changed.wait_timeout_while(state, DEADLINE, none);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let found = state.seen.iter().find(|it| wanted(it)).cloned();
        found.unwrap_or_else(|| panic!("not seen for {DEADLINE:?}; seen: {:#?}", state.seen))
    }

    /// Waits until a test of this name has begun so many times.
    pub fn wait_for_beginning(&self, name: &str, times: usize) {
        let state = self.shared.lock();
        let begun = |state: &State| state.seen.iter().filter(|it| it.test.name == name).count();
        let too_few = |state: &mut State| begun(state) < times;
        let waited = self.shared.changed.wait_timeout_while(state, DEADLINE, too_few);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(begun(&state) >= times, "{name} began {} times, not {times}", begun(&state));
    }

    /// All beginnings so far, in order.
    pub fn seen(&self) -> Vec<Sighting> {
        self.shared.lock().seen.clone()
    }
}

impl Default for Referee {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, number: usize, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let line = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        let (name, worker) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let test = Present { name: name.to_owned(), worker: worker.to_owned() };
        self.comes(number, &test);
        let heard = thread::scope(|scope| {
            // Its end must be noticed while it waits, too.
            scope.spawn(|| {
                let state = self.lock();
                let waits = |state: &mut State| state.waiting.contains(&number);
                drop(self.changed.wait_while(state, waits));
                let _ = stream.write_all(b"go on\n");
            });
            let heard = lines.next();
            self.leaves(number);
            heard
        });
        heard.ok_or(io::ErrorKind::UnexpectedEof)??;
        stream.write_all(b"seen\n")
    }

    fn comes(&self, number: usize, test: &Present) {
        let mut state = self.lock();
        let beside = state.present.values().cloned().collect();
        state.seen.push(Sighting { test: test.clone(), beside });
        state.present.insert(number, test.clone());
        state.waiting.insert(number);
        state.tell(test.kind());
        self.changed.notify_all();
    }

    fn leaves(&self, number: usize) {
        let mut state = self.lock();
        state.present.remove(&number);
        state.waiting.remove(&number);
        self.changed.notify_all();
    }
}

impl State {
    /// Lets those of a kind go on if enough of them wait.
    fn tell(&mut self, kind: &str) {
        let enough = self.together.get(kind).copied().unwrap_or(1);
        let of_kind = |number: &usize| self.present.get(number).is_some_and(|it| it.kind() == kind);
        let waiting: Vec<usize> = self.waiting.iter().copied().filter(of_kind).collect();
        if waiting.len() >= enough {
            waiting.iter().for_each(|number| _ = self.waiting.remove(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test does, without a test.
    fn begin(referee: &Referee, name: &str) -> (TcpStream, io::Lines<BufReader<TcpStream>>) {
        let mut stream = TcpStream::connect(referee.address).unwrap();
        writeln!(stream, "{name} w1").unwrap();
        let answers = BufReader::new(stream.try_clone().unwrap()).lines();
        referee.wait_for(|it| it.test.name == name);
        (stream, answers)
    }

    #[test]
    fn sees_who_runs_beside_whom() {
        let referee = Referee::new().together("a", 2);
        let (mut first, mut told_first) = begin(&referee, "a_1");
        let (second, mut told_second) = begin(&referee, "a_2");
        assert_eq!(told_first.next().unwrap().unwrap(), "go on");
        assert_eq!(told_second.next().unwrap().unwrap(), "go on");
        writeln!(first, "over").unwrap();
        assert_eq!(told_first.next().unwrap().unwrap(), "seen");
        let (_third, _) = begin(&referee, "b_1");
        let beside: Vec<Vec<String>> = referee
            .seen()
            .iter()
            .map(|it| it.beside.iter().map(|it| it.name.clone()).collect())
            .collect();
        assert_eq!(beside, [vec![], vec!["a_1".to_owned()], vec!["a_2".to_owned()]]);
        drop(second);
    }
}
