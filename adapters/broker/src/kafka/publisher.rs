use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use adapters_wire::{WireRecord, encode, milliseconds, partition_of};
use application::{
    BoxError,
    ports::{BrokerError, MessageBroker, Outgoing},
};
use autometrics::autometrics;
use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use rskafka::{
    client::{
        Client,
        error::{Error, ProtocolError},
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record,
};
use tokio::{sync::Mutex, time::Instant};

use super::{
    KafkaSettings, bounded,
    cluster::{Cluster, Right},
    partitions, requests,
    topic::TopicReport,
};

/// Publishes to a topic of Apache Kafka, and creates the topic if it does not exist.
#[derive(Debug)]
pub struct KafkaBroker {
    settings: KafkaPublisherSettings,
    /// Says clearly why a connection fails, which rskafka does not.
    access: Cluster,
    /// None before the first use and after a failure.
    connection: Mutex<Option<Connection>>,
    /// Whether the broker accepts requests of more than a few KiB, which its settings may forbid.
    takes_large_requests: AtomicBool,
}

#[derive(Debug, Clone)]
pub struct KafkaPublisherSettings {
    pub kafka: KafkaSettings,
    /// The number of partitions if the topic is created.
    pub partitions: NonZeroU16,
    /// The number of replicas if the topic is created.
    pub replication_factor: NonZeroU16,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    partitions: Arc<Partitions>,
    looked_at: Instant,
}

/// A client for each partition, or none if the partition has no leader now.
type Partitions = Vec<Option<Arc<PartitionClient>>>;

/// The records for one partition, and the positions of their messages in the batch.
type Share = (Vec<usize>, Vec<Record>);

/// The age at which the list of partitions is read again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl KafkaBroker {
    /// Makes a broker, which connects when it is first used.
    pub fn new(settings: KafkaPublisherSettings) -> Self {
        Self {
            access: Cluster::new(settings.kafka.clone(), Right::Write),
            settings,
            connection: Mutex::new(None),
            takes_large_requests: AtomicBool::new(true),
        }
    }

    /// Describes the topic; `None` if it does not exist. Does not create it.
    pub async fn report(&self) -> Result<Option<TopicReport>, BoxError> {
        Ok(self.access.report().await?)
    }

    /// Returns the clients of the partitions. Connects if there is no connection.
    async fn connected(&self) -> Result<Arc<Partitions>, BoxError> {
        let mut connection = self.connection.lock().await;
        let current = match connection.take() {
            Some(current) if current.looked_at.elapsed() < LOOK_EVERY => current,
            outdated => bounded(self.settings.kafka.request_timeout, self.look(outdated)).await?,
        };
        let partitions = Arc::clone(&current.partitions);
        *connection = Some(current);
        Ok(partitions)
    }

    /// Connects, or looks for new partitions on the connection `outdated`.
    async fn look(&self, outdated: Option<Connection>) -> Result<Connection, BoxError> {
        let KafkaSettings { topic, .. } = &self.settings.kafka;
        let (client, known) = if let Some(connection) = outdated {
            (connection.client, connection.partitions)
        } else {
            if self.settings.kafka.security.is_on() {
                self.access.check_access().await?;
            }
            (self.settings.kafka.connect().await?, Arc::default())
        };
        let mut existing = partitions(&client, topic).await?;
        if existing.is_empty() {
            self.create_topic(&client).await?;
            // The broker that answers may not know the new topic at once.
            while existing.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                existing = partitions(&client, topic).await?;
            }
        }

        let clients = join_all(existing.iter().enumerate().map(|(place, partition)| {
            let (client, known) = (&client, known.get(place).cloned().flatten());
            async move {
                match known {
                    Some(known) => Ok(known),
                    None => client
                        .partition_client(topic, *partition, UnknownTopicHandling::Retry)
                        .await
                        .map(Arc::new),
                }
            }
        }))
        .await;

        let mut found = Vec::with_capacity(clients.len());
        let mut failure = BoxError::from("the topic has no partitions yet");
        for (partition, client) in existing.iter().zip(clients) {
            match client {
                Ok(client) => found.push(Some(client)),
                Err(error) => {
                    tracing::warn!(topic, partition, %error, "a partition is unreachable; its messages wait");
                    failure = error.into();
                    found.push(None);
                }
            }
        }
        if found.iter().all(Option::is_none) {
            return Err(failure);
        }
        Ok(Connection { client, partitions: Arc::new(found), looked_at: Instant::now() })
    }

    async fn create_topic(&self, client: &Client) -> Result<(), Error> {
        let KafkaPublisherSettings { kafka, partitions, replication_factor } = &self.settings;
        let within = i32::try_from(kafka.request_timeout.as_millis()).unwrap_or(i32::MAX);
        let replicas = i16::try_from(replication_factor.get()).unwrap_or(i16::MAX);
        let created = client
            .controller_client()?
            .create_topic(&kafka.topic, i32::from(partitions.get()), replicas, within)
            .await;
        match created {
            Ok(()) => {
                tracing::info!(
                    topic = kafka.topic,
                    partitions,
                    replication_factor,
                    "topic created"
                );
                Ok(())
            }
            Err(error) if protocol_error(&error) == Some(ProtocolError::TopicAlreadyExists) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Drops the connection of these partitions.
    async fn discard(&self, failed: &Arc<Partitions>) {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_some_and(|current| Arc::ptr_eq(&current.partitions, failed)) {
            *connection = None;
        }
    }

    /// Sends the records of a partition, one request after the other, because two requests in flight
    /// could change their order. After a failed request the rest is not tried.
    async fn send(
        &self,
        partitions: &Arc<Partitions>,
        partition: i32,
        records: Vec<Record>,
    ) -> Vec<Result<(), BrokerError>> {
        let client =
            usize::try_from(partition).ok().and_then(|place| partitions.get(place)?.clone());
        let Some(client) = client else {
            return failed("the partition is unreachable".into(), records.len(), 0);
        };
        let sizes: Vec<usize> = records.iter().map(requests::size).collect();
        let large_too = self.takes_large_requests.load(Ordering::Relaxed);

        let mut answers = Vec::with_capacity(records.len());
        let mut records = records.into_iter();
        for request in requests::split(&sizes, large_too) {
            let request: Vec<Record> = records.by_ref().take(request.len()).collect();
            let sent = request.len();
            let produced = client.produce(request, Compression::NoCompression);
            if let Err(error) = bounded(self.settings.kafka.request_timeout, produced).await {
                if let Some(ProtocolError::MessageTooLarge) =
                    error.downcast_ref().and_then(protocol_error)
                {
                    self.takes_large_requests.store(false, Ordering::Relaxed);
                }
                self.discard(partitions).await;
                answers.extend(failed(error, sent, records.len()));
                break;
            }
            answers.extend((0..sent).map(|_| Ok(())));
        }
        answers
    }
}

impl MessageBroker for KafkaBroker {
    #[autometrics(struct_name = "KafkaBroker")]
    async fn ready(&self) -> Result<(), BrokerError> {
        self.connected().await.map(|_| ()).map_err(BrokerError::Unavailable)
    }

    #[autometrics(struct_name = "KafkaBroker")]
    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let partitions = match self.connected().await {
            Ok(partitions) => partitions,
            Err(error) => return failed(error, messages.len(), 0),
        };

        let sending = share_out(messages, partitions.len()).into_iter().map(
            |(partition, (places, records))| {
                let partitions = &partitions;
                async move { (places, self.send(partitions, partition, records).await) }
            },
        );

        let mut answers: Vec<_> = messages.iter().map(|_| Err(BrokerError::Held)).collect();
        for (places, sent) in join_all(sending).await {
            for (place, answer) in places.into_iter().zip(sent) {
                answers[place] = answer;
            }
        }
        answers
    }
}

fn share_out(messages: &[Outgoing], partitions: usize) -> BTreeMap<i32, Share> {
    let mut shares: BTreeMap<i32, Share> = BTreeMap::new();
    for (place, outgoing) in messages.iter().enumerate() {
        let record = encode(outgoing);
        let partition = partition_of(record.key.as_bytes(), partitions);
        let (places, records) = shares.entry(partition).or_default();
        places.push(place);
        records.push(to_kafka(record, outgoing));
    }
    shares
}

fn to_kafka(record: WireRecord, outgoing: &Outgoing) -> Record {
    // Kafka's retention counts from this time. A record that is older than the retention of the topic
    // may be deleted at once, but its message expired long before.
    //
    // Whole milliseconds: rskafka rounds the first time of a request and the differences to it
    // separately.
    let accepted_at = milliseconds(outgoing.validity.accepted_at);
    Record {
        key: Some(record.key.into_bytes()),
        value: Some(record.value),
        headers: record.headers,
        timestamp: DateTime::<Utc>::from_timestamp_millis(accepted_at).unwrap_or_default(),
    }
}

/// Returns the answers after a failure: `sent` messages were in the failed request, and `waiting`
/// messages after it were not tried.
fn failed(error: BoxError, sent: usize, waiting: usize) -> Vec<Result<(), BrokerError>> {
    let cause: Arc<dyn std::error::Error + Send + Sync> = error.into();
    let sent = (0..sent).map(|_| Err(BrokerError::Unavailable(Box::new(Arc::clone(&cause)))));
    let waiting = (0..waiting).map(|_| Err(BrokerError::Held));
    sent.chain(waiting).collect()
}

fn protocol_error(error: &Error) -> Option<ProtocolError> {
    match error {
        Error::ServerError { protocol_error, .. } => Some(*protocol_error),
        _ => None,
    }
}
