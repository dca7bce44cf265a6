//! What to do when a listener can't listen, or accept.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

/// How long to wait before the next try.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What helps where nobody could listen at an address, if that is known.
pub fn listen_hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            Some("something else listens there: end it, or take another port (0 picks a free one)")
        }
        io::ErrorKind::AddrNotAvailable => {
            Some("name an address of this machine's, or 0.0.0.0 for all that it has")
        }
        io::ErrorKind::PermissionDenied => Some("ports below 1024 are root's: take another one"),
        _ => None,
    }
}

/// What keeps a listener from accepting, most likely that there are no descriptors left.
#[derive(Default)]
pub(crate) struct AcceptObstacle(Option<String>);

impl AcceptObstacle {
    /// Tells of it, unless it is the same as before, and waits before the next try.
    pub(crate) async fn met(&mut self, error: &io::Error, tell: &mut impl FnMut(String)) {
        let text = format!("could not accept a connection: {error}");
        if self.0.as_ref() != Some(&text) {
            tell(text.clone());
            self.0 = Some(text);
        }
        accept_again().await;
    }
}

/// Waits before the next try to accept: a descriptor must come free first, and nobody tells.
pub async fn accept_again() {
    sleep(ACCEPT_AGAIN_AFTER).await;
}
