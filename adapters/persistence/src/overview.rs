//! The state of the whole service in one look, as the database shows it.
//!
//! Every statement reads a few rows through an index, so a look each second disturbs nothing.

use std::time::{Duration, SystemTime};

use application::ports::StoreError;
use domain::MessageId;
use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, lasting, parsed, time};

/// The state at one moment. No count is above [`crate::COUNTED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The time of the database's clock.
    pub now: SystemTime,
    /// How many messages were ever stored in the outbox. Two looks tell the rate.
    pub accepted: u64,
    /// How many messages groups ever took over.
    pub taken_over: u64,
    /// Messages that wait to be published.
    pub waiting: Many,
    /// Published messages that no group has taken over.
    pub in_transit: Many,
    /// Messages that a group took over and that have not ended.
    pub open: Many,
    /// Those of them for which a call is in progress.
    pub calling: u64,
    pub dead_letters: u64,
    /// The time since the newest dead letter was recorded. Zero if there is none.
    pub newest_dead_letter: Duration,
    /// Events that wait to be posted.
    pub events: Many,
    /// Those of them whose post has failed.
    pub failed_events: u64,
    /// By group, topic and partition.
    pub partitions: Vec<PartitionState>,
    /// The number of living consumers.
    pub consumers: u64,
    /// Of the newest messages, the latest that ended badly, the newest first.
    pub errors: Vec<BadEnd>,
}

/// How many there are, and the age of the oldest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Many {
    pub count: u64,
    pub oldest: Duration,
}

/// A partition, for one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionState {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    /// `None` if no living consumer has it.
    pub owner: Option<String>,
    pub epoch: i64,
    /// How long the lease still runs.
    pub lease: Duration,
    /// The next offset to read.
    pub next_offset: Option<i64>,
    /// Records that were not read. `None` in Kafka, whose end the database does not know.
    pub lag: Option<u64>,
    /// The time since everything in the partition had been read. `None` if that was never.
    pub behind: Option<Duration>,
}

/// A message that ended `failed`, `unknown` or `expired`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEnd {
    pub at: SystemTime,
    pub message: MessageId,
    pub state: String,
    pub gateway: Option<String>,
    pub detail: String,
}

/// Reads the state.
pub async fn overview(database: &Database) -> Result<Overview, StoreError> {
    Ok(read(database).await?)
}

async fn read(database: &Database) -> Result<Overview, DatabaseError> {
    let parameters = || database.parameters();
    let row: Option<Row> = database.row(&NUMBERS, parameters()).await?;
    let row = row.ok_or_else(|| DatabaseError::missing("the overview"))?;
    let age = |since: Option<i64>| lasting(since.map_or(0, |since| (row.now - since).max(0)));
    let many = |count: i64, since| Many { count: count.unsigned_abs(), oldest: age(since) };
    let partitions: Vec<PartitionRow> = database.rows(&PARTITIONS, parameters()).await?;
    let errors: Vec<ErrorRow> = database.rows(&ERRORS, parameters()).await?;
    Ok(Overview {
        now: time(row.now),
        accepted: row.accepted.unsigned_abs(),
        taken_over: row.taken_over.unsigned_abs(),
        waiting: many(row.waiting, row.oldest_waiting),
        in_transit: many(row.in_transit, row.oldest_in_transit),
        open: many(row.open, row.oldest_open),
        calling: row.calling.unsigned_abs(),
        dead_letters: row.dead_letters.unsigned_abs(),
        newest_dead_letter: age(row.newest_dead_letter),
        events: many(row.events, row.oldest_event),
        failed_events: row.failed_events.unsigned_abs(),
        partitions: partitions.into_iter().map(PartitionRow::read).collect(),
        consumers: row.consumers.unsigned_abs(),
        errors: errors.into_iter().map(ErrorRow::read).collect::<Result<_, _>>()?,
    })
}

// The numbers of the sequences are those that were drawn: a message that the ledger knew already has
// drawn one, too.
static NUMBERS: Sql = Sql::pair(
    "
SELECT
    coalesce(pg_sequence_last_value('outbox_sequence_seq'), 0) AS accepted,
    coalesce(pg_sequence_last_value('delivery_place_seq'), 0) AS taken_over,
    (SELECT count(*)
     FROM (SELECT 1 FROM outbox WHERE sequence > published LIMIT 10000) AS its) AS waiting,
    (SELECT {millis(accepted_at)} FROM outbox WHERE sequence > published
     ORDER BY sequence LIMIT 1) AS oldest_waiting,
    (SELECT count(*)
     FROM (SELECT 1 FROM outbox WHERE sequence BETWEEN relay.oldest AND published
           LIMIT 10000) AS its) AS in_transit,
    (SELECT {millis(accepted_at)} FROM outbox WHERE sequence BETWEEN relay.oldest AND published
     ORDER BY sequence LIMIT 1) AS oldest_in_transit,
    open.count AS open, open.calling, open.oldest AS oldest_open,
    (SELECT count(*) FROM (SELECT 1 FROM dead_letter LIMIT 10000) AS dead) AS dead_letters,
    (SELECT {millis(recorded_at)} FROM dead_letter ORDER BY id DESC LIMIT 1) AS newest_dead_letter,
    events.count AS events, events.failed AS failed_events, events.oldest AS oldest_event,
    (SELECT count(*) FROM consumer_member WHERE expires_at > now()) AS consumers,
    {millis({clock})} AS now
FROM (
    SELECT count(*) AS count, count(*) FILTER (WHERE state = 'calling') AS calling,
        {millis(min(accepted_at))} AS oldest
    FROM (
        SELECT state, accepted_at
        FROM delivery
        WHERE state IN ('pending', 'calling')
        LIMIT 10000
    ) AS its
) AS open, (
    SELECT count(*) AS count, count(*) FILTER (WHERE attempt > 0) AS failed,
        {millis(min(at))} AS oldest
    FROM (SELECT attempt, at FROM event ORDER BY sequence LIMIT 10000) AS its
) AS events, relay",
    "
SELECT
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) AS accepted,
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'delivery'), 0) AS taken_over,
    (SELECT count(*) FROM (SELECT 1 FROM outbox WHERE sequence > published LIMIT 10000)) AS waiting,
    (SELECT accepted_at FROM outbox WHERE sequence > published
     ORDER BY sequence LIMIT 1) AS oldest_waiting,
    (SELECT count(*)
     FROM (SELECT 1 FROM outbox WHERE sequence BETWEEN relay.oldest AND published
           LIMIT 10000)) AS in_transit,
    (SELECT accepted_at FROM outbox WHERE sequence BETWEEN relay.oldest AND published
     ORDER BY sequence LIMIT 1) AS oldest_in_transit,
    open.count AS open, open.calling, open.oldest AS oldest_open,
    (SELECT count(*) FROM (SELECT 1 FROM dead_letter LIMIT 10000)) AS dead_letters,
    (SELECT recorded_at FROM dead_letter ORDER BY id DESC LIMIT 1) AS newest_dead_letter,
    events.count AS events, events.failed AS failed_events, events.oldest AS oldest_event,
    (SELECT count(*) FROM consumer_member WHERE expires_at > {now}) AS consumers,
    {now} AS now
FROM (
    SELECT count(*) AS count, count(*) FILTER (WHERE state = 'calling') AS calling,
        min(accepted_at) AS oldest
    FROM (
        SELECT state, accepted_at
        FROM delivery
        WHERE state IN ('pending', 'calling')
        LIMIT 10000
    )
) AS open, (
    SELECT count(*) AS count, count(*) FILTER (WHERE attempt > 0) AS failed, min(at) AS oldest
    FROM (SELECT attempt, at FROM event ORDER BY sequence LIMIT 10000)
) AS events, relay",
);

#[derive(FromQueryResult)]
struct Row {
    accepted: i64,
    taken_over: i64,
    waiting: i64,
    oldest_waiting: Option<i64>,
    in_transit: i64,
    oldest_in_transit: Option<i64>,
    open: i64,
    calling: i64,
    oldest_open: Option<i64>,
    dead_letters: i64,
    newest_dead_letter: Option<i64>,
    events: i64,
    failed_events: i64,
    oldest_event: Option<i64>,
    consumers: i64,
    now: i64,
}

// A partition that nobody ever had has an endless past as its time, which is no number.
static PARTITIONS: Sql = Sql::new(
    r#"
SELECT lease.group_id, lease.topic, lease.partition, lease.epoch, lease.next_offset,
    CASE WHEN lease.expires_at > {now} THEN lease.owner END AS owner,
    CASE WHEN lease.expires_at > {now} THEN {millis(lease.expires_at - {now})} ELSE 0 END AS lease,
    queue.next_offset - lease.next_offset AS lag,
    {millis({now} - lease.seen_until)} AS behind
FROM partition_lease AS lease
    LEFT JOIN queue_partition AS queue
    ON queue.topic = lease.topic AND queue."partition" = lease.partition
ORDER BY lease.group_id, lease.topic, lease.partition"#,
);

#[derive(FromQueryResult)]
struct PartitionRow {
    group_id: String,
    topic: String,
    partition: i32,
    epoch: i64,
    next_offset: Option<i64>,
    owner: Option<String>,
    lease: i64,
    lag: Option<i64>,
    behind: Option<i64>,
}

impl PartitionRow {
    fn read(self) -> PartitionState {
        PartitionState {
            group: self.group_id,
            topic: self.topic,
            partition: self.partition,
            owner: self.owner,
            epoch: self.epoch,
            lease: lasting(self.lease),
            next_offset: self.next_offset,
            lag: self.lag.map(|lag| lag.max(0).unsigned_abs()),
            behind: self.behind.map(|behind| lasting(behind.max(0))),
        }
    }
}

// Ids that this service draws begin with the time. Those of other producers do not, and come first.
static ERRORS: Sql = Sql::new(
    "
SELECT {text(message_id)} AS id, state, gateway, detail, {millis(ended_at)} AS ended_at
FROM (SELECT * FROM delivery ORDER BY message_id DESC, group_id DESC LIMIT 300) AS newest
WHERE state IN ('failed', 'unknown', 'expired') AND ended_at IS NOT NULL
ORDER BY newest.ended_at DESC
LIMIT 5",
);

#[derive(FromQueryResult)]
struct ErrorRow {
    id: String,
    state: String,
    gateway: Option<String>,
    detail: Option<String>,
    ended_at: i64,
}

impl ErrorRow {
    fn read(self) -> Result<BadEnd, DatabaseError> {
        Ok(BadEnd {
            at: time(self.ended_at),
            message: parsed(&self.id, "an id")?,
            state: self.state,
            gateway: self.gateway,
            detail: self.detail.unwrap_or_default(),
        })
    }
}
