//! Apache Kafka. Publishing uses rskafka 0.6. Reading uses a connection of our own, which bounds the
//! memory and the time that a record costs (ADR 38).
//!
//! rskafka has no timeouts: a request on a silent connection waits forever, and the connection stays
//! in its cache. Therefore every call here is [`bounded`], and a client that failed or timed out is
//! discarded. The broker may still execute a request after its deadline, so a message after an error
//! may be published twice. It is never lost silently.

#[cfg(test)]
mod batches;
mod cluster;
mod connection;
mod error;
mod publisher;
mod records;
mod requests;
mod sasl;
mod security;
mod stream;
#[cfg(test)]
mod tests;
mod topic;
mod transport;

use std::{sync::Arc, time::Duration};

use application::BoxError;
use rskafka::{
    BackoffConfig,
    client::{Client, ClientBuilder, error::Error},
};

pub use publisher::{KafkaBroker, KafkaPublisherSettings};
pub use security::{
    KafkaSasl, KafkaSecurity, KafkaTls, KafkaTlsFile, KafkaTlsFiles, SaslMechanism,
};
pub use stream::{KafkaStream, KafkaStreamSettings};
pub use topic::TopicReport;

/// The address of a topic, and how to connect.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// The servers to connect to first, each as `host:port`.
    pub bootstrap_servers: Vec<String>,
    pub topic: String,
    /// Our name in the logs, quotas and metrics of the broker.
    pub client_id: String,
    /// The limit for connecting and for each request.
    pub request_timeout: Duration,
    pub security: KafkaSecurity,
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct TimedOut(Duration);

impl KafkaSettings {
    async fn connect(&self) -> Result<Client, Error> {
        let mut builder = ClientBuilder::new(self.bootstrap_servers.clone())
            .client_id(self.client_id.as_str())
            .backoff_config(self.backoff());
        if let Some(KafkaTls { config, .. }) = &self.security.tls {
            builder = builder.tls_config(Arc::clone(config));
        }
        if let Some(sasl) = &self.security.sasl {
            builder = builder.sasl_config(sasl.for_rskafka());
        }
        builder.build().await
    }

    /// Returns how rskafka retries, for example after a partition's leader moved. Its deadline counts
    /// the pauses and not the time of the requests.
    fn backoff(&self) -> BackoffConfig {
        BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            base: 3.0,
            deadline: Some(self.request_timeout / 2),
        }
    }
}

/// Returns the partitions of the topic in ascending order; empty if the topic does not exist.
async fn partitions(client: &Client, topic: &str) -> Result<Vec<i32>, Error> {
    let topics = client.list_topics().await?;
    let found = topics.into_iter().find(|found| found.name == topic);
    Ok(found.map(|found| found.partitions.into_iter().collect()).unwrap_or_default())
}

/// Waits for `call`, and fails after `limit`.
async fn bounded<T, E: Into<BoxError>>(
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    // On the heap: rskafka's futures have 10 KiB and more, which would be part of every caller's future.
    match tokio::time::timeout(limit, Box::pin(call)).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(TimedOut(limit).into()),
    }
}
