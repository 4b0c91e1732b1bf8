use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use autometrics::autometrics;
use rand_core::Rng;
use tokio::task::JoinSet;

use crate::{
    Chain,
    ports::{DueEvent, EventOutbox, EventSink, PostError, StoreError},
};

/// Delivers events to `EVENTS_URL`. Each is retried for about three days until it is accepted.
#[derive(Debug)]
pub struct DeliverEvents<E, S, R> {
    outbox: Arc<E>,
    sink: Arc<S>,
    rng: Mutex<R>,
    settings: EventSettings,
    /// Whether posts failed in the latest round. A change is logged.
    failing: AtomicBool,
}

/// Settings of [`DeliverEvents`].
#[derive(Debug, Clone, Copy)]
pub struct EventSettings {
    /// The maximum number of events in a round.
    pub batch: usize,
    /// The maximum number of concurrent posts.
    pub concurrency: usize,
    /// How long a round may take. An event that is not settled by then is posted again.
    pub lease: Duration,
}

/// The results of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Posted {
    pub claimed: usize,
    pub delivered: usize,
    /// Events that wait for their next attempt.
    pub retried: usize,
    /// Events that were given up.
    pub dropped: usize,
    /// Events whose result was not stored. They are posted again.
    pub unsettled: usize,
}

#[derive(Debug)]
enum PostOutcome {
    Delivered,
    Retried { detail: String },
    Dropped,
    Unsettled,
}

/// A change between two rounds.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Worse,
    Better,
}

const MINUTE: u64 = 60;
const HOUR: u64 = 3_600;

/// The waits after each failure, within a fifth. After one more failure an event is given up.
const WAITS: [u64; 9] =
    [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];

/// The longest wait that the receiver may ask for.
const LONGEST: Duration = Duration::from_secs(24 * HOUR);

impl Default for EventSettings {
    /// If a post takes up to 10 seconds, a round takes at most 70.
    fn default() -> Self {
        Self { batch: 100, concurrency: 16, lease: Duration::from_secs(90) }
    }
}

impl<E: EventOutbox, S: EventSink, R: Rng + Send + 'static> DeliverEvents<E, S, R> {
    pub fn new(outbox: Arc<E>, sink: Arc<S>, rng: R, settings: EventSettings) -> Self {
        Self { outbox, sink, rng: Mutex::new(rng), settings, failing: AtomicBool::new(false) }
    }

    /// Posts the events that are due. The caller may drop the future: events that were not settled are
    /// posted again.
    ///
    /// Events are delivered at least once and in no particular order.
    #[autometrics(struct_name = "DeliverEvents")]
    pub async fn execute(&self) -> Result<Posted, StoreError> {
        let EventSettings { batch, concurrency, lease } = self.settings;
        let due = self.outbox.claim(batch, lease).await?;
        let mut posted = Posted { claimed: due.len(), ..Posted::default() };
        let mut failure = None;
        let mut posts = JoinSet::new();
        for event in due {
            if posts.len() >= concurrency.max(1)
                && let Some(outcome) = posts.join_next().await
            {
                posted.count(outcome.unwrap_or(PostOutcome::Unsettled), &mut failure);
            }
            let wait = self.wait_after(event.claim.attempt);
            let (outbox, sink) = (Arc::clone(&self.outbox), Arc::clone(&self.sink));
            posts.spawn(async move { post(&*outbox, &*sink, &event, wait).await });
        }
        while let Some(outcome) = posts.join_next().await {
            posted.count(outcome.unwrap_or(PostOutcome::Unsettled), &mut failure);
        }
        self.report(posted, failure.as_deref());
        Ok(posted)
    }

    /// Logs when posts begin to fail and when they succeed again. A line for each post would add
    /// nothing.
    fn report(&self, posted: Posted, failure: Option<&str>) {
        let Posted { delivered, retried, .. } = posted;
        match self.change(posted, failure) {
            Some(Change::Worse) => {
                let detail = failure.unwrap_or_default();
                tracing::warn!(
                    retried,
                    delivered,
                    detail,
                    "EVENTS_URL does not accept events; they will be retried"
                );
            }
            Some(Change::Better) => tracing::info!(delivered, "EVENTS_URL accepts events again"),
            None => {}
        }
    }

    fn change(&self, posted: Posted, failure: Option<&str>) -> Option<Change> {
        if failure.is_some() {
            (!self.failing.swap(true, Ordering::Relaxed)).then_some(Change::Worse)
        } else if posted.delivered > 0 {
            self.failing.swap(false, Ordering::Relaxed).then_some(Change::Better)
        } else {
            None
        }
    }

    /// Returns the wait after an attempt, or `None` after the last.
    fn wait_after(&self, attempt: u32) -> Option<Duration> {
        let place = usize::try_from(attempt.max(1) - 1).ok()?;
        let wait = Duration::from_secs(*WAITS.get(place)?);
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let permille = 800 + rng.next_u32() % 401;
        Some(wait * permille / 1_000)
    }
}

async fn post(
    outbox: &impl EventOutbox,
    sink: &impl EventSink,
    event: &DueEvent,
    wait: Option<Duration>,
) -> PostOutcome {
    let claim = &event.claim;
    let kind = event.kind.as_str();
    let (outcome, stored) = match (sink.post(event).await, wait) {
        (Ok(()), _) => (PostOutcome::Delivered, outbox.settle(claim).await),
        (Err(PostError::Failed { detail, retry_after }), Some(wait)) => {
            tracing::debug!(
                event.id,
                event.kind = kind,
                claim.attempt,
                detail,
                "event was not accepted; it will be retried"
            );
            let after = wait.max(retry_after.unwrap_or_default().min(LONGEST));
            (PostOutcome::Retried { detail }, outbox.retry(claim, after).await)
        }
        (Err(error), _) => {
            let attempts = claim.attempt;
            tracing::error!(event.id, event.kind = kind, attempts, %error, "event was given up; it will not be delivered");
            (PostOutcome::Dropped, outbox.settle(claim).await)
        }
    };
    match stored {
        Ok(()) => outcome,
        Err(error) => {
            tracing::warn!(event.id, error = %Chain(&error), "the result of an event was not stored; it will be posted again");
            PostOutcome::Unsettled
        }
    }
}

impl Posted {
    /// Counts an outcome, and keeps the reason of a failure.
    fn count(&mut self, outcome: PostOutcome, failure: &mut Option<String>) {
        *match outcome {
            PostOutcome::Delivered => &mut self.delivered,
            PostOutcome::Retried { detail } => {
                *failure = Some(detail);
                &mut self.retried
            }
            PostOutcome::Dropped => &mut self.dropped,
            PostOutcome::Unsettled => &mut self.unsettled,
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        ports::{EventClaim, EventKind, MockEventOutbox, MockEventSink},
        testing::START,
    };

    fn event(sequence: i64, attempt: u32) -> DueEvent {
        DueEvent {
            claim: EventClaim { sequence, attempt },
            id: format!("{sequence:032x}"),
            kind: EventKind::Approved,
            at: START,
            claimed_at: START,
            verification: None,
            phone: Some("+7999*****67".to_owned()),
            metadata: None,
            channel: domain::Channel::Sms,
            test: false,
            delivery: None,
            reason: None,
        }
    }

    fn holding(events: Vec<DueEvent>) -> MockEventOutbox {
        let mut outbox = MockEventOutbox::new();
        outbox.expect_claim().once().returning(move |_, _| Ok(events.clone()));
        outbox
    }

    fn sink(answer: Result<(), PostError>) -> MockEventSink {
        let mut sink = MockEventSink::new();
        sink.expect_post().returning(move |_| answer.clone());
        sink
    }

    fn failed(retry_after: Option<u64>) -> Result<(), PostError> {
        let retry_after = retry_after.map(Duration::from_secs);
        Err(PostError::Failed { detail: "status 503".to_owned(), retry_after })
    }

    async fn posted<S: EventSink>(outbox: MockEventOutbox, sink: S) -> Posted {
        let settings = EventSettings::default();
        let rng = StdRng::seed_from_u64(1);
        let deliver = DeliverEvents::new(Arc::new(outbox), Arc::new(sink), rng, settings);
        deliver.execute().await.unwrap()
    }

    #[tokio::test]
    async fn an_accepted_event_is_settled() {
        let mut outbox = holding(vec![event(1, 1), event(2, 4)]);
        outbox.expect_settle().times(2).returning(|_| Ok(()));

        let posted = posted(outbox, sink(Ok(()))).await;

        assert_eq!(posted, Posted { claimed: 2, delivered: 2, ..Posted::default() });
    }

    #[tokio::test]
    async fn each_failure_makes_an_event_wait_longer() {
        for (attempt, seconds) in [(1, 5), (2, 300), (9, 86_400)] {
            let mut outbox = holding(vec![event(1, attempt)]);
            outbox
                .expect_retry()
                .withf(move |claim, after| {
                    let wait = Duration::from_secs(seconds);
                    claim.attempt == attempt && (wait * 4 / 5..=wait * 6 / 5).contains(after)
                })
                .once()
                .returning(|_, _| Ok(()));

            let posted = posted(outbox, sink(failed(None))).await;

            assert_eq!(posted, Posted { claimed: 1, retried: 1, ..Posted::default() });
        }
    }

    #[tokio::test]
    async fn a_failure_and_its_end_are_each_logged_once() {
        let deliver = DeliverEvents::new(
            Arc::new(MockEventOutbox::new()),
            Arc::new(MockEventSink::new()),
            StdRng::seed_from_u64(1),
            EventSettings::default(),
        );
        let taken = Posted { delivered: 1, ..Posted::default() };
        let said = |posted, failure| deliver.change(posted, failure);

        assert_eq!(said(taken, None), None);
        assert_eq!(said(taken, Some("status 503")), Some(Change::Worse));
        assert_eq!(said(Posted::default(), Some("status 503")), None);
        // No event was due, so nothing changes.
        assert_eq!(said(Posted::default(), None), None);
        assert_eq!(said(taken, None), Some(Change::Better));
        assert_eq!(said(taken, None), None);
    }

    #[tokio::test]
    async fn a_longer_wait_that_the_receiver_asks_for_is_used() {
        for (asked, waited) in [(1_000, 1_000), (1_000_000, 86_400)] {
            let mut outbox = holding(vec![event(1, 1)]);
            outbox
                .expect_retry()
                .withf(move |_, after| after.as_secs() == waited)
                .once()
                .returning(|_, _| Ok(()));

            posted(outbox, sink(failed(Some(asked)))).await;
        }
    }

    #[tokio::test]
    async fn an_event_is_dropped_after_the_tenth_failure_or_a_410() {
        for (attempt, answer) in [(10, failed(None)), (1, Err(PostError::Gone))] {
            let mut outbox = holding(vec![event(1, attempt)]);
            outbox.expect_settle().once().returning(|_| Ok(()));

            let posted = posted(outbox, sink(answer)).await;

            assert_eq!(posted, Posted { claimed: 1, dropped: 1, ..Posted::default() });
        }
    }

    #[tokio::test]
    async fn an_event_whose_result_was_not_stored_is_unsettled() {
        let mut outbox = holding(vec![event(1, 1)]);
        outbox.expect_settle().returning(|_| Err(StoreError::Unavailable("down".into())));

        let posted = posted(outbox, sink(Ok(()))).await;

        assert_eq!(posted, Posted { claimed: 1, unsettled: 1, ..Posted::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn posts_run_concurrently_up_to_the_limit() {
        #[derive(Default)]
        struct Slow {
            now: AtomicUsize,
            most: AtomicUsize,
        }
        impl EventSink for Arc<Slow> {
            async fn post(&self, _: &DueEvent) -> Result<(), PostError> {
                let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
        }
        let mut outbox = holding((0..100).map(|sequence| event(sequence, 1)).collect());
        outbox.expect_settle().times(100).returning(|_| Ok(()));
        let slow = Arc::new(Slow::default());

        let posted = posted(outbox, Arc::clone(&slow)).await;

        assert_eq!((posted.delivered, slow.most.load(Ordering::SeqCst)), (100, 16));
    }
}
