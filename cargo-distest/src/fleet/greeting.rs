//! Greeting a worker, whoever dialled, and what it may be called.

use distest_worker::hello::{self, Hello, HelloError, Role};
use distest_worker::identity::PublicKey;
use distest_worker::link::{Dial, Duplex, Stream};
use distest_worker::tls::{self, Secured};
use tokio::io::{AsyncRead, AsyncWrite};

use super::keys::Keys;
use super::{CONNECT_TIMEOUT, Unusable};
use crate::wary;

/// A worker that has greeted us, and whom we know.
pub(super) struct Greeted {
    pub(super) hello: Hello,
    pub(super) names: Names,
    pub(super) stream: Stream,
    /// How we come back to it if the stream breaks; none if it can't be.
    pub(super) comeback: Option<Comeback>,
}

/// How we come back to a worker.
pub(super) struct Comeback {
    pub(super) dial: Dial,
    /// What it calls this connection.
    pub(super) token: String,
}

/// What a worker may be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// What it calls itself; empty if it has not said.
    pub own: String,
    /// What this user calls it.
    pub alias: Option<String>,
    /// Its key.
    pub key: Option<PublicKey>,
    /// Where ssh leads, if it was started so.
    pub host: Option<String>,
}

impl Greeted {
    /// Greets a worker that has proved its key.
    pub(super) async fn proved<S>(keys: &Keys, secured: Secured<S>) -> Result<Self, Unusable>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Secured { stream, key, .. } = secured;
        Self::over(Some(keys), Box::new(stream), keys.names(key), None).await
    }

    /// Greets a worker that has proved its key and can be dialled again.
    pub(super) async fn dialled<S>(
        keys: &Keys,
        secured: Secured<S>,
        again: Dial,
    ) -> Result<Self, Unusable>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Secured { stream, key, .. } = secured;
        Self::over(Some(keys), Box::new(stream), keys.names(key), Some(again)).await
    }

    /// Greets one that ssh has started there.
    pub(super) async fn behind(
        host: &str,
        stream: impl Duplex + 'static,
    ) -> Result<Self, Unusable> {
        let names = Names { host: Some(host.to_owned()), ..Names::default() };
        Self::over(None, Box::new(stream), names, None).await
    }

    async fn over(
        keys: Option<&Keys>,
        mut stream: Stream,
        names: Names,
        again: Option<Dial>,
    ) -> Result<Self, Unusable> {
        let comes_back = again.is_some();
        let ours = Hello { comes_back, ..Hello::new(Role::Client, "cargo-distest") };
        let mut hello = match (hello::exchange(&mut stream, &ours, CONNECT_TIMEOUT).await, keys) {
            (Ok(hello), _) => wary::hello(hello),
            (Err(HelloError::Io(error)), Some(keys)) if tls::refusal(&error) => {
                return Err(keys.refused());
            }
            (Err(error), _) => {
                let hint = error.hint().as_deref().map(wary::sentence);
                return Err(Unusable { hint, ..Unusable::new(wary::sentence(&error.to_string())) });
            }
        };
        let names = Names { own: hello.name.clone(), ..names };
        // Nobody else is to know it.
        let token = std::mem::take(&mut hello.comeback);
        let again = again.filter(|_| !token.is_empty());
        let comeback = again.map(|dial| Comeback { dial, token });
        Ok(Self { hello, names, stream, comeback })
    }
}

impl Names {
    /// Whether somebody means this worker by that.
    pub fn include(&self, name: &str) -> bool {
        let told = [Some(&self.own), self.alias.as_ref(), self.host.as_ref()];
        told.into_iter().flatten().any(|it| it == name && !it.is_empty())
            || self.key.is_some_and(|key| key.to_string() == name)
    }

    /// The one to show: its own, as far as it is known.
    pub fn shown(&self) -> &str {
        let others = [self.alias.as_deref(), self.host.as_deref()];
        let own = Some(self.own.as_str()).filter(|own| !own.is_empty());
        own.or_else(|| others.into_iter().flatten().next()).unwrap_or_default()
    }

    /// What this user calls it, if that is something else.
    pub fn other(&self) -> Option<&str> {
        self.alias.as_deref().filter(|alias| *alias != self.shown())
    }
}

#[cfg(test)]
mod tests {
    use distest_worker::identity::PrivateKey;

    use super::*;

    #[test]
    fn a_worker_is_meant_by_any_of_its_names_and_shown_by_its_own() {
        let key = PrivateKey::generate().unwrap().public();
        let mut names = Names { key: Some(key), ..Names::default() };
        assert!(names.include(&key.to_string()) && !names.include(""));
        assert_eq!((names.shown(), names.other()), ("", None));
        names.host = Some("build-7".to_owned());
        assert!(names.include("build-7") && names.shown() == "build-7");
        names.alias = Some("mine".to_owned());
        assert_eq!((names.shown(), names.other()), ("mine", None));
        names.own = "w1".to_owned();
        for name in ["w1", "mine", "build-7"] {
            assert!(names.include(name), "{name}");
        }
        assert!(!names.include("w2"));
        assert_eq!((names.shown(), names.other()), ("w1", Some("mine")));
    }
}
