//! Deletes rows that no process needs any more.

use std::time::Duration;

use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, millis};

/// Rows that one statement touches at most, so that none takes long.
const ROWS: u64 = 10_000;

/// Deletes what is older than `retention`. Returns how many rows.
pub(super) async fn prune(database: &Database, retention: Duration) -> Result<u64, DatabaseError> {
    let plain = || database.parameters();
    let old = || plain().with("retention", millis(retention));
    database.execute(&DATE_LEASES, plain()).await?;
    let mut pruned = 0;
    for (sql, parameters) in [
        (&ENTRIES, old()),
        (&DEAD_LETTERS, old()),
        (&LEASES, old()),
        (&MEMBERS, plain()),
        (&GATEWAY_STATES, plain()),
        (&EVENTS, plain()),
        (&REFERENCES, plain()),
        (&NOTES, plain()),
        (&AWAITED_RECEIPTS, plain()),
        (&EXTRA_SENDS, old()),
        (&SPENDING, plain()),
        (&SAMPLES, plain()),
        (&FACTORS, plain()),
    ] {
        loop {
            let deleted = database.execute(sql, parameters.clone()).await?;
            pruned += deleted;
            if deleted < ROWS {
                break;
            }
        }
    }
    Ok(pruned)
}

/// Deletes records of the embedded queue, of any topic, up to the first record of each partition
/// that has not expired: there must be no gap. Returns how many.
pub(super) async fn trim(database: &Database) -> Result<u64, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        topic: String,
        partition: i32,
    }

    let mut trimmed = 0;
    let queues: Vec<Row> = database.rows(&QUEUES, database.parameters()).await?;
    for Row { topic, partition } in queues {
        let parameters = database.parameters().with("topic", topic).with("partition", partition);
        trimmed += database.execute(&TRIM, parameters).await?;
    }
    Ok(trimmed)
}

static QUEUES: Sql = Sql::new(r#"SELECT topic, "partition" FROM queue_partition"#);

// The headers of a record say when it expires, in a form that can be compared as a text. A record
// without them is given the longest time that a message may have.
static TRIM: Sql = Sql::pair(
    r#"
DELETE FROM queue_record
WHERE topic = :topic AND "partition" = :partition AND "offset" < coalesce((
    SELECT "offset"
    FROM queue_record
    WHERE topic = :topic AND "partition" = :partition
      AND coalesce(
          (substring(headers FROM '"ce_expirytime":"([^"]*)"') COLLATE "C")
              > to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
          written_at > {millis(now())} - 3600000)
    ORDER BY "offset"
    LIMIT 1
), 9223372036854775807)"#,
    r#"
DELETE FROM queue_record
WHERE topic = :topic AND "partition" = :partition AND "offset" < coalesce((
    SELECT "offset"
    FROM queue_record
    WHERE topic = :topic AND "partition" = :partition
      AND coalesce(
          headers ->> 'ce_expirytime' > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
          written_at > {now} - 3600000)
    ORDER BY "offset"
    LIMIT 1
), 9223372036854775807)"#,
);

// Not before an entry has expired: it keeps a message that is read again from being sent.
static ENTRIES: Sql = Sql::pair(
    "
DELETE FROM delivery
WHERE (message_id, group_id) IN (
    SELECT message_id, group_id
    FROM delivery
    WHERE accepted_at < now() - {duration(:retention)} AND ended_at IS NOT NULL
      AND expires_at <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM delivery
WHERE place IN (
    SELECT place
    FROM delivery
    WHERE ended_at IS NOT NULL AND accepted_at < {now} - :retention AND expires_at <= {now}
    LIMIT 10000
)",
);

static DEAD_LETTERS: Sql = Sql::pair(
    "
DELETE FROM dead_letter
WHERE id IN (
    SELECT id
    FROM dead_letter
    WHERE recorded_at < now() - {duration(:retention)}
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM dead_letter
WHERE id IN (SELECT id FROM dead_letter WHERE recorded_at < {now} - :retention LIMIT 10000)",
);

// Early versions did not note when a partition was given up: its time counts from now on.
static DATE_LEASES: Sql = Sql::pair(
    "
UPDATE partition_lease
SET expires_at = now()
WHERE owner IS NULL AND expires_at = '-infinity'",
    "UPDATE partition_lease SET expires_at = {now} WHERE owner IS NULL AND expires_at = 0",
);

// A group is forgotten as a whole: if it lost some of its partitions, it would take them for new.
static LEASES: Sql = Sql::pair(
    "
DELETE FROM partition_lease
WHERE (group_id, topic, partition) IN (
    SELECT group_id, topic, partition
    FROM partition_lease AS old
    WHERE old.expires_at < now() - {duration(:retention)}
      AND NOT EXISTS (
          SELECT 1
          FROM partition_lease AS other
          WHERE other.group_id = old.group_id AND other.topic = old.topic
            AND other.expires_at >= now() - {duration(:retention)}
      )
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM partition_lease
WHERE expires_at < {now} - :retention
  AND NOT EXISTS (
      SELECT 1
      FROM partition_lease AS other
      WHERE other.group_id = partition_lease.group_id AND other.topic = partition_lease.topic
        AND other.expires_at >= {now} - :retention
  )",
);

// A day later, so that a consumer that was only suspended keeps its row.
static MEMBERS: Sql = Sql::pair(
    "DELETE FROM consumer_member WHERE expires_at < now() - interval '1 day'",
    "DELETE FROM consumer_member WHERE expires_at < {now} - 86400000",
);

// A living process reports every few seconds. A later row of a suspended process is a new one.
static GATEWAY_STATES: Sql = Sql::pair(
    "DELETE FROM gateway_state WHERE reported_at < now() - interval '1 hour'",
    "DELETE FROM gateway_state WHERE reported_at < {now} - 3600000",
);

// An event that is retried is due within hours: these are not posted any more.
static EVENTS: Sql = Sql::pair(
    "
DELETE FROM event
WHERE sequence IN (
    SELECT sequence
    FROM event
    WHERE due_at < now() - interval '7 days'
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM event
WHERE sequence IN (SELECT sequence FROM event WHERE due_at < {now} - 604800000 LIMIT 10000)",
);

static REFERENCES: Sql = Sql::pair(
    "
DELETE FROM gateway_receipt
WHERE (gateway, reference) IN (
    SELECT gateway, reference
    FROM gateway_receipt
    WHERE expires_at <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM gateway_receipt
WHERE (gateway, reference) IN (
    SELECT gateway, reference FROM gateway_receipt WHERE expires_at <= {now} LIMIT 10000
)",
);

static NOTES: Sql = Sql::pair(
    "
DELETE FROM gateway_note
WHERE (message_id, gateway) IN (
    SELECT message_id, gateway
    FROM gateway_note
    WHERE expires_at <= now()
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM gateway_note
WHERE (message_id, gateway) IN (
    SELECT message_id, gateway FROM gateway_note WHERE expires_at <= {now} LIMIT 10000
)",
);

// No code is valid for longer. The rows stay only if no process sends codes again.
static AWAITED_RECEIPTS: Sql = Sql::pair(
    "
DELETE FROM awaited_receipt
WHERE message_id IN (
    SELECT message_id
    FROM awaited_receipt
    WHERE due_at < now() - interval '1 day'
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM awaited_receipt
WHERE message_id IN (
    SELECT message_id FROM awaited_receipt WHERE due_at < {now} - 86400000 LIMIT 10000
)",
);

// As long as the entry of the message in the ledger.
static EXTRA_SENDS: Sql = Sql::pair(
    "
DELETE FROM extra_send
WHERE message_id IN (
    SELECT message_id
    FROM extra_send
    WHERE sent_at < now() - {duration(:retention)}
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
)",
    "
DELETE FROM extra_send
WHERE message_id IN (
    SELECT message_id FROM extra_send WHERE sent_at < {now} - :retention LIMIT 10000
)",
);

// Five weeks, for those who look back at a month.
static SPENDING: Sql = Sql::pair(
    "DELETE FROM gateway_spending WHERE day < floor(extract(epoch FROM now()) / 86400) - 35",
    "DELETE FROM gateway_spending WHERE day < {now} / 86400000 - 35",
);

// They decide for half an hour. A day shows how a gateway came to its factor.
static SAMPLES: Sql = Sql::pair(
    "DELETE FROM gateway_sample WHERE minute < floor(extract(epoch FROM now()) / 60)::bigint - 1440",
    "DELETE FROM gateway_sample WHERE minute < {now} / 60000 - 1440",
);

// A full factor is that of a gateway without a row.
static FACTORS: Sql = Sql::pair(
    "DELETE FROM gateway_factor WHERE percent = 100 AND changed_at < now() - interval '1 day'",
    "DELETE FROM gateway_factor WHERE percent = 100 AND changed_at < {now} - 86400000",
);
