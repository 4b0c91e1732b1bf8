//! Messages that were published and that no consumer has taken over: forgotten if a ledger has them,
//! and published again if consumers should have met them.

use std::ops::Range;

use sea_orm::FromQueryResult;

use super::{postgres, sqlite};
use crate::{
    database::{Database, DatabaseError, Fragment, Parameters, Sql},
    refusal::{code, in_parts},
};

/// Rows that one statement of a sweep touches at most, so that none takes long.
const SWEPT: u64 = 10_000;

/// Forgets messages that are in a ledger: a consumer that took a message over while it was being
/// settled could not see it in transit.
pub(super) async fn forget_known(database: &Database, topic: &str) -> Result<(), DatabaseError> {
    let topic = || database.parameters().with("topic", topic);
    while database.execute(&FORGET_KNOWN, topic()).await? == SWEPT {}
    Ok(())
}

/// Puts messages back into the outbox that were in transit for too long. Returns how many.
///
/// One batch, and not all: what comes back must not swamp new messages.
pub(super) async fn return_late(database: &Database, topic: &str) -> Result<u64, DatabaseError> {
    let parameters = database.parameters().with("topic", topic);
    let late = sequences(database, &LATE, parameters).await?;
    if late.is_empty() {
        return Ok(0);
    }
    let late = &late;
    let back = |places: Range<usize>| async move {
        let parameters = database.parameters().list("sequences", late[places].iter().copied());
        if database.is_postgres() {
            return postgres::return_to_outbox(database, parameters).await;
        }
        database.step(async |it| sqlite::return_to_outbox(&it, parameters).await).await
    };
    let stays = |place: usize, error: DatabaseError| async move {
        tracing::error!(
            sequence = late[place],
            sqlstate = code(&error),
            "the database refuses to put a message back into the outbox; it stays in transit"
        );
        Ok(0)
    };
    Ok(in_parts(late.len(), back, stays).await?.iter().sum())
}

/// Returns the sequences that a statement selects.
async fn sequences(
    database: &Database,
    sql: &Sql,
    parameters: Parameters,
) -> Result<Vec<i64>, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        sequence: i64,
    }

    let rows: Vec<Row> = database.rows(sql, parameters).await?;
    Ok(rows.into_iter().map(|row| row.sequence).collect())
}

/// The time up to which some group reports that it has read all partitions of the topic.
const READ_UNTIL: Fragment = Fragment::pair(
    "read_until",
    "(
    SELECT max(until)
    FROM (
        SELECT min(coalesce(seen_until, '-infinity')) AS until
        FROM partition_lease
        WHERE topic = :topic
        GROUP BY group_id
    ) AS by_group
)",
    "(
    SELECT max(until)
    FROM (
        SELECT min(coalesce(seen_until, 0)) AS until
        FROM partition_lease
        WHERE topic = :topic
        GROUP BY group_id
    ) AS by_group
)",
);

// Looks up only messages that some group has read past in all partitions, or that have expired. If
// consumers lag behind, the others are very many, and few of them are in a ledger.
static FORGET_KNOWN: Sql = Sql::with(
    &[READ_UNTIL],
    "
DELETE FROM in_transit
WHERE sequence = ANY (ARRAY(
    SELECT sequence
    FROM in_transit
    WHERE least(due_at, expires_at) <= now()
      AND (expires_at <= now() OR published_at + interval '2 seconds' < {read_until})
      AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
    LIMIT 10000
    FOR UPDATE SKIP LOCKED
))",
    "
DELETE FROM in_transit
WHERE sequence IN (
    SELECT sequence
    FROM in_transit, (SELECT {now} AS now)
    WHERE min(due_at, expires_at) <= now
      AND (expires_at <= now OR published_at + 2000 < {read_until})
      AND EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
    LIMIT 10000
)",
);

// A message keeps its sequence, which the consumer will name. The next sweep handles the
// messages that `FORGET_KNOWN` left.
//
// A message is late if some group has read all partitions as they were two seconds after its
// publication, as it reports itself, and has not met it: consumers that only lag behind will meet
// it. If no group gets so far, because a partition has no reader or the topic was created anew, time
// decides. Each publication doubles both times: a message that groups read and cannot take over must
// not come back for ever.
static LATE: Sql = Sql::with(
    &[READ_UNTIL],
    "
SELECT sequence
FROM in_transit
WHERE published_at + (due_at - published_at) * (1 << least(publications - 1, 10)) <= now()
  AND (
      published_at + interval '2 seconds' < {read_until}
      OR published_at + (due_at - published_at) * (8 << least(publications, 10)) <= now()
  )
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
ORDER BY sequence
LIMIT 10000",
    "
SELECT sequence
FROM in_transit, (SELECT {now} AS now)
WHERE published_at + (due_at - published_at) * (1 << min(publications - 1, 10)) <= now
  AND (
      published_at + 2000 < {read_until}
      OR published_at + (due_at - published_at) * (8 << min(publications, 10)) <= now
  )
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = in_transit.id)
ORDER BY sequence
LIMIT 10000",
);
