mod progress;

use std::{
    collections::HashSet, convert::Infallible, future::pending, num::NonZeroU32, time::Duration,
};

use autometrics::autometrics;
use tokio::time::{Instant, sleep};

use self::progress::{Looked, Progress};
use crate::{
    Chain,
    ports::{Backlog, BrokerError, Found, MessageBroker, Outgoing, Reached, StoreError, Tenure},
};

/// Moves messages from the outbox to the broker, while no other relay does.
///
/// It changes no message: it keeps in memory which messages it has published, and stores from time
/// to time how far it got. After a crash, the next relay begins there and publishes some messages
/// again.
#[derive(Debug)]
pub struct RelayBatch<B, M> {
    backlog: B,
    broker: M,
    settings: RelaySettings,
    held: Option<Held>,
}

/// Settings of [`RelayBatch`].
#[derive(Debug, Clone, Copy)]
pub struct RelaySettings {
    /// The maximum number of messages in a batch.
    pub batch: NonZeroU32,
    /// How long the outbox has no relay if this one crashes. A renewal also stores the progress:
    /// every fifth of the lease, or every three fifths if nothing was published.
    pub lease: Duration,
    /// How long a consumer has to take over a published message before it is published again.
    pub confirm_within: Duration,
}

/// The state of a relay while it has the outbox.
#[derive(Debug)]
struct Held {
    tenure: Tenure,
    progress: Progress,
    stored: Reached,
    renewed_at: Instant,
    surveyed_at: Instant,
}

/// How often the relay looks for messages that no consumer took over.
const SURVEY_EVERY: Duration = Duration::from_secs(5);

/// The most messages that one survey publishes again: they must not hold up new ones.
const OVERDUE: NonZeroU32 = NonZeroU32::new(10_000).unwrap();

/// The result of one round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relayed {
    /// The number of messages that were read.
    pub found: usize,
    /// The number of rows that cannot be read. They stay in the outbox until they expire.
    pub unreadable: usize,
    /// The time from the acceptance of each published message to its publication.
    pub published: Vec<Duration>,
    /// The number of messages that no consumer took over in time. They are published again.
    pub overdue: usize,
}

/// The reason why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("no messages were read, because the broker is not ready")]
    Broker(#[from] BrokerError),
    #[error("the outbox could not be read")]
    Backlog(#[from] StoreError),
}

impl<B: Backlog, M: MessageBroker> RelayBatch<B, M> {
    pub fn new(backlog: B, broker: M, settings: RelaySettings) -> Self {
        Self { backlog, broker, settings, held: None }
    }

    /// Publishes one batch. Returns `None` if another process is the relay.
    ///
    /// Each batch begins with the messages that earlier batches did not publish, so the messages of
    /// a phone reach the broker in their order. While the broker is unreachable, another process
    /// may relay.
    #[autometrics(struct_name = "RelayBatch")]
    pub async fn execute(&mut self) -> Result<Option<Relayed>, RelayError> {
        if let Err(error) = self.broker.ready().await {
            if let Err(error) = self.release().await {
                tracing::debug!(error = %Chain(&error), "the outbox was not released");
            }
            return Err(error.into());
        }
        let Some(mut held) = self.hold().await? else { return Ok(None) };
        let relayed = self.round(&mut held).await;
        self.held = Some(held);
        Ok(Some(relayed?))
    }

    /// Stores the progress, and lets another relay begin.
    pub async fn release(&mut self) -> Result<(), StoreError> {
        let Some(held) = self.held.take() else { return Ok(()) };
        self.backlog.release(&held.tenure, held.progress.reached()).await
    }

    /// Acquires the outbox, or renews the lease if it is time. Returns `None` if another process is
    /// the relay.
    async fn hold(&mut self) -> Result<Option<Held>, StoreError> {
        let (now, lease, renewal) = (Instant::now(), self.settings.lease, self.renewal());
        let Some(held) = &mut self.held else {
            let tenure = self.backlog.acquire(lease).await?;
            return Ok(tenure.map(|tenure| {
                tracing::info!(epoch = tenure.epoch, "this process relays the outbox now");
                let progress = Progress::after(tenure.published, self.settings.confirm_within);
                let stored = progress.reached();
                Held { tenure, progress, stored, renewed_at: now, surveyed_at: now }
            }));
        };
        let reached = held.progress.reached();
        let fifths = if reached == held.stored { 3 } else { 1 };
        if now - held.renewed_at >= fifths * renewal {
            if !self.backlog.renew(&held.tenure, reached, lease).await? {
                tracing::warn!(
                    epoch = held.tenure.epoch,
                    "the tenure ended: another process relays, or the database server changed"
                );
                self.held = None;
                return Ok(None);
            }
            (held.renewed_at, held.stored) = (now, reached);
        }
        Ok(self.held.take())
    }

    /// Relays one batch, and renews the lease in the meantime.
    async fn round(&self, held: &mut Held) -> Result<Relayed, StoreError> {
        let Held { tenure, progress, renewed_at, surveyed_at, .. } = held;
        let reached = progress.reached();
        tokio::select! {
            relayed = self.relay(tenure, progress, surveyed_at) => relayed,
            never = self.keep(tenure, reached, renewed_at) => match never {},
        }
    }

    async fn relay(
        &self,
        tenure: &Tenure,
        progress: &mut Progress,
        surveyed_at: &mut Instant,
    ) -> Result<Relayed, StoreError> {
        let overdue = self.reopen_overdue(tenure, progress, surveyed_at).await?;
        let asked = Instant::now();
        let (gaps, cursor) = (progress.gaps(), progress.cursor());
        let looked = self.backlog.look(tenure, &gaps, cursor, self.settings.batch).await?;
        let Found { messages: batch, unreadable } = looked;
        let found_at = Instant::now();

        let answers = self.publish(&batch).await;

        let published_at = Instant::now();
        let mut found = Vec::with_capacity(batch.len());
        let mut published = Vec::with_capacity(batch.len());
        let mut failure = None;
        for (message, answer) in batch.iter().zip(answers) {
            found.push((message.sequence, answer.is_ok()));
            match answer {
                Ok(()) => published.push(message.age + (published_at - found_at)),
                Err(BrokerError::Held) => {}
                Err(error) => failure = Some(error),
            }
        }
        // The cursor passes them, so that they hold up nothing.
        found.extend(unreadable.iter().map(|sequence| (*sequence, true)));
        found.sort_unstable();
        progress.note(&Looked { asked, found: &found });
        progress.never_repeat(&unreadable);
        if let Some(error) = failure {
            let left = batch.len() - published.len();
            tracing::warn!(left, error = %Chain(&error), "some messages were not published; they stay in the outbox for a later batch");
        }
        Ok(Relayed { found: batch.len(), unreadable: unreadable.len(), published, overdue })
    }

    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        if batch.is_empty() {
            return Vec::new();
        }
        self.broker.publish(batch).await
    }

    /// Renews the lease until this future is dropped. Without it, another relay would begin while
    /// the broker or a survey is slow.
    async fn keep(
        &self,
        tenure: &Tenure,
        reached: Reached,
        renewed_at: &mut Instant,
    ) -> Infallible {
        loop {
            sleep(self.renewal()).await;
            let now = Instant::now();
            match self.backlog.renew(tenure, reached, self.settings.lease).await {
                Ok(true) => *renewed_at = now,
                // The next round notices it. A publication cannot be taken back.
                Ok(false) => pending().await,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the lease of the relay was not renewed; another process may relay the outbox");
                }
            }
        }
    }

    /// Reopens the messages that a consumer should have taken over by now. Returns how many.
    async fn reopen_overdue(
        &self,
        tenure: &Tenure,
        progress: &mut Progress,
        surveyed_at: &mut Instant,
    ) -> Result<usize, StoreError> {
        if surveyed_at.elapsed() < SURVEY_EVERY {
            return Ok(0);
        }
        *surveyed_at = Instant::now();
        let read = self.backlog.survey(tenure).await?;
        let Some(until) = progress.overdue_until(read) else { return Ok(0) };
        let most = usize::try_from(OVERDUE.get()).unwrap_or(usize::MAX);
        let mut there = HashSet::new();
        let mut reopened = 0;
        let mut from = 0;
        while reopened < most {
            let untaken = self.backlog.untaken(from..=until, OVERDUE).await?;
            let overdue = untaken.iter().filter(|it| progress.is_overdue(**it, read));
            let overdue: Vec<i64> = overdue.copied().take(most - reopened).collect();
            progress.reopen(&overdue);
            reopened += overdue.len();
            let is_all = untaken.len() < most;
            from = untaken.last().map_or(from, |last| last + 1);
            there.extend(untaken);
            if is_all {
                progress.forget_taken(until, &there);
                break;
            }
        }
        Ok(reopened)
    }

    fn renewal(&self) -> Duration {
        self.settings.lease / 5
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        ops::RangeInclusive,
        sync::{Arc, Mutex},
    };

    use domain::{Message, Validity};
    use tokio::time::advance;

    use super::*;
    use crate::ports::{BacklogSize, MockBacklog, MockMessageBroker};

    const TENURE: Tenure = Tenure { epoch: 1, server: 0, published: 0 };

    fn outgoing(sequence: i64) -> Outgoing {
        let accepted_at = std::time::SystemTime::UNIX_EPOCH;
        Outgoing {
            sequence,
            message: Message {
                id: domain::MessageId::of_record("t", 0, sequence, 0),
                phone: "79991234567".parse().unwrap(),
                code: "123456".parse().unwrap(),
            },
            validity: Validity::starting_at(accepted_at, Duration::from_secs(600)),
            trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap(),
            age: Duration::from_secs(2),
        }
    }

    fn settings() -> RelaySettings {
        RelaySettings {
            batch: NonZeroU32::new(3).unwrap(),
            lease: Duration::from_secs(1),
            confirm_within: Duration::from_secs(30),
        }
    }

    /// An outbox that can be acquired once.
    fn backlog() -> MockBacklog {
        let mut backlog = MockBacklog::new();
        backlog.expect_acquire().once().returning(|_| Ok(Some(TENURE)));
        backlog
    }

    fn ready_broker() -> MockMessageBroker {
        let mut broker = MockMessageBroker::new();
        broker.expect_ready().returning(|| Ok(()));
        broker
    }

    fn willing_broker() -> MockMessageBroker {
        let mut broker = ready_broker();
        broker.expect_publish().returning(|batch| batch.iter().map(|_| Ok(())).collect());
        broker
    }

    /// The first numbers of the gaps of each look, and its cursor.
    type Asked = Arc<Mutex<Vec<(Vec<i64>, i64)>>>;

    /// Notes each look, which finds the next of `batches`.
    fn looks(backlog: &mut MockBacklog, batches: &[&[i64]]) -> Asked {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut batches: VecDeque<Vec<i64>> = batches.iter().map(|it| it.to_vec()).collect();
        let told = Arc::clone(&asked);
        backlog.expect_look().returning(move |_, gaps, cursor, _| {
            let gaps = gaps.iter().map(RangeInclusive::start).copied().collect();
            told.lock().unwrap().push((gaps, cursor));
            let batch = batches.pop_front().unwrap_or_default();
            let messages = batch.into_iter().map(outgoing).collect();
            Ok(Found { messages, unreadable: Vec::new() })
        });
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_the_broker_did_not_take_are_looked_for_again() {
        let mut backlog = backlog();
        let asked = looks(&mut backlog, &[&[1, 2, 3], &[1, 3]]);
        backlog
            .expect_release()
            .withf(|_, reached| *reached == Reached { published: 3, read: 3 })
            .once()
            .returning(|_, _| Ok(()));
        let mut broker = ready_broker();
        broker.expect_publish().once().returning(|_| {
            vec![Err(BrokerError::Unavailable("gone".into())), Ok(()), Err(BrokerError::Held)]
        });
        broker.expect_publish().once().returning(|_| vec![Ok(()), Ok(())]);

        let mut relay = RelayBatch::new(backlog, broker, settings());
        let first = relay.execute().await.unwrap().unwrap();
        let second = relay.execute().await.unwrap().unwrap();
        relay.release().await.unwrap();

        let age = Duration::from_secs(2);
        assert_eq!(first, Relayed { found: 3, published: vec![age], ..Relayed::default() });
        assert_eq!(second, Relayed { found: 2, published: vec![age; 2], ..Relayed::default() });
        assert_eq!(*asked.lock().unwrap(), [(vec![], 0), (vec![1, 3], 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_stored_every_fifth_of_the_lease() {
        let mut backlog = backlog();
        looks(&mut backlog, &[&[1, 2], &[3], &[4]]);
        backlog
            .expect_renew()
            .withf(|_, reached, _| *reached == Reached { published: 3, read: 3 })
            .once()
            .returning(|_, _, _| Ok(true));
        let mut relay = RelayBatch::new(backlog, willing_broker(), settings());

        relay.execute().await.unwrap();
        advance(Duration::from_millis(199)).await;
        relay.execute().await.unwrap();
        advance(Duration::from_millis(1)).await;
        relay.execute().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_relay_renews_its_lease_every_three_fifths_of_it() {
        let mut backlog = backlog();
        looks(&mut backlog, &[]);
        backlog.expect_renew().times(3).returning(|_, _, _| Ok(true));
        let mut relay = RelayBatch::new(backlog, willing_broker(), settings());

        for _ in 0..=18 {
            relay.execute().await.unwrap();
            advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn relay_that_lost_its_tenure_stands_by() {
        let mut backlog = backlog();
        looks(&mut backlog, &[&[1]]);
        backlog.expect_renew().once().returning(|_, _, _| Ok(false));
        backlog.expect_acquire().once().returning(|_| Ok(None));
        let mut relay = RelayBatch::new(backlog, willing_broker(), settings());

        assert!(relay.execute().await.unwrap().is_some());
        advance(Duration::from_millis(200)).await;
        assert_eq!(relay.execute().await.unwrap(), None);
        assert_eq!(relay.execute().await.unwrap(), None);
        relay.release().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn relay_keeps_its_progress_while_the_database_does_not_answer() {
        let mut backlog = backlog();
        let asked = looks(&mut backlog, &[&[1], &[2]]);
        let unavailable = || StoreError::Unavailable("gone".into());
        backlog.expect_renew().once().returning(move |_, _, _| Err(unavailable()));
        backlog.expect_renew().once().returning(|_, _, _| Ok(true));
        let mut relay = RelayBatch::new(backlog, willing_broker(), settings());

        relay.execute().await.unwrap();
        advance(Duration::from_millis(200)).await;
        assert!(matches!(relay.execute().await, Err(RelayError::Backlog(_))));
        relay.execute().await.unwrap();

        assert_eq!(*asked.lock().unwrap(), [(vec![], 0), (vec![], 1)]);
    }

    #[tokio::test]
    async fn no_relay_begins_while_its_broker_is_unreachable() {
        let mut backlog = MockBacklog::new();
        backlog.expect_acquire().never();
        let mut broker = MockMessageBroker::new();
        broker.expect_ready().returning(|| Err(BrokerError::Unavailable("refused".into())));

        let answer = RelayBatch::new(backlog, broker, settings()).execute().await;

        assert!(matches!(answer, Err(RelayError::Broker(_))));
    }

    #[tokio::test]
    async fn relay_whose_broker_becomes_unreachable_lets_another_begin() {
        let mut backlog = backlog();
        looks(&mut backlog, &[&[1]]);
        backlog.expect_release().once().returning(|_, _| Ok(()));
        let mut broker = MockMessageBroker::new();
        broker.expect_ready().once().returning(|| Ok(()));
        broker.expect_ready().returning(|| Err(BrokerError::Unavailable("refused".into())));
        broker.expect_publish().once().returning(|_| vec![Ok(())]);
        let mut relay = RelayBatch::new(backlog, broker, settings());

        relay.execute().await.unwrap();
        for _ in 0..2 {
            assert!(matches!(relay.execute().await, Err(RelayError::Broker(_))));
        }
    }

    #[tokio::test]
    async fn an_empty_batch_is_not_published() {
        let mut backlog = backlog();
        looks(&mut backlog, &[]);
        let mut broker = ready_broker();
        broker.expect_publish().never();

        let relayed = RelayBatch::new(backlog, broker, settings()).execute().await.unwrap();

        assert_eq!(relayed, Some(Relayed::default()));
    }

    /// A broker that takes five leases to publish.
    struct SlowBroker;

    impl MessageBroker for SlowBroker {
        async fn ready(&self) -> Result<(), BrokerError> {
            Ok(())
        }

        async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
            sleep(Duration::from_secs(5)).await;
            messages.iter().map(|_| Ok(())).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lease_is_renewed_while_a_slow_broker_publishes() {
        let mut backlog = backlog();
        looks(&mut backlog, &[&[1]]);
        backlog
            .expect_renew()
            .withf(|_, reached, _| *reached == Reached::default())
            .times(24..=25)
            .returning(|_, _, _| Ok(true));
        let mut relay = RelayBatch::new(backlog, SlowBroker, settings());

        let relayed = relay.execute().await.unwrap().unwrap();

        // It was two seconds old when it was found, and its publication took five.
        assert_eq!(relayed.published, [Duration::from_secs(7)]);
    }

    #[tokio::test(start_paused = true)]
    async fn lease_is_renewed_while_a_look_is_slow() {
        struct SlowLook(MockBacklog);

        impl Backlog for SlowLook {
            async fn acquire(&self, lease: Duration) -> Result<Option<Tenure>, StoreError> {
                self.0.acquire(lease).await
            }

            async fn renew(
                &self,
                tenure: &Tenure,
                reached: Reached,
                lease: Duration,
            ) -> Result<bool, StoreError> {
                self.0.renew(tenure, reached, lease).await
            }

            async fn release(&self, _: &Tenure, _: Reached) -> Result<(), StoreError> {
                unreachable!()
            }

            async fn look(
                &self,
                _: &Tenure,
                _: &[RangeInclusive<i64>],
                _: i64,
                _: NonZeroU32,
            ) -> Result<Found, StoreError> {
                sleep(Duration::from_secs(5)).await;
                Ok(Found::default())
            }

            async fn survey(&self, _: &Tenure) -> Result<Option<Duration>, StoreError> {
                unreachable!()
            }

            async fn untaken(
                &self,
                _: RangeInclusive<i64>,
                _: NonZeroU32,
            ) -> Result<Vec<i64>, StoreError> {
                unreachable!()
            }

            async fn end_expired(&self) -> Result<u64, StoreError> {
                unreachable!()
            }

            async fn size(&self) -> Result<BacklogSize, StoreError> {
                unreachable!()
            }
        }

        let mut backlog = backlog();
        backlog.expect_renew().times(24..=25).returning(|_, _, _| Ok(true));

        RelayBatch::new(SlowLook(backlog), ready_broker(), settings()).execute().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn overdue_messages_are_published_again() {
        let mut backlog = backlog();
        let asked = looks(&mut backlog, &[&[1, 2, 3], &[], &[1, 3]]);
        backlog.expect_renew().returning(|_, _, _| Ok(true));
        backlog.expect_survey().returning(|_| Ok(Some(Duration::ZERO)));
        backlog
            .expect_untaken()
            .withf(|range, _| *range == (0..=3))
            .once()
            .returning(|_, _| Ok(vec![1, 3]));
        let mut relay = RelayBatch::new(backlog, willing_broker(), settings());

        relay.execute().await.unwrap();
        advance(Duration::from_secs(1)).await;
        relay.execute().await.unwrap();
        advance(Duration::from_secs(30)).await;
        let relayed = relay.execute().await.unwrap().unwrap();

        assert_eq!((relayed.overdue, relayed.found), (2, 2));
        assert_eq!(asked.lock().unwrap()[2], (vec![1, 3], 3));
    }

    #[tokio::test(start_paused = true)]
    async fn unreadable_rows_are_passed() {
        let mut backlog = backlog();
        let cursors = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&cursors);
        backlog.expect_look().returning(move |_, gaps, cursor, _| {
            assert!(gaps.is_empty(), "{gaps:?}");
            told.lock().unwrap().push(cursor);
            if cursor > 0 {
                return Ok(Found::default());
            }
            Ok(Found { messages: vec![outgoing(2)], unreadable: vec![1, 3] })
        });
        backlog.expect_renew().returning(|_, _, _| Ok(true));
        backlog.expect_survey().returning(|_| Ok(Some(Duration::ZERO)));
        backlog.expect_untaken().once().returning(|_, _| Ok(vec![1, 3]));
        let mut relay = RelayBatch::new(backlog, willing_broker(), settings());

        let first = relay.execute().await.unwrap().unwrap();
        advance(Duration::from_secs(31)).await;
        let later = relay.execute().await.unwrap().unwrap();

        assert_eq!((first.found, first.published.len(), first.unreadable), (1, 1, 2));
        assert_eq!(later, Relayed::default());
        assert_eq!(*cursors.lock().unwrap(), [0, 3]);
    }
}
