//! The consumer, which hands messages from the broker to the gateway.

use std::{num::NonZeroU16, time::Duration};

use super::{
    broker::{BrokerConfig, SERVERS, TOPIC},
    reader::Reader,
    setting::{
        Section, Setting,
        Values::{Days, Number, OneOf, Text},
    },
};

#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    pub broker: BrokerConfig,
    pub group: String,
    /// `None`: the latest record in Kafka, the earliest in the embedded queue, which no other
    /// service reads.
    pub start_from: Option<Beginning>,
    /// Calls of each gateway at a time, for each partition.
    pub concurrency: usize,
    /// How long the ledger keeps a message that has ended.
    pub retention: Duration,
}

/// Where a group without an offset begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// At the earliest record.
    Earliest,
    /// At the end. The first group of a topic begins at the messages that may still be valid.
    Latest,
    /// At the end, whatever is before it.
    End,
}

pub(super) const SECTION: Section = Section {
    title: "Consumer: from the broker to the gateway",
    settings: &[
        Setting {
            name: "CONSUMER_URL",
            default: "",
            example: Some("localhost:29092"),
            values: SERVERS,
            meaning: "Kafka servers to read from; unset, the consumer uses the embedded queue. \
                      Written as `PRODUCER_URL`.",
        },
        Setting {
            name: "CONSUMER_TOPIC",
            default: "message",
            example: None,
            values: TOPIC,
            meaning: "Topic to read.",
        },
        Setting {
            name: "CONSUMER_GROUP_ID",
            default: "1",
            example: None,
            values: Text("text"),
            meaning: "Consumers of one group share the partitions. Each group sends every message.",
        },
        Setting {
            name: "CONSUMER_AUTO_OFFSET_RESET",
            default: "",
            example: Some("latest"),
            values: OneOf(&["earliest", "latest", "end"]),
            meaning: "Where a group without an offset begins. `earliest` is the earliest record. \
                      `latest` is the end of the topic; the first group of a topic begins at the \
                      messages that may still be valid. `end` is the end, whatever is before it. \
                      A partition that is added later begins at its earliest record in any case. \
                      Unset, it is `latest` in Kafka and `earliest` in the embedded queue.",
        },
        Setting {
            name: "CONSUMER_CONCURRENCY",
            default: "64",
            example: None,
            values: Number(1, 10_000),
            meaning: "Calls of each gateway at a time, for each partition.",
        },
        Setting {
            name: "DELIVERY_RETENTION",
            default: "7",
            example: None,
            values: Days(1, 3_650),
            meaning: "Days for which the ledger keeps messages that have ended. Keep them at least \
                      as long as the topic keeps its records.",
        },
    ],
};

pub(super) fn read(env: &mut Reader<'_>) -> Option<ConsumerConfig> {
    let broker = BrokerConfig::read(env, "CONSUMER_URL", "CONSUMER_TOPIC");
    let group = env.text_or_default("CONSUMER_GROUP_ID");
    let start_from = env.is_set("CONSUMER_AUTO_OFFSET_RESET").then(|| {
        let choices = [
            ("earliest", Beginning::Earliest),
            ("latest", Beginning::Latest),
            ("end", Beginning::End),
        ];
        env.choice("CONSUMER_AUTO_OFFSET_RESET", &choices)
    });
    let concurrency = env.number("CONSUMER_CONCURRENCY");
    let retention = env.days("DELIVERY_RETENTION");

    Some(ConsumerConfig {
        broker,
        group,
        start_from: start_from.flatten(),
        concurrency: usize::from(NonZeroU16::get(concurrency?)),
        retention: retention?,
    })
}
