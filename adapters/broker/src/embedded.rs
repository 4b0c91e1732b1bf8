//! A queue in the database, for where there is no Kafka: the same records, keys and partitions.
//!
//! Publishing counts a partition's `next_offset` up and so holds the lock on that row until the
//! commit. Readers therefore see offsets in order and without gaps, and what is missing below an
//! offset that they see was trimmed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use application::{
    BoxError, Keys, Vault, VaultClosed,
    ports::{
        BrokerError, Claimed, Fetched, MessageBroker, MessageStream, Record, StartFrom,
        StreamError, Unreadable,
    },
};
use autometrics::autometrics;
use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    EntityTrait, FromQueryResult, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait, Value,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    partitioner::partition_of,
    wire::{self, Headers, Place, Reading, WireRecord},
};

mod queue_record;

/// Publishes to and reads from a topic in the database. A clone is the same queue.
#[derive(Debug, Clone)]
pub struct EmbeddedQueue {
    db: DatabaseConnection,
    settings: EmbeddedQueueSettings,
    vault: Vault,
    /// Wakes the readers in this process, one for each partition.
    published: Arc<[watch::Sender<()>; PARTITIONS]>,
}

#[derive(Debug, Clone)]
pub struct EmbeddedQueueSettings {
    pub topic: String,
    /// How long a message may be sent whose record says only when it was written.
    pub default_ttl: Duration,
    /// Whether messages in clear are taken for unreadable.
    pub require_sealed: bool,
}

const PARTITIONS: usize = 4;

/// Records that a fetch brings at most.
const FETCH_LIMIT: i64 = 500;

/// How long a fetch waits for records when there are none.
const WAIT: Duration = Duration::from_millis(500);

/// How often a waiting fetch looks for what another process published: at first, and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Rows of seven values; PostgreSQL takes 65,535 values in a statement, SQLite 32,766.
const INSERT_LIMIT: usize = 1_000;

/// A record, or none, of a partition.
#[derive(FromQueryResult)]
struct Row {
    next_offset: i64,
    offset: Option<i64>,
    value: Option<Vec<u8>>,
    headers: Option<String>,
    written_at: Option<i64>,
}

impl EmbeddedQueue {
    /// The database must have the tables `queue_partition`, `queue_record` and `partition_lease`.
    /// Reads nothing before `vault` is open: what is sealed would be taken for unreadable.
    pub fn new(db: DatabaseConnection, settings: EmbeddedQueueSettings, vault: Vault) -> Self {
        let published = Arc::new(std::array::from_fn(|_| watch::Sender::new(())));
        Self { db, settings, vault, published }
    }

    /// Deletes what all groups have taken over, and what was published longer ago than this. Says
    /// how many records that were.
    ///
    /// A reader that had not come so far gets `OutOfRange` then.
    pub async fn trim(&self, older_than: Duration) -> Result<u64, StreamError> {
        // What follows a record that stays stays too, whatever the clock said then: there must
        // be no gap. An offset beyond the end is one of a queue that was here before.
        let sql = format!(
            r#"DELETE FROM queue_record WHERE topic = $1 AND "partition" = $2 AND (
                "offset" < COALESCE(
                    (SELECT "offset" FROM queue_record
                     WHERE topic = $1 AND "partition" = $2 AND written_at >= {now} - $3
                     ORDER BY "offset" LIMIT 1),
                    9223372036854775807)
                OR "offset" < (
                    SELECT MIN(CASE WHEN lease.next_offset <= p.next_offset
                        THEN lease.next_offset ELSE 0 END)
                    FROM partition_lease lease
                        JOIN queue_partition p USING (topic, "partition")
                    WHERE topic = $1 AND "partition" = $2))"#,
            now = self.now(),
        );
        let older_than = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let mut trimmed = 0;
        for partition in partitions() {
            let values = [self.topic(), partition.into(), older_than.into()];
            let statement = self.statement(&sql, values);
            trimmed += self.db.execute_raw(statement).await.map_err(unavailable)?.rows_affected();
        }
        Ok(trimmed)
    }

    /// Appends to each partition its records, all or none.
    async fn append(&self, shares: BTreeMap<i32, Vec<WireRecord>>) -> Result<(), DbErr> {
        // SQLite: a transaction that reads first and writes then may fail at once where one that
        // announces itself as a writer waits for its turn.
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let tx = self.db.begin_with_options(options).await?;
        // In the order of the partitions, so that two publishers cannot lock each other out.
        for (partition, records) in &shares {
            self.append_to(&tx, *partition, records).await?;
        }
        tx.commit().await?;

        for partition in shares.into_keys() {
            if let Some(published) = self.published(partition) {
                published.send_replace(());
            }
        }
        Ok(())
    }

    async fn append_to(
        &self,
        tx: &DatabaseTransaction,
        partition: i32,
        records: &[WireRecord],
    ) -> Result<(), DbErr> {
        #[derive(FromQueryResult)]
        struct Reserved {
            next_offset: i64,
            now: i64,
        }

        let count = i64::try_from(records.len()).expect("a batch is short");
        let sql = format!(
            r#"INSERT INTO queue_partition (topic, "partition", next_offset) VALUES ($1, $2, $3)
               ON CONFLICT (topic, "partition")
               DO UPDATE SET next_offset = queue_partition.next_offset + excluded.next_offset
               RETURNING next_offset, {now} AS now"#,
            now = self.now(),
        );
        let values = [self.topic(), partition.into(), count.into()];
        let Reserved { next_offset, now } =
            Reserved::find_by_statement(self.statement(&sql, values))
                .one(tx)
                .await?
                .ok_or_else(|| DbErr::RecordNotFound("the partition's next offset".into()))?;

        let rows = records.iter().zip(next_offset - count..).map(|(record, offset)| {
            queue_record::ActiveModel {
                topic: Set(self.settings.topic.clone()),
                partition: Set(partition),
                offset: Set(offset),
                key: Set(Some(record.key.clone())),
                value: Set(Some(record.value.clone())),
                headers: Set(to_json(&record.headers)),
                written_at: Set(now),
            }
        });
        let rows: Vec<_> = rows.collect();
        for rows in rows.chunks(INSERT_LIMIT) {
            queue_record::Entity::insert_many(rows.iter().cloned())
                .exec_without_returning(tx)
                .await?;
        }
        Ok(())
    }

    /// What the partition has from `offset` on, now.
    async fn read(&self, partition: i32, offset: i64, keys: &Keys) -> Result<Fetched, StreamError> {
        // One statement, so that the records and the partition's end are of one moment.
        let sql = r#"
            SELECT p.next_offset, r."offset", r.value, r.headers, r.written_at
            FROM queue_partition p LEFT JOIN (
                SELECT "offset", value, headers, written_at FROM queue_record
                WHERE topic = $1 AND "partition" = $2 AND "offset" >= $3
                ORDER BY "offset" LIMIT $4
            ) r ON true
            WHERE p.topic = $1 AND p."partition" = $2
            ORDER BY r."offset""#;
        let values = [self.topic(), partition.into(), offset.into(), FETCH_LIMIT.into()];
        let rows = Row::find_by_statement(self.statement(sql, values))
            .all(&self.db)
            .await
            .map_err(unavailable)?;

        let end = rows.first().ok_or_else(no_such_partition)?.next_offset;
        let records: Vec<Record> =
            rows.iter().filter_map(|row| self.to_record(partition, row, keys)).collect();
        let first = records.first().map_or(end, |record| record.offset);
        if first != offset {
            // Later: what stood there was trimmed. Earlier: the queue was emptied and began anew.
            return Err(StreamError::OutOfRange { offset });
        }
        let next_offset = records.last().map_or(offset, |record| record.offset + 1);
        Ok(Fetched { records, next_offset, lag: end - next_offset })
    }

    fn to_record(&self, partition: i32, row: &Row, keys: &Keys) -> Option<Record> {
        let offset = row.offset?;
        let written_at = row.written_at.unwrap_or(-1);
        let place = Place { topic: &self.settings.topic, partition, offset, written_at };
        let EmbeddedQueueSettings { default_ttl, require_sealed, .. } = self.settings;
        let reading = Reading { default_ttl, keys: keys.payload.as_ref(), require_sealed };
        let content = from_json(row.headers.as_deref().unwrap_or("{}"))
            .and_then(|headers| wire::decode(place, row.value.as_deref(), &headers, reading));
        Some(Record { offset, content })
    }

    fn published(&self, partition: i32) -> Option<&watch::Sender<()>> {
        self.published.get(usize::try_from(partition).ok()?)
    }

    fn statement<const N: usize>(&self, sql: &str, values: [Value; N]) -> Statement {
        Statement::from_sql_and_values(self.db.get_database_backend(), sql, values)
    }

    fn topic(&self) -> Value {
        self.settings.topic.as_str().into()
    }

    /// The database's clock, in milliseconds since 1970.
    fn now(&self) -> &'static str {
        match self.db.get_database_backend() {
            DbBackend::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
            _ => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS bigint)",
        }
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
        // All at once: a consumer that sees some of them takes these for all.
        let rows: Vec<String> =
            partitions().map(|partition| format!("($1, {partition}, 0)")).collect();
        let sql = format!(
            r#"INSERT INTO queue_partition (topic, "partition", next_offset)
               VALUES {} ON CONFLICT (topic, "partition") DO NOTHING"#,
            rows.join(", "),
        );
        self.db
            .execute_raw(self.statement(&sql, [self.topic()]))
            .await
            .map_err(|error| BrokerError::Unavailable(error.into()))?;
        Ok(())
    }

    #[autometrics(struct_name = "EmbeddedQueue")]
    async fn publish(&self, messages: &[Claimed]) -> Vec<Result<(), BrokerError>> {
        let mut shares: BTreeMap<i32, Vec<WireRecord>> = BTreeMap::new();
        for record in messages.iter().map(wire::encode) {
            shares.entry(partition_of(record.key.as_bytes(), PARTITIONS)).or_default().push(record);
        }

        // In a task of its own: a transaction whose future is dropped while it begins stays open
        // on a connection that goes back to the pool (sqlx #4385).
        let queue = self.clone();
        let appended = match tokio::spawn(async move { queue.append(shares).await }).await {
            Ok(appended) => appended.map_err(BoxError::from),
            Err(stopped) => Err(stopped.into()),
        };
        let cause: Option<Arc<dyn std::error::Error + Send + Sync>> = appended.err().map(Arc::from);
        let answer = || match &cause {
            Some(cause) => Err(BrokerError::Unavailable(Box::new(Arc::clone(cause)))),
            None => Ok(()),
        };
        messages.iter().map(|_| answer()).collect()
    }
}

impl MessageStream for EmbeddedQueue {
    async fn partitions(&self) -> Result<Vec<i32>, StreamError> {
        let sql =
            r#"SELECT "partition" FROM queue_partition WHERE topic = $1 ORDER BY "partition""#;
        let rows = self
            .db
            .query_all_raw(self.statement(sql, [self.topic()]))
            .await
            .map_err(unavailable)?;
        rows.iter().map(|row| row.try_get_by_index(0).map_err(unavailable)).collect()
    }

    async fn first_offset(&self, partition: i32, from: StartFrom) -> Result<i64, StreamError> {
        let mut values = vec![self.topic(), partition.into()];
        let sql = match from {
            StartFrom::Earliest => {
                r#"SELECT COALESCE((SELECT MIN("offset") FROM queue_record
                                    WHERE topic = $1 AND "partition" = $2), next_offset)
                   FROM queue_partition WHERE topic = $1 AND "partition" = $2"#
            }
            StartFrom::Latest => {
                r#"SELECT next_offset FROM queue_partition WHERE topic = $1 AND "partition" = $2"#
            }
            StartFrom::Since(time) => {
                values.push(wire::milliseconds(time).into());
                r#"SELECT COALESCE((SELECT MIN("offset") FROM queue_record
                                    WHERE topic = $1 AND "partition" = $2 AND written_at >= $3),
                                   next_offset)
                   FROM queue_partition WHERE topic = $1 AND "partition" = $2"#
            }
        };
        let backend = self.db.get_database_backend();
        let row = self
            .db
            .query_one_raw(Statement::from_sql_and_values(backend, sql, values))
            .await
            .map_err(unavailable)?
            .ok_or_else(no_such_partition)?;
        row.try_get_by_index(0).map_err(unavailable)
    }

    #[autometrics(struct_name = "EmbeddedQueue")]
    async fn fetch(&self, partition: i32, offset: i64) -> Result<Fetched, StreamError> {
        let keys = self.vault.keys().ok_or_else(|| StreamError::Unavailable(VaultClosed.into()))?;
        let mut published = self.published(partition).ok_or_else(no_such_partition)?.subscribe();
        let gives_up = Instant::now() + WAIT;
        let mut pause = FIRST_PAUSE;
        loop {
            // Before it is looked for: what is published from here on wakes us.
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

fn partitions() -> std::ops::Range<i32> {
    0..i32::try_from(PARTITIONS).expect("there are few partitions")
}

fn unavailable(error: DbErr) -> StreamError {
    StreamError::Unavailable(error.into())
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
