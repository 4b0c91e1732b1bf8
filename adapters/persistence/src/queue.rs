//! A queue in the database, for a service without Kafka. It has the same records, keys and
//! partitions as a topic of Kafka.
//!
//! A publisher increments a partition's `next_offset` and so holds the lock on that row until it
//! commits. Readers therefore see offsets in order and without gaps. A record that is missing below
//! an offset that a reader sees was trimmed.

mod sql;

use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    future::ready,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use adapters_wire::{DecodeSettings, Headers, Place, WireRecord, decode, encode, partition_of};
use application::{
    Keys, Vault, VaultClosed,
    ports::{
        BrokerError, Fetched, MessageBroker, MessageStream, Outgoing, Record, StartFrom,
        StreamError, Unreadable,
    },
};
use autometrics::autometrics;
use sea_orm::FromQueryResult;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use self::sql::{APPEND, CREATE, END, FIRST, FIRST_SINCE, PARTITIONS_OF, READ, RESERVE, TRIM};
use crate::{
    database::{Database, DatabaseError, Parameters, Transaction, begin, millis, since_1970},
    refusal::in_parts,
};

/// Publishes to a topic in the database and reads from it. A clone is the same queue.
#[derive(Debug, Clone)]
pub struct EmbeddedQueue {
    database: Database,
    settings: EmbeddedQueueSettings,
    vault: Vault,
    /// Wakes the readers of this process. There is one sender for each partition.
    published: Arc<[watch::Sender<()>; PARTITIONS]>,
}

#[derive(Debug, Clone)]
pub struct EmbeddedQueueSettings {
    pub topic: String,
    /// The validity of a message whose record states none, counted from when it was published.
    pub default_ttl: Duration,
    /// Whether a message in clear is unreadable.
    pub require_sealed: bool,
}

/// The number of partitions, which [`CREATE`] creates.
const PARTITIONS: usize = 4;

/// The largest number of records that a fetch returns.
const FETCH_LIMIT: i64 = 500;

/// How long a fetch waits if there are no records.
const WAIT: Duration = Duration::from_millis(500);

/// The first and the longest pause after which a waiting fetch looks for records of another
/// process.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

#[derive(FromQueryResult)]
struct Reserved {
    next_offset: i64,
    now: i64,
}

/// A record of a partition. Without records a partition has one row, whose columns but
/// `next_offset` are null.
#[derive(FromQueryResult)]
struct RecordRow {
    next_offset: i64,
    offset: Option<i64>,
    value: Option<Vec<u8>>,
    headers: Option<String>,
    written_at: Option<i64>,
}

#[derive(FromQueryResult)]
struct PartitionRow {
    partition: i32,
}

#[derive(FromQueryResult)]
struct OffsetRow {
    offset: i64,
}

impl EmbeddedQueue {
    /// Makes a queue on a database that has the tables `queue_partition`, `queue_record` and
    /// `partition_lease`.
    ///
    /// It reads nothing before `vault` is open, because sealed records would be unreadable.
    pub fn new(database: Database, settings: EmbeddedQueueSettings, vault: Vault) -> Self {
        let published = Arc::new(std::array::from_fn(|_| watch::Sender::new(())));
        Self { database, settings, vault, published }
    }

    /// Deletes the records that all groups have passed or that are older than `older_than`, and
    /// returns their number.
    ///
    /// A reader whose offset was deleted gets [`StreamError::OutOfRange`].
    pub async fn trim(&self, older_than: Duration) -> Result<u64, StreamError> {
        let mut trimmed = 0;
        for partition in partitions() {
            let parameters = self.partition(partition).with("older_than", millis(older_than));
            trimmed += self.database.execute(&TRIM, parameters).await?;
        }
        Ok(trimmed)
    }

    /// Appends records, all of them in one transaction, and wakes the readers of their partitions.
    async fn append(&self, records: &[&WireRecord]) -> Result<(), DatabaseError> {
        let mut shares: BTreeMap<i32, Vec<&WireRecord>> = BTreeMap::new();
        for record in records.iter().copied() {
            shares.entry(partition_of(record.key.as_bytes(), PARTITIONS)).or_default().push(record);
        }
        self.database
            .step(async |connection| {
                let transaction = begin(&connection).await?;
                // All publishers take the partitions in this order, so they cannot deadlock.
                for (partition, records) in &shares {
                    self.append_to(&transaction, *partition, records).await?;
                }
                transaction.commit().await
            })
            .await?;
        for partition in shares.keys() {
            if let Some(published) = self.published(*partition) {
                published.send_replace(());
            }
        }
        Ok(())
    }

    async fn append_to(
        &self,
        transaction: &Transaction,
        partition: i32,
        records: &[&WireRecord],
    ) -> Result<(), DatabaseError> {
        let count = i64::try_from(records.len()).expect("a batch is short");
        let reserve = self.partition(partition).with("count", count);
        let reserved: Option<Reserved> = transaction.row(&RESERVE, reserve).await?;
        let Reserved { next_offset, now } =
            reserved.ok_or_else(|| DatabaseError::missing("the end of the partition"))?;
        let append = self
            .partition(partition)
            .with("first", next_offset - count)
            .with("now", now)
            .rows("new", records.iter(), |new| {
                new.column("key", |record| record.key.clone())
                    .column("value", |record| record.value.clone())
                    .column("headers", |record| to_json(&record.headers))
            });
        transaction.execute(&APPEND, append).await?;
        Ok(())
    }

    /// Reads what the partition has from `offset` on, without waiting.
    async fn read(&self, partition: i32, offset: i64, keys: &Keys) -> Result<Fetched, StreamError> {
        let parameters =
            self.partition(partition).with("offset", offset).with("limit", FETCH_LIMIT);
        let rows: Vec<RecordRow> = self.database.rows(&READ, parameters).await?;

        let end = rows.first().ok_or_else(no_such_partition)?.next_offset;
        let records: Vec<Record> =
            rows.iter().filter_map(|row| self.to_record(partition, row, keys)).collect();
        let first = records.first().map_or(end, |record| record.offset);
        if first != offset {
            // Later: the record was trimmed. Earlier: the queue was emptied and began again at 0.
            return Err(StreamError::OutOfRange { offset });
        }
        let next_offset = records.last().map_or(offset, |record| record.offset + 1);
        Ok(Fetched { records, next_offset, lag: end - next_offset })
    }

    fn to_record(&self, partition: i32, row: &RecordRow, keys: &Keys) -> Option<Record> {
        let offset = row.offset?;
        let written_at = row.written_at.unwrap_or(-1);
        let place = Place { topic: &self.settings.topic, partition, offset, written_at };
        let EmbeddedQueueSettings { default_ttl, require_sealed, .. } = self.settings;
        let settings = DecodeSettings { default_ttl, keys: keys.payload.as_ref(), require_sealed };
        let content = from_json(row.headers.as_deref().unwrap_or("{}"))
            .and_then(|headers| decode(place, row.value.as_deref(), &headers, settings));
        Some(Record { offset, content })
    }

    fn published(&self, partition: i32) -> Option<&watch::Sender<()>> {
        self.published.get(usize::try_from(partition).ok()?)
    }

    fn topic(&self) -> Parameters {
        self.database.parameters().with("topic", self.settings.topic.as_str())
    }

    fn partition(&self, partition: i32) -> Parameters {
        self.topic().with("partition", partition)
    }
}

impl MessageBroker for EmbeddedQueue {
    #[autometrics(struct_name = "EmbeddedQueue")]
    async fn ready(&self) -> Result<(), BrokerError> {
        let known = MessageStream::partitions(self)
            .await
            .map_err(|error| BrokerError::Unavailable(error.into()))?;
        if known.len() >= PARTITIONS {
            return Ok(());
        }
        self.database.execute(&CREATE, self.topic()).await?;
        Ok(())
    }

    #[autometrics(struct_name = "EmbeddedQueue")]
    async fn publish(&self, messages: &[Outgoing]) -> Vec<Result<(), BrokerError>> {
        let records: Vec<WireRecord> = messages.iter().map(encode).collect();
        // The phones of refused records. Their later records must not overtake them.
        let phones = Mutex::new(HashSet::new());
        let refused = || phones.lock().unwrap_or_else(PoisonError::into_inner);
        let step = |part: Range<usize>| {
            let is_held = |record: &&WireRecord| refused().contains(&record.key);
            let (held, taken): (Vec<_>, Vec<_>) = records[part.clone()].iter().partition(is_held);
            let held: HashSet<&str> = held.into_iter().map(|record| &*record.key).collect();
            let records = &records;
            async move {
                self.append(&taken).await?;
                let answer = |record: &WireRecord| {
                    if held.contains(&*record.key) { Err(BrokerError::Held) } else { Ok(()) }
                };
                Ok(records[part].iter().map(answer).collect::<Vec<_>>())
            }
        };
        let alone = |at: usize, error: DatabaseError| {
            refused().insert(records[at].key.clone());
            ready(Ok(vec![Err(BrokerError::from(error))]))
        };
        match in_parts(records.len(), step, alone).await {
            Ok(answers) => answers.into_iter().flatten().collect(),
            Err(error) => failed(error, records.len()),
        }
    }
}

impl MessageStream for EmbeddedQueue {
    async fn partitions(&self) -> Result<Vec<i32>, StreamError> {
        let rows: Vec<PartitionRow> = self.database.rows(&PARTITIONS_OF, self.topic()).await?;
        Ok(rows.into_iter().map(|row| row.partition).collect())
    }

    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError> {
        let parameters = self.partition(partition);
        let (sql, parameters) = match from {
            StartFrom::Earliest => (&FIRST, parameters),
            StartFrom::Latest => (&END, parameters),
            StartFrom::Since(time) => (&FIRST_SINCE, parameters.with("since", since_1970(time))),
        };
        let rows: Vec<OffsetRow> = self.database.rows(sql, parameters).await?;
        rows.first().map(|row| row.offset).ok_or_else(no_such_partition)
    }

    #[autometrics(struct_name = "EmbeddedQueue")]
    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError> {
        let keys = self.vault.keys().ok_or_else(|| StreamError::Unavailable(VaultClosed.into()))?;
        let mut published = self.published(partition).ok_or_else(no_such_partition)?.subscribe();
        let gives_up = Instant::now() + WAIT;
        let mut pause = FIRST_PAUSE;
        loop {
            // Before the read, so that a record that is published during it wakes us.
            published.mark_unchanged();
            let fetched = self.read(partition, offset, keys).await?;
            if !fetched.records.is_empty() || Instant::now() >= gives_up {
                return Ok(fetched);
            }
            let next_look = gives_up.min(Instant::now() + pause);
            // Woken or not, the next step is to look.
            let _ = timeout_at(next_look, published.changed()).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}

/// Returns the answers to `count` messages after an error that concerns all of them.
fn failed(error: DatabaseError, count: usize) -> Vec<Result<(), BrokerError>> {
    let cause: Arc<dyn Error + Send + Sync> = Arc::new(error);
    (0..count).map(|_| Err(BrokerError::Unavailable(Box::new(Arc::clone(&cause))))).collect()
}

fn partitions() -> Range<i32> {
    0..i32::try_from(PARTITIONS).expect("there are few partitions")
}

fn no_such_partition() -> StreamError {
    StreamError::Unavailable("the topic has no such partition now".into())
}

fn to_json(headers: &Headers) -> String {
    let texts: BTreeMap<&str, _> = headers
        .iter()
        .map(|(name, bytes)| (name.as_str(), String::from_utf8_lossy(bytes)))
        .collect();
    serde_json::to_string(&texts).expect("texts are always JSON")
}

fn from_json(text: &str) -> Result<Headers, Unreadable> {
    let texts: BTreeMap<String, String> =
        serde_json::from_str(text).map_err(|_| Unreadable("the headers are not JSON texts"))?;
    Ok(texts.into_iter().map(|(name, text)| (name, text.into_bytes())).collect())
}
