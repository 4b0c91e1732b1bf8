//! Messages that were published and that no consumer has taken over.

use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};

use sea_orm::FromQueryResult;

use crate::database::{Database, DatabaseError, Sql, lasting};

/// Returns how long ago a group last reached the end of all partitions of the topic, as its members
/// report.
pub(super) async fn last_read(
    database: &Database,
    topic: &str,
) -> Result<Option<Duration>, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        ago: Option<i64>,
    }

    let row: Option<Row> =
        database.row(&LAST_READ, database.parameters().with("topic", topic)).await?;
    Ok(row.and_then(|row| row.ago).map(lasting))
}

/// Returns the numbers of messages that are in no ledger and have not expired.
pub(super) async fn untaken(
    database: &Database,
    range: RangeInclusive<i64>,
    limit: NonZeroU32,
) -> Result<Vec<i64>, DatabaseError> {
    #[derive(FromQueryResult)]
    struct Row {
        sequence: i64,
    }

    let parameters = database
        .parameters()
        .with("lowest", *range.start())
        .with("highest", *range.end())
        .with("limit", i64::from(limit.get()));
    let rows: Vec<Row> = database.rows(&UNTAKEN, parameters).await?;
    Ok(rows.into_iter().map(|row| row.sequence).collect())
}

static LAST_READ: Sql = Sql::new(
    "
SELECT {millis({now} - max(seen_until))} AS ago
FROM (
    SELECT min(seen_until) AS seen_until
    FROM partition_lease
    WHERE topic = :topic
    GROUP BY group_id
    HAVING count(*) = count(seen_until)
) AS by_group",
);

static UNTAKEN: Sql = Sql::new(
    "
SELECT sequence
FROM outbox
WHERE sequence >= (SELECT oldest FROM relay) AND sequence BETWEEN :lowest AND :highest
  AND expires_at > {now}
  AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message_id = outbox.id)
ORDER BY sequence
LIMIT :limit",
);
