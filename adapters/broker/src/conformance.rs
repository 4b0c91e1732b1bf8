//! Runs the promises of a broker on Kafka.

use std::{num::NonZeroU16, time::Duration};

use adapters_wire::{
    broker_conformance,
    conformance::{Rig, TTL, vault},
};
use application::Vault;

use crate::{
    KafkaBroker, KafkaPublisherSettings, KafkaSecurity, KafkaSettings, KafkaStream,
    KafkaStreamSettings,
    testing::{service, unique_name},
};

broker_conformance!(rig);

#[expect(clippy::unused_async, reason = "the suite awaits it")]
async fn rig() -> Option<(Rig<KafkaBroker, KafkaStream>, ())> {
    let kafka = KafkaSettings {
        bootstrap_servers: vec![service("TEST_KAFKA")?],
        topic: unique_name(),
        client_id: "messager-test".to_owned(),
        request_timeout: Duration::from_secs(10),
        security: KafkaSecurity::default(),
    };
    let broker = || {
        KafkaBroker::new(KafkaPublisherSettings {
            kafka: kafka.clone(),
            partitions: NonZeroU16::new(4).unwrap(),
            replication_factor: NonZeroU16::MIN,
        })
    };
    let stream = |vault| {
        let settings =
            KafkaStreamSettings { kafka: kafka.clone(), default_ttl: TTL, require_sealed: false };
        KafkaStream::new(settings, vault)
    };
    let rig = Rig {
        broker: broker(),
        stream: stream(vault()),
        other_broker: broker(),
        locked_stream: stream(Vault::default()),
    };
    Some((rig, ()))
}
