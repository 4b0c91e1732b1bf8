//! The choice between Kafka and the embedded queue, which the settings make.

use adapters_broker::{KafkaBroker, KafkaStream};
use adapters_persistence::EmbeddedQueue;
use application::{
    TracedMessages,
    ports::{BrokerError, Fetched, MessageBroker, MessageStream, Outgoing, StartFrom, StreamError},
};
use tokio::time::Instant;

use crate::metrics::{Step, StepMetrics};

/// The broker that the relay publishes to.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a processor has one")]
pub enum Broker {
    Kafka(KafkaBroker),
    Embedded(EmbeddedQueue),
}

/// A broker whose publications are recorded as spans.
///
/// A record then names the span of its publication, and the consumer continues from that span.
#[derive(Debug)]
pub(crate) struct TracedBroker<B> {
    pub(crate) broker: B,
    pub(crate) traced: TracedMessages,
    pub(crate) steps: StepMetrics,
}

/// The stream that a consumer reads.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a consumer has one")]
pub enum Stream {
    Kafka(KafkaStream),
    Embedded(EmbeddedQueue),
}

impl MessageBroker for Broker {
    async fn ready(&self) -> Result<(), BrokerError> {
        match self {
            Self::Kafka(broker) => broker.ready().await,
            Self::Embedded(queue) => queue.ready().await,
        }
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        match self {
            Self::Kafka(broker) => broker.publish(messages).await,
            Self::Embedded(queue) => queue.publish(messages).await,
        }
    }
}

impl<B: MessageBroker> MessageBroker for TracedBroker<B> {
    async fn ready(&self) -> Result<(), BrokerError> {
        self.broker.ready().await
    }

    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        if !messages.iter().any(|it| self.traced.samples(&it.trace)) {
            return self.broker.publish(messages).await;
        }
        let mut messages = messages.to_vec();
        let mut spans = Vec::with_capacity(messages.len());
        for message in &mut messages {
            let span = self.traced.publish(&message.trace, message.message.id);
            if let Some(span) = &span {
                message.trace = span.context().clone();
            }
            spans.push(span);
        }
        let begun = Instant::now();
        let answers = self.broker.publish(&messages).await;
        for ((span, answer), message) in spans.into_iter().zip(&answers).zip(&messages) {
            let Some(mut span) = span else { continue };
            match answer {
                Ok(()) => {
                    let age = message.age + begun.elapsed();
                    self.steps.note(Step::Published, age, Some(span.context()));
                }
                // It was not tried.
                Err(BrokerError::Held) => span.discard(),
                Err(BrokerError::Unavailable(_)) => span.fail("unavailable"),
            }
        }
        answers
    }
}

impl MessageStream for Stream {
    async fn partitions(&self) -> Result<Vec<i32>, StreamError> {
        match self {
            Self::Kafka(stream) => stream.partitions().await,
            Self::Embedded(queue) => queue.partitions().await,
        }
    }

    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError> {
        match self {
            Self::Kafka(stream) => stream.first_offset(partition, from).await,
            Self::Embedded(queue) => queue.first_offset(partition, from).await,
        }
    }

    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError> {
        match self {
            Self::Kafka(stream) => stream.fetch(partition, offset).await,
            Self::Embedded(queue) => queue.fetch(partition, offset).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use application::{Messaging, Sampler, Tracer, ports::MockMessageBroker};
    use domain::{Message, MessageId, Validity};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn outgoing(sequence: i64, trace: &str) -> Outgoing {
        let validity = Validity::starting_at(SystemTime::UNIX_EPOCH, Duration::from_secs(600));
        Outgoing {
            sequence,
            message: Message {
                id: MessageId::of_record("t", 0, sequence, 0),
                phone: "79991234567".parse().unwrap(),
                code: "123456".parse().unwrap(),
            },
            validity,
            trace: trace.parse().unwrap(),
            age: Duration::ZERO,
        }
    }

    fn steps() -> StepMetrics {
        StepMetrics::register(&prometheus::Registry::new()).unwrap()
    }

    fn batch() -> Vec<Outgoing> {
        let unsampled = TRACE.replace("-01", "-00");
        vec![outgoing(1, TRACE), outgoing(2, &unsampled), outgoing(3, TRACE), outgoing(4, TRACE)]
    }

    fn answers() -> Vec<Result<(), BrokerError>> {
        let failed = Err(BrokerError::Unavailable("gone".into()));
        vec![Ok(()), Ok(()), failed, Err(BrokerError::Held)]
    }

    #[tokio::test]
    async fn record_names_the_span_of_its_publication() {
        let rng = StdRng::seed_from_u64(1);
        let (tracer, mut spans) =
            Tracer::start(Sampler::default(), || SystemTime::UNIX_EPOCH, rng, 9);
        let messaging = Messaging { system: "kafka", topic: "codes".to_owned(), group: None };
        let messages = TracedMessages::new(tracer, messaging);
        let (told, published) = std::sync::mpsc::channel();
        let mut broker = MockMessageBroker::new();
        broker.expect_publish().once().returning(move |messages| {
            told.send(messages.to_vec()).unwrap();
            answers()
        });

        let broker = TracedBroker { broker, traced: messages, steps: steps() };
        let answered = broker.publish(&batch()).await;

        assert_eq!(answered.iter().filter(|answer| answer.is_ok()).count(), 2);
        let mut recorded = Vec::new();
        spans.take(&mut recorded, 9);
        let [first, failed] = &recorded[..] else { panic!("{recorded:?}") };
        assert_eq!((first.name.as_str(), &first.error), ("send codes", &None));
        assert_eq!(first.parent, TRACE.parse().ok());
        assert_eq!(failed.error.as_deref(), Some("unavailable"));
        let published = published.recv().unwrap();
        assert_eq!(published[0].trace, first.context);
        assert_eq!(published[1].trace, batch()[1].trace);
        assert_eq!(published[2].trace, failed.context);
    }

    #[tokio::test]
    async fn messages_pass_unchanged_if_nothing_is_traced() {
        let mut broker = MockMessageBroker::new();
        broker
            .expect_publish()
            .withf(|messages| messages.iter().zip(batch()).all(|(it, of)| it.trace == of.trace))
            .once()
            .returning(|_| answers());

        let traced = TracedMessages::default();
        assert_eq!(
            TracedBroker { broker, traced, steps: steps() }.publish(&batch()).await.len(),
            4
        );
    }
}
