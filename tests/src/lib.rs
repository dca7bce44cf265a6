//! The harness of the end-to-end tests: the product as its users see it, from outside.
//!
//! Nothing here knows the product's code. [`product`] builds the executables, [`client`] and
//! [`worker`] run them, [`transcript`] and [`junit`] read what they say, [`fixture`] knows what they
//! should have said. Everything that is started carries the [`scratch`] folder's mark and is ended
//! when its owner is dropped, also by a panic. Failures of the harness itself are panics that say
//! what was attempted: a test that can't be carried out has not passed.

pub mod client;
pub mod crates;
pub mod fixture;
pub mod hermetic;
pub mod impostor;
pub mod junit;
pub mod link;
pub mod measure;
pub mod postgres;
pub mod process;
pub mod product;
pub mod proxy;
pub mod random;
pub mod referee;
pub mod scratch;
pub mod sshd;
pub mod transcript;
pub mod trap;
pub mod worker;

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Within this long whatever a test waits for must have happened; only a hang takes longer.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// The next that connects: whoever should have might have failed before.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let listening = listener.try_clone().expect("a listener can be shared");
    let (sender, accepted) = channel();
    thread::spawn(move || sender.send(listening.accept()));
    let accepted = accepted.recv_timeout(DEADLINE);
    let accepted = accepted.unwrap_or_else(|_| panic!("nobody has come for {DEADLINE:?}"));
    accepted.expect("connections come").0
}
