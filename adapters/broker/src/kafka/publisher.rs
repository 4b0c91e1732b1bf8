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
    ports::{BrokerError, Claimed, MessageBroker},
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
};

/// Publishes to a topic of Apache Kafka, which it creates if there is none.
#[derive(Debug)]
pub struct KafkaBroker {
    settings: KafkaPublisherSettings,
    /// Says clearly why a connection fails, which rskafka does not.
    access: Cluster,
    /// None before the first use and after a failure.
    connection: Mutex<Option<Connection>>,
    /// Whether the broker takes requests of more than a few KiB; it may be set up not to.
    takes_large_requests: AtomicBool,
}

#[derive(Debug, Clone)]
pub struct KafkaPublisherSettings {
    pub kafka: KafkaSettings,
    /// Of the topic, should it have to be created.
    pub partitions: NonZeroU16,
    /// Of the topic, should it have to be created.
    pub replication_factor: NonZeroU16,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    partitions: Arc<Partitions>,
    looked_at: Instant,
}

/// A client for each partition; none for one that has no leader now.
type Partitions = Vec<Option<Arc<PartitionClient>>>;

/// What goes to one partition: the messages' places in the batch, and their records.
type Share = (Vec<usize>, Vec<Record>);

/// How old the list of the topic's partitions may get.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl KafkaBroker {
    /// Connects to nothing yet.
    pub fn new(settings: KafkaPublisherSettings) -> Self {
        Self {
            access: Cluster::new(settings.kafka.clone(), Right::Write),
            settings,
            connection: Mutex::new(None),
            takes_large_requests: AtomicBool::new(true),
        }
    }

    /// The partitions' clients, from a connection that is made first where there is none.
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

    /// Connects anew, or looks for partitions that were added.
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
            // The broker that answers need not have heard of it at once.
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
                    tracing::warn!(topic, partition, %error, "partition out of reach");
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

    /// Forgets the connection that these partitions are of.
    async fn discard(&self, failed: &Arc<Partitions>) {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_some_and(|current| Arc::ptr_eq(&current.partitions, failed)) {
            *connection = None;
        }
    }

    /// Sends a partition's records, one request after the other: two in flight could change
    /// places. What follows a failed request is not tried.
    async fn send(
        &self,
        partitions: &Arc<Partitions>,
        partition: i32,
        records: Vec<Record>,
    ) -> Vec<Result<(), BrokerError>> {
        let client =
            usize::try_from(partition).ok().and_then(|place| partitions.get(place)?.clone());
        let Some(client) = client else {
            return failed("the partition is out of reach".into(), records.len(), 0);
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
    async fn publish(&self, messages: &[Claimed]) -> Vec<Result<(), BrokerError>> {
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

fn share_out(messages: &[Claimed], partitions: usize) -> BTreeMap<i32, Share> {
    let mut shares: BTreeMap<i32, Share> = BTreeMap::new();
    for (place, claimed) in messages.iter().enumerate() {
        let record = encode(claimed);
        let partition = partition_of(record.key.as_bytes(), partitions);
        let (places, records) = shares.entry(partition).or_default();
        places.push(place);
        records.push(to_kafka(record, claimed));
    }
    shares
}

fn to_kafka(record: WireRecord, claimed: &Claimed) -> Record {
    // Kafka's retention counts from this time: a record accepted longer ago than the topic keeps
    // its records may be deleted at once. Such a message has long expired.
    //
    // Whole milliseconds: rskafka rounds the first time of a request and the distances to it
    // each on its own.
    let accepted_at = milliseconds(claimed.validity.accepted_at);
    Record {
        key: Some(record.key.into_bytes()),
        value: Some(record.value),
        headers: record.headers,
        timestamp: DateTime::<Utc>::from_timestamp_millis(accepted_at).unwrap_or_default(),
    }
}

/// The answers when a request with so many messages failed, and so many more wait behind it.
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
