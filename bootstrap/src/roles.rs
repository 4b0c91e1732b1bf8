//! The three parts of the service, each as a set of tasks of a process.

mod api;
mod consumer;
mod housekeeping;
mod keys;
mod processor;

use std::time::{Duration, SystemTime};

use adapters_broker::{KafkaSettings, KafkaStream, KafkaStreamSettings};
use adapters_persistence::{Database, EmbeddedQueue, EmbeddedQueueSettings, Part};
use anyhow::Context;
use application::Vault;
use rand::{
    SeedableRng,
    rngs::{StdRng, SysRng},
};

pub use self::{
    api::api,
    consumer::consumer,
    keys::{StoredSecrets, open_vault, unlock},
    processor::processor,
};
use crate::{
    Process,
    broker::Stream,
    config::{BrokerConfig, Config},
};

/// A topic as consumers read it.
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

/// The queue that the processor and the consumer of one process share, so that the one wakes the
/// other; none where they use Kafka.
pub fn shared_queue(process: &Process, vault: &Vault) -> Option<EmbeddedQueue> {
    let config = &process.config;
    if config.relay.broker.is_kafka() || config.relay.broker.topic != config.consumer.broker.topic {
        return None;
    }
    let database = process.database("queue", 6);
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
    KafkaSettings {
        bootstrap_servers: broker.servers.clone(),
        topic: broker.topic.clone(),
        client_id: client_id.to_owned(),
        request_timeout: Duration::from_secs(5),
        security: config.kafka.clone(),
    }
}

/// What a process has to be allowed to do: without Kafka, it uses the queue in the database too.
fn parts(own: Part, broker: &BrokerConfig) -> Vec<Part> {
    let queue = (!broker.is_kafka()).then_some(Part::Queue);
    [own].into_iter().chain(queue).collect()
}

/// What ids begin with.
#[expect(clippy::disallowed_methods, reason = "so that ids of one time stand together; no more")]
fn clock() -> SystemTime {
    SystemTime::now()
}

/// A generator that nobody can guess: ids, codes and keys come of it.
fn seeded() -> anyhow::Result<StdRng> {
    StdRng::try_from_rng(&mut SysRng).context("seed a generator from the operating system")
}
