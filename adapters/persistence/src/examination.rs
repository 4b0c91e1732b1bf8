//! The state of the database and of the pipeline in it, for an operator.

use std::time::{Duration, SystemTime};

use application::ports::StoreError;
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, lasting, time};

/// The state of the database server and of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examination {
    /// The time of the database's clock.
    pub now: SystemTime,
    /// `None` on SQLite.
    pub server: Option<Server>,
    pub pipeline: Pipeline,
}

/// The state of a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Settings that are off and must be on, such as `fsync`.
    pub off: Vec<String>,
    /// The time since the oldest open transaction began that keeps dead rows. The server shows only
    /// those of the same user to a user without `pg_read_all_stats`.
    pub oldest_transaction: Duration,
    pub connections: u64,
    /// The number of connections that users without special rights may have.
    pub most_connections: u64,
}

/// The state of the messages, of one group and topic where it is of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Messages that wait to be published, up to [`COUNTED`].
    pub waiting: u64,
    /// The time since the first of them was accepted.
    pub oldest_waiting: Duration,
    pub consumers: u64,
    pub partitions: u64,
    /// Partitions that no consumer has.
    pub without_consumer: u64,
    /// Dead letters, up to [`COUNTED`].
    pub dead_letters: u64,
    /// Events that wait to be posted, up to [`COUNTED`].
    pub events: u64,
    /// The time since the first of them happened.
    pub oldest_event: Duration,
}

/// The greatest number that is counted.
pub const COUNTED: u64 = 10_000;

/// Examines the database, and the pipeline of a consumer group of a topic.
pub async fn examine(
    database: &Database,
    group: &str,
    topic: &str,
) -> Result<Examination, StoreError> {
    let examined = async {
        let pipeline = pipeline(database, group, topic).await?;
        let server = if database.is_postgres() { Some(server(database).await?) } else { None };
        let now: Option<NowRow> = database.row(&NOW, database.parameters()).await?;
        let now = now.map(|row| time(row.now)).ok_or_else(|| DatabaseError::missing("the time"))?;
        Ok::<_, DatabaseError>(Examination { now, server, pipeline })
    };
    Ok(examined.await?)
}

static NOW: Sql = Sql::new("SELECT {millis({clock})} AS now");

#[derive(FromQueryResult)]
struct NowRow {
    now: i64,
}

static PIPELINE: Sql = Sql::new(
    "
SELECT
    (SELECT count(*)
     FROM (SELECT 1 FROM outbox WHERE sequence > published LIMIT 10000) AS waiting) AS waiting,
    (SELECT {millis(accepted_at)} FROM outbox WHERE sequence > published
     ORDER BY sequence LIMIT 1) AS oldest_waiting,
    (SELECT count(*) FROM consumer_member
     WHERE group_id = :group AND topic = :topic AND expires_at > {now}) AS consumers,
    (SELECT count(*) FROM partition_lease
     WHERE group_id = :group AND topic = :topic) AS partitions,
    (SELECT count(*) FROM partition_lease
     WHERE group_id = :group AND topic = :topic AND (owner IS NULL OR expires_at <= {now}))
        AS without_consumer,
    (SELECT count(*) FROM (SELECT 1 FROM dead_letter LIMIT 10000) AS dead) AS dead_letters,
    (SELECT count(*) FROM (SELECT 1 FROM event LIMIT 10000) AS events) AS events,
    (SELECT {millis(at)} FROM event ORDER BY sequence LIMIT 1) AS oldest_event,
    {millis({clock})} AS now
FROM relay",
);

#[derive(FromQueryResult)]
struct PipelineRow {
    waiting: i64,
    oldest_waiting: Option<i64>,
    consumers: i64,
    partitions: i64,
    without_consumer: i64,
    dead_letters: i64,
    events: i64,
    oldest_event: Option<i64>,
    now: i64,
}

async fn pipeline(
    database: &Database,
    group: &str,
    topic: &str,
) -> Result<Pipeline, DatabaseError> {
    let parameters =
        database.parameters().with("group", group.to_owned()).with("topic", topic.to_owned());
    let row: Option<PipelineRow> = database.row(&PIPELINE, parameters).await?;
    let row = row.ok_or_else(|| DatabaseError::missing("the pipeline"))?;
    let age = |since: Option<i64>| lasting(since.map_or(0, |since| (row.now - since).max(0)));
    Ok(Pipeline {
        waiting: row.waiting.unsigned_abs(),
        oldest_waiting: age(row.oldest_waiting),
        consumers: row.consumers.unsigned_abs(),
        partitions: row.partitions.unsigned_abs(),
        without_consumer: row.without_consumer.unsigned_abs(),
        dead_letters: row.dead_letters.unsigned_abs(),
        events: row.events.unsigned_abs(),
        oldest_event: age(row.oldest_event),
    })
}

static SERVER: Sql = Sql::new(
    "
SELECT
    (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_settings
     WHERE name IN ('autovacuum', 'fsync', 'full_page_writes') AND setting = 'off') AS off,
    (SELECT max(extract(epoch FROM clock_timestamp() - xact_start) * 1000)::bigint
     FROM pg_stat_activity
     WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()) AS oldest_transaction,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
    current_setting('max_connections')::bigint
        - current_setting('superuser_reserved_connections')::bigint AS most_connections",
);

#[derive(FromQueryResult)]
struct ServerRow {
    off: Option<String>,
    oldest_transaction: Option<i64>,
    connections: i64,
    most_connections: i64,
}

async fn server(database: &Database) -> Result<Server, DatabaseError> {
    let row: Option<ServerRow> = database.row(&SERVER, database.parameters()).await?;
    let row = row.ok_or_else(|| DatabaseError::missing("the server"))?;
    let off = row.off.unwrap_or_default();
    Ok(Server {
        off: off.split_whitespace().map(str::to_owned).collect(),
        oldest_transaction: lasting(row.oldest_transaction.unwrap_or(0).max(0)),
        connections: row.connections.unsigned_abs(),
        most_connections: row.most_connections.unsigned_abs(),
    })
}
