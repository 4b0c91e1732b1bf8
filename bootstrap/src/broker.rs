//! The choice between Kafka and the embedded queue, which the settings make.

use adapters_broker::{KafkaBroker, KafkaStream};
use adapters_persistence::EmbeddedQueue;
use application::ports::{
    BrokerError, Claimed, Fetched, MessageBroker, MessageStream, StartFrom, StreamError,
};

/// The broker that the relay publishes to.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a processor has one")]
pub enum Broker {
    Kafka(KafkaBroker),
    Embedded(EmbeddedQueue),
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

    async fn publish(&self, messages: &[Claimed]) -> Vec<Result<(), BrokerError>> {
        match self {
            Self::Kafka(broker) => broker.publish(messages).await,
            Self::Embedded(queue) => queue.publish(messages).await,
        }
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
