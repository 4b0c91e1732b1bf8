use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use autometrics::autometrics;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{
    Chain,
    ports::{Backlog, BrokerError, Claim, Claimed, MessageBroker, StoreError},
};

/// Moves messages from the outbox to the broker.
#[derive(Debug)]
pub struct RelayBatch<B, M> {
    backlog: B,
    broker: M,
    settings: RelaySettings,
    /// Messages that the broker has stored and that are not settled yet, oldest first.
    published: VecDeque<(Instant, Claim)>,
}

/// Settings of [`RelayBatch`].
#[derive(Debug, Clone, Copy)]
pub struct RelaySettings {
    /// The maximum number of messages in a batch.
    pub batch: NonZeroU32,
    /// How long a batch stays hidden from other relays if this one crashes. The lease is renewed while
    /// the batch is published.
    pub lease: Duration,
    /// The time in which a consumer must take a published message over, before it is published again.
    pub confirm_within: Duration,
}

/// The minimum time for which a published message stays in the outbox. Consumers take most messages over
/// sooner, and then no settlement is necessary. Messages of twice this age are settled before the next
/// batch. The shortest lease is one second, which is longer.
const SETTLE_AFTER: Duration = Duration::from_millis(100);

/// The result of one round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relayed {
    pub claimed: usize,
    /// The time from the acceptance of each published message to its publication.
    pub published: Vec<Duration>,
}

/// The reason why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("no messages were claimed, because the broker is not ready")]
    Broker(#[from] BrokerError),
    #[error("the batch could not be claimed or settled")]
    Backlog(#[from] StoreError),
}

impl<B: Backlog, M: MessageBroker> RelayBatch<B, M> {
    pub fn new(backlog: B, broker: M, settings: RelaySettings) -> Self {
        Self { backlog, broker, settings, published: VecDeque::new() }
    }

    /// Settles messages that were published some time ago, and publishes one batch.
    ///
    /// A message is settled only after it was published. A crash in between repeats the message and
    /// never loses it. No message is claimed while the broker is not reachable.
    #[autometrics(struct_name = "RelayBatch")]
    pub async fn execute(&mut self) -> Result<Relayed, RelayError> {
        if self.published.front().is_some_and(|(at, _)| at.elapsed() >= 2 * SETTLE_AFTER) {
            self.settle_older_than(SETTLE_AFTER).await?;
        }
        self.broker.ready().await?;
        let batch = self.backlog.claim(self.settings.batch, self.settings.lease).await?;
        let claimed_at = Instant::now();
        if batch.is_empty() {
            return Ok(Relayed::default());
        }

        let answers = self.publish(&batch).await;

        let now = Instant::now();
        let mut published = Vec::with_capacity(batch.len());
        let mut failure = None;
        for (claimed, answer) in batch.iter().zip(answers) {
            match answer {
                Ok(()) => {
                    self.published.push_back((now, claimed.claim));
                    published.push(claimed.age + (now - claimed_at));
                }
                Err(BrokerError::Held) => {}
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            let left = batch.len() - published.len();
            tracing::warn!(left, error = %Chain(&error), "some messages were not published; they stay in the outbox for a later batch");
        }
        Ok(Relayed { claimed: batch.len(), published })
    }

    /// Settles all published messages that no consumer has taken over yet.
    ///
    /// If this fails, the messages are published again when their leases end.
    pub async fn settle(&mut self) -> Result<(), StoreError> {
        self.settle_older_than(Duration::ZERO).await
    }

    async fn settle_older_than(&mut self, age: Duration) -> Result<(), StoreError> {
        let batch = usize::try_from(self.settings.batch.get()).unwrap_or(usize::MAX);
        loop {
            let old = self.published.partition_point(|(at, _)| at.elapsed() >= age);
            let oldest = self.published.drain(..old.min(batch));
            let claims: Vec<Claim> = oldest.map(|(_, claim)| claim).collect();
            if claims.is_empty() {
                return Ok(());
            }
            self.backlog.settle(&claims, self.settings.confirm_within).await?;
        }
    }

    /// Publishes a batch and renews all leases in the meantime. Otherwise, if the broker is slow,
    /// another relay would publish this batch or an earlier one again.
    async fn publish(&self, batch: &[Claimed]) -> Vec<Result<(), BrokerError>> {
        let before = self.published.iter().map(|(_, claim)| *claim);
        let claims: Vec<Claim> = before.chain(batch.iter().map(|it| it.claim)).collect();
        let renew = async {
            let pause = self.settings.lease / 3;
            let mut renewals = interval_at(Instant::now() + pause, pause);
            renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                renewals.tick().await;
                if let Err(error) = self.backlog.extend(&claims, self.settings.lease).await {
                    tracing::warn!(error = %Chain(&error), "the lease of a batch was not renewed; another relay may publish it again");
                }
            }
        };
        tokio::select! {
            answers = self.broker.publish(batch) => answers,
            () = renew => unreachable!("the renewal loop never ends"),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::{Message, Validity};
    use mockall::Sequence;
    use tokio::time::advance;

    use super::*;
    use crate::ports::{MockBacklog, MockMessageBroker};

    fn claimed(sequence: i64) -> Claimed {
        let accepted_at = std::time::SystemTime::UNIX_EPOCH;
        Claimed {
            claim: Claim { sequence, attempt: 1 },
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
            batch: NonZeroU32::new(1000).unwrap(),
            lease: Duration::from_secs(1),
            confirm_within: Duration::from_secs(30),
        }
    }

    fn ready_broker() -> MockMessageBroker {
        let mut broker = MockMessageBroker::new();
        broker.expect_ready().returning(|| Ok(()));
        broker
    }

    #[tokio::test(start_paused = true)]
    async fn only_messages_that_the_broker_stored_are_settled() {
        let mut backlog = MockBacklog::new();
        backlog
            .expect_claim()
            .once()
            .returning(|_, _| Ok(vec![claimed(1), claimed(2), claimed(3)]));
        backlog
            .expect_settle()
            .withf(|claims, _| claims == [Claim { sequence: 2, attempt: 1 }])
            .once()
            .returning(|_, _| Ok(()));
        let mut broker = ready_broker();
        broker.expect_publish().once().returning(|_| {
            vec![Err(BrokerError::Unavailable("gone".into())), Ok(()), Err(BrokerError::Held)]
        });

        let mut relay = RelayBatch::new(backlog, broker, settings());
        let relayed = relay.execute().await.unwrap();
        relay.settle().await.unwrap();

        assert_eq!(relayed, Relayed { claimed: 3, published: vec![Duration::from_secs(2)] });
    }

    #[tokio::test(start_paused = true)]
    async fn published_messages_are_settled_after_100_to_200_ms() {
        let mut backlog = MockBacklog::new();
        let mut claims = Sequence::new();
        for batch in [vec![claimed(1), claimed(2)], vec![claimed(3)], vec![], vec![]] {
            backlog.expect_claim().once().in_sequence(&mut claims).return_once(|_, _| Ok(batch));
        }
        let mut settlements = Sequence::new();
        for (expected, answer) in
            [(vec![1, 2], Err(StoreError::Unavailable("gone".into()))), (vec![3], Ok(()))]
        {
            backlog
                .expect_settle()
                .withf(move |claims, _| claims.iter().map(|it| it.sequence).eq(expected.clone()))
                .once()
                .in_sequence(&mut settlements)
                .return_once(|_, _| answer);
        }
        let mut broker = ready_broker();
        broker.expect_publish().returning(|batch| batch.iter().map(|_| Ok(())).collect());
        let mut relay = RelayBatch::new(backlog, broker, settings());

        relay.execute().await.unwrap();
        advance(Duration::from_millis(101)).await;
        relay.execute().await.unwrap();
        advance(Duration::from_millis(99)).await;
        assert!(matches!(relay.execute().await, Err(RelayError::Backlog(_))));
        relay.execute().await.unwrap();
        advance(2 * SETTLE_AFTER).await;
        relay.execute().await.unwrap();
    }

    #[tokio::test]
    async fn no_message_is_claimed_while_the_broker_is_unreachable() {
        let mut backlog = MockBacklog::new();
        backlog.expect_claim().never();
        let mut broker = MockMessageBroker::new();
        broker.expect_ready().returning(|| Err(BrokerError::Unavailable("refused".into())));

        let answer = RelayBatch::new(backlog, broker, settings()).execute().await;

        assert!(matches!(answer, Err(RelayError::Broker(_))));
    }

    #[tokio::test]
    async fn an_empty_batch_is_not_published() {
        let mut backlog = MockBacklog::new();
        backlog.expect_claim().once().returning(|_, _| Ok(Vec::new()));
        let mut broker = ready_broker();
        broker.expect_publish().never();

        let relayed = RelayBatch::new(backlog, broker, settings()).execute().await.unwrap();

        assert_eq!(relayed, Relayed::default());
    }

    /// A broker that takes five leases to publish.
    struct SlowBroker;

    impl MessageBroker for SlowBroker {
        async fn ready(&self) -> Result<(), BrokerError> {
            Ok(())
        }

        async fn publish(&self, messages: &[Claimed]) -> Vec<Result<(), BrokerError>> {
            tokio::time::sleep(Duration::from_secs(5)).await;
            messages.iter().map(|_| Ok(())).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_renewed_while_a_slow_broker_publishes() {
        let mut backlog = MockBacklog::new();
        let mut claims = Sequence::new();
        for sequence in [1, 2] {
            let batch = vec![claimed(sequence)];
            backlog.expect_claim().once().in_sequence(&mut claims).return_once(|_, _| Ok(batch));
        }
        for leased in [1, 2] {
            let is_renewed = move |claims: &[Claim], _: &Duration| claims.len() == leased;
            backlog.expect_extend().withf(is_renewed).times(14..=15).returning(|_, _| Ok(()));
        }
        let mut relay = RelayBatch::new(backlog, SlowBroker, settings());

        // Each was two seconds old at its claim, and its publication took five.
        let published = [Duration::from_secs(7)];
        assert_eq!(relay.execute().await.unwrap().published, published);
        assert_eq!(
            relay.execute().await.unwrap().published,
            published,
            "the first message is not settled yet"
        );
    }
}
