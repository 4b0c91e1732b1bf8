//! The roles of the service, each a set of tasks of a process.

mod api;
mod consumer;
mod gateways;
mod housekeeping;
mod keys;
mod processor;

use std::time::{Duration, SystemTime};

use adapters_broker::{KafkaSettings, KafkaStream, KafkaStreamSettings};
use adapters_persistence::{Database, EmbeddedQueue, EmbeddedQueueSettings, Part};
use application::{Messaging, TracedMessages, Vault};
use rand_core::Rng;

pub use self::{
    api::api,
    consumer::consumer,
    keys::{StoredSecrets, open_vault, receipt_urls, unlock},
    processor::processor,
};
pub(crate) use self::{
    gateways::{gateways, tariffs},
    processor::kafka_broker,
};
use crate::{
    Pool, Process,
    broker::Stream,
    config::{BrokerConfig, Config},
    random::seeded,
};

/// Opens a topic for reading.
pub fn stream(config: &Config, database: &Database, topic: &str, vault: &Vault) -> Stream {
    let broker = BrokerConfig { topic: topic.to_owned(), ..config.consumer.broker.clone() };
    if !broker.is_kafka() {
        return Stream::Embedded(embedded_queue(config, database, &broker, vault));
    }
    let settings = KafkaStreamSettings {
        kafka: kafka(config, &broker, "messager-consumer"),
        default_ttl: config.codes.ttl,
        require_sealed: config.codes.require_sealed,
    };
    Stream::Kafka(KafkaStream::new(settings, vault.clone()))
}

/// Returns a name that no other process has, and that shows an operator which process it is.
fn unique_name() -> anyhow::Result<String> {
    Ok(format!("{}-{:016x}", std::process::id(), seeded()?.next_u64()))
}

/// Returns the queue that the processor and the consumer of one process share: the processor wakes
/// the consumer. `None` if they use Kafka.
pub fn shared_queue(process: &Process, vault: &Vault) -> Option<EmbeddedQueue> {
    let config = &process.config;
    if config.relay.broker.is_kafka() || config.relay.broker.topic != config.consumer.broker.topic {
        return None;
    }
    let database = process.database(Pool::Queue);
    Some(embedded_queue(config, &database, &config.relay.broker, vault))
}

fn embedded_queue(
    config: &Config,
    database: &Database,
    broker: &BrokerConfig,
    vault: &Vault,
) -> EmbeddedQueue {
    let settings = EmbeddedQueueSettings {
        topic: broker.topic.clone(),
        default_ttl: config.codes.ttl,
        require_sealed: config.codes.require_sealed,
    };
    EmbeddedQueue::new(database.clone(), settings, vault.clone())
}

fn kafka(config: &Config, broker: &BrokerConfig, client_id: &str) -> KafkaSettings {
    if let Some(warning) = config.warning_of_kafka() {
        tracing::warn!("{warning}");
    }
    KafkaSettings {
        bootstrap_servers: broker.servers.clone(),
        topic: broker.topic.clone(),
        client_id: client_id.to_owned(),
        request_timeout: Duration::from_secs(5),
        security: config.kafka.clone(),
    }
}

/// Returns what records the messages that go through a topic.
fn traced(process: &Process, broker: &BrokerConfig, group: Option<String>) -> TracedMessages {
    let system = if broker.is_kafka() { "kafka" } else { "messager" };
    let messaging = Messaging { system, topic: broker.topic.clone(), group };
    TracedMessages::new(process.tracer.clone(), messaging)
}

/// Returns the parts of the database that a role writes to: without Kafka, the queue too.
fn parts(own: Part, broker: &BrokerConfig) -> Vec<Part> {
    let queue = (!broker.is_kafka()).then_some(Part::Queue);
    [own].into_iter().chain(queue).collect()
}

/// Returns the time that ids begin with, and that signatures of receipts and ends of certificates
/// are compared with.
#[expect(
    clippy::disallowed_methods,
    reason = "ids of one time stand together in an index, and others sign their own time"
)]
pub(crate) fn clock() -> SystemTime {
    SystemTime::now()
}
