//! Calls of one sequence, several under way at once, in order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Keeps up to `depth` calls under way, sent in the order of [`Pipeline::push`] and answered in it.
///
/// A link carries the pieces of one blob or output stream in the order in which their calls were
/// first polled, and their handlers begin in that order too. This does the polling.
pub struct Pipeline<'a, T> {
    depth: usize,
    calls: VecDeque<Call<'a, T>>,
}

enum Call<'a, T> {
    UnderWay(Pin<Box<dyn Future<Output = T> + Send + 'a>>),
    Answered(T),
}

impl<'a, T> Pipeline<'a, T> {
    /// With at most `depth` calls under way.
    pub fn new(depth: usize) -> Self {
        Self { depth: depth.max(1), calls: VecDeque::new() }
    }

    /// Sends `call`. Waits for the oldest call and answers its result if too many are under way.
    pub async fn push(&mut self, call: impl Future<Output = T> + Send + 'a) -> Option<T> {
        let oldest = if self.calls.len() >= self.depth { self.next().await } else { None };
        let mut call: Pin<Box<dyn Future<Output = T> + Send + 'a>> = Box::pin(call);
        let answer = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
        self.calls.push_back(match answer {
            Poll::Ready(answer) => Call::Answered(answer),
            Poll::Pending => Call::UnderWay(call),
        });
        oldest
    }

    /// Waits for the oldest call. None if no call is under way.
    pub async fn next(&mut self) -> Option<T> {
        match self.calls.front_mut()? {
            Call::UnderWay(call) => {
                let answer = call.await;
                self.calls.pop_front();
                Some(answer)
            }
            Call::Answered(_) => match self.calls.pop_front() {
                Some(Call::Answered(answer)) => Some(answer),
                _ => None,
            },
        }
    }
}
