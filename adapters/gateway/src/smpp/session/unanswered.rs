//! The requests that were taken and have no answer yet.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::Answer;

/// The unanswered requests of a session by their sequence numbers.
#[derive(Default)]
pub(super) struct Unanswered(BTreeMap<u32, Request>);

struct Request {
    /// The number of octets that are written when the last one of this request is.
    ends_at: u64,
    since: Instant,
    answer: oneshot::Sender<Answer>,
    /// Given back when the request is no longer unanswered.
    _place: OwnedSemaphorePermit,
}

impl Unanswered {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Enters a request that is about to be written. It ends at this number of octets.
    pub(super) fn enter(
        &mut self,
        sequence: u32,
        ends_at: u64,
        answer: oneshot::Sender<Answer>,
        place: OwnedSemaphorePermit,
    ) {
        let request = Request { ends_at, since: Instant::now(), answer, _place: place };
        self.0.insert(sequence, request);
    }

    /// Hands an answer to the caller, which may have gone away. An answer to no request of ours is
    /// ignored.
    pub(super) fn answer(&mut self, sequence: u32, answer: Answer) {
        if let Some(request) = self.0.remove(&sequence) {
            _ = request.answer.send(answer);
        }
    }

    /// Gives up the requests that the SMSC did not answer in time, so that they free the window.
    pub(super) fn give_up(&mut self, now: Instant, patience: Duration) {
        for (_, request) in self.0.extract_if(.., |_, request| now >= request.since + patience) {
            _ = request.answer.send(Answer::Lost);
        }
    }

    /// Ends all requests. `written` octets left before the end.
    pub(super) fn end(&mut self, written: u64) {
        for (_, request) in std::mem::take(&mut self.0) {
            let lost = request.ends_at <= written;
            _ = request.answer.send(if lost { Answer::Lost } else { Answer::NotSent });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn enter(
        unanswered: &mut Unanswered,
        sequence: u32,
        ends_at: u64,
    ) -> oneshot::Receiver<Answer> {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let (answer, answered) = oneshot::channel();
        unanswered.enter(sequence, ends_at, answer, place);
        answered
    }

    #[tokio::test]
    async fn only_a_request_whose_last_octet_left_may_have_been_taken() {
        let mut unanswered = Unanswered::default();
        let written = enter(&mut unanswered, 2, 100);
        let cut = enter(&mut unanswered, 3, 200);

        unanswered.end(199);

        assert_eq!((written.await, cut.await), (Ok(Answer::Lost), Ok(Answer::NotSent)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_given_up_after_its_time() {
        let mut unanswered = Unanswered::default();
        let patience = Duration::from_secs(10);
        let first = enter(&mut unanswered, 2, 100);
        tokio::time::advance(patience).await;
        let mut second = enter(&mut unanswered, 3, 200);

        unanswered.give_up(Instant::now(), patience);

        assert_eq!(first.await, Ok(Answer::Lost));
        assert!(second.try_recv().is_err() && !unanswered.is_empty());
    }
}
