//! The two brokers that messages can go through, and the bytes that they carry.
//!
//! Which one it is is a matter of configuration: [`Broker`] and [`Stream`] are that choice.

#[cfg(test)]
mod conformance;
mod embedded;
mod kafka;
mod partitioner;
#[cfg(test)]
mod testing;
mod wire;

use application::ports::{
    BrokerError, Claimed, Fetched, MessageBroker, MessageStream, StartFrom, StreamError,
};

pub use embedded::{EmbeddedQueue, EmbeddedQueueSettings};
pub use kafka::{
    KafkaBroker, KafkaPublisherSettings, KafkaSettings, KafkaStream, KafkaStreamSettings,
};

/// Where messages are published to.
#[derive(Debug)]
pub enum Broker {
    Kafka(KafkaBroker),
    Embedded(EmbeddedQueue),
}

/// Where messages are read from.
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
