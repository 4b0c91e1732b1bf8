//! The processor, which relays messages from the outbox to the broker.

use std::{
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use super::{
    broker::{BrokerConfig, SERVERS, TOPIC},
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{Number, Seconds},
    },
};

#[derive(Debug, Clone)]
pub struct RelayConfig {
    pub broker: BrokerConfig,
    /// Messages of a look.
    pub batch: NonZeroU32,
    /// How long the lease of the relay lasts.
    pub reservation: Duration,
    /// How long a consumer may take to pick up a published message.
    pub confirm_within: Duration,
    /// Of a topic that is created.
    pub partitions: NonZeroU16,
    pub replication: NonZeroU16,
}

pub(super) const SECTION: Section = Section {
    title: "Processor: from the outbox to the broker",
    settings: &[
        Setting {
            name: "PRODUCER_URL",
            default: "",
            example: Some("localhost:29092"),
            values: SERVERS,
            meaning: "Kafka servers to publish to; unset, the processor uses the embedded queue in \
                      the database. A server has no protocol before it; an IPv6 address stands in \
                      brackets. `messager` needs both `PRODUCER_URL` and `CONSUMER_URL`, or neither.",
        },
        Setting {
            name: "PROCESSOR_TOPIC",
            default: "message",
            example: None,
            values: TOPIC,
            meaning: "Topic to publish to. The processor creates it if it does not exist.",
        },
        Setting {
            name: "PROCESSOR_TAKE_MESSAGE_LIMIT",
            default: "1000",
            example: None,
            values: Number(1, 10_000),
            meaning: "Messages that the processor reads and publishes at once.",
        },
        Setting {
            name: "PROCESSOR_RESERVATION_TIME",
            default: "1",
            example: None,
            values: Seconds(1, 3_600),
            meaning: "Seconds after which another processor takes over if the one that publishes \
                      dies. One processor publishes at a time; it looks for new messages at least \
                      every 50 ms, and stores its progress five times in these seconds.",
        },
        Setting {
            name: "PROCESSOR_CONFIRM_WITHIN",
            default: "30",
            example: None,
            values: Seconds(1, 86_400),
            meaning: "Seconds after which a published message is published again if no consumer \
                      picked it up. The processor waits until a group has read past the message, or \
                      until sixteen times as long has passed. Both times double with each repeat.",
        },
        Setting {
            name: "TOPIC_PARTITIONS",
            default: "4",
            example: None,
            values: Number(1, 1_000),
            meaning: "Partitions of the Kafka topic, if the processor creates it. The embedded \
                      queue always has 4.",
        },
        Setting {
            name: "TOPIC_REPLICATION_FACTOR",
            default: "1",
            example: None,
            values: Number(1, 100),
            meaning: "Replication factor of the Kafka topic, if the processor creates it.",
        },
    ],
};

pub(super) fn read(env: &mut Reader<'_>) -> Option<RelayConfig> {
    let broker = BrokerConfig::read(env, "PRODUCER_URL", "PROCESSOR_TOPIC");
    let batch = env.number("PROCESSOR_TAKE_MESSAGE_LIMIT");
    let reservation = env.seconds("PROCESSOR_RESERVATION_TIME");
    let confirm_within = env.seconds("PROCESSOR_CONFIRM_WITHIN");
    let partitions = env.number("TOPIC_PARTITIONS");
    let replication = env.number("TOPIC_REPLICATION_FACTOR");

    Some(RelayConfig {
        broker,
        batch: batch?,
        reservation: reservation?,
        confirm_within: confirm_within?,
        partitions: partitions?,
        replication: replication?,
    })
}
