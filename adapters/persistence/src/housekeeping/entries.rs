//! Ends open entries of ledgers that have expired.

use std::{collections::BTreeMap, ops::Range};

use sea_orm::{DatabaseConnection, FromQueryResult};
use uuid::Uuid;

use crate::{
    database::{
        Database, DatabaseError, EventSql, Events, Fragment, Parameters, Sql, begin, parsed,
    },
    events::{RECORD_ENDED, record_ended},
    ledger::{CALLED, INTERRUPTED, WITH_CALLED},
    refusal::{code, first_taken, in_parts},
};

/// Rows that one statement touches at most, so that none takes long.
const ROWS: u64 = 10_000;

/// An open entry of a ledger.
#[derive(Debug, FromQueryResult)]
struct Entry {
    id: String,
    group_id: String,
}

#[derive(Debug, Clone, FromQueryResult)]
struct Ended {
    id: String,
    group_id: String,
    state: String,
}

/// Ends the open entries that `find` selects. Returns how many as expired and as unknown.
pub(super) async fn end(
    database: &Database,
    find: &Sql,
    parameters: &Parameters,
) -> Result<(u64, u64), DatabaseError> {
    let (mut expired, mut unknown) = (0, 0);
    loop {
        let found: Vec<Entry> = database.rows(find, parameters.clone()).await?;
        if found.is_empty() {
            return Ok((expired, unknown));
        }
        let found = &found;
        let end = |places: Range<usize>| end_part(database, &found[places], database.events());
        let end_alone = |place: usize, error: DatabaseError| async move {
            tracing::error!(
                message.id = found[place].id,
                sqlstate = code(&error),
                "the database refuses to record an expired message; the service deletes it if the second try fails too"
            );
            let entry = std::slice::from_ref(&found[place]);
            // It must not stay, because its code would.
            let step = |ends: bool| async move {
                if ends {
                    end_part(database, entry, Events::Off).await
                } else {
                    forget(database, entry).await
                }
            };
            Ok(first_taken([true, false], step).await?.unwrap_or_default())
        };
        let states = in_parts(found.len(), end, end_alone).await?.concat();
        let count = |state| states.iter().filter(|it| *it == state).count() as u64;
        expired += count("expired");
        unknown += count("unknown");
        // If other processes have locked the rest, they end it.
        if (states.len() as u64) < ROWS {
            return Ok((expired, unknown));
        }
    }
}

/// Ends entries in one commit, unless another process did. Returns their states.
async fn end_part(
    database: &Database,
    entries: &[Entry],
    events: Events,
) -> Result<Vec<String>, DatabaseError> {
    let parameters = entry_rows(database.parameters(), entries)?;
    let ended: Vec<Ended> = if database.is_postgres() {
        database.rows(END_POSTGRES.of(events), parameters).await?
    } else {
        let step = async |it| end_sqlite(database, &it, parameters, events).await;
        database.step(step).await?
    };
    Ok(ended.into_iter().map(|ended| ended.state).collect())
}

async fn end_sqlite(
    database: &Database,
    connection: &DatabaseConnection,
    parameters: Parameters,
    events: Events,
) -> Result<Vec<Ended>, DatabaseError> {
    let transaction = begin(connection).await?;
    let rows: Vec<Ended> = transaction.rows(&END_SQLITE, parameters).await?;
    if events == Events::Recorded {
        let mut groups: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for row in &rows {
            groups.entry(&row.group_id).or_default().push((&row.id, &row.state));
        }
        for (group, ended) in groups {
            record_ended(database, &transaction, group, ended.iter().copied()).await?;
        }
    }
    transaction.commit().await?;
    Ok(rows)
}

/// Deletes entries whose end cannot be stored.
async fn forget(database: &Database, entries: &[Entry]) -> Result<Vec<String>, DatabaseError> {
    database.execute(&FORGET, entry_rows(database.parameters(), entries)?).await?;
    Ok(Vec::new())
}

fn entry_rows(parameters: Parameters, entries: &[Entry]) -> Result<Parameters, DatabaseError> {
    let named = entries.iter().map(|it| Ok((parsed(&it.id, "an id")?, &it.group_id)));
    let named = named.collect::<Result<Vec<(Uuid, &String)>, DatabaseError>>()?;
    Ok(parameters.rows("named", named.iter(), |rows| {
        rows.column("message_id", |(id, _)| *id).column("group_id", |(_, group)| (*group).clone())
    }))
}

/// Whether an open entry has expired and no call for it can be under way.
const IS_LATE: Fragment = Fragment::pair(
    "is_late",
    "expires_at <= now() AND (state = 'pending' OR due_at <= now() - interval '30 seconds')",
    "expires_at <= {now} AND (state = 'pending' OR due_at <= {now} - 30000)",
);

/// Entries of partitions that no living consumer holds.
pub(super) static ABANDONED: Sql = Sql::with(
    &[IS_LATE],
    "
WITH RECURSIVE place AS (
    -- From partition to partition through the index of open entries: the entries of living
    -- consumers, which may be very many, are not read.
    (
        SELECT group_id, topic, partition
        FROM delivery
        WHERE state IN ('pending', 'calling')
        ORDER BY group_id, topic, partition
        LIMIT 1
    )
    UNION ALL
    SELECT next.group_id, next.topic, next.partition
    FROM place CROSS JOIN LATERAL (
        SELECT group_id, topic, partition
        FROM delivery
        WHERE state IN ('pending', 'calling')
          AND (group_id, topic, partition) > (place.group_id, place.topic, place.partition)
        ORDER BY group_id, topic, partition
        LIMIT 1
    ) AS next
)
SELECT late.id, late.group_id
FROM place CROSS JOIN LATERAL (
    SELECT message_id::text AS id, group_id
    FROM delivery
    WHERE delivery.group_id = place.group_id AND delivery.topic = place.topic
      AND delivery.partition = place.partition
      AND state IN ('pending', 'calling') AND {is_late}
    LIMIT 10000
) AS late
WHERE NOT EXISTS (
    SELECT 1
    FROM partition_lease AS lease
    WHERE lease.group_id = place.group_id AND lease.topic = place.topic
      AND lease.partition = place.partition
      AND lease.owner IS NOT NULL AND lease.expires_at > now()
)
LIMIT 10000",
    "
SELECT message_id AS id, group_id
FROM delivery
WHERE state IN ('pending', 'calling') AND {is_late}
  AND NOT EXISTS (
      SELECT 1
      FROM partition_lease AS lease
      WHERE lease.group_id = delivery.group_id AND lease.topic = delivery.topic
        AND lease.partition = delivery.partition
        AND lease.owner IS NOT NULL AND lease.expires_at > {now}
  )
LIMIT 10000",
);

/// Entries that have been expired for a time, under any consumer.
pub(super) static OVERDUE: Sql = Sql::with(
    &[IS_LATE],
    "
SELECT message_id::text AS id, group_id
FROM delivery
WHERE state IN ('pending', 'calling') AND expires_at <= now() - {duration(:overdue)} AND {is_late}
LIMIT 10000",
    "
SELECT message_id AS id, group_id
FROM delivery
WHERE state IN ('pending', 'calling') AND expires_at <= {now} - :overdue AND {is_late}
LIMIT 10000",
);

static END_POSTGRES: EventSql = EventSql::postgres(
    "
WITH late AS (
    SELECT own.message_id, own.group_id
    FROM (SELECT * FROM :named ORDER BY 1) AS named
        CROSS JOIN LATERAL (
            SELECT message_id, group_id
            FROM delivery
            WHERE delivery.message_id = named.message_id AND delivery.group_id = named.group_id
              AND state || '' IN ('pending', 'calling') AND {is_late}
            FOR UPDATE SKIP LOCKED
        ) AS own
), closed AS (
    UPDATE delivery
    SET state = CASE state WHEN 'pending' THEN 'expired' ELSE 'unknown' END,
        code = NULL,
        ended_at = now(),
        detail = 'no consumer ended it',
        attempts = CASE state WHEN 'pending' THEN attempts ELSE {interrupted} END,
        maybe_taken = CASE state WHEN 'pending' THEN maybe_taken ELSE {with_called} END
    WHERE (message_id, group_id) IN (SELECT message_id, group_id FROM late)
    RETURNING message_id, group_id, state
){events}
SELECT message_id::text AS id, group_id, state FROM closed",
    &[
        IS_LATE,
        Fragment::new(
            "events",
            ", ended AS (SELECT message_id AS id, state, NULL::text AS reason FROM closed){record_ended}",
        ),
        RECORD_ENDED,
        CALLED,
        INTERRUPTED,
        WITH_CALLED,
    ],
    &[IS_LATE, Fragment::NO_EVENTS, CALLED, INTERRUPTED, WITH_CALLED],
);

static END_SQLITE: Sql = Sql::with(
    &[IS_LATE, CALLED, INTERRUPTED, WITH_CALLED],
    "",
    "
UPDATE delivery
SET state = iif(state = 'pending', 'expired', 'unknown'),
    code = NULL,
    ended_at = clock.now,
    detail = 'no consumer ended it',
    attempts = iif(state = 'pending', attempts, {interrupted}),
    maybe_taken = iif(state = 'pending', maybe_taken, {with_called})
FROM (SELECT {now} AS now) AS clock
WHERE (message_id, group_id) IN (SELECT message_id, group_id FROM :named)
  AND state IN ('pending', 'calling') AND {is_late}
RETURNING message_id AS id, group_id, state",
);

static FORGET: Sql = Sql::with(
    &[IS_LATE],
    "
DELETE FROM delivery
WHERE (message_id, group_id) IN (SELECT message_id, group_id FROM :named)
  AND state || '' IN ('pending', 'calling') AND {is_late}",
    "
DELETE FROM delivery
WHERE (message_id, group_id) IN (SELECT message_id, group_id FROM :named)
  AND state IN ('pending', 'calling') AND {is_late}",
);
