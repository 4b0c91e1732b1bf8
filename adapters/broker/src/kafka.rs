//! Apache Kafka: written to through rskafka 0.6, with what that client leaves to its user, and read
//! through a connection of our own, which bounds what a record may cost (ADR 38).
//!
//! rskafka knows no timeouts: a request on a connection that went silent waits for ever, and the
//! connection stays in its cache. So every call here is [`bounded`], and a client that failed or
//! ran out of time is thrown away as a whole. What a deadline cut off may still be done by the
//! broker: a message after an error is published twice at times, and never silently lost.

#[cfg(test)]
mod batches;
mod cluster;
mod connection;
mod publisher;
mod records;
mod requests;
mod sasl;
mod security;
mod stream;
#[cfg(test)]
mod tests;
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

/// Where the topic is.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// Each as `host:port`.
    pub bootstrap_servers: Vec<String>,
    pub topic: String,
    /// What the broker's logs, quotas and metrics call us.
    pub client_id: String,
    /// How long connecting or a request may take in all.
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
        if let Some(KafkaTls(config)) = &self.security.tls {
            builder = builder.tls_config(Arc::clone(config));
        }
        if let Some(sasl) = &self.security.sasl {
            builder = builder.sasl_config(sasl.for_rskafka());
        }
        builder.build().await
    }

    /// How the client tries again by itself, say when a partition's leader moved. It counts
    /// pauses only, not how long the requests take.
    fn backoff(&self) -> BackoffConfig {
        BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            base: 3.0,
            deadline: Some(self.request_timeout / 2),
        }
    }
}

/// The partitions that the topic has now, in their order; none if there is no such topic.
async fn partitions(client: &Client, topic: &str) -> Result<Vec<i32>, Error> {
    let topics = client.list_topics().await?;
    let found = topics.into_iter().find(|found| found.name == topic);
    Ok(found.map(|found| found.partitions.into_iter().collect()).unwrap_or_default())
}

async fn bounded<T, E: Into<BoxError>>(
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, BoxError> {
    // On the heap: rskafka's futures are of 10 KiB and more, and every caller would carry them.
    match tokio::time::timeout(limit, Box::pin(call)).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(TimedOut(limit).into()),
    }
}
