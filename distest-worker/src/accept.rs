//! What to do when a listener can't accept.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

/// How long to wait before the next try.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

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
