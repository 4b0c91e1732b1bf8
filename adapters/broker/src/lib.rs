//! Messages through Apache Kafka. The bytes of the records are those of [`adapters_wire`].

#[cfg(test)]
mod conformance;
mod kafka;
#[cfg(test)]
mod testing;

pub use kafka::{
    KafkaBroker, KafkaPublisherSettings, KafkaSasl, KafkaSecurity, KafkaSettings, KafkaStream,
    KafkaStreamSettings, KafkaTls, KafkaTlsFile, KafkaTlsFiles, SaslMechanism, TopicReport,
};
