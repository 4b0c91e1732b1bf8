use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use application::{
    BoxError, Keys, Vault, VaultClosed,
    ports::{Fetched, MessageStream, Record, StartFrom, StreamError, Unreadable},
};
use autometrics::autometrics;
use rskafka::{
    client::{
        Client,
        error::{Error, ProtocolError, RequestError},
        partition::{OffsetAt, PartitionClient, UnknownTopicHandling},
    },
    record::RecordAndOffset,
};

use super::{KafkaSettings, bounded, partitions};
use crate::wire::{self, Place, Reading};

/// Reads a topic of Apache Kafka, without a consumer group: who reads what from where is the
/// caller's to know.
#[derive(Debug)]
pub struct KafkaStream {
    settings: KafkaStreamSettings,
    vault: Vault,
    /// Knows the cluster; None before the first use and after a failure.
    client: tokio::sync::Mutex<Option<Arc<Client>>>,
    /// A connection for each partition, so that waiting for one holds up no other.
    partitions: Mutex<HashMap<i32, Arc<PartitionClient>>>,
}

#[derive(Debug, Clone)]
pub struct KafkaStreamSettings {
    pub kafka: KafkaSettings,
    /// How long a message may be sent whose record says only when it was written.
    pub default_ttl: Duration,
}

/// What a fetch brings at most, but for a single batch of records that is larger.
const FETCH_BYTES: i32 = 1024 * 1024;

/// How long the broker waits for records when there are none.
const WAIT_MILLISECONDS: i32 = 500;
const WAIT: Duration = Duration::from_millis(WAIT_MILLISECONDS.unsigned_abs() as u64);

/// What the broker has from an offset on.
enum Found {
    Records(Vec<RecordAndOffset>),
    /// Only a transaction's end or what compaction left: nothing to read at this offset.
    Nothing,
    /// A batch of records that the client cannot decode.
    Undecodable(RequestError),
}

impl KafkaStream {
    /// Connects to nothing yet. Reads nothing before `vault` is open: what is sealed would be taken
    /// for unreadable.
    pub fn new(settings: KafkaStreamSettings, vault: Vault) -> Self {
        Self {
            settings,
            vault,
            client: tokio::sync::Mutex::default(),
            partitions: Mutex::default(),
        }
    }

    /// Does something with a partition, within the request timeout and `wait`; a connection on
    /// which it fails is not used again.
    async fn with_partition<T>(
        &self,
        partition: i32,
        wait: Duration,
        call: impl AsyncFnOnce(&PartitionClient) -> Result<T, Error>,
    ) -> Result<T, BoxError> {
        let client = self.partition(partition).await?;
        let answer = bounded(self.settings.kafka.request_timeout + wait, call(&client)).await;
        let failed = answer.as_ref().is_err_and(|error| !is_out_of_range(error));
        if failed {
            self.known_partitions().retain(|_, known| !Arc::ptr_eq(known, &client));
        }
        answer
    }

    async fn partition(&self, partition: i32) -> Result<Arc<PartitionClient>, BoxError> {
        if let Some(known) = self.known_partitions().get(&partition) {
            return Ok(Arc::clone(known));
        }
        let opened = self
            .with_client(async |client| {
                // To ask for an unknown topic's leader would make some brokers create the topic.
                let topic = &self.settings.kafka.topic;
                if !partitions(client, topic).await?.contains(&partition) {
                    return Ok(None);
                }
                let error = UnknownTopicHandling::Error;
                client.partition_client(topic, partition, error).await.map(Some)
            })
            .await?
            .ok_or("the topic has no such partition now")?;
        let opened = Arc::new(opened);
        self.known_partitions().insert(partition, Arc::clone(&opened));
        Ok(opened)
    }

    /// Does something with the cluster, within the request timeout.
    async fn with_client<T>(
        &self,
        call: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, BoxError> {
        let client = self.client().await?;
        let answer = bounded(self.settings.kafka.request_timeout, call(&client)).await;
        if answer.is_err() {
            self.client.lock().await.take_if(|current| Arc::ptr_eq(current, &client));
        }
        answer
    }

    async fn client(&self) -> Result<Arc<Client>, BoxError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(Arc::clone(client));
        }
        let kafka = &self.settings.kafka;
        let connected = Arc::new(bounded(kafka.request_timeout, kafka.connect()).await?);
        Ok(Arc::clone(client.insert(connected)))
    }

    fn known_partitions(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Arc<PartitionClient>>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_record(&self, partition: i32, found: RecordAndOffset, keys: &Keys) -> Record {
        let RecordAndOffset { record, offset } = found;
        let place = Place {
            topic: &self.settings.kafka.topic,
            partition,
            offset,
            written_at: record.timestamp.timestamp_millis(),
        };
        let value = record.value.as_deref();
        let reading =
            Reading { default_ttl: self.settings.default_ttl, keys: keys.payload.as_ref() };
        let content = wire::decode(place, value, &record.headers, reading);
        Record { offset, content }
    }
}

impl MessageStream for KafkaStream {
    async fn partitions(&self) -> Result<Vec<i32>, StreamError> {
        let topic = &self.settings.kafka.topic;
        self.with_client(async |client| partitions(client, topic).await)
            .await
            .map_err(StreamError::Unavailable)
    }

    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError> {
        let first = async |client: &PartitionClient| match from {
            StartFrom::Earliest => client.get_offset(OffsetAt::Earliest).await,
            StartFrom::Latest => client.get_offset(OffsetAt::Latest).await,
            StartFrom::Since(time) => {
                // Before it is looked for: what is written in between comes after this.
                let end = client.get_offset(OffsetAt::Latest).await?;
                let found = client.get_offset(OffsetAt::Timestamp(time.into())).await?;
                Ok(if found < 0 { end } else { found })
            }
        };
        self.with_partition(partition, Duration::ZERO, first)
            .await
            .map_err(StreamError::Unavailable)
    }

    #[autometrics(struct_name = "KafkaStream")]
    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError> {
        let keys = self.vault.keys().ok_or_else(|| StreamError::Unavailable(VaultClosed.into()))?;
        let (found, end) = self
            .with_partition(partition, WAIT, async |client| find(client, offset).await)
            .await
            .map_err(|error| {
                if is_out_of_range(&error) {
                    StreamError::OutOfRange { offset }
                } else {
                    StreamError::Unavailable(error)
                }
            })?;

        let (records, next_offset) = match found {
            Found::Records(found) => {
                let next_offset = found.last().map_or(offset, |last| last.offset + 1);
                let to_record = |found| self.to_record(partition, found, keys);
                (found.into_iter().map(to_record).collect(), next_offset)
            }
            Found::Nothing => (Vec::new(), offset + 1),
            Found::Undecodable(error) => {
                tracing::warn!(partition, offset, %error, "records that cannot be decoded");
                let content = Err(Unreadable("the batch of records cannot be decoded"));
                (vec![Record { offset, content }], offset + 1)
            }
        };
        Ok(Fetched { records, next_offset, lag: (end - next_offset).max(0) })
    }
}

/// Reads from `offset` on, and says where the partition ends.
///
/// rskafka gives the records alone, not the extent of the batches they came in. When there are
/// none although the partition goes on, or when they cannot be decoded (it refuses, say, a header
/// without a value, which Java clients may write), this finds out whether a reader may step over
/// `offset`: it must neither stand still for ever nor pass a record by.
async fn find(client: &PartitionClient, offset: i64) -> Result<(Found, i64), Error> {
    match client.fetch_records(offset, 1..FETCH_BYTES, WAIT_MILLISECONDS).await {
        Ok((records, end)) if !records.is_empty() || end <= offset => {
            return Ok((Found::Records(records), end));
        }
        Ok(_) | Err(Error::Request(RequestError::ReadVersionedError(_))) => {}
        Err(error) => return Err(error),
    }

    // The end of what is not in an open transaction. What is before it will not change, so the
    // second look below, which must come after, tells for certain.
    let settled = client.get_offset(OffsetAt::Latest).await?;
    if settled <= offset {
        return Ok((Found::Records(Vec::new()), settled));
    }
    // One byte: the broker sends a whole batch of records all the same, but no second one.
    match client.fetch_records(offset, 1..2, WAIT_MILLISECONDS).await {
        Ok((records, end)) if records.is_empty() => Ok((Found::Nothing, end)),
        Ok((records, end)) => Ok((Found::Records(records), end)),
        Err(Error::Request(error @ RequestError::ReadVersionedError(_))) => {
            // The end of a transaction has a form that rskafka looks for in the wrong place.
            let marker = error.to_string().contains("control batch record");
            let found = if marker { Found::Nothing } else { Found::Undecodable(error) };
            Ok((found, settled))
        }
        Err(error) => Err(error),
    }
}

fn is_out_of_range(error: &BoxError) -> bool {
    matches!(
        error.downcast_ref(),
        Some(Error::ServerError { protocol_error: ProtocolError::OffsetOutOfRange, .. })
    )
}
